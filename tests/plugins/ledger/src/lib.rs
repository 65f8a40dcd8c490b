//! A plug-in whose commands have an effect outside: its primary appends each to a file that all members share, and that
//! refuses lower fences.
//!
//! ```text
//! dvm plugin load ./libledger.so --mode hot --only-confirmed -c file=/shared/ledger
//! dvm call ledger '{"append":"a word"}'
//! dvm call ledger '"undone"'              how many effects nobody has marked as done
//! ```
//! An effect is in the file at least once. All instances know which commands are not marked as done: an effect is marked by
//! an ordered command after it was made, and who is promoted makes those that are not. So a primary that dies in between
//! leaves nothing out, and at worst something is made twice, under the same index.

mod file;
mod worker;

use dvm_plugin_api::{Error, Host, Meta, Plugin, Result, Role, export_plugin};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use worker::Worker;

/// What `-c KEY=VALUE` sets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The file.
    file: PathBuf,
    /// Pause between the question whether it may act and the act: the moment in which a process must not be stopped.
    #[serde(default)]
    think_ms: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// Append this word.
    Append(String),
    /// The commands at these indices have had their effect.
    Done(Vec<u64>),
    /// How many have not?
    Undone,
}

struct Ledger {
    /// Commands whose effect nobody has marked as done, by index.
    undone: BTreeMap<u64, String>,
    primary: bool,
    worker: Worker,
}

impl Plugin for Ledger {
    type Config = Config;
    type Command = Command;
    type Reply = Value;

    fn start(config: Config, host: Host) -> Result<Self> {
        let worker = Worker::start(host, config.file, Duration::from_millis(config.think_ms))?;
        Ok(Self { undone: BTreeMap::new(), primary: false, worker })
    }

    fn apply(&mut self, command: Command, meta: &Meta) -> Result<Value> {
        match command {
            Command::Append(word) => {
                if self.primary {
                    self.worker.make(meta.index, word.clone());
                }
                self.undone.insert(meta.index, word);
                Ok(json!({"index": meta.index}))
            }
            Command::Done(indices) => {
                indices.iter().for_each(|index| drop(self.undone.remove(index)));
                Ok(Value::Null)
            }
            Command::Undone => Ok(json!({"undone": self.undone.len()})),
        }
    }

    fn on_role(&mut self, role: Role) {
        self.primary = matches!(role, Role::Primary { .. });
        if self.primary {
            self.undone.iter().for_each(|(index, word)| self.worker.make(*index, word.clone()));
        } else {
            self.worker.forget();
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.undone).expect("numbers and words")
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.undone = serde_json::from_slice(snapshot).map_err(Error::new)?;
        Ok(())
    }
}

export_plugin!(Ledger);
