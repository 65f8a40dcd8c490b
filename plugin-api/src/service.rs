//! What an instance asks of its host, beyond its log and its token: one request, one answer.
//!
//! Every method of [`Host`](crate::Host) that has an answer makes an [`Ask`] and hands it to the host's one function
//! for all of them, as MessagePack with named fields; the answer is a JSON value. So a service is added without a new
//! function: an older host says that it does not know it. What comes by itself (a message, a timer, a watched key, a
//! process's output and end) comes as an [`Event`](crate::Event), by the instance's own thread, like any other.
//!
//! ```
//! use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Result, export_plugin};
//! use serde_json::{Value, json};
//! use std::time::Duration;
//!
//! /// Greets the other members, and keeps in a key who has greeted this one.
//! pub struct Greeter {
//!     host: Host,
//! }
//!
//! impl Greeter {
//!     fn greet(&self) -> Result<()> {
//!         for peer in self.host.peers() {
//!             self.host.send(&peer, &json!({"hello": self.host.rank()}))?;
//!         }
//!         Ok(())
//!     }
//!
//!     fn note(&self, from: &str) -> Result<()> {
//!         let key = format!("greeter/{}", self.host.member());
//!         let mut names: Vec<String> = self.host.get(&key)?.map_or_else(Vec::new, |(names, _)| names);
//!         if !names.iter().any(|name| name == from) {
//!             names.push(from.into());
//!             self.host.put(&key, &names)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! impl Plugin for Greeter {
//!     type Config = Value;
//!     type Command = Value;
//!     type Reply = Value;
//!
//!     fn start(_: Value, host: Host) -> Result<Self> {
//!         host.timer("greet", Duration::ZERO, Some(Duration::from_secs(1)))?;
//!         Ok(Self { host })
//!     }
//!
//!     fn apply(&mut self, _: Value, _: &Meta) -> Result<Value> {
//!         Err(Error::new("there are no commands"))
//!     }
//!
//!     fn on_event(&mut self, event: &Event) {
//!         let done = match (event.kind.as_str(), event.fields.get("from").and_then(Value::as_str)) {
//!             ("timer", _) => self.greet(),
//!             ("message", Some(from)) => self.note(from),
//!             _ => Ok(()),
//!         };
//!         if let Err(error) = done {
//!             self.host.log(error);
//!         }
//!     }
//! }
//!
//! export_plugin!(Greeter, stateless);
//! ```
//!
//! Hosts of all kinds keep the same rules: the limits here, and [`refusal`].

mod tail;

#[doc(hidden)]
pub use tail::Tail;

use crate::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Longest key, bytes.
pub const KEY_MAX: usize = 1_024;
/// Keys that begin so are the DVM's own.
pub const KEYS_RESERVED: &str = "dvm/";
/// Longest body of a message, bytes of JSON.
pub const MESSAGE_MAX: usize = 64 << 10;
/// Events of their own that wait for one instance.
pub const WAITING_MAX: usize = 1_024;
/// Timers of one instance.
pub const TIMERS_MAX: usize = 64;
/// Shortest time between two ticks of a timer, milliseconds.
pub const TICK_MIN_MS: u64 = 10;
/// Prefixes that one instance watches.
pub const WATCHES_MAX: usize = 64;
/// Processes that one instance follows at a time.
pub const FOLLOWED_MAX: usize = 256;
/// Processes of one plug-in that run on one member at a time.
pub const PROCESSES_MAX: usize = 256;
/// Processes of one plug-in that have ended and are remembered on one member.
pub const ENDED_MAX: usize = 256;
/// Output kept of each stream of a process, bytes: the last ones.
pub const OUTPUT_MAX: usize = 64 << 10;
/// Longest text of one `process-output`, bytes.
pub const CHUNK_MAX: usize = 16 << 10;
/// Questions of one instance that are answered at a time.
pub const ASKS_MAX: usize = 16;
/// How long a process that is killed has between SIGTERM and SIGKILL, milliseconds.
pub const KILL_AFTER_MS: u64 = 2_000;
/// Longest time for an answer where nothing else is said, milliseconds.
pub const ANSWER_MS: u64 = 10_000;
/// Undone commands in one answer, bytes of JSON.
pub const UNDONE_MAX: usize = 1 << 20;

/// Something asked of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ask {
    /// A command to a plug-in, or where `query`, a question to one of its instances. Answer: the reply.
    Call {
        /// Its name.
        plugin: String,
        /// As JSON.
        command: Value,
        /// Read only.
        #[serde(default)]
        query: bool,
        /// Longest time for it; at most what the host allows by itself.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// A command to all instances of the plug-in that asks; nobody waits for its reply. Answer: `{"index"}`.
    Broadcast {
        /// As JSON.
        command: Value,
    },
    /// A message to the instance on another member, at most once. Answer: `null`, once it waits there.
    Send {
        /// To whom.
        member: String,
        /// What.
        #[serde(default)]
        body: Value,
    },
    /// A key. Answer: `{"value","version"}`, or `null`.
    Get {
        /// Which.
        key: String,
    },
    /// Sets a key. Answer: `{"version"}`, or `null` where it has another version.
    Put {
        /// Which.
        key: String,
        /// To what.
        value: Value,
        /// Only if this is its version; 0: only if there is none.
        #[serde(default)]
        version: Option<u64>,
    },
    /// Deletes a key, if it is there. Answer: `null`.
    Delete {
        /// Which.
        key: String,
    },
    /// From now on, an event `key-changed` for each change of a key that begins so. Answer: `null`.
    Watch {
        /// What the keys begin with.
        prefix: String,
    },
    /// Ends that. Answer: `null`.
    Unwatch {
        /// As it was watched.
        prefix: String,
    },
    /// An event `timer` then, in place of the timer of this name. Answer: `null`.
    Timer {
        /// What it is called.
        name: String,
        /// Until the first, milliseconds.
        after_ms: u64,
        /// Between two, milliseconds; only one if not said.
        #[serde(default)]
        every_ms: Option<u64>,
    },
    /// Ends a timer. Answer: `null`.
    CancelTimer {
        /// Its name.
        name: String,
    },
    /// Starts a process on a member, or follows the one that was started there under this key. Answer: `null`; events tell
    /// what becomes of it.
    Spawn {
        /// Where.
        member: String,
        /// The plug-in's own name for it.
        key: String,
        /// The program and its arguments.
        argv: Vec<String>,
        /// Set beside what the member's kernel has in its environment.
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// Where it starts; `/` if not said.
        #[serde(default)]
        cwd: Option<String>,
    },
    /// Ends a process, first by SIGTERM. Answer: `null`; its `process-exit` tells when it is over.
    Kill {
        /// Where it runs.
        member: String,
        /// Its key.
        key: String,
    },
    /// The effects of all commands up to this one are done. Answer: `null`, before it is in the history.
    Done {
        /// The command's index.
        index: u64,
    },
    /// The commands that were delivered before this instance became the primary, whose effects nobody has said are done.
    /// Answer: [`Undone`].
    Undone,
}

/// See [`Ask::Undone`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Undone {
    /// In history order.
    pub commands: Vec<UndoneCommand>,
    /// There are more than one answer holds: ask again when these are done.
    #[serde(default)]
    pub more: bool,
    /// Some are older than the history that is kept; they are not among `commands`.
    #[serde(default)]
    pub missed: bool,
}

/// A command whose effects may not have happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoneCommand {
    /// Its index, the key by which a repeated effect is known.
    pub index: u64,
    /// As JSON.
    pub command: Value,
}

impl Undone {
    /// From the commands that there are, in history order, each with its size in bytes and a way to its JSON: as many as
    /// fit into one answer.
    #[doc(hidden)]
    pub fn of<F: FnOnce() -> Value>(commands: impl IntoIterator<Item = (u64, usize, F)>) -> Self {
        let (mut undone, mut bytes) = (Self::default(), 0);
        for (index, size, command) in commands {
            bytes += size;
            if bytes > UNDONE_MAX && !undone.commands.is_empty() {
                undone.more = true;
                break;
            }
            undone.commands.push(UndoneCommand { index, command: command() });
        }
        undone
    }
}

/// From where a question comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A thread of the plug-in's own.
    Thread,
    /// `validate`.
    Validate,
    /// `start`.
    Start,
    /// One of the callbacks that must be the same at every instance: `apply`, `query`, `snapshot`, `restore`.
    Fixed(&'static str),
    /// Any other callback.
    Callback,
}

/// Why something may not be asked at this moment by the plug-in `own`; `None`: it may.
#[must_use]
pub fn refusal(moment: Moment, ask: &Ask, own: &str) -> Option<String> {
    match (moment, ask) {
        (Moment::Validate, _) => {
            Some("validate only looks at a configuration; ask the host from start on".into())
        }
        (Moment::Fixed(callback), _) => Some(format!(
            "{callback} must come to the same at every instance and asks nothing of its host; \
             ask from on_event, on_role, a timer or a thread of your own"
        )),
        (Moment::Start | Moment::Callback, Ask::Call { plugin, .. }) if plugin == own => Some(format!(
            "a callback of `{own}` that calls `{own}` would wait for itself; use broadcast, or a thread of your own"
        )),
        (Moment::Start, ask) if !ask.is_private() => Some(NOT_YET.into()),
        _ => None,
    }
}

/// Why a key cannot be read, or where `to_write`, cannot be set or deleted; `None`: it can.
#[doc(hidden)]
#[must_use]
pub fn key_refusal(key: &str, to_write: bool) -> Option<String> {
    match key {
        _ if key.is_empty() || key.len() > KEY_MAX => {
            Some(format!("a key has 1 to {KEY_MAX} bytes, not {}", key.len()))
        }
        _ if to_write && key.starts_with(KEYS_RESERVED) => Some(format!(
            "`{key}` cannot be changed: keys that begin with `{KEYS_RESERVED}` are the DVM's own"
        )),
        _ => None,
    }
}

/// Why a message is not taken; `None`: it is.
#[doc(hidden)]
#[must_use]
pub fn message_refusal(body: &Value) -> Option<String> {
    let size = body.to_string().len();
    (size > MESSAGE_MAX).then(|| format!("a message has at most {MESSAGE_MAX} bytes of JSON, not {size}"))
}

/// What is said, behind a member's name, where no instance of a plug-in can take a message.
#[doc(hidden)]
#[must_use]
pub fn absent(plugin: &str) -> String {
    format!("has no instance of `{plugin}` that runs")
}

/// What is said, behind a member's name, where an instance of a plug-in has too much to take.
#[doc(hidden)]
#[must_use]
pub fn full(plugin: &str) -> String {
    format!("has an instance of `{plugin}` for which {WAITING_MAX} events wait; send it later")
}

/// What is said where an instance has set going as much as it may.
#[doc(hidden)]
#[must_use]
pub fn too_many(most: usize, what: &str) -> String {
    format!("{most} {what} by this instance already, which is the most")
}

/// What is said where a plug-in runs as many processes on a member as it may.
#[doc(hidden)]
#[must_use]
pub fn too_many_processes(plugin: &str) -> String {
    format!("{PROCESSES_MAX} processes of `{plugin}` run here already")
}

/// The reply to a command at which every instance was lost. It is nobody's own word.
#[doc(hidden)]
pub const LEFT_OUT: &str = "the plug-in fails at this; it took no effect";

/// What is said where nothing is named that could be run.
#[doc(hidden)]
pub const NO_PROGRAM: &str = "no program is named: argv is empty";

/// An event as instances are given it; 0 is the index of one that comes to an instance alone. Fields that are no object are
/// none.
#[doc(hidden)]
#[must_use]
pub fn event(index: u64, kind: &str, fields: Value) -> Vec<u8> {
    let fields = match fields {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    rmp_serde::to_vec_named(&Event::new(index, kind, fields)).expect("an event is plain data")
}

/// What is said where effects are spoken of by an instance that is not the primary.
#[doc(hidden)]
#[must_use]
pub fn no_primary(plugin: &str) -> String {
    format!("this instance of `{plugin}` is not told to be the primary, whose effects alone count")
}

/// The key that tells how far a plug-in's effects are done.
#[doc(hidden)]
#[must_use]
pub fn effects_key(plugin: &str) -> String {
    format!("{KEYS_RESERVED}effects/{plugin}")
}

/// What an instance is told that acts before it is one of its member's.
pub const NOT_YET: &str = "this instance is not its member's yet: its load may still be rejected; \
                           set a timer of 0 ms in start, and ask when it comes";

impl Ask {
    /// Whether nobody but the instance notices: it may be asked before the instance is its member's.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(
            self,
            Self::Get { .. }
                | Self::Call { query: true, .. }
                | Self::Watch { .. }
                | Self::Unwatch { .. }
                | Self::Timer { .. }
                | Self::CancelTimer { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_asked_is_the_same_in_json_and_in_messagepack() {
        let json = json!({"spawn": {"member": "k1", "key": "a", "argv": ["true"]}});
        let ask: Ask = serde_json::from_value(json).expect("an ask");
        let bytes = rmp_serde::to_vec_named(&ask).expect("plain data");
        assert_eq!(rmp_serde::from_slice::<Ask>(&bytes).expect("an ask"), ask);
        let undone: Ask = serde_json::from_value(json!("undone")).expect("an ask");
        assert_eq!(undone, Ask::Undone);
        let unknown = serde_json::from_value::<Ask>(json!({"levitate": {}})).expect_err("unknown");
        assert!(unknown.to_string().contains("levitate"), "{unknown}");
    }

    #[test]
    fn undone_commands_are_told_as_many_as_fit_and_at_least_one() {
        let commands = |sizes: &[usize]| {
            let all = (1..).zip(sizes.to_vec()).map(|(index, size)| (index, size, move || json!(index)));
            let undone = Undone::of(all);
            (undone.commands.iter().map(|one| one.index).collect::<Vec<_>>(), undone.more)
        };
        assert_eq!(commands(&[]), (vec![], false));
        assert_eq!(commands(&[UNDONE_MAX / 2, UNDONE_MAX / 2]), (vec![1, 2], false), "just as many");
        assert_eq!(commands(&[UNDONE_MAX / 2, UNDONE_MAX / 2, 1]), (vec![1, 2], true), "one byte more");
        assert_eq!(
            commands(&[UNDONE_MAX + 1, 1]),
            (vec![1], true),
            "one that alone is too large is told all the same"
        );
    }

    #[test]
    fn callbacks_that_must_be_the_same_everywhere_ask_nothing() {
        let timer = Ask::Timer { name: "t".into(), after_ms: 0, every_ms: None };
        let call = |plugin: &str| Ask::Call {
            plugin: plugin.into(),
            command: json!(1),
            query: false,
            timeout_ms: None,
        };
        let send = Ask::Send { member: "k1".into(), body: json!(1) };
        assert!(refusal(Moment::Fixed("apply"), &timer, "me").is_some_and(|why| why.contains("apply")));
        assert!(refusal(Moment::Validate, &timer, "me").is_some());
        assert!(refusal(Moment::Start, &send, "me").is_some_and(|why| why.contains("timer of 0 ms")));
        assert_eq!(refusal(Moment::Start, &timer, "me"), None);
        assert!(refusal(Moment::Callback, &call("me"), "me").is_some_and(|why| why.contains("itself")));
        assert_eq!(refusal(Moment::Callback, &call("other"), "me"), None);
        assert_eq!(refusal(Moment::Thread, &call("me"), "me"), None);
    }
}
