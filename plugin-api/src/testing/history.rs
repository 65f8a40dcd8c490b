//! The history of a DVM in memory: what instances are told, in order, and what they were after each of it.

use serde_json::Value;
use std::hash::{DefaultHasher, Hasher};

/// Letters of a reply or a state that a message shows.
const SHOWN: usize = 160;

/// Something that all instances are told.
pub(super) struct Item {
    pub(super) index: u64,
    pub(super) what: What,
    /// Every instance fails at it: it took no effect anywhere.
    pub(super) left_out: bool,
}

pub(super) enum What {
    Command {
        command: Value,
        bytes: Vec<u8>,
        meta: Vec<u8>,
    },
    Event {
        kind: String,
        bytes: Vec<u8>,
    },
    Configure(Vec<u8>),
    /// The members, by rank.
    Members(Vec<String>),
}

impl Item {
    pub(super) fn command(&self) -> Option<&Value> {
        match &self.what {
            What::Command { command, .. } => Some(command),
            _ => None,
        }
    }

    pub(super) fn name(&self) -> String {
        match &self.what {
            What::Command { command, .. } => format!("the command {command}"),
            What::Event { kind, .. } => format!("the event {kind}"),
            What::Configure(_) => "a configuration".into(),
            What::Members(_) => "a change of ranks".into(),
        }
    }
}

/// What the first instance that came to a position replied and was.
pub(super) struct Record {
    pub(super) member: String,
    pub(super) reply: Reply,
    pub(super) state: Option<State>,
}

/// The reply in the plug-in's format, or the plug-in's own error.
pub(super) type Reply = Result<Vec<u8>, String>;

/// A snapshot, to be compared and shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    size: usize,
    digest: u64,
    shown: String,
}

impl State {
    pub(super) fn of(snapshot: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(snapshot);
        Self { size: snapshot.len(), digest: hasher.finish(), shown: shown(snapshot) }
    }

    pub(super) fn text(&self) -> String {
        format!("{} bytes, {}", self.size, self.shown)
    }
}

/// Bytes for people: text as it is, what is MessagePack as JSON, anything else as numbers.
pub(super) fn shown(bytes: &[u8]) -> String {
    let is_text =
        |text: &&str| !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_whitespace());
    let text = match std::str::from_utf8(bytes).ok().filter(is_text) {
        Some(text) => text.to_owned(),
        None => match rmp_serde::from_slice::<Value>(bytes) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => value.to_string(),
            _ => format!("{:?}", &bytes[..bytes.len().min(SHOWN / 4)]),
        },
    };
    let mut letters = text.chars();
    let begin: String = letters.by_ref().take(SHOWN).collect();
    if letters.next().is_some() { begin + "…" } else { begin }
}

pub(super) fn reply_text(reply: &Reply) -> String {
    match reply {
        Ok(bytes) if bytes.is_empty() => "nothing".into(),
        Ok(bytes) => shown(bytes),
        Err(error) => format!("the error \"{error}\""),
    }
}
