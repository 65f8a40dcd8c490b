//! Loads and unloads a plug-in again and again: `soak --cycles 5000 --placement process`.
//!
//! Each line is what the kernel with the most holds after so many cycles; the last one compares the end with the warm-up.
//! Exit codes: 0 nothing grew, 101 something did.
#![expect(clippy::print_stdout, reason = "the report is this program's output")]

use clap::Parser;
use dvm_tests::soak::{Gauge, SLACK, Soak, WARM, report};
use serde_json::json;
use std::time::Instant;

/// Loads and unloads a plug-in again and again.
#[derive(Parser)]
#[command(name = "soak")]
struct Args {
    /// How often, after the warm-up.
    #[arg(long, default_value_t = 5_000)]
    cycles: usize,
    /// Members of the DVM.
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// Where the plug-in runs.
    #[arg(long, default_value = "process", value_parser = ["process", "kernel"])]
    placement: String,
    /// How much a kernel's share of memory may grow after the warm-up, KiB.
    #[arg(long, default_value_t = 2_048)]
    growth_max: u64,
}

/// Cycles between two lines.
const ROUND: usize = 500;

fn main() {
    let args = Args::parse();
    let mut soak = Soak::start(args.members, &args.placement);
    soak.cycle(WARM);
    // The first pause gives memory back, and what comes behind it takes that again: once, and no growth.
    let _ = soak.gauges();
    soak.cycle(WARM / 10);
    let before = soak.gauges();
    println!("{}", json!({"cycles": 0, "held": report(&before)}));
    let (begin, mut done) = (Instant::now(), 0);
    while done < args.cycles {
        let round = ROUND.min(args.cycles - done);
        soak.cycle(round);
        done += round;
        println!("{}", json!({"cycles": done, "held": report(&soak.gauges())}));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = soak.gauges_as(&before);
    let grown = |(after, before): (&Gauge, &Gauge)| after.pss_kib.saturating_sub(before.pss_kib);
    let grown = after.iter().zip(&before).map(grown).max().unwrap_or_default();
    println!(
        "{}",
        json!({
            "schema": 1, "soak": args.placement, "members": args.members, "cycles": done,
            "cycles_per_s": (done as f64 / seconds * 10.0).round() / 10.0,
            "warm": report(&before), "end": report(&after), "grown_pss_kib": grown, "slack": SLACK,
        })
    );
    assert!(grown <= args.growth_max, "a kernel grew by {grown} KiB, and {} are allowed", args.growth_max);
}
