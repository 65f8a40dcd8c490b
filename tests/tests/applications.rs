//! Applications in C, Python and Rust: what they are told while kernels die under them, what they may do, what goes wrong.
//!
//! The programs are in `tests/programs`. They are compiled and run against the header, the library and the module as
//! `cargo xtask install` lays them out; where there is no `cc` or `python3` their part is skipped.

use dvm_plugin_api::client::{Client, Families, Target};
use dvm_plugin_api::local::Request;
use dvm_plugin_api::place::{DvmPlace, RuntimeDir};
use dvm_tests::book::{page, root};
use dvm_tests::cluster::{Cluster, Follower, Ground, has, signal, wait_for};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

fn program(name: &str) -> PathBuf {
    root().join("tests/programs").join(name)
}

/// One that a thread of this test follows.
fn in_rust(place: DvmPlace, prefer: &str) -> Follower {
    Follower::in_rust(Target { prefer: Some(prefer.into()), ..Target::new(place, "test") })
}

/// One of each kind in a ground, each at a kernel of its own as long as that one lives.
fn followers(ground: &Ground, place: &DvmPlace, members: [&str; 4]) -> Vec<Follower> {
    let socket = |member: &str| format!("unix:{}", place.socket(member).expect("a path").display());
    let mut all = vec![in_rust(place.clone(), members[0])];
    if has(&["cc"], "a follower in C") {
        let mut c = ground.program(ground.compile(&program("follow.c"), &["-ldvm"]));
        c.args([socket(members[1]).as_str(), "all"]);
        all.push(Follower::by("C", c));
    }
    if has(&["python3"], "a follower in Python") {
        for (name, how, member) in [("Python", "for", members[2]), ("asyncio", "async", members[3])] {
            let python = ground.python(&program("follow.py"), &[&socket(member), "all", how]);
            all.push(Follower::by(name, python));
        }
    }
    for follower in &all {
        follower.wait_for("member-joined");
    }
    all
}

/// Halts the DVM. What each was told must be what `dvm events` tells before, and what it told without an index this.
fn compare(cluster: &Cluster, followers: Vec<Follower>, beside: &[&str]) {
    let listed = cluster.run(&["--json-lines", "events", "--since", "all"]).exits(0);
    let wanted: Vec<&str> = listed.stdout.lines().collect();
    let _ = cluster.ok(&["halt"]);
    for follower in followers {
        let name = follower.name();
        let told = follower.end();
        let (placed, unplaced): (Vec<_>, Vec<_>) =
            told.iter().map(String::as_str).partition(|line| !line.contains("\"index\":null"));
        assert!(placed.len() >= wanted.len(), "{name} was told {} of {}", placed.len(), wanted.len());
        for (told, wanted) in placed.iter().zip(&wanted) {
            assert_eq!(told, wanted, "{name}");
        }
        let rest = &placed[wanted.len()..];
        let ends = ["\"kind\":\"halting\"", "\"kind\":\"member-left\""];
        assert!(rest.iter().all(|line| ends.iter().any(|end| line.contains(end))), "{name}: {rest:?}");
        let kinds: Vec<_> = unplaced
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["kind"].clone())
            .collect();
        assert_eq!(kinds, beside, "{name}");
    }
}

/// Changes a tag again and again, each time an event, through whichever kernel lives.
struct Teller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Teller {
    fn start(cluster: &Cluster, member: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, member) = (Arc::clone(&stop), member.to_owned());
        let mut client = Client::connect(Target::new(cluster.place(), "teller")).expect("a kernel");
        let thread = std::thread::spawn(move || {
            let mut told = 0;
            while !stopped.load(Ordering::Relaxed) {
                told += 1;
                let changes = vec![("round".to_owned(), told.to_string())];
                let request = Request::Configure { changes, member: Some(member.clone()) };
                client.request(request, None, None).expect("a kernel lives");
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            told
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it did not panic")
    }
}

/// The kernel of each follower is killed, then that of those who went on there, and new ones come.
#[test]
fn streams_are_equal_while_kernels_are_killed_under_them() {
    let cluster = Cluster::up(6, &[]);
    let followers = followers(&cluster, &cluster.place(), ["k1", "k2", "k3", "k4"]);
    let teller = Teller::start(&cluster, "k5");
    // All four lose theirs, two of them at once; then all that they may have gone on at but one.
    for victims in [&["k1"][..], &["k2", "k3"], &["k4"], &["k0"]] {
        for victim in victims {
            signal(cluster.pid(victim), Signal::KILL);
        }
        let rest = || {
            let members = cluster.members();
            (!members.iter().any(|member| victims.contains(&member.as_str()))).then_some(members)
        };
        let rest = wait_for("they are out", rest);
        cluster.settle(&rest);
        let _ = cluster.ok(&["add", "--local", "1"]);
    }
    assert!(teller.stop() > 50);
    cluster.verify();
    compare(&cluster, followers, &[]);
}

/// One kernel a host is the normal cluster. Another runtime directory is another host here: its only kernel dies, and
/// what happens until there is one again is told then.
#[test]
fn without_a_kernel_here_a_stream_is_detached_and_resumes_when_one_is_back() {
    let cluster = Cluster::up(2, &[]);
    let there = Ground::new();
    let place = || {
        let runtime = RuntimeDir::create_at(there.runtime()).expect("ours");
        runtime.dvm(&cluster.place().name()).expect("a name")
    };
    let _ = there.join(&cluster, "there").exits(0);
    let followers = followers(&there, &place(), ["there"; 4]);
    for (gone, back) in [("there", "again"), ("again", "third")] {
        let pid = place().pid(gone).expect("a process");
        signal(pid, Signal::KILL);
        for follower in &followers {
            let detached = || {
                let detached = follower.lines().iter().filter(|line| line.contains("\"detached\"")).count();
                (detached == if gone == "there" { 1 } else { 2 }).then_some(())
            };
            wait_for(&format!("{} is told that it is detached", follower.name()), detached);
        }
        for round in 0..10 {
            let _ = cluster.ok(&["config", "set", "--member", "k0", &format!("{back}={round}")]);
        }
        let _ = there.join(&cluster, back).exits(0);
        for follower in &followers {
            follower.wait_for(&format!("\"member\":\"{back}\""));
        }
    }
    compare(&cluster, followers, &["detached", "detached"]);
    there.assert_empty();
}

/// A program that answers line by line.
struct Talk {
    child: Child,
    asked: ChildStdin,
    told: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Talk {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let asked = child.stdin.take().expect("piped");
        let told = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, asked, told }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.asked, "{line}").expect("it reads");
        self.told.next().expect("it answers").expect("text")
    }

    fn end(self) {
        let Self { mut child, asked, .. } = self;
        drop(asked);
        assert!(child.wait().expect("it ends").success());
    }
}

/// The programs that call, in each language, with arguments.
fn callers(ground: &Ground, arguments: &[&str]) -> Vec<(&'static str, Command)> {
    let mut all = Vec::new();
    if has(&["cc"], "calls from C") {
        let mut c = ground.program(ground.compile(&program("calls.c"), &["-ldvm"]));
        c.args(arguments);
        all.push(("C", c));
    }
    if has(&["python3"], "calls from Python") {
        all.push(("Python", ground.python(&program("calls.py"), arguments)));
    }
    all
}

#[test]
fn a_plugin_is_called_and_its_kernel_dies_between() {
    let cluster = Cluster::up(4, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "faults=true"]);
    let mut value = 0;
    for (at, (name, caller)) in callers(&cluster, &[]).into_iter().enumerate() {
        let member = format!("k{}", at + 1);
        let mut caller = Talk::start({
            let mut caller = caller;
            caller.env("DVM_URI", cluster.uri(&member));
            caller
        });
        for _ in 0..2 {
            value += 1;
            assert_eq!(caller.ask("{\"add\":1}"), format!("{{\"value\":{value}}}"), "{name}");
        }
        let refused = caller.ask("{\"nonesuch\":1}");
        assert!(refused.contains("the plug-in at") && refused.contains("nonesuch"), "{name}: {refused}");
        cluster.kill(&member);
        value += 1;
        assert_eq!(caller.ask("{\"add\":1}"), format!("{{\"value\":{value}}}"), "{name}");
        caller.end();
    }
    let _ = cluster.ok(&["plugin", "unload", "counter"]);
    for (name, caller) in callers(&cluster, &[&cluster.uri("k0")]) {
        let mut caller = Talk::start(caller);
        let refused = caller.ask("{\"add\":1}");
        let code = if name == "C" { "-6 " } else { "not-found " };
        assert!(refused.starts_with(code) && refused.contains("counter"), "{name}: {refused}");
        caller.end();
    }
}

/// Every call is answered with the next number, whichever kernel dies while it is under way.
#[test]
fn calls_take_effect_once_while_kernels_die() {
    for name in ["C", "Python"] {
        let cluster = Cluster::up(4, &[]);
        let _ = cluster.ok(&["plugin", "load", "counter"]);
        let callers = callers(&cluster, &[&cluster.uri("k1")]);
        let Some((_, caller)) = callers.into_iter().find(|(language, _)| *language == name) else { continue };
        let mut caller = Talk::start(caller);
        let (goes_on, made) = (AtomicBool::new(true), AtomicU64::new(0));
        let some_more = || {
            let enough = made.load(Ordering::Relaxed) + 5;
            wait_for("some calls", || (made.load(Ordering::Relaxed) >= enough).then_some(()));
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while goes_on.load(Ordering::Relaxed) {
                    let next = made.load(Ordering::Relaxed) + 1;
                    assert_eq!(caller.ask("{\"add\":1}"), format!("{{\"value\":{next}}}"), "{name}");
                    made.store(next, Ordering::Relaxed);
                }
            });
            // It talks to k1 first, then to k0, then to k2.
            for victim in ["k1", "k0"] {
                some_more();
                cluster.kill(victim);
            }
            some_more();
            goes_on.store(false, Ordering::Relaxed);
        });
        caller.end();
    }
}

/// Each program sets, reads, lists, deletes under conditions, and watches what it does; and its kernel is not the only one.
#[test]
fn keys_and_settings_from_c_and_python() {
    let cluster = Cluster::up(2, &[]);
    let arguments = [cluster.uri("k1"), "k0".to_owned()];
    if has(&["cc"], "keys from C") {
        let mut c = cluster.program(cluster.compile(&program("keys.c"), &["-ldvm"]));
        c.args(&arguments);
        let told = cluster.finish(c).exits(0);
        assert_eq!(told.stdout, "c/x\nc/x\nc/y\nc/x\n", "{told}");
    }
    if has(&["python3"], "keys from Python") {
        let [uri, member] = &arguments;
        let told = cluster.finish(cluster.python(&program("keys.py"), &[uri, member])).exits(0);
        assert_eq!(told.stdout, "p/x\np/x\np/y\np/x\np/async\n", "{told}");
        assert_eq!(cluster.ok(&["state", "get", "p/async"])["value"], serde_json::json!([1, {"two": null}]));
    }
}

#[test]
fn a_loop_of_asyncio_gives_up_and_comes_back() {
    if !has(&["python3"], "asyncio") {
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let script = cluster.python(&program("cancel.py"), &[&cluster.uri("k1")]);
    let python = Follower::by("asyncio", script);
    python.wait_for("waiting");
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let _ = cluster.ok(&["config", "set", "window=64"]);
    assert_eq!(python.end(), ["waiting", "right 2"]);
}

#[test]
fn what_is_no_dvm_is_told_clearly() {
    let ground = Ground::new();
    let missing = format!("unix:{}", ground.home().join("missing").display());
    let cases = [
        (vec![], [("-3", "no-dvm"), ("you have no DVM", "dvm up")]),
        (vec!["tcp:one"], [("-2", "usage"), ("tcp:one", "unix:PATH")]),
        (vec!["../one"], [("-2", "usage"), ("../one", "unix:PATH")]),
        (vec!["nonesuch"], [("-3", "no-dvm"), ("`nonesuch`", "dvm up")]),
        (vec![missing.as_str()], [("-3", "no-dvm"), ("`missing`", "dvm list")]),
        (vec!["ssh://host"], [("-1", "failure"), ("ssh", "not available")]),
    ];
    for (arguments, [(number, word), (what, next)]) in cases {
        for (name, caller) in callers(&ground, &arguments) {
            let outcome = ground.finish(caller).exits(1);
            let code = if name == "C" { number } else { word };
            assert!(outcome.stdout.starts_with(&format!("{code} ")), "{outcome}");
            assert!(outcome.stdout.contains(what) && outcome.stdout.contains(next), "{outcome}");
        }
    }
    assert!(!ground.runtime().exists(), "asking creates nothing");
    let two = Cluster::up(1, &["--name", "one"]);
    let _ = two.json(&["up", "--name", "two"]).exits(0);
    for (_, caller) in callers(&two, &[]) {
        let outcome = two.finish(caller).exits(1);
        assert!(outcome.stdout.contains("several") && outcome.stdout.contains("one, two"), "{outcome}");
    }
    let _ = two.json(&["--dvm", "two", "halt"]).exits(0);
}

#[test]
fn a_forked_child_is_kept_away() {
    for (needs, script) in [("cc", "fork.c"), ("python3", "fork.py")] {
        if !has(&[needs], "a program that forks") {
            continue;
        }
        let cluster = Cluster::up(2, &[]);
        let _ = cluster.ok(&["plugin", "load", "counter"]);
        let uri = cluster.uri("k1");
        let program = program(script);
        let command = if needs == "cc" {
            // The archive is linked in here; the other programs use the shared library.
            let archive = ["-l:libdvm.a", "-lgcc_s", "-lpthread", "-ldl", "-lm"];
            let mut command = cluster.program(cluster.compile(&program, &archive));
            command.arg(&uri);
            command
        } else {
            cluster.python(&program, &[&uri])
        };
        assert_eq!(cluster.finish(command).exits(0).stdout, "right\n");
    }
}

#[test]
fn callbacks_are_called_inside_dispatch_and_may_call_back() {
    if !has(&["cc"], "callbacks in C") {
        return;
    }
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let mut c = cluster.program(cluster.compile(&program("callbacks.c"), &["-ldvm"]));
    c.arg(cluster.uri("k0"));
    let told = cluster.finish(c).exits(0).stdout;
    if has(&["python3"], "the size of an event in Python") {
        let script = cluster.home().join("size.py");
        let text = "import ctypes, dvm\nprint('right', ctypes.sizeof(dvm._Event))\n";
        std::fs::write(&script, text).expect("written");
        assert_eq!(cluster.finish(cluster.python(&script, &[])).exits(0).stdout, told);
    }
}

#[test]
fn the_header_is_one_for_cpp_too() {
    if !has(&["c++"], "the header in C++") {
        return;
    }
    let ground = Ground::new();
    let mut compiler = ground.program("c++");
    compiler.args(["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-x", "c++-header"]);
    compiler.arg(ground.prefix().join("include/dvm.h"));
    let _ = ground.finish(compiler).exits(0);
}

#[test]
fn all_parts_name_one_version() {
    for (file, line) in [
        ("plugin-api/Cargo.toml", "version = \"1.1.0\""),
        ("plugin-api/capi/Cargo.toml", "version = \"1.1.0\""),
        ("plugin-api/capi/include/dvm.h", "#define DVM_VERSION \"1.1.0\""),
        ("plugin-api/capi/include/dvm_plugin.h", "#define DVM_PLUGIN_ABI_TEXT \"1.1\""),
        ("plugin-api/capi/include/dvm_plugin.h", "#define DVM_PLUGIN_ABI UINT32_C(0x00010001)"),
        ("plugin-api/capi/dvm.pc.in", "Version: 1.1.0"),
        ("plugin-api/python/dvm.py", "version = \"1.1.0\""),
    ] {
        assert!(page(file).lines().any(|found| found == line), "{file} has not `{line}`");
    }
}

/// The header's numbers are those of the library.
#[test]
fn the_header_names_the_same_bits() {
    let header = page("plugin-api/capi/include/dvm.h");
    let bit = |name: &str| {
        let begins = [format!("#define DVM_{name} "), format!("enum {{ DVM_{name} = ")];
        let line = header.lines().find(|line| begins.iter().any(|begin| line.starts_with(begin)));
        let hex =
            line.and_then(|line| line.split("0x").nth(1)).and_then(|rest| rest.split([')', ' ']).next());
        hex.map(|hex| Families(u64::from_str_radix(hex, 16).expect("hexadecimal")))
    };
    for (name, family) in [
        ("MEMBER", Families::MEMBER),
        ("INSTANCE", Families::INSTANCE),
        ("PLUGIN", Families::PLUGIN),
        ("CONFIG", Families::CONFIG),
        ("LABEL", Families::LABEL),
        ("KEY", Families::KEY),
        ("SUSPECTED", Families::SUSPECTED),
        ("STREAM", Families::STREAM),
        ("ALL", Families::ALL),
    ] {
        assert_eq!(bit(name), Some(family), "DVM_{name}");
    }
}
