//! What acceptors answer in a ballot, and what its coordinator makes of it (R2, R3, R5).
//!
//! Words are held against earlier words: who promised a ballot answers none below it, who accepted a proposal reports
//! it for as long as the view lasts, and what is proposed follows from the reports of all of R.

use super::failure::{Verdict, ensure};
use dvm_core::ids::{HistoryIndex, MemberId, OriginSeq, Rank, ViewId};
use dvm_core::view::Label;
use dvm_core::wire::{Accepted, Ballot, BallotKind, Control, Proposal};
use std::collections::BTreeMap;

/// Watches the control messages of all ballots, each at its author.
#[derive(Default)]
pub(crate) struct Reports {
    acceptors: BTreeMap<(MemberId, ViewId), Acceptor>,
    rounds: BTreeMap<(ViewId, Ballot), Round>,
}

/// What one member has said about one view.
#[derive(Default)]
struct Acceptor {
    /// The highest ballot that it ran or answered.
    promised: Option<Ballot>,
    /// The last ballot in which it accepted, by kind. It may have accepted later ones, in words that were lost.
    accepted: BTreeMap<BallotKind, Ballot>,
}

/// One ballot.
#[derive(Default)]
struct Round {
    /// R.
    responders: Vec<MemberId>,
    /// The first answer of each; later ones of the same ballot may know more.
    reports: BTreeMap<MemberId, Report>,
    proposed: Option<(BallotKind, Proposal)>,
}

struct Report {
    received: Vec<OriginSeq>,
    delivered: HistoryIndex,
    slots: Vec<Accepted>,
}

impl Reports {
    /// `from` says this itself.
    pub(crate) fn said(&mut self, from: MemberId, message: &Control) -> Verdict {
        match message {
            Control::FlushRequest { view, ballot, responders, .. } => {
                self.round(*view, *ballot).responders.clone_from(responders);
                self.promise(from, *view, *ballot)
            }
            Control::FlushAck { view, ballot, received, delivered, slots } => {
                self.promise(from, *view, *ballot)?;
                self.check_slots(from, *view, slots)?;
                let (received, delivered, slots) = (received.clone(), *delivered, slots.clone());
                let report = Report { received, delivered, slots };
                self.round(*view, *ballot).reports.entry(from).or_insert(report);
                Ok(())
            }
            Control::Propose { ballot, kind, proposal } => self.propose(from, *ballot, *kind, proposal),
            Control::Accept { view, ballot } => self.accept(from, *view, *ballot),
            _ => Ok(()),
        }
    }

    /// `proposal` is installed, whose coordinator has rank `rank` in the view before it. If its R was itself alone, this
    /// is the first that is heard of it.
    pub(crate) fn installed(&self, rank: Rank, proposal: &Proposal) -> Verdict {
        let ViewId { proposer, round, .. } = proposal.view.id;
        let ballot = Ballot { round, rank };
        if self.rounds.get(&(proposal.parent, ballot)).is_some_and(|round| round.proposed.is_some()) {
            return Ok(());
        }
        let kind = match proposal.view.label {
            Label::Confirmed => BallotKind::Confirmed,
            Label::Provisional => BallotKind::Provisional,
        };
        self.check_fresh(proposer, ballot, kind, proposal)
    }

    fn round(&mut self, view: ViewId, ballot: Ballot) -> &mut Round {
        self.rounds.entry((view, ballot)).or_default()
    }

    /// R2.
    fn promise(&mut self, from: MemberId, view: ViewId, ballot: Ballot) -> Verdict {
        let promised = &mut self.acceptors.entry((from, view)).or_default().promised;
        let before = promised.replace(ballot);
        ensure(before <= Some(ballot), "R2", || {
            format!("{from:?} takes part in {ballot:?} of {view:?} after it promised {before:?}")
        })
    }

    fn accept(&mut self, from: MemberId, view: ViewId, ballot: Ballot) -> Verdict {
        let Some((kind, proposal)) = &self.round(view, ballot).proposed else { return Ok(()) };
        // A joiner promises nothing.
        if proposal.joiners.iter().any(|joiner| joiner.id == from) {
            return Ok(());
        }
        let kind = *kind;
        self.promise(from, view, ballot)?;
        self.acceptors.entry((from, view)).or_default().accepted.insert(kind, ballot);
        Ok(())
    }

    /// What was accepted is reported in every later ballot, or what the same member accepted after it.
    fn check_slots(&self, from: MemberId, view: ViewId, slots: &[Accepted]) -> Verdict {
        let accepted = self.acceptors.get(&(from, view)).map(|acceptor| &acceptor.accepted);
        let kept = |(kind, ballot): (&BallotKind, &Ballot)| {
            slots.iter().any(|slot| slot.kind == *kind && slot.ballot >= *ballot)
        };
        ensure(accepted.is_none_or(|accepted| accepted.iter().all(kept)), "R5", || {
            format!("{from:?} accepted {accepted:?} in {view:?} and reports {slots:?}")
        })?;
        let made = |slot: &Accepted| {
            let round = self.rounds.get(&(view, slot.ballot)).and_then(|round| round.proposed.as_ref());
            // A coordinator whose R is itself alone tells nobody.
            round.is_none_or(|(kind, proposal)| *kind == slot.kind && *proposal == slot.proposal)
        };
        ensure(slots.iter().all(made), "R5", || {
            format!("{from:?} reports what was not proposed so: {slots:?}")
        })
    }

    fn propose(&mut self, from: MemberId, ballot: Ballot, kind: BallotKind, proposal: &Proposal) -> Verdict {
        let view = proposal.parent;
        self.promise(from, view, ballot)?;
        if self.round(view, ballot).proposed.is_some() {
            return Ok(());
        }
        self.check_answered(from, view, ballot)?;
        let is_fresh = (proposal.view.id.proposer, proposal.view.id.round) == (from, ballot.round);
        if is_fresh {
            self.check_fresh(from, ballot, kind, proposal)?;
        } else {
            self.check_adopted(from, ballot, kind, proposal)?;
        }
        self.round(view, ballot).proposed = Some((kind, proposal.clone()));
        self.acceptors.entry((from, view)).or_default().accepted.insert(kind, ballot);
        Ok(())
    }

    /// R3: nothing is proposed before all of R have answered.
    fn check_answered(&self, from: MemberId, view: ViewId, ballot: Ballot) -> Verdict {
        let Some(round) = self.rounds.get(&(view, ballot)) else { return Ok(()) };
        let mut others = round.responders.iter().filter(|m| **m != from);
        ensure(others.all(|m| round.reports.contains_key(m)), "R3", || {
            let reports = round.reports.keys();
            format!("{ballot:?} of {view:?} asked {:?} and proposes after {reports:?}", round.responders)
        })
    }

    /// The highest ballot of this kind in which the coordinator or a member that answered it accepted.
    fn highest(&self, from: MemberId, view: ViewId, ballot: Ballot, kind: BallotKind) -> Option<Ballot> {
        let own = self.acceptors.get(&(from, view)).and_then(|acceptor| acceptor.accepted.get(&kind));
        let reports = self.rounds.get(&(view, ballot)).into_iter().flat_map(|round| round.reports.values());
        let slots = reports.flat_map(|report| &report.slots).filter(|slot| slot.kind == kind);
        slots.map(|slot| slot.ballot).chain(own.copied()).filter(|accepted| *accepted < ballot).max()
    }

    /// Proposals of a kind that were made from one ballot on and before another.
    fn made(
        &self,
        view: ViewId,
        kind: BallotKind,
        from: Ballot,
        before: Ballot,
    ) -> impl Iterator<Item = &Proposal> {
        let rounds = self.rounds.range((view, from)..(view, before));
        let made = rounds.filter_map(|(_, round)| round.proposed.as_ref());
        made.filter(move |(its, _)| *its == kind).map(|(_, proposal)| proposal)
    }

    /// R5: the highest accepted one, or one that the coordinator itself accepted after it.
    fn check_adopted(
        &self,
        from: MemberId,
        ballot: Ballot,
        kind: BallotKind,
        proposal: &Proposal,
    ) -> Verdict {
        let view = proposal.parent;
        let Some(highest) = self.highest(from, view, ballot, kind) else { return Ok(()) };
        let mut made = self.made(view, kind, highest, ballot);
        ensure(made.any(|earlier| earlier == proposal), "R5", || {
            format!("{ballot:?} of {view:?} adopts not what was accepted in {highest:?} but {proposal:?}")
        })
    }

    /// R5: nothing of its kind was accepted, and it delivers what anybody holds, or what a confirmed one may have.
    fn check_fresh(&self, from: MemberId, ballot: Ballot, kind: BallotKind, proposal: &Proposal) -> Verdict {
        let view = proposal.parent;
        let before = self.highest(from, view, ballot, kind);
        ensure(before.is_none(), "R5", || {
            format!("{ballot:?} of {view:?} proposes anew, though one was accepted in {before:?}")
        })?;
        let confirmed = self.highest(from, view, ballot, BallotKind::Confirmed);
        if let (BallotKind::Provisional, Some(confirmed)) = (kind, confirmed) {
            let ends = |p: &Proposal| (p.upto.clone(), p.delivered);
            let mut made = self.made(view, BallotKind::Confirmed, confirmed, ballot);
            return ensure(made.any(|earlier| ends(earlier) == ends(proposal)), "R5", || {
                format!("{proposal:?} does not end where the confirmed one of {confirmed:?} does")
            });
        }
        let mut reports =
            self.rounds.get(&(view, ballot)).into_iter().flat_map(|round| round.reports.values());
        let covers = |report: &Report| {
            report.delivered <= proposal.delivered
                && report.received.iter().zip(&proposal.upto).all(|(held, upto)| held <= upto)
        };
        ensure(reports.all(covers), "R5", || {
            format!("{proposal:?} leaves out what was reported to {ballot:?} of {view:?}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_core::ids::{Epoch, Lineage};
    use dvm_core::view::View;

    const PARENT: ViewId = ViewId { epoch: Epoch(1), proposer: MemberId(1), round: 1 };

    fn ballot(round: u64) -> Ballot {
        Ballot { round, rank: Rank(0) }
    }

    fn proposal(round: u64, upto: [OriginSeq; 2]) -> Proposal {
        let members = vec![MemberId(1), MemberId(2)];
        let view = View {
            id: ViewId { epoch: Epoch(2), proposer: members[0], round },
            proposer_name: "k0".into(),
            lineage: Lineage(1),
            label: Label::Confirmed,
            ring: vec![Rank(0), Rank(1)],
            members,
        };
        Proposal {
            view,
            parent: PARENT,
            joiners: Vec::new(),
            departures: Vec::new(),
            upto: upto.into(),
            delivered: HistoryIndex(1),
            time_ms: 0,
        }
    }

    /// Member 1 runs ballots with member 2, which has received 3 of its messages.
    #[derive(Default)]
    struct Talk(Reports);

    impl Talk {
        fn ask(&mut self, round: u64) -> Verdict {
            let responders = vec![MemberId(1), MemberId(2)];
            let (view, ballot, kind) = (PARENT, ballot(round), BallotKind::Confirmed);
            self.0.said(MemberId(1), &Control::FlushRequest { view, ballot, kind, responders })
        }

        fn report(&mut self, round: u64, slots: Vec<Accepted>) -> Verdict {
            let (view, ballot, received, delivered) = (PARENT, ballot(round), vec![3, 0], HistoryIndex(1));
            self.0.said(MemberId(2), &Control::FlushAck { view, ballot, received, delivered, slots })
        }

        fn propose(&mut self, round: u64, proposal: Proposal) -> Verdict {
            let (ballot, kind, proposal) = (ballot(round), BallotKind::Confirmed, Box::new(proposal));
            self.0.said(MemberId(1), &Control::Propose { ballot, kind, proposal })
        }

        /// The first ballot, up to its acceptance.
        fn accepted() -> Self {
            let mut talk = Self::default();
            talk.ask(1).expect("a request");
            talk.report(1, Vec::new()).expect("a report");
            talk.propose(1, proposal(1, [3, 0])).expect("it follows from the report");
            let accept = Control::Accept { view: PARENT, ballot: ballot(1) };
            talk.0.said(MemberId(2), &accept).expect("an acceptance");
            talk.ask(2).expect("another request");
            talk
        }
    }

    fn slot() -> Accepted {
        Accepted { kind: BallotKind::Confirmed, ballot: ballot(1), proposal: proposal(1, [3, 0]) }
    }

    fn rule(verdict: Verdict) -> Option<&'static str> {
        verdict.err().map(|violation| violation.rule)
    }

    #[test]
    fn a_proposal_follows_from_all_reports() {
        let mut talk = Talk::default();
        talk.ask(1).expect("a request");
        assert_eq!(rule(talk.propose(1, proposal(1, [3, 0]))), Some("R3"));
        talk.report(1, Vec::new()).expect("a report");
        assert_eq!(rule(talk.propose(1, proposal(1, [2, 0]))), Some("R5"), "it leaves out what 2 has");
        assert_eq!(rule(talk.propose(1, proposal(1, [3, 0]))), None);
    }

    #[test]
    fn what_was_accepted_is_reported_and_adopted() {
        assert_eq!(rule(Talk::accepted().report(2, Vec::new())), Some("R5"), "it is forgotten");
        let mut talk = Talk::accepted();
        talk.report(2, vec![slot()]).expect("it is reported");
        assert_eq!(rule(talk.propose(2, proposal(2, [3, 0]))), Some("R5"), "it is not adopted");
        assert_eq!(rule(talk.propose(2, proposal(1, [3, 0]))), None);
        assert_eq!(rule(talk.report(1, vec![slot()])), Some("R2"), "2 has promised more");
    }
}
