//! Programs in C as the place of a plug-in's instances: by a descriptor in their own loop, and by a thread of their own.

use dvm_tests::book::{block, page, root};
use dvm_tests::cluster::{Cluster, Runner, has, services_are_answered, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn program(name: &str) -> PathBuf {
    root().join("tests/programs").join(name)
}

/// A DVM whose kernels are not taken for dead on a busy machine: here programs die, and a kernel that does is missed at once.
fn calm(kernels: usize) -> Cluster {
    Cluster::up(kernels, &["--set", "silence_ms=60000"])
}

/// A program linked with a plug-in's source, whose instance it runs.
fn attach_with(cluster: &Cluster, plugin: &Path) -> PathBuf {
    cluster.compile(&program("attach.c"), &[plugin.to_str().expect("text"), "-ldvm", "-lpthread"])
}

fn attach(cluster: &Cluster, built: &Path, member: &str, name: &str, how: &str) -> Runner {
    let mut command = cluster.program(built);
    command.args([&cluster.uri(member), name, how]);
    Runner::attached(cluster, command, member, name)
}

fn load(cluster: &Cluster, name: &str, more: &[&str]) {
    let load = ["plugin", "load", "--placement", "application", "--payload", "json", "--name", name];
    let loaded = cluster.ok(&[&load[..], more].concat());
    assert_eq!(loaded["outcome"], json!("committed"), "{loaded}");
}

fn primary(cluster: &Cluster, name: &str) -> Option<String> {
    cluster.ok(&["plugin", "show", name])["primary"].as_str().map(str::to_owned)
}

fn add(cluster: &Cluster, steps: i64) -> Value {
    cluster.ok(&["call", "counter", &json!({"add": steps}).to_string()])["reply"]["value"].clone()
}

/// The counter in C, the same file that is a plug-in elsewhere: one instance in a loop, one on a thread.
#[test]
fn an_instance_in_c_is_killed_and_another_takes_over_with_nothing_lost() {
    if !has(&["cc"], "an instance in C") {
        return;
    }
    let cluster = calm(3);
    let built = attach_with(&cluster, &root().join("plugins/counter-c/counter.c"));
    load(&cluster, "counter", &["--mode", "hot", "--instances", "3", "-c", "start=100"]);
    let mut here = vec![
        ("k0", attach(&cluster, &built, "k0", "counter", "loop")),
        ("k1", attach(&cluster, &built, "k1", "counter", "thread")),
        ("k2", attach(&cluster, &built, "k2", "counter", "loop")),
    ];
    let mut value = 100;
    for _ in 0..2 {
        for steps in 1..=20 {
            value += steps;
            assert_eq!(add(&cluster, steps), json!(value));
        }
        let first = wait_for("a primary", || primary(&cluster, "counter"));
        let at = here.iter().position(|(member, _)| *member == first).expect("it is one of them");
        here.remove(at).1.kill();
        wait_for("another is the primary", || primary(&cluster, "counter").filter(|now| *now != first));
        value += 1;
        assert_eq!(add(&cluster, 1), json!(value), "nothing is lost when {first} dies");
    }
    // Configured, and a command that it refuses: the instance lives on. Then one that comes gets the state.
    let _ = cluster.ok(&["plugin", "configure", "counter", "-c", "step=10"]);
    value += 10;
    assert_eq!(add(&cluster, 1), json!(value));
    let refused = cluster.json(&["call", "counter", "{\"nonesuch\":1}"]).exits(1);
    assert!(refused.stdout.contains("a command is one of"), "{refused}");
    let free = ["k0", "k1", "k2"].into_iter().find(|member| here.iter().all(|(at, _)| at != member));
    let free = free.expect("two are gone");
    let last = attach(&cluster, &built, free, "counter", "thread");
    let (_, other) = here.pop().expect("one is left");
    other.kill();
    wait_for("the last is the primary", || {
        (primary(&cluster, "counter").as_deref() == Some(free)).then_some(())
    });
    value += 10;
    assert_eq!(add(&cluster, 1), json!(value));
    // It is unloaded, and each says so.
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    let wanted = "-9 counter was unloaded, and its instance here has ended; attach again once it is loaded";
    assert_eq!(last.ends(), ["attached", wanted]);
    cluster.verify();
}

/// Every service, from the plug-in in C that elsewhere is loaded as a library.
fn asks_for_each_service(how: &str) {
    if !has(&["cc"], "an instance in C") {
        return;
    }
    let cluster = calm(2);
    let built = attach_with(&cluster, &program("services.c"));
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    load(&cluster, "inc", &["--mode", "hot", "--instances", "2", "--stateless"]);
    // The first is the primary, which asks at once, and sends a message to k1.
    let runners = ["k1", "k0"].map(|member| attach(&cluster, &built, member, "inc", how));
    services_are_answered(&cluster, "k1");
    let _ = cluster.ok(&["plugin", "unload", "inc"]);
    for runner in runners {
        assert_eq!(runner.ends().len(), 2);
    }
}

#[test]
fn an_instance_in_a_loop_in_c_asks_its_host_for_each_service() {
    asks_for_each_service("loop");
}

#[test]
fn an_instance_on_a_thread_in_c_asks_its_host_for_each_service() {
    asks_for_each_service("thread");
}

#[test]
fn an_instance_on_a_thread_is_given_up_from_outside() {
    if !has(&["cc"], "an instance in C") {
        return;
    }
    let cluster = calm(1);
    let built = attach_with(&cluster, &root().join("plugins/counter-c/counter.c"));
    load(&cluster, "counter", &[]);
    let mut first = attach(&cluster, &built, "k0", "counter", "thread");
    assert_eq!(add(&cluster, 4), json!(4));
    first.say("end");
    let ended = "-1 the instance of counter in this application is over (it was given up here)";
    assert_eq!(first.ends(), ["attached", ended]);
    // What came before is told to the next one, which is away for longer than it may, and is told that it is over.
    let second = attach(&cluster, &built, "k0", "counter", "loop");
    assert_eq!(add(&cluster, 1), json!(5));
    cluster.kill("k0");
    second.told("its kernel let it go, or is gone");
    let _ = second.ends();
}

#[test]
fn what_a_program_may_not_do_is_refused_and_a_fork_is_kept_away() {
    if !has(&["cc"], "an instance in C") {
        return;
    }
    let cluster = calm(1);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    load(&cluster, "edges", &["--stateless"]);
    let mut edges = cluster.program(cluster.compile(&program("edges.c"), &["-ldvm"]));
    edges.arg(cluster.place().uri());
    let edges = Runner::start(edges);
    for line in ["attached", "forked", "again"] {
        edges.told(line);
        // The last one gives its instance up, and nobody is left to answer.
        let call = cluster.json(&["--timeout", "1s", "call", "edges", "{}"]);
        assert_eq!(call.exit == 0, line != "again", "{line}: {call}");
    }
    assert_eq!(edges.ends().last().map(String::as_str), Some("right"));
}

/// What docs/plugins.md shows, as it stands: a program with one thread that is told of a dead member by a descriptor in its
/// loop; and when it is killed itself, another one goes on with its state.
#[test]
fn the_program_of_the_book_hears_of_a_dead_member_in_its_own_loop() {
    let (text, heading) = (page("docs/plugins.md"), "### In its own loop");
    let shown = block(&text, heading, "c");
    assert_eq!(shown, page("tests/programs/tally.c").trim_end(), "docs/plugins.md shows another program");
    if !has(&["cc", "pkg-config"], "the program of the book") {
        return;
    }
    let cluster = calm(3);
    let commands = block(&text, heading, "sh");
    let [compile, load, run] = commands.lines().collect::<Vec<_>>()[..] else { panic!("{commands}") };
    std::fs::write(cluster.home().join("tally.c"), shown + "\n").expect("written");
    let at_home = |mut command: Command| {
        command.current_dir(cluster.home());
        command
    };
    let mut shell = cluster.program("sh");
    shell.args(["-ec", &compile.replace("cc ", "cc -Wall -Wextra -Wpedantic -Werror ")]);
    shell.env("PKG_CONFIG_PATH", cluster.prefix().join("lib/pkgconfig"));
    let _ = cluster.finish(at_home(shell)).exits(0);
    let words: Vec<_> = load.split_whitespace().skip(1).collect();
    let _ = cluster.ok(&words);
    let start = |member: &str| {
        let mut tally = at_home(cluster.program(cluster.home().join(run)));
        tally.env("DVM_URI", cluster.uri(member));
        Runner::start(tally)
    };
    let second = Runner::tally(&cluster, start);
    let _ = cluster.ok(&["plugin", "unload", "tally"]);
    let _ = second.ends();
}
