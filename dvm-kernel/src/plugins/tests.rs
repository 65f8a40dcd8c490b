//! Managers with real children, driven as the ring's task drives them.

mod inside;
mod world;

use super::*;
use dvm_core::state::{
    Change, ConfigEdit, EventKind, InstanceState, Mode, PluginSpec, Require, SnapshotEvery, TransactionKind,
};
use dvm_core::wire::Verdict;
use serde_json::json;
use std::time::{Duration, Instant};
use world::{World, counter};

fn value(value: i64) -> Result<Result<Value, String>, ReplyError> {
    Ok(Ok(json!({ "value": value })))
}

#[tokio::test]
async fn a_counter_loads_counts_is_configured_and_unloads_without_a_trace() {
    let mut world = World::new(2).await;
    let outcome = world.load(&[("start", "10"), ("step", "2")], |_| {}).await;
    assert!(outcome.committed, "{outcome:?}");
    let index = world.command(json!({"add": 3})).await;
    for at in 0..2 {
        assert_eq!(world.reply(at, index).await, value(16));
        assert_eq!(world.reply(at, index).await, value(16), "a reply is kept");
        assert_eq!(world.query(at).await, value(16));
    }
    let keys = [("step".to_owned(), Some("100".to_owned()))].into();
    let edit = ConfigEdit { replace: false, keys };
    let configure = TransactionKind::Configure { plugin: "counter".into(), edit };
    assert!(world.transact(configure, Require::All, false).await.committed);
    let index = world.command(json!({"add": 1})).await;
    assert_eq!(world.reply(1, index).await, value(116));
    let pids = [world.pid(0).await, world.pid(1).await];
    let unload = TransactionKind::Unload { plugin: "counter".into() };
    assert!(world.transact(unload, Require::All, false).await.committed);
    assert!(matches!(world.query(0).await, Err(ReplyError::NotRunning { .. })));
    gone(&pids).await;
    world.assert_nothing_left(&pids);
}

async fn gone(pids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(Instant::now() < deadline, "a process is left");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_stops_a_load_is_told_with_stage_and_code_and_nothing_is_left() {
    let cases = [
        (vec![("refuse_on", r#"["k1"]"#)], "validate", "config", "refuse_on names k1"),
        (vec![("nonsense", "1")], "validate", "config", "unknown field `nonsense`"),
        (vec![("hang_on", r#"["k1"]"#)], "validate", "timeout", "no answer"),
    ];
    for (config, stage, code, reason) in cases {
        let mut world = World::new(2).await;
        let outcome = world.load(&config, |_| {}).await;
        assert!(!outcome.committed);
        let result = &outcome.results[&world.managers[1].identity.id];
        assert_ne!(result.verdict, Verdict::Ok);
        assert_eq!((result.stage.as_str(), result.code.as_str()), (stage, code), "{result:?}");
        assert!(result.reason.contains(reason), "{result:?}");
        world.fence(0).await;
        world.assert_nothing_left(&[]);
    }
}

#[tokio::test]
async fn a_library_that_is_none_is_refused_at_its_stage() {
    let mut short = counter();
    short.truncate(short.len() / 2);
    for (library, code) in [(b"text".to_vec(), "corrupt"), (Vec::new(), "corrupt"), (short, "corrupt")] {
        let mut world = World::with(1, library).await;
        let outcome = world.load(&[], |_| {}).await;
        let result = outcome.results.values().next().expect("one");
        assert_eq!((result.stage.as_str(), result.code.as_str()), ("check", code), "{result:?}");
        world.assert_nothing_left(&[]);
    }
    let mut world = World::new(1).await;
    let outcome = world.load(&[], |spec| spec.library.hash = [7; 32]).await;
    let result = outcome.results.values().next().expect("one");
    assert_eq!((result.stage.as_str(), result.code.as_str()), ("fetch", "not-found"));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let mut world = World::new(1).await;
    let mut spec = None;
    world.load(&[("refuse_on", r#"["k0"]"#)], |asked| spec = Some(asked.clone())).await;
    let mut spec = spec.expect("asked");
    spec.config.clear();
    let outcome = world.transact(TransactionKind::Load(Box::new(spec)), Require::All, true).await;
    assert!(outcome.committed);
    assert!(matches!(world.query(0).await, Err(ReplyError::NotRunning { .. })));
    assert_eq!(world.pid(0).await, 0);
    world.assert_nothing_left(&[]);
}

#[tokio::test]
async fn every_way_to_fail_is_told_by_its_cause_and_the_next_command_works() {
    let cases = [
        ("panic", "panic", None, None),
        ("exit", "exit", Some(3), None),
        ("abort", "signal", None, Some("SIGABRT")),
        ("segv", "signal", None, Some("SIGSEGV")),
        ("hang", "hang", None, None),
        ("overflow", "signal", None, Some("SIGABRT")),
    ];
    for (fault, cause, exit_code, signal) in cases {
        let mut world = World::new(2).await;
        assert!(world.load(&[("faults", "true")], |_| {}).await.committed);
        let before = world.command(json!({"add": 5})).await;
        assert_eq!(world.reply(1, before).await, value(5));
        world.command(json!({"fail": fault, "on": "k1"})).await;
        let after = world.command(json!({"add": 1})).await;
        world.until(|world| world.count("instance-restarted") == 1).await;
        let failure = world.events.iter().find_map(|kind| match kind {
            EventKind::InstanceFailed { failure, member, .. } if member == "k1" => Some(failure.clone()),
            _ => None,
        });
        let failure = failure.expect("it failed");
        assert_eq!(failure.cause, cause, "{failure:?}");
        assert_eq!((failure.exit_code, failure.signal.as_deref()), (exit_code, signal), "{failure:?}");
        for at in 0..2 {
            assert_eq!(world.reply(at, after).await, value(6), "{fault} at k{at}");
            assert_eq!(world.reply(at, before).await, value(5), "replies come with the snapshot");
        }
    }
}

#[tokio::test]
async fn a_command_that_kills_every_instance_takes_no_effect_anywhere() {
    for fault in ["panic", "segv"] {
        let mut world = World::new(2).await;
        assert!(world.load(&[("faults", "true"), ("step", "7")], |_| {}).await.committed);
        let mut last = world.command(json!({"add": 1})).await;
        let killer = world.command(json!({ "fail": fault })).await;
        for _ in 0..10 {
            last = world.command(json!({"add": 1})).await;
        }
        world
            .until(|world| {
                let plugin = world.state.plugins.get("counter").expect("loaded");
                world.count("instance-failed") >= 2
                    && plugin.instances.values().all(|i| i.state == InstanceState::Running)
            })
            .await;
        for at in 0..2 {
            assert_eq!(world.reply(at, last).await, value(77), "{fault} at k{at}");
            assert_eq!(world.query(at).await, value(77));
        }
        assert!(matches!(world.reply(0, killer).await, Ok(Err(_)) | Err(ReplyError::Gone)));
    }
}

#[tokio::test]
async fn an_instance_that_fails_too_often_stays_failed_and_the_others_go_on() {
    let mut world = World::new(2).await;
    assert!(world.load(&[("faults", "true")], |spec| spec.restart.times = 1).await.committed);
    for round in 1..=2 {
        world.command(json!({"fail": "exit", "on": "k1"})).await;
        world.until(|world| world.count("instance-failed") == round).await;
        if round == 1 {
            world.until(|world| world.count("instance-restarted") == 1).await;
        }
    }
    let member = world.managers[1].identity.id;
    let instances = &world.state.plugins.get("counter").expect("loaded").instances;
    assert_eq!(instances[&member].state, InstanceState::Failed);
    let index = world.command(json!({"add": 1})).await;
    assert_eq!(world.reply(0, index).await, value(1));
    assert!(matches!(world.reply(1, index).await, Err(ReplyError::NotRunning { .. })));
}

#[tokio::test]
async fn a_joiner_starts_from_anothers_snapshot_and_misses_nothing() {
    let mut world = World::new(1).await;
    assert!(world.load(&[("slow_ms", "2")], |_| {}).await.committed);
    for _ in 0..50 {
        world.command(json!({"add": 1})).await;
    }
    world.join().await;
    let mut last = HistoryIndex(0);
    for _ in 0..50 {
        last = world.command(json!({"add": 1})).await;
    }
    world.until(|world| world.count("instance-started") == 1).await;
    for at in 0..2 {
        assert_eq!(world.reply(at, last).await, value(100));
    }
    assert_ne!(world.pid(1).await, 0);
}

#[tokio::test]
async fn a_history_longer_than_is_kept_is_made_again_from_the_last_base() {
    let mut world = World::new(1).await;
    assert!(world.load(&[("faults", "true")], |spec| spec.deadline_ms = 10_000).await.committed);
    let mut last = HistoryIndex(0);
    for _ in 0..20_000 {
        last = world.command(json!({"add": 1})).await;
    }
    assert_eq!(world.reply(0, last).await, value(20_000));
    let (answer, killed) = oneshot::channel();
    let kill = ToPlugins::Kill { plugin: "counter".into(), answer };
    world.managers[0].to.send(kill).await.expect("the manager lives");
    assert_eq!(killed.await, Ok(true));
    world.until(|world| world.count("instance-restarted") == 1).await;
    let failed = world.events.iter().any(|kind| {
        matches!(kind, EventKind::InstanceFailed { failure, .. } if failure.signal.as_deref() == Some("SIGKILL"))
    });
    assert!(failed);
    last = world.command(json!({"add": 1})).await;
    assert_eq!(world.reply(0, last).await, value(20_001));
}

#[tokio::test]
async fn a_fence_ends_every_process() {
    let mut world = World::new(1).await;
    assert!(world.load(&[], |_| {}).await.committed);
    world.command(json!({"add": 1})).await;
    let pid = world.pid(0).await;
    assert_ne!(pid, 0);
    world.fence(0).await;
    world.assert_nothing_left(&[pid]);
    world.submit(Change::Noop).await;
}

/// The member of the primary.
fn primary(world: &World) -> usize {
    let primary = world.state.plugins.get("counter").expect("loaded").primary.expect("there is a primary");
    world.managers.iter().position(|manager| manager.identity.id == primary).expect("a member")
}

#[tokio::test]
async fn standbys_of_every_mode_take_over_with_all_that_was_counted() {
    for (mode, instances) in [(Mode::Hot, 2), (Mode::Warm, 2), (Mode::Single, 1)] {
        let mut world = World::new(3).await;
        let asked = |spec: &mut PluginSpec| {
            (spec.mode, spec.instances, spec.snapshot_every) = (mode, instances, SnapshotEvery::Items(8));
        };
        assert!(world.load(&[("step", "2")], asked).await.committed, "{mode:?}");
        assert_eq!(world.count("instance-promoted"), 1);
        let mut first = HistoryIndex(0);
        for _ in 0..50 {
            first = world.command(json!({"add": 1})).await;
        }
        assert_eq!(world.reply(primary(&world), first).await, value(100), "{mode:?}");
        // The standby has a snapshot by now, or the start and everything since: it makes no difference.
        let (mut last, mut sum) = (HistoryIndex(0), 100);
        for round in 1..=2 {
            let lost = world.managers[primary(&world)].identity.name.clone();
            world.lose(&lost).await;
            for _ in 0..20 {
                (last, sum) = (world.command(json!({"add": 1})).await, sum + 2);
            }
            world.until(|world| world.count("instance-promoted") == 1 + round).await;
            assert_eq!(world.reply(primary(&world), last).await, value(sum), "{mode:?}, round {round}");
            if round == 1 {
                world.until(is_whole).await;
                // Whoever keeps the state from now on gets it first.
                world.all_have_applied(first).await;
                let again = world.reply(primary(&world), first).await;
                assert!(again == value(100) || again == Err(ReplyError::Gone), "{mode:?}: {again:?}");
            }
        }
        assert_eq!(world.query(primary(&world)).await, value(sum));
        let _ = last;
    }
}

/// As many instances run as there are members for them.
fn is_whole(world: &World) -> bool {
    let plugin = world.state.plugins.get("counter").expect("loaded");
    plugin.instances.values().all(|instance| instance.state != InstanceState::Starting)
}

#[tokio::test]
async fn a_primary_whose_process_dies_hands_over_and_stands_by() {
    for mode in [Mode::Hot, Mode::Warm] {
        let mut world = World::new(2).await;
        let asked = |spec: &mut PluginSpec| (spec.mode, spec.instances) = (mode, 2);
        assert!(world.load(&[("faults", "true")], asked).await.committed);
        let mut sum = 0;
        for round in 1..=4 {
            for _ in 0..10 {
                (_, sum) = (world.command(json!({"add": 1})).await, sum + 1);
            }
            let (answer, killed) = oneshot::channel();
            let kill = ToPlugins::Kill { plugin: "counter".into(), answer };
            world.managers[primary(&world)].to.send(kill).await.expect("the manager lives");
            assert_eq!(killed.await, Ok(true));
            world.until(|world| world.count("instance-failed") == round).await;
            let last = world.command(json!({"add": 1})).await;
            sum += 1;
            assert_eq!(world.reply(primary(&world), last).await, value(sum), "{mode:?}, round {round}");
            world.until(is_whole).await;
        }
        assert_eq!(world.count("instance-promoted"), 5);
    }
}

/// The counter again, as another file.
fn newer_counter() -> Vec<u8> {
    let mut library = counter();
    library.extend_from_slice(b"a newer build");
    library
}

#[tokio::test]
async fn an_upgrade_hands_the_state_over_in_every_mode() {
    for (mode, instances) in [(Mode::Parallel, 1), (Mode::Hot, 2), (Mode::Warm, 2), (Mode::Single, 1)] {
        let mut world = World::new(3).await;
        let asked = |spec: &mut PluginSpec| (spec.mode, spec.instances) = (mode, instances);
        assert!(world.load(&[("step", "3")], asked).await.committed);
        let who = |world: &World| if mode == Mode::Parallel { 1 } else { primary(world) };
        for _ in 0..20 {
            world.command(json!({"add": 1})).await;
        }
        let before = world.pid(who(&world)).await;
        let outcome = world.upgrade(newer_counter(), 1).await;
        assert!(outcome.committed, "{mode:?}: {outcome:?}");
        let last = world.command(json!({"add": 1})).await;
        assert_eq!(world.reply(who(&world), last).await, value(63), "{mode:?}");
        assert_ne!(world.pid(who(&world)).await, before, "another process");
        assert_eq!(world.count("plugin-upgraded"), 1);
        assert_eq!(world.count("instance-failed") + world.count("instance-restarted"), 0, "{mode:?}");
        if mode != Mode::Parallel {
            let lost = world.managers[primary(&world)].identity.name.clone();
            world.lose(&lost).await;
            world.until(|world| world.count("instance-promoted") == 2).await;
            let last = world.command(json!({"add": 1})).await;
            assert_eq!(world.reply(primary(&world), last).await, value(66), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn an_upgrade_that_fails_leaves_the_old_one_running_everywhere() {
    let mut world = World::new(2).await;
    assert!(world.load(&[], |_| {}).await.committed);
    world.command(json!({"add": 4})).await;
    let pids = [world.pid(0).await, world.pid(1).await];
    let outcome = world.upgrade(b"no library".to_vec(), 1).await;
    assert!(!outcome.committed);
    let by = |at: usize| &outcome.results[&world.managers[at].identity.id];
    assert_eq!((by(1).stage.as_str(), by(1).code.as_str()), ("check", "corrupt"));
    assert_eq!((by(0).stage.as_str(), by(0).code.as_str()), ("check", "canary"), "it waits for the canary");
    assert!(by(0).reason.contains("canary says"), "{:?}", by(0));
    let last = world.command(json!({"add": 1})).await;
    for (at, pid) in pids.into_iter().enumerate() {
        assert_eq!(world.reply(at, last).await, value(5));
        assert_eq!(world.pid(at).await, pid);
    }
}

/// Where every instance has failed for good, too: then with what they had, and all that was ordered since.
#[tokio::test]
async fn an_upgrade_revives_what_failed_for_good() {
    let cases: [(_, &[usize]); 3] = [(Mode::Parallel, &[1]), (Mode::Parallel, &[0, 1]), (Mode::Hot, &[0, 1])];
    for (mode, failing) in cases {
        let mut world = World::new(2).await;
        let asked = |spec: &mut PluginSpec| (spec.mode, spec.instances, spec.restart.times) = (mode, 2, 1);
        assert!(world.load(&[("faults", "true")], asked).await.committed);
        for _ in 0..20 {
            world.command(json!({"add": 1})).await;
        }
        let state = |world: &World, at: usize| {
            let plugin = world.state.plugins.get("counter").expect("loaded");
            plugin.instances[&world.managers[at].identity.id].state
        };
        for at in failing {
            while state(&world, *at) != InstanceState::Failed {
                let failed = world.count("instance-failed");
                world.command(json!({"fail": "exit", "on": format!("k{at}")})).await;
                world.until(|world| world.count("instance-failed") > failed).await;
                world.until(|world| state(world, *at) != InstanceState::Starting).await;
            }
        }
        world.command(json!({"add": 1})).await;
        world.placed.clear();
        assert!(world.upgrade(newer_counter(), 1).await.committed);
        let placed = world.placed.iter().map(|placed| (placed.member.0 as usize - 1, placed.own));
        let wanted = match failing {
            // It takes the other one's state.
            [1] => vec![(1, false)],
            // Who failed last goes on with its own.
            _ => vec![(1, true), (0, false)],
        };
        assert_eq!(placed.collect::<Vec<_>>(), wanted, "{mode:?}, {failing:?}");
        world.until(|world| (0..2).all(|at| state(world, at) == InstanceState::Running)).await;
        let last = world.command(json!({"add": 1})).await;
        for at in 0..2 {
            assert_eq!(world.reply(at, last).await, value(22), "{mode:?}, {failing:?}");
        }
    }
}

/// Instances that a command ended may differ in what they think ended them: they go on with one state all the same.
#[tokio::test]
async fn what_is_revived_together_has_one_state() {
    for (mode, round) in [(Mode::Parallel, 0), (Mode::Hot, 0), (Mode::Parallel, 1), (Mode::Hot, 1)] {
        let mut world = World::new(2).await;
        let asked = |spec: &mut PluginSpec| (spec.mode, spec.instances, spec.restart.times) = (mode, 2, 0);
        assert!(world.load(&[("faults", "true"), ("slow_ms", "1")], asked).await.committed);
        let states = |world: &World| {
            let plugin = world.state.plugins.get("counter").expect("loaded");
            plugin.instances.values().map(|instance| instance.state).collect::<Vec<_>>()
        };
        let mut adds = 0;
        for _ in 0..5 * round {
            world.command(json!({"add": 1})).await;
            adds += 1;
        }
        world.command(json!({"fail": "exit"})).await;
        for _ in 0..5 {
            world.command(json!({"add": 1})).await;
            adds += 1;
        }
        let all = |world: &World, wanted| states(world).iter().all(|state| *state == wanted);
        world.until(|world| all(world, InstanceState::Failed)).await;
        // Where the command was not known for what it is, it ends the one that begins again; the other one waits for it.
        for upgrades in 1.. {
            assert!(upgrades <= 4, "{mode:?}, {round}: {:?}", states(&world));
            assert!(world.upgrade(newer_counter(), 1).await.committed);
            let failed = |world: &World| states(world).contains(&InstanceState::Failed);
            world.until(|world| failed(world) || all(world, InstanceState::Running)).await;
            if !failed(&world) {
                break;
            }
        }
        let last = world.command(json!({"add": 1})).await;
        for at in 0..2 {
            assert_eq!(world.reply(at, last).await, value(adds + 1), "{mode:?}, {round}");
        }
    }
}

/// On members that are free, others were placed in their stead, and they have nobody to take a state from.
#[tokio::test]
async fn what_failed_for_good_has_the_state_that_those_in_its_stead_wait_for() {
    let mut world = World::new(4).await;
    let asked = |spec: &mut PluginSpec| {
        (spec.mode, spec.instances, spec.restart.times) = (Mode::Hot, 2, 0);
    };
    assert!(world.load(&[("faults", "true")], asked).await.committed);
    for _ in 0..20 {
        world.command(json!({"add": 1})).await;
    }
    let state_of = |world: &World, wanted| {
        let plugin = world.state.plugins.get("counter").expect("loaded");
        plugin.instances.values().filter(|instance| instance.state == wanted).count()
    };
    world.command(json!({"fail": "exit"})).await;
    world.until(|world| state_of(world, InstanceState::Failed) == 2).await;
    assert_eq!((state_of(&world, InstanceState::Starting), state_of(&world, InstanceState::Running)), (2, 0));
    for upgrades in 1.. {
        assert!(upgrades <= 3, "the command that ended them is left out the second time");
        assert!(world.upgrade(newer_counter(), 1).await.committed);
        let failed = world.count("instance-failed");
        world
            .until(|world| {
                state_of(world, InstanceState::Running) > 0 || world.count("instance-failed") > failed
            })
            .await;
        if state_of(&world, InstanceState::Running) > 0 {
            break;
        }
    }
    world.until(|world| state_of(world, InstanceState::Running) == 3).await;
    let last = world.command(json!({"add": 1})).await;
    assert_eq!(world.reply(primary(&world), last).await, value(21));
}

#[tokio::test]
async fn an_instance_that_uses_more_processor_time_than_it_may_is_ended() {
    let mut world = World::new(1).await;
    let asked = |spec: &mut PluginSpec| spec.limits.cpu_ms = Some(40);
    assert!(world.load(&[], asked).await.committed);
    let deadline = Instant::now() + world::LIMIT;
    while world.count("instance-failed") == 0 {
        assert!(Instant::now() < deadline, "it goes on for ever");
        for _ in 0..1_000 {
            world.command(json!({"add": 1})).await;
        }
        world.reports().await;
    }
    let cause = world.events.iter().find_map(|kind| match kind {
        EventKind::InstanceFailed { failure, .. } => Some(failure.cause.clone()),
        _ => None,
    });
    assert_eq!(cause.as_deref(), Some("cpu-limit"));
}

/// Not a promise, a figure: `cargo test -p dvm-kernel --release -- --nocapture commands_a_second`.
#[tokio::test]
async fn commands_a_second_through_a_child() {
    let mut world = World::new(1).await;
    assert!(world.load(&[], |spec| spec.deadline_ms = 10_000).await.committed);
    let (count, begun) = (30_000, Instant::now());
    let mut last = HistoryIndex(0);
    for _ in 0..count {
        last = world.command(json!({"add": 1})).await;
    }
    let ordered = begun.elapsed();
    assert_eq!(world.reply(0, last).await, value(count));
    eprintln!("{count} commands: ordered in {ordered:?}, the last reply after {:?}", begun.elapsed());
}

#[tokio::test]
async fn from_a_crash_to_its_report() {
    let mut world = World::new(1).await;
    let mut times = Vec::new();
    assert!(world.load(&[("faults", "true")], |spec| spec.restart.times = 100).await.committed);
    for round in 1..=20 {
        world.command(json!({"add": 1})).await;
        let begun = Instant::now();
        world.command(json!({"fail": "exit"})).await;
        let FromPlugins::Report(report) = world.report(0).await else { panic!("a report") };
        times.push(begun.elapsed());
        world.submit(Change::Instance(report)).await;
        world.until(|world| world.count("instance-restarted") == round).await;
    }
    times.sort();
    eprintln!("command to report of the exit it causes: p50 {:?}, worst {:?}", times[10], times[19]);
}
