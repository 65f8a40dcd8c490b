//! Plays seeds of the simulator: `simulate --seeds 1000 --first-seed 1`.
//!
//! The last line holds the figures. Exit codes: 0 nothing broke, 1 safety, 2 liveness, 3 panic, 64 wrong arguments.
#![expect(clippy::print_stdout, reason = "the report is this program's output")]

use clap::Parser;
use dvm_tests::sim::{self, Class, Figures, Level, Mutant, Report, Run};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Plays seeds of the simulator.
#[derive(Parser)]
#[command(name = "simulate")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How much goes wrong: 0 nothing, 1 crashes, 2 and membership, 3 and cuts, 4 everything.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=4))]
    level: u8,
    /// Runs at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tell every input and output.
    #[arg(long)]
    trace: bool,
    /// Make each failing run smaller before it is told.
    #[arg(long)]
    shrink: bool,
    /// Stop after so many failures.
    #[arg(long, default_value_t = 10)]
    failures: u64,
    /// A deliberate mistake, by name; `list` tells all.
    #[arg(long)]
    mutant: Option<String>,
    /// Numbers of the faults to keep, with commas between, or `none`.
    #[arg(long)]
    only: Option<String>,
    /// A good network and good clocks, whatever the seed says.
    #[arg(long)]
    quiet: bool,
}

/// What all threads share.
struct Shared {
    next: AtomicU64,
    failures: AtomicU64,
    figures: Mutex<Figures>,
    worst: Mutex<BTreeSet<Class>>,
    shown: Mutex<Instant>,
    began: Instant,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { WRONG_ARGUMENTS } else { 0 });
        }
    };
    let template = match template(&args) {
        Ok(template) => template,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(WRONG_ARGUMENTS);
        }
    };
    let now = Instant::now();
    let shared = Shared {
        next: AtomicU64::new(args.first_seed),
        failures: AtomicU64::new(0),
        figures: Mutex::default(),
        worst: Mutex::default(),
        shown: Mutex::new(now),
        began: now,
    };
    let threads = if args.trace { 1 } else { args.threads.max(1) };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&args, &template, &shared));
        }
    });
    let figures = shared.figures.into_inner().expect("no thread panics outside a run");
    let rate = figures.seeds as f64 / shared.began.elapsed().as_secs_f64();
    println!("{figures}; {rate:.0} seeds/s");
    let worst = shared.worst.into_inner().expect("no thread panics outside a run");
    ExitCode::from(
        [(Class::Safety, 1), (Class::Panic, 3), (Class::Liveness, 2)]
            .into_iter()
            .find(|(class, _)| worst.contains(class))
            .map_or(0, |(_, code)| code),
    )
}

/// The run that all seeds share, or what is wrong with the arguments.
fn template(args: &Args) -> Result<Run, String> {
    let mut run = Run::new(0, Level::from_number(args.level));
    run.quiet = args.quiet;
    if let Some(word) = &args.mutant {
        let known: Vec<_> = Mutant::ALL.into_iter().map(Mutant::word).collect();
        let mutant = Mutant::from_word(word);
        run.mutant = Some(mutant.ok_or_else(|| format!("the mutants are {}", known.join(", ")))?);
    }
    if let Some(list) = args.only.as_deref() {
        let numbers = list.split(',').filter(|word| *word != "none").map(str::parse);
        let numbers: Result<BTreeSet<usize>, _> = numbers.collect();
        run.only = Some(numbers.map_err(|error| format!("--only {list}: {error}"))?);
    }
    Ok(run)
}

fn work(args: &Args, template: &Run, shared: &Shared) {
    let end = args.first_seed.saturating_add(args.seeds);
    loop {
        let seed = shared.next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || shared.failures.load(Ordering::Relaxed) >= args.failures {
            return;
        }
        let run = Run { seed, ..template.clone() };
        let report = run.play(args.trace.then(|| -> sim::Tracer { Box::new(|line| println!("{line}")) }));
        let figures = {
            let mut figures = shared.figures.lock().expect("no thread panics outside a run");
            figures.add(&report.figures);
            figures.clone()
        };
        show_progress(shared, &figures, args.seeds);
        if report.failure.is_some() {
            shared.failures.fetch_add(1, Ordering::Relaxed);
            tell(args, shared, report);
        } else if args.trace {
            println!("{report}");
        }
    }
}

fn tell(args: &Args, shared: &Shared, report: Report) {
    let report = if args.shrink { sim::shrink(report) } else { report };
    println!("{report}\n");
    let class = report.failure.expect("only failures are told").class;
    shared.worst.lock().expect("no thread panics outside a run").insert(class);
}

fn show_progress(shared: &Shared, figures: &Figures, seeds: u64) {
    let mut shown = shared.shown.lock().expect("no thread panics outside a run");
    if shown.elapsed() >= Duration::from_secs(5) {
        *shown = Instant::now();
        let failures = shared.failures.load(Ordering::Relaxed);
        eprintln!("{} of {seeds} seeds, {failures} failures, {:.0?}", figures.seeds, shared.began.elapsed());
    }
}

const WRONG_ARGUMENTS: u8 = 64;
