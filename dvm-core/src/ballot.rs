//! The coordinator's side of a view change: when to begin a ballot, what to propose, when to commit.

use crate::config::Partition;
use crate::cx::Cx;
use crate::ids::{HistoryIndex, Lineage, MemberId, OriginSeq, Rank, RequestId, ViewId};
use crate::io::{Answer, Refusal, Reject, Standing};
use crate::seat::{Exit, Seat};
use crate::state::{Applied, LeaveBy, summary};
use crate::timer::Timer;
use crate::view::{Label, View, ring_order};
use crate::wire::{Accepted, Ballot, BallotKind, Control, Departure, DepartureCause, Identity, Proposal};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// One ballot, at its coordinator.
#[derive(Debug)]
pub(crate) struct Coordination {
    pub(crate) ballot: Ballot,
    kind: BallotKind,
    /// R, this member included.
    responders: Vec<MemberId>,
    acks: BTreeMap<MemberId, Ack>,
    proposal: Option<Proposal>,
    /// It was made in this ballot, not adopted: joiners must accept it too.
    fresh: bool,
    /// All bodies are here and it was sent.
    proposed: bool,
    accepts: BTreeSet<MemberId>,
    /// How often the present phase's messages were sent.
    asked: u32,
}

#[derive(Debug)]
struct Ack {
    received: Vec<OriginSeq>,
    delivered: HistoryIndex,
    slots: Vec<Accepted>,
}

impl Seat {
    /// Something changed that may call for a new view, or for another ballot.
    pub(crate) fn reconsider(&mut self, cx: &mut Cx) {
        if self.exit.is_some() {
            return;
        }
        let suspects = self.suspects();
        self.tell_suspects(cx, &suspects);
        let leaving = self.record.state.members.values().any(|record| record.leaving.is_some());
        let joining = !self.is_yielding() && self.admission.anybody_ready(cx.now, self.silence_ms());
        let wedged = self.is_wedged() || self.detector.anybody_asks() || self.has_bad_edge();
        if suspects.is_empty() && !leaving && !joining && !wedged {
            self.timers.stop(Timer::Change);
            return;
        }
        if self.blocked && self.ballot_kind().is_none() {
            return;
        }
        let older = self.turn();
        let silence_ms = self.silence_ms();
        if let Some(coordination) = &self.coordination {
            // A ballot is running here; it begins anew when one of R falls away.
            let gone = coordination.responders.iter().filter_map(|m| self.view.rank_of(*m));
            if { gone }.any(|rank| suspects.contains(&rank)) {
                let cut_ms = self.cut_ms();
                self.timers.set_earlier(Timer::Change, cx.now.plus_ms(cut_ms));
            }
            return;
        }
        let Some(older) = older else { return };
        let wait_ms = if older == 0 {
            match (suspects.is_empty(), leaving || wedged) {
                (false, _) => self.cut_ms(),
                (true, true) if !joining && self.others_coordinate() => silence_ms / 2,
                (true, true) => 0,
                (true, false) => self.config().join_batch_ms,
            }
        } else if joining && suspects.is_empty() && !leaving && !wedged {
            // Only the coordinator gathers joiners.
            return;
        } else {
            (older + 1) * silence_ms / 2
        };
        if !self.timers.is_set(Timer::Change) {
            self.timers.set(Timer::Change, cx.now.plus_ms(wait_ms));
        } else if older == 0 {
            self.timers.set_earlier(Timer::Change, cx.now.plus_ms(wait_ms));
        }
    }

    /// Those who may coordinate, the first in line first: the unsuspected by age. Whoever leaves does not, while there
    /// are others: it would go with the only knowledge of what it committed.
    pub(crate) fn coordinators(&self) -> Vec<MemberId> {
        let unsuspected = self.unsuspected();
        let stays =
            |m: &MemberId| self.record.state.members.get(m).is_some_and(|record| record.leaving.is_none());
        let staying: Vec<_> = unsuspected.iter().copied().filter(stays).collect();
        if staying.is_empty() { unsuspected } else { staying }
    }

    /// How many are before this member in the line of those who may coordinate, if it is in it.
    fn turn(&self) -> Option<u64> {
        let me = self.view.member(self.rank);
        self.coordinators().iter().position(|m| *m == me).map(|at| at as u64)
    }

    /// Another member's ballot is promised here, and it is not suspected.
    fn others_coordinate(&self) -> bool {
        self.wedge.as_ref().is_some_and(|wedge| {
            wedge.promised.round > 0
                && wedge.promised.rank != self.rank
                && wedge.promised.rank.at() < self.view.size()
                && !self.is_suspected(wedge.promised.rank)
        })
    }

    /// How long evidence is held so that faults that come together make one view change.
    fn cut_ms(&self) -> u64 {
        if self.all_dead() { self.config().cut_dead_ms } else { self.config().cut_silent_ms }
    }

    /// The kind of ballot that may be run now; none without a quorum under `quorum`.
    fn ballot_kind(&self) -> Option<BallotKind> {
        self.kind_among(&self.unsuspected())
    }

    /// The kind of ballot that these may run.
    fn kind_among(&self, present: &[MemberId]) -> Option<BallotKind> {
        if self.promotion.is_some() {
            return Some(BallotKind::Promoted);
        }
        if self.view.label == Label::Confirmed && self.view.is_quorum(present) {
            Some(BallotKind::Confirmed)
        } else if self.config().partition == Partition::Survive {
            Some(BallotKind::Provisional)
        } else {
            None
        }
    }

    /// Time to begin a ballot, unless somebody else has been at work.
    pub(crate) fn change(&mut self, cx: &mut Cx) {
        let Some(older) = self.turn() else { return };
        if let Some(wedge) = self.wedge.as_ref().filter(|_| older > 0 && self.coordination.is_none()) {
            let due = wedge.activity.plus_ms((older + 1) * self.silence_ms() / 2);
            if due > cx.now {
                self.timers.set(Timer::Change, due);
                return;
            }
        }
        self.begin_ballot(cx);
    }

    /// Where no order of the ring avoids the bad edges, the youngest member that has one is left out. If nobody could
    /// go on without it, it stays, and the edges are tried anew.
    fn leave_out_unreachable(&mut self, cx: &Cx) {
        loop {
            let present = self.unsuspected();
            let mut members = present.clone();
            members
                .retain(|m| self.record.state.members.get(m).is_some_and(|record| record.leaving.is_none()));
            let bad = self.edges.among(&members);
            if ring_order(members.len(), &bad).is_some() {
                return;
            }
            let ends = bad.iter().flat_map(|(a, b)| [members[a.at()], members[b.at()]]);
            let ranks = ends.filter_map(|m| self.view.rank_of(m)).filter(|rank| *rank != self.rank);
            let Some(youngest) = ranks.max() else { return };
            let without = present.iter().copied().filter(|m| *m != self.view.member(youngest));
            let without: Vec<_> = without.collect();
            if self.kind_among(&present).is_some() && self.kind_among(&without).is_none() {
                return;
            }
            self.detector.cut_off(youngest, cx.now);
        }
    }

    fn begin_ballot(&mut self, cx: &mut Cx) {
        self.leave_out_unreachable(cx);
        let me = cx.me.id;
        let promised = self.stop_ring(cx).promised;
        let Some(kind) = self.ballot_kind() else {
            self.block(cx);
            return;
        };
        self.unblock(cx);
        let (responders, delivered) = (self.unsuspected(), self.delivered());
        let ballot = Ballot { round: promised.round + 1, rank: self.rank };
        let wedge = self.wedge.as_mut().expect("stopped above");
        (wedge.promised, wedge.responders, wedge.activity) = (ballot, responders.clone(), cx.now);
        // An own ballot is a promise, too: what was not accepted until now never will be.
        wedge.filling = None;
        let ack = Ack { received: self.broadcast.received().to_vec(), delivered, slots: wedge.slots.clone() };
        self.coordination = Some(Coordination {
            ballot,
            kind,
            responders,
            acks: [(me, ack)].into(),
            proposal: None,
            fresh: false,
            proposed: false,
            accepts: BTreeSet::new(),
            asked: 0,
        });
        self.timers.set(Timer::Overdue, cx.now.plus_ms(self.silence_ms() / 2));
        self.ask(cx);
        self.advance(cx);
    }

    /// Sends what the ballot's present phase sends, to those who have not answered.
    fn ask(&mut self, cx: &mut Cx) {
        let Some(coordination) = &self.coordination else { return };
        let Coordination { ballot, kind, responders, acks, proposal, proposed, accepts, .. } = coordination;
        let (ballot, kind) = (*ballot, *kind);
        self.timers.set(Timer::Resend, cx.now.plus_ms((self.silence_ms() / 8).max(1)));
        match proposal {
            None => {
                let view = self.view.id;
                let message = Control::FlushRequest { view, ballot, kind, responders: responders.clone() };
                cx.send_all(responders.iter().copied().filter(|m| !acks.contains_key(m)), &message);
            }
            Some(proposal) if *proposed => {
                let message = Control::Propose { ballot, kind, proposal: Box::new(proposal.clone()) };
                let joiners = proposal.joiners.iter().map(|joiner| joiner.id);
                let to = responders.iter().copied().chain(joiners).filter(|m| !accepts.contains(m));
                cx.send_all(to, &message);
            }
            Some(proposal) => {
                let (view, upto) = (self.view.id, proposal.upto.clone());
                let above = self.broadcast.received().to_vec();
                let lacking = (0..upto.len()).filter(|o| above[*o] < upto[*o]);
                let holders: BTreeSet<_> = lacking
                    .filter_map(|o| acks.iter().find(|(_, ack)| ack.received[o] >= upto[o]))
                    .map(|(member, _)| *member)
                    .collect();
                cx.send_all(holders, &Control::Fetch { view, above, upto });
            }
        }
    }

    /// Asks again those who have not answered; the second time through others, too.
    pub(crate) fn resend(&mut self, cx: &mut Cx) {
        let Some(coordination) = &mut self.coordination else { return };
        coordination.asked += 1;
        if coordination.asked >= 2 {
            let answered: Vec<_> = coordination.acks.keys().copied().filter(|m| *m != cx.me.id).collect();
            if !answered.is_empty() {
                let via = answered[cx.prng.below(answered.len() as u64) as usize];
                let missing = coordination.responders.iter().filter(|m| {
                    if coordination.proposed {
                        !coordination.accepts.contains(m)
                    } else {
                        !coordination.acks.contains_key(m)
                    }
                });
                cx.detours = missing.filter(|m| **m != via).map(|m| (*m, via)).collect();
            }
        }
        self.ask(cx);
        cx.detours.clear();
    }

    /// Some of R have not answered in time: they count as silent, and a smaller R is asked.
    pub(crate) fn overdue(&mut self, cx: &mut Cx) {
        let Some(coordination) = self.coordination.take() else { return };
        let answered = |m: &MemberId| match coordination.proposed {
            true => coordination.accepts.contains(m),
            false => coordination.acks.contains_key(m),
        };
        let missing: Vec<_> = coordination.responders.iter().copied().filter(|m| !answered(m)).collect();
        if let Some(proposal) = &coordination.proposal {
            for joiner in proposal.joiners.iter().filter(|j| !coordination.accepts.contains(&j.id)) {
                self.admission.not_ready(joiner.id);
            }
        }
        for member in missing.into_iter().filter(|m| *m != cx.me.id) {
            let rank = self.view.rank_of(member).expect("R is part of the view");
            self.detector.mute(rank, cx.now);
        }
        self.timers.stop(Timer::Resend);
        self.timers.stop(Timer::Change);
        self.begin_ballot(cx);
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one message")]
    pub(crate) fn on_flush_ack(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        ballot: Ballot,
        received: Vec<OriginSeq>,
        delivered: HistoryIndex,
        slots: Vec<Accepted>,
    ) -> Result<(), Reject> {
        self.admit(cx, from, view)?;
        let n = self.view.size();
        let Some(coordination) = self.coordination.as_mut().filter(|c| c.ballot == ballot) else {
            return Err(Reject::Unexpected { what: "answer to a ballot" });
        };
        let slots_fit =
            slots.iter().all(|slot| slot.proposal.parent == view && slot.proposal.upto.len() == n);
        if received.len() != n || !slots_fit || !coordination.responders.contains(&from) {
            return Err(Reject::Malformed { what: "answer to a ballot" });
        }
        coordination.acks.entry(from).or_insert(Ack { received, delivered, slots });
        self.advance(cx);
        Ok(())
    }

    pub(crate) fn on_flush_nack(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        promised: Ballot,
    ) -> Result<(), Reject> {
        self.admit(cx, from, view)?;
        let Some(coordination) = self.coordination.as_ref().filter(|c| c.ballot < promised) else {
            return Err(Reject::Unexpected { what: "refusal of a ballot" });
        };
        // R2: back off at random, then outbid.
        let round = promised.round.max(coordination.ballot.round);
        self.coordination = None;
        self.timers.stop(Timer::Resend);
        self.timers.stop(Timer::Overdue);
        let wedge = self.wedge.as_mut().expect("a coordinator is wedged");
        wedge.promised = wedge.promised.max(Ballot { round, rank: Rank(u16::MAX) });
        wedge.activity = cx.now;
        let wait_ms = cx.some_of_ms(self.silence_ms() / 2);
        self.timers.set(Timer::Change, cx.now.plus_ms(wait_ms));
        Ok(())
    }

    pub(crate) fn on_accept(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        ballot: Ballot,
    ) -> Result<(), Reject> {
        let Some(coordination) =
            self.coordination.as_mut().filter(|c| c.ballot == ballot && c.proposed && self.view.id == view)
        else {
            if self.view.has(from) {
                self.admit(cx, from, view)?;
            } else {
                self.tell_past(cx, from, view);
            }
            return Err(Reject::Unexpected { what: "acceptance" });
        };
        coordination.accepts.insert(from);
        self.advance(cx);
        Ok(())
    }

    /// Goes on as far as the answers allow.
    pub(crate) fn advance(&mut self, cx: &mut Cx) {
        let Some(coordination) = &self.coordination else { return };
        if coordination.proposal.is_none() {
            if !coordination.responders.iter().all(|m| coordination.acks.contains_key(m)) {
                return;
            }
            let (proposal, fresh) = self.choose(cx);
            if proposal.view.members.is_empty() {
                // Nobody stays: there is no next view.
                self.exit = Some(Exit::Left(cx.leaving.unwrap_or(LeaveBy::Term)));
                return;
            }
            let coordination = self.coordination.as_mut().expect("looked at above");
            (coordination.proposal, coordination.fresh) = (Some(proposal), fresh);
            self.timers.set(Timer::Overdue, cx.now.plus_ms(self.silence_ms() / 2));
            self.ask_unless_whole(cx);
        }
        let Some(coordination) = &mut self.coordination else { return };
        let Some(proposal) = &coordination.proposal else { return };
        if !self.broadcast.holds(&proposal.upto) {
            return;
        }
        if !coordination.proposed {
            (coordination.proposed, coordination.asked) = (true, 0);
            coordination.accepts.insert(cx.me.id);
            let (kind, ballot) = (coordination.kind, coordination.ballot);
            let accepted = Accepted { kind, ballot, proposal: proposal.clone() };
            for joiner in &accepted.proposal.joiners {
                cx.know(joiner);
            }
            let wedge = self.wedge.as_mut().expect("a coordinator is wedged");
            wedge.slots.retain(|slot| slot.kind != kind);
            wedge.slots.push(accepted);
            self.timers.set(Timer::Overdue, cx.now.plus_ms(self.silence_ms() / 2));
            self.ask(cx);
        }
        self.commit_if_all(cx);
    }

    fn ask_unless_whole(&mut self, cx: &mut Cx) {
        let proposal = self.coordination.as_ref().and_then(|c| c.proposal.as_ref());
        if proposal.is_some_and(|proposal| !self.broadcast.holds(&proposal.upto)) {
            self.ask(cx);
        }
    }

    /// R7: commit when all of R accepted, and the joiners of a fresh proposal.
    fn commit_if_all(&mut self, cx: &mut Cx) {
        let Some(coordination) = &self.coordination else { return };
        let Some(proposal) = &coordination.proposal else { return };
        let joiners: Vec<_> = proposal.joiners.iter().map(|joiner| joiner.id).collect();
        let all = coordination.responders.iter().all(|m| coordination.accepts.contains(m))
            && (!coordination.fresh || joiners.iter().all(|m| coordination.accepts.contains(m)));
        if !all {
            return;
        }
        let state = &self.record.state;
        let confirmed = proposal.view.label == Label::Confirmed;
        let last_confirmed = if confirmed { proposal.view.id.epoch } else { state.last_confirmed };
        let by = summary(&proposal.view, last_confirmed, state.index);
        let (parent, id) = (self.view.id, proposal.view.id);
        for to in coordination.responders.iter().copied().chain(joiners) {
            let member = proposal.view.has(to);
            cx.send(to, Control::Commit { parent, id, member, by: by.clone() });
        }
        let proposal = proposal.clone();
        self.conclude(cx, &proposal);
    }

    /// R5: the highest accepted proposal of the ballot's own kind, or a fresh one.
    fn choose(&self, cx: &Cx) -> (Proposal, bool) {
        let coordination = self.coordination.as_ref().expect("only a coordinator chooses");
        let highest = |kind: BallotKind| {
            let slots = coordination.acks.values().flat_map(|ack| &ack.slots);
            slots.filter(|slot| slot.kind == kind).max_by_key(|slot| slot.ballot)
        };
        if let Some(accepted) = highest(coordination.kind) {
            return (accepted.proposal.clone(), false);
        }
        let n = self.view.size();
        let mut upto = alloc::vec![0; n];
        for ack in coordination.acks.values() {
            for (most, received) in upto.iter_mut().zip(&ack.received) {
                *most = (*most).max(*received);
            }
        }
        let mut delivered = coordination.acks.values().map(|ack| ack.delivered).max().unwrap_or_default();
        if let (BallotKind::Provisional, Some(confirmed)) =
            (coordination.kind, highest(BallotKind::Confirmed))
        {
            // What that proposal's members may have delivered by it, and no more.
            upto.clone_from(&confirmed.proposal.upto);
            delivered = confirmed.proposal.delivered;
        }
        (self.fresh_proposal(cx, coordination, upto, delivered), true)
    }

    fn fresh_proposal(
        &self,
        cx: &Cx,
        coordination: &Coordination,
        upto: Vec<OriginSeq>,
        delivered: HistoryIndex,
    ) -> Proposal {
        let state = &self.record.state;
        let mut departures = Vec::new();
        let mut members = Vec::new();
        for rank in self.ranks() {
            let member = self.view.member(rank);
            let leaving = state.members.get(&member).and_then(|record| record.leaving);
            match leaving {
                _ if !coordination.responders.contains(&member) => departures.push(self.departure(cx, rank)),
                Some(by) => departures.push(Departure { member, why: DepartureCause::Left(by) }),
                None => members.push(member),
            }
        }
        let joiners = if self.is_yielding() { Vec::new() } else { self.joiners(cx, &members) };
        members.extend(joiners.iter().map(|joiner| joiner.id));
        // Whom no order can reach was left out when the ballot began, if the others can go on without it.
        let bad = self.edges.among(&members);
        let ring = ring_order(members.len(), &bad)
            .or_else(|| ring_order(members.len(), &[]))
            .expect("without bad edges there is an order");
        let (label, lineage) = match coordination.kind {
            BallotKind::Confirmed => (Label::Confirmed, self.view.lineage),
            BallotKind::Provisional => (Label::Provisional, self.view.lineage),
            BallotKind::Promoted => {
                (Label::Confirmed, self.promotion.map_or(self.view.lineage, |(_, lineage)| lineage))
            }
        };
        let epoch = self.view.id.epoch.max(state.epoch_floor).next();
        let view = View {
            id: ViewId { epoch, proposer: cx.me.id, round: coordination.ballot.round },
            proposer_name: cx.me.name.clone(),
            lineage,
            label,
            ring,
            members,
        };
        Proposal { view, parent: self.view.id, joiners, departures, upto, delivered, time_ms: cx.wall_ms }
    }

    /// Ready joiners whose names are free.
    fn joiners(&self, cx: &Cx, staying: &[MemberId]) -> Vec<Identity> {
        let state = &self.record.state;
        let mut names: BTreeSet<_> =
            staying.iter().filter_map(|m| state.members.get(m)).map(|record| &record.identity.name).collect();
        let ready = self.admission.ready(cx.now, self.silence_ms());
        let free =
            ready.filter(|joiner| !self.view.has(joiner.id)).filter(|joiner| names.insert(&joiner.name));
        let mut joiners: Vec<_> = free.cloned().collect();
        // People count on k1 before k2 before k10; the ids are drawn by lot.
        joiners.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
        joiners
    }

    /// `quorum`: this side cannot go on. It answers reads, refuses writes, and waits.
    fn block(&mut self, cx: &mut Cx) {
        self.coordination = None;
        self.timers.stop(Timer::Resend);
        self.timers.stop(Timer::Overdue);
        if !self.blocked {
            self.blocked = true;
            cx.refuse_waiting(Refusal::NoQuorum);
            let numbered = self.broadcast.forget_requests();
            cx.leave_unknown(numbered, "this side of the DVM lost its quorum");
            cx.forget_awaited("this side of the DVM lost its quorum");
            cx.stand(Standing::Blocked);
        }
    }

    pub(crate) fn unblock(&mut self, cx: &mut Cx) {
        if core::mem::take(&mut self.blocked) {
            cx.stand(Standing::Flushing);
        }
    }

    /// The operator's word: a ballot of its own kind, run by the member that was asked.
    pub(crate) fn on_promote(&mut self, cx: &mut Cx, request: RequestId, lineage: Lineage) {
        if self.promotion.is_some() {
            cx.answer(request, Answer::Refused(Refusal::Busy));
            return;
        }
        self.promotion = Some((request, lineage));
        self.begin_ballot(cx);
    }

    pub(crate) fn answer_promotion(&mut self, cx: &mut Cx, index: HistoryIndex) {
        if let Some((request, lineage)) = self.promotion.take() {
            if self.view.lineage == lineage {
                let receipt = self.receipt(index, self.view.label);
                cx.answer(request, Answer::Done { receipt, applied: Applied::Done });
            } else {
                cx.leave_unknown(
                    [request],
                    "another view was installed first; look at the status and promote again",
                );
            }
        }
    }

    /// Whom a running ballot, or a blocked side, waits for.
    pub(crate) fn waiting_for(&self) -> Vec<MemberId> {
        if self.blocked {
            return self.suspects().into_iter().map(|rank| self.view.member(rank)).collect();
        }
        match (&self.coordination, &self.wedge) {
            (Some(c), _) if c.proposed => {
                c.responders.iter().copied().filter(|m| !c.accepts.contains(m)).collect()
            }
            (Some(c), _) => c.responders.iter().copied().filter(|m| !c.acks.contains_key(m)).collect(),
            (None, Some(wedge)) if wedge.promised.rank.at() < self.view.size() => {
                alloc::vec![self.view.member(wedge.promised.rank)]
            }
            _ => Vec::new(),
        }
    }
}
