//! The lease under which a primary acts, and the wait of the one that takes over.
//!
//! A member with a primary asks every other for an echo with each heartbeat. The lease lasts half of T from the sending
//! of the last heartbeat that a quorum of its view has echoed, itself included. A member that has accepted a proposal
//! echoes nobody any more, itself included, until it is in the next view: so when that view is committed, one of the
//! quorum that gave the lease stopped giving it before, and the lease ends at the latest half of T after the commit. It
//! does not matter whether the next view has the primary: that view's quorum alone decides on the one after it, and may
//! leave the primary out before it has learned of either. Under `quorum`, and with `--only-confirmed`, the next primary
//! waits so long; clocks may differ by an eighth.

use crate::config::Partition;
use crate::cx::Cx;
use crate::ids::{Fence, MemberId, Name, Time, ViewId};
use crate::io::{Delivery, Output, Reject};
use crate::seat::Seat;
use crate::state::{Event, EventKind};
use crate::timer::Timer;
use crate::wire::{Control, DepartureCause, Proposal};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// What a member knows about leases: its own, and those that others may still hold.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// By member: the latest of this member's heartbeats that it echoed.
    echoed: BTreeMap<MemberId, Time>,
    /// What the shell was told last.
    told: Option<Time>,
    /// Plug-ins whose primary was lost with its member, and until when it may act.
    lost: BTreeMap<Name, Time>,
}

impl Seat {
    /// How long a lease lasts, milliseconds.
    fn lease_ms(&self) -> u64 {
        self.silence_ms() / 2
    }

    /// When no lease of a member that is left out now runs any more: clocks may differ by an eighth.
    fn others_leases_end(&self, cx: &Cx) -> Time {
        cx.now.plus_ms(self.lease_ms() + self.lease_ms() / 8)
    }

    pub(crate) fn has_primary(&self, cx: &Cx) -> bool {
        self.record.state.plugins.iter().any(|(_, plugin)| plugin.primary == Some(cx.me.id))
    }

    /// Whether this member gives leases: it has accepted no proposal for the next view.
    fn stands_by(&self) -> bool {
        self.wedge.as_ref().is_none_or(|wedge| wedge.slots.is_empty())
    }

    /// Answers a heartbeat that asks for an echo.
    pub(crate) fn echo(&self, cx: &mut Cx, to: MemberId, sent: Time) {
        if self.stands_by() {
            cx.send(to, Control::LeaseEcho { view: self.view.id, sent });
        }
    }

    pub(crate) fn on_lease_echo(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        sent: Time,
    ) -> Result<(), Reject> {
        self.admit(cx, from, view)?;
        if sent > cx.now {
            return Err(Reject::Malformed { what: "echo" });
        }
        let echoed = self.lease.echoed.entry(from).or_default();
        *echoed = (*echoed).max(sent);
        self.renew_lease(cx);
        Ok(())
    }

    /// Tells the shell how long this member's primaries may act, if that has changed.
    pub(crate) fn renew_lease(&mut self, cx: &mut Cx) {
        if !self.has_primary(cx) {
            self.lease.told = None;
            return;
        }
        if cx.leaving.is_some() && self.view.size() > 1 {
            // The one that takes over does not wait for one that steps down.
            if self.lease.told.replace(Time(0)) != Some(Time(0)) {
                cx.out.push_back(Output::Lease { until: cx.now });
            }
            return;
        }
        let echoed = |member: &MemberId| match self.lease.echoed.get(member) {
            _ if *member == cx.me.id => self.stands_by().then_some(cx.now),
            echoed => echoed.copied(),
        };
        let mut times: Vec<_> = self.view.members.iter().filter_map(|m| Some((echoed(m)?, *m))).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let members: Vec<_> = times.iter().map(|(_, member)| *member).collect();
        let quorum = (1..=members.len()).find(|count| self.view.is_quorum(&members[..*count]));
        let Some(count) = quorum else { return };
        let until = times[count - 1].0.plus_ms(self.lease_ms());
        if self.lease.told != Some(until) {
            self.lease.told = Some(until);
            cx.out.push_back(Output::Lease { until });
        }
    }

    /// Notes whose primaries are lost with the view that `proposal` describes.
    pub(crate) fn note_lost_primaries(&mut self, cx: &Cx, proposal: &Proposal) {
        let failed = proposal.departures.iter().filter(|d| matches!(d.why, DepartureCause::Failed { .. }));
        let failed: Vec<_> = failed.map(|departure| departure.member).collect();
        let over = self.others_leases_end(cx);
        for (name, plugin) in self.record.state.plugins.iter() {
            if plugin.primary.is_some_and(|primary| failed.contains(&primary)) {
                self.lease.lost.insert(name.clone(), over);
            }
        }
        self.lease
            .lost
            .retain(|name, until| *until > cx.now && self.record.state.plugins.get(name).is_some());
    }

    /// A member that was not there does not know which leases run.
    pub(crate) fn assume_leases(&mut self, cx: &Cx) {
        let over = self.others_leases_end(cx);
        let names = self.record.state.plugins.iter().map(|(name, _)| (name.clone(), over));
        self.lease.lost = names.collect();
    }

    /// Promotions of this member's instances in an entry: plug-in and token.
    pub(crate) fn promoted(&self, cx: &Cx, delivery: &Delivery) -> Vec<(Name, Fence)> {
        let mine = |event: &Event| {
            let EventKind::InstancePromoted { plugin: name, fence, .. } = &event.kind else { return None };
            let plugin = self.record.state.plugins.get(name)?;
            let stands = plugin.primary == Some(cx.me.id) && plugin.fence == Some(*fence);
            stands.then(|| (name.clone(), *fence))
        };
        delivery.events.iter().filter_map(mine).collect()
    }

    /// Tells the shell of them, and from when on they may act.
    pub(crate) fn tell_promotions(&mut self, cx: &mut Cx, promoted: Vec<(Name, Fence)>) {
        if promoted.is_empty() {
            return;
        }
        for (name, fence) in promoted {
            let plugin = self.record.state.plugins.get(&name).expect("it was promoted just now");
            let waits = plugin.spec.only_confirmed || self.config().partition == Partition::Quorum;
            let lost = self.lease.lost.get(&name).copied().filter(|until| waits && *until > cx.now);
            let from = lost.unwrap_or(cx.now);
            cx.out.push_back(Output::Primary { plugin: name, fence, from });
        }
        // The echoes that make its lease are asked for at once.
        self.timers.set(Timer::Heartbeat, cx.now);
        self.renew_lease(cx);
    }
}
