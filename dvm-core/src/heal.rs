//! Branches of one history that find each other again after a cut.
//!
//! Rank 0 looks for members that departed without leaving. Where one answers from another branch, both sides work out
//! the same winner; the loser orders `yield`, the winner orders `take`, and the loser's members join the winner as new
//! incarnations (`docs/protocol.md` section 8).

use crate::config::Partition;
use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, Time, ViewId};
use crate::io::Reject;
use crate::seat::Seat;
use crate::state::{Change, Healing, Take};
use crate::timer::Timer;
use crate::wire::{Control, Evidence, Identity, Summary};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// Longest pause between two attempts to find a departed member, milliseconds.
const PROBE_MAX_MS: u64 = 30_000;
/// Departed members looked for at a time.
const PROBED_MAX: usize = 16;
/// Views of an ancestry that a probe carries.
const ANCESTRY_SENT: usize = 64;

/// Where this member stands in looking for other branches.
#[derive(Debug, Default)]
pub(crate) struct Heal {
    /// Pause before the next look.
    pause_ms: u64,
    /// Since when the healing that the state holds is under way.
    since: Option<Time>,
    /// When this member last proposed a step of it.
    proposed: Option<Time>,
}

impl Seat {
    /// A view begins: a healing that was under way goes on, and the departed are looked for anew.
    pub(crate) fn heal_begins(&mut self, cx: &mut Cx) {
        self.heal = Heal { pause_ms: self.silence_ms(), ..Heal::default() };
        self.timers.set(Timer::Heal, cx.now.plus_ms(self.silence_ms()));
        self.healing_changed(cx);
    }

    /// The state's healing may have begun, gone on or ended.
    pub(crate) fn healing_changed(&mut self, cx: &mut Cx) {
        if self.record.state.healing.is_none() {
            (self.heal.since, self.heal.proposed) = (None, None);
        } else if self.heal.since.is_none() {
            (self.heal.since, self.heal.proposed) = (Some(cx.now), None);
            self.timers.set(Timer::Heal, cx.now);
        }
    }

    fn is_healer(&self) -> bool {
        self.rank.at() == 0 && !self.is_wedged()
    }

    /// Only under `survive` is there more than one branch.
    fn may_branch(&self) -> bool {
        self.config().partition == Partition::Survive
    }

    pub(crate) fn on_heal_timer(&mut self, cx: &mut Cx) {
        let silence_ms = self.silence_ms();
        self.timers.set(Timer::Heal, cx.now.plus_ms(silence_ms / 2));
        if !self.is_healer() {
            return;
        }
        let overdue = self.heal.since.is_some_and(|since| cx.now.ms_since(since) > 8 * silence_ms);
        match self.record.state.healing.clone() {
            None => self.look_for_others(cx),
            Some(Healing::Yielding { .. }) if overdue => self.propose_step(cx, Change::YieldCancel),
            Some(Healing::Yielding { to, rank0, fork }) => {
                cx.know(&rank0);
                let state = &self.record.state;
                let members = state.members.values().map(|record| record.identity.clone());
                let take = Take {
                    from: state.summary(),
                    fence: state.fence,
                    members: members.collect(),
                    sessions: state.sessions_opened_after(fork),
                };
                let message = Control::Yielded { to: to.id, take: Box::new(take) };
                cx.send(to.rank0, message);
            }
            Some(Healing::Taking(take)) => {
                let back = |m: &Identity| {
                    self.record.state.members.values().any(|record| record.identity.name == m.name)
                };
                if overdue || take.members.iter().all(back) {
                    self.propose_step(cx, Change::TakeCancel { from: take.from.id });
                } else {
                    let missing: Vec<_> = take.members.iter().filter(|m| !back(m)).cloned().collect();
                    self.tell_taken(cx, take.from.id, &missing);
                }
            }
        }
    }

    fn tell_taken(&self, cx: &mut Cx, from: ViewId, members: &[Identity]) {
        for member in members {
            cx.know(member);
            let sponsor = Box::new(cx.me.clone());
            let by = self.record.state.summary();
            cx.send(member.id, Control::Taken { from, by, sponsor });
        }
    }

    fn look_for_others(&mut self, cx: &mut Cx) {
        let state = &self.record.state;
        let present = |name: &str| state.members.values().any(|record| record.identity.name == name);
        let departed = state.departed.iter().rev().filter(|d| !d.in_order && !present(&d.identity.name));
        let departed: Vec<_> = departed.take(PROBED_MAX).map(|d| d.identity.clone()).collect();
        if !departed.is_empty() {
            let message = self.probe(cx);
            for identity in departed {
                cx.know(&identity);
                cx.send(identity.id, message.clone());
            }
        }
        let pause_ms = self.heal.pause_ms;
        let wait_ms = cx.some_of_ms(2 * pause_ms);
        self.timers.set(Timer::Heal, cx.now.plus_ms(wait_ms));
        let most_ms = PROBE_MAX_MS.min(8 * self.silence_ms());
        self.heal.pause_ms = (pause_ms + pause_ms / 2).min(most_ms);
    }

    /// Looks for whom a departed member has become.
    pub(crate) fn find(&self, cx: &mut Cx, identity: &Identity) {
        if self.is_healer() {
            cx.know(identity);
            cx.send(identity.id, self.probe(cx));
        }
    }

    fn ancestry(&self) -> Vec<(ViewId, HistoryIndex)> {
        self.record.state.ancestry.iter().rev().take(ANCESTRY_SENT).copied().collect()
    }

    fn comes_from(&self, view: ViewId) -> bool {
        self.record.state.ancestry.iter().any(|(ancestor, _)| *ancestor == view)
    }

    /// Proposes a step of healing, unless one was proposed a short while ago.
    fn propose_step(&mut self, cx: &mut Cx, change: Change) {
        let lately = self.heal.proposed.is_some_and(|at| cx.now.ms_since(at) < 2 * self.silence_ms());
        if !lately {
            self.heal.proposed = Some(cx.now);
            cx.propose(change, true);
            self.settle(cx);
        }
    }

    pub(crate) fn on_probe(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        branch: Summary,
        identity: &Identity,
        ancestry: &[(ViewId, HistoryIndex)],
    ) -> Result<(), Reject> {
        if identity.id != from || branch.lineage != self.view.lineage {
            return Err(Reject::Malformed { what: "probe" });
        }
        cx.know(identity);
        if branch.id != self.view.id && self.comes_from(branch.id) {
            self.tell_past(cx, from, branch.id);
            return Ok(());
        }
        if branch.id != self.view.id && ancestry.iter().any(|(view, _)| *view == self.view.id) {
            // The other branch went on from this view without this member.
            return self.overtaken(cx, branch, from);
        }
        let rank0 = Box::new(self.record.state.members[&self.view.members[0]].identity.clone());
        let summary = self.record.state.summary();
        let loses = branch.id != self.view.id && merit(&summary) < merit(&branch);
        cx.send(from, Control::ProbeReply { branch: summary, rank0, ancestry: self.ancestry() });
        if loses && branch.rank0 == from {
            self.yield_to(cx, branch, identity, ancestry);
        }
        Ok(())
    }

    /// A branch that descends from this view has left this member out.
    fn overtaken(&mut self, cx: &mut Cx, by: Summary, contact: MemberId) -> Result<(), Reject> {
        if by.id.epoch <= self.view.id.epoch {
            return Err(Reject::Malformed { what: "branch" });
        }
        if self.is_beaten_by(&by) {
            self.exclude(cx, by, contact);
        } else if let Some(rank) = self.view.rank_of(contact) {
            self.accuse(cx, rank, Evidence::NotMember);
        }
        Ok(())
    }

    pub(crate) fn on_probe_reply(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        branch: Summary,
        rank0: &Identity,
        ancestry: &[(ViewId, HistoryIndex)],
    ) -> Result<(), Reject> {
        if branch.lineage != self.view.lineage || branch.rank0 != rank0.id {
            return Err(Reject::Malformed { what: "answer to a probe" });
        }
        if branch.id == self.view.id {
            self.admission.answered(from);
            return Ok(());
        }
        cx.know(rank0);
        if self.comes_from(branch.id) {
            self.tell_past(cx, from, branch.id);
            return Ok(());
        }
        if ancestry.iter().any(|(view, _)| *view == self.view.id) {
            return self.overtaken(cx, branch, from);
        }
        if merit(&self.record.state.summary()) < merit(&branch) {
            self.yield_to(cx, branch, rank0, ancestry);
        } else if from != rank0.id {
            // It is the other side's to yield; its rank 0 learns of this one at once.
            cx.send(rank0.id, self.probe(cx));
        }
        Ok(())
    }

    /// Orders that this branch gives way, if it is this member's to say.
    fn yield_to(&mut self, cx: &mut Cx, to: Summary, rank0: &Identity, ancestry: &[(ViewId, HistoryIndex)]) {
        if self.is_healer() && self.record.state.healing.is_none() && self.may_branch() {
            let mine = self.record.state.ancestry.iter().rev();
            let shared = mine.copied().find(|view| ancestry.contains(view));
            let fork = shared.map_or(self.record.state.index, |(_, index)| index);
            self.propose_step(cx, Change::Yield { to, rank0: Box::new(rank0.clone()), fork });
        }
    }

    pub(crate) fn probe(&self, cx: &Cx) -> Control {
        Control::Probe {
            branch: self.record.state.summary(),
            identity: Box::new(cx.me.clone()),
            ancestry: self.ancestry(),
        }
    }

    pub(crate) fn on_yielded(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        to: ViewId,
        take: Box<Take>,
    ) -> Result<(), Reject> {
        if take.from.lineage != self.view.lineage || !take.members.iter().any(|m| m.id == from) {
            return Err(Reject::Malformed { what: "yield" });
        }
        if !self.is_healer() {
            return Err(Reject::Unexpected { what: "yield" });
        }
        for member in take.members.iter().filter(|m| m.id == from) {
            cx.know(member);
        }
        match &self.record.state.healing {
            Some(Healing::Taking(taking)) if taking.from.rank0 == take.from.rank0 => {
                let (of, members) = (taking.from.id, taking.members.clone());
                self.tell_taken(cx, of, &members);
            }
            None if self.comes_from(to) && merit(&self.record.state.summary()) > merit(&take.from) => {
                self.propose_step(cx, Change::Take(take));
            }
            _ => cx.send(from, Control::HealCancel { branch: self.record.state.summary() }),
        }
        Ok(())
    }

    pub(crate) fn on_taken(
        &mut self,
        cx: &mut Cx,
        branch: ViewId,
        by: Summary,
        sponsor: &Identity,
    ) -> Result<(), Reject> {
        if by.lineage != self.view.lineage || !self.is_yielding() || !self.comes_from(branch) {
            return Err(Reject::Unexpected { what: "taking in" });
        }
        cx.know(sponsor);
        self.exclude(cx, by, sponsor.id);
        Ok(())
    }

    pub(crate) fn on_heal_cancel(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        branch: &Summary,
    ) -> Result<(), Reject> {
        let Some(Healing::Yielding { to, .. }) = &self.record.state.healing else {
            return Err(Reject::Unexpected { what: "cancellation" });
        };
        if !self.is_healer() || (to.rank0 != from && to.id != branch.id) {
            return Err(Reject::Unexpected { what: "cancellation" });
        }
        self.propose_step(cx, Change::YieldCancel);
        Ok(())
    }
}

/// Which of two branches stands: the greater.
fn merit(branch: &Summary) -> impl Ord + use<> {
    (branch.last_confirmed, branch.label, branch.size, branch.index, Reverse(branch.rank0))
}
