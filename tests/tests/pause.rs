//! A kernel that is stopped for longer than the others wait: they go on without it, it comes back as a new incarnation.

use dvm_tests::cluster::{Cluster, key_changes, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A member's entry in `members`.
fn member(cluster: &Cluster, name: &str) -> Option<Value> {
    let members = cluster.ok(&["--member", "k0", "members"]);
    members["members"].as_array().expect("members").iter().find(|member| member["name"] == name).cloned()
}

/// The process of the counter's instance at a member, if it runs.
fn instance(cluster: &Cluster, name: &str) -> Option<u32> {
    let plugin = cluster.ok(&["--member", "k0", "plugin", "show", "counter"]);
    let instances = plugin["instances"].as_array().expect("instances");
    let found = instances.iter().find(|instance| instance["member"] == name)?;
    // The number is 0 until the instance itself has reported it.
    let pid = found["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    (found["state"] == "running" && pid != 0).then_some(pid)
}

/// Stops k2 for `pause` after everybody else has noticed, with a put sent through it meanwhile.
fn pause(options: &[&str], pause: Duration) {
    let cluster = Cluster::up(4, options);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let _ = cluster.ok(&["call", "counter", "{\"add\":5}"]);
    let before = member(&cluster, "k2").expect("a member")["id"].clone();
    let old_instance = wait_for("an instance at k2", || instance(&cluster, "k2"));

    let begin = Instant::now();
    signal(cluster.pid("k2"), Signal::STOP);
    let put = cluster.start(&["--json", "--member", "k2", "state", "put", "paused/key", "1"]);
    cluster.settle(&["k0", "k1", "k3"]);
    let _ = cluster.ok(&["--member", "k0", "state", "put", "others/key", "1"]);
    let _ = cluster.ok(&["--member", "k0", "call", "counter", "{\"add\":2}"]);
    wait_for("the pause is over", || (begin.elapsed() >= pause).then_some(()));
    signal(cluster.pid("k2"), Signal::CONT);

    let suspected = ["--json-lines", "--member", "k0", "events", "--kind", "member-suspected"];
    let told = cluster.run(&suspected).exits(0).lines();
    assert!(told.iter().any(|event| event["member"] == "k2" && event["index"].is_null()), "{told:?}");

    let put = put.wait_with_output().expect("the put ends");
    cluster.settle(&["k0", "k1", "k2", "k3"]);
    let after = member(&cluster, "k2").expect("a member")["id"].clone();
    assert_ne!(after, before, "it is a new incarnation");
    let new_instance = wait_for("an instance at k2", || instance(&cluster, "k2"));
    assert_ne!(new_instance, old_instance);
    assert!(!lives(old_instance), "the old incarnation's instance is gone");

    let written = cluster.ok(&["state", "put", "end", "1"])["index"].to_string();
    for member in ["k0", "k1", "k2", "k3"] {
        let _ = cluster.ok(&["--member", member, "wait", &format!("index={written}"), "--timeout", "30s"]);
        let times = key_changes(&cluster, member, "paused/").get("paused/key").copied().unwrap_or(0);
        let held = cluster.json(&["--member", member, "state", "get", "paused/key"]).exit == 0;
        assert_eq!(held, times == 1, "at {member}: {times} changes");
        assert!(times == 1 || !put.status.success(), "{member} lost an acknowledged put");
        assert!(times == 0 || put.status.code() != Some(1), "{member} holds a put that failed");
        assert_eq!(cluster.ok(&["--member", member, "state", "get", "others/key"])["value"], 1);
        let value = cluster.ok(&["--member", member, "call", "counter", "{\"get\":true}", "--query"]);
        assert_eq!(value["reply"]["value"], 7, "at {member}");
    }
    cluster.verify();
}

#[test]
fn a_paused_kernel_comes_back_as_a_new_incarnation() {
    pause(&["--set", "silence_ms=300"], Duration::from_secs(2));
}

#[test]
fn a_kernel_paused_for_five_seconds_with_the_default_settings_too() {
    pause(&[], Duration::from_secs(5));
}

/// A pause shorter than what the others wait changes nothing: same incarnation, and the put succeeds.
#[test]
fn a_short_pause_is_waited_for() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=8000"]);
    let before = member(&cluster, "k1").expect("a member")["id"].clone();
    let put = {
        signal(cluster.pid("k1"), Signal::STOP);
        let put = cluster.start(&["--json", "--member", "k1", "state", "put", "a", "1"]);
        let begin = Instant::now();
        wait_for("the pause is over", || (begin.elapsed() >= Duration::from_millis(700)).then_some(()));
        signal(cluster.pid("k1"), Signal::CONT);
        put.wait_with_output().expect("the put ends")
    };
    assert!(put.status.success(), "{put:?}");
    assert_eq!(member(&cluster, "k1").expect("a member")["id"], before);
    cluster.verify();
}
