//! `chaos`: faults on a local DVM that was started for them.

use crate::context::{Context, setting, status, unexpected};
use crate::exit::{self, failed, usage};
use crate::processes;
use crate::selector::{ID_MIN, names, select};
use clap::{Args, Subcommand};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Chaos, Failure, FailureCode, Request, Status};
use dvm_plugin_api::place::DvmPlace;
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

/// How long a kernel may take to answer while it is known whether another one could.
const BRIEF: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Kill kernels, or with --plugin one instance of a plug-in
    Kill(KillArgs),
    /// Stop kernels; they are silent and keep their links
    Pause(Who),
    /// Let them go on
    Resume(Who),
    /// Cut the ring: no frame passes between the groups
    Cut {
        /// Groups of members
        #[arg(value_name = "A,B/C,D")]
        groups: String,
        /// Only frames from the first group to the others are lost
        #[arg(long)]
        one_way: bool,
    },
    /// Let all frames pass again
    Heal,
}

#[derive(Debug, Args)]
pub(crate) struct Who {
    /// Members: names, k[0-3], tag=value
    #[arg(required = true, value_name = "M")]
    members: Vec<String>,
    /// Their plug-ins' processes too
    #[arg(long)]
    with_plugins: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Members: names, k[0-3], tag=value
    #[arg(value_name = "M", required_unless_present = "plugin", conflicts_with = "plugin")]
    members: Vec<String>,
    /// Their plug-ins' processes too
    #[arg(long, conflicts_with = "plugin")]
    with_plugins: bool,
    /// An instance of this plug-in
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// The instance at this member; default: its primary, else its first
    #[arg(long, value_name = "M", requires = "plugin")]
    on: Option<String>,
}

pub(crate) fn run(context: &Context, command: ChaosCommand) -> exit::Result {
    match command {
        ChaosCommand::Kill(KillArgs { plugin: Some(plugin), on, .. }) => kill_plugin(context, plugin, on),
        ChaosCommand::Kill(KillArgs { members, with_plugins, .. }) => {
            signal(context, &Who { members, with_plugins }, Signal::KILL, "killed")
        }
        ChaosCommand::Pause(who) => signal(context, &who, Signal::STOP, "paused"),
        ChaosCommand::Resume(who) => signal(context, &who, Signal::CONT, "resumed"),
        ChaosCommand::Cut { groups, one_way } => cut(context, &groups, one_way),
        ChaosCommand::Heal => heal(context),
    }
}

/// The DVM's place and status, if it allows faults.
fn allowed(context: &Context) -> Result<(DvmPlace, Status), Failure> {
    let mut client = context.client()?;
    if setting(&mut client, "chaos")?.as_deref() != Some("true") {
        let place = &client.target().place;
        return Err(Failure::new(
            FailureCode::Denied,
            format!("DVM `{}` does not allow faults", place.name()),
        )
        .hint("start one that does: dvm up --set chaos=true"));
    }
    let status = status(&mut client, context.timeout())?;
    Ok((client.target().place.clone(), status))
}

fn signal(context: &Context, who: &Who, signal: Signal, done: &str) -> exit::Result {
    let kernels = match allowed(context) {
        Ok((place, status)) if signal == Signal::CONT => match by_name(&place, Some(&status), who)? {
            chosen if chosen.is_empty() => in_view(&place, &status, who)?,
            chosen => chosen,
        },
        Ok((place, status)) => in_view(&place, &status, who)?,
        // All may be paused, and resuming does no harm: names are enough then.
        Err(failure) if signal == Signal::CONT && failure.code == FailureCode::NoDvm => {
            let chosen = by_name(&context.place()?, None, who)?;
            if chosen.is_empty() {
                return Err(failure);
            }
            chosen
        }
        Err(failure) => return Err(failure),
    };
    let mut pids = kernels.clone();
    if who.with_plugins {
        // After the kernels: one that runs takes a stopped plug-in for a hung one.
        let theirs = |(member, pid): &(String, u32)| {
            processes::plugin_hosts(*pid).into_iter().map(|pid| (member.clone(), pid)).collect::<Vec<_>>()
        };
        pids.extend(kernels.iter().flat_map(theirs));
    }
    for (member, pid) in &pids {
        processes::signal(*pid, signal)
            .map_err(|error| failed(format!("cannot signal {member} (process {pid}): {error}")))?;
    }
    let members: Vec<_> = pids.iter().map(|(member, pid)| json!({"member": member, "pid": pid})).collect();
    let names: Vec<_> = pids.iter().map(|(member, pid)| format!("{member} (process {pid})")).collect();
    context.out.tell(&json!({ done: members }), || format!("{done} {}", names.join(", ")));
    Ok(exit::OK)
}

/// The kernels of the members that are meant, which must be on this host.
fn in_view(place: &DvmPlace, status: &Status, who: &Who) -> Result<Vec<(String, u32)>, Failure> {
    let mut pids = Vec::new();
    for name in select(&who.members, &status.members)? {
        let member = status.members.iter().find(|member| member.name == name).expect("selected from these");
        if place.socket(&name).is_ok_and(|socket| !socket.exists()) || !processes::is_kernel(member.pid) {
            return Err(failed(format!("the kernel of {name} is not on this host")));
        }
        pids.push((name.clone(), member.pid));
    }
    Ok(pids)
}

/// The kernels of this host that are meant by name. A paused member may be out of the view by now, and then its id is
/// among those of the departed.
fn by_name(place: &DvmPlace, status: Option<&Status>, who: &Who) -> Result<Vec<(String, u32)>, Failure> {
    let mut named = names(&who.members)?;
    let departed = status.into_iter().flat_map(|status| &status.departed);
    let by_id =
        departed.filter(|gone| who.members.iter().any(|id| id.len() >= ID_MIN && gone.id.starts_with(id)));
    named.extend(by_id.map(|gone| gone.member.clone()));
    Ok(processes::kernels(place).into_iter().filter(|(name, _)| named.contains(name)).collect())
}

fn kill_plugin(context: &Context, plugin: String, on: Option<String>) -> exit::Result {
    let (place, status) = allowed(context)?;
    let found = status.plugins.iter().find(|found| found.name == plugin).ok_or_else(|| {
        Failure::new(FailureCode::NotFound, format!("no plug-in `{plugin}` is loaded"))
            .hint("see `dvm plugins`")
    })?;
    let member = match on {
        Some(on) => select(&[on], &status.members)?.swap_remove(0),
        None => {
            let running = found.instances.iter().find(|instance| instance.state == "running");
            found.primary.clone().or(running.map(|instance| instance.member.clone())).ok_or_else(|| {
                Failure::new(FailureCode::NotFound, format!("no instance of `{plugin}` runs"))
            })?
        }
    };
    at(&place, &member, Chaos::KillPlugin { plugin: plugin.clone() })?;
    context.out.tell(&json!({"killed": {"plugin": plugin, "member": member}}), || {
        format!("killed the instance of `{plugin}` at {member}")
    });
    Ok(exit::OK)
}

fn cut(context: &Context, groups: &str, one_way: bool) -> exit::Result {
    let (place, status) = allowed(context)?;
    let groups: Vec<Vec<String>> = groups
        .split('/')
        .map(|group| select(&[group.to_owned()], &status.members))
        .collect::<Result<_, _>>()?;
    if groups.len() < 2 || groups.iter().any(Vec::is_empty) {
        return Err(usage("a cut needs two groups or more, like k0,k1/k2,k3"));
    }
    if let Some(twice) =
        status.members.iter().find(|m| groups.iter().filter(|group| group.contains(&m.name)).count() > 1)
    {
        return Err(usage(format!("{} is in more than one group", twice.name)));
    }
    for (number, group) in groups.iter().enumerate() {
        let others: Vec<String> = groups
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, group)| group.clone())
            .collect();
        let (to, from) = match (one_way, number) {
            (false, _) => (others.clone(), others),
            (true, 0) => (others, Vec::new()),
            (true, _) => (Vec::new(), groups[0].clone()),
        };
        for member in group {
            at(&place, member, Chaos::Cut { to: to.clone(), from: from.clone() })?;
        }
    }
    let shown: Vec<_> = groups.iter().map(|group| group.join(",")).collect();
    context.out.tell(&json!({"cut": groups, "one_way": one_way}), || format!("cut {}", shown.join(" / ")));
    Ok(exit::OK)
}

fn heal(context: &Context) -> exit::Result {
    let (place, _) = allowed(context)?;
    let members = place.live_members();
    for member in &members {
        at(&place, member, Chaos::Heal)?;
    }
    context.out.tell(&json!({ "healed": members }), || format!("healed {}", members.join(", ")));
    Ok(exit::OK)
}

/// A fault at one kernel, through its own socket.
fn at(place: &DvmPlace, member: &str, chaos: Chaos) -> Result<(), Failure> {
    let outside = chaos == Chaos::Heal;
    let target = Target { reach: BRIEF, outside, ..Target::new(place.clone(), "dvm chaos").only(member) };
    match Client::connect(target)?.request(Request::Chaos(chaos), None, Some(BRIEF))? {
        Answer::Done { .. } => Ok(()),
        other => Err(unexpected(&other)),
    }
}
