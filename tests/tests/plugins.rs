//! Plug-ins in processes of their own: agreed or loaded nowhere, and every way to fail told to everybody.

use dvm_tests::cluster::{Cluster, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The result of one member in a transaction's document.
fn result<'a>(document: &'a Value, member: &str) -> &'a Value {
    let results = document["results"].as_array().expect("results");
    results
        .iter()
        .find(|result| result["member"] == member)
        .unwrap_or_else(|| panic!("{member} in {document}"))
}

fn plugin_hosts(cluster: &Cluster) -> Vec<u32> {
    cluster.processes().iter().filter(|process| process.is_plugin_host()).map(|process| process.pid).collect()
}

fn no_plugin_is_left(cluster: &Cluster) {
    for member in cluster.members() {
        let plugins = cluster.ok(&["--member", &member, "plugins"]);
        assert_eq!(plugins["plugins"], json!([]), "at {member}");
    }
    wait_for("no plug-in process is left", || plugin_hosts(cluster).is_empty().then_some(()));
}

/// The value that a member's own instance has, once it has one.
fn value_at(cluster: &Cluster, member: &str) -> i64 {
    wait_for(&format!("an instance answers at {member}"), || {
        let query = cluster.json(&["--member", member, "call", "counter", "{\"get\":true}", "--query"]);
        let reply = (query.exit == 0).then(|| query.json())?;
        (reply["member"] == member).then(|| reply["reply"]["value"].as_i64().expect("a number"))
    })
}

fn add(cluster: &Cluster, steps: i64) -> i64 {
    let reply = cluster.ok(&["call", "counter", &format!("{{\"add\":{steps}}}")]);
    reply["reply"]["value"].as_i64().expect("a number")
}

#[test]
fn what_one_of_five_refuses_is_loaded_nowhere() {
    let cluster = Cluster::up(5, &[]);
    let before = cluster.status(None)["state_hash"].clone();
    let load = cluster.json(&["plugin", "load", "counter", "-c", "refuse_on=[\"k3\"]"]).exits(4).json();
    assert_eq!(load["outcome"], "rejected", "{load}");
    assert_eq!(load["require"], "all");
    let refused = result(&load, "k3");
    assert_eq!(
        (&refused["result"], &refused["stage"], &refused["code"]),
        (&json!("failed"), &json!("validate"), &json!("config")),
        "{load}"
    );
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("refuse_on names k3")), "{load}");
    for member in ["k0", "k1", "k2", "k4"] {
        assert_eq!(result(&load, member)["result"], "ok", "{load}");
    }
    no_plugin_is_left(&cluster);
    let _ = before;
    let events = cluster.equal_events(&cluster.members(), "all");
    let rejected: Vec<_> = events.iter().filter(|event| event["kind"] == "plugin-rejected").collect();
    assert_eq!(rejected.len(), 1, "{events:?}");
    assert_eq!(result(rejected[0], "k3")["stage"], "validate");
    // And for people too.
    let text = cluster.run(&["plugin", "load", "counter", "-c", "refuse_on=[\"k3\"]"]).exits(4);
    let all = format!("{}{}", text.stdout, text.stderr);
    assert!(all.contains("k3") && all.contains("validate") && all.contains("refuse_on names k3"), "{text}");
    // Nothing stands in the way of a better try.
    let load = cluster.ok(&["plugin", "load", "counter"]);
    assert_eq!(load["outcome"], "committed");
    assert_eq!(plugin_hosts(&cluster).len(), 5);
    cluster.verify();
}

#[test]
fn a_dry_run_changes_nothing() {
    let cluster = Cluster::up(3, &[]);
    let good = cluster.json(&["plugin", "load", "counter", "--dry-run"]).exits(0).json();
    assert_eq!((&good["dry_run"], &good["outcome"]), (&json!(true), &json!("committed")), "{good}");
    let bad =
        cluster.json(&["plugin", "load", "counter", "--dry-run", "-c", "refuse_on=[\"k1\"]"]).exits(4).json();
    assert_eq!(bad["outcome"], "rejected", "{bad}");
    no_plugin_is_left(&cluster);
}

#[test]
fn the_rule_decides_with_how_many_it_loads() {
    let cluster = Cluster::up(3, &[]);
    for (rule, refuse, exit) in [
        ("majority", "[\"k0\",\"k1\"]", 4),
        ("at-least:3", "[\"k1\"]", 4),
        ("any", "[\"k0\",\"k1\",\"k2\"]", 4),
        ("majority", "[\"k1\"]", 0),
    ] {
        let load = ["plugin", "load", "counter", "--require", rule, "-c", &format!("refuse_on={refuse}")];
        let _ = cluster.json(&load).exits(exit);
    }
    let plugin = cluster.ok(&["plugin", "show", "counter"]);
    assert_eq!(plugin["state"], "degraded", "{plugin}");
    assert_eq!(add(&cluster, 3), 3);
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    no_plugin_is_left(&cluster);
    for wrong in ["most", "at-least:0", "at-least:x"] {
        let _ = cluster.json(&["plugin", "load", "counter", "--require", wrong]).error("usage", 2);
    }
}

/// A member whose `validate` never ends: time decides.
#[test]
fn a_member_that_hangs_in_validate_is_a_timeout() {
    let cluster = Cluster::up(3, &["--set", "exec_limit_ms=1500"]);
    let load = ["plugin", "load", "counter", "--deadline", "30s", "-c", "hang_on=[\"k2\"]"];
    let load = cluster.json(&load).exits(4).json();
    assert_eq!(result(&load, "k2")["result"], "timeout", "{load}");
    no_plugin_is_left(&cluster);
}

#[test]
fn configure_merges_removes_replaces_and_rolls_back() {
    let cluster = Cluster::up(3, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "start=10", "-c", "step=2"]);
    assert_eq!(add(&cluster, 1), 12);
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=5"]);
    assert_eq!(add(&cluster, 1), 17);
    let config = |cluster: &Cluster| cluster.ok(&["plugin", "show", "counter"])["config"].clone();
    assert_eq!(config(&cluster), json!({"start": 10, "step": 5}));
    for bad in ["refuse_on=[\"k1\"]", "nonsense=1", "step=\"x\""] {
        let refused = cluster.json(&["plugin", "configure", "counter", "-c", bad]).exits(4).json();
        assert_eq!(result(&refused, "k1")["stage"], "validate", "{refused}");
        assert_eq!(config(&cluster), json!({"start": 10, "step": 5}), "{bad}");
        assert_eq!(add(&cluster, 1) % 5, 2, "{bad}");
    }
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step-"]);
    assert_eq!(config(&cluster), json!({"start": 10}));
    let file = cluster.home().join("counter.toml");
    std::fs::write(&file, "step = 7\n").expect("written");
    let _ = cluster.ok(&["plugin", "configure", "counter", "--config", file.to_str().expect("text")]);
    assert_eq!(config(&cluster), json!({"step": 7}));
    let value = add(&cluster, 1);
    for member in cluster.members() {
        assert_eq!(value_at(&cluster, &member), value, "at {member}");
    }
    cluster.verify();
}

#[test]
fn a_joiner_starts_from_anothers_snapshot() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "start=100"]);
    assert_eq!(add(&cluster, 11), 111);
    let _ = cluster.ok(&["add", "--local", "2"]);
    for member in ["k2", "k3"] {
        assert_eq!(value_at(&cluster, member), 111, "at {member}");
    }
    let value = add(&cluster, 1);
    // The first ones leave; what is left has all of it.
    cluster.kill("k0");
    let _ = cluster.ok(&["remove", "k1"]);
    cluster.settle(&["k2", "k3"]);
    assert_eq!(add(&cluster, 1), value + 1);
    cluster.verify();
}

#[test]
fn plugin_processes_end_with_their_kernel() {
    let cluster = Cluster::up(3, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    assert_eq!(plugin_hosts(&cluster).len(), 3);
    cluster.kill("k1");
    wait_for("its plug-in's process ends", || (plugin_hosts(&cluster).len() == 2).then_some(()));
    let _ = cluster.ok(&["remove", "k2"]);
    wait_for("its plug-in's process ends", || (plugin_hosts(&cluster).len() == 1).then_some(()));
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    no_plugin_is_left(&cluster);
    let call = cluster.json(&["call", "counter", "{\"get\":true}"]);
    let _ = call.error("not-found", 6);
}

/// One fault of the counter at k1 of three: told to all, restarted, and the next call works everywhere.
fn fault(fault: &str, expected: &Value) {
    let cluster = Cluster::up(3, &[]);
    let load = ["plugin", "load", "counter", "-c", "faults=true", "--restart", "3/60s", "--deadline", "1s"];
    let _ = cluster.ok(&load);
    assert_eq!(add(&cluster, 5), 5);
    let since = cluster.status(None)["index"].to_string();
    // Asked through another member, which answers for itself.
    let command = format!("{{\"fail\":\"{fault}\",\"on\":\"k1\"}}");
    let _ = cluster.ok(&["--member", "k0", "call", "counter", &command]);
    let restarted = ["instance-restarted"; 1];
    wait_for("the instance is restarted", || {
        let told = cluster.run(&["--json-lines", "events", "--since", &since, "--kind", "instance-"]);
        told.lines().iter().any(|event| event["kind"] == restarted[0]).then_some(())
    });
    assert_eq!(add(&cluster, 2), 7);
    for member in cluster.members() {
        assert_eq!(value_at(&cluster, &member), 7, "at {member}");
    }
    let events = cluster.equal_events(&cluster.members(), &since);
    let failed: Vec<_> = events.iter().filter(|event| event["kind"] == "instance-failed").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert_eq!((&failed[0]["plugin"], &failed[0]["member"]), (&json!("counter"), &json!("k1")));
    for (field, value) in expected.as_object().expect("fields") {
        assert_eq!(&failed[0][field], value, "{field} in {}", failed[0]);
    }
    assert_eq!(cluster.members().len(), 3, "no kernel is lost to a plug-in");
    cluster.verify();
}

#[test]
fn a_panic_is_told() {
    fault("panic", &json!({"cause": "panic"}));
}

#[test]
fn an_exit_is_told_with_its_code() {
    fault("exit", &json!({"cause": "exit", "exit_code": 3}));
}

#[test]
fn an_abort_is_told_with_its_signal() {
    fault("abort", &json!({"cause": "signal", "signal": "SIGABRT"}));
}

#[test]
fn a_bad_access_is_told_with_its_signal() {
    fault("segv", &json!({"cause": "signal", "signal": "SIGSEGV"}));
}

#[test]
fn a_recursion_without_end_is_told_with_its_signal() {
    fault("overflow", &json!({"cause": "signal", "signal": "SIGABRT"}));
}

#[test]
fn what_waits_for_ever_is_told_after_its_deadline() {
    fault("hang", &json!({"cause": "hang"}));
}

#[test]
fn an_endless_loop_is_told_after_its_deadline() {
    fault("spin", &json!({"cause": "hang"}));
}

/// Memory that nobody gives back is no failure without a limit.
#[test]
fn a_leak_leaves_everything_running() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "faults=true"]);
    let _ = cluster.ok(&["call", "counter", "{\"fail\":\"leak\",\"on\":\"k1\"}"]);
    assert_eq!(add(&cluster, 1), 1);
    assert_eq!(value_at(&cluster, "k1"), 1);
    let plugin = cluster.ok(&["plugin", "show", "counter"]);
    assert_eq!((&plugin["state"], &plugin["failures"]), (&json!("running"), &json!(0)), "{plugin}");
}

#[test]
fn all_instances_fail_at_once_and_come_back() {
    let cluster = Cluster::up(3, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "faults=true"]);
    assert_eq!(add(&cluster, 4), 4);
    let call = cluster.json(&["--timeout", "20s", "call", "counter", "{\"fail\":\"abort\"}"]);
    assert_ne!(call.exit, 0, "{call}");
    let _ = cluster.ok(&["--timeout", "30s", "wait", "plugin=counter:running"]);
    // Their state was lost with the last of them, or is taken from before; it is the same everywhere.
    let value = add(&cluster, 1);
    for member in cluster.members() {
        assert_eq!(value_at(&cluster, &member), value, "at {member}");
    }
    cluster.verify();
}

#[test]
fn one_that_fails_too_often_stays_failed() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "faults=true", "--restart", "1/60s"]);
    for restarts in 0..2 {
        // What comes while it is down is in the state that it starts again from, and does not end it.
        wait_for("the instance at k1 runs", || {
            let plugin = cluster.ok(&["plugin", "show", "counter"]);
            (plugin["instances"][1]["state"] == "running" && plugin["restarts"] == restarts).then_some(())
        });
        let _ = cluster.ok(&["--member", "k0", "call", "counter", "{\"fail\":\"exit\",\"on\":\"k1\"}"]);
    }
    wait_for("the instance at k1 has failed for good", || {
        let plugin = cluster.ok(&["plugin", "show", "counter"]);
        (plugin["instances"][1]["state"] == "failed" && plugin["state"] == "degraded").then_some(())
    });
    assert_eq!(add(&cluster, 1), 1);
    // A call through the member without an instance is answered by another, or refused; never left hanging.
    let call = cluster.json(&["--member", "k1", "--timeout", "10s", "call", "counter", "{\"get\":true}"]);
    assert!(matches!(call.exit, 0 | 1), "{call}");
    cluster.verify();
}

#[test]
fn a_killed_instance_is_told_and_restarted() {
    let cluster = Cluster::up(3, &["--set", "chaos=true"]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let _ = cluster.ok(&["chaos", "kill", "--plugin", "counter", "--on", "k2"]);
    let failed = wait_for("it is told", || {
        let told = cluster.run(&["--json-lines", "events", "--kind", "instance-failed"]).lines();
        told.into_iter().next()
    });
    assert_eq!(
        (&failed["member"], &failed["cause"], &failed["signal"]),
        (&json!("k2"), &json!("signal"), &json!("SIGKILL"))
    );
    let host = |cluster: &Cluster| {
        let plugin = cluster.ok(&["plugin", "show", "counter"]);
        let found =
            plugin["instances"].as_array().expect("instances").iter().find(|i| i["member"] == "k0").cloned();
        found.and_then(|found| found["pid"].as_u64()).filter(|pid| *pid != 0).map(|pid| pid as u32)
    };
    let pid = wait_for("an instance at k0", || host(&cluster));
    signal(pid, Signal::KILL);
    wait_for("another process runs it", || host(&cluster).filter(|now| *now != pid && lives(*now)));
    assert_eq!(add(&cluster, 1), 1);
    cluster.verify();
}

#[test]
fn an_error_of_the_plugin_is_its_reply() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let refused = cluster.json(&["call", "counter", "{\"fail\":\"panic\"}"]).exits(1).json();
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("faults are off")), "{refused}");
    for wrong in ["{\"add\":\"x\"}", "{\"nonsense\":1}", "[]", "{}"] {
        let refused = cluster.json(&["call", "counter", wrong]).exits(1).json();
        assert!(refused["reply"].is_null(), "{refused}");
    }
    let _ = cluster.json(&["call", "counter", "{not json"]).error("usage", 2);
    assert_eq!(add(&cluster, 1), 1);
    cluster.verify();
}

#[test]
fn a_second_load_of_a_name_is_refused_and_another_name_is_fine() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let again = cluster.json(&["plugin", "load", "counter"]);
    assert!(matches!(again.exit, 1 | 4), "{again}");
    let _ = cluster.ok(&["plugin", "load", "counter", "--name", "second", "-c", "start=50"]);
    assert_eq!(add(&cluster, 1), 1);
    assert_eq!(cluster.ok(&["call", "second", "{\"add\":1}"])["reply"]["value"], 51);
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    assert_eq!(cluster.ok(&["call", "second", "{\"get\":true}"])["reply"]["value"], 51);
    let _ = cluster.json(&["plugin", "unload", "counter"]).error("not-found", 6);
    let _ = cluster.json(&["plugin", "configure", "counter", "-c", "step=1"]).error("not-found", 6);
    let _ = cluster.json(&["plugin", "show", "counter"]).error("not-found", 6);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_all() {
    let cluster = Cluster::up(3, &[]);
    for wrong in ["nonsense=1", "step=\"x\"", "refuse_on=5"] {
        let load = cluster.json(&["plugin", "load", "counter", "-c", wrong]).exits(4).json();
        assert_eq!(load["outcome"], "rejected", "{load}");
        let results = load["results"].as_array().expect("results");
        assert_eq!(results.len(), 3, "{load}");
        assert!(results.iter().all(|result| result["stage"] == "validate"), "{load}");
        assert!(results.iter().all(|r| r["reason"].as_str().is_some_and(|r| !r.is_empty())), "{load}");
    }
    assert_eq!(cluster.ok(&["plugins"])["plugins"], json!([]));
    cluster.verify();
}

/// What cannot happen leaves nothing but an empty entry, and a repeat of what did happen is still answered.
#[test]
fn what_is_about_no_plugin_is_refused_before_it_is_ordered() {
    let cluster = Cluster::up(2, &[]);
    for command in [&["unload", "nobody"][..], &["configure", "nobody", "-c", "step=1"]] {
        let text = cluster.json(&[&["plugin"], command].concat()).error("not-found", 6);
        assert!(text.contains("`nobody`") && text.contains("dvm plugins"), "{text}");
    }
    let kinds = cluster.ok(&["history", "--from", "1"])["entries"].clone();
    let kinds: Vec<_> = kinds.as_array().expect("entries").iter().map(|e| e["kind"].clone()).collect();
    assert!(!kinds.contains(&json!("transaction")), "{kinds:?}");
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let unload =
        |member: &str| cluster.ok(&["--id", "once", "--member", member, "plugin", "unload", "counter"]);
    let first = unload("k0");
    let again = unload("k1");
    assert_eq!((&first["transaction"], &again["outcome"]), (&again["transaction"], &json!("committed")));
}

#[test]
fn an_instance_that_uses_more_processor_time_than_it_may_is_ended_and_starts_again() {
    let cluster = Cluster::up(2, &[]);
    let load = ["plugin", "load", "counter", "-c", "faults=true", "--limit", "cpu=1s", "--deadline", "60s"];
    let _ = cluster.ok(&load);
    assert_eq!(add(&cluster, 3), 3);
    let _ = cluster.ok(&["--member", "k0", "call", "counter", r#"{"fail":"spin","on":"k1"}"#]);
    let failed = wait_for("it is ended and started again", || {
        let events =
            cluster.json(&["--json-lines", "events", "--since", "all", "--kind", "instance-"]).lines();
        let failed = events.iter().find(|event| event["kind"] == "instance-failed").cloned()?;
        events.iter().any(|event| event["kind"] == "instance-restarted").then_some(failed)
    });
    assert_eq!((&failed["cause"], &failed["member"]), (&json!("cpu-limit"), &json!("k1")), "{failed}");
    assert!(failed["detail"].as_str().is_some_and(|text| text.contains("1000 are allowed")), "{failed}");
    assert_eq!(add(&cluster, 1), 4);
    assert_eq!(value_at(&cluster, "k1"), 4);
    cluster.verify();
}

/// What a plug-in's process is given, and what becomes of what it says.
#[test]
fn a_process_has_its_own_descriptors_leaves_no_core_and_speaks_in_the_log() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "faults=true"]);
    for pid in plugin_hosts(&cluster) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
        let mut open: Vec<_> = open
            .map(|entry| {
                let target = std::fs::read_link(entry.path()).unwrap_or_default().display().to_string();
                let kind = target.split(':').next().expect("a word").to_owned();
                (entry.file_name().into_string().expect("a number"), kind)
            })
            .collect();
        open.sort();
        let words: Vec<_> = open.iter().map(|(number, kind)| (number.as_str(), kind.as_str())).collect();
        // The last is its library, by which what reads the process's maps finds it.
        assert_eq!(
            words,
            [("0", "/dev/null"), ("1", "pipe"), ("2", "pipe"), ("3", "socket"), ("4", "/memfd")]
        );
    }
    // A panic is said on standard error, by Rust itself.
    let _ = cluster.ok(&["--member", "k0", "call", "counter", r#"{"fail":"panic","on":"k1"}"#]);
    let told = wait_for("it is in the log", || {
        let logs = cluster.run(&["logs", "k1", "--plugin", "counter"]).exits(0).stdout;
        logs.lines()
            .find(|line| line.contains("a panic was asked for") && line.contains(" plugin: "))
            .map(str::to_owned)
    });
    for field in ["plugin=\"counter\"", "member=\"k1\"", "rank=1", "pid="] {
        assert!(told.contains(field), "{field} in {told}");
    }
}

#[test]
fn an_instance_that_holds_more_memory_than_it_may_is_ended_and_starts_again() {
    let cluster = Cluster::up(2, &[]);
    let load = ["plugin", "load", "counter", "-c", "faults=true", "--limit", "memory=160M"];
    let _ = cluster.ok(&load);
    let _ = cluster.ok(&["call", "counter", r#"{"add":3}"#]);
    for _ in 0..3 {
        let _ = cluster.json(&["call", "counter", r#"{"fail":"leak","on":"k1"}"#]);
    }
    let failed = || {
        let events = cluster.json(&["--json-lines", "events", "--since", "all", "--kind", "instance-"]);
        let events = events.lines();
        let failed = events.iter().find(|event| event["kind"] == "instance-failed").cloned()?;
        events.iter().any(|event| event["kind"] == "instance-restarted").then_some(failed)
    };
    let failed = wait_for("it is ended and started again", failed);
    assert_eq!((&failed["cause"], &failed["member"]), (&json!("memory-limit"), &json!("k1")), "{failed}");
    assert!(failed["detail"].as_str().is_some_and(|text| text.contains("160 are allowed")), "{failed}");
    let reply = cluster.ok(&["--member", "k1", "call", "counter", r#"{"add":1}"#]);
    assert_eq!(reply["reply"]["value"], 4);
    let text = cluster.json(&["plugin", "load", "counter", "--limit", "disk=1G"]).error("usage", 2);
    assert!(text.contains("memory=512M"), "{text}");
}

/// The process of each instance, by member, as one member tells them.
fn instance_pids(cluster: &Cluster, through: &str) -> Vec<u32> {
    let plugin = cluster.ok(&["--member", through, "plugin", "show", "counter"]);
    let instances = plugin["instances"].as_array().expect("instances").iter();
    instances
        .map(|instance| instance["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid"))
        .collect()
}

#[test]
fn every_member_knows_the_processes_of_all_instances() {
    let cluster = Cluster::up(3, &["--set", "chaos=true", "--set", "silence_ms=60000"]);
    let load = cluster.ok(&["plugin", "load", "counter"]);
    for through in ["k0", "k1", "k2"] {
        let _ = cluster.ok(&["--member", through, "wait", &format!("index={}", load["index"])]);
        let mut told = instance_pids(&cluster, through);
        told.sort_unstable();
        let mut hosts = plugin_hosts(&cluster);
        hosts.sort_unstable();
        assert_eq!(told, hosts, "through {through}");
    }
    let instance = instance_pids(&cluster, "k0")[2];
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{instance}/stat")).expect("it runs");
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let paused = cluster.ok(&["chaos", "pause", "k2", "--with-plugins"]);
    assert_eq!(paused["paused"].as_array().map(Vec::len), Some(2), "{paused}");
    wait_for("the instance is stopped", || stopped().then_some(()));
    let resumed = cluster.ok(&["chaos", "resume", "k[1-2]", "--with-plugins"]);
    assert_eq!(resumed["resumed"].as_array().map(Vec::len), Some(4), "{resumed}");
    wait_for("the instance goes on", || (!stopped()).then_some(()));
    cluster.settle(&["k0", "k1", "k2"]);
}
