//! Properties of the broadcast, whatever clients ask and wherever links break: one order everywhere, and the order is the
//! one that a naive twin works out afterwards by sorting.

mod harness;

use dvm_core::ids::MemberId;
use dvm_core::state::{Change, Content};
use dvm_core::wire::Key;
use harness::World;
use proptest::prelude::*;

/// What happens next in a run.
#[derive(Clone, Debug)]
enum Step {
    /// A client of this member asks for a change.
    Submit(usize),
    /// The link from this member to its successor breaks.
    Reset(usize),
    /// So many microseconds pass.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_usize).prop_map(Step::Submit),
        1 => (0..6_usize).prop_map(Step::Reset),
        4 => (1..400_u64).prop_map(Step::Wait),
    ]
}

/// A delivered change: its key, who sent it, and its number there.
type Delivered = (Key, MemberId, u64);

fn delivered(world: &World, at: usize) -> Vec<Delivered> {
    let entries = world.kernels[at].member.history();
    let changes = entries.filter_map(|entry| match &entry.content {
        Content::Change { origin, oseq, .. } => Some((entry.key, *origin, *oseq)),
        Content::View(_) => None,
    });
    changes.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn all_members_deliver_what_was_sent_in_the_order_of_the_keys(
        n in 2..7_usize,
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::ring(n);
        let mut sent = vec![0; n];
        for step in steps {
            match step {
                Step::Submit(at) => {
                    world.submit(at % n, "noop", None, Change::Noop);
                    sent[at % n] += 1;
                }
                Step::Reset(at) => world.reset(at % n, (at + 1) % n),
                Step::Wait(us) => world.wait_us(us),
            }
        }
        world.wait_us(500_000);
        let first = delivered(&world, 0);
        // The naive twin: every message there ever was, sorted by Lamport number and rank.
        let mut sorted = first.clone();
        sorted.sort();
        prop_assert_eq!(&first, &sorted);
        for (at, count) in sent.iter().enumerate() {
            prop_assert_eq!(&delivered(&world, at), &first, "member {} delivers the same", at);
            let me = world.kernels[at].member.id();
            let numbers: Vec<_> = first.iter().filter(|(_, origin, _)| *origin == me).map(|(.., oseq)| *oseq).collect();
            prop_assert_eq!(numbers, (1..=*count).collect::<Vec<u64>>(), "each once, in the order it was asked");
            prop_assert_eq!(world.kernels[at].answers.len() as u64, *count, "each client is answered");
        }
    }
}
