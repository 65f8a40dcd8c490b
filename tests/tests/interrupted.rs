//! Work that a fault cuts short: the agreement, the join, the client's stream, the command itself.

use dvm_tests::cluster::{Cluster, Ground, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

/// A member dies while a load is executed: the others decide without it, and all know the same end.
#[test]
fn a_member_dies_while_a_load_is_executed() {
    // Which one: the one that executes longest, the one that asked, another one.
    for victim in ["k3", "k0", "k2"] {
        let cluster = Cluster::up(4, &["--set", "exec_limit_ms=8000"]);
        let load = [
            "--json",
            "--member",
            "k0",
            "plugin",
            "load",
            "counter",
            "--deadline",
            "30s",
            "-c",
            "hang_on=[\"k3\"]",
        ];
        let load = cluster.start(&load);
        wait_for("the load is being executed", || {
            let status = cluster.status(Some("k1"));
            (status["transactions"][0]["phase"] == "executing").then_some(())
        });
        cluster.kill(victim);
        let rest: Vec<_> = ["k0", "k1", "k2", "k3"].into_iter().filter(|member| *member != victim).collect();
        cluster.settle(&rest);
        let load = load.wait_with_output().expect("the load ends");
        wait_for("no transaction is open", || {
            let open = rest.iter().any(|member| cluster.status(Some(member))["transactions"] != json!([]));
            (!open).then_some(())
        });
        let events = cluster.equal_events(&rest, "all");
        let loaded = kinds(&events).contains(&"plugin-loaded");
        assert_ne!(loaded, kinds(&events).contains(&"plugin-rejected"), "one outcome: {events:?}");
        assert_eq!(
            loaded,
            victim == "k3",
            "k3 never answers: while it lives the load is rejected in the end"
        );
        let told = load.status.code();
        assert!(matches!((loaded, told), (true, Some(0 | 5)) | (false, Some(4 | 5))), "{victim}: {load:?}");
        let hosts = || cluster.processes().iter().filter(|process| process.is_plugin_host()).count();
        wait_for("as many instances as the outcome says", || {
            (hosts() == if loaded { 3 } else { 0 }).then_some(())
        });
        cluster.verify();
    }
}

/// A kernel that joins dies, or is told to stop, in the middle of it: nobody else notices more than that.
#[test]
fn a_joiner_dies_in_the_middle() {
    let cluster = Cluster::up(3, &[]);
    for delay in [0, 5, 10, 20, 40] {
        let add = cluster.start(&["--json", "add", "--local", "1"]);
        let begin = Instant::now();
        let joiner = wait_for("its kernel is started", || {
            let known: Vec<_> = ["k0", "k1", "k2"].map(|member| cluster.pid(member)).into();
            let kernels = cluster.processes().into_iter().filter(|process| {
                process.arguments.iter().any(|argument| argument == "--detached")
                    && !known.contains(&process.pid)
            });
            kernels
                .map(|process| process.pid)
                .next()
                .or((begin.elapsed() > Duration::from_secs(5)).then_some(0))
        });
        let until = Instant::now() + Duration::from_millis(delay);
        while Instant::now() < until {}
        if joiner != 0 && lives(joiner) {
            signal(joiner, Signal::KILL);
        }
        let _ = add.wait_with_output().expect("add ends");
        cluster.settle(&["k0", "k1", "k2"]);
        let _ = cluster.ok(&["state", "put", "a", "1"]);
        cluster.verify();
    }
    let added = cluster.ok(&["add", "--local", "1"]);
    assert_eq!(added["failed"], json!([]), "{added}");
    cluster.verify();
}

/// A follower whose kernel is killed goes on at another one: every event once, in order.
#[test]
fn a_follower_goes_on_at_another_kernel() {
    let cluster = Cluster::up(4, &[]);
    let mut follow = cluster.start(&["--json-lines", "state", "watch", "seen/", "--since", "all"]);
    let told = follow.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(told).lines().map_while(Result::ok);
        lines.map(|line| serde_json::from_str::<Value>(&line).expect("JSON")).collect::<Vec<_>>()
    });
    let write = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let _ = cluster.ok(&["--member", "k3", "state", "put", &format!("seen/{number}"), "1"]);
        }
    };
    write(0..20);
    // The first kernel of the list is the one talked to, and after it the next.
    cluster.kill("k0");
    write(20..40);
    cluster.kill("k1");
    write(40..60);
    let _ = cluster.ok(&["halt"]);
    let events = reader.join().expect("the reader did not panic");
    let status = follow.wait().expect("it ends");
    let changes = events.iter().filter(|event| event["kind"] == "key-changed");
    let keys: Vec<_> = changes.map(|event| event["key"].as_str().expect("a key").to_owned()).collect();
    let wanted: Vec<_> = (0..60).map(|number| format!("seen/{number}")).collect();
    assert_eq!(keys, wanted);
    assert_eq!(status.code(), Some(0), "the DVM ended in order");
}

/// When no kernel is left the follower says so, and ends with 3.
#[test]
fn a_follower_of_a_lost_dvm_ends_with_3() {
    let cluster = Cluster::up(2, &[]);
    let mut follow = cluster.start(&["--json-lines", "events", "--follow"]);
    let mut told = BufReader::new(follow.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let reader = std::thread::spawn(move || (told.next(), told));
    // It begins with what comes next, so it listens once it has told of a change.
    wait_for("it listens", || {
        let _ = cluster.ok(&["config", "set", "--member", "k0", "a=b"]);
        reader.is_finished().then_some(())
    });
    let (first, told) = reader.join().expect("it reads");
    assert!(first.is_some(), "it told nothing: {:?}", follow.wait());
    for member in ["k0", "k1"] {
        cluster.kill(member);
    }
    let last: Value = serde_json::from_str(&told.last().expect("a line")).expect("JSON");
    assert_eq!(follow.wait().expect("it ends").code(), Some(3), "{last}");
    assert_eq!((&last["kind"], &last["index"]), (&json!("detached"), &Value::Null), "{last}");
    let _ = cluster.json(&["status"]).error("no-dvm", 3);
    let list = cluster.ok(&["list"]);
    assert!(list["dvms"].as_array().is_some_and(|dvms| dvms.iter().all(|dvm| dvm["live"] != true)), "{list}");
}

/// A write with `--id` whose kernel dies before it answered, typed again: it takes effect once.
#[test]
fn a_repeat_with_the_same_id_after_a_kill_takes_effect_once() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=500"]);
    for round in 0..3 {
        let id = format!("round-{round}");
        let line = ["--json", "--id", &id, "call", "counter", "{\"add\":1}"];
        if round == 0 {
            let _ = cluster.ok(&["plugin", "load", "counter"]);
        }
        let victim = cluster.members().pop().expect("a member");
        let mut first = cluster.start(&[&["--member", victim.as_str()], &line[..]].concat());
        cluster.kill(&victim);
        let _ = first.wait().expect("it ends");
        let again = cluster.run(&line).exits(0).json();
        assert_eq!(again["reply"]["value"], round + 1, "{again}");
        let _ = cluster.ok(&["add", "--local", "1"]);
    }
    assert_eq!(cluster.ok(&["call", "counter", "{\"get\":true}"])["reply"]["value"], 3);
    cluster.verify();
}

#[test]
fn a_stopped_kernel_is_removed_by_force() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=60000"]);
    let pid = cluster.pid("k1");
    signal(pid, Signal::STOP);
    let remove = cluster.json(&["--timeout", "20s", "remove", "k1", "--force"]);
    let _ = remove.exits(0);
    cluster.settle(&["k0", "k2"]);
    wait_for("its process is gone", || (!lives(pid)).then_some(()));
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    cluster.verify();
}

#[test]
fn a_dvm_with_a_stopped_kernel_is_halted_by_force() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=60000"]);
    signal(cluster.pid("k1"), Signal::STOP);
    let halt = cluster.json(&["--timeout", "1s", "halt"]);
    assert!(matches!(halt.exit, 1 | 5), "{halt}");
    assert!(halt.stdout.contains("--force"), "{halt}");
    let _ = cluster.ok(&["halt", "--force"]);
    cluster.assert_empty();
}

#[test]
fn a_dvm_whose_kernels_are_all_stopped_is_not_waited_for_for_ever() {
    let cluster = Cluster::up(2, &[]);
    for member in ["k0", "k1"] {
        signal(cluster.pid(member), Signal::STOP);
    }
    let text = cluster.json(&["--timeout", "1s", "status"]).error("no-dvm", 3);
    assert!(text.contains("stopped"), "{text}");
    for member in ["k0", "k1"] {
        signal(cluster.pid(member), Signal::CONT);
    }
    cluster.settle(&["k0", "k1"]);
    cluster.verify();
}

/// All that answer end. The one that does not is named at once and not waited for.
#[test]
fn halt_names_a_stopped_kernel_and_ends_the_others() {
    let cluster = Cluster::up(3, &[]);
    let stopped = cluster.pid("k1");
    signal(stopped, Signal::STOP);
    let begin = Instant::now();
    let halt = cluster.json(&["halt"]);
    let text = halt.error("failure", 1);
    assert!(text.contains(&format!("k1 (process {stopped}, stopped)")), "{text}");
    assert!(text.contains("dvm halt --force") && !text.contains("k0"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let kernels = cluster.processes().into_iter().filter(|process| !process.is_plugin_host());
    assert_eq!(kernels.map(|process| process.pid).collect::<Vec<_>>(), [stopped]);
    let begin = Instant::now();
    let text = cluster.json(&["halt"]).error("no-dvm", 3);
    assert!(text.contains("stopped") && text.contains("dvm halt --force"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let _ = cluster.ok(&["halt", "--force"]);
    cluster.assert_empty();
}

/// Whoever types Ctrl-C while a DVM comes up has none afterwards, or all of it.
#[test]
fn up_is_interrupted() {
    for (delay, with) in [(10, Signal::INT), (30, Signal::INT), (60, Signal::TERM), (20, Signal::KILL)] {
        let ground = Ground::new();
        let mut up = ground.start(&["up", "--local", "6"]);
        let until = Instant::now() + Duration::from_millis(delay);
        while Instant::now() < until {}
        if up.try_wait().expect("a child").is_none() {
            signal(up.id(), with);
        }
        let _ = up.wait().expect("it ends");
        // What is there can be seen and ended.
        wait_for("nothing is left, or a DVM that answers", || {
            let status = ground.json(&["--timeout", "2s", "status"]);
            (status.exit == 0 || status.exit == 3 && ground.processes().is_empty()).then_some(())
        });
        let _ = ground.run(&["halt", "--force"]);
        ground.assert_empty();
    }
}

/// Two changes of one plug-in at a time: the later one is refused as busy, and says so.
#[test]
fn one_open_transaction_a_plugin() {
    let cluster = Cluster::up(2, &["--set", "exec_limit_ms=3000"]);
    let first = cluster.start(&[
        "--json",
        "plugin",
        "load",
        "counter",
        "--deadline",
        "30s",
        "-c",
        "hang_on=[\"k1\"]",
    ]);
    wait_for("the load is being executed", || {
        (cluster.status(None)["transactions"][0]["phase"] == "executing").then_some(())
    });
    let second = cluster.json(&["plugin", "load", "counter"]);
    assert_eq!(second.exit, 4, "{second}");
    assert!(second.stdout.contains("busy") || second.stdout.contains("open"), "{second}");
    assert_eq!(first.wait_with_output().expect("it ends").status.code(), Some(4));
    let _ = cluster.ok(&["plugin", "load", "counter"]);
}
