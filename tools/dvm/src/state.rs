//! `state`: replicated keys.

use crate::context::{Context, unexpected};
use crate::events;
use crate::exit::{self, failed, usage};
use crate::parse;
use crate::settings::with_receipt;
use crate::table::{Rows, plain};
use clap::{Args, Subcommand};
use dvm_plugin_api::client::Filter;
use dvm_plugin_api::local::{Answer, Condition, Failure, FailureCode, KeyDoc, Operation, Request, Since};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Print a key's value
    Get {
        /// The key
        key: String,
        /// Miss nothing that was acknowledged before
        #[arg(long)]
        fresh: bool,
    },
    /// Set a key
    Put(PutArgs),
    /// Delete a key
    Delete {
        /// The key
        key: String,
        /// Only if it has this version
        #[arg(long, value_name = "V")]
        if_version: Option<u64>,
    },
    /// Print keys, those that begin with PREFIX
    List {
        /// What they begin with
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print changes of keys that begin with PREFIX as they happen
    Watch {
        /// What they begin with
        prefix: String,
        /// Begin here: an index, a cursor, now or all
        #[arg(long, value_name = "C", default_value = "now", value_parser = Since::from_str)]
        since: Since,
    },
    /// Conditions, and what to do if they hold, or else, from a file (`-`: standard input)
    Txn {
        /// {"if":[{"key":"app/x","version":3}],"then":[{"put":"app/x","value":1}],"else":[]}
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The key
    key: String,
    /// JSON if it parses, else a string; `-` reads it from standard input
    #[arg(value_name = "VALUE|-", allow_hyphen_values = true)]
    value: String,
    /// Only if the key does not exist
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if it has this version
    #[arg(long, value_name = "V")]
    if_version: Option<u64>,
}

pub(crate) fn run(context: &Context, command: StateCommand) -> exit::Result {
    match command {
        StateCommand::Get { key, fresh } => get(context, key, fresh),
        StateCommand::Put(args) => {
            let value = parse::value(&read_value(&args.value)?);
            let condition = match args.if_version {
                Some(version) => Some(Condition::Version(version)),
                None => args.if_absent.then_some(Condition::Absent),
            };
            change(context, condition, Operation::Put { key: args.key, value })
        }
        StateCommand::Delete { key, if_version } => {
            change(context, if_version.map(Condition::Version), Operation::Delete { key })
        }
        StateCommand::List { prefix } => list(context, prefix),
        StateCommand::Watch { prefix, since } => {
            let kinds = vec!["key-changed".to_owned()];
            events::follow(context, since, Filter { kinds, follow: true, key_prefix: Some(prefix) })
        }
        StateCommand::Txn { file } => {
            let transaction = Transaction::read(&file)?;
            transact(context, transaction.request()?)
        }
    }
}

fn get(context: &Context, key: String, fresh: bool) -> exit::Result {
    let mut client = context.client()?;
    match context.ask(&mut client, Request::StateGet { key, fresh })? {
        Answer::Key(found) => {
            context.out.tell(&found, || plain(&found.value));
            Ok(exit::OK)
        }
        other => Err(unexpected(&other)),
    }
}

/// A key in a list.
#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    value: &'a Value,
    version: u64,
}

fn list(context: &Context, prefix: String) -> exit::Result {
    let mut client = context.client()?;
    let mut keys: Vec<KeyDoc> = Vec::new();
    loop {
        let after = keys.last().map(|last| last.key.clone());
        match context.ask(&mut client, Request::StateList { prefix: prefix.clone(), after })? {
            Answer::Keys(more) if more.is_empty() => break,
            Answer::Keys(more) => keys.extend(more),
            other => return Err(unexpected(&other)),
        }
    }
    let entries: Vec<_> =
        keys.iter().map(|doc| Entry { key: &doc.key, value: &doc.value, version: doc.version }).collect();
    context.out.tell(&json!({ "entries": entries }), || {
        if entries.is_empty() {
            return String::new();
        }
        let mut rows = Rows::new(&["key", "version", "value"]);
        for entry in &entries {
            rows.push([entry.key.to_owned(), entry.version.to_string(), plain(entry.value)]);
        }
        rows.text()
    });
    Ok(exit::OK)
}

fn change(context: &Context, condition: Option<Condition>, operation: Operation) -> exit::Result {
    let key = match &operation {
        Operation::Put { key, .. } | Operation::Delete { key } => key.clone(),
    };
    let conditions = condition.map(|condition| (key, condition)).into_iter().collect();
    transact(context, Request::StateTransaction { conditions, then: vec![operation], otherwise: Vec::new() })
}

fn transact(context: &Context, request: Request) -> exit::Result {
    let mut client = context.client()?;
    match context.ask(&mut client, request)? {
        Answer::Done { receipt, held, version } => {
            let body = with_receipt(json!({"version": version, "held": held}), receipt.as_ref());
            context.out.tell(&body, || match version {
                Some(version) if held != Some(false) => format!("version {version}"),
                Some(version) => format!("version {version}, a condition did not hold"),
                None => String::new(),
            });
            Ok(exit::OK)
        }
        other => Err(unexpected(&other)),
    }
}

/// A transaction's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(rename = "if", default)]
    conditions: Vec<If>,
    #[serde(default)]
    then: Vec<Do>,
    #[serde(rename = "else", default)]
    otherwise: Vec<Do>,
}

/// `{"key":K,"version":V}`, `{"key":K,"absent":true}`, `{"key":K,"present":true}`; version 0 is absent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct If {
    key: String,
    version: Option<u64>,
    absent: Option<bool>,
    present: Option<bool>,
}

/// `{"put":K,"value":V}` or `{"delete":K}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Do {
    Put { put: String, value: Value },
    Delete { delete: String },
}

impl Transaction {
    fn read(file: &Path) -> Result<Self, Failure> {
        let text = if file == Path::new("-") {
            read_value("-")?
        } else {
            std::fs::read_to_string(file).map_err(|error| {
                let code = match error.kind() {
                    std::io::ErrorKind::NotFound => FailureCode::NotFound,
                    _ => FailureCode::Failure,
                };
                Failure::new(code, format!("cannot read {}: {error}", file.display()))
            })?
        };
        Self::parse(&text).map_err(|error| {
            usage(format!("{} is no transaction", file.display())).cause(error.to_string()).hint(
                r#"it looks like {"if":[{"key":"app/x","version":3}],"then":[{"put":"app/x","value":1}],"else":[]}"#,
            )
        })
    }

    /// An object only: a list, which could stand for a struct too, would be a transaction that does nothing.
    fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_value(Value::Object(serde_json::from_str(text)?))
    }

    fn request(self) -> Result<Request, Failure> {
        Ok(Request::StateTransaction {
            conditions: self.conditions.into_iter().map(If::condition).collect::<Result<_, _>>()?,
            then: self.then.into_iter().map(Operation::from).collect(),
            otherwise: self.otherwise.into_iter().map(Operation::from).collect(),
        })
    }
}

impl If {
    fn condition(self) -> Result<(String, Condition), Failure> {
        let condition = match (self.version, self.absent, self.present) {
            (Some(0), None, None) | (None, Some(true), None) | (None, None, Some(false)) => Condition::Absent,
            (Some(version), None, None) => Condition::Version(version),
            (None, None, Some(true)) | (None, Some(false), None) => Condition::Present,
            _ => {
                return Err(usage(format!(
                    "the condition on `{}` needs one of version, absent, present",
                    self.key
                )));
            }
        };
        Ok((self.key, condition))
    }
}

impl From<Do> for Operation {
    fn from(operation: Do) -> Self {
        match operation {
            Do::Put { put, value } => Self::Put { key: put, value },
            Do::Delete { delete } => Self::Delete { key: delete },
        }
    }
}

/// The text itself, or for `-` what standard input holds.
pub(crate) fn read_value(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut read = String::new();
    std::io::stdin()
        .read_to_string(&mut read)
        .map_err(|error| failed(format!("cannot read standard input: {error}")))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Request, Failure> {
        Transaction::parse(text).map_err(|error| usage(error.to_string()))?.request()
    }

    #[test]
    fn transactions() {
        let text = r#"{"if":[{"key":"a","version":3},{"key":"b","absent":true}],
            "then":[{"put":"a","value":null},{"delete":"b"}]}"#;
        let expected = Request::StateTransaction {
            conditions: vec![("a".into(), Condition::Version(3)), ("b".into(), Condition::Absent)],
            then: vec![
                Operation::Put { key: "a".into(), value: Value::Null },
                Operation::Delete { key: "b".into() },
            ],
            otherwise: vec![],
        };
        assert_eq!(check(text), Ok(expected));
    }

    #[test]
    fn what_is_no_transaction() {
        for bad in [
            r#"{"if":[{"key":"a"}]}"#,
            r#"{"if":[{"key":"a","version":1,"absent":true}]}"#,
            r#"{"unless":[]}"#,
            "[]",
            r#"{"then":[{"put":"a"}]}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
