//! A plug-in loaded, called and unloaded again and again in a DVM of real kernels, and what its kernels hold meanwhile.
//!
//! Whatever a load takes must be given back: descriptors, threads, processes, memory. History, sessions and replies fill up
//! to their limits first, so those are set low and what comes before is a warm-up.

use crate::cluster::{Cluster, built, wait_for};
use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{Answer, Load, Request, TransactionKind};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// Cycles until a kernel holds all it will hold: its history is full then.
pub const WARM: usize = 500;

/// Descriptors and threads of a kernel that come and go: connections of members and clients, threads that are kept for a
/// while. Less than what a short run of cycles would leave behind.
pub const SLACK: usize = 12;

/// How long one step of a cycle may take.
const STEP: Duration = Duration::from_secs(60);

/// Entries of history that kernels keep: few, so that the history is full after the warm-up.
const HISTORY: &str = "history_entries=256";

/// Bytes of a library in one request.
const PART: usize = 1 << 20;

/// What a kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// The member.
    pub member: String,
    /// Its open descriptors.
    pub descriptors: usize,
    /// Its threads.
    pub threads: usize,
    /// Resident memory, KiB.
    pub rss_kib: u64,
    /// Its share of resident memory, KiB.
    pub pss_kib: u64,
}

/// A DVM and the plug-in that comes and goes.
#[derive(Debug)]
pub struct Soak {
    cluster: Cluster,
    members: Vec<String>,
    clients: Vec<Client>,
    load: Load,
    /// Cycles so far.
    done: usize,
}

impl Soak {
    /// A DVM of so many members, and the counter, which is to run in a process of its own (`process`) or inside the
    /// kernels (`kernel`).
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(members: usize, placement: &str) -> Self {
        let cluster = Cluster::up(members, &["--set", HISTORY]);
        let members = cluster.members();
        let mut clients: Vec<_> = members.iter().map(|member| cluster.client(member)).collect();
        let load = Load { placement: placement.into(), ..give_counter(&cluster, &mut clients) };
        Self { cluster, members, clients, load, done: 0 }
    }

    /// So many cycles, each through the next member: load, a command, unload.
    ///
    /// # Panics
    /// When one of them is refused.
    pub fn cycle(&mut self, times: usize) {
        for _ in 0..times {
            let through = self.done % self.clients.len();
            let client = &mut self.clients[through];
            let plugin = self.load.name.clone();
            transact(client, TransactionKind::Load(Box::new(self.load.clone())));
            let command = json!({"add": 3});
            let call = Request::Call { plugin: plugin.clone(), command, query: false, fresh: false };
            match client.request(call, None, Some(STEP)) {
                Ok(Answer::Reply { reply: Ok(reply), .. }) => assert_eq!(reply["value"], 3, "a new instance"),
                other => panic!("cycle {}: {other:?}", self.done),
            }
            transact(client, TransactionKind::Unload { plugin });
            self.done += 1;
        }
    }

    /// What each kernel holds, once no plug-in's process is left.
    ///
    /// # Panics
    /// When one stays.
    #[must_use]
    pub fn gauges(&self) -> Vec<Gauge> {
        wait_for("no process of a plug-in", || {
            self.cluster.processes().iter().all(|process| !process.is_plugin_host()).then_some(())
        });
        self.members.iter().map(|member| gauge(member, self.cluster.pid(member))).collect()
    }

    /// What each kernel holds, once it holds no more descriptors and threads than `before`.
    ///
    /// # Panics
    /// When it does not come to that.
    #[must_use]
    pub fn gauges_as(&self, before: &[Gauge]) -> Vec<Gauge> {
        let within = |(now, before): (&Gauge, &Gauge)| {
            now.descriptors <= before.descriptors + SLACK && now.threads <= before.threads + SLACK
        };
        let mut now = self.gauges();
        let what = format!("descriptors and threads as they were: {before:#?}");
        wait_for(&what, || {
            now = self.gauges();
            let ended = now.iter().zip(before).all(within);
            if !ended {
                eprintln!("now {now:?}");
            }
            ended.then_some(())
        });
        now
    }
}

/// Gives the counter's library to these kernels, and to no other; the load of it.
///
/// # Panics
/// When one does not take it.
pub fn give_counter(cluster: &Cluster, clients: &mut [Client]) -> Load {
    let path = built("libcounter.so");
    let checked = cluster.ok(&["plugin", "check", path.to_str().expect("a path of letters")]);
    let text = |key: &str| checked[key].as_str().expect("it is in the report").to_owned();
    let size = checked["size"].as_u64().expect("it is in the report");
    let load = Load::of(text("name"), text("version"), text("payload"), text("hash"), size);
    let bytes = fs::read(path).expect("a library");
    for client in clients {
        for (number, part) in bytes.chunks(PART).enumerate() {
            let (hash, offset) = (load.hash.clone(), (number * PART) as u64);
            let put = Request::PutBlob { hash, size, offset, data: part.to_vec() };
            client.request(put, None, Some(STEP)).expect("a part is taken");
        }
    }
    load
}

fn transact(client: &mut Client, kind: TransactionKind) {
    match client.request(Request::Transact { kind, require: None, dry_run: false }, None, Some(STEP)) {
        Ok(Answer::Transaction(document)) if document.outcome == "committed" => {}
        other => panic!("{other:?}"),
    }
}

fn gauge(member: &str, pid: u32) -> Gauge {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("its kernel runs").count();
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its kernel runs");
    let kib = |field: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(field)).expect("the system tells it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let (descriptors, threads) = (count("fd"), count("task"));
    Gauge { member: member.into(), descriptors, threads, rss_kib: kib("Rss:"), pss_kib: kib("Pss:") }
}

/// As JSON.
#[must_use]
pub fn report(gauges: &[Gauge]) -> Value {
    let most = |of: fn(&Gauge) -> u64| gauges.iter().map(of).max().unwrap_or_default();
    json!({
        "descriptors": most(|gauge| gauge.descriptors as u64),
        "threads": most(|gauge| gauge.threads as u64),
        "rss_kib": most(|gauge| gauge.rss_kib),
        "pss_kib": most(|gauge| gauge.pss_kib),
    })
}
