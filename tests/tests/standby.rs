//! Plug-ins with a primary: what its loss costs, where instances are, and who may act.

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Request};
use dvm_tests::cluster::{Cluster, built, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CALL: Duration = Duration::from_secs(30);

fn load(cluster: &Cluster, how: &[&str]) -> Value {
    cluster.ok(&[&["plugin", "load", "counter"], how].concat())
}

fn show(cluster: &Cluster) -> Value {
    cluster.ok(&["plugin", "show", "counter"])
}

fn primary(cluster: &Cluster) -> String {
    wait_for("a primary", || show(cluster)["primary"].as_str().map(str::to_owned))
}

/// Members of the instances that run, in the order of their ranks.
fn running(cluster: &Cluster) -> Vec<String> {
    let plugin = show(cluster);
    let instances = plugin["instances"].as_array().expect("instances").iter();
    let running = instances.filter(|instance| instance["state"] == "running");
    running.map(|instance| instance["member"].as_str().expect("a name").to_owned()).collect()
}

fn wait_running(cluster: &Cluster, wanted: usize) {
    wait_for("as many instances as are wanted", || (running(cluster).len() == wanted).then_some(()));
}

/// Clients that add 1 without pause.
struct Adders {
    stop: Arc<AtomicBool>,
    /// How often that was acknowledged.
    added: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Adders {
    fn start(cluster: &Cluster, through: &[&str]) -> Self {
        let (stop, added) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |through: &&str| {
            let target = Target { prefer: Some((*through).into()), ..Target::new(cluster.place(), "adder") };
            let (stop, added) = (stop.clone(), added.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(target).expect("a kernel");
                while !stop.load(Ordering::Relaxed) {
                    let (plugin, command) = ("counter".into(), json!({"add": 1}));
                    let request = Request::Call { plugin, command, query: false, fresh: false };
                    match client.request(request, None, Some(CALL)).expect("a command takes effect") {
                        Answer::Reply { reply: Ok(_), .. } => added.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other:?}"),
                    };
                }
            })
        };
        let threads = through.iter().map(start).collect();
        Self { stop, added, threads }
    }

    /// Waits until so many more are acknowledged.
    fn wait_for(&self, more: u64) {
        let enough = self.added.load(Ordering::Relaxed) + more;
        wait_for("more to be added", || (self.added.load(Ordering::Relaxed) >= enough).then_some(()));
    }

    /// Stops them; how often they added.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("it did not panic"));
        self.added.load(Ordering::Relaxed)
    }
}

/// Kernels of primaries are killed one after another while clients add: what was acknowledged is counted, once.
fn primaries_die(mode: &str, how: &[&str]) {
    let cluster = Cluster::up(5, &[]);
    let _ = load(&cluster, &[&["--mode", mode], how].concat());
    let adders = Adders::start(&cluster, &["k0", "k2", "k4"]);
    for _ in 0..3 {
        adders.wait_for(100);
        signal(cluster.pid(&primary(&cluster)), Signal::KILL);
    }
    adders.wait_for(100);
    let added = adders.stop();
    assert!(added > 0);
    assert_eq!(cluster.ok(&["call", "counter", r#"{"get":true}"#])["reply"]["value"], added);
    let events = cluster.json(&["--json-lines", "events", "--since", "all", "--kind", "instance-promoted"]);
    let tokens: Vec<_> =
        events.lines().iter().map(|event| event["fence"].as_u64().expect("a token")).collect();
    assert!(tokens.len() >= 4 && tokens.is_sorted(), "{tokens:?}");
    cluster.verify();
}

#[test]
fn hot_standbys_take_over_and_nothing_is_lost_or_doubled() {
    primaries_die("hot", &["--instances", "3"]);
}

#[test]
fn warm_standbys_take_over_and_nothing_is_lost_or_doubled() {
    primaries_die("warm", &["--instances", "2", "--snapshot-every", "50"]);
}

#[test]
fn a_single_instance_starts_elsewhere_and_nothing_is_lost_or_doubled() {
    primaries_die("single", &["--snapshot-every", "100ms"]);
}

/// The counter as a file of a version of its own.
fn counter_of(version: &str, directory: &Path) -> PathBuf {
    let mut library = std::fs::read(built("libcounter.so")).expect("it is readable");
    let (old, new) = (b"0.1.0", version.as_bytes());
    assert_eq!(old.len(), new.len());
    let places: Vec<_> =
        (0..library.len() - old.len()).filter(|at| library[*at..].starts_with(old)).collect();
    for at in places {
        library[at..at + new.len()].copy_from_slice(new);
    }
    let path = directory.join(format!("counter-{version}.so"));
    std::fs::write(&path, library).expect("there is room");
    path
}

#[test]
fn an_upgrade_under_load_loses_no_command() {
    let cluster = Cluster::up(4, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    for (round, mode) in ["hot", "warm", "parallel"].into_iter().enumerate() {
        let _ = load(&cluster, &["--mode", mode]);
        let adders = Adders::start(&cluster, &["k0", "k3"]);
        adders.wait_for(100);
        let version = format!("0.2.{round}");
        let newer = counter_of(&version, directory.path()).display().to_string();
        let dry = cluster.ok(&["plugin", "upgrade", "counter", &newer, "--dry-run"]);
        assert_eq!((&dry["outcome"], &dry["dry_run"]), (&json!("committed"), &json!(true)));
        assert_eq!(show(&cluster)["version"], "0.1.0");
        let upgraded =
            cluster.ok(&["plugin", "upgrade", "counter", &newer, "--canary", &running(&cluster)[0]]);
        assert_eq!(upgraded["outcome"], "committed", "{upgraded}");
        adders.wait_for(100);
        let added = adders.stop();
        assert_eq!(cluster.ok(&["call", "counter", r#"{"get":true}"#])["reply"]["value"], added, "{mode}");
        assert_eq!(show(&cluster)["version"], version);
        let events = cluster.json(&["--json-lines", "events", "--since", "all", "--kind", "plugin-upgraded"]);
        assert_eq!(events.lines().last().expect("told")["version"], version);
        // A joiner gets the new library.
        let _ = cluster.ok(&["add", "--local", "1"]);
        let _ = cluster.ok(&["plugin", "unload", "counter"]);
    }
}

#[test]
fn what_cannot_be_upgraded_says_why_and_runs_on() {
    let cluster = Cluster::up(2, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let newer = counter_of("0.2.0", directory.path()).display().to_string();
    let none = cluster.json(&["plugin", "upgrade", "counter", &newer]).error("not-found", 6);
    assert!(none.contains("counter"), "{none}");
    let _ = load(&cluster, &["--mode", "hot", "--on", "k0"]);
    let canary = ["plugin", "upgrade", "counter", &newer, "--canary", "k1"];
    let text = cluster.json(&canary).error("not-found", 6);
    assert!(text.contains("k1"), "{text}");
    let text = directory.path().join("text.so");
    std::fs::write(&text, "no library").expect("there is room");
    let refused = cluster.json(&["plugin", "upgrade", "counter", &text.display().to_string()]);
    assert_ne!(refused.exit, 0);
    assert_eq!(show(&cluster)["version"], "0.1.0");
    assert_eq!(cluster.ok(&["call", "counter", r#"{"add":1}"#])["reply"]["value"], 1);
}

#[test]
fn instances_are_where_they_are_asked_for_and_a_lost_one_is_made_up_for() {
    let cluster = Cluster::up(4, &["--tag", "gpu=no"]);
    for member in ["k1", "k2", "k3"] {
        let _ = cluster.ok(&["--member", member, "config", "set", "gpu=yes"]);
    }
    let loaded = load(&cluster, &["--mode", "hot", "--on", "gpu=yes"]);
    assert_eq!(loaded["results"].as_array().map(Vec::len), Some(4), "all members have their say");
    // The first two of them by rank, which is the order in which they joined.
    let [first, second] = &running(&cluster)[..] else { panic!("two instances") };
    let third = ["k1", "k2", "k3"].into_iter().find(|member| member != first && member != second);
    let third = third.expect("one is left").to_owned();
    cluster.kill(first);
    wait_for("the third has the other instance", || {
        (running(&cluster) == [second.as_str(), third.as_str()]).then_some(())
    });
    assert_eq!(&primary(&cluster), second);
    // An orderly leave hands over first.
    let _ = cluster.ok(&["remove", second]);
    assert_eq!(primary(&cluster), third);
    let plugin = show(&cluster);
    assert_eq!((&plugin["state"], &plugin["wanted"]), (&json!("degraded"), &json!(2)));
    // The member without an instance asks the primary for the reply, and agrees to a configuration.
    assert_eq!(cluster.ok(&["--member", "k0", "call", "counter", r#"{"add":2}"#])["member"], third.as_str());
    let configured = cluster.ok(&["--member", "k0", "plugin", "configure", "counter", "-c", "step=10"]);
    assert_eq!(configured["outcome"], "committed");
    let reply = cluster.ok(&["--member", "k0", "call", "counter", r#"{"add":1}"#]);
    assert_eq!(reply["reply"]["value"], 12);
    let _ = cluster.ok(&["--member", "k0", "config", "set", "gpu=yes"]);
    wait_running(&cluster, 2);
    assert_eq!(show(&cluster)["state"], "running");
}

#[test]
fn what_cannot_be_placed_is_refused_and_says_why() {
    let cluster = Cluster::up(2, &[]);
    for (how, wanted) in [
        (&["--mode", "parallel", "--instances", "2"][..], "--on"),
        (&["--mode", "single", "--instances", "2"], "hot or warm"),
        (&["--mode", "hot", "--instances", "0"], "at least 1"),
        (&["--mode", "hot", "--on", "rank:0"], "ranks change"),
    ] {
        let text = cluster.json(&[&["plugin", "load", "counter"], how].concat()).error("usage", 2);
        assert!(text.contains(wanted), "{text}");
    }
    let nowhere = cluster.json(&["plugin", "load", "counter", "--mode", "hot", "--on", "node7"]);
    assert_eq!(nowhere.exit, 6, "{}", nowhere.stdout);
    assert!(nowhere.stdout.contains("no member is one that counter may be on"), "{}", nowhere.stdout);
    for wanted in ["no member `node7`", "members are k0, k1"] {
        assert!(nowhere.stdout.contains(wanted), "{}", nowhere.stdout);
    }
    assert_eq!(cluster.ok(&["plugins"])["plugins"], json!([]));
}

#[test]
fn under_quorum_a_primary_that_is_cut_off_stops_before_the_next_one_replies() {
    let silence = Duration::from_millis(1_000);
    let cluster =
        Cluster::up(5, &["--partition", "quorum", "--set", "chaos=true", "--set", "silence_ms=1000"]);
    let _ = load(&cluster, &["--mode", "hot", "--instances", "3", "--on", "k0,k1,k2"]);
    assert_eq!(primary(&cluster), "k0");
    let before = cluster.ok(&["--member", "k4", "call", "counter", r#"{"add":1}"#]);
    assert_eq!(before["member"], "k0");
    let cut = Instant::now();
    let _ = cluster.ok(&["chaos", "cut", "k0/k1,k2,k3,k4"]);
    let after = cluster.ok(&["--member", "k4", "--timeout", "30s", "call", "counter", r#"{"add":1}"#]);
    assert!(after["member"] == "k1" || after["member"] == "k2", "{after}");
    assert_eq!(after["reply"]["value"], 2);
    assert!(cut.elapsed() >= silence / 2, "the old lease was waited for: {:?}", cut.elapsed());
    // On its side the old primary answers nothing any more.
    let alone = cluster.json(&["--member", "k0", "--timeout", "3s", "call", "counter", r#"{"add":1}"#]);
    assert_eq!(alone.exit, 8, "{}", alone.stdout);
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2", "k3", "k4"]);
    wait_running(&cluster, 3);
    assert_eq!(cluster.ok(&["call", "counter", r#"{"get":true}"#])["reply"]["value"], 2);
    cluster.verify();
}

#[test]
fn only_confirmed_has_no_primary_on_the_provisional_side() {
    let cluster = Cluster::up(5, &["--set", "chaos=true", "--set", "silence_ms=1000"]);
    let _ = load(&cluster, &["--mode", "hot", "--on", "k0,k4", "--only-confirmed"]);
    assert_eq!(primary(&cluster), "k0");
    let _ = cluster.ok(&["chaos", "cut", "k0,k1/k2,k3,k4"]);
    let there = cluster.ok(&["--member", "k2", "--timeout", "30s", "call", "counter", r#"{"add":1}"#]);
    assert_eq!((&there["member"], &there["label"]), (&json!("k4"), &json!("confirmed")), "{there}");
    wait_for("the provisional side has no primary", || {
        let status = cluster.status(Some("k1"));
        let provisional = status["view"]["label"] == "provisional";
        (provisional && status["plugins"][0]["primary"].is_null()).then_some(())
    });
    let here = cluster.json(&["--member", "k1", "--timeout", "2s", "call", "counter", r#"{"add":1}"#]);
    assert_eq!(here.exit, 5, "{}", here.stdout);
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2", "k3", "k4"]);
    assert_eq!(cluster.ok(&["--timeout", "30s", "call", "counter", r#"{"get":true}"#])["reply"]["value"], 1);
}

#[test]
fn a_primary_that_is_stopped_comes_back_as_a_standby() {
    for with_plugins in [false, true] {
        let cluster = Cluster::up(3, &["--set", "chaos=true", "--set", "silence_ms=400"]);
        let _ = load(&cluster, &["--mode", "hot"]);
        let first = primary(&cluster);
        let pause = ["chaos", "pause", &first, "--with-plugins"];
        let _ = cluster.ok(if with_plugins { &pause[..] } else { &pause[..3] });
        let others: Vec<_> = ["k0", "k1", "k2"].into_iter().filter(|member| *member != first).collect();
        let reply =
            cluster.ok(&["--member", others[0], "--timeout", "30s", "call", "counter", r#"{"add":1}"#]);
        assert_ne!(reply["member"], first.as_str());
        let _ = cluster.ok(&["chaos", "resume", &first, "--with-plugins"]);
        cluster.settle(&["k0", "k1", "k2"]);
        let reply = cluster.ok(&["--member", &first, "--timeout", "30s", "call", "counter", r#"{"add":1}"#]);
        assert_eq!(reply["reply"]["value"], 2);
        cluster.verify();
    }
}
