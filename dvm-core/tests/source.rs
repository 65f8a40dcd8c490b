//! The sentences of the algorithm's source that state a property, each with a test.
//!
//! Source: C. Engelmann, S. L. Scott, G. A. Geist, "Distributed Peer-to-Peer Control in Harness", ORNL; its sections
//! are named where a group of tests begins.

mod harness;

use dvm_core::ids::{Lamport, LinkId, OriginSeq, Rank, Time, TransactionId};
use dvm_core::state::{
    Applied, Change, ConfigEdit, Content, Entry, KeyOperation, KeyTransaction, Library, Mode, Payload,
    PluginSpec, Require, Submission, Transaction, TransactionKind,
};
use dvm_core::view::Label;
use dvm_core::wire::{Data, Ring, Verdict};
use dvm_core::{Answer, Input, Reject};
use harness::{HOP_US, World};

// "What is distributed control?"

/// "Every machine is able to change the global state."
#[test]
fn every_machine_is_able_to_change_the_global_state() {
    let mut world = World::ring(4);
    for at in 0..4 {
        put(&mut world, at, &format!("by-{at}"), "1");
    }
    world.run();
    for at in 0..4 {
        assert_eq!(done(&world, at), 1);
        assert_eq!(world.kernels[at].member.state().expect("a member has a state").keys.iter().count(), 4);
    }
}

/// "Every machine has a complete copy of the global state."
#[test]
fn every_machine_has_a_complete_copy_of_the_global_state() {
    let mut world = World::ring(5);
    for n in 0..20 {
        put(&mut world, n % 5, &format!("key-{n}"), &format!("{n}"));
    }
    load(&mut world, 2, 1, "p", Mode::Parallel, Require::All);
    settle(&mut world);
    assert_same_state(&world);
}

/// "Global state changes are transactions, which are ordered, executed, and committed or rejected."
#[test]
fn transactions_are_ordered_executed_and_committed_or_rejected() {
    let mut world = World::ring(3);
    load(&mut world, 0, 1, "good", Mode::Parallel, Require::All);
    settle(&mut world);
    world.kernels[1].execution = says(Verdict::Failed);
    load(&mut world, 2, 1, "bad", Mode::Parallel, Require::All);
    settle(&mut world);
    assert_eq!(ended(&world, 0), [true]);
    assert_eq!(ended(&world, 2), [false]);
    for kernel in &world.kernels {
        let state = kernel.member.state().expect("a member has a state");
        assert!(state.plugins.get(&"good".to_owned()).is_some(), "what was committed is there");
        assert!(state.plugins.get(&"bad".to_owned()).is_none(), "what was rejected left nothing");
        assert!(state.open.is_empty());
    }
    assert_same_state(&world);
}

// "Distributed Control in Harness?"

/// "Controls global DVM state: … Plug-in loading, unloading and configuration."
#[test]
fn plugins_are_loaded_configured_and_unloaded() {
    let mut world = World::ring(3);
    load(&mut world, 0, 1, "p", Mode::Parallel, Require::All);
    settle(&mut world);
    let keys = [("depth".to_owned(), Some("3".to_owned()))].into();
    let edit = ConfigEdit { replace: false, keys };
    propose(&mut world, 1, 1, TransactionKind::Configure { plugin: "p".into(), edit }, Require::All);
    settle(&mut world);
    for kernel in &world.kernels {
        let plugin = kernel.member.state().and_then(|state| state.plugins.get(&"p".to_owned()));
        assert_eq!(plugin.expect("it is loaded").spec.config["depth"], "3");
    }
    propose(&mut world, 2, 1, TransactionKind::Unload { plugin: "p".into() }, Require::All);
    settle(&mut world);
    for kernel in &world.kernels {
        assert!(kernel.member.state().expect("a member has a state").plugins.get(&"p".to_owned()).is_none());
    }
}

/// "DVM survives until at least one member is alive."
#[test]
fn the_dvm_survives_while_one_member_is_alive() {
    let mut world = World::ring(5);
    put(&mut world, 3, "before", "1");
    world.run();
    for dies in [0, 2, 4, 1] {
        world.kill(dies, false);
        settle(&mut world);
    }
    put(&mut world, 3, "after", "1");
    settle(&mut world);
    let last = &world.kernels[3].member;
    assert_eq!(last.view().map(|view| view.size()), Some(1));
    assert_eq!(last.state().expect("it kept the state").keys.iter().count(), 2);
    assert_eq!(done(&world, 3), 2);
    // Honest about it: a view without a quorum of the one before is not confirmed.
    assert_eq!(last.view().map(|view| view.label), Some(Label::Provisional));
}

/// "Hot-standby or warm-standby plug-ins."
///
/// The mode is in the replicated record; the view that leaves the primary's member out promotes a standby and gives the
/// plug-in another one.
#[test]
fn a_standby_takes_over_from_the_lost_and_another_stands_by() {
    for mode in [Mode::Hot, Mode::Warm] {
        let mut world = World::ring(3);
        load(&mut world, 1, 1, "p", mode, Require::All);
        settle(&mut world);
        let primary = |world: &World, at: usize| {
            let state = world.kernels[at].member.state().expect("a member has a state");
            let plugin = state.plugins.get(&"p".to_owned()).expect("it is loaded");
            assert_eq!((plugin.spec.mode, plugin.instances.len()), (mode, 2));
            (plugin.primary.expect("there is a primary"), plugin.fence.expect("with a token"))
        };
        let (first, token) = primary(&world, 1);
        assert_eq!(first, world.kernels[0].member.id());
        world.kill(0, false);
        settle(&mut world);
        for at in [1, 2] {
            let (second, higher) = primary(&world, at);
            assert_eq!(second, world.kernels[1].member.id());
            assert!(higher > token);
            let events: Vec<_> = world.kernels[at].member.events().map(|event| event.kind.word()).collect();
            let failed = events.iter().position(|word| *word == "instance-failed").expect("told");
            assert!(events[failed..].contains(&"instance-promoted"));
        }
    }
}

/// "Member or plug-in failure notification. Member or plug-in state change notification."
#[test]
fn events_are_told_alike_to_all() {
    let mut world = World::ring(4);
    load(&mut world, 0, 1, "p", Mode::Parallel, Require::All);
    settle(&mut world);
    world.kill(2, false);
    settle(&mut world);
    let told = |at: usize| -> Vec<_> {
        let member = &world.kernels[at].member;
        // The last to join has only the events since.
        let first = world.kernels[3].member.events().next().expect("events").index;
        member.events().filter(|event| event.index >= first).cloned().collect()
    };
    assert_eq!(told(0), told(1));
    assert_eq!(told(0), told(3));
    let words: Vec<_> = told(0).iter().map(|event| event.kind.word()).collect();
    for word in ["member-joined", "plugin-loaded", "member-failed"] {
        assert!(words.contains(&word), "{word} is missing in {words:?}");
    }
}

// "Distributed Peer-to-Peer Control"

/// "All members with the same global state form one ring."
#[test]
fn all_members_form_one_ring() {
    for n in 1..=8 {
        let world = World::ring(n);
        let view = world.kernels[0].member.view().expect("a member has a view");
        let (mut at, mut seen) = (Rank(0), Vec::new());
        while !seen.contains(&at) {
            seen.push(at);
            at = view.successor(at);
        }
        assert_eq!((seen.len(), at), (n, Rank(0)));
        assert!(world.kernels.iter().all(|kernel| kernel.member.view() == Some(view)));
    }
}

/// "Messages are forwarded only in one direction."
#[test]
fn messages_are_forwarded_only_in_one_direction() {
    let mut world = World::ring(4);
    world.trace = ["data", "stable", "collect"].map(str::to_owned).into();
    (0..4).for_each(|at| put(&mut world, at, "x", "1"));
    load(&mut world, 1, 1, "p", Mode::Parallel, Require::All);
    settle(&mut world);
    assert!(!world.log.is_empty());
    for line in &world.log {
        let is_forward = ["a -> b", "b -> c", "c -> d", "d -> a"].iter().any(|way| line.starts_with(way));
        assert!(is_forward, "{line}");
    }
}

/// "Connections are persistent."
#[test]
fn connections_are_persistent() {
    let mut world = World::ring(4);
    for n in 0..100 {
        put(&mut world, n % 4, "x", &format!("{n}"));
        world.run();
    }
    world.wait_us(10_000_000);
    assert_eq!(sent(&world, "connect"), 0, "the ring's making opened all that is needed");
}

/// "TCP/IP provides fault detection and ensures message order on the ring."
#[test]
fn the_end_of_a_connection_is_noticed_long_before_silence() {
    let mut world = World::ring(4);
    world.kill(2, false);
    world.wait_us(world.config.silence_ms * 1_000 / 20);
    for at in [0, 1, 3] {
        assert_eq!(world.kernels[at].member.view().map(|view| view.size()), Some(3));
    }
}

// "Reliable Broadcast"

/// "Messages go twice the ring (2-phase commit)."
#[test]
fn messages_go_twice_round_the_ring() {
    for n in 2..=8 {
        let mut world = World::ring(n);
        put(&mut world, n / 2, "x", "1");
        world.run();
        let laps = [sent(&world, "data"), sent(&world, "stable")];
        assert_eq!(laps, [n as u64 - 1; 2], "each lap ends where its beginning is known");
    }
}

/// "The last phase 2 and all phase 1 messages are sent again by a member to recover from faults."
#[test]
fn after_a_fault_what_the_successor_lacks_is_sent_again() {
    let mut world = World::ring(4);
    for n in 0..6 {
        put(&mut world, n % 4, &format!("key-{n}"), "1");
    }
    world.wait_us(2 * HOP_US + HOP_US / 2);
    world.trace = ["data", "stable", "resume"].map(str::to_owned).into();
    world.reset(1, 2);
    settle(&mut world);
    let resumed = world.log.iter().position(|line| line.starts_with("c -> b  resume"));
    let resumed = resumed.expect("the successor says what it has");
    assert!(world.log[resumed..].iter().any(|line| line.starts_with("b -> c  data")));
    assert!(world.log[resumed..].iter().any(|line| line.starts_with("b -> c  stable")));
    assert_eq!(world.kernels[0].member.view().map(|view| view.size()), Some(4), "nobody was left out");
    assert_same_state(&world);
    assert_eq!((0..4).map(|at| done(&world, at)).sum::<usize>(), 6);
}

/// "Doubled messages are filtered by the receiver using a hop counter contained by every message."
///
/// Here the originator's sequence number filters doubles, and the hop counter is checked against the sender's place.
#[test]
fn doubled_messages_are_filtered_and_the_hop_counter_is_checked() {
    let mut world = World::ring(3);
    put(&mut world, 0, "x", "1");
    world.wait_us(HOP_US + HOP_US / 2);
    let entries = world.kernels[1].member.history().count();
    let double = |hops, oseq: OriginSeq, lnum| {
        let body = body(Change::Noop);
        Ring::Data(Data { origin: Rank(0), oseq, lnum: Lamport(lnum), hops, body, digest: None })
    };
    assert_eq!(on_ring(&mut world, 1, double(1, 1, 1)), Ok(()), "a double is dropped without a word");
    let refused = on_ring(&mut world, 1, double(2, 2, 2));
    assert_eq!(refused, Err(Reject::Malformed { what: "hop counter" }), "it came another way");
    settle(&mut world);
    assert_eq!(world.kernels[1].member.history().count(), entries + 1);
    assert_same_state(&world);
}

// "Atomic Broadcast"

/// "Message numbering without timestamps."
#[test]
fn numbers_do_not_depend_on_clocks() {
    let order_of = |skews: [u64; 3]| {
        let mut world = World::ring(3);
        for (at, wall_ms) in skews.into_iter().enumerate() {
            let now = Time(world.now_us());
            let clock = Input::Clock { wall_ms };
            world.kernels[at].member.handle(now, clock).expect("a clock is taken as it is");
        }
        for n in 0..12 {
            put(&mut world, n % 3, &format!("key-{n}"), "1");
            world.wait_us(HOP_US / 2);
        }
        world.run();
        changes(&world, 1)
    };
    assert_eq!(order_of([1, 1, 1]), order_of([u64::MAX / 2, 7, 1_000_000_000_000]));
}

/// "Message sorting without blocking."
///
/// Nobody waits for members that have nothing to say: the last member delivers after two laps less two hops.
#[test]
fn sorting_does_not_wait_for_the_idle() {
    for n in 2..=8 {
        let mut world = World::ring(n);
        put(&mut world, 0, "x", "1");
        world.wait_us((2 * n as u64 - 2) * HOP_US);
        for kernel in &world.kernels {
            assert_eq!(kernel.member.state().expect("a member has a state").keys.iter().count(), 1);
        }
    }
}

/// "No starvation or denial of service due to fair share."
#[test]
fn nobody_starves_while_another_floods() {
    let mut world = World::ring(4);
    flood(&mut world, 0, 600);
    world.wait_us(20 * HOP_US);
    put(&mut world, 2, "modest", "1");
    let asked_us = world.now_us();
    while done(&world, 2) == 0 {
        world.wait_us(HOP_US);
    }
    let laps = (world.now_us() - asked_us) / (4 * HOP_US);
    assert!(laps <= 3, "one lap to be known, one to be stable, and less than one in the queue: {laps}");
    settle(&mut world);
    assert_eq!(done(&world, 0), 600);
}

/// "No starvation or denial of service due to fair share", when all have much to say.
#[test]
fn shares_are_equal_under_saturation() {
    let mut world = World::ring(4);
    (0..4).for_each(|at| flood(&mut world, at, 400));
    settle(&mut world);
    let origins: Vec<_> = changes(&world, 3).into_iter().map(|(origin, _)| origin).collect();
    assert_eq!(origins.len(), 1_600);
    for window in origins.chunks(400) {
        for at in 0..4 {
            let share = window.iter().filter(|origin| **origin == world.kernels[at].member.id()).count();
            assert!(share >= 80, "member {at} has {share} of {}", window.len());
        }
    }
}

// "Distributed Agreement"

/// "Collective communication combines state change execution results from all members to a final result."
#[test]
fn results_of_all_members_are_combined() {
    let mut world = World::ring(4);
    world.kernels[3].execution = says(Verdict::Failed);
    load(&mut world, 1, 1, "p", Mode::Parallel, Require::Majority);
    settle(&mut world);
    let results = results(&world, 1);
    let verdicts: Vec<_> = results.iter().map(|(name, verdict)| (name.as_str(), *verdict)).collect();
    let ok = Some(Verdict::Ok);
    assert_eq!(verdicts, [("a", ok), ("b", ok), ("c", ok), ("d", Some(Verdict::Failed))]);
    assert_eq!(ended(&world, 1), [true]);
}

/// "Final execution results are broadcasted reliably."
#[test]
fn the_final_result_outlives_its_sender() {
    // It dies instead of sending the outcome, then instead of sending word that all have it.
    for (kind, nth) in [("data", 2), ("stable", 2)] {
        let mut world = World::ring(4);
        world.doomed.push((1, kind.to_owned(), nth));
        load(&mut world, 1, 1, "p", Mode::Parallel, Require::All);
        settle(&mut world);
        assert!(!world.kernels[1].alive);
        let states: Vec<_> =
            [0, 2, 3].map(|at| world.kernels[at].member.state().expect("a member has a state")).into();
        assert!(states.iter().all(|state| state.open.is_empty() && state.hash() == states[0].hash()));
        assert!(states[0].plugins.get(&"p".to_owned()).is_some(), "all who are left were able to");
    }
}

/// "Messages go 3 times around the ring (2 interleaved 2-phase commits: collection & final result)."
#[test]
fn an_agreement_is_known_to_all_after_three_laps() {
    for n in 2..=8 {
        let mut world = World::ring(n);
        load(&mut world, 0, 1, "p", Mode::Parallel, Require::All);
        let execution_us = 1_000;
        world.wait_us((4 * n as u64 - 2) * HOP_US + execution_us);
        for kernel in &world.kernels {
            let state = kernel.member.state().expect("a member has a state");
            assert!(state.plugins.get(&"p".to_owned()).is_some(), "{} of {n} does not know", kernel.name);
        }
        assert_eq!(sent(&world, "collect"), n as u64, "the collection goes round once");
    }
}

/// "Scalable group communication (2n-5n)."
#[test]
fn group_communication_takes_two_to_five_messages_a_member() {
    for n in 2..=8 {
        let frames = |world: &World| ["data", "stable", "collect"].map(|kind| sent(world, kind)).iter().sum();
        let mut world = World::ring(n);
        put(&mut world, 0, "x", "1");
        world.run();
        let broadcast: u64 = frames(&world);
        assert_eq!(broadcast, 2 * n as u64 - 2);
        load(&mut world, 0, 1, "p", Mode::Parallel, Require::All);
        settle(&mut world);
        let agreement = frames(&world) - broadcast;
        assert_eq!(agreement, 5 * n as u64 - 4);
    }
}

// "Membership"

/// "Every new member receives the current global state."
#[test]
fn every_new_member_receives_the_current_global_state() {
    let mut world = World::ring(3);
    for n in 0..50 {
        put(&mut world, n % 3, &format!("key-{n}"), "1");
    }
    load(&mut world, 0, 1, "p", Mode::Parallel, Require::All);
    world.wait_us(HOP_US);
    world.start("d", Some("b"));
    settle(&mut world);
    assert_eq!(world.kernels[3].member.view().map(|view| view.size()), Some(4));
    assert_same_state(&world);
}

/// "All members have a linear history of state changes."
#[test]
fn all_members_have_a_linear_history() {
    let mut world = World::ring(5);
    for n in 0..60 {
        put(&mut world, n % 5, &format!("key-{}", n % 7), &format!("{n}"));
        world.wait_us(HOP_US / 3);
        if n == 30 {
            world.kill(4, false);
        }
    }
    settle(&mut world);
    let longest = changes(&world, 0);
    for at in 1..5 {
        let history = changes(&world, at);
        assert!(longest.starts_with(&history), "the history of {at} is a prefix, the dead one's, too");
        assert!(at == 4 || history.len() == longest.len());
    }
    assert_same_state(&world);
}

/// "State change commit depending on final result."
#[test]
fn nothing_is_committed_without_anybody_who_could() {
    let mut world = World::ring(3);
    world.kernels.iter_mut().for_each(|kernel| kernel.execution = says(Verdict::Failed));
    for (serial, require) in [(1, Require::All), (2, Require::Majority), (3, Require::Any)] {
        load(&mut world, 0, serial, "p", Mode::Parallel, require);
        settle(&mut world);
    }
    assert_eq!(ended(&world, 0), [false, false, false]);
    world.kernels[2].execution = says(Verdict::Ok);
    load(&mut world, 0, 4, "p", Mode::Parallel, Require::Any);
    settle(&mut world);
    assert_eq!(ended(&world, 0), [false, false, false, true]);
    assert_same_state(&world);
}

// What the tests share.

fn put(world: &mut World, at: usize, key: &str, value: &str) {
    let put = KeyOperation::Put { key: key.into(), value: value.to_owned().into() };
    let change = Change::Keys(KeyTransaction { then: vec![put], ..KeyTransaction::default() });
    world.submit(at, key, None, change);
}

fn flood(world: &mut World, at: usize, count: usize) {
    (0..count).for_each(|_| world.submit(at, "noop", None, Change::Noop));
}

fn load(world: &mut World, at: usize, serial: u64, name: &str, mode: Mode, require: Require) {
    let (version, hash, size, payload) = ("1".into(), [0; 32], 1, Payload::Json);
    let library = Library { version, hash, size, payload };
    let spec = PluginSpec { mode, instances: 2, ..PluginSpec::of(name.into(), library) };
    propose(world, at, serial, TransactionKind::Load(Box::new(spec)), require);
}

fn propose(world: &mut World, at: usize, serial: u64, kind: TransactionKind, require: Require) {
    let id = TransactionId { originator: world.kernels[at].member.id(), serial };
    let transaction = Transaction { id, kind, require, dry_run: false };
    world.submit(at, "transaction", None, Change::Transaction(Box::new(transaction)));
}

fn says(verdict: Verdict) -> harness::Execution {
    harness::Execution::Says(verdict)
}

/// Until what was begun is over, view changes included.
fn settle(world: &mut World) {
    world.wait_us(500_000);
}

fn sent(world: &World, kind: &str) -> u64 {
    world.sent.get(kind).copied().unwrap_or_default()
}

fn done(world: &World, at: usize) -> usize {
    let answers = world.kernels[at].answers.iter();
    answers.filter(|(_, answer)| matches!(answer, Answer::Done { .. })).count()
}

/// How the transactions of a member ended: whether each was committed.
fn ended(world: &World, at: usize) -> Vec<bool> {
    let answers = world.kernels[at].answers.iter();
    let ended = answers.filter_map(|(_, answer)| match answer {
        Answer::Done { applied: Applied::Ended { committed, .. }, .. } => Some(*committed),
        _ => None,
    });
    ended.collect()
}

/// By name, what each member of the electorate said to the last transaction of a member.
fn results(world: &World, at: usize) -> Vec<(String, Option<Verdict>)> {
    match world.kernels[at].answers.last() {
        Some((_, Answer::Done { applied: Applied::Ended { results, .. }, .. })) => {
            results.iter().map(|(name, result)| (name.clone(), result.as_ref().map(|r| r.verdict))).collect()
        }
        other => panic!("no transaction ended: {other:?}"),
    }
}

/// Originators and bodies of the changes that a member delivered, in its order.
fn changes(world: &World, at: usize) -> Vec<(dvm_core::ids::MemberId, Vec<u8>)> {
    let entries = world.kernels[at].deliveries.iter().map(|delivery| -> &Entry { &delivery.entry });
    let changes = entries.filter_map(|entry| match &entry.content {
        Content::Change { origin, body, .. } => Some((*origin, body.to_vec())),
        Content::View(_) => None,
    });
    changes.collect()
}

fn assert_same_state(world: &World) {
    let alive = world.kernels.iter().filter(|kernel| kernel.alive);
    let hashes: Vec<_> = alive.map(|kernel| kernel.member.state().map(|state| state.hash())).collect();
    assert!(hashes.iter().all(|hash| hash.is_some() && *hash == hashes[0]), "states differ");
}

fn body(change: Change) -> bytes::Bytes {
    let submission = Submission { stamp: None, time_ms: 0, change };
    postcard::to_allocvec(&submission).expect("a submission is plain data").into()
}

/// Hands a member a frame on the ring link that it reads from.
fn on_ring(world: &mut World, at: usize, message: Ring) -> Result<(), Reject> {
    let now = Time(world.now_us());
    for link in (1..100).map(LinkId) {
        let handled = world.kernels[at].member.handle(now, Input::Ring { link, message: message.clone() });
        if !matches!(handled, Err(Reject::StaleLink { .. })) {
            return handled;
        }
    }
    panic!("the member reads from no link")
}
