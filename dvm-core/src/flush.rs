//! An acceptor's side of a view change: promise, report, fill, accept, install. `ballot` holds the coordinator's side.
//!
//! The rules are R1 to R11 of `docs/protocol.md` section 5: a single-decree Paxos per view whose value is the next view,
//! where every unsuspected member must answer and the label is part of the value.

use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, OriginSeq, Rank, ViewId};
use crate::io::{Reject, Standing};
use crate::seat::{Exit, Seat};
use crate::state::{Content, Entry, summary};
use crate::timer::Timer;
use crate::view::Label;
use crate::wire::{
    Accepted, Ballot, BallotKind, Control, Data, Departure, DepartureCause, Evidence, Key, Proposal, Summary,
};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// What a member that stopped ring traffic has promised and accepted.
#[derive(Debug)]
pub(crate) struct Wedge {
    /// The highest ballot answered; the lowest there is while none was.
    pub(crate) promised: Ballot,
    /// R of that ballot.
    pub(crate) responders: Vec<MemberId>,
    /// Last accepted proposals, at most one of each kind. They outlive ballots and end with the view.
    pub(crate) slots: Vec<Accepted>,
    /// A proposal that waits for bodies. It belongs to the promised ballot: a higher promise ends it.
    pub(crate) filling: Option<Accepted>,
    /// When a coordinator was last heard to be at work.
    pub(crate) activity: crate::ids::Time,
}

const NO_BALLOT: Ballot = Ballot { round: 0, rank: Rank(u16::MAX) };

impl Seat {
    /// The sender is a member and speaks of this view. Else it is told what it missed, or asked.
    pub(crate) fn admit(&mut self, cx: &mut Cx, from: MemberId, view: ViewId) -> Result<Rank, Reject> {
        if view != self.view.id {
            if view.epoch > self.view.id.epoch && self.view.has(from) {
                cx.send(from, Control::Query { view: self.view.id });
            } else {
                self.tell_past(cx, from, view);
            }
            return Err(Reject::OtherView { theirs: view, ours: self.view.id });
        }
        self.view.rank_of(from).ok_or(Reject::NotMember { from, view })
    }

    /// R1: stops ring traffic of this view for ever.
    pub(crate) fn stop_ring(&mut self, cx: &mut Cx) -> &mut Wedge {
        if self.wedge.is_none() {
            self.timers.stop(Timer::Reconnect);
            self.timers.set(Timer::Query, cx.now.plus_ms(self.silence_ms() / 4));
            // Whoever waits for this one's heartbeats now is no longer told apart by the ring.
            self.timers.set(Timer::Heartbeat, cx.now);
            cx.stand(Standing::Flushing);
        }
        self.wedge.get_or_insert_with(|| Wedge {
            promised: NO_BALLOT,
            responders: Vec::new(),
            slots: Vec::new(),
            filling: None,
            activity: cx.now,
        })
    }

    pub(crate) fn on_flush_request(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        ballot: Ballot,
        responders: Vec<MemberId>,
    ) -> Result<(), Reject> {
        let rank = self.admit(cx, from, view)?;
        if ballot.rank != rank || !responders.contains(&cx.me.id) {
            return Err(Reject::Malformed { what: "ballot" });
        }
        let wedge = self.stop_ring(cx);
        // R2.
        if ballot < wedge.promised {
            let promised = wedge.promised;
            cx.send(from, Control::FlushNack { view, promised });
            return Ok(());
        }
        if ballot > wedge.promised {
            wedge.filling = None;
            self.coordination = None;
            self.timers.stop(Timer::Resend);
            self.timers.stop(Timer::Overdue);
            self.unblock(cx);
        }
        let wedge = self.wedge.as_mut().expect("stopped above");
        (wedge.promised, wedge.responders, wedge.activity) = (ballot, responders, cx.now);
        let ack = Control::FlushAck {
            view,
            ballot,
            received: self.broadcast.received().to_vec(),
            delivered: self.record.state.index,
            slots: wedge.slots.clone(),
        };
        cx.send(from, ack);
        self.timers.stop(Timer::Change);
        self.reconsider(cx);
        Ok(())
    }

    pub(crate) fn on_propose(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        ballot: Ballot,
        kind: BallotKind,
        proposal: Box<Proposal>,
    ) -> Result<(), Reject> {
        let rank = self.admit(cx, from, proposal.parent)?;
        if ballot.rank != rank || !self.is_well_formed(&proposal) {
            return Err(Reject::Malformed { what: "proposal" });
        }
        let Some(wedge) = &mut self.wedge else { return Err(Reject::Unexpected { what: "proposal" }) };
        if ballot < wedge.promised {
            let (view, promised) = (self.view.id, wedge.promised);
            cx.send(from, Control::FlushNack { view, promised });
            return Ok(());
        }
        if ballot > wedge.promised {
            return Err(Reject::Unexpected { what: "proposal without a promise" });
        }
        wedge.activity = cx.now;
        wedge.filling = Some(Accepted { kind, ballot, proposal: *proposal });
        self.accept(cx);
        Ok(())
    }

    /// R6: fills the bodies, records, accepts.
    pub(crate) fn accept(&mut self, cx: &mut Cx) {
        let view = self.view.id;
        let Some(wedge) = &mut self.wedge else { return };
        let Some(filling) = &wedge.filling else { return };
        let coordinator = self.view.member(filling.ballot.rank);
        if !self.broadcast.holds(&filling.proposal.upto) {
            let (above, upto) = (self.broadcast.received().to_vec(), filling.proposal.upto.clone());
            cx.send(coordinator, Control::Fetch { view, above, upto });
            return;
        }
        let accepted = wedge.filling.take().expect("looked at above");
        assert_eq!(accepted.ballot, wedge.promised, "a member accepts only in the ballot it has promised");
        for joiner in &accepted.proposal.joiners {
            cx.know(joiner);
        }
        let ballot = accepted.ballot;
        wedge.slots.retain(|slot| slot.kind != accepted.kind);
        wedge.slots.push(accepted);
        cx.send(coordinator, Control::Accept { view, ballot });
    }

    pub(crate) fn on_fetch(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        above: &[OriginSeq],
        upto: &[OriginSeq],
    ) -> Result<(), Reject> {
        self.admit(cx, from, view)?;
        if above.len() != self.view.size() || upto.len() != self.view.size() {
            return Err(Reject::Malformed { what: "fetch" });
        }
        let bodies = self.broadcast.bodies(above, upto);
        cx.send(from, Control::Bodies { view, bodies });
        Ok(())
    }

    pub(crate) fn on_bodies(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        bodies: Vec<Data>,
    ) -> Result<(), Reject> {
        self.admit(cx, from, view)?;
        if !self.is_wedged() {
            return Err(Reject::Unexpected { what: "bodies" });
        }
        self.broadcast.fill(bodies);
        self.accept(cx);
        self.advance(cx);
        Ok(())
    }

    pub(crate) fn on_commit(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        parent: ViewId,
        id: ViewId,
        member: bool,
        by: Summary,
    ) -> Result<(), Reject> {
        if parent != self.view.id {
            return Err(Reject::OtherView { theirs: parent, ours: self.view.id });
        }
        if !self.view.has(from) {
            return Err(Reject::NotMember { from, view: parent });
        }
        if self.prove_commit(cx, id) {
            return Ok(());
        }
        if member && self.is_wedged() && by.lineage == self.view.lineage {
            cx.send(from, Control::TailRequest { after: self.record.state.index });
            return Ok(());
        }
        self.on_expelled(cx, from, by)
    }

    /// R9: `id` stands; installs it if it was accepted here.
    pub(crate) fn prove_commit(&mut self, cx: &mut Cx, id: ViewId) -> bool {
        let slots = self.wedge.as_ref().map(|wedge| &wedge.slots);
        let accepted = slots.and_then(|slots| slots.iter().find(|slot| slot.proposal.view.id == id));
        let Some(proposal) = accepted.map(|accepted| accepted.proposal.clone()) else { return false };
        self.conclude(cx, &proposal);
        true
    }

    /// A proposal that was accepted here stands. One that was adopted may leave out a member that accepted it: that
    /// member has agreed to be out, whatever the labels.
    pub(crate) fn conclude(&mut self, cx: &mut Cx, proposal: &Proposal) {
        let me = cx.me.id;
        let failed = |d: &Departure| d.member == me && matches!(d.why, DepartureCause::Failed { .. });
        if !proposal.departures.iter().any(failed) {
            self.install(cx, proposal);
            return;
        }
        let state = &self.record.state;
        let confirmed = proposal.view.label == Label::Confirmed;
        let last_confirmed = if confirmed { proposal.view.id.epoch } else { state.last_confirmed };
        let by = summary(&proposal.view, last_confirmed, state.index);
        self.exclude(cx, by, proposal.view.members[0]);
    }

    /// R9, for a member of the next view that never held its proposal, because a ballot without it adopted one that has
    /// it: the history of another member tells how this view ended.
    pub(crate) fn on_history(
        &mut self,
        cx: &mut Cx,
        after: HistoryIndex,
        hash: Option<u64>,
        entries: Vec<Entry>,
    ) -> Result<(), Reject> {
        let mine = after == self.record.state.index && self.record.agrees(after, hash);
        if !self.is_wedged() || !mine {
            return Err(Reject::Unexpected { what: "history" });
        }
        let mut bodies = Vec::new();
        for entry in entries {
            match entry.content {
                Content::Change { oseq, body, digest, .. } if entry.view == self.view.id => {
                    let Key { lnum, origin } = entry.key;
                    bodies.push(Data { origin, oseq, lnum, hops: 0, body, digest });
                }
                Content::View(proposal) if proposal.parent == self.view.id => {
                    if !self.is_well_formed(&proposal) || !proposal.view.has(cx.me.id) {
                        return Err(Reject::Malformed { what: "history" });
                    }
                    self.broadcast.fill(bodies);
                    if self.broadcast.holds(&proposal.upto) {
                        self.conclude(cx, &proposal);
                    }
                    return Ok(());
                }
                _ => break,
            }
        }
        Err(Reject::Unexpected { what: "history" })
    }

    /// Whether a proposal fits this view.
    fn is_well_formed(&self, proposal: &Proposal) -> bool {
        proposal.upto.len() == self.view.size()
            && proposal.view.id.epoch > self.view.id.epoch
            && proposal.view.ring.len() == proposal.view.size()
    }

    /// R10: a wedged member asks how its view ended.
    pub(crate) fn query(&mut self, cx: &mut Cx) {
        if self.is_wedged() {
            self.timers.set(Timer::Query, cx.now.plus_ms(self.silence_ms() / 4));
            cx.send_all(self.others(), &Control::Query { view: self.view.id });
        }
    }

    pub(crate) fn on_query(&mut self, cx: &mut Cx, from: MemberId, view: ViewId) -> Result<(), Reject> {
        if view != self.view.id {
            self.tell_past(cx, from, view);
            return Ok(());
        }
        // It stopped the ring; only a new view starts it again.
        let rank = self.admit(cx, from, view)?;
        self.detector.asks(rank);
        self.reconsider(cx);
        Ok(())
    }

    /// R9: how `view` ended, to somebody who is still in it.
    pub(crate) fn tell_past(&self, cx: &mut Cx, to: MemberId, view: ViewId) {
        let past = self.past.iter().find(|past| past.parent == view);
        match past {
            Some(past) if past.members.contains(&to) || past.left.contains(&to) => {
                let (by, member) = (self.record.state.summary(), past.members.contains(&to));
                cx.send(to, Control::Commit { parent: view, id: past.id, member, by });
            }
            _ if view.epoch < self.view.id.epoch && !self.view.has(to) => {
                cx.send(to, Control::Expelled { by: self.record.state.summary() });
            }
            _ => {}
        }
    }

    /// R11.
    pub(crate) fn on_expelled(&mut self, cx: &mut Cx, from: MemberId, by: Summary) -> Result<(), Reject> {
        let Some(rank) = self.view.rank_of(from) else {
            return Err(Reject::NotMember { from, view: self.view.id });
        };
        if by.lineage != self.view.lineage || by.id.epoch <= self.view.id.epoch {
            return Err(Reject::Unexpected { what: "expulsion" });
        }
        if self.is_beaten_by(&by) {
            self.exclude(cx, by, from);
        } else {
            self.accuse(cx, rank, Evidence::NotMember);
        }
        Ok(())
    }

    /// Whether a newer view without this member outranks its own.
    pub(crate) fn is_beaten_by(&self, by: &Summary) -> bool {
        by.last_confirmed >= self.record.state.last_confirmed
            && !(self.view.label == Label::Confirmed && by.label == Label::Provisional)
    }

    /// Loses the seat to the view that `by` sums up.
    pub(crate) fn exclude(&mut self, cx: &mut Cx, by: Summary, contact: MemberId) {
        self.exit = Some(match cx.leaving {
            Some(by) => Exit::Left(by),
            None => Exit::Excluded { by, contact },
        });
    }

    /// Own delivered index and what others reported, for a wedge's d.
    pub(crate) fn delivered(&self) -> HistoryIndex {
        self.record.state.index
    }
}
