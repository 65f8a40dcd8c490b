//! A plug-in that uses everything ABI 1.0 has: it adds numbers up, and remembers what it was told.

use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Result, Role, export_plugin};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    start: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    Add(i64),
    Look(bool),
    Refuse(String),
}

#[derive(Serialize)]
pub struct Reply {
    sum: i64,
    commands: u64,
    last: u64,
    role: String,
    events: u64,
    /// The token it may act under, where it may.
    token: Option<u64>,
}

pub struct Ledger {
    host: Host,
    sum: i64,
    commands: u64,
    last: u64,
    role: String,
    events: u64,
}

impl Ledger {
    fn reply(&self) -> Reply {
        let Self { sum, commands, last, events, .. } = *self;
        Reply { sum, commands, last, role: self.role.clone(), events, token: self.host.token() }
    }
}

impl Plugin for Ledger {
    type Config = Config;
    type Command = Command;
    type Reply = Reply;

    fn validate(config: &Config, host: &Host) -> Result<()> {
        match config.start {
            start if start < 0 => Err(Error::new(format!("{} begins with no debts", host.member()))),
            _ => Ok(()),
        }
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        host.log(format!("a ledger on {}, {} of {}", host.member(), host.rank(), host.size()));
        Ok(Self { host, sum: config.start, commands: 0, last: 0, role: "none".into(), events: 0 })
    }

    fn apply(&mut self, command: Command, meta: &Meta) -> Result<Reply> {
        self.commands += 1;
        self.last = meta.index;
        match command {
            Command::Add(amount) => self.sum += amount,
            Command::Look(_) => {}
            Command::Refuse(why) => return Err(Error::new(why)),
        }
        Ok(self.reply())
    }

    fn query(&self, _command: Command) -> Result<Reply> {
        Ok(self.reply())
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.sum += config.start;
        Ok(())
    }

    fn on_event(&mut self, _event: &Event) {
        self.events += 1;
    }

    fn on_role(&mut self, role: Role) {
        self.role = match role {
            Role::Active => "active".into(),
            Role::Primary { fence } => format!("primary {fence}"),
            Role::Standby => "standby".into(),
            _ => "another".into(),
        };
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&(self.sum, self.commands, self.last)).expect("numbers")
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        (self.sum, self.commands, self.last) = serde_json::from_slice(snapshot)?;
        Ok(())
    }

    fn stop(&mut self) {
        self.host.log("the ledger is closed");
    }
}

export_plugin!(Ledger);
