//! Jobs without a DVM: in the one in memory, with processes that follow a script, under seeds.

use super::Jobs;
use dvm_plugin_api::testing::{Chance, Dvm, Mode, Script, Started, Testbed, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often each process was started, by its key.
type Starts = Arc<Mutex<BTreeMap<String, u32>>>;

/// A program is the milliseconds it takes and what becomes of it.
fn script(Started { program, member, .. }: &Started) -> Script {
    let argv: Vec<&str> = program.argv.iter().map(String::as_str).collect();
    let takes = |ms: &str| Script::new().after(Duration::from_millis(ms.parse().expect("a number")));
    match argv[..] {
        [ms, "exit", code] => takes(ms)
            .stdout(format!("{} on {member}", program.env["DVM_JOB"]))
            .exit(code.parse().expect("a code")),
        [ms, "signal", name] => takes(ms).signal(name),
        ["for ever"] => Script::new(),
        _ => Script::new().fails("there is no such program"),
    }
}

fn bed(seed: u64) -> (Testbed, Starts) {
    let starts = Starts::default();
    let counted = starts.clone();
    let bed = Testbed::of::<Jobs>(seed).name("jobs").mode(Mode::Hot).instances(3).processes(move |started| {
        let mut starts = counted.lock().unwrap_or_else(PoisonError::into_inner);
        *starts.entry(started.key.clone()).or_default() += 1;
        script(started)
    });
    (bed, starts)
}

fn up(seed: u64) -> (Dvm, Starts) {
    let (bed, starts) = bed(seed);
    (bed.start().expect("it starts"), starts)
}

fn submit(dvm: &mut Dvm, order: Value) -> u64 {
    dvm.call(json!({"submit": order})).expect("it is taken")["job"].as_u64().expect("a number")
}

fn show(dvm: &mut Dvm, job: u64) -> Value {
    dvm.query(json!({"show": job})).expect("it is shown")
}

fn wait(dvm: &mut Dvm, ms: u64) {
    dvm.advance(Duration::from_millis(ms)).expect("time goes on");
}

/// State, number of the try, and exit of the first task.
fn first(dvm: &mut Dvm, job: u64) -> (String, u64, i64) {
    let task = &show(dvm, job)["tasks"][0];
    let text = task["state"].as_str().expect("a state").to_owned();
    (text, task["attempt"].as_u64().expect("a number"), task["exit"].as_i64().unwrap_or(-1))
}

#[test]
fn a_job_runs_is_tried_again_and_tells_how_it_ended() {
    let (mut dvm, _) = up(1);
    let good = submit(&mut dvm, json!({"argv": ["30", "exit", "0"], "on": ["k2"]}));
    let bad = submit(&mut dvm, json!({"argv": ["10", "exit", "3"], "retries": 2}));
    let none = submit(&mut dvm, json!({"argv": ["nothing"]}));
    assert_eq!(first(&mut dvm, good), ("running".into(), 0, -1));
    assert_eq!(first(&mut dvm, none), ("failed".into(), 0, 127));
    wait(&mut dvm, 30);
    let shown = show(&mut dvm, good);
    assert_eq!((&shown["exit"], &shown["tasks"][0]["stdout"]["text"]), (&json!(0), &json!("1 on k2")));
    assert_eq!(first(&mut dvm, bad), ("failed".into(), 2, 3), "three times ten milliseconds are over");
    let killed = submit(&mut dvm, json!({"argv": ["1", "signal", "SIGSEGV"]}));
    let ended = submit(&mut dvm, json!({"argv": ["for ever"]}));
    dvm.call(json!({"cancel": ended})).expect("it is cancelled");
    wait(&mut dvm, 1);
    assert_eq!(first(&mut dvm, killed).2, 139);
    assert_eq!(first(&mut dvm, ended), ("cancelled".into(), 0, 143));
}

#[test]
fn a_lost_primary_loses_no_result_and_nothing_runs_twice() {
    let (mut dvm, starts) = up(2);
    let job = submit(&mut dvm, json!({"argv": ["500", "exit", "0"], "on": ["k2"]}));
    for _ in 0..2 {
        wait(&mut dvm, 100);
        let primary = dvm.primary().expect("there is one").to_owned();
        match primary.as_str() {
            "k2" => dvm.promote().expect("there is a standby"),
            other => dvm.crash(other).expect("it goes on"),
        }
        dvm.join().expect("it joins");
    }
    wait(&mut dvm, 400);
    assert_eq!(first(&mut dvm, job), ("done".into(), 0, 0));
    let text = show(&mut dvm, job)["tasks"][0]["stdout"]["text"].clone();
    assert_eq!(text, "1 on k2", "the last primary has all of the output");
    assert_eq!(*starts.lock().expect("whole"), BTreeMap::from([("1.0.0".into(), 1)]));
}

#[test]
fn what_a_lost_member_ran_is_run_again_elsewhere_or_has_failed() {
    let (mut dvm, _) = up(3);
    let orders = [json!({}), json!({"once": true}), json!({"on": ["k2"]})];
    let jobs = orders.map(|more| {
        let mut order = json!({"argv": ["100", "exit", "0"], "on": [], "count": 3});
        if more.get("on").is_some() {
            order.as_object_mut().expect("an object").remove("count");
        }
        order.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        submit(&mut dvm, order)
    });
    dvm.crash("k2").expect("it goes on");
    wait(&mut dvm, 200);
    let states = |dvm: &mut Dvm, job: u64| {
        let shown = show(dvm, job);
        let tasks = shown["tasks"].as_array().expect("tasks").iter();
        let mut states: Vec<_> =
            tasks.map(|task| task["state"].as_str().expect("a state").to_owned()).collect();
        states.sort_unstable();
        states.join(" ")
    };
    assert_eq!(states(&mut dvm, jobs[0]), "done done done");
    assert_eq!(states(&mut dvm, jobs[1]), "done done failed");
    assert_eq!(states(&mut dvm, jobs[2]), "failed");
}

/// Whatever becomes of members, instances and primaries: when all is over, every job has one result, and no try was
/// started twice.
#[test]
fn every_job_has_one_result_under_every_seed() {
    let mut lost = 0;
    for seed in 0..5 {
        let (mut dvm, starts) = up(seed);
        let report = dvm.run(80, |chance: &mut Chance| {
            let ms = chance.within(0..400).to_string();
            let argv = match chance.within(0..5) {
                0 => json!([ms, "signal", "SIGABRT"]),
                1 => json!([ms, "exit", "1"]),
                _ => json!([ms, "exit", "0"]),
            };
            match chance.within(0..8) {
                0 => json!({"cancel": chance.within(1..20)}),
                _ => json!({"submit": {"argv": argv, "count": chance.within(1..4), "retries": chance.within(0..3)}}),
            }
        });
        let report = report.unwrap_or_else(|failure| panic!("{failure}"));
        lost += report.crashes;
        for _ in 0..40 {
            wait(&mut dvm, 500);
        }
        let listed = dvm.query(json!({"list": true})).expect("a list");
        let open: Vec<_> =
            listed["jobs"].as_array().expect("jobs").iter().filter(|job| job["exit"].is_null()).collect();
        assert!(open.is_empty(), "seed {seed}: {open:?}\n{:#?}", dvm.logged());
        let starts = starts.lock().expect("whole");
        assert!(starts.len() > 15 && starts.values().all(|times| *times == 1), "seed {seed}: {starts:?}");
    }
    assert!(lost > 0);
}
