//! A plug-in that is as it should be in every mode, and ones that each break one thing.

mod services;

use super::*;
use crate::{Error, Event, Host, Meta, Plugin, Result, Role};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

/// What is wrong with the plug-in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Wrong {
    #[default]
    Nothing,
    Clock,
    HashMap,
    Member,
    RoleInState,
    ForgetsOnRestore,
    RefusesState,
    ChangesInQuery,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    wrong: Wrong,
    step: i64,
    refuse: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { wrong: Wrong::Nothing, step: 1, refuse: false }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Command {
    Add(i64),
    Fail,
    FailOn(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    value: i64,
    applied: u64,
    last: u64,
    seeds: u64,
    events: BTreeMap<String, u64>,
    noise: u64,
}

struct Sample {
    config: Config,
    host: Host,
    state: State,
    seen: HashMap<u64, u64>,
    queried: std::cell::Cell<u64>,
}

impl Plugin for Sample {
    type Config = Config;
    type Command = Command;
    type Reply = State;

    fn validate(config: &Config, _: &Host) -> Result<()> {
        if config.refuse { Err(Error::new("it is to refuse")) } else { Ok(()) }
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        Ok(Self { config, host, state: State::default(), seen: HashMap::new(), queried: 0.into() })
    }

    fn apply(&mut self, command: Command, meta: &Meta) -> Result<State> {
        let _ = self.host.token();
        match command {
            Command::Add(0) => return Err(Error::new("nothing to add")),
            Command::Add(count) => self.state.value += count * self.config.step,
            Command::Fail => panic!("as it was told"),
            Command::FailOn(member) if member == self.host.member() => panic!("on {member}"),
            Command::FailOn(_) => {}
        }
        self.state.applied += 1;
        assert!(meta.index > self.state.last, "indices rise");
        self.state.last = meta.index;
        self.state.seeds ^= meta.seed ^ meta.time ^ meta.fence;
        self.seen.insert(meta.index, meta.seed);
        self.state.noise = match self.config.wrong {
            Wrong::Clock => SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64,
            Wrong::HashMap => *self.seen.keys().next().expect("one was put there"),
            Wrong::Member => u64::from(self.host.rank()),
            _ => self.state.noise,
        };
        Ok(self.state.clone())
    }

    fn query(&self, _: Command) -> Result<State> {
        self.queried.set(self.queried.get() + 1);
        Ok(self.state.clone())
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.config = config;
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        *self.state.events.entry(event.kind.clone()).or_default() += 1;
    }

    fn on_role(&mut self, role: Role) {
        if self.config.wrong == Wrong::RoleInState && role != Role::Standby {
            self.state.noise += 1;
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut state = self.state.clone();
        if self.config.wrong == Wrong::ChangesInQuery {
            state.noise = self.queried.get();
        }
        serde_json::to_vec(&state).expect("plain data")
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        if self.config.wrong == Wrong::RefusesState {
            return Err(Error::new("it is not mine"));
        }
        self.state = serde_json::from_slice(snapshot)?;
        if self.config.wrong == Wrong::ForgetsOnRestore {
            self.state.seeds = 0;
        }
        Ok(())
    }
}

fn commands(chance: &mut Chance) -> Value {
    json!({"add": chance.within(-3..9)})
}

fn bed(wrong: &str, seed: u64) -> Testbed {
    Testbed::of::<Sample>(seed).config(json!({"wrong": wrong}))
}

fn breach(wrong: &str, mode: Mode) -> Broken {
    let mut dvm = bed(wrong, 5).mode(mode).instances(3).start().expect("it starts");
    match dvm.run(400, commands) {
        Err(Failure::Broken(broken)) => *broken,
        other => panic!("{wrong}: {other:?}"),
    }
}

const MODES: [Mode; 4] = [Mode::Parallel, Mode::Hot, Mode::Warm, Mode::Single];

#[test]
fn a_plugin_that_is_as_it_should_be_gets_through_in_every_mode() {
    let mut all = Report::default();
    for mode in MODES {
        for seed in 0..8 {
            let mut dvm = bed("nothing", seed).mode(mode).start().expect("it starts");
            let report = dvm.run(250, commands).unwrap_or_else(|failure| panic!("{mode:?}: {failure}"));
            assert!(report.replies > 50, "{mode:?}: {report:?}");
            let fences: Vec<_> = dvm.tokens().into_iter().map(|(_, fence)| fence).collect();
            assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
            assert_eq!(fences.is_empty(), mode == Mode::Parallel);
            all = all + report;
            dvm.stop().expect("it stops");
        }
    }
    assert!(all.crashes > 0 && all.joins > 0 && all.promotions > 0 && all.late > 0, "{all:?}");
}

#[test]
fn every_command_takes_effect_once_whatever_becomes_of_primaries() {
    for mode in MODES {
        let mut dvm = bed("nothing", 1).mode(mode).start().expect("it starts");
        for count in 1..=20 {
            let reply = dvm.call(json!({"add": 2})).expect("it replies");
            assert_eq!((&reply["value"], &reply["applied"]), (&json!(2 * count), &json!(count)), "{mode:?}");
            let lost = dvm.primary().map_or_else(|| dvm.names()[0].clone(), str::to_owned);
            match count % 3 {
                0 => dvm.fail(&lost).expect("it goes on"),
                1 => {
                    dvm.join().expect("it joins");
                    dvm.crash(&lost).expect("it goes on");
                }
                _ => dvm.keep_snapshot().expect("there is one"),
            }
        }
        let reply = dvm.query(json!({"add": 0})).expect("it answers");
        assert_eq!(reply["value"], json!(40), "{mode:?}");
    }
}

#[test]
fn what_is_not_determined_by_state_and_command_parts_instances_and_is_named() {
    for mode in [Mode::Parallel, Mode::Hot] {
        for wrong in ["clock", "hash-map", "member"] {
            let broken = breach(wrong, mode);
            assert_eq!(broken.breach, Breach::Parted, "{broken}");
            let command = broken.command.as_ref().expect("at a command");
            let text = broken.to_string();
            for words in ["seed 5", &command.to_string(), &format!("index {}", broken.index), "reply on"] {
                assert!(text.contains(words), "{words} in {text}");
            }
            assert_eq!(breach("member", mode), breach("member", mode), "the same seed does the same");
        }
    }
    assert_eq!(breach("role-in-state", Mode::Hot).breach, Breach::Parted);
    // One instance alone can part from itself: what it replied before it was lost is known.
    for mode in [Mode::Warm, Mode::Single] {
        assert_eq!(breach("clock", mode).breach, Breach::Parted);
    }
}

#[test]
fn a_state_that_does_not_survive_its_way_to_another_instance_is_told() {
    for mode in MODES {
        assert_eq!(breach("forgets-on-restore", mode).breach, Breach::HandedOver);
        let broken = breach("refuses-state", mode);
        assert_eq!((broken.breach, &*broken.detail), (Breach::Refused, "it is not mine"));
        assert_eq!(breach("changes-in-query", mode).breach, Breach::Queried);
    }
}

#[test]
fn what_fails_everywhere_is_left_out_and_what_fails_at_one_costs_that_one() {
    for mode in MODES {
        let mut dvm = bed("nothing", 3).mode(mode).start().expect("it starts");
        dvm.call(json!({"add": 3})).expect("it replies");
        let failed = dvm.call(json!("fail")).expect_err("every instance fails");
        assert_eq!(failed, Failure::Own("the plug-in fails at this; it took no effect".into()));
        let reply = dvm.call(json!({"add": 4})).expect("the next one works");
        assert_eq!((&reply["value"], &reply["applied"]), (&json!(7), &json!(2)), "{mode:?}");
        assert!(reply["events"]["instance-failed"].as_u64() > Some(0), "{reply}");
    }
    let mut dvm = bed("nothing", 3).start().expect("it starts");
    let reply = dvm.call(json!({"fail-on": "k1"})).expect("the others reply");
    assert_eq!(reply["applied"], json!(1));
    let reply = dvm.call(json!({"add": 1})).expect("it replies");
    assert_eq!((&reply["applied"], &reply["events"]["instance-failed"]), (&json!(2), &json!(1)));
    // A run is for what should not happen.
    let broken = dvm.run(50, [json!("fail")]).expect_err("a panic");
    assert!(matches!(&broken, Failure::Broken(broken) if broken.breach == Breach::Panicked), "{broken}");
    let mut dvm = bed("nothing", 3).may_panic().start().expect("it starts");
    let report = dvm.run(100, [json!("fail"), json!({"add": 1})]).expect("it goes on");
    assert!(report.panics > 0 && report.replies > 0, "{report:?}");
}

#[test]
fn one_that_is_paused_is_told_later_and_may_not_act_meanwhile() {
    let mut dvm = bed("nothing", 9).mode(Mode::Hot).start().expect("it starts");
    assert_eq!(dvm.primary(), Some("k0"));
    dvm.pause("k0").expect("it is there");
    let late = dvm.call(json!({"add": 1})).expect_err("nobody answers");
    assert!(matches!(late, Failure::Unanswered(_)), "{late}");
    dvm.promote().expect("there is a standby");
    assert_eq!(dvm.primary(), Some("k1"));
    let reply = dvm.call(json!({"add": 1})).expect("the new primary replies");
    assert_eq!((&reply["value"], &reply["applied"]), (&json!(2), &json!(2)));
    let before = dvm.tokens().len();
    dvm.resume("k0").expect("it is told the rest");
    assert_eq!(dvm.tokens().len(), before, "it was given no token though it heard of its role late");
    assert_eq!(dvm.snapshot("k0").expect("a state"), dvm.snapshot("k1").expect("a state"));
}

#[test]
fn the_plugins_own_errors_are_told_as_they_are() {
    let refused = Testbed::of::<Sample>(1).config(json!({"refuse": true})).start().err().expect("it refuses");
    assert_eq!(refused, Failure::Own("it is to refuse".into()));
    let mut dvm = Testbed::of::<Sample>(1).start().expect("it starts");
    assert_eq!(dvm.call(json!({"add": 0})), Err(Failure::Own("nothing to add".into())));
    let Err(Failure::Own(text)) = dvm.call(json!({"subtract": 1})) else { panic!("it is no command") };
    assert!(text.contains("unknown variant `subtract`"), "{text}");
    assert_eq!(dvm.configure(json!({"refuse": true})), Err(Failure::Own("it is to refuse".into())));
    dvm.configure(json!({"step": 10})).expect("it takes it");
    assert_eq!(dvm.call(json!({"add": 2})).expect("it replies")["value"], json!(20));
    // One that joins was told the configuration, too.
    dvm.join().expect("it joins");
    assert_eq!(dvm.call(json!({"add": 1})).expect("all agree")["value"], json!(30));
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let mut dvm = Testbed::of::<Sample>(1).members(1).start().expect("it starts");
    for refused in [dvm.crash("k0"), dvm.crash("k9"), dvm.promote()] {
        assert!(matches!(refused, Err(Failure::Misuse(_))), "{refused:?}");
    }
    assert_eq!(dvm.names(), ["k0"]);
}
