//! Views, ballots and keys against slow, obvious twins, on inputs that nobody chose; `order` does so for the broadcast.

use dvm_core::Config;
use dvm_core::ids::{Epoch, HistoryIndex, Lamport, Lineage, MemberId, Rank, ViewId};
use dvm_core::state::{
    Applied, Change, Content, Genesis, KeyCondition, KeyOperation, KeyTransaction, State, Submission,
};
use dvm_core::view::{Label, View, ring_order};
use dvm_core::wire::{Ballot, Identity, Key};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

proptest! {
    /// A ring avoids bad edges exactly when some order of the members does; rank 0 is always first.
    #[test]
    fn a_ring_avoids_bad_edges_if_any_order_does(n in 2_usize..=6, bad in vec((0_u16..6, 0_u16..6), 0..14)) {
        let bad: Vec<_> = bad.into_iter().map(|(a, b)| (Rank(a), Rank(b))).collect();
        let found = ring_order(n, &bad);
        prop_assert_eq!(found.is_some(), permutations(n).iter().any(|ring| avoids(ring, &bad)));
        if let Some(ring) = found {
            let members: BTreeSet<_> = ring.iter().collect();
            prop_assert_eq!((members.len(), ring[0]), (n, Rank(0)));
            prop_assert!(avoids(&ring, &bad));
        }
    }

    /// Of two disjoint sets of members at most one is a quorum, and of a set and its complement exactly one.
    #[test]
    fn exactly_one_side_of_a_cut_is_a_quorum(n in 1_usize..=12, sides in any::<u16>()) {
        let view = view(n);
        let (here, there): (Vec<_>, Vec<_>) =
            view.members.iter().enumerate().partition(|(at, _)| sides & (1 << at) != 0);
        let ids = |side: Vec<(usize, &MemberId)>| side.into_iter().map(|(_, id)| *id).collect::<Vec<_>>();
        prop_assert!(view.is_quorum(&ids(here)) != view.is_quorum(&ids(there)));
    }

    /// Everybody is watched by as many others as there are, up to the wanted number; nobody watches himself.
    #[test]
    fn observers_are_others_and_enough(n in 1_usize..=20, count in 2_u64..=8) {
        let view = view(n);
        for rank in (0..n).map(|rank| Rank(rank as u16)) {
            let observers = view.observers(rank, count);
            let distinct: BTreeSet<_> = observers.iter().collect();
            prop_assert_eq!(distinct.len(), observers.len());
            prop_assert!(!observers.contains(&rank));
            prop_assert!(observers.len() >= 2.min(n - 1) && observers.len() <= count as usize);
        }
    }

    /// Higher rounds win, and in a round the older coordinator.
    #[test]
    fn ballots_are_ordered_by_round_then_by_age(a in (0_u64..4, 0_u16..4), b in (0_u64..4, 0_u16..4)) {
        let ballot = |(round, rank)| Ballot { round, rank: Rank(rank) };
        let wins = a.0 > b.0 || (a.0 == b.0 && a.1 < b.1);
        prop_assert_eq!(ballot(a) > ballot(b), wins);
    }

    /// The table of keys does what a plain map does.
    #[test]
    fn keys_are_what_a_plain_map_would_be(transactions in vec(key_transaction(), 1..40)) {
        let mut state = genesis();
        let mut twin: BTreeMap<String, (Vec<u8>, u64)> = BTreeMap::new();
        for (at, transaction) in transactions.into_iter().enumerate() {
            let first = state.index.0 + 1;
            let held = transaction.conditions.iter().all(|(key, condition)| match condition {
                KeyCondition::Absent => !twin.contains_key(key),
                KeyCondition::Present => twin.contains_key(key),
                KeyCondition::Version(wanted) => twin.get(key).is_some_and(|(_, is)| *is == wanted.0),
            });
            for operation in if held { &transaction.then } else { &transaction.otherwise } {
                match operation {
                    KeyOperation::Put { key, value } => {
                        drop(twin.insert(key.clone(), (value.to_vec(), first)));
                    }
                    KeyOperation::Delete { key } => drop(twin.remove(key)),
                }
            }
            let applied = apply(&mut state, at as u64 + 1, Change::Keys(transaction));
            let Applied::Keys { held: said, .. } = applied else { panic!("keys were changed: {applied:?}") };
            prop_assert_eq!(said, held);
            let keys = state.keys.iter().map(|(key, record)| {
                (key.clone(), (record.value.to_vec(), record.version.0))
            });
            prop_assert_eq!(keys.collect::<BTreeMap<_, _>>(), twin.clone());
        }
    }
}

fn permutations(n: usize) -> Vec<Vec<Rank>> {
    let mut rings = vec![vec![Rank(0)]];
    for _ in 1..n {
        let longer = rings.iter().flat_map(|ring| {
            let others = (1..n).map(|rank| Rank(rank as u16)).filter(|rank| !ring.contains(rank));
            others.map(|rank| ring.iter().copied().chain([rank]).collect())
        });
        rings = longer.collect();
    }
    rings
}

fn avoids(ring: &[Rank], bad: &[(Rank, Rank)]) -> bool {
    let next = ring.iter().cycle().skip(1);
    ring.iter().zip(next).all(|(a, b)| !bad.contains(&(*a, *b)))
}

fn view(n: usize) -> View {
    let members: Vec<_> = (1..=n as u128).map(MemberId).collect();
    View {
        id: ViewId { epoch: Epoch(1), proposer: members[0], round: 1 },
        proposer_name: "a".into(),
        lineage: Lineage(1),
        label: Label::Confirmed,
        ring: (0..n).map(|rank| Rank(rank as u16)).collect(),
        members,
    }
}

fn genesis() -> State {
    let founder = Identity {
        id: MemberId(1),
        name: "a".into(),
        host: "h".into(),
        addresses: Vec::new(),
        pid: 1,
        log: String::new(),
        version: "0".into(),
        tags: BTreeMap::new(),
    };
    let genesis = Genesis { name: "dvm".into(), id: 1, lineage: Lineage(1), config: Config::default() };
    State::genesis(genesis, founder)
}

fn apply(state: &mut State, oseq: u64, change: Change) -> Applied {
    let submission = Submission { stamp: None, time_ms: 0, change };
    let body = postcard::to_allocvec(&submission).expect("a submission is plain data").into();
    let key = Key { lnum: Lamport(oseq), origin: Rank(0) };
    let content = Content::Change { origin: MemberId(1), oseq, body, digest: None };
    state.apply(key, Label::Confirmed, content).applied
}

fn key_transaction() -> impl Strategy<Value = KeyTransaction> {
    let key = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let condition = prop_oneof![
        Just(KeyCondition::Absent),
        Just(KeyCondition::Present),
        (1_u64..60).prop_map(|version| KeyCondition::Version(HistoryIndex(version))),
    ];
    let operation = || {
        prop_oneof![
            (key(), any::<u8>())
                .prop_map(|(key, value)| KeyOperation::Put { key, value: vec![value].into() }),
            key().prop_map(|key| KeyOperation::Delete { key }),
        ]
    };
    (vec((key(), condition), 0..2), vec(operation(), 0..3), vec(operation(), 0..2))
        .prop_map(|(conditions, then, otherwise)| KeyTransaction { conditions, then, otherwise })
}
