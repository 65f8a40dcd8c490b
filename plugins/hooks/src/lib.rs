//! Runs programs when something happens in the DVM.
//!
//! ```text
//! dvm plugin load hooks -c 'scripts=[{"on":"member-failed","run":"/opt/page-me"}]'
//! dvm plugin load hooks --mode hot --config hooks.toml
//! dvm call hooks '{"status":true}' --query
//! ```
//! In mode `parallel` every member runs the programs, in a mode with a primary only the primary's member. A program gets
//! the event as JSON on its standard input and `DVM_EVENT_…` in its environment; what it prints is in the kernel's log.

mod runner;

use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Result, Role, export_plugin};
use runner::{Counts, Runner};
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What `-c scripts=[…]` sets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    scripts: Vec<Script>,
}

/// One program, and what it is for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    /// The beginning of the kinds it is run for.
    on: String,
    /// The program: an absolute path, the same on every member.
    run: PathBuf,
    /// Its arguments.
    #[serde(default)]
    args: Vec<String>,
    /// After so long it is killed, milliseconds.
    #[serde(default = "half_a_minute")]
    timeout_ms: u64,
}

fn half_a_minute() -> u64 {
    30_000
}

impl Config {
    /// Whether every program can be run here.
    fn check(&self) -> Result<()> {
        for script in &self.scripts {
            let path = script.run.display();
            if !script.run.is_absolute() {
                return Err(Error::new(format!("{path} is no absolute path")));
            }
            let meta =
                std::fs::metadata(&script.run).map_err(|error| Error::new(format!("{path}: {error}")))?;
            if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
                return Err(Error::new(format!("{path} is no program: make it executable")));
            }
        }
        Ok(())
    }
}

/// The only thing to ask.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    #[serde(rename = "status")]
    _status: bool,
}

struct Hooks {
    config: Config,
    host: Host,
    role: Role,
    /// The last event that was looked at: a state that is handed over does not begin with old ones.
    last: u64,
    runner: Runner,
}

impl Plugin for Hooks {
    type Config = Config;
    type Command = Command;
    type Reply = Counts;

    fn validate(config: &Config, _: &Host) -> Result<()> {
        config.check()
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        let runner = Runner::start(host.clone())?;
        Ok(Self { config, host, role: Role::Standby, last: 0, runner })
    }

    fn apply(&mut self, _: Command, _: &Meta) -> Result<Counts> {
        Err(Error::new("each member has run programs of its own: ask one of them, with --query"))
    }

    fn query(&self, _: Command) -> Result<Counts> {
        Ok(self.runner.counts())
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.config = config;
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        if event.index <= self.last {
            return;
        }
        self.last = event.index;
        if self.role == Role::Active || self.host.token().is_some() {
            for script in self.config.scripts.iter().filter(|script| event.kind.starts_with(&script.on)) {
                self.runner.run(script.clone(), event.clone());
            }
        }
    }

    fn on_role(&mut self, role: Role) {
        self.role = role;
    }

    fn snapshot(&self) -> Vec<u8> {
        self.last.to_le_bytes().into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let bytes = snapshot.try_into().map_err(|_| Error::new("a snapshot has 8 bytes"))?;
        self.last = u64::from_le_bytes(bytes);
        Ok(())
    }
}

export_plugin!(Hooks);
