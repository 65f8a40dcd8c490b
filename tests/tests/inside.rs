//! Plug-ins inside the kernel: the same as in processes of their own, as far as a thread can be.

use dvm_plugin_api::local::{Answer, Request, TransactionKind};
use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, Ground, built, has, lives, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Loads the counter inside the kernels.
fn load(cluster: &Cluster, how: &[&str]) -> Value {
    cluster.ok(&[&["plugin", "load", "counter", "--placement", "kernel"], how].concat())
}

fn unload(cluster: &Cluster, plugin: &str) {
    let _ = cluster.ok(&["plugin", "unload", plugin]);
}

fn add(cluster: &Cluster, steps: i64) -> Value {
    cluster.ok(&["call", "counter", &json!({ "add": steps }).to_string()])["reply"]["value"].clone()
}

/// The value that a member's own instance has, once it has one.
fn value_at(cluster: &Cluster, member: &str) -> Value {
    wait_for(&format!("an instance answers at {member}"), || {
        let query = cluster.json(&["--member", member, "call", "counter", r#"{"get":true}"#, "--query"]);
        let reply = (query.exit == 0).then(|| query.json())?;
        (reply["member"] == member).then(|| reply["reply"]["value"].clone())
    })
}

/// What a member tells of its own kernel, once it is as it should be.
fn status_when(cluster: &Cluster, member: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("{what} at {member}"), || {
        let status = cluster.status(Some(member));
        holds(&status).then_some(status)
    })
}

/// How often each image in a member's kernel was opened.
fn opened(status: &Value) -> Vec<u64> {
    let resident = status["resident"].as_array().expect("images").iter();
    resident.map(|image| image["opened"].as_u64().expect("a number")).collect()
}

/// The names of the threads of a member's kernel.
fn threads(cluster: &Cluster, member: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", cluster.pid(member))).expect("it runs");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| Some(name(task.ok()?)?.trim().to_owned())).collect()
}

fn counters(cluster: &Cluster, member: &str) -> usize {
    threads(cluster, member).iter().filter(|name| *name == "plugin-counter").count()
}

fn no_process_holds_a_plugin(cluster: &Cluster) {
    assert!(cluster.processes().iter().all(|process| !process.is_plugin_host()));
}

/// The result of one member in a transaction's document.
fn result<'a>(document: &'a Value, member: &str) -> &'a Value {
    let results = document["results"].as_array().expect("results");
    results.iter().find(|result| result["member"] == member).expect("a result of every member")
}

#[test]
fn it_is_loaded_called_configured_handed_over_and_unloaded() {
    let cluster = Cluster::up(2, &[]);
    let refused = ["plugin", "load", "counter", "--placement", "kernel", "-c", r#"refuse_on=["k1"]"#];
    let refused = cluster.json(&refused).exits(4).json();
    assert_eq!(result(&refused, "k1")["stage"], "validate", "{refused}");
    for member in ["k0", "k1"] {
        wait_for("no thread is left of it", || (counters(&cluster, member) == 0).then_some(()));
    }
    let _ = load(&cluster, &["-c", "start=10", "-c", "step=2"]);
    assert_eq!(add(&cluster, 3), 16);
    let plugin = cluster.ok(&["plugin", "show", "counter"]);
    for (at, member) in ["k0", "k1"].into_iter().enumerate() {
        let instance = &plugin["instances"][at];
        assert_eq!(
            (&instance["placement"], &instance["pid"]),
            (&json!("kernel"), &json!(cluster.pid(member)))
        );
        assert_eq!(counters(&cluster, member), 1, "at {member}");
    }
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=5"]);
    assert_eq!(add(&cluster, 1), 21);
    let refused = cluster.json(&["plugin", "configure", "counter", "-c", "nonsense=1"]).exits(4).json();
    assert_eq!(result(&refused, "k1")["stage"], "validate", "{refused}");
    let _ = cluster.ok(&["add", "--local", "1"]);
    assert_eq!(value_at(&cluster, "k2"), 21, "a joiner has another's state");
    assert_eq!(add(&cluster, 1), 26);
    for member in cluster.members() {
        assert_eq!(value_at(&cluster, &member), 26, "at {member}");
    }
    no_process_holds_a_plugin(&cluster);
    cluster.verify();
    unload(&cluster, "counter");
    for member in cluster.members() {
        wait_for("its thread ends", || (counters(&cluster, &member) == 0).then_some(()));
        let status = status_when(&cluster, &member, "an image", |status| opened(status).len() == 1);
        assert_eq!(status["quarantined"], json!([]), "at {member}");
    }
}

#[test]
fn an_image_stays_and_is_used_again() {
    if !has(&["cc"], "a plug-in that tells of its image") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    let library = cluster.plugin(&root().join("tests/programs/starts.c"), "starts", &[]);
    let library = library.to_str().expect("text");
    for (placement, starts) in [("kernel", 1), ("kernel", 2), ("process", 1), ("kernel", 3)] {
        let _ = cluster.ok(&["plugin", "load", library, "--placement", placement]);
        assert_eq!(cluster.ok(&["call", "starts", "{}"])["reply"]["starts"], starts, "{placement}");
        unload(&cluster, "starts");
    }
    let status = status_when(&cluster, "k0", "an image", |status| opened(status) == [3]);
    let check = cluster.ok(&["plugin", "check", library]);
    assert_eq!(status["resident"][0], json!({"plugin": "starts", "hash": check["hash"], "opened": 3}));
    let text = cluster.run(&["status"]).exits(0);
    assert!(text.stdout.contains("resident in k0: starts"), "{text}");
}

/// One fault at k1 of two: told to all, started again, and the next call works everywhere.
fn fault(fault: &str, quarantined: usize) {
    let cluster = Cluster::up(2, &[]);
    let _ = load(&cluster, &["-c", "faults=true", "--deadline", "1s"]);
    assert_eq!(add(&cluster, 5), 5);
    let kernels = [cluster.pid("k0"), cluster.pid("k1")];
    let since = cluster.status(None)["index"].to_string();
    let command = json!({"fail": fault, "on": "k1"}).to_string();
    let _ = cluster.ok(&["--member", "k0", "call", "counter", &command]);
    wait_for("the instance is restarted", || {
        let told = cluster.run(&["--json-lines", "events", "--since", &since, "--kind", "instance-"]);
        told.lines().iter().any(|event| event["kind"] == "instance-restarted").then_some(())
    });
    assert_eq!(add(&cluster, 2), 7);
    for member in ["k0", "k1"] {
        assert_eq!(value_at(&cluster, member), 7, "at {member}");
    }
    let events = cluster.equal_events(&["k0", "k1"], &since);
    let failed: Vec<_> = events.iter().filter(|event| event["kind"] == "instance-failed").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert_eq!((&failed[0]["member"], &failed[0]["cause"]), (&json!("k1"), &json!(fault)));
    assert_eq!([cluster.pid("k0"), cluster.pid("k1")], kernels, "no kernel is lost");
    let hangs = |status: &Value| status["quarantined"].as_array().map(Vec::len) == Some(quarantined);
    let status = status_when(&cluster, "k1", "what hangs", hangs);
    let _ = status_when(&cluster, "k0", "nothing hangs", |status| {
        opened(status) == [1] && status["quarantined"] == json!([])
    });
    if quarantined > 0 {
        assert_eq!(status["quarantined"][0]["plugin"], "counter", "{status}");
        assert_eq!(counters(&cluster, "k1"), 1 + quarantined, "the old one and the new");
        let text = cluster.run(&["--member", "k1", "status"]).exits(0);
        assert!(text.stdout.contains("quarantined in k1: a thread of counter"), "{text}");
    }
    cluster.verify();
    // What hangs does not keep its kernel from leaving.
    let kernel = cluster.pid("k1");
    let _ = cluster.ok(&["remove", "k1"]);
    wait_for("the kernel ends", || (!lives(kernel)).then_some(()));
}

#[test]
fn a_panic_ends_the_instance_alone() {
    fault("panic", 0);
}

#[test]
fn what_hangs_is_abandoned_and_told_of() {
    fault("hang", 1);
}

#[test]
fn what_hangs_before_it_runs_is_a_timeout_and_is_told_of() {
    let cluster = Cluster::up(1, &["--set", "exec_limit_ms=1500"]);
    let hangs = ["plugin", "load", "counter", "--placement", "kernel", "-c", r#"hang_on=["k0"]"#];
    let load = cluster.json(&hangs).exits(4).json();
    assert_eq!(result(&load, "k0")["result"], "timeout", "{load}");
    let told = |status: &Value| status["quarantined"].as_array().map(Vec::len) == Some(1);
    let _ = status_when(&cluster, "k0", "what hangs", told);
    let _ = self::load(&cluster, &[]);
    assert_eq!(add(&cluster, 1), 1);
}

#[test]
fn a_standby_takes_over_from_a_kernel_that_is_killed_and_an_upgrade_hands_the_state_over() {
    let cluster = Cluster::up(4, &[]);
    for mode in ["hot", "warm"] {
        let _ = load(&cluster, &["--mode", mode]);
        assert_eq!(add(&cluster, 7), 7);
        let show = || cluster.ok(&["plugin", "show", "counter"]);
        let primary = || wait_for("a primary", || show()["primary"].as_str().map(str::to_owned));
        let first = primary();
        cluster.kill(&first);
        wait_for("another primary", || (primary() != first).then_some(()));
        assert_eq!(add(&cluster, 1), 8, "{mode}");
        let newer = cluster.home().join(format!("{mode}.so"));
        let mut library = fs::read(built("libcounter.so")).expect("it is readable");
        library.extend_from_slice(mode.as_bytes());
        fs::write(&newer, library).expect("there is room");
        let _ = cluster.ok(&["plugin", "upgrade", "counter", newer.to_str().expect("text")]);
        assert_eq!(add(&cluster, 1), 9, "{mode}");
        no_process_holds_a_plugin(&cluster);
        cluster.verify();
        unload(&cluster, "counter");
    }
}

/// A member that the others go on without must not act; when it comes back, its instance has their state.
#[test]
fn a_kernel_that_is_left_out_drops_its_instances() {
    let cluster =
        Cluster::up(3, &["--set", "chaos=true", "--set", "silence_ms=400", "--partition", "quorum"]);
    let _ = load(&cluster, &[]);
    assert_eq!(add(&cluster, 1), 1);
    let _ = status_when(&cluster, "k0", "an image", |status| opened(status) == [1]);
    let _ = cluster.ok(&["chaos", "cut", "k0/k1,k2"]);
    cluster.settle(&["k1", "k2"]);
    let reply = cluster.ok(&["--member", "k1", "call", "counter", r#"{"add":4}"#]);
    assert_eq!(reply["reply"]["value"], 5);
    let _ = cluster.ok(&["chaos", "heal"]);
    cluster.settle(&["k0", "k1", "k2"]);
    assert_eq!(value_at(&cluster, "k0"), 5);
    // Another instance of the same image, and the old one is gone.
    let _ = status_when(&cluster, "k0", "the same image", |status| opened(status) == [2]);
    wait_for("the old thread ends", || (counters(&cluster, "k0") == 1).then_some(()));
    cluster.verify();
}

#[test]
fn a_plugin_in_c_is_loaded_inside_a_kernel_too() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let library = cluster.plugin(&root().join("plugins/counter-c/counter.c"), "counter", &[]);
    let library = library.to_str().expect("text");
    assert_eq!(cluster.ok(&["plugin", "check", library])["warnings"], json!([]));
    let _ = cluster.ok(&["plugin", "load", library, "--placement", "kernel", "-c", "step=3"]);
    assert_eq!(add(&cluster, 2), 6);
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=1"]);
    let _ = cluster.ok(&["add", "--local", "1"]);
    assert_eq!(value_at(&cluster, "k2"), 6);
    assert_eq!(add(&cluster, 1), 7);
    let logs = cluster.run(&["logs", "k1", "--plugin", "counter"]).exits(0);
    assert!(logs.stdout.contains("a counter on k1, one of 2"), "{logs}");
    no_process_holds_a_plugin(&cluster);
    cluster.verify();
}

/// The example again, from a project of its own, with panics that end the process.
fn aborting(ground: &Ground) -> PathBuf {
    let mut new = ground.dvm(&["plugin", "new", "aborting"]);
    new.current_dir(ground.home());
    let _ = ground.finish(new).exits(0);
    let project = ground.home().join("aborting");
    let target = built("dvm").ancestors().nth(2).expect("target/PROFILE/dvm").to_path_buf();
    let mut cargo = Command::new("cargo");
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO")) {
        if variable != "CARGO_HOME" {
            cargo.env_remove(variable);
        }
    }
    // What is not the project's own as this workspace compiles it, so that most of it is there already.
    cargo.args(["rustc", "--offline", "--lib", "--target-dir"]).arg(&target);
    for setting in ["\"*\".opt-level=2", "\"*\".debug=false", "dvm-plugin-api.opt-level=0"] {
        cargo.args(["--config", &format!("profile.dev.package.{setting}")]);
    }
    cargo.args(["--", "-C", "panic=abort"]).current_dir(&project);
    // It takes as long as it takes to compile.
    let output = cargo.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/libaborting.so")
}

#[test]
fn what_would_end_the_kernel_or_cannot_be_limited_is_refused() {
    let cluster = Cluster::up(1, &[]);
    let library = aborting(&cluster);
    let library = library.to_str().expect("text");
    let check = cluster.ok(&["plugin", "check", library]);
    assert!(check["warnings"][0].as_str().is_some_and(|text| text.contains("panic=abort")), "{check}");
    let load = ["plugin", "load", library, "--placement", "kernel"];
    let load = cluster.json(&load).exits(4).json();
    let refused = result(&load, "k0");
    assert_eq!((&refused["stage"], &refused["code"]), (&json!("check"), &json!("abi")), "{load}");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("panic=unwind")), "{load}");
    assert_eq!(cluster.status(Some("k0"))["resident"], json!([]));
    let _ = cluster.ok(&["plugin", "load", library, "--placement", "process"]);
    let limited = ["plugin", "load", "counter", "--placement", "kernel", "--limit", "memory=1G"];
    let text = cluster.json(&limited).error("usage", 2);
    assert!(text.contains("--limit") && text.contains("--placement process"), "{text}");
}

/// `CYCLES=2000` makes it as many.
#[test]
fn hundreds_of_loads_leave_neither_threads_nor_descriptors() {
    let cycles = std::env::var("CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(200_u64);
    let cluster = Cluster::up(1, &[]);
    // The first one sends the library, too.
    let _ = load(&cluster, &[]);
    unload(&cluster, "counter");
    let check = cluster.ok(&["plugin", "check", built("libcounter.so").to_str().expect("text")]);
    let load = json!({
        "name": "counter", "version": "0.1.0", "payload": "msgpack", "hash": check["hash"], "size": check["size"],
        "mode": "parallel", "placement": "kernel", "config": {}, "restart_times": 3, "restart_window_ms": 60_000,
        "deadline_ms": 5_000, "stateless": false,
    });
    let load = TransactionKind::Load(serde_json::from_value(load).expect("all that a load needs"));
    let mut client = cluster.client("k0");
    let mut transact = |kind: TransactionKind| {
        let request = Request::Transact { kind, require: None, dry_run: false };
        match client.request(request, None, Some(Duration::from_secs(30))).expect("it is decided") {
            Answer::Transaction(document) => assert_eq!(document.outcome, "committed", "{document:?}"),
            other => panic!("{other:?}"),
        }
    };
    let mut cycle = || {
        transact(load.clone());
        transact(TransactionKind::Unload { plugin: "counter".into() });
    };
    let figures = || {
        wait_for("its threads end", || (counters(&cluster, "k0") == 0).then_some(()));
        let descriptors = fs::read_dir(format!("/proc/{}/fd", cluster.pid("k0"))).expect("it runs").count();
        (threads(&cluster, "k0").len(), descriptors)
    };
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid("k0"))).expect("it runs");
        status.lines().find(|line| line.starts_with("VmRSS")).expect("a line").to_owned()
    };
    (0..9).for_each(|_| cycle());
    let (before, held) = (figures(), memory());
    (0..cycles).for_each(|_| cycle());
    // A connection, or a thread that waits for more work, may have come or gone.
    wait_for(&format!("no more than {before:?} are left"), || {
        let (threads, descriptors) = figures();
        (threads <= before.0 + 2 && descriptors <= before.1 + 2).then_some(())
    });
    let _ = status_when(&cluster, "k0", "one image", |status| opened(status) == [cycles + 10]);
    eprintln!("{cycles} loads: {before:?}, {held}, then {:?}, {}", figures(), memory());
}

#[test]
fn one_that_is_ended_by_request_is_started_again() {
    let cluster = Cluster::up(2, &["--set", "chaos=true"]);
    let _ = load(&cluster, &[]);
    assert_eq!(add(&cluster, 3), 3);
    let _ = cluster.ok(&["chaos", "kill", "--plugin", "counter", "--on", "k1"]);
    wait_for("it is started again", || {
        let told = cluster.run(&["--json-lines", "events", "--since", "all", "--kind", "instance-"]);
        told.lines().iter().any(|event| event["kind"] == "instance-restarted").then_some(())
    });
    assert_eq!(add(&cluster, 1), 4);
    assert_eq!(value_at(&cluster, "k1"), 4);
}

/// A library that the loader refuses leaves nothing in the kernel, however often it is tried.
#[test]
fn what_the_loader_refuses_leaves_no_descriptor() {
    if !has(&["cc"], "a plug-in that lacks a symbol") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    let source = cluster.home().join("lacking.c");
    let versions = root().join("tests/programs/versions.c");
    let text = format!(
        "#include \"{}\"\nint mpi_thing(void);\nextern int (*const lacking)(void);\n\
         int (*const lacking)(void) = mpi_thing;\n",
        versions.display()
    );
    fs::write(&source, text).expect("written");
    let library = cluster.plugin(&source, "lacking", &[]);
    let library = library.to_str().expect("text");
    let held = || fs::read_dir(format!("/proc/{}/fd", cluster.pid("k0"))).expect("it runs").count();
    let try_it = || {
        let refused = cluster.json(&["plugin", "load", library, "--placement", "kernel"]).exits(4).json();
        assert!(refused["results"][0]["reason"].as_str().expect("text").contains("mpi_thing"), "{refused}");
    };
    try_it();
    let before = held();
    (0..10).for_each(|_| try_it());
    wait_for("as many descriptors as before", || (held() <= before).then_some(()));
}
