//! The part of `bench failover` that is about plug-ins: from the SIGKILL of a plug-in's process to the event at every
//! member, and from that of a primary's kernel to the first reply of the next primary, while clients write.

use super::failover::{LIMIT, hear, replace};
use crate::context::{status, unexpected};
use crate::exit::failed;
use crate::fleet::Fleet;
use crate::{plugin, processes};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Failure, PluginDoc, Request, TransactionKind};
use rustix::process::Signal;
use serde_json::json;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Clients that write while a primary is lost.
const WRITERS: usize = 2;

/// How long they write before.
const BEFORE: Duration = Duration::from_millis(100);

/// Pause between two looks whether all instances run again.
const LOOK: Duration = Duration::from_millis(10);

/// Kills the processes of a plug-in with an instance at every member, one after the other; milliseconds until each member
/// told of each.
pub(super) fn crashes(fleet: &Fleet, library: &Path, runs: usize) -> Result<Vec<f64>, Failure> {
    let (place, mut client) = (fleet.place(), fleet.client()?);
    // Every crash is a restart.
    let restart_times = u32::try_from(runs).unwrap_or(u32::MAX).saturating_add(1);
    let shape = |load| dvm_plugin_api::local::Load { restart_times, ..load };
    plugin::load_in(&mut client, library, shape, LIMIT)?;
    let members: Vec<_> = fleet.started.iter().map(|kernel| kernel.member.clone()).collect();
    let mut times = Vec::new();
    for run in 0..runs {
        let victim = &members[(run * 3 + 1) % members.len()];
        let instances = counter(&mut client)?.instances;
        let pid = instances.iter().find(|instance| instance.member == *victim).map(|instance| instance.pid);
        let pid = pid.ok_or_else(|| failed(format!("{victim} has no instance of the counter")))?;
        let (begin, seen) = hear(place, &members, "instance-failed", victim, pid)?;
        times.extend(seen.iter().map(|seen| (seen.at - begin).as_secs_f64() * 1e3));
        wait_whole(&mut client)?;
    }
    plugin::transact_in(&mut client, TransactionKind::Unload { plugin: "counter".into() }, LIMIT)?;
    Ok(times)
}

/// Loads a plug-in in a mode with a primary, and kills the primary's kernel again and again; milliseconds until somebody
/// has a reply of the next one.
///
/// # Errors
/// Also if a command that was acknowledged is lost, or one was counted twice.
pub(super) fn takeovers(
    fleet: &mut Fleet,
    library: &Path,
    mode: &str,
    runs: usize,
) -> Result<Vec<f64>, Failure> {
    let instances = if mode == "single" { 1 } else { fleet.started.len().min(3) };
    let instances = u16::try_from(instances).ok();
    let shape = |load| dvm_plugin_api::local::Load { mode: mode.into(), instances, ..load };
    plugin::load_in(&mut fleet.client()?, library, shape, LIMIT)?;
    let (mut times, mut acknowledged) = (Vec::new(), 0);
    for _ in 0..runs {
        let (ms, added) = take_over(fleet)?;
        times.push(ms);
        acknowledged += added;
    }
    let mut client = fleet.client()?;
    let (counted, _) = call(&mut client, &json!({"get": true}))?;
    if counted != acknowledged {
        return Err(failed(format!("{acknowledged} commands were acknowledged, and {counted} took effect")));
    }
    plugin::transact_in(&mut client, TransactionKind::Unload { plugin: "counter".into() }, LIMIT)?;
    Ok(times)
}

/// Kills the primary's kernel while clients write through others; milliseconds until the first of them has a reply of
/// the next primary, and how often they added.
fn take_over(fleet: &mut Fleet) -> Result<(f64, u64), Failure> {
    let place = fleet.place().clone();
    let primary =
        counter(&mut fleet.client()?)?.primary.ok_or_else(|| failed("the counter has no primary"))?;
    let at = fleet.started.iter().position(|kernel| kernel.member == primary);
    let victim = fleet.started.remove(at.ok_or_else(|| failed(format!("{primary} was not started here")))?);
    let others = place.live_members().into_iter().filter(|member| *member != primary).take(WRITERS);
    let (begin, written) = thread::scope(|scope| {
        let writing: Vec<_> = others
            .map(|through| {
                let (target, primary) = (Target::new(place.clone(), "dvm bench").only(&through), &primary);
                scope.spawn(move || write(target, primary))
            })
            .collect();
        thread::sleep(BEFORE);
        let begin = Instant::now();
        processes::signal(victim.pid, Signal::KILL)
            .map_err(|error| failed(format!("cannot kill {primary} (process {}): {error}", victim.pid)))?;
        let written = writing.into_iter().map(|thread| thread.join().expect("writing does not panic"));
        Ok::<_, Failure>((begin, written.collect::<Result<Vec<_>, _>>()?))
    })?;
    let first = written.iter().map(|(at, _)| *at).min().ok_or_else(|| failed("nobody was left to write"))?;
    replace(fleet)?;
    // The next run begins with all standbys there.
    wait_whole(&mut fleet.client()?)?;
    Ok(((first - begin).as_secs_f64() * 1e3, written.iter().map(|(_, added)| added).sum()))
}

/// Adds without pause until somebody other than `primary` replies; when that was, and how often it has added.
fn write(target: Target, primary: &str) -> Result<(Instant, u64), Failure> {
    let mut client = Client::connect(target)?;
    let mut added = 0;
    loop {
        let (_, member) = call(&mut client, &json!({"add": 1}))?;
        added += 1;
        if member != primary {
            return Ok((Instant::now(), added));
        }
    }
}

/// What the counter stands at after a command, and the member that replied.
fn call(client: &mut Client, command: &serde_json::Value) -> Result<(u64, String), Failure> {
    let (plugin, command) = ("counter".into(), command.clone());
    let request = Request::Call { plugin, command, query: false, fresh: false };
    match client.request(request, None, Some(LIMIT))? {
        Answer::Reply { reply: Ok(reply), member, .. } => {
            Ok((reply["value"].as_u64().unwrap_or_default(), member))
        }
        other => Err(unexpected(&other)),
    }
}

fn counter(client: &mut Client) -> Result<PluginDoc, Failure> {
    let plugins = status(client, Some(LIMIT))?.plugins;
    plugins.into_iter().find(|plugin| plugin.name == "counter").ok_or_else(|| failed("the counter is gone"))
}

/// Waits until all instances run that are wanted.
fn wait_whole(client: &mut Client) -> Result<(), Failure> {
    let deadline = Instant::now() + LIMIT;
    while counter(client)?.state != "running" {
        if Instant::now() > deadline {
            return Err(failed("a lost instance is not made up for"));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
