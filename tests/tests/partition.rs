//! The ring is cut: what each side may do under either policy, and how one history comes of two.

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Operation, Request};
use dvm_tests::cluster::{Cluster, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

/// Faults allowed, and short silence, so that a cut is soon noticed.
const CHAOS: [&str; 4] = ["--set", "chaos=true", "--set", "silence_ms=400"];

fn cut_up(kernels: usize, partition: &str) -> Cluster {
    Cluster::up(kernels, &[&CHAOS[..], &["--partition", partition]].concat())
}

/// The phase, label and size of the view that a member is in.
fn view(cluster: &Cluster, member: &str) -> (String, String, u64) {
    let view = cluster.status(Some(member))["view"].clone();
    let word = |field: &str| view[field].as_str().expect("a word").to_owned();
    (word("phase"), word("label"), view["size"].as_u64().expect("a number"))
}

fn wait_view(cluster: &Cluster, member: &str, phase: &str, label: &str, size: u64) {
    let wanted = (phase.to_owned(), label.to_owned(), size);
    wait_for(&format!("{member} in {wanted:?}"), || (view(cluster, member) == wanted).then_some(()));
}

#[test]
fn under_quorum_the_minority_refuses_writes_with_exit_8() {
    let cluster = cut_up(5, "quorum");
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    let _ = cluster.ok(&["chaos", "cut", "k0,k1/k2,k3,k4"]);
    wait_view(&cluster, "k2", "normal", "confirmed", 3);
    wait_for("k0 is blocked", || (view(&cluster, "k0").0 == "blocked").then_some(()));
    for member in ["k0", "k1"] {
        let put = cluster.json(&["--member", member, "--timeout", "5s", "state", "put", "b", "1"]);
        let text = put.error("no-quorum", 8);
        assert!(text.contains("quorum"), "{text}");
        // Reading what is there is allowed.
        assert_eq!(cluster.ok(&["--member", member, "state", "get", "a"])["value"], 1);
    }
    let _ = cluster.ok(&["--member", "k3", "state", "put", "c", "1"]);
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2", "k3", "k4"]);
    for member in ["k0", "k1"] {
        assert_eq!(cluster.ok(&["--member", member, "state", "get", "c"])["value"], 1);
        assert_eq!(cluster.json(&["--member", member, "state", "get", "b"]).exit, 6);
        let _ = cluster.ok(&["--member", member, "state", "put", &format!("back/{member}"), "1"]);
    }
    cluster.verify();
}

#[test]
fn quorum_lost_and_regained_are_told_without_an_index() {
    let cluster = cut_up(3, "quorum");
    let mut follow =
        cluster.start(&["--json-lines", "--member", "k0", "events", "--follow", "--kind", "quorum-"]);
    // Subscribed once the kernel has seen it; a first look at the status of the same kernel comes after that.
    let _ = cluster.status(Some("k0"));
    let _ = cluster.ok(&["chaos", "cut", "k0/k1,k2"]);
    wait_for("k0 is blocked", || (view(&cluster, "k0").0 == "blocked").then_some(()));
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2"]);
    let _ = cluster.ok(&["halt"]);
    let told = follow.stdout.take().expect("piped");
    let told = std::io::read_to_string(told).expect("text");
    let status = follow.wait().expect("it ends");
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["quorum-lost", "quorum-regained"], "{told}");
    assert!(events.iter().all(|event| event["index"].is_null()), "{told}");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn under_survive_both_sides_go_on_and_one_history_stands_after_healing() {
    let cluster = cut_up(5, "survive");
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    let _ = cluster.ok(&["chaos", "cut", "k0,k1/k2,k3,k4"]);
    wait_view(&cluster, "k2", "normal", "confirmed", 3);
    wait_view(&cluster, "k0", "normal", "provisional", 2);
    let lost = cluster.ok(&["--member", "k1", "state", "put", "side/small", "1"]);
    assert_eq!(lost["label"], "provisional", "{lost}");
    let mut application = client(&cluster, "k1");
    put(&mut application, "side/application").expect("acknowledged, provisionally");
    let kept = cluster.ok(&["--member", "k4", "state", "put", "side/large", "1"]);
    assert_eq!(kept["label"], "confirmed", "{kept}");
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2", "k3", "k4"]);
    for member in ["k0", "k1", "k2", "k3", "k4"] {
        assert_eq!(view(&cluster, member).1, "confirmed");
        assert_eq!(
            cluster.ok(&["--member", member, "state", "get", "side/large"])["value"],
            1,
            "at {member}"
        );
        assert_eq!(cluster.json(&["--member", member, "state", "get", "side/small"]).exit, 6, "at {member}");
    }
    cluster.verify();
    // Who was told of the other branch learns that it is gone before anything else is done, once.
    let failure = put(&mut application, "late").expect_err("its branch is lost");
    assert_eq!(failure.code, FailureCode::PartitionLost, "{failure:?}");
    assert_eq!(cluster.json(&["state", "get", "late"]).exit, 6);
    put(&mut application, "late").expect("acknowledged");
    orphaned(&cluster, "side/small");
    for member in ["k0", "k1"] {
        let told = cluster.run(&["--json-lines", "--member", member, "events", "--kind", "partition-lost"]);
        let told = told.exits(0).lines();
        assert_eq!(told.len(), 1, "at {member}: {told:?}");
        assert!(told[0]["index"].is_null() && told[0]["discarded"].as_u64() > Some(0), "{told:?}");
        assert!(told[0]["fork_index"].is_u64() && told[0]["resume_index"].is_u64(), "{told:?}");
        let journal = told[0]["journal"].as_str().expect("a path");
        assert!(std::path::Path::new(journal).is_file(), "{journal}");
    }
    // The journal outlives its kernels.
    let _ = cluster.ok(&["halt"]);
    orphaned(&cluster, "side/small");
}

/// A client that lives on while the DVM changes.
fn client(cluster: &Cluster, member: &str) -> Client {
    let target = Target { prefer: Some(member.into()), ..Target::new(cluster.place(), "test") };
    Client::connect(target).expect("a kernel")
}

fn put(client: &mut Client, key: &str) -> Result<Answer, Failure> {
    let then = vec![Operation::Put { key: key.into(), value: Value::from(1) }];
    let request = Request::StateTransaction { conditions: vec![], then, otherwise: vec![] };
    client.request(request, None, Some(Duration::from_secs(30)))
}

#[test]
fn with_resubmit_the_losers_changes_are_made_again() {
    let cluster =
        Cluster::up(3, &["--set", "chaos=true", "--set", "silence_ms=300", "--set", "merge=resubmit"]);
    let _ = cluster.ok(&["chaos", "cut", "k0,k1/k2"]);
    wait_view(&cluster, "k2", "normal", "provisional", 1);
    for (key, value) in [("side/a", "1"), ("side/b", "2"), ("side/a", "3")] {
        let put = cluster.ok(&["--member", "k2", "state", "put", key, value]);
        assert_eq!(put["label"], "provisional", "{put}");
    }
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2"]);
    wait_for("they stand", || {
        let held = cluster.ok(&["--member", "k0", "state", "list", "side/"])["entries"].clone();
        (held[0]["value"] == 3 && held[1]["value"] == 2).then_some(())
    });
    cluster.verify();
    orphaned(&cluster, "side/b");
}

/// Asserts that the orphan journals tell of a key.
fn orphaned(cluster: &Cluster, key: &str) {
    let orphans = cluster.ok(&["history", "--orphans"]);
    let journals = orphans["journals"].as_array().expect("journals");
    let tells = |journal: &Value| {
        let entries = journal["entries"].as_array().expect("entries");
        entries.iter().any(|entry| entry["detail"]["then"][0]["put"] == key)
    };
    assert!(journals.iter().any(tells), "{orphans}");
}

/// An acknowledged `confirmed` write is never lost to a healing, and no write appears twice.
#[test]
fn a_cut_of_one_against_all_heals_again_and_again() {
    let cluster = cut_up(4, "survive");
    for round in 0..3 {
        let _ = cluster.ok(&["chaos", "cut", "k0,k1,k2/k3"]);
        wait_view(&cluster, "k3", "normal", "provisional", 1);
        wait_view(&cluster, "k0", "normal", "confirmed", 3);
        let key = format!("round/{round}");
        let _ = cluster.ok(&["--member", "k1", "state", "put", &key, "1"]);
        let _ = cluster.ok(&["--member", "k3", "state", "put", &format!("alone/{round}"), "1"]);
        let _ = cluster.ok(&["chaos", "heal"]);
        cluster.settle(&["k0", "k1", "k2", "k3"]);
        assert_eq!(cluster.ok(&["--member", "k3", "state", "get", &key])["value"], 1);
        assert_eq!(cluster.json(&["--member", "k3", "state", "get", &format!("alone/{round}")]).exit, 6);
        cluster.verify();
    }
}

#[test]
fn a_one_way_cut_ends_with_one_view_and_heals() {
    let cluster = cut_up(4, "survive");
    let _ = cluster.ok(&["chaos", "cut", "k1/k0,k2,k3", "--one-way"]);
    let others = ["k0", "k2", "k3"];
    for member in others {
        wait_view(&cluster, member, "normal", "confirmed", 3);
    }
    let _ = cluster.ok(&["--member", "k2", "state", "put", "a", "1"]);
    // It is out, and as long as nobody hears it, it cannot come back; the word to heal reaches it all the same.
    let told = || cluster.json(&["--member", "k1", "--timeout", "1s", "status"]);
    wait_for("k1 is no member", || (told().exit != 0).then_some(()));
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2", "k3"]);
    assert_eq!(cluster.ok(&["--member", "k1", "state", "get", "a"])["value"], 1);
    cluster.verify();
}

#[test]
fn promote_lets_a_minority_go_on_in_a_new_lineage() {
    let cluster = cut_up(3, "quorum");
    let before = cluster.status(None)["dvm"]["lineage"].clone();
    // At once: of two that outlive a third by a moment, the elder is a quorum.
    for pid in ["k0", "k1"].map(|member| cluster.pid(member)) {
        signal(pid, Signal::KILL);
    }
    wait_for("k2 is blocked", || (view(&cluster, "k2").0 == "blocked").then_some(()));
    assert_eq!(cluster.json(&["state", "put", "a", "1"]).exit, 8);
    // Without a terminal nobody can be asked.
    assert_eq!(cluster.json(&["promote"]).exit, 2);
    let _ = cluster.ok(&["promote", "--yes"]);
    wait_view(&cluster, "k2", "normal", "confirmed", 1);
    assert_ne!(cluster.status(None)["dvm"]["lineage"], before);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    cluster.verify();
}

#[test]
fn faults_are_denied_where_they_were_not_asked_for() {
    let cluster = Cluster::up(2, &[]);
    for command in [
        &["chaos", "kill", "k1"][..],
        &["chaos", "cut", "k0/k1"],
        &["chaos", "heal"],
        &["chaos", "pause", "k1"],
    ] {
        let _ = cluster.json(command).error("denied", 7);
    }
    cluster.settle(&["k0", "k1"]);
}

#[test]
fn chaos_kills_pauses_and_resumes() {
    let cluster = cut_up(4, "survive");
    let _ = cluster.ok(&["chaos", "pause", "k3"]);
    cluster.settle(&["k0", "k1", "k2"]);
    let _ = cluster.ok(&["chaos", "resume", "k3"]);
    cluster.settle(&["k0", "k1", "k2", "k3"]);
    let _ = cluster.ok(&["chaos", "kill", "k1,k2"]);
    cluster.settle(&["k0", "k3"]);
    for wrong in ["k0/k9", "k0", "k0/k0,k3", "k0/"] {
        let cut = cluster.json(&["chaos", "cut", wrong]);
        assert!(matches!(cut.exit, 2 | 6), "{cut}");
    }
    cluster.settle(&["k0", "k3"]);
}
