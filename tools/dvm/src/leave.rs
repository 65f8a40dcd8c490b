//! `remove`, `halt`: how members and DVMs end.

use crate::context::{Context, status, unexpected};
use crate::exit::{self, failed};
use crate::processes::{is_stopped, kernels, kill_all, wait_gone};
use crate::selector::select;
use crate::settings::with_receipt;
use clap::Args;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Receipt, Request};
use dvm_plugin_api::place::DvmPlace;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a DVM may take to end.
const END: Duration = Duration::from_secs(10);

/// What is left to do about a DVM that does not end.
const FORCE: &str = "`dvm halt --force` kills its kernels on this host";

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Members: names, k[0-3], tag=value
    #[arg(required = true, value_name = "M")]
    members: Vec<String>,
    /// End them even if they do not answer
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HaltArgs {
    /// Kill the kernels of this host
    #[arg(long)]
    force: bool,
}

pub(crate) fn remove(context: &Context, args: &RemoveArgs) -> exit::Result {
    let mut client = context.client()?;
    let now = status(&mut client, context.timeout())?;
    let members = select(&args.members, &now.members)?;
    let mut last: Option<Receipt> = None;
    for member in &members {
        let request = Request::Remove { member: member.clone(), force: args.force };
        match context.ask(&mut client, request)? {
            Answer::Done { receipt, .. } => last = receipt.or(last),
            other => return Err(unexpected(&other)),
        }
    }
    let body = with_receipt(json!({ "removed": members }), last.as_ref());
    context.out.tell(&body, || format!("{} left", members.join(", ")));
    Ok(exit::OK)
}

pub(crate) fn halt(context: &Context, args: &HaltArgs) -> exit::Result {
    let place = context.place()?;
    let running = kernels(&place);
    if running.is_empty() && !place.is_live() {
        return Err(Failure::new(
            FailureCode::NoDvm,
            format!("no kernel of DVM `{}` lives on this host", place.name()),
        )
        .hint("see `dvm list`"));
    }
    let pids: Vec<_> = running.iter().map(|(_, pid)| *pid).collect();
    let deadline = Instant::now() + context.global.timeout.unwrap_or(END);
    if args.force {
        let left = kill_all(&place, deadline);
        if !left.is_empty() {
            return Err(failed("not all kernels could be killed").cause(named(&left)));
        }
    } else if !running.is_empty() && running.iter().all(|(_, pid)| is_stopped(*pid)) {
        return Err(nobody_answers(&place, &running));
    } else {
        in_order(context)?;
    }
    if !wait_gone(&place, &pids, deadline) {
        return Err(still_there(&place));
    }
    place.sweep()?;
    // One that holds something else is kept.
    let _ = std::fs::remove_dir(place.directory());
    let body = json!({"dvm": place.name(), "halted": true, "force": args.force});
    context.out.tell(&body, || format!("DVM `{}` halted", place.name()));
    Ok(exit::OK)
}

/// Asks for the end. A kernel that is gone before it has answered is what was asked for.
fn in_order(context: &Context) -> Result<(), Failure> {
    let mut client = context.client()?;
    match context.ask(&mut client, Request::Halt) {
        Ok(Answer::Done { .. }) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        Err(failure) if matches!(failure.code, FailureCode::Unknown | FailureCode::NoDvm) => Ok(()),
        Err(failure) if failure.code == FailureCode::NoQuorum => Err(failure.hint(FORCE)),
        Err(failure) => Err(failure),
    }
}

fn nobody_answers(place: &DvmPlace, stopped: &[(String, u32)]) -> Failure {
    Failure::new(FailureCode::NoDvm, format!("no kernel of DVM `{}` answers", place.name()))
        .cause(named(stopped))
        .hint(FORCE)
}

/// Those that are stopped will not end, and the others have; of others it is not known.
fn still_there(place: &DvmPlace) -> Failure {
    let left = kernels(place);
    let dvm = place.name();
    let failure = if !left.is_empty() && left.iter().all(|(_, pid)| is_stopped(*pid)) {
        failed(format!("DVM `{dvm}` is halted, but for kernels that do not answer")).cause(named(&left))
    } else {
        let failure = Failure::new(FailureCode::Unknown, format!("DVM `{dvm}` has not ended in time"));
        failure.cause(if left.is_empty() {
            "its processes still run".into()
        } else {
            format!("still here: {}", named(&left))
        })
    };
    failure.hint(FORCE)
}

/// Kernels for people: `k0 (process 17), k1 (process 18, stopped)`.
fn named(kernels: &[(String, u32)]) -> String {
    let one = |(member, pid): &(String, u32)| {
        let stopped = if is_stopped(*pid) { ", stopped" } else { "" };
        format!("{member} (process {pid}{stopped})")
    };
    kernels.iter().map(one).collect::<Vec<_>>().join(", ")
}
