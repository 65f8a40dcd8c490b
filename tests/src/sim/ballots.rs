//! What view changes look like on the wire: one proposal a ballot, and no commit without all promises (I7, I10).

use super::failure::{Verdict, Violation, ensure};
use super::reports::Reports;
use dvm_core::ids::{MemberId, ViewId};
use dvm_core::state::Entry;
use dvm_core::view::{Label, View};
use dvm_core::wire::{Ballot, BallotKind, Control, DepartureCause, Proposal};
use std::collections::{BTreeMap, BTreeSet};

/// Watches all control messages and all installed views.
#[derive(Default)]
pub(crate) struct Ballots {
    attempts: BTreeMap<(ViewId, Ballot), Attempt>,
    proposals: BTreeMap<ViewId, Proposal>,
    committed: BTreeSet<ViewId>,
    /// Promises: no ring traffic of the view from the member any more.
    wedged: BTreeSet<(MemberId, ViewId)>,
    views: BTreeMap<ViewId, View>,
    /// Installed successors of each view.
    successors: BTreeMap<ViewId, Vec<ViewId>>,
    reports: Reports,
    quorum: bool,
}

/// One ballot, as far as it was seen.
#[derive(Default)]
struct Attempt {
    kind: Option<BallotKind>,
    coordinator: Option<MemberId>,
    responders: BTreeSet<MemberId>,
    accepted: BTreeSet<MemberId>,
    proposed: Option<ViewId>,
}

impl Ballots {
    pub(crate) fn new(first: &View, quorum: bool) -> Self {
        let mut ballots = Self { quorum, ..Self::default() };
        ballots.views.insert(first.id, first.clone());
        ballots.committed.insert(first.id);
        ballots
    }

    /// An installed view.
    pub(crate) fn view(&self, id: ViewId) -> Option<&View> {
        self.views.get(&id)
    }

    /// How many views were installed.
    pub(crate) fn installed(&self) -> u64 {
        self.views.len() as u64
    }

    /// `from` sends a control message.
    pub(crate) fn sent(&mut self, from: MemberId, message: &Control) -> Verdict {
        match message {
            Control::FlushRequest { view, ballot, kind, responders } => {
                self.wedged.insert((from, *view));
                let attempt = self.attempts.entry((*view, *ballot)).or_default();
                attempt.begin(from, *kind, *ballot)?;
                let responders: BTreeSet<_> = responders.iter().copied().filter(|m| *m != from).collect();
                if attempt.responders.is_empty() {
                    attempt.responders = responders;
                } else {
                    ensure(attempt.responders == responders, "I7", || {
                        format!("ballot {ballot:?} of {view:?} has two sets of responders")
                    })?;
                }
            }
            Control::FlushAck { view, .. } => {
                self.wedged.insert((from, *view));
            }
            Control::Propose { ballot, kind, proposal } => {
                let parent = proposal.parent;
                let known = self.proposals.entry(proposal.view.id).or_insert_with(|| (**proposal).clone());
                ensure(*known == **proposal, "I7", || {
                    format!("two proposals for {:?}:\n  {known:?}\n  {proposal:?}", proposal.view.id)
                })?;
                let attempt = self.attempts.entry((parent, *ballot)).or_default();
                attempt.begin(from, *kind, *ballot)?;
                let first = *attempt.proposed.get_or_insert(proposal.view.id);
                ensure(first == proposal.view.id, "I7", || {
                    format!("ballot {ballot:?} of {parent:?} proposes {first:?} and {:?}", proposal.view.id)
                })?;
            }
            Control::Accept { view, ballot } => {
                self.attempts.entry((*view, *ballot)).or_default().accepted.insert(from);
            }
            Control::Commit { parent, id, .. } => self.check_commit(*parent, *id, from)?,
            Control::Relay { from: author, message, .. } => {
                ensure(!matches!(**message, Control::Relay { .. }), "relay", || "a relay in a relay".into())?;
                // The first to pass it on is its author; a later hand sees what was already noted.
                if *author == from {
                    return self.sent(from, message);
                }
            }
            _ => {}
        }
        self.reports.said(from, message)
    }

    /// A member sends a ring frame on a link of `view`.
    pub(crate) fn ring_sent(&self, from: MemberId, view: ViewId) -> Verdict {
        ensure(!self.wedged.contains(&(from, view)), "I10", || {
            format!("{from:?} sends ring traffic of {view:?} after its promise")
        })
    }

    /// A member of `view` gives way to the view `by`, which is without it (R11). Whoever accepted `by` has agreed to be
    /// out, whatever the labels.
    pub(crate) fn excluded(&self, member: MemberId, view: &View, by: ViewId) -> Verdict {
        let accepted = |attempt: &Attempt| {
            attempt.proposed == Some(by)
                && (attempt.coordinator == Some(member) || attempt.accepted.contains(&member))
        };
        let proposed = self.proposals.get(&by).map(|proposal| proposal.view.label);
        let label = self.views.get(&by).map_or(proposed, |view| Some(view.label));
        ensure(label >= Some(view.label) || self.attempts.values().any(accepted), "R11", || {
            format!("{member:?} of {:?} {:?} gives way to {by:?} {label:?}", view.id, view.label)
        })
    }

    /// A view's entry was delivered for the first time, by `by`.
    pub(crate) fn install(&mut self, entry: &Entry, proposal: &Proposal, by: MemberId) -> Verdict {
        let view = &proposal.view;
        ensure(entry.view == view.id && entry.label == view.label, "history", || {
            format!("the entry of view {:?} names {:?} {:?}", view.id, entry.view, entry.label)
        })?;
        let known = self.proposals.entry(view.id).or_insert_with(|| proposal.clone());
        ensure(known == proposal, "I7", || format!("{:?} was installed otherwise than proposed", view.id))?;
        let parent = self.views.get(&proposal.parent).ok_or_else(|| Violation {
            rule: "history",
            text: format!("{:?} succeeds {:?}, which nobody installed", view.id, proposal.parent),
        })?;
        check_succession(parent, proposal, self.quorum)?;
        if let Some(rank) = parent.rank_of(view.id.proposer) {
            self.reports.installed(rank, proposal)?;
        }
        self.check_commit(proposal.parent, view.id, by)?;
        let successors = self.successors.entry(proposal.parent).or_default();
        if !successors.contains(&view.id) {
            successors.push(view.id);
        }
        self.views.insert(view.id, view.clone());
        let rivals = self.successors[&proposal.parent].iter();
        let rivals: Vec<_> =
            rivals.filter(|id| self.quorum || self.views[*id].label == Label::Confirmed).collect();
        let rule = if self.quorum { "I8" } else { "I9" };
        ensure(rivals.len() <= 1, rule, || format!("{:?} has successors {rivals:?}", proposal.parent))
    }

    /// All of R accepted, in one ballot; a fresh proposal's joiners too. `by` is the first to say that it stands.
    fn check_commit(&mut self, parent: ViewId, id: ViewId, by: MemberId) -> Verdict {
        if self.committed.contains(&id) {
            return Ok(());
        }
        let attempts = self.attempts.range((parent, LOWEST)..=(parent, HIGHEST));
        let attempts: Vec<_> = attempts.filter(|(_, attempt)| attempt.proposed == Some(id)).collect();
        let Some(proposal) = self.proposals.get(&id).filter(|_| !attempts.is_empty()) else {
            // A member that is alone asks nobody, and nothing is on the wire.
            let alone = self.proposals.get(&id).is_none_or(|p| p.view.members == [id.proposer]);
            self.committed.insert(id);
            return ensure(alone, "I7", || format!("{id:?} stands without a proposal on the wire"));
        };
        let joiners: BTreeSet<_> = proposal.joiners.iter().map(|joiner| joiner.id).collect();
        let complete = attempts.iter().any(|((_, ballot), attempt)| {
            let is_fresh = attempt.coordinator == Some(id.proposer) && ballot.round == id.round;
            let joiners_too = !is_fresh || joiners.is_subset(&attempt.accepted);
            attempt.responders.is_subset(&attempt.accepted) && joiners_too
        });
        // A later ballot whose R is one member asks nobody; it adopts what that member accepted.
        let held_by = |attempt: &Attempt| attempt.coordinator == Some(by) || attempt.accepted.contains(&by);
        let alone = attempts.iter().any(|(_, attempt)| {
            let quorate = self.views.get(&parent).is_some_and(|view| view.is_quorum(&[by]));
            held_by(attempt) && (quorate || attempt.kind != Some(BallotKind::Confirmed))
        });
        ensure(complete || alone, "I7", || {
            let told: Vec<_> = attempts.iter().map(|(key, attempt)| format!("{key:?} {attempt:?}")).collect();
            format!("{id:?} stands, but not all accepted:\n  {}", told.join("\n  "))
        })?;
        let parent = self.views.get(&parent);
        let quorate = attempts.iter().all(|(_, attempt)| {
            let (Some(parent), Some(coordinator)) = (parent, attempt.coordinator) else { return true };
            let mut present: Vec<_> = attempt.responders.iter().copied().collect();
            present.push(coordinator);
            attempt.kind != Some(BallotKind::Confirmed)
                || (parent.label == Label::Confirmed && parent.is_quorum(&present))
        });
        ensure(quorate, "R4", || format!("{id:?} comes of a confirmed ballot without a quorum"))?;
        self.committed.insert(id);
        Ok(())
    }
}

impl Attempt {
    fn begin(&mut self, from: MemberId, kind: BallotKind, ballot: Ballot) -> Verdict {
        let first = *self.coordinator.get_or_insert(from);
        ensure(first == from, "I7", || format!("ballot {ballot:?} has coordinators {first:?} and {from:?}"))?;
        let first = *self.kind.get_or_insert(kind);
        ensure(first == kind, "I7", || format!("ballot {ballot:?} is {first:?} and {kind:?}"))
    }
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { coordinator, responders, accepted, proposed, .. } = self;
        write!(f, "by {coordinator:?} of {proposed:?}: asked {responders:?}, accepted {accepted:?}")
    }
}

/// A view's members are those of its parent without the departed, in their order, then the joiners (R5).
fn check_succession(parent: &View, proposal: &Proposal, quorum: bool) -> Verdict {
    let view = &proposal.view;
    let gone: BTreeSet<_> = proposal.departures.iter().map(|departure| departure.member).collect();
    let stay = parent.members.iter().copied().filter(|m| !gone.contains(m));
    let expected: Vec<_> = stay.chain(proposal.joiners.iter().map(|joiner| joiner.id)).collect();
    ensure(view.members == expected, "R5", || format!("{:?} has members {:?}", view.id, view.members))?;
    let mut ranks: Vec<_> = view.ring.iter().map(|rank| rank.at()).collect();
    ranks.sort_unstable();
    ensure(ranks.into_iter().eq(0..view.size()), "R5", || {
        format!("the ring of {:?} is {:?}", view.id, view.ring)
    })?;
    ensure(view.id.epoch > parent.id.epoch, "R5", || format!("{:?} succeeds {:?}", view.id, parent.id))?;
    ensure(view.lineage == parent.lineage, "R5", || format!("{:?} is of another lineage", view.id))?;
    let is_in_order = |m: &MemberId| {
        let mut departures = proposal.departures.iter();
        departures.any(|d| d.member == *m && matches!(d.why, DepartureCause::Left(_)))
    };
    let present: Vec<_> =
        parent.members.iter().copied().filter(|m| !gone.contains(m) || is_in_order(m)).collect();
    if view.label == Label::Confirmed {
        ensure(parent.label == Label::Confirmed && parent.is_quorum(&present), "R4", || {
            format!("{:?} is confirmed, its parent {:?}, present {present:?}", view.id, parent)
        })?;
    }
    ensure(!quorum || view.label == Label::Confirmed, "R4", || format!("{:?} is provisional", view.id))
}

const LOWEST: Ballot = Ballot { round: 0, rank: dvm_core::ids::Rank(u16::MAX) };
const HIGHEST: Ballot = Ballot { round: u64::MAX, rank: dvm_core::ids::Rank(0) };

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_core::ids::{Epoch, HistoryIndex, Lineage, Rank};
    use dvm_core::state::summary;
    use dvm_core::wire::Departure;

    const ROUND: Ballot = Ballot { round: 1, rank: Rank(0) };

    fn view(epoch: u64, members: &[u128]) -> View {
        let members: Vec<_> = members.iter().map(|id| MemberId(*id)).collect();
        View {
            id: ViewId { epoch: Epoch(epoch), proposer: members[0], round: 1 },
            proposer_name: "k0".into(),
            lineage: Lineage(1),
            label: Label::Confirmed,
            ring: (0..members.len()).map(|rank| Rank(rank as u16)).collect(),
            members,
        }
    }

    /// The view {1, 2, 3} goes over to {1, 2}; `accepts` says who accepted before 1 commits.
    fn commit(accepts: &[u128], members: &[u128], gone: &[u128]) -> Verdict {
        let parent = view(1, &[1, 2, 3]);
        let mut ballots = Ballots::new(&parent, true);
        let departed = |id: &u128| Departure {
            member: MemberId(*id),
            why: DepartureCause::Failed {
                cause: dvm_core::state::FailureCause::Silent,
                noticed_by: MemberId(1),
                last_heard_ms: None,
            },
        };
        let proposal = Proposal {
            view: view(2, members),
            parent: parent.id,
            joiners: Vec::new(),
            departures: gone.iter().map(departed).collect(),
            upto: vec![0; 3],
            delivered: HistoryIndex(1),
            time_ms: 0,
        };
        let kind = BallotKind::Confirmed;
        let responders: Vec<_> = members.iter().map(|id| MemberId(*id)).collect();
        let others = responders.clone().into_iter().skip(1);
        ballots
            .sent(MemberId(1), &Control::FlushRequest { view: parent.id, ballot: ROUND, kind, responders })?;
        for member in others {
            let (received, delivered, slots) = (vec![0; 3], HistoryIndex(1), Vec::new());
            let ack = Control::FlushAck { view: parent.id, ballot: ROUND, received, delivered, slots };
            ballots.sent(member, &ack)?;
        }
        ballots.sent(
            MemberId(1),
            &Control::Propose { ballot: ROUND, kind, proposal: Box::new(proposal.clone()) },
        )?;
        for id in accepts {
            ballots.sent(MemberId(*id), &Control::Accept { view: parent.id, ballot: ROUND })?;
        }
        ballots.sent(
            MemberId(1),
            &Control::Commit {
                parent: parent.id,
                id: proposal.view.id,
                member: true,
                by: summary(&proposal.view, proposal.view.id.epoch, HistoryIndex(1)),
            },
        )?;
        ensure(ballots.ring_sent(MemberId(1), parent.id).is_err(), "I10", || "the wedge is not seen".into())
    }

    #[test]
    fn a_confirmed_view_gives_way_to_no_provisional_one_that_was_not_accepted() {
        let first = view(1, &[1, 2, 3]);
        let mut ballots = Ballots::new(&first, false);
        let mut other = view(2, &[3]);
        other.label = Label::Provisional;
        ballots.views.insert(other.id, other.clone());
        let gives_way = |ballots: &Ballots, view| ballots.excluded(MemberId(1), view, other.id);
        assert_eq!(gives_way(&ballots, &first).expect_err("it is confirmed").rule, "R11");
        gives_way(&ballots, &other).expect("both are provisional");
        let accepted = BTreeSet::from([MemberId(1)]);
        let attempt = Attempt { proposed: Some(other.id), accepted, ..Attempt::default() };
        ballots.attempts.insert((first.id, ROUND), attempt);
        gives_way(&ballots, &first).expect("it has agreed");
    }

    #[test]
    fn a_commit_needs_every_responder_and_a_quorum() {
        commit(&[2], &[1, 2], &[3]).expect("all accepted");
        assert_eq!(commit(&[], &[1, 2], &[3]).expect_err("2 did not accept").rule, "I7");
        assert_eq!(commit(&[], &[1], &[2, 3]).expect_err("1 of 3 is no quorum").rule, "R4");
    }
}
