//! Applications as the place of a plug-in's instances: `dvm plugin load --placement application`, and `attach`.

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::Failure;
use dvm_plugin_api::place::DvmPlace;
use dvm_plugin_api::{Attached, Error, Event, Host, Meta, Plugin, Result, Role, attach};
use dvm_tests::book::{block, marked, page};
use dvm_tests::cluster::{Cluster, signal, wait_for};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Mutex;

// The example of docs/plugins.md, from here …
use dvm_plugin_api::{Driven, attach_driven};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Runs the instance in this thread, beside its own work, until the plug-in is unloaded.
fn beside(client: &Client, mut work: impl FnMut()) -> std::result::Result<(), Failure> {
    let mut driven: Driven = attach_driven::<Tally>(client, "tally")?;
    let soon = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    loop {
        // Other descriptors of the program stand beside it.
        let mut fds = [PollFd::new(&driven, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&soon)).is_ok_and(|ready| ready > 0);
        if ready && driven.run_pending()?.is_none() {
            return Ok(());
        }
        work();
    }
}
// … to here.

/// What the test itself tells a program of its own that is to attach.
const SOCKETS: &str = "ATTACH_TO";
const MEMBER: &str = "ATTACH_AT";

/// What instances in this process were told, in order, each with its member before it.
static TOLD: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    step: i64,
    /// What it is told is written down: other tests of this process have instances, too.
    notes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { step: 1, notes: false }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Command {
    Add(i64),
    Panic(String),
    /// Answers so many bytes of text.
    Fill(usize),
}

#[derive(Serialize)]
struct Reply {
    value: i64,
    token: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
}

/// A counter that runs in an application.
struct Tally {
    config: Config,
    value: i64,
    host: Host,
}

impl Tally {
    fn told(&self, what: String) {
        if self.config.notes {
            TOLD.lock().expect("no panic holds it").push((self.host.member(), what));
        }
    }
}

impl Plugin for Tally {
    type Config = Config;
    type Command = Command;
    type Reply = Reply;

    fn validate(config: &Config, _: &Host) -> Result<()> {
        if config.step == 0 { Err(Error::new("with a step of 0 nothing changes")) } else { Ok(()) }
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        let tally = Self { config, value: 0, host };
        tally.told("start".into());
        Ok(tally)
    }

    fn apply(&mut self, command: Command, _: &Meta) -> Result<Reply> {
        let mut text = String::new();
        match command {
            Command::Add(count) => self.value += count * self.config.step,
            Command::Panic(member) if member == self.host.member() => panic!("as it was told"),
            Command::Panic(_) => {}
            Command::Fill(size) => text = "x".repeat(size),
        }
        Ok(Reply { value: self.value, token: self.host.token().is_some(), text })
    }

    fn query(&self, _: Command) -> Result<Reply> {
        Ok(Reply { value: self.value, token: self.host.token().is_some(), text: String::new() })
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.told(format!("configure {}", config.step));
        self.config = config;
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        self.told(event.kind.clone());
    }

    fn on_role(&mut self, role: Role) {
        self.told(match role {
            Role::Primary { .. } => "primary".into(),
            other => format!("{other:?}").to_lowercase(),
        });
    }

    fn snapshot(&self) -> Vec<u8> {
        self.value.to_le_bytes().into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.value = i64::from_le_bytes(snapshot.try_into()?);
        self.told(format!("restore {}", self.value));
        Ok(())
    }

    fn stop(&mut self) {
        self.told("stop".into());
    }
}

fn told(member: &str) -> Vec<String> {
    let told = TOLD.lock().expect("no panic holds it");
    told.iter().filter(|(at, _)| at == member).map(|(_, what)| what.clone()).collect()
}

fn attach_at(place: DvmPlace, member: &str) -> std::result::Result<Attached, Failure> {
    let client = Client::connect(Target::new(place, "an application").only(member))?;
    attach::<Tally>(&client, "tally")
}

fn load(cluster: &Cluster, options: &[&str]) {
    let load = ["plugin", "load", "--placement", "application", "--name", "tally"];
    let loaded = cluster.ok(&[&load[..], options].concat());
    assert_eq!(loaded["outcome"], json!("committed"), "{loaded}");
}

fn shown(cluster: &Cluster) -> Value {
    cluster.ok(&["plugin", "show", "tally"])
}

fn instance(cluster: &Cluster, member: &str) -> Value {
    let shown = shown(cluster);
    let plugin = shown.get("plugin").unwrap_or(&shown);
    let instances = plugin["instances"].as_array().expect("instances").clone();
    let found = instances.into_iter().find(|instance| instance["member"] == json!(member));
    found.unwrap_or_else(|| panic!("{member} has no instance: {shown}"))
}

fn runs(cluster: &Cluster, member: &str, pid: u32) {
    wait_for("the instance runs in the application", || {
        let instance = instance(cluster, member);
        (instance["state"] == json!("running") && instance["pid"] == json!(pid)).then_some(())
    });
    assert_eq!(instance(cluster, member)["placement"], json!("application"));
}

fn add(cluster: &Cluster, member: &str, count: i64) -> Value {
    cluster.ok(&["--member", member, "call", "tally", &json!({"add": count}).to_string()])["reply"].clone()
}

/// This program once more, as an application at a member.
fn program(cluster: &Cluster, member: &str) -> Child {
    let mut program = Process::new(std::env::current_exe().expect("it runs"));
    program.args(["--exact", "the_application", "--nocapture"]);
    program.env(SOCKETS, cluster.place().directory()).env(MEMBER, member);
    let program = program.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    runs(cluster, member, program.id());
    program
}

/// What [`program`] runs; by itself it is no test.
#[test]
fn the_application() {
    let (Ok(sockets), Ok(member)) = (std::env::var(SOCKETS), std::env::var(MEMBER)) else { return };
    let (place, _) = DvmPlace::at(Path::new(&sockets)).expect("a place");
    let attached = attach_at(place, &member).expect("it attaches");
    // It is killed, or its kernel is.
    let _ = attached.wait();
}

#[test]
fn an_application_gets_the_same_commands_events_and_roles() {
    let cluster = Cluster::up(3, &[]);
    load(&cluster, &["-c", "step=2", "-c", "notes=true"]);
    for member in ["k0", "k1", "k2"] {
        let waits = instance(&cluster, member);
        assert_eq!((&waits["state"], &waits["placement"]), (&json!("starting"), &json!("application")));
    }
    let me = std::process::id();
    let first = attach_at(cluster.place(), "k0").expect("it attaches");
    runs(&cluster, "k0", me);
    assert_eq!(add(&cluster, "k0", 3), json!({"value": 6, "token": false}));

    // The next begins with the first one's state, and both go on alike.
    let second = attach_at(cluster.place(), "k1").expect("it attaches");
    runs(&cluster, "k1", me);
    assert!(told("k1").contains(&"restore 6".to_owned()), "{:?}", told("k1"));
    assert_eq!(add(&cluster, "k1", 1), json!({"value": 8, "token": false}));
    let _ = cluster.ok(&["plugin", "configure", "tally", "-c", "step=5"]);
    assert_eq!(add(&cluster, "k0", 1), json!({"value": 13, "token": false}));
    let refused = cluster.json(&["plugin", "configure", "tally", "-c", "step=0"]).exits(4);
    assert!(refused.stdout.contains("with a step of 0"), "{refused}");

    // What happens in the DVM is told to both, in the same order.
    let _ = cluster.ok(&["add", "--local", "1"]);
    let joined = || told("k0").iter().any(|what| what == "member-joined").then_some(());
    wait_for("the application hears of the member", joined);
    assert_eq!(add(&cluster, "k1", 0), json!({"value": 13, "token": false}));
    assert_eq!(add(&cluster, "k0", 0), json!({"value": 13, "token": false}));
    assert_eq!(told("k0")[..2], ["start", "active"]);
    let events = |member: &str| {
        let from = told(member).iter().position(|what| what == "configure 5").expect("it was configured");
        told(member).into_iter().skip(from).filter(|what| !what.starts_with("instance-")).collect::<Vec<_>>()
    };
    assert_eq!(events("k0"), events("k1"));

    // One that is unloaded ends in order.
    let _ = cluster.ok(&["plugin", "unload", "tally"]);
    first.wait().expect("it was unloaded");
    second.wait().expect("it was unloaded");
    assert_eq!(told("k0").last().map(String::as_str), Some("stop"));
}

#[test]
fn an_application_that_dies_is_a_lost_instance_and_the_next_goes_on() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &["--mode", "hot"]);
    let (mut one, mut two) = (program(&cluster, "k0"), program(&cluster, "k1"));
    assert_eq!(add(&cluster, "k0", 3)["value"], json!(3));
    let primary = |of: &Cluster| {
        let shown = shown(of);
        shown.get("plugin").unwrap_or(&shown)["primary"].as_str().map(str::to_owned)
    };
    assert_eq!(primary(&cluster).as_deref(), Some("k0"));
    signal(one.id(), Signal::KILL);
    one.wait().expect("it is gone");
    wait_for("the standby is the primary", || (primary(&cluster).as_deref() == Some("k1")).then_some(()));
    assert_eq!(instance(&cluster, "k0")["state"], json!("starting"), "it waits for the next application");
    assert_eq!(add(&cluster, "k0", 4)["value"], json!(7), "nothing is lost");
    let events = cluster.run(&["--json-lines", "events", "--since", "all", "--kind", "instance-failed"]);
    let failed = events.exits(0).lines().pop().expect("one");
    assert_eq!((&failed["member"], &failed["cause"]), (&json!("k0"), &json!("exit")), "{failed}");

    // As often as it likes, whatever --restart says; and with both gone the last one's history is enough.
    for round in 0..4 {
        let mut again = program(&cluster, "k0");
        assert_eq!(add(&cluster, "k1", 1)["value"], json!(8 + round));
        signal(again.id(), Signal::KILL);
        again.wait().expect("it is gone");
        wait_for("it waits", || (instance(&cluster, "k0")["state"] == json!("starting")).then_some(()));
    }
    signal(two.id(), Signal::KILL);
    two.wait().expect("it is gone");
    wait_for("nobody is the primary", || primary(&cluster).is_none().then_some(()));
    let mut last = program(&cluster, "k0");
    assert_eq!(add(&cluster, "k0", 1)["value"], json!(12));
    signal(last.id(), Signal::KILL);
    last.wait().expect("it is gone");
}

#[test]
fn a_panic_ends_the_instance_and_not_the_application() {
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &[]);
    let one = attach_at(cluster.place(), "k0").expect("it attaches");
    let two = attach_at(cluster.place(), "k1").expect("it attaches");
    let me = std::process::id();
    runs(&cluster, "k0", me);
    runs(&cluster, "k1", me);
    assert_eq!(add(&cluster, "k0", 3)["value"], json!(3));
    let reply = cluster.ok(&["--member", "k1", "call", "tally", r#"{"panic":"k0"}"#]);
    assert_eq!(reply["reply"]["value"], json!(3), "{reply}");
    let failure = one.wait().expect_err("it panicked");
    assert!(failure.cause.as_deref().is_some_and(|cause| cause.contains("as it was told")), "{failure:?}");
    let again = attach_at(cluster.place(), "k0").expect("it attaches again");
    runs(&cluster, "k0", me);
    assert_eq!(add(&cluster, "k0", 1)["value"], json!(4));
    // One that gives its instance up may have it again.
    again.detach();
    wait_for("it waits", || (instance(&cluster, "k0")["state"] == json!("starting")).then_some(()));
    drop(two);
}

/// Everything happens in one thread: what the instance is told, and the program's own work beside it.
#[test]
fn an_instance_runs_in_the_programs_own_loop() {
    let shown = block(&page("docs/plugins.md"), "### In its own loop", "rust");
    assert_eq!(shown, marked(include_str!("attached.rs")), "docs/plugins.md shows another loop");
    let cluster = Cluster::up(2, &[]);
    load(&cluster, &["-c", "step=2"]);
    let client = Client::connect(Target::new(cluster.place(), "a loop").only("k0")).expect("a kernel");
    let mut at = 0;
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            runs(&cluster, "k0", std::process::id());
            let value = [3, 4].map(|count| add(&cluster, "k0", count)["value"].clone());
            // More than the socket has room for: the rest goes when there is room again, and nothing else wakes the loop.
            let filled = cluster.ok(&["--member", "k0", "call", "tally", r#"{"fill":3000000}"#]);
            assert_eq!(filled["reply"]["text"].as_str().map(str::len), Some(3_000_000));
            let _ = cluster.ok(&["plugin", "unload", "tally"]);
            value
        });
        beside(&client, || at += 1).expect("it was unloaded");
        assert_eq!(calls.join().expect("it was answered"), [json!(6), json!(14)]);
    });
    assert!(at > 0, "it has work of its own");
}

/// A program that computes for longer than a callback may take has lost the instance, and is told so when it looks.
#[test]
fn one_that_does_not_look_for_too_long_has_lost_its_instance() {
    let cluster = Cluster::up(1, &[]);
    load(&cluster, &["--deadline", "200ms"]);
    let client = Client::connect(Target::new(cluster.place(), "a loop")).expect("a kernel");
    let mut driven = attach_driven::<Tally>(&client, "tally").expect("it attaches");
    let running = || (instance(&cluster, "k0")["state"] == json!("running")).then_some(());
    wait_for("it runs", || {
        assert!(!driven.wait(Some(std::time::Duration::from_millis(20))).expect("it runs"));
        running()
    });
    let asked = cluster.start(&["call", "tally", r#"{"add":1}"#]);
    wait_for("it is not waited for any longer", || {
        (instance(&cluster, "k0")["state"] == json!("starting")).then_some(())
    });
    let failure = driven.wait(None).expect_err("it is over");
    assert!(failure.cause.as_deref().is_some_and(|cause| cause.contains("let it go")), "{failure:?}");
    assert_eq!(driven.run_pending().expect_err("it says so again"), failure);
    // The command at which it was lost takes no effect, as with any instance that hangs; the next program goes on behind it.
    let mut next = attach_driven::<Tally>(&client, "tally").expect("it attaches again");
    let mut run_until_ended = |mut asked: Child| {
        wait_for("the call is answered", || {
            let _ = next.wait(Some(std::time::Duration::from_millis(20))).expect("it runs");
            asked.try_wait().expect("it is ours")
        });
        let output = asked.wait_with_output().expect("it has ended");
        String::from_utf8(output.stdout).expect("text") + &String::from_utf8(output.stderr).expect("text")
    };
    let first = run_until_ended(asked);
    for words in ["it took no effect", "said nothing", "--kind instance-failed"] {
        assert!(first.contains(words), "{first}");
    }
    let second = run_until_ended(cluster.start(&["call", "tally", r#"{"add":4}"#]));
    assert!(second.contains("\"value\":4"), "{second}");
}

#[test]
fn what_cannot_attach_is_told_why() {
    let cluster = Cluster::up(2, &[]);
    let refused = |member: &str, words: &str| {
        let Err(failure) = attach_at(cluster.place(), member) else { panic!("it is refused") };
        assert!(failure.message.contains(words), "{words} in {failure:?}");
    };
    refused("k0", "no plug-in of that name is loaded");
    load(&cluster, &["--mode", "single", "--on", "k1"]);
    refused("k0", "its instances are on other members");
    let attached = attach_at(cluster.place(), "k1").expect("it attaches");
    runs(&cluster, "k1", std::process::id());
    refused("k1", "another application runs");
    let _ = cluster.ok(&["plugin", "unload", "tally"]);
    attached.wait().expect("it was unloaded");
    let _ = cluster.ok(&["plugin", "load", "counter", "--name", "tally"]);
    refused("k0", "is not loaded with --placement application");

    let usage = |arguments: &[&str], words: &str| {
        let load = ["plugin", "load", "--placement", "application"];
        let text = cluster.json(&[&load[..], arguments].concat()).error("usage", 2);
        assert!(text.contains(words), "{words} in {text}");
    };
    usage(&["counter"], "brings its own code");
    usage(&[], "under which name?");
    usage(&["--name", "other", "--limit", "memory=64M"], "no --limit");
    // A configuration that the application refuses is told to it, and nothing runs.
    let _ = cluster.ok(&["plugin", "unload", "tally"]);
    load(&cluster, &["-c", "step=0"]);
    let attached = attach_at(cluster.place(), "k0").expect("a place is free");
    assert!(attached.wait().is_err(), "its configuration is no good");
    assert_eq!(instance(&cluster, "k0")["state"], json!("starting"));
}
