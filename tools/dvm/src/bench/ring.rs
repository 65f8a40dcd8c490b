//! `bench ring` and `bench agree`: measured inside the kernels, so that a client's path is not in the figures.

use super::sample::{figure, percentiles};
use super::{Awake, BenchArgs, Senders, Subject, head, object, raw};
use crate::context::{Context, unexpected};
use dvm_plugin_api::client::{Client, REACH, Target};
use dvm_plugin_api::local::{Answer, Failure, Request};
use dvm_plugin_api::place::DvmPlace;
use serde_json::{Map, Value, json};
use std::thread;
use std::time::Duration;

/// Messages kept in flight to measure how many go.
const MANY: u64 = 256;

/// Agreements kept in flight to measure how many go.
const MANY_AGREEMENTS: u64 = 16;

/// What one kernel measured.
struct Measured {
    times_us: Vec<f64>,
    operations: u64,
    elapsed_us: u64,
    frames: u64,
    bytes: u64,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.operations as f64 * 1e6 / (self.elapsed_us as f64).max(1.0)
    }
}

pub(super) fn ring(
    context: &Context,
    args: &BenchArgs,
    awake: &Awake,
) -> Result<Map<String, Value>, Failure> {
    let subject = Subject::new(context, args)?;
    let raw = raw::measure(subject.members.len(), args.size, args.duration(), true)?;
    let senders = match args.senders {
        Senders::One => &subject.members[..1],
        Senders::All => &subject.members[..],
    };
    let single = measure(&subject.place, senders, "ring", args, 1)?;
    let stream = measure(&subject.place, senders, "ring", args, MANY)?;
    let mut times: Vec<f64> = single.into_iter().flat_map(|measured| measured.times_us).collect();
    let origin = percentiles(&mut times);
    let messages_per_s: f64 = stream.iter().map(Measured::per_second).sum();
    let goodput = messages_per_s * args.size as f64 / 1e6;
    let mut broadcast = object(json!({
        "origin_us": origin,
        "goodput_mb_s": figure(goodput),
        "messages_per_s": figure(messages_per_s),
    }));
    broadcast.extend(frames(&stream, senders.len() == subject.members.len()));
    let operations: u64 = stream.iter().map(|measured| measured.operations).sum();
    if let Some(least) = stream.iter().map(|measured| measured.operations).min()
        && operations > 0
    {
        let share = least as f64 / operations as f64 * stream.len() as f64;
        broadcast.insert("share_min".into(), json!(figure(share)));
    }
    let mut document = head("ring", subject.members.len(), awake);
    document.extend(object(json!({
        "size": args.size,
        "senders": if args.senders == Senders::One { "one" } else { "all" },
        "raw": raw.fields,
        "broadcast": broadcast,
        "ratio": {
            "origin_to_lap": figure(p50(&origin) / raw.lap_p50),
            "goodput_to_stream": figure(goodput / raw.stream_mb_s),
            "goodput_to_plain_stream": figure(goodput / raw.plain_stream_mb_s),
        },
    })));
    Ok(document)
}

pub(super) fn agree(
    context: &Context,
    args: &BenchArgs,
    awake: &Awake,
) -> Result<Map<String, Value>, Failure> {
    let subject = Subject::new(context, args)?;
    let raw = raw::measure(subject.members.len(), args.size, args.duration(), false)?;
    let first = &subject.members[..1];
    let mut single = measure(&subject.place, first, "agree", args, 1)?.swap_remove(0);
    let stream = measure(&subject.place, first, "agree", args, MANY_AGREEMENTS)?;
    let last = percentiles(&mut single.times_us);
    let mut agreement = object(json!({"final_us": last, "per_s": figure(stream[0].per_second())}));
    agreement.extend(frames(&stream, subject.members.len() == 1));
    let mut document = head("agree", subject.members.len(), awake);
    document.extend(object(json!({
        "raw": raw.fields,
        "agreement": agreement,
        "ratio": { "final_to_lap": figure(p50(&last) / raw.lap_p50) },
    })));
    Ok(document)
}

/// What was written to the ring for each operation: by all kernels where all were asked, else by the originator alone.
fn frames(measured: &[Measured], all: bool) -> Map<String, Value> {
    let operations: u64 = measured.iter().map(|measured| measured.operations).sum();
    if operations == 0 {
        return Map::new();
    }
    let per_op = |count: fn(&Measured) -> u64| {
        figure(measured.iter().map(count).sum::<u64>() as f64 / operations as f64)
    };
    let (frames, bytes) =
        if all { ("frames_per_op", "bytes_per_op") } else { ("origin_frames_per_op", "origin_bytes_per_op") };
    object(json!({ frames: per_op(|measured| measured.frames), bytes: per_op(|measured| measured.bytes) }))
}

/// Has several kernels measure at the same time.
fn measure(
    place: &DvmPlace,
    senders: &[String],
    what: &str,
    args: &BenchArgs,
    in_flight: u64,
) -> Result<Vec<Measured>, Failure> {
    let request = Request::Bench {
        what: what.into(),
        size: args.size,
        duration_ms: u64::try_from(args.duration().as_millis()).unwrap_or(u64::MAX),
        in_flight,
    };
    let clients: Vec<_> = senders
        .iter()
        .map(|sender| Client::connect(Target::new(place.clone(), "dvm bench").only(sender)))
        .collect::<Result<_, _>>()?;
    let limit: Duration = args.duration() + REACH;
    thread::scope(|scope| {
        let running: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let request = request.clone();
                scope.spawn(move || match client.request(request, None, Some(limit))? {
                    Answer::Bench { times_us, operations, elapsed_us, frames, bytes } => {
                        Ok(Measured { times_us, operations, elapsed_us, frames, bytes })
                    }
                    other => Err(unexpected(&other)),
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    })
}

fn p50(percentiles: &Value) -> f64 {
    percentiles["p50"].as_f64().unwrap_or(0.0)
}
