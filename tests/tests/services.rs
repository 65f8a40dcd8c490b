//! Services of the host, in real kernels: each asked for by the plug-in in `tests/services`, and by one in C.

use dvm_plugin_api::local::Request;
use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, has, lives, services_are_answered, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn load(cluster: &Cluster, options: &[&str]) {
    let _ = cluster.ok(&[&["plugin", "load", "services"], options].concat());
}

fn call(cluster: &Cluster, command: &Value) -> Value {
    cluster.ok(&["call", "services", &command.to_string()])
}

/// Has the instance on a member ask for a service.
fn ask(cluster: &Cluster, on: &str, ask: &Value) -> Value {
    call(cluster, &json!({"on": on, "ask": ask}))
}

/// What the instance on a member was answered and told, and its notes.
fn told(cluster: &Cluster, member: &str) -> Option<Value> {
    let query = cluster.json(&["--member", member, "call", "services", r#"{"told":true}"#, "--query"]);
    let reply = (query.exit == 0).then(|| query.json())?;
    (reply["member"] == member).then(|| reply["reply"].clone())
}

/// Waits for a line of what it was told.
fn line(cluster: &Cluster, member: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = || {
        last = told(cluster, member)?;
        last["told"].as_array()?.iter().find(|line| is(line)).cloned()
    };
    let shown = format!("{member} is told {what}");
    wait_for(&shown, found)
}

fn event(cluster: &Cluster, member: &str, kind: &str, key: &str) -> Value {
    line(cluster, member, &format!("{kind} {key}"), |line| {
        line["event"] == kind && line["fields"]["key"] == key
    })
}

/// All that was written to a stream of a process.
fn output(cluster: &Cluster, member: &str, key: &str, stream: &str) -> String {
    let told = told(cluster, member).expect("it answers");
    let lines = told["told"].as_array().expect("lines").clone();
    let of = |line: &&Value| line["fields"]["key"] == key && line["fields"]["stream"] == stream;
    lines.iter().filter(of).map(|line| line["fields"]["text"].as_str().expect("text")).collect()
}

fn error(cluster: &Cluster, member: &str, text: &str) {
    line(cluster, member, text, |line| line["error"].as_str().is_some_and(|error| error.contains(text)));
}

fn answer(cluster: &Cluster, member: &str, answer: &Value) {
    line(cluster, member, &answer.to_string(), |line| line.get("answer") == Some(answer));
}

#[test]
fn what_may_be_asked_when_is_kept_to() {
    let cluster = Cluster::up(2, &[]);
    // `validate` of the plug-in refuses unless it is refused.
    load(&cluster, &[]);
    let refused = line(&cluster, "k0", "that it was too early", |line| line["start"].is_string());
    assert!(refused["start"].as_str().is_some_and(|text| text.contains("not its member's yet")), "{refused}");
    let tried = call(&cluster, &json!({"try": "apply"}));
    assert!(
        tried["reply"].as_str().is_some_and(|text| text.starts_with("apply must come to the same")),
        "{tried}"
    );
    let tried = cluster.ok(&["call", "services", r#"{"try":"query"}"#, "--query"]);
    assert!(
        tried["reply"].as_str().is_some_and(|text| text.starts_with("query must come to the same")),
        "{tried}"
    );
    ask(&cluster, "k0", &json!({"call": {"plugin": "services", "command": {"note": 1}}}));
    error(&cluster, "k0", "would wait for itself");
    ask(
        &cluster,
        "k0",
        &json!({"call-by-thread": {"plugin": "services", "command": {"note": "by a thread"}}}),
    );
    for member in ["k0", "k1"] {
        wait_for("the reply is noted", || {
            (told(&cluster, member)?["notes"] == json!(["by a thread", 1])).then_some(())
        });
    }
    ask(&cluster, "k0", &json!({"done": {"index": 1}}));
    error(&cluster, "k0", "not told to be the primary");
}

#[test]
fn messages_broadcasts_and_calls_come_to_those_they_are_for() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "start=10"]);
    let message = |from: &str, body: &str| {
        let fields = json!({"from": from, "body": {"text": body}});
        json!({"event": "message", "placed": false, "fields": fields})
    };
    for (from, to) in [("k0", "k1"), ("k2", "k1"), ("k1", "k1")] {
        ask(&cluster, from, &json!({"send": {"member": to, "body": {"text": format!("from {from}")}}}));
        let wanted = message(from, &format!("from {from}"));
        line(&cluster, to, "a message", |line| *line == wanted);
    }
    for other in ["k0", "k2"] {
        let told = told(&cluster, other).expect("it answers").to_string();
        assert!(!told.contains("\"message\""), "{other} was told what is k1's: {told}");
    }
    ask(&cluster, "k0", &json!({"send": {"member": "k9", "body": 1}}));
    error(&cluster, "k0", "no member `k9`");
    ask(&cluster, "k0", &json!({"send": {"member": "k1", "body": "x".repeat(16), "times": 5_000}}));
    error(&cluster, "k0", "a message has at most 65536 bytes of JSON, not 80002");

    ask(&cluster, "k1", &json!({"broadcast": {"command": {"note": "all"}}}));
    for member in ["k0", "k1", "k2"] {
        wait_for("all note it", || (told(&cluster, member)?["notes"] == json!(["all"])).then_some(()));
    }
    ask(&cluster, "k2", &json!({"call": {"plugin": "counter", "command": {"add": 3}}}));
    answer(&cluster, "k2", &json!({"value": 13}));
    ask(&cluster, "k1", &json!({"query": {"plugin": "counter", "command": {"get": true}}}));
    answer(&cluster, "k1", &json!({"value": 13}));
    ask(&cluster, "k1", &json!({"call": {"plugin": "counter", "command": {"jump": 3}}}));
    error(&cluster, "k1", "command: ");
    ask(&cluster, "k1", &json!({"call": {"plugin": "nobody", "command": 1}}));
    error(&cluster, "k1", "no plug-in `nobody` is loaded");
    cluster.verify();
}

#[test]
fn instances_inside_the_kernel_ask_as_those_in_processes_do() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &["--placement", "kernel"]);
    ask(&cluster, "k0", &json!({"send": {"member": "k1", "body": "inside"}}));
    line(&cluster, "k1", "a message", |line| line["fields"] == json!({"from": "k0", "body": "inside"}));
    let tried = call(&cluster, &json!({"try": "apply"}));
    assert!(tried["reply"].as_str().is_some_and(|text| text.starts_with("apply must come")), "{tried}");
    let spawn = json!({"member": "k1", "key": "p", "argv": ["sh", "-c", "exit 4"], "env": null, "cwd": null});
    ask(&cluster, "k0", &json!({"spawn": spawn}));
    assert_eq!(event(&cluster, "k0", "process-exit", "p")["fields"]["exit_code"], 4);
}

/// A callback that waits for a slow plug-in has its error before its own deadline is over, and lives on.
#[test]
fn a_callback_hears_that_there_is_no_answer_before_it_is_too_late() {
    let cluster = Cluster::up(1, &[]);
    load(&cluster, &["--deadline", "1s"]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "slow_ms=2500"]);
    ask(&cluster, "k0", &json!({"call": {"plugin": "counter", "command": {"add": 3}}}));
    error(&cluster, "k0", "it may still be");
    ask(&cluster, "k0", &json!({"get": {"key": "none"}}));
    answer(&cluster, "k0", &Value::Null);
    assert_eq!(cluster.ok(&["plugin", "show", "services"])["failures"], 0);
}

#[test]
fn a_member_without_an_instance_is_said_to_have_none() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &["--on", "k0"]);
    ask(&cluster, "k0", &json!({"send": {"member": "k1", "body": 1}}));
    error(&cluster, "k0", "k1 has no instance of `services` that runs");
}

#[test]
fn keys_are_read_written_and_watched() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &[]);
    ask(&cluster, "k1", &json!({"watch": {"prefix": "app/"}}));
    answer(&cluster, "k1", &Value::Null);
    ask(&cluster, "k0", &json!({"put": {"key": "app/x", "value": {"n": 1}, "version": null}}));
    let changed = event(&cluster, "k1", "key-changed", "app/x");
    assert_eq!(changed["placed"], true, "{changed}");
    ask(&cluster, "k1", &json!({"get": {"key": "app/x"}}));
    answer(&cluster, "k1", &json!({"value": {"n": 1}, "versioned": true}));
    ask(&cluster, "k0", &json!({"put": {"key": "app/x", "value": 2, "version": 0}}));
    answer(&cluster, "k0", &json!(false));
    ask(&cluster, "k0", &json!({"put": {"key": "dvm/x", "value": 2, "version": null}}));
    error(&cluster, "k0", "cannot be changed");
    ask(&cluster, "k1", &json!({"unwatch": {"prefix": "app/"}}));
    ask(&cluster, "k1", &json!({"delete": {"key": "app/x"}}));
    wait_for("it is deleted", || (cluster.run(&["state", "get", "app/x"]).exit == 6).then_some(()));
    ask(&cluster, "k1", &json!({"put": {"key": "app/y", "value": 2, "version": null}}));
    answer(&cluster, "k1", &json!(true));
    let told = told(&cluster, "k1").expect("it answers").to_string();
    assert!(!told.contains("app/y"), "nobody watches any more: {told}");
}

#[test]
fn timers_tick_until_they_are_cancelled() {
    let cluster = Cluster::up(1, &[]);
    load(&cluster, &[]);
    ask(&cluster, "k0", &json!({"timer": {"name": "tick", "after_ms": 0, "every_ms": 10}}));
    ask(&cluster, "k0", &json!({"timer": {"name": "once", "after_ms": 5, "every_ms": null}}));
    let count = |name: &str| {
        let told = told(&cluster, "k0")?;
        Some(told["told"].as_array()?.iter().filter(|line| line["fields"]["name"] == name).count())
    };
    wait_for("it ticks", || (count("tick")? >= 3 && count("once")? == 1).then_some(()));
    ask(&cluster, "k0", &json!({"cancel-timer": {"name": "tick"}}));
    wait_for("it is cancelled", || {
        let told = told(&cluster, "k0")?;
        let answers = told["told"].as_array()?.iter().filter(|line| line.get("answer").is_some()).count();
        (answers == 3).then_some(())
    });
    let after = count("tick");
    ask(&cluster, "k0", &json!({"timer": {"name": "later", "after_ms": 100, "every_ms": null}}));
    wait_for("another has come", || (count("later")? == 1).then_some(()));
    assert!(count("tick") <= after.map(|count| count + 2), "it ticks on");
}

#[test]
fn a_process_runs_once_wherever_it_is_asked_for_and_tells_of_itself() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &[]);
    let runs = cluster.home().join("runs");
    let script = format!(
        "echo run >> {}; echo out; echo $X; pwd; echo $DVM_MEMBER; ls /proc/self/fd | wc -l; \
                          cat; echo err >&2; exit 3",
        runs.display()
    );
    let spawn = |member: &str, key: &str, argv: &[&str]| json!({"spawn": {"member": member, "key": key, "argv": argv, "env": {"X": "y z"}, "cwd": "/tmp"}});
    for member in ["k1", "k0"] {
        ask(&cluster, "k0", &spawn(member, member, &["sh", "-c", &script]));
        let exit = event(&cluster, "k0", "process-exit", member);
        assert_eq!(exit["fields"], json!({"key": member, "member": member, "exit_code": 3}));
        assert_eq!(output(&cluster, "k0", member, "stdout"), format!("out\ny z\n/tmp\n{member}\n4\n"));
        assert_eq!(output(&cluster, "k0", member, "stderr"), "err\n");
        assert!(event(&cluster, "k0", "process-started", member)["fields"]["pid"].is_u64());
    }
    // Another instance asks for the same, and is told the same.
    ask(&cluster, "k2", &spawn("k1", "k1", &["sh", "-c", &script]));
    assert_eq!(event(&cluster, "k2", "process-exit", "k1")["fields"]["exit_code"], 3);
    assert_eq!(output(&cluster, "k2", "k1", "stdout"), "out\ny z\n/tmp\nk1\n4\n");
    assert_eq!(fs::read_to_string(&runs).expect("it ran").lines().count(), 2, "each ran once");

    ask(&cluster, "k0", &spawn("k1", "missing", &["/no/such/program"]));
    let exit = event(&cluster, "k0", "process-exit", "missing");
    assert!(exit["fields"]["error"].as_str().is_some_and(|why| why.contains("/no/such/program")), "{exit}");
    ask(&cluster, "k0", &spawn("k1", "none", &[]));
    error(&cluster, "k0", "no program is named");

    // What is not kept is seen by the place of what is.
    ask(
        &cluster,
        "k0",
        &spawn("k2", "much", &["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; printf end"]),
    );
    let _ = event(&cluster, "k0", "process-exit", "much");
    let lines = told(&cluster, "k0").expect("it answers")["told"].as_array().expect("lines").clone();
    let last = lines.iter().rfind(|line| line["fields"]["stream"] == "stdout").expect("some").clone();
    let (at, text) =
        (last["fields"]["at"].as_u64().expect("a place"), last["fields"]["text"].as_str().expect("text"));
    assert_eq!(at + text.len() as u64, 300_003);
    assert!(text.ends_with("end"));
}

#[test]
fn a_process_ends_with_its_key_its_plugin_and_its_kernel() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &[]);
    let spawn = |member: &str, key: &str, script: &str| {
        let argv = ["sh", "-c", script];
        json!({"spawn": {"member": member, "key": key, "argv": argv, "env": null, "cwd": null}})
    };
    let family = "sleep 1000 & echo $!; wait";
    let pids = |member: &str, key: &str| {
        let started = event(&cluster, member, "process-started", key);
        let child =
            wait_for("its child is told", || output(&cluster, member, key, "stdout").trim().parse().ok());
        [started["fields"]["pid"].as_u64().expect("a pid") as u32, child]
    };
    let gone = |pids: [u32; 2]| {
        wait_for("all of it is gone", || (!pids.iter().any(|pid| lives(*pid))).then_some(()))
    };

    ask(&cluster, "k0", &spawn("k1", "killed", family));
    let killed = pids("k0", "killed");
    ask(&cluster, "k0", &json!({"kill": {"member": "k1", "key": "killed"}}));
    let exit = event(&cluster, "k0", "process-exit", "killed");
    assert_eq!(exit["fields"]["signal"], "SIGTERM", "{exit}");
    gone(killed);

    ask(&cluster, "k0", &spawn("k2", "orphan", family));
    let orphan = pids("k0", "orphan");
    cluster.kill("k2");
    gone(orphan);
    cluster.settle(&["k0", "k1"]);

    ask(&cluster, "k0", &spawn("k1", "unloaded", family));
    let unloaded = pids("k0", "unloaded");
    let _ = cluster.ok(&["plugin", "unload", "services"]);
    gone(unloaded);
}

fn primary(cluster: &Cluster, unlike: &str) -> String {
    wait_for("a primary", || {
        let name = cluster.ok(&["plugin", "show", "services"])["primary"].as_str().map(str::to_owned)?;
        (name != unlike).then_some(name)
    })
}

#[test]
fn a_new_primary_follows_what_runs_and_does_what_nobody_has_marked() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &["--mode", "hot", "--instances", "2", "--on", "k0,k1"]);
    let first = primary(&cluster, "");
    line(&cluster, &first, "that nothing is undone", |line| line["undone"] == json!([]));
    let (runs, go) = (cluster.home().join("runs"), cluster.home().join("go"));
    let script = format!(
        "echo run >> {}; echo begun; while [ ! -e {} ]; do sleep 0.01; done; exit 7",
        runs.display(),
        go.display()
    );
    let argv = ["sh", "-c", &script];
    let spawn = json!({"spawn": {"member": "k2", "key": "job", "argv": argv, "env": null, "cwd": null}});
    ask(&cluster, &first, &spawn);
    let _ = event(&cluster, &first, "process-output", "job");

    let _ = call(&cluster, &json!({"note": "a"}));
    let index = call(&cluster, &json!({"note": "b"}))["index"].as_u64().expect("an index");
    let done = json!({"on": first, "ask": {"done": {"index": index}}});
    let _ = call(&cluster, &done);
    let _ = call(&cluster, &json!({"note": "c"}));
    wait_for("the mark is in the history", || {
        let key = cluster.json(&["state", "get", "dvm/effects/services"]);
        (key.exit == 0 && key.json()["value"]["done"] == index).then_some(())
    });
    cluster.kill(&first);
    let second = primary(&cluster, &first);
    let undone = line(&cluster, &second, "what is undone", |line| line.get("undone").is_some());
    assert_eq!(undone, json!({"undone": [done, {"note": "c"}], "missed": false, "more": false}));

    ask(&cluster, &second, &spawn);
    let _ = event(&cluster, &second, "process-output", "job");
    fs::write(&go, "").expect("there is room");
    assert_eq!(event(&cluster, &second, "process-exit", "job")["fields"]["exit_code"], 7);
    assert_eq!(output(&cluster, &second, "job", "stdout"), "begun\n");
    assert_eq!(fs::read_to_string(&runs).expect("it ran").lines().count(), 1, "it ran once");
}

/// More commands than the history keeps: the new primary is told those that there are, and that there were others.
#[test]
fn a_new_primary_is_told_that_older_commands_are_no_longer_kept() {
    const KEPT: usize = 256;
    let cluster = Cluster::up(2, &["--set", &format!("history_entries={KEPT}")]);
    load(&cluster, &["--mode", "hot", "--instances", "2"]);
    let first = primary(&cluster, "");
    let mut client = cluster.client(&first);
    for number in 0..KEPT + 50 {
        let (plugin, command) = ("services".to_owned(), json!({"note": number}));
        let call = Request::Call { plugin, command, query: false, fresh: false };
        client.request(call, None, Some(Duration::from_secs(10))).expect("it is answered");
    }
    cluster.kill(&first);
    let second = primary(&cluster, &first);
    let undone = line(&cluster, &second, "what is undone", |line| line.get("undone").is_some());
    let told = undone["undone"].as_array().expect("commands");
    assert!((1..=KEPT).contains(&told.len()), "{}", told.len());
    assert_eq!((&undone["missed"], &undone["more"]), (&json!(true), &json!(false)));
    assert_eq!(told.last(), Some(&json!({"note": KEPT + 49})));
}

/// Every helper of the header, from a plug-in in C: it puts each answer into a key.
#[test]
fn a_plugin_in_c_asks_for_each_service() {
    if !has(&["cc"], "a plug-in in C") {
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let source = root().join("tests/programs/services.c");
    let library = cluster.plugin(&source, "inc", &[]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let _ = cluster.ok(&["plugin", "load", &text(&library), "--mode", "hot", "--instances", "2"]);
    services_are_answered(&cluster, "k0");
}
