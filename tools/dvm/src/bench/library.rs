//! `bench library`: a large library from a client to an instance at every member, and what the ring feels of it.
//!
//! The ring is measured as by `bench ring`, with one message in flight, before each load and while it goes on.

use super::ring::measure;
use super::sample::{figure, percentile};
use super::{Awake, BenchArgs, Subject, head, object};
use crate::context::Context;
use crate::exit::{failed, usage};
use crate::{library, plugin};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Failure, TransactionKind};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the library unless told otherwise.
const SIZE: u64 = 50_000_000;

/// Runs unless fewer are asked for: each sends a whole library.
const RUNS: usize = 5;

/// How long the ring is measured at a time while a load goes on; one that is not over when the load is does not count.
const ROUND: Duration = Duration::from_millis(50);

/// How long a load may take.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn library(
    context: &Context,
    args: &BenchArgs,
    awake: &Awake,
) -> Result<Map<String, Value>, Failure> {
    if context.global.dvm.is_some() {
        return Err(usage("bench library loads a plug-in, and does so only in a DVM that it started itself"));
    }
    let subject = Subject::new(context, args)?;
    let (_, scratch) = subject.own.as_ref().expect("started above");
    let original = library::read(&library::find("counter")?)?.bytes;
    let size = args.size.unwrap_or(SIZE).max(original.len() as u64);
    let path = scratch.runtime.path().join("large.so");
    let (first, last) = (&subject.members[0], &subject.members[subject.members.len() - 1..]);
    let target = Target::new(subject.place.clone(), "dvm bench").only(first);
    let mut client = Client::connect(target)?;
    let (mut load_ms, mut idle, mut meanwhile, mut ratios) = (vec![], vec![], vec![], vec![]);
    for run in 0..args.runs.min(RUNS) {
        grow(&original, size, run as u64, &path)?;
        let quiet = times(&subject, last, args.duration())?;
        let loading = AtomicBool::new(true);
        let (took, busy) = thread::scope(|scope| {
            let measuring = scope.spawn(|| {
                let mut all = Vec::new();
                loop {
                    let round = times(&subject, last, ROUND)?;
                    if !loading.load(Ordering::Relaxed) {
                        return Ok::<_, Failure>(all);
                    }
                    all.extend(round);
                }
            });
            let begin = Instant::now();
            let loaded = plugin::load_in(&mut client, &path, |load| load, LIMIT);
            let took = begin.elapsed();
            loading.store(false, Ordering::Relaxed);
            let busy = measuring.join().expect("measuring does not panic");
            let loaded = loaded?;
            if loaded.outcome != "committed" {
                return Err(failed("the library was not loaded at every member").hint("see `dvm logs`"));
            }
            Ok((took, busy?))
        })?;
        let unload = TransactionKind::Unload { plugin: "counter".into() };
        plugin::transact_in(&mut client, unload, LIMIT)?;
        load_ms.push(took.as_secs_f64() * 1e3);
        let (quiet, busy) = (p50_and_p99(quiet), p50_and_p99(busy));
        ratios.push(busy.1 / quiet.1);
        idle.push(quiet);
        meanwhile.push(busy);
    }
    let median = |values: &[(f64, f64)]| {
        let mut p50: Vec<_> = values.iter().map(|(p50, _)| *p50).collect();
        let mut p99: Vec<_> = values.iter().map(|(_, p99)| *p99).collect();
        json!({"p50": figure(percentile(&mut p50, 0.5)), "p99": figure(percentile(&mut p99, 0.5))})
    };
    let mut document = head("library", subject.members.len(), awake);
    document.extend(object(json!({
        "size": size,
        "runs": load_ms.len(),
        "load_ms": {
            "p50": figure(percentile(&mut load_ms, 0.5)),
            "max": figure(percentile(&mut load_ms, 1.0)),
        },
        "ring": { "idle_us": median(&idle), "meanwhile_us": median(&meanwhile) },
        "ratio": { "p99_to_idle": figure(percentile(&mut ratios, 0.5)) },
    })));
    Ok(document)
}

fn p50_and_p99(mut times: Vec<f64>) -> (f64, f64) {
    (percentile(&mut times, 0.50), percentile(&mut times, 0.99))
}

/// The times of single broadcasts from one member.
fn times(subject: &Subject, from: &[String], during: Duration) -> Result<Vec<f64>, Failure> {
    let measured = measure(&subject.place, from, "ring", super::SIZE, during, 1)?;
    Ok(measured.into_iter().flat_map(|measured| measured.times_us).collect())
}

/// Writes a library with something behind it that loading does not read, other bytes with every `seed`: no member can
/// have it yet.
fn grow(original: &[u8], size: u64, seed: u64, path: &Path) -> Result<(), Failure> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    bytes.extend_from_slice(original);
    let mut noise = seed;
    while (bytes.len() as u64) < size {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let left = usize::try_from(size - bytes.len() as u64).unwrap_or(8).min(8);
        bytes.extend_from_slice(&noise.to_le_bytes()[..left]);
    }
    fs::write(path, bytes).map_err(|error| failed(format!("cannot write {}: {error}", path.display())))
}
