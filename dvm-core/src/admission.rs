//! A member's side of joining: it gives a joiner the state, then the tail, and tells the coordinator when it is ready.
//!
//! Nothing here is remembered for long: a joiner asks again, and any member can answer. `join` holds the joiner's side.

use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, Time, ViewId, is_name};
use crate::io::{Output, Reject};
use crate::record::part;
use crate::seat::Seat;
use crate::view::View;
use crate::wire::{Control, Identity};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Joiners that this member knows of.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Joiners whose name is taken: by whom, and how often that one has answered since.
    claims: BTreeMap<MemberId, (MemberId, u32)>,
    /// When the state was last sent to a joiner.
    sent: BTreeMap<MemberId, Time>,
    /// Joiners that have caught up, and when they last said so.
    ready: BTreeMap<MemberId, (Identity, Time)>,
    /// Joiners that do not catch up: how often windows are halved for each, and when it last said so.
    lagging: BTreeMap<MemberId, (u8, Time)>,
}

/// Joiners that one member gives the state to at a time, at most; others ask again.
const SENT_MAX: usize = 1_024;
/// Answers that show a name to be taken: one may have been on its way when its sender died.
const ANSWERS_MIN: u32 = 3;
/// How often a window is halved at most.
pub(crate) const HALVINGS_MAX: u8 = 5;
/// Bytes of entries in one answer to a joiner.
const TAIL_BYTES: u64 = 256 << 10;

impl Admission {
    pub(crate) fn ready(&self, now: Time, silence_ms: u64) -> impl Iterator<Item = &Identity> {
        let fresh = self.ready.values().filter(move |(_, at)| now.ms_since(*at) < silence_ms);
        fresh.map(|(identity, _)| identity)
    }

    pub(crate) fn anybody_ready(&self, now: Time, silence_ms: u64) -> bool {
        self.ready(now, silence_ms).next().is_some()
    }

    /// A member of the view answered a probe: it holds its name.
    pub(crate) fn answered(&mut self, holder: MemberId) {
        let claims = self.claims.values_mut().filter(|(old, _)| *old == holder);
        claims.for_each(|(_, answers)| *answers += 1);
    }

    /// How often windows are halved, so that a joiner can catch up.
    pub(crate) fn halvings(&self, now: Time, silence_ms: u64) -> u8 {
        let fresh = self.lagging.values().filter(|(_, at)| now.ms_since(*at) < silence_ms);
        fresh.map(|(halvings, _)| *halvings).max().unwrap_or(0)
    }

    pub(crate) fn not_ready(&mut self, joiner: MemberId) {
        self.ready.remove(&joiner);
    }

    /// A joiner's process is gone.
    pub(crate) fn gone(&mut self, joiner: MemberId) {
        self.claims.remove(&joiner);
        self.sent.remove(&joiner);
        self.lagging.remove(&joiner);
        self.ready.remove(&joiner);
    }

    /// Who became a member is no joiner any more.
    pub(crate) fn installed(&mut self, view: &View) {
        self.claims.retain(|joiner, _| !view.has(*joiner));
        self.ready.retain(|joiner, _| !view.has(*joiner));
        self.lagging.clear();
    }
}

impl Seat {
    pub(crate) fn on_join(&mut self, cx: &mut Cx, from: MemberId, identity: &Identity) -> Result<(), Reject> {
        if identity.id != from {
            return Err(Reject::Malformed { what: "identity of a joiner" });
        }
        if self.view.has(from) {
            // Admitted by a flush that it did not follow to the end: it has no seat yet, and needs the state for it.
            self.give_state(cx, from);
            return Ok(());
        }
        if self.is_yielding() || self.blocked {
            return Err(Reject::Unexpected { what: "join" });
        }
        cx.know(identity);
        if !is_name(&identity.name) {
            let reason = alloc::format!("`{}` is no name for a member", identity.name);
            cx.send(from, Control::JoinRefused { reason });
            return Ok(());
        }
        if cx.leaving.is_some() {
            if let Some(other) = self.unsuspected().into_iter().find(|m| *m != cx.me.id) {
                let sponsor = Box::new(self.record.state.members[&other].identity.clone());
                cx.send(from, Control::JoinRedirect { sponsor });
            }
            return Ok(());
        }
        let holder = self.record.state.members.values().find(|record| record.identity.name == identity.name);
        if let Some(old) = holder.map(|record| record.identity.id) {
            self.claim(cx, old, from);
            return Ok(());
        }
        self.admission.claims.remove(&from);
        self.give_state(cx, from);
        Ok(())
    }

    /// The joiner's name is taken: by somebody who answers, or by somebody who is about to be missed.
    fn claim(&mut self, cx: &mut Cx, old: MemberId, joiner: MemberId) {
        let (_, answers) = *self.admission.claims.entry(joiner).or_insert((old, 0));
        if old == cx.me.id || answers >= ANSWERS_MIN {
            let name = self.record.state.name_of(old);
            let reason = alloc::format!("the name {name} is taken by a member that answers; choose another");
            cx.send(joiner, Control::JoinRefused { reason });
            self.admission.claims.remove(&joiner);
        } else {
            cx.out.push_back(Output::Probe { peer: old });
            cx.send(old, self.probe(cx));
            self.wait(cx, joiner);
        }
    }

    /// Tells a joiner that somebody is here.
    fn wait(&self, cx: &mut Cx, joiner: MemberId) {
        let index = self.record.state.index;
        cx.send(joiner, Control::Tail { after: index, hash: None, entries: Vec::new(), index });
    }

    /// Sends the state, unless that was done a short while ago.
    fn give_state(&mut self, cx: &mut Cx, joiner: MemberId) {
        let (now, pause_ms) = (cx.now, 4 * self.silence_ms());
        self.admission.sent.retain(|_, at| now.ms_since(*at) < pause_ms);
        if self.admission.sent.contains_key(&joiner) || self.admission.sent.len() >= SENT_MAX {
            self.wait(cx, joiner);
            return;
        }
        self.admission.sent.insert(joiner, cx.now);
        let snapshot = Box::new(self.record.snapshot());
        cx.out.push_back(Output::Snapshot { to: joiner, snapshot });
    }

    pub(crate) fn on_tail_request(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        after: HistoryIndex,
    ) -> Result<(), Reject> {
        if self.blocked && !self.view.has(from) {
            // Nobody is admitted here; the joiner looks elsewhere.
            return Err(Reject::Unexpected { what: "joiner at a blocked member" });
        }
        let Some(entries) = self.record.after(after) else {
            if after < self.record.state.index {
                self.give_state(cx, from);
            }
            return Ok(());
        };
        let entries = part(entries, TAIL_BYTES);
        let (hash, index) = (self.record.hash_at(after), self.record.state.index);
        cx.send(from, Control::Tail { after, hash, entries, index });
        Ok(())
    }

    /// A joiner does not catch up.
    pub(crate) fn on_lagging(&mut self, cx: &mut Cx, from: MemberId, halvings: u8) -> Result<(), Reject> {
        if self.view.has(from) {
            return Err(Reject::Unexpected { what: "joiner that is a member" });
        }
        let (now, silence_ms) = (cx.now, self.silence_ms());
        let lagging = &mut self.admission.lagging;
        lagging.retain(|_, (_, at)| now.ms_since(*at) < silence_ms);
        if lagging.len() < SENT_MAX || lagging.contains_key(&from) {
            lagging.insert(from, (halvings.min(HALVINGS_MAX), now));
        }
        Ok(())
    }

    /// A joiner has caught up; the coordinator is told.
    pub(crate) fn on_ready(&mut self, cx: &mut Cx, from: MemberId, identity: Identity) -> Result<(), Reject> {
        if self.view.has(identity.id) {
            return Err(Reject::Unexpected { what: "joiner that is a member" });
        }
        cx.know(&identity);
        let coordinator = self.coordinators()[0];
        if coordinator == cx.me.id {
            self.admission.ready.insert(identity.id, (identity, cx.now));
            self.reconsider(cx);
        } else if from == identity.id {
            let index = self.record.state.index;
            cx.send(coordinator, Control::Ready { identity: Box::new(identity), index });
        }
        Ok(())
    }

    /// A joiner asks the coordinator of a flush for what it lacks.
    pub(crate) fn on_joiner_fetch(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        index: HistoryIndex,
    ) -> Result<(), Reject> {
        if view != self.view.id || !self.is_wedged() {
            return self.on_tail_request(cx, from, index);
        }
        let Some(entries) = self.record.after(index) else {
            self.give_state(cx, from);
            return Ok(());
        };
        let entries = entries.map(|entry| (**entry).clone()).collect();
        let none = alloc::vec![0; self.view.size()];
        let bodies = self.broadcast.bodies(&none, &alloc::vec![u64::MAX; self.view.size()]);
        let received = self.broadcast.received().to_vec();
        let hash = self.record.hash_at(index);
        cx.send(from, Control::JoinerFill { view, index, hash, entries, bodies, received });
        Ok(())
    }
}
