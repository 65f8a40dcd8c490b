//! Forms of values that several commands take.

use dvm_plugin_api::local::Every;
use serde_json::Value;
use std::time::Duration;

/// `500ms`, `10s`, `2m`, `1h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        unit => return Err(format!("`{unit}` is no unit; use ms, s, m or h")),
    };
    let number: f64 = digits.parse().map_err(|_| "a duration is a number and a unit, like 10s".to_owned())?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

/// `KEY=VALUE`, both as text.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

/// `KEY=VALUE` sets, `KEY-` removes.
pub(crate) fn change(text: &str) -> Result<(String, Option<Value>), String> {
    if let Ok((key, text)) = pair(text) {
        return Ok((key, Some(value(&text))));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok((key.into(), None)),
        _ => Err("expected KEY=VALUE, or KEY- to remove".into()),
    }
}

/// JSON if it parses, else the text itself.
pub(crate) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()))
}

/// `N/WINDOW`: so many times in so many milliseconds.
pub(crate) fn window(text: &str) -> Result<(u32, u64), String> {
    let expected = || "expected N/WINDOW, like 3/60s".to_owned();
    let (times, window) = text.split_once('/').ok_or_else(expected)?;
    let window = duration(window)?;
    Ok((times.parse().map_err(|_| expected())?, u64::try_from(window.as_millis()).map_err(|_| expected())?))
}

/// `all`, `majority`, `at-least:K` or `any`.
pub(crate) fn require(text: &str) -> Result<String, String> {
    let at_least = text.strip_prefix("at-least:").is_some_and(|k| k.parse::<u32>().is_ok_and(|k| k > 0));
    if at_least || matches!(text, "all" | "majority" | "any") {
        Ok(text.into())
    } else {
        Err("expected all, majority, at-least:K or any".into())
    }
}

/// So many commands, or so much time: `500`, `10s`.
pub(crate) fn every(text: &str) -> Result<Every, String> {
    match text.parse() {
        Ok(0) => Err("0 commands would be a snapshot without an end; the least is 1".into()),
        Ok(items) => Ok(Every::Items(items)),
        Err(_) => {
            let every = duration(text)?;
            Ok(Every::Ms(u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1)))
        }
    }
}

/// One limit of a plug-in's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Bytes.
    Memory(u64),
    /// Milliseconds of processor time.
    Cpu(u64),
}

impl Limit {
    pub(crate) fn memory(self) -> Option<u64> {
        if let Self::Memory(bytes) = self { Some(bytes) } else { None }
    }

    pub(crate) fn cpu_ms(self) -> Option<u64> {
        if let Self::Cpu(ms) = self { Some(ms) } else { None }
    }
}

/// `memory=512M`, `cpu=60s`.
pub(crate) fn limit(text: &str) -> Result<Limit, String> {
    match text.split_once('=') {
        Some(("memory", value)) => Ok(Limit::Memory(bytes(value)?)),
        Some(("cpu", value)) => {
            let time = duration(value)?;
            Ok(Limit::Cpu(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
        }
        _ => Err(format!("`{text}` is no limit; what may be limited is memory=512M and cpu=60s")),
    }
}

/// `512M`, `2G`, `65536`; K, M and G are powers of 1,024.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory; give bytes, or a number with K, M or G");
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_their_units() {
        assert_eq!(limit("memory=512M"), Ok(Limit::Memory(512 << 20)));
        assert_eq!(limit("memory=65536"), Ok(Limit::Memory(65_536)));
        assert_eq!(limit("cpu=60s"), Ok(Limit::Cpu(60_000)));
        for bad in ["memory", "memory=", "memory=0", "memory=1T", "memory=99999999999G", "cpu=", "disk=1G"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    use serde_json::json;

    #[test]
    fn durations() {
        for (text, ms) in
            [("10", 10_000), ("1.5s", 1_500), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "1y", "-1s", "1e", "nan"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn changes() {
        assert_eq!(change("a=1"), Ok(("a".into(), Some(json!(1)))));
        assert_eq!(change("a=x=y"), Ok(("a".into(), Some(json!("x=y")))));
        assert_eq!(change("a=[\"k1\"]"), Ok(("a".into(), Some(json!(["k1"])))));
        assert_eq!(change("a-b-"), Ok(("a-b".into(), None)));
        assert_eq!(change("a=-"), Ok(("a".into(), Some(json!("-")))));
        for bad in ["a", "-", "", "=1"] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn windows_and_rules() {
        assert_eq!(window("3/60s"), Ok((3, 60_000)));
        assert!(window("3").is_err());
        assert!(require("at-least:0").is_err());
        assert_eq!(require("at-least:2"), Ok("at-least:2".into()));
    }
}
