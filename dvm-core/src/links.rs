//! The ring's two streams: one to the successor, one from the predecessor, and how they are mended.
//!
//! The acceptor of a link speaks first ([`Ring::Resume`]); the opener then sends again what the acceptor lacks. What is
//! placed on a link counts against its room until the shell has written it, so that a message gets its number late and
//! a slow link holds back only this member's own clients.

use crate::cx::Cx;
use crate::ids::{LinkId, MemberId, Time, ViewId};
use crate::io::{Output, Reject, Side};
use crate::seat::Seat;
use crate::timer::Timer;
use crate::wire::Ring;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bytes placed on a link and not yet written, at most; one frame may exceed it.
const ROOM: u64 = 128 << 10;
/// Links of views that are not installed here yet, at most.
const EARLY_MAX: usize = 8;

/// The links of one member.
#[derive(Debug, Default)]
pub(crate) struct Links {
    outgoing: Option<Outgoing>,
    incoming: Option<LinkId>,
    /// Since when there is no stream to the successor.
    pub(crate) missing_since: Option<Time>,
    /// Accepted for views that are still to be installed here.
    pub(crate) early: Vec<(LinkId, MemberId, ViewId)>,
}

#[derive(Debug)]
struct Outgoing {
    link: LinkId,
    /// The successor has told what it holds.
    resumed: bool,
    /// Bytes placed and not written.
    placed: u64,
}

impl Links {
    /// Gives up the stream to the successor.
    pub(crate) fn reset_outgoing(&mut self, cx: &mut Cx) {
        if let Some(out) = self.outgoing.take() {
            cx.out.push_back(Output::Close { link: out.link });
        }
    }

    /// Closes both; what was accepted early stays.
    pub(crate) fn close_all(&mut self, cx: &mut Cx) {
        self.missing_since = None;
        let outgoing = self.outgoing.take().map(|out| out.link);
        for link in outgoing.into_iter().chain(self.incoming.take()) {
            cx.out.push_back(Output::Close { link });
        }
    }
}

impl Seat {
    /// Asks for a link to the successor.
    pub(crate) fn connect(&mut self, cx: &mut Cx) {
        if self.view.size() > 1 && !self.is_wedged() && self.links.outgoing.is_none() {
            self.links.missing_since.get_or_insert(cx.now);
            cx.out.push_back(Output::Connect { to: self.successor(), view: self.view.id });
        }
    }

    pub(crate) fn on_link_up(
        &mut self,
        cx: &mut Cx,
        link: LinkId,
        peer: MemberId,
        view: ViewId,
        side: Side,
    ) -> Result<(), Reject> {
        // Only a member that has installed a view opens links for it.
        if view != self.view.id
            && side == Side::Incoming
            && self.prove_commit(cx, view)
            && self.exit.is_some()
        {
            cx.out.push_back(Output::Close { link });
            return Ok(());
        }
        if view == self.view.id && !self.is_wedged() {
            match side {
                Side::Outgoing if peer == self.successor() => {
                    if let Some(old) = self.links.outgoing.take() {
                        cx.out.push_back(Output::Close { link: old.link });
                    }
                    self.links.outgoing = Some(Outgoing { link, resumed: false, placed: 0 });
                    return Ok(());
                }
                Side::Incoming if peer == self.predecessor() => {
                    if let Some(old) = self.links.incoming.replace(link) {
                        cx.out.push_back(Output::Close { link: old });
                    }
                    let message = self.broadcast.resume_frame();
                    cx.out.push_back(Output::Ring { link, message });
                    return Ok(());
                }
                _ => {}
            }
        }
        if side == Side::Incoming && view.epoch > self.view.id.epoch {
            if self.links.early.len() >= EARLY_MAX {
                let (oldest, ..) = self.links.early.remove(0);
                cx.out.push_back(Output::Close { link: oldest });
            }
            self.links.early.push((link, peer, view));
            return Ok(());
        }
        cx.out.push_back(Output::Close { link });
        Err(Reject::OtherView { theirs: view, ours: self.view.id })
    }

    /// Looks again at links that came before their view.
    pub(crate) fn take_early_links(&mut self, cx: &mut Cx) {
        for (link, peer, view) in core::mem::take(&mut self.links.early) {
            // A link that is of no use is closed there.
            let _ = self.on_link_up(cx, link, peer, view, Side::Incoming);
        }
    }

    pub(crate) fn on_link_down(&mut self, cx: &mut Cx, link: LinkId) {
        self.links.early.retain(|(early, ..)| *early != link);
        if let Some(out) = self.links.outgoing.take_if(|out| out.link == link) {
            if out.resumed {
                self.connect(cx);
            } else {
                // The successor did not want it: it may be on its way to another view.
                self.timers.set(Timer::Reconnect, cx.now.plus_ms(self.silence_ms() / 8));
            }
        } else if self.links.incoming == Some(link) {
            self.links.incoming = None;
            if !self.is_wedged() {
                cx.out.push_back(Output::Probe { peer: self.predecessor() });
            }
        }
    }

    pub(crate) fn on_link_failed(&mut self, cx: &mut Cx, to: MemberId, view: ViewId) {
        if view == self.view.id && to == self.successor() && !self.is_wedged() {
            self.timers.set(Timer::Reconnect, cx.now.plus_ms(self.silence_ms() / 8));
        }
    }

    pub(crate) fn on_written(&mut self, cx: &mut Cx, link: LinkId, cost: u64) {
        if let Some(out) = self.links.outgoing.as_mut().filter(|out| out.link == link) {
            out.placed = out.placed.saturating_sub(cost);
            self.settle(cx);
        }
    }

    pub(crate) fn on_ring(&mut self, cx: &mut Cx, link: LinkId, message: Ring) -> Result<(), Reject> {
        if self.is_wedged() {
            return Err(Reject::Unexpected { what: "ring frame after the promise" });
        }
        if let Ring::Resume { received, stable } = message {
            let successor = self.view.successor(self.rank);
            let out = self.links.outgoing.as_mut().filter(|out| out.link == link && !out.resumed);
            let out = out.ok_or(Reject::StaleLink { link })?;
            self.broadcast.resume(&received, &stable)?;
            out.resumed = true;
            self.links.missing_since = None;
            self.detector.hear(successor, cx.now);
            self.collect_resumes();
            self.settle(cx);
            return Ok(());
        }
        if self.links.incoming != Some(link) {
            return Err(Reject::StaleLink { link });
        }
        self.detector.hear(self.view.predecessor(self.rank), cx.now);
        let handled = match message {
            Ring::Data(data) => self.broadcast.on_data(data).map(drop),
            Ring::Stable(list) => self.broadcast.on_stable(&list),
            Ring::Collect(collect) => {
                self.settle(cx);
                self.on_collect(cx, collect)
            }
            Ring::Resume { .. } => unreachable!("handled above"),
        };
        if handled.is_err() {
            // The stream is broken: a new one begins with what is missing.
            self.links.incoming = None;
            cx.out.push_back(Output::Close { link });
        }
        self.settle(cx);
        handled
    }

    /// Places frames while the link has room.
    pub(crate) fn pump(&mut self, cx: &mut Cx) {
        if self.is_wedged() || self.exit.is_some() {
            return;
        }
        let mut held = VecDeque::new();
        if self.is_yielding() {
            // A branch that yields takes no writes; what clients wait for goes with them to the other one.
            let waiting = core::mem::take(&mut cx.waiting);
            (cx.waiting, held) = waiting.into_iter().partition(|own| own.request.is_none() && !own.stamped);
        }
        let halvings = self.admission.halvings(cx.now, self.silence_ms());
        if self.view.size() == 1 {
            self.broadcast.number_alone(&mut cx.waiting);
        } else if let Some(out) = self.links.outgoing.as_mut().filter(|out| out.resumed) {
            while out.placed < ROOM {
                let config = &self.record.state.config;
                let Some(message) = self.broadcast.next_frame(&mut cx.waiting, config, halvings) else {
                    break;
                };
                out.placed += message.cost();
                cx.out.push_back(Output::Ring { link: out.link, message });
            }
        }
        cx.waiting.append(&mut held);
    }
}
