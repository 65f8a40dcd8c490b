//! `bench failover`: from the SIGKILL of a kernel to the `member-failed` event at every survivor; and what of it plug-ins
//! feel ([`takeover`]).

use super::sample::{figure, percentile};
use super::{Awake, BenchArgs, Subject, head, object, takeover};
use crate::context::{Context, status};
use crate::exit::{failed, usage};
use crate::fleet::{Fleet, free_names};
use crate::{library, processes};
use dvm_plugin_api::client::{Client, Events, Filter, Next, Target};
use dvm_plugin_api::local::{Failure, FailureCode, Since};
use dvm_plugin_api::place::DvmPlace;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// How long a survivor may take to tell the event.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

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
    let (mut crashes, [mut hot, mut warm, mut single]) = match library::find("counter") {
        Ok(library) => {
            let (fleet, _) = subject.own.as_mut().expect("started above");
            let crashes = takeover::crashes(fleet, &library, args.runs)?;
            let mut takeovers = |mode| takeover::takeovers(fleet, &library, mode, args.runs);
            (crashes, [takeovers("hot")?, takeovers("warm")?, takeovers("single")?])
        }
        // Without the example plug-in there is nothing to crash or to take over.
        Err(_) => Default::default(),
    };
    let told = |times: &mut Vec<f64>| match times.is_empty() {
        true => Value::Null,
        false => json!({
            "p50": figure(percentile(times, 0.50)),
            "p99": figure(percentile(times, 0.99)),
            "runs": args.runs,
        }),
    };
    let mut document = head("failover", size, awake);
    document.extend(object(json!({
        "event_ms": told(&mut times),
        "last_event_ms": { "p50": figure(percentile(&mut last, 0.50)), "p99": figure(percentile(&mut last, 0.99)) },
        "plugin_ms": told(&mut crashes),
        "takeover_ms": told(&mut hot),
        "warm_takeover_ms": told(&mut warm),
        "single_takeover_ms": told(&mut single),
    })));
    Ok(document)
}

/// Starts a kernel in the place of one that was killed.
pub(super) fn replace(fleet: &mut Fleet) -> Result<(), Failure> {
    let now = status(&mut fleet.client()?, Some(LIMIT))?;
    let names = free_names(&now, &fleet.place().clone(), 1)?;
    fleet.grow(&names, &|| ())?;
    fleet.failed.first().map_or(Ok(()), |refused| Err(refused.failure()))
}

/// Kills a kernel and waits, at every other member with a kernel here, for the event that tells it.
pub(crate) fn kill_and_watch(
    place: &DvmPlace,
    victim: &str,
    pid: u32,
) -> Result<(Instant, Vec<Seen>), Failure> {
    let survivors: Vec<_> = place.live_members().into_iter().filter(|member| member != victim).collect();
    hear(place, &survivors, "member-failed", victim, pid)
}

/// Kills a process and waits until each of `members` tells the event of this kind about `victim`. Each is listened to over
/// a connection of its own.
pub(super) fn hear(
    place: &DvmPlace,
    members: &[String],
    kind: &str,
    victim: &str,
    pid: u32,
) -> Result<(Instant, Vec<Seen>), Failure> {
    let mut streams = Vec::new();
    for member in members {
        let client = Client::connect(Target::new(place.clone(), "dvm bench").only(member))?;
        let filter = Filter { kinds: vec![kind.into()], follow: true, key_prefix: None };
        streams.push((member, client.events(Since::Now, filter)?));
    }
    thread::scope(|scope| {
        let watching: Vec<_> = streams
            .into_iter()
            .map(|(member, events)| scope.spawn(move || watch(events, member, kind, victim)))
            .collect();
        // The threads are at their sockets before the process is gone.
        thread::sleep(Duration::from_millis(20));
        let begin = Instant::now();
        processes::signal(pid, Signal::KILL)
            .map_err(|error| failed(format!("cannot kill process {pid} of {victim}: {error}")))?;
        let seen = watching
            .into_iter()
            .map(|thread| thread.join().expect("watching does not panic"))
            .collect::<Result<_, _>>()?;
        Ok((begin, seen))
    })
}

fn watch(mut events: Events, through: &str, kind: &str, victim: &str) -> Result<Seen, Failure> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        match events.next(Some(deadline.saturating_duration_since(Instant::now())))? {
            Next::Event(event) => {
                let at = Instant::now();
                let text =
                    |key: &str| event.more.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                if event.kind == kind && text("member") == victim {
                    return Ok(Seen { member: through.into(), at, cause: text("cause") });
                }
                if event.kind == "detached" {
                    break;
                }
            }
            Next::Quiet | Next::End(_) => break,
        }
    }
    Err(Failure::new(FailureCode::Unknown, format!("{through} did not tell {kind} of {victim}"))
        .hint("see `dvm logs` of both"))
}
