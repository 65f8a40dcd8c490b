//! Views, and the pure functions on them: quorum, ring order, observers.

use crate::ids::{Lineage, MemberId, Name, Rank, ViewId};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Whether a view's history is that of a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Another side of a cut may have gone on too.
    Provisional,
    /// At most one side of any cut can hold this label.
    Confirmed,
}

impl Label {
    /// As users see it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Provisional => "provisional",
            Self::Confirmed => "confirmed",
        }
    }
}

/// The agreed, ordered set of members. Members and ring order are frozen inside a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its identity.
    pub id: ViewId,
    /// Name of its proposer, for people.
    pub proposer_name: Name,
    /// Its line of descent.
    pub lineage: Lineage,
    /// Whether it has a quorum's word.
    pub label: Label,
    /// By rank, the oldest first.
    pub members: Vec<MemberId>,
    /// A permutation of the ranks: each sends to the next, the last to the first.
    pub ring: Vec<Rank>,
}

impl View {
    /// Rank of a member.
    #[must_use]
    pub fn rank_of(&self, member: MemberId) -> Option<Rank> {
        self.members.iter().position(|m| *m == member).map(|at| Rank(at as u16))
    }

    /// Whether `member` is in it.
    #[must_use]
    pub fn has(&self, member: MemberId) -> bool {
        self.rank_of(member).is_some()
    }

    /// How many members.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The member at a rank.
    ///
    /// # Panics
    /// If the rank is not in the view; ranks from the wire are checked at admission.
    #[must_use]
    pub fn member(&self, rank: Rank) -> MemberId {
        self.members[rank.at()]
    }

    /// Whom `rank` sends to on the ring; itself when alone.
    #[must_use]
    pub fn successor(&self, rank: Rank) -> Rank {
        self.along(rank, 1)
    }

    /// Who sends to `rank` on the ring; itself when alone.
    #[must_use]
    pub fn predecessor(&self, rank: Rank) -> Rank {
        self.along(rank, self.size() - 1)
    }

    /// The rank `steps` places further on the ring.
    fn along(&self, rank: Rank, steps: usize) -> Rank {
        let at = self.ring.iter().position(|r| *r == rank).expect("the ring is a permutation of the ranks");
        self.ring[(at + steps) % self.ring.len()]
    }

    /// Whom `rank` sends heartbeats to: successor, predecessor, and members half and a quarter round the ring.
    #[must_use]
    pub fn observers(&self, rank: Rank, count: u64) -> Vec<Rank> {
        let n = self.size();
        let mut chosen = Vec::new();
        let mut divisor = 2;
        let mut distances = alloc::vec![1, n - 1];
        while distances.len() < count as usize && n / divisor > 0 {
            distances.push(n / divisor);
            divisor *= 2;
        }
        for distance in distances.into_iter().take(count as usize) {
            let observer = self.along(rank, distance % n);
            if observer != rank && !chosen.contains(&observer) {
                chosen.push(observer);
            }
        }
        chosen
    }

    /// Whether `present` of this view's members may speak for it: more than half, or exactly half with rank 0.
    #[must_use]
    pub fn is_quorum(&self, present: &[MemberId]) -> bool {
        let count = self.members.iter().filter(|m| present.contains(m)).count();
        2 * count > self.size() || (2 * count == self.size() && present.contains(&self.members[0]))
    }
}

/// A ring order for `n` ranks that uses no edge of `bad` (from, to), if one is found.
///
/// Rank order when nothing is bad; else a bounded depth-first search that prefers rank order.
#[must_use]
pub fn ring_order(n: usize, bad: &[(Rank, Rank)]) -> Option<Vec<Rank>> {
    fn extend(path: &mut Vec<Rank>, n: usize, bad: &[(Rank, Rank)], steps: &mut u32) -> bool {
        let last = *path.last().expect("the path begins with rank 0");
        if path.len() == n {
            return !bad.contains(&(last, path[0]));
        }
        for next in (1..n).map(|r| Rank(r as u16)) {
            if *steps == 0 {
                return false;
            }
            if path.contains(&next) || bad.contains(&(last, next)) {
                continue;
            }
            *steps -= 1;
            path.push(next);
            if extend(path, n, bad, steps) {
                return true;
            }
            path.pop();
        }
        false
    }
    if n == 1 || bad.is_empty() {
        return Some((0..n).map(|r| Rank(r as u16)).collect());
    }
    let mut path = alloc::vec![Rank(0)];
    let mut steps = 20_000;
    extend(&mut path, n, bad, &mut steps).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn view(n: u16) -> View {
        let members: Vec<_> = (1..=u128::from(n)).map(MemberId).collect();
        View {
            id: ViewId { epoch: Epoch(1), proposer: members[0], round: 1 },
            proposer_name: "k0".into(),
            lineage: Lineage(1),
            label: Label::Confirmed,
            ring: ring_order(members.len(), &[]).expect("no edge is bad"),
            members,
        }
    }

    #[test]
    fn two_disjoint_groups_are_never_both_a_quorum() {
        for n in 1..=9u16 {
            let view = view(n);
            for mask in 0..1u32 << n {
                let side = |bit| {
                    let members = view.members.iter().enumerate();
                    members.filter(|(i, _)| mask >> i & 1 == bit).map(|(_, m)| *m).collect::<Vec<_>>()
                };
                assert!(!(view.is_quorum(&side(1)) && view.is_quorum(&side(0))), "n {n} mask {mask:b}");
                assert!(view.is_quorum(&side(1)) || view.is_quorum(&side(0)), "one side always is");
            }
        }
    }

    #[test]
    fn a_ring_order_avoids_bad_edges_or_says_that_it_cannot() {
        let order = ring_order(4, &[(Rank(0), Rank(1))]).expect("there is one");
        assert_eq!(order.len(), 4);
        for pair in 0..4 {
            assert_ne!((order[pair], order[(pair + 1) % 4]), (Rank(0), Rank(1)));
        }
        assert_eq!(ring_order(2, &[(Rank(0), Rank(1))]), None);
    }

    #[test]
    fn observers_are_others_and_include_both_neighbours() {
        for n in 2..=20 {
            let view = view(n);
            for rank in (0..n).map(Rank) {
                let observers = view.observers(rank, 4);
                assert!(!observers.contains(&rank));
                assert!(
                    observers.contains(&view.successor(rank)) && observers.contains(&view.predecessor(rank))
                );
                assert!(observers.len() <= 4);
            }
        }
        assert!(view(1).observers(Rank(0), 4).is_empty());
    }
}
