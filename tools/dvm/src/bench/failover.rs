//! `bench failover`: from the SIGKILL of a kernel to the `member-failed` event at every survivor, and from that of a hot
//! primary's kernel to the first reply of the next primary, while clients write.

use super::sample::{figure, percentile};
use super::{Awake, BenchArgs, Subject, head, object};
use crate::context::{Context, status, unexpected};
use crate::exit::{failed, usage};
use crate::fleet::{Fleet, free_names};
use crate::{library, plugin, processes};
use dvm_plugin_api::client::{Client, Events, Filter, Next, Target};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, PluginDoc, Request, Since};
use dvm_plugin_api::place::DvmPlace;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// How long a survivor may take to tell the event.
const LIMIT: Duration = Duration::from_secs(30);

/// The event at one survivor.
pub(crate) struct Seen {
    pub(crate) member: String,
    pub(crate) at: Instant,
    pub(crate) cause: String,
}

pub(super) fn failover(
    context: &Context,
    args: &BenchArgs,
    awake: &Awake,
) -> Result<Map<String, Value>, Failure> {
    if context.global.dvm.is_some() {
        return Err(usage("bench failover kills kernels, and does so only in a DVM that it started itself"));
    }
    if args.members == Some(1) {
        return Err(usage("--members wants 2 or more: somebody must survive"));
    }
    let mut subject = Subject::new(context, args)?;
    let size = subject.members.len();
    let (mut times, mut last) = (Vec::new(), Vec::new());
    for run in 0..args.runs {
        let (fleet, _) = subject.own.as_mut().expect("started above");
        let place = fleet.place().clone();
        // Each run another place in the ring.
        let victim = fleet.started.remove((run * 3 + 1) % fleet.started.len());
        let begin_and_seen = kill_and_watch(&place, &victim.member, victim.pid)?;
        let (begin, seen) = begin_and_seen;
        let ms: Vec<_> = seen.iter().map(|seen| (seen.at - begin).as_secs_f64() * 1e3).collect();
        last.push(ms.iter().copied().fold(0.0, f64::max));
        times.extend(ms);
        replace(fleet)?;
    }
    let mut takeovers = match library::find("counter") {
        Ok(library) => {
            let (fleet, _) = subject.own.as_mut().expect("started above");
            plugin::load_in(&mut fleet.client()?, &library, "hot", Some(size.min(3) as u16), LIMIT)?;
            (0..args.runs).map(|_| take_over(fleet)).collect::<Result<Vec<_>, _>>()?
        }
        // Without the example plug-in there is nothing to take over.
        Err(_) => Vec::new(),
    };
    let mut document = head("failover", size, awake);
    document.extend(object(json!({
        "event_ms": {
            "p50": figure(percentile(&mut times, 0.50)),
            "p99": figure(percentile(&mut times, 0.99)),
            "runs": args.runs,
        },
        "takeover_ms": if takeovers.is_empty() { Value::Null } else { json!({
            "p50": figure(percentile(&mut takeovers, 0.50)),
            "p99": figure(percentile(&mut takeovers, 0.99)),
            "runs": args.runs,
        }) },
        "last_event_ms": { "p50": figure(percentile(&mut last, 0.50)), "p99": figure(percentile(&mut last, 0.99)) },
    })));
    Ok(document)
}

/// Starts a kernel in the place of one that was killed.
fn replace(fleet: &mut Fleet) -> Result<(), Failure> {
    let now = status(&mut fleet.client()?, Some(LIMIT))?;
    let names = free_names(&now, &fleet.place().clone(), 1)?;
    fleet.grow(&names, &|| ())?;
    fleet.failed.first().map_or(Ok(()), |refused| Err(refused.failure()))
}

/// Kills the primary's kernel while two clients write through others; milliseconds until the first of them has a reply
/// of the next primary.
fn take_over(fleet: &mut Fleet) -> Result<f64, Failure> {
    let place = fleet.place().clone();
    let primary = primary(&mut fleet.client()?)?;
    let at = fleet.started.iter().position(|kernel| kernel.member == primary);
    let victim = fleet.started.remove(at.ok_or_else(|| failed(format!("{primary} was not started here")))?);
    let others = place.live_members().into_iter().filter(|member| *member != primary).take(2);
    let begin_and_replies = thread::scope(|scope| {
        let writing: Vec<_> = others
            .map(|through| {
                let (target, primary) = (Target::new(place.clone(), "dvm bench").only(&through), &primary);
                scope.spawn(move || write(target, primary))
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        processes::signal(victim.pid, Signal::KILL)
            .map_err(|error| failed(format!("cannot kill {primary} (process {}): {error}", victim.pid)))?;
        let replies = writing.into_iter().map(|thread| thread.join().expect("writing does not panic"));
        Ok::<_, Failure>((begin, replies.collect::<Result<Vec<_>, _>>()?))
    });
    let (begin, replies) = begin_and_replies?;
    let first = replies.into_iter().min().ok_or_else(|| failed("nobody was left to write"))?;
    replace(fleet)?;
    // The next run begins with all standbys there.
    let deadline = Instant::now() + LIMIT;
    while !is_whole(&mut fleet.client()?)? {
        if Instant::now() > deadline {
            return Err(failed("the lost standby is not made up for"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok((first - begin).as_secs_f64() * 1e3)
}

/// Adds without pause until somebody other than `primary` replies; when that was.
fn write(target: Target, primary: &str) -> Result<Instant, Failure> {
    let mut client = Client::connect(target)?;
    loop {
        let (plugin, command) = ("counter".into(), json!({"add": 1}));
        let request = Request::Call { plugin, command, query: false, fresh: false };
        match client.request(request, None, Some(LIMIT))? {
            Answer::Reply { member, .. } if member == primary => {}
            Answer::Reply { .. } => return Ok(Instant::now()),
            other => return Err(unexpected(&other)),
        }
    }
}

fn counter(client: &mut Client) -> Result<PluginDoc, Failure> {
    let plugins = status(client, Some(LIMIT))?.plugins;
    plugins.into_iter().find(|plugin| plugin.name == "counter").ok_or_else(|| failed("the counter is gone"))
}

fn primary(client: &mut Client) -> Result<String, Failure> {
    counter(client)?.primary.ok_or_else(|| failed("the counter has no primary"))
}

fn is_whole(client: &mut Client) -> Result<bool, Failure> {
    Ok(counter(client)?.state == "running")
}

/// Kills a kernel and waits, at every other member with a kernel here, for the event that tells it. Each survivor is
/// listened to over a connection of its own.
pub(crate) fn kill_and_watch(
    place: &DvmPlace,
    victim: &str,
    pid: u32,
) -> Result<(Instant, Vec<Seen>), Failure> {
    let survivors: Vec<_> = place.live_members().into_iter().filter(|member| member != victim).collect();
    let mut streams = Vec::new();
    for survivor in &survivors {
        let client = Client::connect(Target::new(place.clone(), "dvm bench").only(survivor))?;
        let filter = Filter { kinds: vec!["member-failed".into()], follow: true, key_prefix: None };
        streams.push((survivor, client.events(Since::Now, filter)?));
    }
    thread::scope(|scope| {
        let watching: Vec<_> = streams
            .into_iter()
            .map(|(survivor, events)| scope.spawn(move || watch(events, survivor, victim)))
            .collect();
        // The threads are at their sockets before the kernel is gone.
        thread::sleep(Duration::from_millis(20));
        let begin = Instant::now();
        processes::signal(pid, Signal::KILL)
            .map_err(|error| failed(format!("cannot kill {victim} (process {pid}): {error}")))?;
        let seen = watching
            .into_iter()
            .map(|thread| thread.join().expect("watching does not panic"))
            .collect::<Result<_, _>>()?;
        Ok((begin, seen))
    })
}

fn watch(mut events: Events, survivor: &str, victim: &str) -> Result<Seen, Failure> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        match events.next(Some(deadline.saturating_duration_since(Instant::now())))? {
            Next::Event(event) => {
                let at = Instant::now();
                let text =
                    |key: &str| event.more.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                if event.kind == "member-failed" && text("member") == victim {
                    return Ok(Seen { member: survivor.into(), at, cause: text("cause") });
                }
                if event.kind == "detached" {
                    break;
                }
            }
            Next::Quiet | Next::End(_) => break,
        }
    }
    Err(Failure::new(FailureCode::Unknown, format!("{survivor} did not tell that {victim} failed"))
        .hint("see `dvm logs` of both"))
}
