//! `bench`: figures of this DVM beside those of a raw ring, measured in the same run.
//!
//! A halted core of a virtual machine takes tens of microseconds to wake, so an idle machine shows times that a busy
//! one does not. Where it may, the benchmark keeps the cores awake for both sides, and says whether it did.

mod failover;
mod launch;
mod library;
mod raw;
mod ring;
mod sample;
mod takeover;

use crate::context::{Context, status};
use crate::exit::{self, usage};
use crate::fleet::{Fleet, Ground, Plan, bring_up};
use crate::keeper::Scratch;
use crate::launch::find_kernel;
use clap::{Args, ValueEnum};
use dvm_plugin_api::local::Failure;
use dvm_plugin_api::place::DvmPlace;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

pub(crate) use failover::kill_and_watch;
pub(crate) use raw::node as raw_ring_node;

/// Members of a DVM that the benchmark starts itself.
const MEMBERS: usize = 8;

/// Bytes of a message unless told otherwise.
const SIZE: u64 = 64;

/// Largest message, and largest library, bytes.
const SIZE_MAX: (u64, u64) = (1 << 20, 1 << 30);

/// Runs, where every run is one figure.
const RUNS: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What
    what: What,
    /// Members of the DVM started for it
    #[arg(long, value_name = "N")]
    members: Option<usize>,
    /// Bytes of each message; default: 64. Of the library; default: 50 MB
    #[arg(long, value_name = "B")]
    size: Option<u64>,
    /// Who sends
    #[arg(long, default_value = "one")]
    senders: Senders,
    /// How long each figure is measured
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// How often, for failover, launch and library
    #[arg(long, value_name = "R", default_value_t = RUNS)]
    runs: usize,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// An ordered broadcast
    Ring,
    /// An agreement with nothing to execute
    Agree,
    /// From a kernel's death to the event at every survivor
    Failover,
    /// From nothing to a DVM
    Launch,
    /// A large library to every member, and the ring meanwhile
    Library,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Senders {
    One,
    All,
}

impl BenchArgs {
    fn message(&self) -> u64 {
        self.size.unwrap_or(SIZE)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

pub(crate) fn bench(context: &Context, args: &BenchArgs) -> exit::Result {
    if !(args.seconds > 0.0 && args.seconds <= 3_600.0) || args.runs == 0 || args.members == Some(0) {
        return Err(usage("--seconds, --runs and --members want something above zero"));
    }
    let max = if args.what == What::Library { SIZE_MAX.1 } else { SIZE_MAX.0 };
    if args.size.is_some_and(|size| !(8..=max).contains(&size)) {
        return Err(usage(format!("--size wants 8 to {max} bytes")));
    }
    let awake = Awake::hold();
    let document = match args.what {
        What::Ring => ring::ring(context, args, &awake),
        What::Agree => ring::agree(context, args, &awake),
        What::Failover => failover::failover(context, args, &awake),
        What::Launch => launch::launch(context, args, &awake),
        What::Library => library::library(context, args, &awake),
    }?;
    context.out.tell(&document, || lines("", &Value::Object(document.clone())).join("\n"));
    Ok(exit::OK)
}

/// The device that keeps cores awake, open with a zero written to it, if we may.
struct Awake(Option<File>);

impl Awake {
    fn hold() -> Self {
        let hold = || {
            let mut file = File::options().write(true).open("/dev/cpu_dma_latency")?;
            file.write_all(&0_i32.to_ne_bytes())?;
            Ok::<_, std::io::Error>(file)
        };
        Self(hold().ok())
    }

    fn word(&self) -> &'static str {
        if self.0.is_some() { "held" } else { "not" }
    }
}

/// The DVM that is measured: the one named, or one of its own that ends with the value.
struct Subject {
    place: DvmPlace,
    /// Names of its members whose kernels are on this host.
    members: Vec<String>,
    own: Option<(Fleet, Scratch)>,
}

impl Subject {
    fn new(context: &Context, args: &BenchArgs) -> Result<Self, Failure> {
        if context.global.dvm.is_some() {
            if args.members.is_some() {
                return Err(usage(
                    "--members is for a DVM that the benchmark starts, and --dvm names one that runs",
                ));
            }
            let mut client = context.client_any()?;
            let status = status(&mut client, context.timeout())?;
            let place = client.target().place.clone();
            let live = place.live_members();
            let members: Vec<_> = status
                .members
                .into_iter()
                .map(|member| member.name)
                .filter(|name| live.contains(name))
                .collect();
            return Ok(Self { place, members, own: None });
        }
        let scratch = Scratch::create("bench")?;
        let fleet = bring_up(&ground(context, &scratch)?, &plan(args.members.unwrap_or(MEMBERS)), &|| ())?;
        if let Some(refused) = fleet.failed.first() {
            return Err(refused.failure());
        }
        let members = fleet.started.iter().map(|started| started.member.clone()).collect();
        Ok(Self { place: fleet.place().clone(), members, own: Some((fleet, scratch)) })
    }
}

fn ground(context: &Context, scratch: &Scratch) -> Result<Ground, Failure> {
    let kernel = find_kernel(context.global.kernel.as_deref())?;
    Ok(Ground { runtime: scratch.runtime.clone(), logs: Some(scratch.logs.clone()), kernel })
}

fn plan(members: usize) -> Plan {
    let settings = vec![("chaos".into(), "true".into())];
    Plan { name: Some("bench".into()), members, min: members, settings, ..Plan::default() }
}

/// The head of every document.
fn head(bench: &str, members: usize, awake: &Awake) -> Map<String, Value> {
    object(json!({"bench": bench, "members": members, "cpu_dma_latency": awake.word()}))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => unreachable!("{other} is no object"),
    }
}

/// A document as lines of a path and a value.
fn lines(path: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| {
                lines(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value)
            })
            .collect(),
        value => vec![format!("{path:<32} {}", crate::table::plain(value))],
    }
}
