//! Programs in Python as the place of a plug-in's instances: on a thread, in the thread that waits, in asyncio, in a loop of their own.

use dvm_tests::book::{block, page, root};
use dvm_tests::cluster::{Cluster, Runner, has, services_are_answered, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn program(name: &str) -> PathBuf {
    root().join("tests/programs").join(name)
}

/// A DVM whose kernels are not taken for dead on a busy machine: here programs die, and a kernel that does is missed at once.
fn calm(kernels: usize) -> Cluster {
    Cluster::up(kernels, &["--set", "silence_ms=60000"])
}

fn load(cluster: &Cluster, name: &str, more: &[&str]) {
    let load = ["plugin", "load", "--placement", "application", "--payload", "json", "--name", name];
    let loaded = cluster.ok(&[&load[..], more].concat());
    assert_eq!(loaded["outcome"], json!("committed"), "{loaded}");
}

/// The counter of `attach.py` at a member, run in one of its ways.
fn attach(cluster: &Cluster, member: &str, how: &str) -> Runner {
    let command = cluster.python(&program("attach.py"), &[&cluster.uri(member), how]);
    Runner::attached(cluster, command, member, "counter")
}

fn primary(cluster: &Cluster, name: &str) -> Option<String> {
    cluster.ok(&["plugin", "show", name])["primary"].as_str().map(str::to_owned)
}

fn call(cluster: &Cluster, command: &Value) -> Value {
    cluster.ok(&["call", "counter", &command.to_string()])["reply"].clone()
}

fn value_after(cluster: &Cluster, steps: u64) -> u64 {
    call(cluster, &json!({"add": steps}))["value"].as_u64().expect("a number")
}

/// The error that a command is answered with.
fn refused(cluster: &Cluster, command: &Value) -> String {
    cluster.json(&["call", "counter", &command.to_string()]).exits(1).stdout
}

/// Each call is answered with the next number, whichever process is killed while it is under way.
#[test]
fn an_instance_in_python_is_killed_and_another_takes_over_with_nothing_lost_or_doubled() {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(3);
    load(&cluster, "counter", &["--mode", "hot", "--instances", "3", "-c", "start=100"]);
    let mut here: Vec<_> = [("k0", "thread"), ("k1", "asyncio"), ("k2", "poll")]
        .map(|(member, how)| (member, attach(&cluster, member, how)))
        .into();
    here[1].1.told("asked itself");
    let (goes_on, made) = (AtomicBool::new(true), AtomicU64::new(0));
    let some_more = || {
        let enough = made.load(Ordering::Relaxed) + 5;
        wait_for("some calls", || (made.load(Ordering::Relaxed) >= enough).then_some(()));
    };
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            while goes_on.load(Ordering::Relaxed) {
                let next = made.load(Ordering::Relaxed) + 1;
                assert_eq!(value_after(&cluster, 1), 100 + next);
                made.store(next, Ordering::Relaxed);
            }
        });
        for how in ["wait", "asyncio"] {
            some_more();
            let first = wait_for("a primary", || primary(&cluster, "counter"));
            let at = here.iter().position(|(member, _)| *member == first).expect("it is one of them");
            let (member, runner) = here.remove(at);
            runner.kill();
            wait_for("another is the primary", || primary(&cluster, "counter").filter(|now| *now != first));
            some_more();
            // One that comes gets the state.
            here.push((member, attach(&cluster, member, how)));
        }
        some_more();
        goes_on.store(false, Ordering::Relaxed);
        here
    });
    let value = 100 + made.load(Ordering::Relaxed);
    for member in ["k0", "k1", "k2"] {
        let query = cluster.ok(&["--member", member, "call", "counter", "{}", "--query"]);
        assert_eq!(query["reply"][0], json!(value), "{member}");
    }
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    for (_, runner) in last {
        let lines = runner.ends();
        assert_eq!(lines.last().map(String::as_str), Some("ended True"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "stop"), "{lines:?}");
    }
    cluster.verify();
}

#[test]
fn an_exception_in_a_callback_is_its_answer_and_the_instance_lives_on() {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(1);
    load(&cluster, "counter", &["--mode", "hot"]);
    let instance = attach(&cluster, "k0", "wait");
    for (command, words) in [
        (json!({"nonesuch": 1}), "KeyError: 'nonesuch'"),
        (json!({"add": "x"}), "TypeError: "),
        (json!({"refuse": "the book is full"}), "the book is full"),
        (json!({"nan": 1}), "ValueError: Out of range float values"),
        (json!({"ask": 1}), "apply must come to the same"),
    ] {
        let told = refused(&cluster, &command);
        assert!(told.contains(words), "{words} in {told}");
        let refusal = command.get("refuse").is_some();
        assert!(!refusal || !told.contains("Refused"), "{told}");
    }
    assert_eq!(call(&cluster, &json!({"add": 4})), json!({"value": 4, "session": true}));
    // What does not fit into the socket at once, and what is no vote.
    let filled = call(&cluster, &json!({"fill": 3_000_000}));
    assert_eq!(filled["text"].as_str().map(str::len), Some(3_000_000));
    let told = cluster.json(&["plugin", "configure", "counter", "-c", "step=0"]).exits(4);
    assert!(told.stdout.contains("with a step of 0 nothing changes; give another"), "{told}");
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=10"]);
    assert_eq!(value_after(&cluster, 1), 14);
    let query = cluster.ok(&["call", "counter", "{}", "--query"]);
    assert_eq!(query["reply"], json!([14, true, "k0"]));
    let _ = cluster.ok(&["add", "--local", "1"]);
    instance.told("place 2");
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    assert_eq!(instance.ends(), ["standby", "primary", "place 2", "stop", "ended True"]);
}

/// What says nothing of the command but of the program ends the instance, in order, and the other one goes on.
#[test]
fn what_ends_an_instance_comes_out_where_it_is_run() {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(2);
    load(&cluster, "counter", &["--mode", "hot", "--instances", "2"]);
    let other = attach(&cluster, "k1", "asyncio");
    other.told("asked itself");
    let mut value = 0;
    for how in ["thread", "wait", "asyncio", "poll"] {
        for (command, ended) in [
            (json!({"memory": "k0"}), "ended MemoryError as it was told"),
            (json!({"leave": "k0"}), "ended SystemExit as it was told"),
            (Value::Null, "ended LookupError as it was told"),
        ] {
            let instance = attach(&cluster, "k0", how);
            instance.told("standby");
            if command.is_null() {
                let _ = cluster.ok(&["state", "put", "fail/k0", "1"]);
            } else {
                assert_eq!(call(&cluster, &command)["value"], json!(value));
            }
            let lines = instance.ends();
            let stopped = lines.iter().any(|line| line == "stop");
            assert!(stopped && lines.last().is_some_and(|line| line == ended), "{how}: {lines:?}");
            value += 1;
            assert_eq!(value_after(&cluster, 1), value);
        }
    }
    let instance = attach(&cluster, "k0", "wait");
    assert_eq!(instance.ends_by(Signal::INT).last().map(String::as_str), Some("stop"));
    assert_eq!(value_after(&cluster, 0), value);
}

/// Every service, as from the plug-in in C.
fn asks_for_each_service(how: &str) {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(2);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    load(&cluster, "inc", &["--mode", "hot", "--instances", "2", "--stateless"]);
    // The first is the primary, which asks at once, and sends a message to k1.
    let runners = ["k1", "k0"].map(|member| {
        let command = cluster.python(&program("services.py"), &[&cluster.uri(member), how]);
        Runner::attached(&cluster, command, member, "inc")
    });
    services_are_answered(&cluster, "k1");
    let _ = cluster.ok(&["plugin", "unload", "inc"]);
    for runner in runners {
        assert_eq!(runner.ends(), ["ended True"]);
    }
}

#[test]
fn an_instance_on_a_thread_in_python_asks_its_host_for_each_service() {
    asks_for_each_service("thread");
}

#[test]
fn an_instance_in_asyncio_asks_its_host_for_each_service() {
    asks_for_each_service("asyncio");
}

#[test]
fn what_a_program_in_python_may_not_do_is_refused_and_its_instance_ends_in_order() {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(1);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    load(&cluster, "edges", &[]);
    let edges = Runner::start(cluster.python(&program("attach_edges.py"), &[&cluster.place().uri()]));
    for line in ["callback", "forked", "thread", "closed by a callback", "left"] {
        edges.told(line);
        let told = cluster.json(&["--timeout", "3s", "call", "edges", &json!(line).to_string()]);
        // Where the instance was closed the next one answers, if it is there for long enough.
        assert!(told.exit == 0 || line == "closed by a callback", "{line}: {told}");
    }
    let lines = edges.ends();
    assert_eq!(lines[lines.len() - 2..], ["right", "stop"], "{lines:?}");
}

/// A plug-in that was loaded with another format of commands.
#[test]
fn what_is_no_json_is_said_to_be_none() {
    if !has(&["python3"], "an instance in Python") {
        return;
    }
    let cluster = calm(1);
    let _ = cluster.ok(&["plugin", "load", "--placement", "application", "--name", "counter"]);
    let command = cluster.python(&program("attach.py"), &[&cluster.uri("k0"), "wait"]);
    let lines = Runner::start(command).ends();
    assert!(
        lines.last().is_some_and(|line| line.starts_with("ended Error the instance of counter")),
        "{lines:?}"
    );
    let log = cluster.run(&["logs", "k0"]).exits(0);
    assert!(log.stdout.contains("load the plug-in with --payload json"), "{log}");
}

/// What docs/plugins.md shows, as it stands, and with the end that it shows for asyncio.
fn the_program_of_the_book(script: &str) {
    if !has(&["python3"], "the program of the book") {
        return;
    }
    let cluster = calm(3);
    load(&cluster, "tally", &["--mode", "hot", "-c", "step=2"]);
    let path = cluster.home().join("tally.py");
    fs::write(&path, script).expect("written");
    let start = |member: &str| {
        let mut tally = cluster.python(&path, &[]);
        tally.env("DVM_URI", cluster.uri(member));
        Runner::start(tally)
    };
    let second = Runner::tally(&cluster, start);
    let refused = cluster.json(&["call", "tally", "{}"]).exits(1);
    assert!(refused.stdout.contains("a command is"), "{refused}");
    let _ = cluster.ok(&["plugin", "unload", "tally"]);
    let _ = second.ends();
}

#[test]
fn the_program_of_the_book_in_python() {
    let shown = block(&page("docs/plugins.md"), "### In Python", "python");
    assert_eq!(shown, page("tests/programs/tally.py").trim_end(), "docs/plugins.md shows another program");
    the_program_of_the_book(&shown);
}

#[test]
fn the_program_of_the_book_in_asyncio() {
    let text = page("docs/plugins.md");
    let (shown, end) = (block(&text, "### In Python", "python"), block(&text, "#### With asyncio", "python"));
    let (class, _) = shown.split_once("\nwith dvm.open()").expect("it ends so");
    the_program_of_the_book(&format!("{class}\n{end}\n"));
}
