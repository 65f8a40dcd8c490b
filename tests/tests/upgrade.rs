//! Upgrades: what one member cannot go on with replaces nothing anywhere, and what was tried is what goes on.

use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, has, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// The sum in a version of its own.
fn version(cluster: &Cluster, version: &str, fails: &str) -> PathBuf {
    version_with(cluster, version, fails, 0)
}

/// One whose `start` takes so many milliseconds on k2, and that counts the states that it takes on k1.
fn version_with(cluster: &Cluster, version: &str, fails: &str, slow_ms: u32) -> PathBuf {
    let counts = cluster.home().join("counts");
    let options = [
        format!("-DVERSION=\"{version}\""),
        format!("-DFAILS=\"{fails}\""),
        format!("-DSLOW={slow_ms}"),
        format!("-DCOUNTS=\"{}\"", counts.display()),
    ];
    let name = format!("versions-{version}");
    let source = root().join("tests/programs/versions.c");
    cluster.plugin(&source, &name, &options.each_ref().map(String::as_str))
}

/// How many states were taken on k1 since this was asked last.
fn taken(cluster: &Cluster) -> usize {
    let counts = cluster.home().join("counts");
    let count = fs::read(&counts).map_or(0, |counts| counts.len());
    let _ = fs::remove_file(&counts);
    count
}

fn show(cluster: &Cluster) -> Value {
    cluster.ok(&["plugin", "show", "versions"])
}

/// The process of each instance that runs.
fn pids(cluster: &Cluster, wanted: usize) -> Vec<Value> {
    wait_for("the instances run", || {
        let plugin = show(cluster);
        let instances = plugin["instances"].as_array().expect("instances").iter();
        let running: Vec<_> = instances.filter(|instance| instance["state"] == "running").collect();
        (running.len() == wanted).then(|| running.iter().map(|instance| instance["pid"].clone()).collect())
    })
}

fn add(cluster: &Cluster, more: i64) -> Value {
    cluster.ok(&["call", "versions", &json!({ "add": more }).to_string()])["reply"].clone()
}

#[test]
fn what_fails_on_one_member_leaves_the_present_version_running_everywhere() {
    if !has(&["cc"], "a plug-in in versions") {
        return;
    }
    // Of the member k1 alone, which stands by where there is a primary.
    let cases = [
        ("start", "start", "config", "it does not start on k1"),
        ("restore", "restore", "config", "it does not take the state"),
        ("snapshot", "restore", "config", "it cannot tell its state"),
        ("abort", "restore", "crash", "SIGABRT"),
    ];
    let cluster = Cluster::up(3, &[]);
    let present = version(&cluster, "1.0.0", "");
    let present = present.to_str().expect("text");
    for (mode, placement, wanted) in
        [("parallel", "process", 3), ("hot", "kernel", 2), ("warm", "process", 2)]
    {
        let how =
            ["plugin", "load", present, "--mode", mode, "--placement", placement, "--snapshot-every", "4"];
        // k2 may have joined before k1, and would be the standby then.
        let on = if wanted == 2 { &["--on", "k[0-1]"][..] } else { &[] };
        let _ = cluster.ok(&[&how, on].concat());
        let mut value = 0;
        for _ in 0..8 {
            value += 3;
            assert_eq!(add(&cluster, 3), json!({"value": value, "version": "1.0.0"}), "{mode}");
        }
        let before = pids(&cluster, wanted);
        // A crash inside the kernel would be its end, and a warm standby may not have a state yet.
        let cases = cases.iter().filter(|(fails, ..)| match *fails {
            "abort" => placement == "process" && mode != "warm",
            "restore" | "snapshot" => mode != "warm",
            _ => true,
        });
        for (fails, stage, code, reason) in cases {
            let newer = version(&cluster, "2.0.0", fails);
            let upgrade = ["plugin", "upgrade", "versions", newer.to_str().expect("text"), "--canary", "k0"];
            let refused = cluster.json(&upgrade).exits(4).json();
            let results = refused["results"].as_array().expect("results").iter();
            let failed: Vec<_> = results.filter(|result| result["result"] != "ok").collect();
            assert_eq!(failed.len(), 1, "{mode}, {fails}: {refused}");
            assert_eq!(
                (&failed[0]["member"], &failed[0]["stage"], &failed[0]["code"]),
                (&json!("k1"), &json!(stage), &json!(code)),
                "{mode}, {fails}: {refused}"
            );
            assert!(failed[0]["reason"].as_str().is_some_and(|text| text.contains(reason)), "{refused}");
            value += 1;
            assert_eq!(add(&cluster, 1), json!({"value": value, "version": "1.0.0"}), "{mode}, {fails}");
            assert_eq!((pids(&cluster, wanted), &show(&cluster)["failures"]), (before.clone(), &json!(0)));
        }
        let newer = version(&cluster, "2.0.1", "");
        let _ = cluster.ok(&["plugin", "upgrade", "versions", newer.to_str().expect("text")]);
        assert_eq!(add(&cluster, 1), json!({"value": value + 1, "version": "2.0.1"}), "{mode}");
        assert_eq!(show(&cluster)["failures"], 0, "{mode}");
        cluster.verify();
        let _ = cluster.ok(&["plugin", "unload", "versions"]);
    }
    let events = cluster.equal_events(&cluster.members(), "all");
    assert!(events.iter().all(|event| event["kind"] != "instance-failed"), "{events:?}");
    let left = || cluster.processes().iter().all(|process| !process.is_plugin_host()).then_some(());
    wait_for("nothing is left of what was tried", left);
}

/// While nothing changes the state, the child that has taken it before the vote is the one that goes on: nothing is done
/// after the vote that could fail.
#[test]
fn the_child_that_was_tried_goes_on_if_nothing_has_happened_since() {
    if !has(&["cc"], "a plug-in in versions") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let present = version(&cluster, "1.0.0", "");
    for (mode, placement) in [("parallel", "process"), ("hot", "kernel"), ("parallel", "kernel")] {
        let how =
            ["plugin", "load", present.to_str().expect("text"), "--mode", mode, "--placement", placement];
        let instances: &[&str] = if mode == "hot" { &["--instances", "3"] } else { &[] };
        let _ = cluster.ok(&[&how[..], instances].concat());
        assert_eq!(add(&cluster, 5)["value"], 5);
        let _ = taken(&cluster);
        // A second one would be refused.
        let newer = version(&cluster, "2.0.0", "second");
        let _ = cluster.ok(&["plugin", "upgrade", "versions", newer.to_str().expect("text")]);
        assert_eq!(add(&cluster, 1), json!({"value": 6, "version": "2.0.0"}), "{mode}");
        let _ = pids(&cluster, 3);
        assert_eq!((taken(&cluster), &show(&cluster)["failures"]), (1, &json!(0)), "{mode}, {placement}");
        wait_for("every member knows the processes", || {
            let seen = ["k0", "k1", "k2"].map(|member| {
                let plugin = cluster.ok(&["--member", member, "plugin", "show", "versions"]);
                let instances = plugin["instances"].as_array().expect("instances").iter();
                instances.map(|instance| instance["pid"].as_u64().expect("a process")).collect::<Vec<_>>()
            });
            let lives = |pid: &u64| std::path::Path::new(&format!("/proc/{pid}")).exists();
            (seen[0] == seen[1] && seen[0] == seen[2] && seen[0].iter().all(lives)).then_some(())
        });
        let _ = cluster.ok(&["plugin", "unload", "versions"]);
    }
    cluster.verify();
}

/// Commands between try and commit change the state. A member that does not take the one at the commit fails there, is
/// started again from another member's, and everybody hears of it; nothing is lost.
#[test]
fn a_member_that_does_not_take_the_state_of_the_commit_is_started_again_from_anothers() {
    if !has(&["cc"], "a plug-in in versions") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let present = version(&cluster, "1.0.0", "");
    let _ = cluster.ok(&["plugin", "load", present.to_str().expect("text")]);
    assert_eq!(add(&cluster, 5)["value"], 5);
    let _ = taken(&cluster);
    let newer = version_with(&cluster, "2.0.0", "second", 1_500);
    let newer = newer.to_str().expect("text");
    let sum = std::thread::scope(|scope| {
        let upgraded = scope.spawn(|| cluster.ok(&["plugin", "upgrade", "versions", newer]));
        let mut sum = 5;
        while !upgraded.is_finished() {
            sum += 1;
            assert_eq!(add(&cluster, 1)["value"], sum);
        }
        let _ = upgraded.join().expect("it is committed");
        sum
    });
    let _ = pids(&cluster, 3);
    assert_eq!(add(&cluster, 1), json!({"value": sum + 1, "version": "2.0.0"}));
    let events = cluster.equal_events(&cluster.members(), "all");
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).collect::<Vec<_>>();
    let (failed, again) = (of("instance-failed"), of("instance-restarted"));
    assert_eq!((failed.len(), again.len()), (1, 1), "{events:?}");
    assert_eq!((&failed[0]["member"], &again[0]["member"]), (&json!("k1"), &json!("k1")));
    let detail = failed[0]["detail"].as_str().expect("text");
    assert!(detail.contains("it takes no second state"), "{detail}");
    let state = cluster.ok(&["--member", "k1", "call", "versions", "{}", "--query"]);
    assert_eq!(state["reply"], json!({"value": sum + 1, "version": "2.0.0"}), "k1 has all of it");
    cluster.verify();
}

/// A version that takes the state as it was when it was tried, and on no member the one of the commit. The state is kept, and
/// the version before, or any other that takes it, goes on with it.
#[test]
fn a_version_that_fails_everywhere_after_the_commit_costs_no_state() {
    if !has(&["cc"], "a plug-in in versions") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let present = version(&cluster, "1.0.0", "");
    let present = present.to_str().expect("text");
    let newer = version_with(&cluster, "2.0.0", "large", 2_500);
    let newer = newer.to_str().expect("text");
    for mode in ["parallel", "hot"] {
        let instances: &[&str] = if mode == "parallel" { &[] } else { &["--instances", "3"] };
        let load = [&["plugin", "load", present, "--mode", mode, "--restart", "1/60s"], instances].concat();
        let _ = cluster.ok(&load);
        assert_eq!(add(&cluster, 5)["value"], 5);
        let _ = taken(&cluster);
        std::thread::scope(|scope| {
            let upgraded = scope.spawn(|| cluster.ok(&["plugin", "upgrade", "versions", newer]));
            // It is tried where it starts at once, and waits for k2.
            wait_for("it is tried on k1", || (taken(&cluster) > 0).then_some(()));
            assert_eq!(add(&cluster, 20), json!({"value": 25, "version": "1.0.0"}), "{mode}");
            let _ = upgraded.join().expect("it is committed");
        });
        wait_for("it has failed", || (show(&cluster)["state"] == "failed").then_some(()));
        let _ = cluster.ok(&["plugin", "upgrade", "versions", present]);
        let _ = pids(&cluster, 3);
        assert_eq!(add(&cluster, 1), json!({"value": 26, "version": "1.0.0"}), "{mode}");
        cluster.verify();
        let _ = cluster.ok(&["plugin", "unload", "versions"]);
    }
}
