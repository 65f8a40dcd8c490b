//! Services of the host in memory: each asked for by a plug-in that asks whatever a test wants and logs what comes of it.

use super::Sample;
use crate::service::{Ask, FOLLOWED_MAX, TIMERS_MAX, UNDONE_MAX, WAITING_MAX, WATCHES_MAX};
use crate::testing::{Breach, Dvm, Failure, Mode, Script, Started, Testbed, Value, json};
use crate::worker::{Work, Worker};
use crate::{Error, Event, Host, Meta, Plugin, Result, Role};
use serde::Deserialize;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(default)]
struct Config {
    /// Each event that comes to it alone is noted in its state, as it should not be.
    notes_alone: bool,
    /// It is asked in `start`.
    start: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self { notes_alone: false, start: Some(json!({"get": {"key": "any"}})) }
    }
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Command {
    /// The instance on a member asks, by its worker.
    Do {
        on: String,
        ask: Value,
    },
    /// It asks in a message to itself, and so in a callback.
    Try {
        r#try: Value,
    },
    Note {
        note: Value,
    },
}

struct Asker {
    host: Host,
    worker: Worker<Value>,
    notes_alone: bool,
    notes: Vec<Value>,
}

fn ask(host: &Host, ask: &Value) -> Result<Value> {
    host.ask(&serde_json::from_value::<Ask>(ask.clone())?)
}

fn say(host: &Host, result: Result<Value>) {
    host.log(match result {
        Ok(answer) => format!("answer {answer}"),
        Err(error) => format!("error {error}"),
    });
}

impl Plugin for Asker {
    type Config = Config;
    type Command = Command;
    type Reply = Value;

    fn validate(_: &Config, host: &Host) -> Result<()> {
        match host.get::<Value>("any") {
            Err(error) if error.to_string().contains("validate only looks") => Ok(()),
            other => Err(Error::new(format!("it was answered: {other:?}"))),
        }
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        if let Some(first) = config.start {
            say(&host, ask(&host, &first));
        }
        let worker = host.worker("asker", |host, work| {
            say(host, ask(host, work));
            Work::Done
        })?;
        Ok(Self { host, worker, notes_alone: config.notes_alone, notes: Vec::new() })
    }

    fn apply(&mut self, command: Command, _: &Meta) -> Result<Value> {
        match command {
            Command::Do { on, ask } if on == self.host.member() => self.worker.give(ask)?,
            Command::Do { .. } => {}
            Command::Try { r#try } => return ask(&self.host, &r#try),
            Command::Note { note } => self.notes.push(note),
        }
        Ok(json!(self.notes))
    }

    fn query(&self, command: Command) -> Result<Value> {
        match command {
            Command::Try { r#try } => ask(&self.host, &r#try),
            _ => Ok(json!(self.notes)),
        }
    }

    fn on_event(&mut self, event: &Event) {
        let is_own = event.index == 0 || event.kind == "key-changed";
        if is_own {
            self.host.log(format!("{} {}", event.kind, Value::Object(event.fields.clone())));
        }
        if self.notes_alone && is_own {
            self.notes.push(json!(event.kind));
        }
        if let Some(asked) = event.fields.get("body").and_then(|body| body.get("ask")) {
            say(&self.host, ask(&self.host, asked));
        }
    }

    fn on_role(&mut self, role: Role) {
        if let Role::Primary { .. } = role {
            say(&self.host, ask(&self.host, &json!("undone")));
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.notes).expect("plain data")
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.notes = serde_json::from_slice(snapshot)?;
        Ok(())
    }
}

fn bed() -> Testbed {
    Testbed::of::<Asker>(11).name("asker")
}

fn up(bed: Testbed) -> Dvm {
    bed.start().expect("it starts")
}

/// Has the instance on a member ask; what was logged then, in order.
fn asks(dvm: &mut Dvm, on: &str, ask: &Value) -> Vec<String> {
    let before = dvm.logged().len();
    dvm.call(json!({"on": on, "ask": ask})).expect("it replies");
    dvm.logged()[before..].to_vec()
}

fn check(dvm: &mut Dvm, on: &str, ask: &Value, expected: &[&str]) {
    assert_eq!(asks(dvm, on, ask), expected, "{on} asks {ask}");
}

/// What was logged while something was done.
fn meanwhile(dvm: &mut Dvm, act: impl FnOnce(&mut Dvm)) -> Vec<String> {
    let before = dvm.logged().len();
    act(dvm);
    dvm.logged()[before..].to_vec()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn what_may_be_asked_when_is_kept_to() {
    let send =
        json!({"send": {"member": "k0", "body": {"ask": {"call": {"plugin": "asker", "command": 1}}}}});
    let mut dvm = up(bed().config(json!({"start": send})));
    let early = "error this instance is not its member's yet";
    assert!(dvm.logged().iter().all(|line| line.contains(early)), "{:?}", dvm.logged());
    for callback in ["apply", "query"] {
        let tried = json!({"try": {"get": {"key": "a"}}});
        let refused = if callback == "apply" { dvm.call(tried) } else { dvm.query(tried) };
        let Err(Failure::Own(text)) = refused else { panic!("{refused:?}") };
        assert!(text.starts_with(&format!("{callback} must come to the same")), "{text}");
    }
    let told = asks(&mut dvm, "k1", &send);
    assert_eq!(told[0], "k1: answer null");
    assert!(
        told[2].contains("error a callback of `asker` that calls `asker` would wait for itself"),
        "{told:?}"
    );
    let told = asks(&mut dvm, "k1", &json!({"done": {"index": 1}}));
    assert_eq!(
        told,
        ["k1: error this instance of `asker` is not told to be the primary, whose effects alone count"]
    );
}

#[test]
fn messages_broadcasts_and_calls_come_to_those_they_are_for() {
    let other = Testbed::of::<Sample>(3).name("sample").mode(Mode::Hot);
    let stub = |command: &Value| match command {
        Value::Number(_) => Ok(command.clone()),
        _ => Err("no number".into()),
    };
    let mut dvm = up(bed().plugin(other).stub("stub", stub));
    check(
        &mut dvm,
        "k0",
        &json!({"send": {"member": "k2", "body": "hello"}}),
        &["k0: answer null", r#"k2: message {"body":"hello","from":"k0"}"#],
    );
    check(&mut dvm, "k0", &json!({"send": {"member": "k9", "body": 1}}), &["k0: error no member `k9`"]);
    let large = json!({"send": {"member": "k1", "body": "x".repeat(70_000)}});
    check(&mut dvm, "k0", &large, &["k0: error a message has at most 65536 bytes of JSON, not 70002"]);

    let told = asks(&mut dvm, "k1", &json!({"broadcast": {"command": {"note": "all"}}}));
    assert!(told[0].starts_with("k1: answer {\"index\":"), "{told:?}");
    assert_eq!(dvm.query(json!({"note": 0})), Ok(json!(["all"])));
    let first = dvm.snapshot("k0").expect("a state");
    assert_eq!((&first, &first), (&dvm.snapshot("k1").expect("one"), &dvm.snapshot("k2").expect("one")));

    let told = asks(&mut dvm, "k2", &json!({"call": {"plugin": "sample", "command": {"add": 4}}}));
    assert!(told[0].contains("\"value\":4"), "{told:?}");
    dvm.crash("k0").expect("it goes on, and the other plug-in has a new primary");
    let told = asks(&mut dvm, "k2", &json!({"call": {"plugin": "sample", "command": {"add": 1}}}));
    assert!(told[0].contains("\"value\":5"), "{told:?}");
    let query = json!({"call": {"plugin": "sample", "command": {"add": 1}, "query": true}});
    assert!(asks(&mut dvm, "k1", &query)[0].contains("\"value\":5"));
    let primary = dvm.plugin("sample", |sample| sample.primary().map(str::to_owned)).expect("it is there");
    assert_eq!(primary.as_deref(), Some("k1"));
    check(
        &mut dvm,
        "k1",
        &json!({"call": {"plugin": "sample", "command": {"add": 0}}}),
        &["k1: error nothing to add"],
    );
    check(&mut dvm, "k1", &json!({"call": {"plugin": "stub", "command": 7}}), &["k1: answer 7"]);
    check(&mut dvm, "k1", &json!({"call": {"plugin": "stub", "command": []}}), &["k1: error no number"]);
    let told = asks(&mut dvm, "k1", &json!({"call": {"plugin": "nobody", "command": 1}}));
    assert!(told[0].contains("no plug-in `nobody` is loaded"), "{told:?}");
}

#[test]
fn what_does_not_fit_is_refused_and_what_was_lost_is_told() {
    let mut dvm = up(bed().members(2));
    dvm.pause("k1").expect("it is there");
    let message = json!({"send": {"member": "k1", "body": 1}});
    let last = |dvm: &Dvm| dvm.logged().pop().expect("a line");
    for _ in 0..WAITING_MAX {
        dvm.call(json!({"on": "k0", "ask": message})).expect("it replies");
    }
    assert_eq!(last(&dvm), "k0: answer null");
    dvm.call(json!({"on": "k0", "ask": message})).expect("it replies");
    assert_eq!(
        last(&dvm),
        "k0: error k1 has an instance of `asker` for which 1024 events wait; send it later"
    );
    dvm.resume("k1").expect("it is told");
    assert!(last(&dvm).starts_with("k1: message"), "{}", last(&dvm));
    dvm.call(json!({"on": "k1", "ask": {"watch": {"prefix": "app/"}}})).expect("it replies");
    dvm.pause("k1").expect("it is there");
    for number in 0..WAITING_MAX + 3 {
        dvm.set_key("app/x", Some(json!(number))).expect("it is set");
    }
    dvm.resume("k1").expect("it is told");
    assert_eq!(last(&dvm), r#"k1: overflow {"lost":3}"#);
    for (most, what, ask) in [
        (TIMERS_MAX, "timers are set", json!({"timer": {"name": "#", "after_ms": 1_000}})),
        (WATCHES_MAX, "prefixes are watched", json!({"watch": {"prefix": "#"}})),
        (
            FOLLOWED_MAX,
            "processes are followed",
            json!({"spawn": {"member": "k0", "key": "#", "argv": ["a"]}}),
        ),
    ] {
        let mut dvm = up(bed().members(1).processes(|_| Script::new()));
        let numbered =
            |number: usize| serde_json::from_str::<Value>(&ask.to_string().replace('#', &number.to_string()));
        for number in 0..most {
            dvm.call(json!({"on": "k0", "ask": numbered(number).expect("JSON")})).expect("it replies");
        }
        assert!(!last(&dvm).contains(what), "{}", last(&dvm));
        dvm.call(json!({"on": "k0", "ask": numbered(most).expect("JSON")})).expect("it replies");
        assert!(last(&dvm).contains(&format!("{most} {what} by this instance already")), "{}", last(&dvm));
    }
}

#[test]
fn keys_are_read_written_and_watched() {
    let mut dvm = up(bed());
    check(&mut dvm, "k1", &json!({"watch": {"prefix": "app/"}}), &["k1: answer null"]);
    let told = asks(&mut dvm, "k0", &json!({"put": {"key": "app/x", "value": {"n": 1}}}));
    let (value, version) = dvm.key("app/x").expect("it is there");
    assert_eq!(value, json!({"n": 1}));
    assert_eq!(told[0], format!("k0: answer {{\"version\":{version}}}"));
    assert_eq!(told[1], format!("k1: key-changed {{\"key\":\"app/x\",\"version\":{version}}}"));
    check(
        &mut dvm,
        "k2",
        &json!({"get": {"key": "app/x"}}),
        &[&format!("k2: answer {{\"value\":{{\"n\":1}},\"version\":{version}}}")],
    );
    check(&mut dvm, "k0", &json!({"put": {"key": "app/x", "value": 2, "version": 0}}), &["k0: answer null"]);
    let told = asks(&mut dvm, "k0", &json!({"put": {"key": "app/x", "value": 2, "version": version}}));
    assert!(told[0].starts_with("k0: answer {"), "{told:?}");
    let told = asks(&mut dvm, "k0", &json!({"put": {"key": "dvm/x", "value": 2}}));
    assert!(told[0].contains("cannot be changed"), "{told:?}");
    check(
        &mut dvm,
        "k0",
        &json!({"delete": {"key": "app/x"}}),
        &["k0: answer null", r#"k1: key-changed {"key":"app/x","version":null}"#],
    );
    check(&mut dvm, "k0", &json!({"delete": {"key": "app/x"}}), &["k0: answer null"]);
    check(&mut dvm, "k0", &json!({"get": {"key": "app/x"}}), &["k0: answer null"]);
    check(&mut dvm, "k1", &json!({"unwatch": {"prefix": "app/"}}), &["k1: answer null"]);
    dvm.set_key("app/y", Some(json!(1))).expect("it is set");
    assert!(!dvm.logged().iter().any(|line| line.contains("app/y")));
    assert_eq!(dvm.keys("app/").len(), 1);
    assert!(matches!(dvm.set_key("", None), Err(Failure::Misuse(_))));
}

#[test]
fn timers_tick_on_the_clock_of_the_dvm() {
    let mut dvm = up(bed().members(2));
    let tick = r#"k0: timer {"name":"tick"}"#;
    check(
        &mut dvm,
        "k0",
        &json!({"timer": {"name": "tick", "after_ms": 0, "every_ms": 1}}),
        &["k0: answer null", tick],
    );
    let told = meanwhile(&mut dvm, |dvm| dvm.advance(ms(35)).expect("time goes on"));
    assert_eq!(told, [tick; 3], "no more than every 10 ms");
    check(&mut dvm, "k0", &json!({"timer": {"name": "tick", "after_ms": 50}}), &["k0: answer null"]);
    let told = meanwhile(&mut dvm, |dvm| dvm.advance(ms(1_000)).expect("time goes on"));
    assert_eq!(told, [tick], "it took the place of the other, and ticks once");
    asks(&mut dvm, "k0", &json!({"timer": {"name": "tick", "after_ms": 5, "every_ms": 10}}));
    check(&mut dvm, "k0", &json!({"cancel-timer": {"name": "tick"}}), &["k0: answer null"]);
    asks(&mut dvm, "k1", &json!({"timer": {"name": "tock", "after_ms": 5}}));
    dvm.fail("k1").expect("it is started again");
    let told = meanwhile(&mut dvm, |dvm| dvm.advance(ms(100)).expect("time goes on"));
    assert_eq!(told, [""; 0], "what an instance has set going ends with it");
    assert_eq!(dvm.now(), ms(1_135));
}

fn scripted(what: &Started) -> Script {
    match what.program.argv.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hello", name] => Script::new().after(ms(10)).stdout(format!("hello {name}")).stderr([0xff]).exit(3),
        ["stubborn"] => Script::new().stubborn(),
        ["segv"] => Script::new().signal("SIGSEGV"),
        _ => Script::new(),
    }
}

#[test]
fn processes_do_what_their_scripts_say_and_are_followed() {
    let mut dvm = up(bed().processes(scripted));
    let spawn = |member: &str, key: &str, argv: &[&str]| json!({"spawn": {"member": member, "key": key, "argv": argv}});
    let started = r#"k0: process-started {"key":"p","member":"k2","pid":1001}"#;
    check(&mut dvm, "k0", &spawn("k2", "p", &["hello", "you"]), &["k0: answer null", started]);
    let told = meanwhile(&mut dvm, |dvm| dvm.advance(ms(10)).expect("time goes on"));
    let all = |member: &str| {
        [
            r#"process-output {"at":0,"key":"p","member":"k2","stream":"stdout","text":"hello you"}"#,
            "process-output {\"at\":0,\"key\":\"p\",\"member\":\"k2\",\"stream\":\"stderr\",\"text\":\"\u{fffd}\"}",
            r#"process-exit {"exit_code":3,"key":"p","member":"k2"}"#,
        ]
        .map(|line| format!("{member}: {line}"))
    };
    assert_eq!(told, all("k0"));
    let late = asks(&mut dvm, "k1", &spawn("k2", "p", &["hello", "somebody else"]));
    assert_eq!(late[2..], all("k1"), "it follows the one that there was");

    for (argv, wait, end) in [(&["sleep"][..], 0, "SIGTERM"), (&["stubborn"], 2_000, "SIGKILL")] {
        asks(&mut dvm, "k0", &spawn("k1", argv[0], argv));
        let told = asks(&mut dvm, "k0", &json!({"kill": {"member": "k1", "key": argv[0]}}));
        assert_eq!(told.len(), if wait == 0 { 2 } else { 1 }, "{told:?}");
        dvm.advance(ms(wait)).expect("time goes on");
        assert!(
            dvm.logged().last().expect("a line").contains(&format!("\"signal\":\"{end}\"")),
            "{:?}",
            dvm.logged()
        );
    }
    let told = asks(&mut dvm, "k0", &spawn("k1", "s", &["segv"]));
    assert!(told[2].contains("\"signal\":\"SIGSEGV\""), "{told:?}");

    asks(&mut dvm, "k0", &spawn("k1", "lost", &["sleep"]));
    let told = meanwhile(&mut dvm, |dvm| {
        dvm.crash("k1").expect("it goes on");
        dvm.advance(ms(1_000)).expect("time goes on");
    });
    assert_eq!(told, [""; 0], "nobody tells of what a lost member ran");
    check(&mut dvm, "k0", &spawn("k1", "again", &["sleep"]), &["k0: error no member `k1`"]);
    check(&mut dvm, "k0", &spawn("k0", "none", &[]), &["k0: error no program is named: argv is empty"]);

    let mut dvm = up(bed());
    let told = asks(&mut dvm, "k0", &spawn("k0", "p", &["true"]));
    let none = "no process is scripted in this test: see `Testbed::processes`";
    assert_eq!(
        told[1..],
        [format!("k0: process-exit {{\"error\":\"{none}\",\"key\":\"p\",\"member\":\"k0\"}}")]
    );
}

/// The indices of undone commands that the present primary was told, and whether there are more.
fn undone(dvm: &Dvm) -> (Vec<u64>, bool) {
    let primary = dvm.primary().expect("there is one");
    let line = dvm
        .logged()
        .into_iter()
        .rev()
        .find(|line| line.starts_with(&format!("{primary}: answer {{\"commands")));
    let answer: Value =
        serde_json::from_str(line.expect("it asked").split_once("answer ").expect("an answer").1)
            .expect("JSON");
    let commands = answer["commands"].as_array().expect("commands").iter();
    (commands.map(|command| command["index"].as_u64().expect("a number")).collect(), answer["more"] == true)
}

#[test]
fn a_new_primary_is_told_what_nobody_has_marked_as_done() {
    let mut dvm = up(bed().mode(Mode::Hot).instances(3));
    for note in 0..4 {
        dvm.call(json!({"note": note})).expect("it replies");
    }
    dvm.promote().expect("there is a standby");
    let (all, more) = undone(&dvm);
    assert_eq!((all.len(), more), (4, false));
    let primary = dvm.primary().expect("one").to_owned();
    check(&mut dvm, &primary, &json!({"done": {"index": all[2]}}), &[&format!("{primary}: answer null")]);
    // An older mark changes nothing.
    asks(&mut dvm, &primary, &json!({"done": {"index": all[0]}}));
    assert_eq!(dvm.key("dvm/effects/asker").expect("a mark").0["done"], json!(all[2]));
    dvm.crash(&primary).expect("it goes on");
    let (left, _) = undone(&dvm);
    assert_eq!(left[0], all[3]);
    assert_eq!(left.len(), 3, "and the two commands that asked");
    let refused = asks(&mut dvm, "k0", &json!({"done": {"index": 9}}));
    assert!(refused.iter().all(|line| !line.contains("error") || dvm.primary() != Some("k0")), "{refused:?}");
}

#[test]
fn more_undone_commands_than_one_answer_holds_come_in_several() {
    let mut dvm = up(bed().mode(Mode::Hot).members(2));
    // Nobody is called so, and it costs no more than its bytes.
    let large = json!({"on": "nobody", "ask": "x".repeat(UNDONE_MAX / 4)});
    for _ in 0..6 {
        dvm.call(large.clone()).expect("it replies");
    }
    dvm.promote().expect("there is a standby");
    let (first, more) = undone(&dvm);
    assert_eq!((first.len(), more), (3, true), "each is a little larger than a quarter");
    asks(&mut dvm, "k1", &json!({"done": {"index": first[2]}}));
    asks(&mut dvm, "k1", &json!("undone"));
    let (rest, more) = undone(&dvm);
    assert_eq!((rest.len(), more), (3, false));
    assert!(rest[0] > first[2]);
}

#[test]
fn what_comes_to_one_instance_alone_changes_no_state() {
    let mut dvm = up(bed().config(json!({"notes_alone": true})));
    let broken = dvm.call(json!({"on": "k0", "ask": {"send": {"member": "k2", "body": 1}}}));
    let Err(Failure::Broken(broken)) = broken else { panic!("{broken:?}") };
    assert_eq!((broken.breach, &*broken.member), (Breach::Alone, "k2"), "{broken}");
    assert!(broken.to_string().contains("by `broadcast`"), "{broken}");
}

/// Two runs under a seed log the same, with timers, processes and messages between crashes and promotions.
#[test]
fn the_same_seed_does_the_same() {
    let run = |seed: u64| {
        let mut dvm =
            up(Testbed::of::<Asker>(seed).name("asker").mode(Mode::Hot).instances(3).processes(scripted));
        let report = dvm.run(300, |chance: &mut crate::testing::Chance| {
            let (on, to) = (format!("k{}", chance.within(0..4)), format!("k{}", chance.within(0..4)));
            let number = chance.within(0..9);
            let ask = match chance.within(0..6) {
                0 => json!({"send": {"member": to, "body": number}}),
                1 => json!({"broadcast": {"command": {"note": number}}}),
                2 => json!({"put": {"key": format!("a/{number}"), "value": number}}),
                3 => json!({"timer": {"name": format!("t{number}"), "after_ms": 7, "every_ms": 90}}),
                4 => json!({"spawn": {"member": to, "key": format!("p{number}"), "argv": ["hello", "x"]}}),
                _ => json!({"watch": {"prefix": "a/"}}),
            };
            json!({"on": on, "ask": ask})
        });
        let report = report.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        (report, dvm.logged(), dvm.keys(""), dvm.now())
    };
    for seed in 0..6 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.1.iter().any(|line| line.contains(": timer ")), "{:?}", first.1);
    }
}
