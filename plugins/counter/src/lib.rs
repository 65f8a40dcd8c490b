//! A counter that every member holds: the example plug-in.
//!
//! ```text
//! dvm plugin load counter -c start=10 -c step=2
//! dvm call counter '{"add":3}'      {"value":16}
//! dvm call counter '{"get":true}'   {"value":16}
//! ```
//! It can also misbehave, so that a DVM can be seen to cope: refuse or hang when it is asked whether it may start, be
//! slow, and with `-c faults=true` fail in every way a program can ([`faults`]).

mod faults;

use dvm_plugin_api::{Error, Host, Meta, Plugin, Result, export_plugin};
use faults::Fault;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What `-c KEY=VALUE` may set.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// The first value.
    start: i64,
    /// What one unit of `add` counts for.
    step: i64,
    /// Members that refuse this configuration.
    refuse_on: Vec<String>,
    /// Members that do not come to an answer about it.
    hang_on: Vec<String>,
    /// How long each command takes, milliseconds.
    slow_ms: u64,
    /// Whether `{"fail":…}` is obeyed.
    faults: bool,
}

impl Default for Config {
    fn default() -> Self {
        let (refuse_on, hang_on) = (Vec::new(), Vec::new());
        Self { start: 0, step: 1, refuse_on, hang_on, slow_ms: 0, faults: false }
    }
}

/// What a counter is asked.
#[derive(Deserialize)]
#[serde(try_from = "Words")]
enum Command {
    /// `{"add":N}`: count `N` steps.
    Add(i64),
    /// `{"get":true}`: tell the value.
    Get,
    /// `{"fail":FAULT,"on":MEMBER}`: fail, on one member or, without `on`, on all.
    Fail(Fault, Option<String>),
}

/// A command as it comes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    add: Option<i64>,
    get: Option<bool>,
    fail: Option<Fault>,
    on: Option<String>,
}

impl TryFrom<Words> for Command {
    type Error = &'static str;

    fn try_from(words: Words) -> Result<Self, Self::Error> {
        match words {
            Words { add: Some(steps), get: None, fail: None, on: None } => Ok(Self::Add(steps)),
            Words { add: None, get: Some(true), fail: None, on: None } => Ok(Self::Get),
            Words { add: None, get: None, fail: Some(fault), on } => Ok(Self::Fail(fault, on)),
            _ => Err(r#"a command is one of {"add":N}, {"get":true} and {"fail":FAULT,"on":MEMBER}"#),
        }
    }
}

#[derive(Serialize)]
struct Reply {
    value: i64,
}

struct Counter {
    value: i64,
    config: Config,
    host: Host,
}

impl Plugin for Counter {
    type Config = Config;
    type Command = Command;
    type Reply = Reply;

    fn validate(config: &Config, host: &Host) -> Result<()> {
        let member = host.member();
        if config.hang_on.contains(&member) {
            faults::hang();
        }
        if config.refuse_on.contains(&member) {
            return Err(Error::new(format!("refuse_on names {member}")));
        }
        Ok(())
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        Ok(Self { value: config.start, config, host })
    }

    fn apply(&mut self, command: Command, _meta: &Meta) -> Result<Reply> {
        std::thread::sleep(Duration::from_millis(self.config.slow_ms));
        match command {
            Command::Add(steps) => {
                let sum = steps.checked_mul(self.config.step).and_then(|more| self.value.checked_add(more));
                self.value = sum.ok_or_else(|| Error::new("the counter would overflow"))?;
            }
            Command::Fail(..) if !self.config.faults => {
                return Err(Error::new("faults are off; load the counter with -c faults=true"));
            }
            Command::Fail(fault, on) => {
                if on.is_none_or(|member| member == self.host.member()) {
                    fault.happen();
                }
            }
            Command::Get => {}
        }
        Ok(Reply { value: self.value })
    }

    fn query(&self, command: Command) -> Result<Reply> {
        match command {
            Command::Get => Ok(Reply { value: self.value }),
            Command::Add(_) | Command::Fail(..) => Err(Error::new("a query changes nothing; use `get`")),
        }
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.config = config;
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        self.value.to_le_bytes().into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.value = i64::from_le_bytes(snapshot.try_into()?);
        Ok(())
    }
}

export_plugin!(Counter);
