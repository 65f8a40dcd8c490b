//! `wait`: returns when something holds.

use crate::context::{Context, status};
use crate::exit;
use clap::Args;
use dvm_plugin_api::local::{Failure, FailureCode, Status};
use serde_json::json;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// members=N, plugin=NAME:STATE, confirmed, index=I
    #[arg(value_parser = Until::parse)]
    until: Until,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Until {
    /// The view has exactly so many.
    Members(usize),
    /// A plug-in is in a state; `absent` is one too.
    Plugin(String, String),
    Confirmed,
    /// The member asked has applied so far.
    Index(u64),
}

pub(crate) fn wait(context: &Context, args: &WaitArgs) -> exit::Result {
    let deadline = context.global.timeout.map(|timeout| Instant::now() + timeout);
    let mut client = context.client()?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let now = status(&mut client, Some(left.unwrap_or(Duration::from_secs(10))))?;
        if args.until.holds(&now) {
            let body = json!({"index": now.index, "view": now.view.id, "epoch": now.view.epoch, "label": now.view.label});
            context.out.tell(&body, String::new);
            return Ok(exit::OK);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::new(FailureCode::Unknown, "it does not hold yet, and time is up")
                .cause(args.until.now(&now))
                .hint("see `dvm status`"));
        }
        sleep(LOOK);
    }
}

impl Until {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected members=N, plugin=NAME:STATE, confirmed or index=I";
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
        match text.split_once('=') {
            None if text == "confirmed" => Ok(Self::Confirmed),
            Some(("members", count)) => {
                Ok(Self::Members(usize::try_from(number(count)?).map_err(|_| expected.to_owned())?))
            }
            Some(("index", index)) => Ok(Self::Index(number(index)?)),
            Some(("plugin", plugin)) => {
                let (name, state) = plugin.rsplit_once(':').unwrap_or((plugin, "running"));
                match state {
                    "loading" | "running" | "degraded" | "failed" | "absent" => {
                        Ok(Self::Plugin(name.into(), state.into()))
                    }
                    _ => Err("a plug-in is loading, running, degraded, failed or absent".into()),
                }
            }
            _ => Err(expected.into()),
        }
    }

    fn holds(&self, now: &Status) -> bool {
        match self {
            Self::Members(count) => now.view.size == *count && now.view.phase == "normal",
            Self::Plugin(name, state) => {
                let found = now.plugins.iter().find(|plugin| plugin.name == *name);
                found.map_or("absent", |plugin| plugin.state.as_str()) == state
            }
            Self::Confirmed => now.view.label == "confirmed",
            Self::Index(index) => now.index >= *index,
        }
    }

    /// How it is instead.
    fn now(&self, now: &Status) -> String {
        match self {
            Self::Members(_) => format!("the view has {} members, phase {}", now.view.size, now.view.phase),
            Self::Plugin(name, _) => match now.plugins.iter().find(|plugin| plugin.name == *name) {
                Some(plugin) => format!("plug-in `{name}` is {}", plugin.state),
                None => format!("plug-in `{name}` is not loaded"),
            },
            Self::Confirmed => format!("the view is {}", now.view.label),
            Self::Index(_) => format!("{} is at index {}", now.through, now.index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(Until::parse("members=3"), Ok(Until::Members(3)));
        assert_eq!(
            Until::parse("plugin=counter:failed"),
            Ok(Until::Plugin("counter".into(), "failed".into()))
        );
        assert_eq!(Until::parse("plugin=counter"), Ok(Until::Plugin("counter".into(), "running".into())));
        assert_eq!(Until::parse("confirmed"), Ok(Until::Confirmed));
        assert_eq!(Until::parse("index=45"), Ok(Until::Index(45)));
        for bad in ["", "members", "members=x", "plugin=counter:fine", "sometimes"] {
            assert!(Until::parse(bad).is_err(), "{bad}");
        }
    }
}
