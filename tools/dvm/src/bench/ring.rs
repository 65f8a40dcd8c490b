//! `bench ring` and `bench agree`: measured inside the kernels, so that a client's path is not in the figures.

use super::sample::{figure, percentiles};
use super::{Awake, BenchArgs, Senders, Subject, head, object, raw};
use crate::context::{Context, unexpected};
use dvm_plugin_api::client::{Client, REACH, Target};
use dvm_plugin_api::local::{Answer, Failure, Request};
use dvm_plugin_api::place::DvmPlace;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::thread;
use std::time::Duration;

/// Messages kept in flight to measure how many go.
const MANY: u64 = 256;

/// Agreements kept in flight to measure how many go.
const MANY_AGREEMENTS: u64 = 16;

/// What one kernel measured.
pub(super) struct Measured {
    pub(super) times_us: Vec<f64>,
    /// When the first operations began.
    begun: Vec<(u64, u64)>,
    operations: u64,
    elapsed_us: u64,
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
    let raw = raw::measure(subject.members.len(), args.message(), args.duration(), true)?;
    let senders = match args.senders {
        Senders::One => &subject.members[..1],
        Senders::All => &subject.members[..],
    };
    let (single, watched) = measure_watched(&subject, senders, "ring", args, 1)?;
    let mut last = until_last(&single, &watched.heard);
    let (stream, watched) = measure_watched(&subject, senders, "ring", args, MANY)?;
    let mut times: Vec<f64> = single.into_iter().flat_map(|measured| measured.times_us).collect();
    let origin = percentiles(&mut times);
    let messages_per_s: f64 = stream.iter().map(Measured::per_second).sum();
    let goodput = messages_per_s * args.message() as f64 / 1e6;
    let mut broadcast = object(json!({
        "origin_us": origin,
        "last_us": percentiles(&mut last),
        "goodput_mb_s": figure(goodput),
        "messages_per_s": figure(messages_per_s),
    }));
    broadcast.extend(frames(&stream, &watched));
    let operations: u64 = stream.iter().map(|measured| measured.operations).sum();
    if let Some(least) = stream.iter().map(|measured| measured.operations).min()
        && operations > 0
    {
        let share = least as f64 / operations as f64 * stream.len() as f64;
        broadcast.insert("share_min".into(), json!(figure(share)));
    }
    let mut document = head("ring", subject.members.len(), awake);
    document.extend(object(json!({
        "size": args.message(),
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
    let raw = raw::measure(subject.members.len(), args.message(), args.duration(), false)?;
    let first = &subject.members[..1];
    let (mut single, watched) = measure_watched(&subject, first, "agree", args, 1)?;
    // To the originator, which works the outcome out, it does not come.
    let others = &watched.heard[1..];
    let mut known = until_last(&single, others);
    let (stream, watched) = measure_watched(&subject, first, "agree", args, MANY_AGREEMENTS)?;
    let last = percentiles(&mut single[0].times_us);
    // Who is alone knows the outcome when it takes effect.
    let known = if subject.members.len() == 1 { last.clone() } else { percentiles(&mut known) };
    let per_s = figure(stream[0].per_second());
    let mut agreement = object(json!({"known_us": known, "final_us": last, "per_s": per_s}));
    agreement.extend(frames(&stream, &watched));
    let mut document = head("agree", subject.members.len(), awake);
    document.extend(object(json!({
        "raw": raw.fields,
        "agreement": agreement,
        "ratio": { "final_to_lap": figure(p50(&last) / raw.lap_p50) },
    })));
    Ok(document)
}

/// What all kernels wrote to the ring for each operation.
fn frames(measured: &[Measured], watched: &Watched) -> Map<String, Value> {
    let operations: u64 = measured.iter().map(|measured| measured.operations).sum();
    let per_op = |count: u64| figure(count as f64 / (operations as f64).max(1.0));
    object(json!({"frames_per_op": per_op(watched.frames), "bytes_per_op": per_op(watched.bytes)}))
}

/// What all kernels saw of a measurement.
#[derive(Default)]
struct Watched {
    /// Of each: when it heard of which operation.
    heard: Vec<Vec<(u64, u64)>>,
    frames: u64,
    bytes: u64,
}

/// Has several kernels measure while all of them watch.
fn measure_watched(
    subject: &Subject,
    senders: &[String],
    what: &str,
    args: &BenchArgs,
    in_flight: u64,
) -> Result<(Vec<Measured>, Watched), Failure> {
    let connect = |member| Client::connect(Target::new(subject.place.clone(), "dvm bench").only(member));
    let mut clients: Vec<_> = subject.members.iter().map(connect).collect::<Result<_, _>>()?;
    for client in &mut clients {
        // Of many in flight the time of one means nothing.
        match client.request(Request::Watch { times: in_flight == 1 }, None, Some(REACH))? {
            Answer::Done { .. } => {}
            other => return Err(unexpected(&other)),
        }
    }
    let measured = measure(&subject.place, senders, what, args.message(), args.duration(), in_flight)?;
    let mut all = Watched::default();
    for client in &mut clients {
        match client.request(Request::Watched, None, Some(REACH))? {
            Answer::Watched { times, frames, bytes } => {
                all.heard.push(times);
                (all.frames, all.bytes) = (all.frames + frames, all.bytes + bytes);
            }
            other => return Err(unexpected(&other)),
        }
    }
    Ok((measured, all))
}

/// From the begin of each operation until the last watcher had heard of it, microseconds; those that one of them has not
/// told are left out.
fn until_last(measured: &[Measured], heard: &[Vec<(u64, u64)>]) -> Vec<f64> {
    let mut last: HashMap<u64, (usize, u64)> = HashMap::new();
    for times in heard {
        // What is sent again on a mended link arrives twice; the first time counts.
        let mut first: HashMap<u64, u64> = HashMap::new();
        for (key, at) in times {
            first.entry(*key).or_insert(*at);
        }
        for (key, at) in first {
            let (watchers, latest) = last.entry(key).or_default();
            (*watchers, *latest) = (*watchers + 1, at.max(*latest));
        }
    }
    let begun = measured.iter().flat_map(|measured| &measured.begun);
    let told = begun.filter_map(|(key, begun)| Some((last.get(key)?, begun)));
    told.filter(|((watchers, _), _)| *watchers == heard.len())
        .map(|((_, latest), begun)| latest.saturating_sub(*begun) as f64)
        .collect()
}

/// Has several kernels measure at the same time.
pub(super) fn measure(
    place: &DvmPlace,
    senders: &[String],
    what: &str,
    size: u64,
    during: Duration,
    in_flight: u64,
) -> Result<Vec<Measured>, Failure> {
    let request = Request::Bench {
        what: what.into(),
        size,
        duration_ms: u64::try_from(during.as_millis()).unwrap_or(u64::MAX),
        in_flight,
    };
    let clients: Vec<_> = senders
        .iter()
        .map(|sender| Client::connect(Target::new(place.clone(), "dvm bench").only(sender)))
        .collect::<Result<_, _>>()?;
    let limit = during + REACH;
    thread::scope(|scope| {
        let running: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let request = request.clone();
                scope.spawn(move || match client.request(request, None, Some(limit))? {
                    Answer::Bench { times_us, begun, operations, elapsed_us } => {
                        Ok(Measured { times_us, begun, operations, elapsed_us })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_counts_and_each_ones_first() {
        let heard = [vec![(1, 15), (1, 99), (2, 30)], vec![(1, 18), (7, 50)]];
        let begun = vec![(1, 10), (2, 20), (3, 30)];
        let measured = [Measured { times_us: Vec::new(), begun, operations: 3, elapsed_us: 9 }];
        assert_eq!(until_last(&measured, &heard), [8.0]);
        assert_eq!(until_last(&measured, &[]), [0.0; 0]);
    }
}
