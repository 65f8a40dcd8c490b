//! `bench launch`: from nothing to a DVM of so many members, and the memory its idle kernels take.

use super::sample::{figure, percentile};
use super::{Awake, BenchArgs, MEMBERS, ground, head, object, plan};
use crate::context::Context;
use crate::exit::{failed, usage};
use crate::fleet::{Fleet, bring_up};
use crate::keeper::Scratch;
use crate::processes::{kill_all, resident_kib, wait_gone};
use dvm_plugin_api::local::Failure;
use serde_json::{Map, Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// After which a kernel is idle.
const SETTLE: Duration = Duration::from_millis(500);

/// How long killed kernels may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Runs unless told otherwise are fewer here: each starts a whole DVM.
const RUNS: usize = 5;

pub(super) fn launch(
    context: &Context,
    args: &BenchArgs,
    awake: &Awake,
) -> Result<Map<String, Value>, Failure> {
    if context.global.dvm.is_some() {
        return Err(usage("bench launch starts a DVM; it measures none that runs"));
    }
    let members = args.members.unwrap_or(MEMBERS);
    let runs = args.runs.min(RUNS);
    let scratch = Scratch::create("bench")?;
    let ground = ground(context, &scratch)?;
    let (mut ready, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let begin = Instant::now();
        let fleet = bring_up(&ground, &plan(members), &|| ())?;
        ready.push(begin.elapsed().as_secs_f64() * 1e3);
        if let Some(refused) = fleet.failed.first() {
            return Err(refused.failure());
        }
        sleep(SETTLE);
        let kib = fleet.started.iter().filter_map(|started| resident_kib(started.pid));
        resident.extend(kib.map(|kib| kib as f64 / 1024.0));
        end(&fleet)?;
    }
    let mut document = head("launch", members, awake);
    document.extend(object(json!({
        "runs": runs,
        "ready_ms": figure(percentile(&mut ready, 0.50)),
        "rss_mib": { "p50": figure(percentile(&mut resident, 0.50)), "max": figure(percentile(&mut resident, 1.0)) },
    })));
    Ok(document)
}

/// Kills all kernels, and waits until their sockets are dead: the next run takes the same name.
fn end(fleet: &Fleet) -> Result<(), Failure> {
    let (place, deadline) = (fleet.place(), Instant::now() + GONE);
    kill_all(place, deadline);
    let pids: Vec<_> = fleet.started.iter().map(|started| started.pid).collect();
    if wait_gone(place, &pids, deadline) {
        return Ok(());
    }
    Err(failed("the kernels of a run do not end, and the next one needs their place")
        .cause(format!("still here: {}", place.live_members().join(", ")))
        .hint("try again when the machine is less busy, or with fewer --members"))
}
