//! The plug-in of docs/host-services.md, tested as it is there.

use dvm_tests::book::{block, marked, page};

// The example of docs/host-services.md, from here …
use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Result, export_plugin};
use serde_json::{Value, json};
use std::time::Duration;

/// Greets the other members, and keeps in a key who has greeted this one.
pub struct Greeter {
    host: Host,
}

impl Greeter {
    fn greet(&self) -> Result<()> {
        for peer in self.host.peers() {
            self.host.send(&peer, &json!({"hello": self.host.rank()}))?;
        }
        Ok(())
    }

    fn note(&self, from: &str) -> Result<()> {
        let key = format!("greeter/{}", self.host.member());
        let mut names: Vec<String> = self.host.get(&key)?.map_or_else(Vec::new, |(names, _)| names);
        if !names.iter().any(|name| name == from) {
            names.push(from.into());
            self.host.put(&key, &names)?;
        }
        Ok(())
    }
}

impl Plugin for Greeter {
    type Config = Value;
    type Command = Value;
    type Reply = Value;

    fn start(_: Value, host: Host) -> Result<Self> {
        host.timer("greet", Duration::ZERO, Some(Duration::from_secs(1)))?;
        Ok(Self { host })
    }

    fn apply(&mut self, _: Value, _: &Meta) -> Result<Value> {
        Err(Error::new("there are no commands"))
    }

    fn on_event(&mut self, event: &Event) {
        let done = match (event.kind.as_str(), event.fields.get("from").and_then(Value::as_str)) {
            ("timer", _) => self.greet(),
            ("message", Some(from)) => self.note(from),
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.host.log(error);
        }
    }
}

export_plugin!(Greeter, stateless);

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_plugin_api::testing::{Failure, Testbed, json};

    #[test]
    fn whoever_greets_is_noted_by_all_who_are_there() -> Result<(), Failure> {
        let mut dvm = Testbed::of::<Greeter>(7).members(3).stateless().start()?;
        // They greeted each other as soon as they were loaded.
        for member in dvm.names() {
            let (names, _) = dvm.key(&format!("greeter/{member}")).expect("it was greeted");
            assert_eq!(names.as_array().map(Vec::len), Some(3), "{names}");
        }
        dvm.crash("k0")?;
        let joined = dvm.join()?;
        dvm.advance(Duration::from_secs(1))?;
        let (names, _) = dvm.key("greeter/k1").expect("it was greeted");
        assert!(names.as_array().is_some_and(|names| names.contains(&json!(joined))), "{names}");
        Ok(())
    }
}
// … to here.

#[test]
fn the_book_shows_this_plugin_and_this_test() {
    let text = page("docs/host-services.md");
    let (code, test) = (block(&text, "## A whole one", "rust"), block(&text, "## A whole one", "rust,test"));
    assert_eq!(format!("{code}\n\n{test}"), marked(include_str!("greeter.rs")), "the page shows another one");
}
