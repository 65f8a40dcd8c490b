//! `config`: agreed settings of the DVM; with `--member M` that member's tags.

use crate::context::{Context, status, unexpected};
use crate::exit::{self, usage};
use crate::parse;
use crate::selector::select;
use crate::table::Rows;
use clap::Subcommand;
use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, MemberDoc, Receipt, Request};
use serde_json::{Map, Value, json};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print settings, or with --member tags
    Get {
        /// Only this one
        key: Option<String>,
    },
    /// Change settings, or with --member tags (`KEY=` removes one)
    Set {
        /// What becomes what
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse::pair)]
        changes: Vec<(String, String)>,
    },
}

pub(crate) fn run(context: &Context, command: ConfigCommand) -> exit::Result {
    // Here --member says whose, so any kernel will do.
    let mut client = context.client_any()?;
    let member =
        context.global.member.as_deref().map(|member| one(context, &mut client, member)).transpose()?;
    match command {
        ConfigCommand::Get { key } => get(context, &mut client, member, key.as_deref()),
        ConfigCommand::Set { changes } => {
            let request =
                Request::Configure { changes: changes.clone(), member: member.map(|member| member.name) };
            match context.ask(&mut client, request)? {
                Answer::Done { receipt, .. } => {
                    let body = with_receipt(json!({}), receipt.as_ref());
                    context.out.tell(&body, String::new);
                    Ok(exit::OK)
                }
                other => Err(unexpected(&other)),
            }
        }
    }
}

fn get(context: &Context, client: &mut Client, member: Option<MemberDoc>, key: Option<&str>) -> exit::Result {
    let of_member = member.is_some();
    let all: Vec<(String, String)> = match member {
        Some(member) => member.tags.into_iter().collect(),
        None => match context.ask(client, Request::Settings)? {
            Answer::Settings(all) => all,
            other => return Err(unexpected(&other)),
        },
    };
    if let Some(key) = key {
        let (_, value) = all.iter().find(|(found, _)| found == key).ok_or_else(|| {
            let what = if of_member { "tag" } else { "setting" };
            let names: Vec<_> = all.iter().map(|(key, _)| key.as_str()).collect();
            let failure = Failure::new(FailureCode::NotFound, format!("no {what} `{key}`"));
            if names.is_empty() { failure } else { failure.hint(format!("there are {}", names.join(", "))) }
        })?;
        context.out.tell(&json!({"key": key, "value": typed(value)}), || value.clone());
        return Ok(exit::OK);
    }
    let settings: Map<String, Value> = all.iter().map(|(key, value)| (key.clone(), typed(value))).collect();
    let name = if of_member { "tags" } else { "settings" };
    context.out.tell(&json!({ name: settings }), || {
        let mut rows = Rows::new(&["key", "value"]);
        for (key, value) in &all {
            rows.push([key.clone(), value.clone()]);
        }
        rows.text()
    });
    Ok(exit::OK)
}

/// A document with the fields of a receipt.
pub(crate) fn with_receipt(mut body: Value, receipt: Option<&Receipt>) -> Value {
    let receipt = receipt.map(|receipt| serde_json::to_value(receipt).expect("plain data"));
    if let (Some(body), Some(Value::Object(receipt))) = (body.as_object_mut(), receipt) {
        body.extend(receipt);
    }
    body
}

fn one(context: &Context, client: &mut Client, member: &str) -> Result<MemberDoc, Failure> {
    let status = status(client, context.timeout())?;
    let names = select(&[member.to_owned()], &status.members)?;
    match names.as_slice() {
        [name] => {
            Ok(status.members.into_iter().find(|member| member.name == *name).expect("selected from these"))
        }
        _ => Err(usage(format!("--member `{member}` means several: {}", names.join(", ")))),
    }
}

/// Numbers and truth values as such.
fn typed(value: &str) -> Value {
    match parse::value(value) {
        found @ (Value::Number(_) | Value::Bool(_)) => found,
        _ => Value::String(value.into()),
    }
}
