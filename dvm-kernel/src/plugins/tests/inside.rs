//! The same inside the kernel's own process, on threads.

use super::super::inside::{Inside, QUARANTINE_MAX};
use super::*;
use dvm_core::state::{Limits, Placement};

/// Loads the counter inside the managers' process.
async fn load(world: &mut World, config: &[(&str, &str)], more: impl FnOnce(&mut PluginSpec)) -> bool {
    let asked = |spec: &mut PluginSpec| {
        spec.placement = Placement::Kernel;
        more(spec);
    };
    world.load(config, asked).await.committed
}

async fn unload(world: &mut World) {
    let unload = TransactionKind::Unload { plugin: "counter".into() };
    assert!(world.transact(unload, Require::All, false).await.committed);
}

#[tokio::test]
async fn a_counter_on_a_thread_counts_and_its_image_is_used_again() {
    let mut world = World::new(2).await;
    for round in 1..=3 {
        assert!(load(&mut world, &[("start", "10"), ("step", "2")], |_| {}).await);
        let index = world.command(json!({"add": 3})).await;
        for at in 0..2 {
            assert_eq!(world.reply(at, index).await, value(16));
            assert_eq!(world.pid(at).await, std::process::id());
            let resident = world.figures(at).await.resident;
            assert_eq!((resident.len(), resident[0].opened), (1, round), "{resident:?}");
        }
        unload(&mut world).await;
        assert!(matches!(world.query(0).await, Err(ReplyError::NotRunning { .. })));
    }
    world.fence(0).await;
    assert_eq!(world.figures(0).await.quarantined, []);
    world.assert_nothing_left(&[]);
}

#[tokio::test]
async fn a_panic_and_a_hang_are_told_and_the_next_command_works() {
    for (fault, deadline_ms, quarantined) in [("panic", 20_000, 0), ("hang", 500, 1)] {
        let mut world = World::new(2).await;
        assert!(load(&mut world, &[("faults", "true")], |spec| spec.deadline_ms = deadline_ms).await);
        let before = world.command(json!({"add": 5})).await;
        assert_eq!(world.reply(1, before).await, value(5));
        world.command(json!({"fail": fault, "on": "k1"})).await;
        let after = world.command(json!({"add": 1})).await;
        world.until(|world| world.count("instance-restarted") == 1).await;
        let failed = world.events.iter().find_map(|kind| match kind {
            EventKind::InstanceFailed { failure, member, .. } => {
                Some((member.clone(), failure.cause.clone()))
            }
            _ => None,
        });
        assert_eq!(failed, Some(("k1".into(), fault.into())));
        for at in 0..2 {
            assert_eq!(world.reply(at, after).await, value(6), "{fault} at k{at}");
        }
        // A fence waits for what was told to end, and for no longer.
        world.fence(1).await;
        let hanging = world.figures(1).await.quarantined;
        assert_eq!(hanging.len(), quarantined, "{fault}: {hanging:?}");
        assert!(hanging.iter().all(|thread| thread.plugin == "counter"), "{hanging:?}");
    }
}

#[tokio::test]
async fn with_too_many_threads_that_hang_no_more_are_started() {
    let mut world = World::new(1).await;
    let asked = |spec: &mut PluginSpec| {
        (spec.deadline_ms, spec.restart.times) = (50, 100);
    };
    assert!(load(&mut world, &[("faults", "true")], asked).await);
    // Each hangs twice: among others, and alone, before it is left out.
    for _ in 0..QUARANTINE_MAX {
        world.command(json!({"fail": "hang"})).await;
    }
    world.until(|world| world.events.iter().any(is_refusal)).await;
    let full = world.figures(0).await.quarantined.len();
    assert!(full >= QUARANTINE_MAX, "{full}");
    unload(&mut world).await;
    let told = world.load(&[], |spec| spec.placement = Placement::Kernel).await;
    let result = told.results.values().next().expect("one");
    assert_eq!((result.stage.as_str(), result.code.as_str()), ("start", "limit"), "{result:?}");
    assert!(result.reason.contains("hang in this kernel"), "{result:?}");
    assert!(world.load(&[], |_| {}).await.committed, "in a process it may");
}

fn is_refusal(kind: &EventKind) -> bool {
    matches!(kind, EventKind::InstanceFailed { failure, .. } if failure.detail.contains("hang in this kernel"))
}

#[tokio::test]
async fn limits_and_libraries_whose_panics_end_the_process_are_refused() {
    let mut world = World::new(1).await;
    let limits = Limits { memory: Some(1 << 30), cpu_ms: None };
    assert!(!load(&mut world, &[], |spec| spec.limits = limits).await);
    let mut library = counter();
    let name = b"\0_Unwind_RaiseException\0";
    let places: Vec<_> = (0..library.len() - 24).filter(|at| library[*at..].starts_with(name)).collect();
    places.into_iter().for_each(|at| library[at + 1] = b'X');
    let mut world = World::with(1, library).await;
    let told = world.load(&[], |spec| spec.placement = Placement::Kernel).await;
    let result = told.results.values().next().expect("one");
    assert_eq!((result.stage.as_str(), result.code.as_str()), ("check", "abi"), "{result:?}");
    assert!(result.reason.contains("panic=abort"), "{result:?}");
    world.assert_nothing_left(&[]);
}

#[test]
fn a_kernel_maps_so_many_images_and_no_more() {
    let inside = Inside::new(1);
    let refused = || Err(("corrupt", "not this one".into()));
    assert_eq!(inside.open([1; 32], &"one".into(), refused).err().map(|error| error.0), Some("corrupt"));
    assert!(inside.images().is_empty());
    let full = Inside::new(0);
    let told = full.open([2; 32], &"two".into(), || unreachable!("there is no room")).err();
    assert!(told.is_some_and(|(code, reason)| code == "limit" && reason.contains("holds 0 images")));
}

#[tokio::test]
async fn standbys_on_threads_take_over_and_an_upgrade_hands_the_state_over() {
    for mode in [Mode::Hot, Mode::Warm] {
        let mut world = World::new(3).await;
        let asked = |spec: &mut PluginSpec| (spec.mode, spec.instances) = (mode, 2);
        assert!(load(&mut world, &[("step", "3")], asked).await);
        for _ in 0..20 {
            world.command(json!({"add": 1})).await;
        }
        let outcome = world.upgrade(newer_counter(), 1).await;
        assert!(outcome.committed, "{mode:?}: {outcome:?}");
        let last = world.command(json!({"add": 1})).await;
        assert_eq!(world.reply(primary(&world), last).await, value(63), "{mode:?}");
        assert_eq!(world.figures(primary(&world)).await.resident.len(), 2, "{mode:?}");
        let lost = world.managers[primary(&world)].identity.name.clone();
        world.lose(&lost).await;
        world.until(|world| world.count("instance-promoted") == 2).await;
        let last = world.command(json!({"add": 1})).await;
        assert_eq!(world.reply(primary(&world), last).await, value(66), "{mode:?}");
    }
}

/// Not a promise, a figure: `cargo test -p dvm-kernel --release -- --nocapture there_and_back`.
#[tokio::test]
async fn a_command_there_and_back_in_a_process_and_on_a_thread() {
    for placement in [Placement::Process, Placement::Kernel] {
        let mut world = World::new(1).await;
        assert!(world.load(&[], |spec| spec.placement = placement).await.committed);
        let mut times = Vec::new();
        for count in 1..=2_000 {
            let begun = Instant::now();
            let index = world.command(json!({"add": 1})).await;
            assert_eq!(world.reply(0, index).await, value(count));
            times.push(begun.elapsed());
        }
        times.sort();
        eprintln!("{placement:?}: p50 {:?}, p99 {:?}", times[1_000], times[1_980]);
    }
}
