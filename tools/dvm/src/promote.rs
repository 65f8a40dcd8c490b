//! `promote`: provisional becomes confirmed by the operator's word.

use crate::context::{Context, status, unexpected};
use crate::exit::{self, failed, usage};
use crate::settings::with_receipt;
use clap::Args;
use dvm_plugin_api::local::{Answer, Failure, Request, Status};
use serde_json::json;
use std::io::{IsTerminal, Write};

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn promote(context: &Context, args: &PromoteArgs) -> exit::Result {
    let mut client = context.client()?;
    let now = status(&mut client, context.timeout())?;
    let missing = missing(&now);
    if !args.yes && !confirm(context, &now, &missing)? {
        return Err(failed("nothing was changed"));
    }
    match context.ask(&mut client, Request::Promote)? {
        Answer::Done { receipt, .. } => {
            let body = with_receipt(json!({ "missing": missing }), receipt.as_ref());
            context.out.tell(&body, || match &receipt {
                Some(receipt) => {
                    format!("confirmed from index {} on, in lineage {}", receipt.index, receipt.lineage)
                }
                None => "it is confirmed already".into(),
            });
            Ok(exit::OK)
        }
        other => Err(unexpected(&other)),
    }
}

/// Members that may go on elsewhere: those that are waited for, and those that failed.
fn missing(now: &Status) -> Vec<String> {
    let failed =
        now.departed.iter().filter(|departed| departed.cause != "left").map(|departed| &departed.member);
    let mut missing: Vec<String> = Vec::new();
    for member in now.view.waiting_for.iter().chain(failed) {
        if !missing.contains(member) && !now.members.iter().any(|here| here.name == *member) {
            missing.push(member.clone());
        }
    }
    missing
}

fn confirm(context: &Context, now: &Status, missing: &[String]) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() || context.out.is_json() {
        return Err(usage("promote asks first, and there is nobody to ask").hint("say --yes if you are sure"));
    }
    let here: Vec<_> = now.members.iter().map(|member| member.name.as_str()).collect();
    let mut stderr = anstream::stderr();
    let missing = if missing.is_empty() { "nobody".to_owned() } else { missing.join(", ") };
    // A closed standard error gets no question, and the answer then is no.
    let _ = write!(
        stderr,
        "view {} ({}): {}\nmissing: {missing}\nIf those go on elsewhere, what they do will be lost. Promote? [y/N] ",
        now.view.id,
        now.view.label,
        here.join(", ")
    );
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| failed(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
