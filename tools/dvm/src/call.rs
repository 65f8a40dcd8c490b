//! `call`: one command to a plug-in, one reply.

use crate::context::{Context, unexpected};
use crate::exit;
use crate::settings::with_receipt;
use crate::state::read_value;
use clap::Args;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Request};
use dvm_plugin_api::service::LEFT_OUT;
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
    let request =
        Request::Call { plugin: args.plugin.clone(), command, query: args.query, fresh: args.fresh };
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
        Err(error) => Err(told(&args.plugin, error, &member)),
    }
}

/// A reply that is an error: the plug-in's own word, or that it failed before it had one.
fn told(plugin: &str, error: String, member: &str) -> Failure {
    if error == LEFT_OUT {
        return Failure::new(FailureCode::Failure, error)
            .cause(format!(
                "each instance of `{plugin}` that came to this command was lost at it, and said nothing; its state is the \
                 one without it"
            ))
            .hint("`dvm events --kind instance-failed` tells how they were lost, `dvm logs` their last words");
    }
    Failure::new(FailureCode::Failure, error).cause(format!("the plug-in at {member} says so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_did_not_say_is_not_put_into_its_mouth() {
        let own = told("book", "the book is full".into(), "k1");
        assert_eq!(own.cause.as_deref(), Some("the plug-in at k1 says so"));
        let lost = told("book", LEFT_OUT.into(), "k1");
        assert!(lost.cause.is_some_and(|cause| cause.contains("said nothing")));
        assert!(lost.hint.is_some_and(|hint| hint.contains("--kind instance-failed")));
    }
}
