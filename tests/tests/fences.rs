//! Effects on the outside: a primary appends to a shared file that refuses lower fences, while kernels are killed, stopped,
//! cut off and healed under it.

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, FailureCode, Request};
use dvm_tests::cluster::{Cluster, built, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long one command may take.
const CALL: Duration = Duration::from_secs(15);

/// A client that has words appended without pause; what was acknowledged as confirmed: the word and its index.
struct Author {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, u64>>,
}

impl Author {
    fn start(cluster: &Cluster, name: &str, member: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let target = Target { prefer: Some(member.into()), ..Target::new(cluster.place(), "author") };
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || write(target, &name, &stopped));
        Self { stop, thread }
    }

    fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the author did not panic")
    }
}

fn write(target: Target, name: &str, stop: &AtomicBool) -> BTreeMap<String, u64> {
    let mut acknowledged = BTreeMap::new();
    let mut client = Client::connect(target).expect("a kernel");
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let word = format!("{name}-{number}");
        let command = json!({"append": word});
        let request = Request::Call { plugin: "ledger".into(), command, query: false, fresh: false };
        match client.request(request, None, Some(CALL)) {
            Ok(Answer::Reply { reply: Ok(reply), receipt: Some(receipt), .. }) => {
                if receipt.label == "confirmed" {
                    acknowledged.insert(word, reply["index"].as_u64().expect("an index"));
                }
            }
            // Nobody was promised anything, or a provisional branch was lost.
            Err(failure)
                if matches!(
                    failure.code,
                    FailureCode::Unknown
                        | FailureCode::NoDvm
                        | FailureCode::NoQuorum
                        | FailureCode::PartitionLost
                        | FailureCode::Failure
                ) => {}
            other => panic!("{word}: {other:?}"),
        }
        // Two cores carry all kernels of this test and of others.
        std::thread::sleep(Duration::from_millis(5));
    }
    acknowledged
}

/// What befalls the primary's member, by turns.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Its kernel is killed; another member comes.
    Kill,
    /// Its kernel is stopped until the others have left it out. Its plug-in's process runs on, and must not act.
    StopKernel,
    /// Both are stopped: what the process was about to do, it does when it goes on.
    StopBoth,
    /// The plug-in's process is stopped, and ended for not answering.
    StopPlugin,
    /// It is cut off, and healed.
    Cut,
    /// It hears nobody, while others hear it.
    CutOneWay,
    /// The plug-in's process is killed.
    KillPlugin,
}

const FAULTS: [Fault; 8] = [
    Fault::StopBoth,
    Fault::Kill,
    Fault::Cut,
    Fault::StopKernel,
    Fault::StopBoth,
    Fault::KillPlugin,
    Fault::CutOneWay,
    Fault::StopPlugin,
];

fn primary(cluster: &Cluster) -> String {
    wait_for("a primary", || cluster.ok(&["plugin", "show", "ledger"])["primary"].as_str().map(str::to_owned))
}

/// The process of a member's instance.
fn plugin_pid(cluster: &Cluster, member: &str) -> u32 {
    let of_member =
        |arguments: &[String]| arguments.windows(3).any(|words| words == ["plugin-host", "ledger", member]);
    wait_for("its process", || {
        cluster.processes().into_iter().find(|one| of_member(&one.arguments)).map(|one| one.pid)
    })
}

fn send(pids: &[u32], what: Signal) {
    for pid in pids.iter().filter(|pid| lives(**pid)) {
        signal(*pid, what);
    }
}

/// Brings it about, and waits until the DVM is whole again.
fn strike(cluster: &Cluster, file: &Path, fault: Fault) {
    let mut members = cluster.members();
    let victim = primary(cluster);
    let rest: Vec<String> = members.iter().filter(|member| **member != victim).cloned().collect();
    match fault {
        Fault::Kill => {
            cluster.kill(&victim);
            cluster.settle(&rest);
            let added = cluster.ok(&["add", "--local", "1"])["members"][0]["name"].clone();
            members = rest;
            members.push(added.as_str().expect("a name").to_owned());
        }
        Fault::StopKernel | Fault::StopBoth => {
            let mut stopped = vec![cluster.pid(&victim)];
            if matches!(fault, Fault::StopBoth) {
                stopped.push(plugin_pid(cluster, &victim));
            }
            send(&stopped, Signal::STOP);
            let before = lines(file).last().map(|line| line.fence);
            cluster.settle(&rest);
            // The new one has begun: what the old one was about to do must be refused from here on.
            let began = || (lines(file).last().map(|line| line.fence) > before).then_some(());
            wait_for("another primary's first effect", began);
            stopped.reverse();
            send(&stopped, Signal::CONT);
        }
        Fault::StopPlugin => {
            let pid = plugin_pid(cluster, &victim);
            send(&[pid], Signal::STOP);
            wait_for("it is ended", || (!lives(pid)).then_some(()));
        }
        Fault::Cut | Fault::CutOneWay => {
            let groups = format!("{victim}/{}", rest.join(","));
            let how: &[&str] = if matches!(fault, Fault::CutOneWay) { &["--one-way"] } else { &[] };
            let _ = cluster.ok(&[&["chaos", "cut", &groups], how].concat());
            let out = || (cluster.status(Some(&rest[0]))["view"]["size"] == rest.len()).then_some(());
            wait_for("it is left out", out);
            let _ = cluster.ok(&["chaos", "heal"]);
        }
        Fault::KillPlugin => {
            let _ = cluster.ok(&["chaos", "kill", "--plugin", "ledger", "--on", &victim]);
        }
    }
    cluster.settle(&members);
}

/// A line of the file.
struct Line {
    fence: u64,
    index: u64,
    word: String,
}

fn lines(file: &Path) -> Vec<Line> {
    let text = fs::read_to_string(file).expect("the file is there");
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let &[fence, index, word] = &words[..] else { panic!("`{line}` is no line") };
        let number = |text: &str| text.parse().expect("a number");
        Line { fence: number(fence), index: number(index), word: word.to_owned() }
    };
    text.lines().map(line).collect()
}

/// Every command that was acknowledged has its effect in the file, under its index; no fence in the file is lower than one
/// before it. `DVM_LONG=1` makes it two minutes.
fn no_effect_is_missing(mode: &str, how: &[&str]) {
    let seconds = if std::env::var_os("DVM_LONG").is_some() { 120 } else { 10 };
    let cluster = Cluster::up(5, &["--set", "chaos=true", "--set", "silence_ms=300"]);
    let (library, file) = (built("libledger.so").display().to_string(), cluster.home().join("ledger"));
    let config = format!("file={}", file.display());
    let load = ["plugin", "load", &library, "--name", "ledger", "--mode", mode, "--only-confirmed"];
    let more = ["--deadline", "1s", "--restart", "1000/60s", "-c", &config, "-c", "think_ms=3"];
    let _ = cluster.ok(&[&load, how, &more].concat());
    let authors = ["k0", "k2", "k4"].map(|member| Author::start(&cluster, member, member));
    wait_for("the first effects", || (file.exists() && lines(&file).len() > 20).then_some(()));
    let begin = Instant::now();
    let mut rounds = 0;
    // At least each once.
    while rounds < FAULTS.len() || begin.elapsed() < Duration::from_secs(seconds) {
        strike(&cluster, &file, FAULTS[rounds % FAULTS.len()]);
        let enough = lines(&file).len() + 10;
        wait_for("effects go on", || (lines(&file).len() >= enough).then_some(()));
        rounds += 1;
    }
    let acknowledged: BTreeMap<String, u64> = authors.into_iter().flat_map(Author::stop).collect();
    wait_for("all effects are made and marked", || {
        let told = cluster.json(&["call", "ledger", "\"undone\""]);
        (told.exit == 0 && told.json()["reply"]["undone"] == 0).then_some(())
    });
    let lines = lines(&file);
    assert!(lines.windows(2).all(|pair| pair[0].fence <= pair[1].fence), "a fence fell");
    let made: BTreeSet<(&str, u64)> = lines.iter().map(|line| (line.word.as_str(), line.index)).collect();
    let missing: Vec<_> =
        acknowledged.iter().filter(|(word, index)| !made.contains(&(word, **index))).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), acknowledged.len());
    let fences: BTreeSet<_> = lines.iter().map(|line| line.fence).collect();
    // Each fault takes the primary away, but those after which the same instance may be promoted again.
    assert!(fences.len() > rounds / 2, "{fences:?} in {rounds} rounds");
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    cluster.verify();
    let (twice, refused) = (lines.len() - made.len(), refusals(&cluster));
    eprintln!(
        "{mode}: {} commands acknowledged in {rounds} rounds, {} lines under {} fences, {twice} twice, {refused} refused",
        acknowledged.len(),
        lines.len(),
        fences.len()
    );
}

/// How often the file refused a lower fence, by the kernels' logs.
fn refusals(cluster: &Cluster) -> usize {
    let logs = fs::read_dir(cluster.logs()).expect("a directory").flatten();
    let texts = logs.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.map(|text| text.matches("is refused").count()).sum()
}

#[test]
fn with_hot_standbys_no_effect_is_missing_and_no_lower_fence_is_accepted() {
    no_effect_is_missing("hot", &["--instances", "3"]);
}

#[test]
fn with_warm_standbys_no_effect_is_missing_and_no_lower_fence_is_accepted() {
    no_effect_is_missing("warm", &["--instances", "2", "--snapshot-every", "50"]);
}
