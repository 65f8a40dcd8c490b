//! A plug-in that asks its host for whatever a test wants, and tells what came of it.
//!
//! An ordered command `{"on":"k1","ask":{…}}` is noted by every instance, and done by the one on `k1` at the next tick of
//! its timer, since `apply` may ask nothing. `{"try":"apply"}` asks all the same. What an instance was answered and told is
//! its own, and no part of the state: the query `{"told":true}` has it, as lines.

use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Program, Result, Role, export_plugin};
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Deserialize)]
struct Config {}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Command {
    Do { on: String, ask: Ask },
    Try { r#try: String },
    Told { told: bool },
    Note { note: Value },
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    Call {
        plugin: String,
        command: Value,
    },
    CallByThread {
        plugin: String,
        command: Value,
    },
    Query {
        plugin: String,
        command: Value,
    },
    Broadcast {
        command: Value,
    },
    Send {
        member: String,
        body: Value,
        times: Option<usize>,
    },
    Get {
        key: String,
    },
    Put {
        key: String,
        value: Value,
        version: Option<u64>,
    },
    Delete {
        key: String,
    },
    Watch {
        prefix: String,
    },
    Unwatch {
        prefix: String,
    },
    Timer {
        name: String,
        after_ms: u64,
        every_ms: Option<u64>,
    },
    CancelTimer {
        name: String,
    },
    Spawn {
        member: String,
        key: String,
        argv: Vec<String>,
        env: Option<BTreeMap<String, String>>,
        cwd: Option<String>,
    },
    Kill {
        member: String,
        key: String,
    },
    Done {
        index: u64,
    },
    Sleep {
        ms: u64,
    },
}

struct Services {
    host: Host,
    /// Of the state: what was noted.
    notes: Vec<Value>,
    /// What is to be done here.
    waiting: Vec<Ask>,
    told: RefCell<Vec<Value>>,
}

/// How long another plug-in may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Services {
    fn tell(&self, line: Value) {
        self.told.borrow_mut().push(line);
    }

    fn ask(&self, ask: Ask) -> Result<Value> {
        let host = &self.host;
        Ok(match ask {
            Ask::Call { plugin, command } => host.call(&plugin, &command, PATIENCE)?,
            Ask::CallByThread { plugin, command } => {
                let host = host.clone();
                std::thread::spawn(move || {
                    let reply = host.call::<Value>(&plugin, &command, PATIENCE);
                    let note = json!({"note": reply.unwrap_or_else(|error| error.to_string().into())});
                    if let Err(error) = host.broadcast(&note) {
                        host.log(format!("no note: {error}"));
                    }
                });
                Value::Null
            }
            Ask::Query { plugin, command } => host.query(&plugin, &command, PATIENCE)?,
            Ask::Broadcast { command } => host.broadcast(&command)?.into(),
            Ask::Send { member, body: Value::String(text), times: Some(times) } => {
                host.send(&member, &text.repeat(times))?.into_value()
            }
            Ask::Send { member, body, .. } => host.send(&member, &body)?.into_value(),
            Ask::Get { key } => match host.get::<Value>(&key)? {
                Some((value, version)) => json!({"value": value, "versioned": version > 0}),
                None => Value::Null,
            },
            Ask::Put { key, value, version: Some(version) } => {
                host.put_if(&key, &value, version)?.is_some().into()
            }
            Ask::Put { key, value, version: None } => (host.put(&key, &value)? > 0).into(),
            Ask::Delete { key } => host.delete(&key)?.into_value(),
            Ask::Watch { prefix } => host.watch(&prefix)?.into_value(),
            Ask::Unwatch { prefix } => host.unwatch(&prefix)?.into_value(),
            Ask::Timer { name, after_ms, every_ms } => {
                let every = every_ms.map(Duration::from_millis);
                host.timer(&name, Duration::from_millis(after_ms), every)?.into_value()
            }
            Ask::CancelTimer { name } => host.cancel_timer(&name)?.into_value(),
            Ask::Spawn { member, key, argv, env, cwd } => {
                let mut program = Program::new(argv);
                program.env = env.unwrap_or_default();
                program.cwd = cwd;
                host.spawn(&member, &key, &program)?.into_value()
            }
            Ask::Kill { member, key } => host.kill(&member, &key)?.into_value(),
            Ask::Done { index } => host.done(index)?.into_value(),
            Ask::Sleep { ms } => {
                std::thread::sleep(Duration::from_millis(ms));
                Value::Null
            }
        })
    }
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for () {
    fn into_value(self) -> Value {
        Value::Null
    }
}

/// A service that nobody else notices, asked at a moment that a test names.
fn attempt(host: &Host) -> String {
    match host.timer("attempt", Duration::ZERO, None) {
        Ok(()) => "done".into(),
        Err(error) => error.to_string(),
    }
}

impl Plugin for Services {
    type Config = Config;
    type Command = Command;
    type Reply = Value;

    fn validate(_: &Config, host: &Host) -> Result<()> {
        match attempt(host) {
            refused if refused.contains("from start on") => Ok(()),
            other => Err(Error::new(format!("validate was answered: {other}"))),
        }
    }

    fn start(Config {}: Config, host: Host) -> Result<Self> {
        let early = host.send(&host.member(), &json!("early"));
        let told = json!({"start": early.expect_err("it is no member's yet").to_string()});
        host.timer("work", Duration::from_millis(10), Some(Duration::from_millis(10)))?;
        Ok(Self { host, notes: Vec::new(), waiting: Vec::new(), told: RefCell::new(vec![told]) })
    }

    fn apply(&mut self, command: Command, _: &Meta) -> Result<Value> {
        match command {
            Command::Do { on, ask } => {
                if on == self.host.member() {
                    self.waiting.push(ask);
                }
                Ok(Value::Null)
            }
            Command::Try { r#try } if r#try == "apply" => Ok(attempt(&self.host).into()),
            Command::Note { note } => {
                self.notes.push(note);
                Ok(self.notes.len().into())
            }
            _ => Err(Error::new("no such command")),
        }
    }

    fn query(&self, command: Command) -> Result<Value> {
        match command {
            Command::Told { told: true } => Ok(json!({"told": *self.told.borrow(), "notes": self.notes})),
            Command::Try { r#try } if r#try == "query" => Ok(attempt(&self.host).into()),
            _ => Err(Error::new("no such query")),
        }
    }

    fn on_event(&mut self, event: &Event) {
        match (event.kind.as_str(), event.fields.get("name").and_then(Value::as_str)) {
            ("timer", Some("work")) => {
                for ask in std::mem::take(&mut self.waiting) {
                    let line = match self.ask(ask) {
                        Ok(answer) => json!({"answer": answer}),
                        Err(error) => json!({"error": error.to_string()}),
                    };
                    self.tell(line);
                }
            }
            ("message" | "timer" | "key-changed" | "overflow", _) => {
                self.tell(json!({"event": event.kind, "placed": event.index > 0, "fields": event.fields}));
            }
            (kind, _) if kind.starts_with("process-") => {
                self.tell(json!({"event": kind, "fields": event.fields}));
            }
            _ => {}
        }
    }

    fn on_role(&mut self, role: Role) {
        if let Role::Primary { .. } = role {
            let undone = self.host.undone();
            let line = match undone {
                Ok(undone) => {
                    json!({"undone": undone.commands.iter().map(|one| &one.command).collect::<Vec<_>>(),
                    "missed": undone.missed, "more": undone.more})
                }
                Err(error) => json!({"error": error.to_string()}),
            };
            self.tell(line);
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.notes).unwrap_or_default()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.notes = serde_json::from_slice(snapshot)?;
        Ok(())
    }
}

export_plugin!(Services);
