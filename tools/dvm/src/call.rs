//! `call`: one command to a plug-in, one reply.

use crate::context::{Context, unexpected};
use crate::exit;
use crate::settings::with_receipt;
use crate::state::read_value;
use clap::Args;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Request};
use serde_json::json;

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The plug-in's name
    plugin: String,
    /// The command as JSON; `-` reads it from standard input
    #[arg(value_name = "JSON|-", allow_hyphen_values = true)]
    command: String,
    /// Read only, at one instance; it may lag
    #[arg(long)]
    query: bool,
    /// Miss nothing that was acknowledged before
    #[arg(long, requires = "query")]
    fresh: bool,
}

pub(crate) fn call(context: &Context, args: CallArgs) -> exit::Result {
    let text = read_value(&args.command)?;
    let command = serde_json::from_str(&text).map_err(|error| {
        Failure::new(FailureCode::Usage, "the command is not JSON")
            .cause(error.to_string())
            .hint(r#"quote it for the shell: dvm call counter '{"add":1}'"#)
    })?;
    let mut client = context.client()?;
    let timeout = context.timeout_agreed(&mut client)?;
    let request = Request::Call { plugin: args.plugin, command, query: args.query, fresh: args.fresh };
    let (reply, receipt, member) = match client.request(request, None, timeout)? {
        Answer::Reply { reply, receipt, member } => (reply, receipt, member),
        other => return Err(unexpected(&other)),
    };
    match reply {
        Ok(reply) => {
            let body = with_receipt(json!({"reply": reply, "member": member}), receipt.as_ref());
            context.out.tell(&body, || reply.to_string());
            Ok(exit::OK)
        }
        Err(error) if context.out.is_json() => {
            context.out.document(&with_receipt(json!({"error": error, "member": member}), receipt.as_ref()));
            Ok(exit::FAILURE)
        }
        Err(error) => {
            Err(Failure::new(FailureCode::Failure, error).cause(format!("the plug-in at {member} says so")))
        }
    }
}
