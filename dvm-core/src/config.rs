//! Every limit and duration of the protocol, in one place, validated at start.

use crate::ids::Name;
use crate::state::Require;
use alloc::string::{String, ToString};
use serde::{Deserialize, Serialize};

/// What a side of a cut may do that cannot show it holds a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partition {
    /// Every side goes on, with honest labels; the DVM lives while one member lives.
    Survive,
    /// Only a side with a quorum goes on; the others answer reads and refuse writes.
    Quorum,
}

/// What becomes of the entries of a branch that lost when a cut healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// They go to the orphan journal only.
    Discard,
    /// The loser's members propose them again, before what their clients wait for.
    Resubmit,
}

/// The settings of a DVM, the same at all members: a change is an ordered entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The partition policy; fixed for the life of the DVM.
    pub partition: Partition,
    /// T: silence after which a member is accused, milliseconds, 50 to 60,000.
    pub silence_ms: u64,
    /// How long evidence of death is held so that faults that come together make one view change, milliseconds.
    pub cut_dead_ms: u64,
    /// The same for silence, milliseconds.
    pub cut_silent_ms: u64,
    /// Members each member sends heartbeats to, 2 to 16.
    pub observers: u64,
    /// Accusers needed to call a member silent, 1 to 16.
    pub accusers: u64,
    /// Own messages in flight per origin and view, 1 to 4,096.
    pub window: u64,
    /// Bytes of bodies in flight on the whole ring, 64 KiB to 1 GiB.
    pub ring_budget: u64,
    /// Time a member has to execute a transaction, milliseconds, 100 to 3,600,000.
    pub exec_limit_ms: u64,
    /// Largest body of one message, bytes, 1 KiB to 1 MiB.
    pub inline_max: u64,
    /// Entries of history kept, 64 to 1 Mi.
    pub history_entries: u64,
    /// Bytes of history kept, 1 MiB to 4 GiB.
    pub history_bytes: u64,
    /// How long the coordinator gathers joiners for one view, milliseconds, 0 to 10,000.
    pub join_batch_ms: u64,
    /// Own messages waiting for a number, per member; a client beyond it is told to wait. 1 to 1 Mi.
    pub waiting: u64,
    /// What becomes of a losing branch's entries.
    pub merge: Merge,
    /// When a transaction commits that names no rule of its own.
    pub require: Require,
    /// Faults on request (`dvm chaos`).
    pub chaos: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            partition: Partition::Survive,
            silence_ms: 1_000,
            cut_dead_ms: 1,
            cut_silent_ms: 50,
            observers: 4,
            accusers: 2,
            window: 32,
            ring_budget: 8 << 20,
            exec_limit_ms: 30_000,
            inline_max: 32 << 10,
            history_entries: 64 << 10,
            history_bytes: 64 << 20,
            join_batch_ms: 20,
            waiting: 4_096,
            merge: Merge::Discard,
            require: Require::All,
            chaos: false,
        }
    }
}

/// Why a setting was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ConfigError {
    /// No such setting.
    #[error("no setting is called {key}; the settings are {known}")]
    Unknown {
        /// The name that was given.
        key: Name,
        /// All names, comma separated.
        known: String,
    },
    /// The value does not parse or is out of range.
    #[error("setting {key} must be {wanted}, not {value}")]
    Value {
        /// The setting.
        key: Name,
        /// The value that was given.
        value: String,
        /// What is allowed.
        wanted: String,
    },
    /// The setting cannot change while the DVM runs.
    #[error("setting {key} is fixed when the DVM starts; give it to `dvm up --set {key}=…`")]
    Fixed {
        /// The setting.
        key: Name,
    },
}

/// The numeric settings: name, range. One table serves parsing, printing and checking.
const NUMBERS: [(&str, u64, u64); 13] = [
    ("silence_ms", 50, 60_000),
    ("cut_dead_ms", 0, 10_000),
    ("cut_silent_ms", 0, 10_000),
    ("observers", 2, 16),
    ("accusers", 1, 16),
    ("window", 1, 4_096),
    ("ring_budget", 64 << 10, 1 << 30),
    ("exec_limit_ms", 100, 3_600_000),
    ("inline_max", 1 << 10, 1 << 20),
    ("history_entries", 64, 1 << 20),
    ("history_bytes", 1 << 20, 4 << 30),
    ("join_batch_ms", 0, 10_000),
    ("waiting", 1, 1 << 20),
];

impl Config {
    fn number(&mut self, key: &str) -> Option<&mut u64> {
        Some(match key {
            "silence_ms" => &mut self.silence_ms,
            "cut_dead_ms" => &mut self.cut_dead_ms,
            "cut_silent_ms" => &mut self.cut_silent_ms,
            "observers" => &mut self.observers,
            "accusers" => &mut self.accusers,
            "window" => &mut self.window,
            "ring_budget" => &mut self.ring_budget,
            "exec_limit_ms" => &mut self.exec_limit_ms,
            "inline_max" => &mut self.inline_max,
            "history_entries" => &mut self.history_entries,
            "history_bytes" => &mut self.history_bytes,
            "join_batch_ms" => &mut self.join_batch_ms,
            "waiting" => &mut self.waiting,
            _ => return None,
        })
    }

    /// All settings as (name, value), in a fixed order.
    #[must_use]
    pub fn list(&self) -> alloc::vec::Vec<(&'static str, String)> {
        let mut copy = self.clone();
        let mut all: alloc::vec::Vec<_> = NUMBERS
            .iter()
            .map(|&(key, ..)| (key, copy.number(key).expect("the table names fields").to_string()))
            .collect();
        all.push((
            "partition",
            if self.partition == Partition::Survive { "survive" } else { "quorum" }.into(),
        ));
        all.push(("merge", if self.merge == Merge::Discard { "discard" } else { "resubmit" }.into()));
        all.push(("require", self.require.to_string()));
        all.push(("chaos", self.chaos.to_string()));
        all
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    /// Unknown name, or a value that does not parse or is out of range; the settings are as before.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let refuse = |wanted: String| ConfigError::Value { key: key.into(), value: value.into(), wanted };
        match key {
            "partition" => {
                self.partition = match value {
                    "survive" => Partition::Survive,
                    "quorum" => Partition::Quorum,
                    _ => return Err(refuse("survive or quorum".into())),
                }
            }
            "merge" => {
                self.merge = match value {
                    "discard" => Merge::Discard,
                    "resubmit" => Merge::Resubmit,
                    _ => return Err(refuse("discard or resubmit".into())),
                }
            }
            "require" => {
                let rule = value.parse().map_err(|_| refuse("all, majority, at-least:K or any".into()))?;
                self.require = rule;
            }
            "chaos" => self.chaos = value.parse().map_err(|_| refuse("true or false".into()))?,
            _ => {
                let &(_, low, high) = NUMBERS.iter().find(|row| row.0 == key).ok_or_else(|| {
                    let known: alloc::vec::Vec<_> = self.list().into_iter().map(|(key, _)| key).collect();
                    ConfigError::Unknown { key: key.into(), known: known.join(", ") }
                })?;
                let number = value.parse::<u64>().ok().filter(|n| (low..=high).contains(n));
                let number = number.ok_or_else(|| refuse(alloc::format!("a number from {low} to {high}")))?;
                *self.number(key).expect("the table names fields") = number;
            }
        }
        Ok(())
    }

    /// As [`Config::set`], for a DVM that runs: what is fixed at its start is refused.
    ///
    /// # Errors
    /// As [`Config::set`], and [`ConfigError::Fixed`].
    pub fn change(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        if matches!(key, "partition" | "chaos") {
            return Err(ConfigError::Fixed { key: key.into() });
        }
        self.set(key, value)
    }

    /// The ceiling of a member's widened silence time-out, milliseconds.
    #[must_use]
    pub fn silence_max_ms(&self) -> u64 {
        4 * self.silence_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_setting_can_be_set_to_its_own_value() {
        let config = Config::default();
        for (key, value) in config.list() {
            let mut copy = config.clone();
            copy.set(key, &value).expect(key);
            assert_eq!(copy, config);
        }
    }

    #[test]
    fn a_value_out_of_range_changes_nothing_and_says_the_range() {
        let mut config = Config::default();
        let error = config.set("silence_ms", "3").expect_err("too small");
        assert_eq!(error.to_string(), "setting silence_ms must be a number from 50 to 60000, not 3");
        assert_eq!(config, Config::default());
        assert!(matches!(config.set("no_such", "1"), Err(ConfigError::Unknown { .. })));
        assert!(matches!(config.change("partition", "quorum"), Err(ConfigError::Fixed { .. })));
    }
}
