//! Upgrades that are refused: what one member cannot go on with replaces nothing anywhere.

use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, has, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The sum in a version of its own.
fn version(cluster: &Cluster, version: &str, fails: &str) -> PathBuf {
    let options = [format!("-DVERSION=\"{version}\""), format!("-DFAILS=\"{fails}\"")];
    let name = format!("versions-{version}");
    let source = root().join("tests/programs/versions.c");
    cluster.plugin(&source, &name, &options.each_ref().map(String::as_str))
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
        let _ = cluster.ok(&how);
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
