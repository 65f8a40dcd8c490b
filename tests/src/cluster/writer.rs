//! A client that writes without pause, and remembers what was acknowledged.

use super::ground::Cluster;
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, FailureCode, Operation, Request};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// How long one write may take.
const WRITE: Duration = Duration::from_secs(15);

/// Writes `writer/NAME/NUMBER`, each key once, until it is stopped. It remembers what was acknowledged as confirmed: a
/// provisional write may be lost to a healing.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Writer {
    /// Starts one that talks to `member` first, and to others when its kernel is lost.
    #[must_use]
    pub fn start(cluster: &Cluster, name: &str, member: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let target = Target { prefer: Some(member.into()), ..Target::new(cluster.place(), "writer") };
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || write(target, &name, &stopped));
        Self { stop, thread }
    }

    /// Stops it; the keys that were acknowledged.
    ///
    /// # Panics
    /// When a write was refused for another reason than a lost kernel.
    #[must_use]
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer did not panic")
    }
}

fn write(target: Target, name: &str, stop: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut client = Client::connect(target).expect("a kernel");
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("writer/{name}/{number:06}");
        let put = Operation::Put { key: key.clone(), value: json!(number) };
        let request = Request::StateTransaction { conditions: vec![], then: vec![put], otherwise: vec![] };
        match client.request(request, None, Some(WRITE)) {
            Ok(Answer::Done { receipt: Some(receipt), .. }) if receipt.label == "confirmed" => {
                acknowledged.push(key);
            }
            Ok(Answer::Done { .. }) => {}
            Ok(other) => panic!("a put is answered with {other:?}"),
            // Nobody was promised anything; or a provisional write is lost, and nothing of this one was done.
            Err(failure)
                if matches!(
                    failure.code,
                    FailureCode::Unknown | FailureCode::NoDvm | FailureCode::PartitionLost
                ) => {}
            Err(failure) => panic!("{key}: {failure:?}"),
        }
        // Two cores carry all kernels of this test and of others.
        sleep(Duration::from_millis(1));
    }
    acknowledged
}

/// How often each key below `prefix` was changed, by the events as `member` tells them. The history would not do: an entry
/// that a client sent again stands in it twice and takes effect once.
///
/// # Panics
/// When the events do not tell.
#[must_use]
pub fn key_changes(cluster: &Cluster, member: &str, prefix: &str) -> BTreeMap<String, usize> {
    let told = cluster.run(&["--json-lines", "--member", member, "events", "--kind", "key-changed"]).exits(0);
    let mut changes = BTreeMap::new();
    for event in told.lines() {
        let key = event["key"].as_str().expect("a key");
        if key.starts_with(prefix) {
            *changes.entry(key.to_owned()).or_default() += 1;
        }
    }
    changes
}
