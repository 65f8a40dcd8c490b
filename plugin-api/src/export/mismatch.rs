//! What bytes in MessagePack have that a type does not take, in words for people.
//!
//! The decoder itself knows markers only (`wrong msgpack marker FixStr(3)`). So the bytes are read once more, as a value
//! that describes itself, and the type is made from that: its error names the value and what is expected. Only a
//! failure costs this.

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};
use std::cell::RefCell;

/// Why `bytes` are no `T`, after `error` said that they are not.
pub(super) fn explain<T: DeserializeOwned>(bytes: &[u8], error: rmp_serde::decode::Error) -> String {
    let value: Value = match rmp_serde::from_slice(bytes) {
        Ok(value) => value,
        Err(_) => return plain(error),
    };
    let fields = value.as_object().cloned();
    match T::deserialize(value) {
        // It is MessagePack's way to write it that does not fit.
        Ok(_) => plain(error),
        Err(found) => {
            let found = found.to_string();
            let field = fields.and_then(|fields| field_of::<T>(fields, &found));
            field.map_or_else(|| found.clone(), |field| format!("`{field}`: {found}"))
        }
    }
}

/// The field or variant whose value gives this error; none where the error is about the whole, or names it itself.
fn field_of<T: DeserializeOwned>(fields: Map<String, Value>, found: &str) -> Option<String> {
    let at = RefCell::new(None);
    let mut fields = fields.into_iter();
    let told = std::iter::from_fn(|| {
        let next = fields.next();
        *at.borrow_mut() = next.as_ref().map(|(key, _)| key.clone());
        next
    });
    let error = match T::deserialize(MapAccessDeserializer::new(MapDeserializer::new(told))) {
        Ok(_) => serde_json::Error::custom("none"),
        Err(error) => error,
    };
    let field = at.into_inner().filter(|_| error.to_string() == found);
    field.filter(|field| !found.contains(&format!("`{field}`")))
}

/// The decoder's text without its own framing.
fn plain(error: rmp_serde::decode::Error) -> String {
    match error {
        rmp_serde::decode::Error::Syntax(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(rename = "max")]
        _max: usize,
        #[serde(rename = "deep", default)]
        _deep: Option<Deep>,
    }

    #[derive(Debug, Deserialize)]
    struct Deep {
        #[serde(rename = "on")]
        _on: bool,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Command {
        Add(#[expect(dead_code, reason = "only its type is asked for")] u32),
        Move {
            #[serde(rename = "to")]
            _to: String,
        },
        Get,
    }

    fn check<T: DeserializeOwned + std::fmt::Debug>(value: &Value, expected: &str) {
        let bytes = rmp_serde::to_vec_named(value).expect("JSON fits");
        let error = rmp_serde::from_slice::<T>(&bytes).expect_err("it does not fit");
        assert_eq!(explain::<T>(&bytes, error), expected, "{value}");
    }

    #[test]
    fn a_configuration_with_a_wrong_type_is_told_by_field_value_and_expectation() {
        check::<Config>(&json!({"max": "ten"}), "`max`: invalid type: string \"ten\", expected usize");
        check::<Config>(&json!({"max": -1}), "`max`: invalid value: integer `-1`, expected usize");
        check::<Config>(&json!({"max": 1, "deep": {}}), "`deep`: missing field `on`");
        check::<Config>(
            &json!({"deep": {"on": 1}, "max": 1}),
            "`deep`: invalid type: integer `1`, expected a boolean",
        );
    }

    #[test]
    fn what_is_about_the_whole_names_no_field() {
        check::<Config>(&json!({"deep": null}), "missing field `max`");
        check::<Config>(&json!({"many": 1}), "unknown field `many`, expected `max` or `deep`");
        check::<Config>(&json!("max"), "invalid type: string \"max\", expected struct Config");
    }

    #[test]
    fn a_command_is_told_by_its_variant() {
        check::<Command>(&json!({"add": "x"}), "`add`: invalid type: string \"x\", expected u32");
        check::<Command>(&json!({"move": {"to": 1}}), "`move`: invalid type: integer `1`, expected a string");
        check::<Command>(&json!({"get": true}), "`get`: invalid type: boolean `true`, expected unit");
        check::<Command>(
            &json!({"subtract": 1}),
            "unknown variant `subtract`, expected one of `add`, `move`, `get`",
        );
        check::<Command>(&json!(7), "invalid type: integer `7`, expected string or map");
    }

    #[test]
    fn bytes_that_are_no_json_keep_the_decoders_text() {
        let error = rmp_serde::from_slice::<Config>(b"\xc1").expect_err("a reserved byte");
        assert_eq!(explain::<Config>(b"\xc1", error), "wrong msgpack marker Reserved");
        // JSON reads an address from text, MessagePack from numbers.
        let bytes = rmp_serde::to_vec("127.0.0.1").expect("text");
        let error = rmp_serde::from_slice::<std::net::IpAddr>(&bytes).expect_err("it is no number");
        let told = explain::<std::net::IpAddr>(&bytes, error);
        assert_eq!(told, "unknown variant `127.0.0.1`, expected `V4` or `V6`");
    }
}
