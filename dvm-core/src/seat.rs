//! A member's seat in a view: routes each input to the part it concerns, delivers, installs.
//!
//! The parts are `impl` blocks of [`Seat`] in files of their own: `links` (the ring's two streams), `agreement`,
//! `detect` (who is gone), `flush` and `ballot` (the two sides of a view change), `admission` (letting joiners in),
//! `heal` (branches that find each other again). Each reacts to inputs by changing its own fields and pushing outputs;
//! what concerns several of them is called from here.

use crate::admission::Admission;
use crate::agreement::Collecting;
use crate::ballot::Coordination;
use crate::config::Config;
use crate::cx::{Cx, encode};
use crate::detect::{Detector, Edges};
use crate::flush::Wedge;
use crate::heal::Heal;
use crate::ids::{HistoryIndex, Lineage, MemberId, Rank, RequestId, TransactionId, ViewId};
use crate::io::{Answer, Input, Output, Receipt, Refusal, Reject, Standing};
use crate::lease::Lease;
use crate::links::Links;
use crate::record::Record;
use crate::ring::{Broadcast, Own};
use crate::state::{Applied, Change, Content, Healing, LeaveBy, Submission};
use crate::timer::{Timer, Timers};
use crate::view::{Label, View};
use crate::wire::{Control, Data, DepartureCause, Key, Proposal, Summary};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// View changes remembered for those who missed how they ended.
const PAST_MAX: usize = 64;

/// One member's part in its view.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) record: Record,
    /// The installed view. Invariant: equal to `record.state.view` between inputs.
    pub(crate) view: View,
    /// Mine in it.
    pub(crate) rank: Rank,
    pub(crate) timers: Timers,
    pub(crate) broadcast: Broadcast,
    pub(crate) links: Links,
    pub(crate) collecting: BTreeMap<TransactionId, Collecting>,
    pub(crate) detector: Detector,
    pub(crate) edges: Edges,
    /// There once the first promise in this view was given: no ring traffic any more.
    pub(crate) wedge: Option<Wedge>,
    /// The ballot this member coordinates.
    pub(crate) coordination: Option<Coordination>,
    /// No ballot can be run here: no quorum.
    pub(crate) blocked: bool,
    pub(crate) admission: Admission,
    pub(crate) heal: Heal,
    pub(crate) lease: Lease,
    /// The view that receipts name while a flush delivers: what only one side of a cut delivers is of its next view.
    told_view: Option<View>,
    pub(crate) past: VecDeque<Past>,
    /// The operator's word, and who waits for it.
    pub(crate) promotion: Option<(RequestId, Lineage)>,
    /// The seat is lost; the member acts on it after this input.
    pub(crate) exit: Option<Exit>,
}

/// How an earlier view ended.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) parent: ViewId,
    pub(crate) id: ViewId,
    /// Members of the later view.
    pub(crate) members: Vec<MemberId>,
    /// Those who left in order with it.
    pub(crate) left: Vec<MemberId>,
}

/// Why a seat is lost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Exit {
    /// A view that `by` sums up left this member out; `contact` said so.
    Excluded { by: Summary, contact: MemberId },
    /// In order.
    Left(LeaveBy),
}

impl Seat {
    /// The seat of a member whose record has just reached a view that contains it.
    pub(crate) fn new(record: Record, cx: &mut Cx) -> Self {
        let view = record.state.view.clone();
        let rank = view.rank_of(cx.me.id).expect("a seat is for a member");
        let mut seat = Self {
            broadcast: Broadcast::new(&view, rank),
            detector: Detector::new(&view, cx.now),
            record,
            view,
            rank,
            timers: Timers::default(),
            links: Links::default(),
            edges: Edges::default(),
            collecting: BTreeMap::new(),
            wedge: None,
            coordination: None,
            blocked: false,
            admission: Admission::default(),
            heal: Heal::default(),
            lease: Lease::default(),
            told_view: None,
            past: VecDeque::new(),
            promotion: None,
            exit: None,
        };
        seat.know_members(cx);
        seat.assume_leases(cx);
        seat.begin(cx);
        seat
    }

    pub(crate) fn config(&self) -> &Config {
        &self.record.state.config
    }

    /// T, milliseconds.
    pub(crate) fn silence_ms(&self) -> u64 {
        self.record.state.config.silence_ms
    }

    pub(crate) fn successor(&self) -> MemberId {
        self.view.member(self.view.successor(self.rank))
    }

    pub(crate) fn predecessor(&self) -> MemberId {
        self.view.member(self.view.predecessor(self.rank))
    }

    pub(crate) fn others(&self) -> Vec<MemberId> {
        self.view.members.iter().copied().filter(|m| *m != self.view.member(self.rank)).collect()
    }

    pub(crate) fn is_wedged(&self) -> bool {
        self.wedge.is_some()
    }

    pub(crate) fn is_yielding(&self) -> bool {
        matches!(self.record.state.healing, Some(Healing::Yielding { .. }))
    }

    /// The identities of all members become known to the shell.
    pub(crate) fn know_members(&self, cx: &mut Cx) {
        for record in self.record.state.members.values() {
            cx.know(&record.identity);
        }
    }

    pub(crate) fn handle(&mut self, cx: &mut Cx, input: Input) -> Result<(), Reject> {
        self.detector.tick(cx.now);
        match input {
            Input::Wake => self.on_wake(cx),
            Input::Clock { .. } => {}
            Input::LinkUp { link, peer, view, side } => self.on_link_up(cx, link, peer, view, side)?,
            Input::LinkDown { link } => self.on_link_down(cx, link),
            Input::LinkFailed { to, view } => self.on_link_failed(cx, to, view),
            Input::Written { link, cost } => self.on_written(cx, link, cost),
            Input::Ring { link, message } => self.on_ring(cx, link, message)?,
            Input::Reset { peer } => self.on_reset(cx, peer),
            Input::Refused { peer } => self.on_refused(cx, peer),
            Input::Replaced { peer, by } => self.on_replaced(cx, peer, &by),
            Input::Control { from, message } => self.on_control(cx, from, message)?,
            Input::Submit { request, submission } => self.on_submit(cx, request, &submission),
            Input::Executed { transaction, result } => self.on_executed(cx, transaction, result),
            Input::Leave { by } => self.leave(cx, by),
            Input::Promote { request, lineage } => self.on_promote(cx, request, Lineage(lineage)),
            Input::Snapshot { .. } => return Err(Reject::Unexpected { what: "snapshot" }),
            Input::Fenced { .. } => return Err(Reject::Unexpected { what: "new incarnation" }),
        }
        Ok(())
    }

    fn on_wake(&mut self, cx: &mut Cx) {
        while self.exit.is_none() {
            let Some(timer) = self.timers.take_due(cx.now) else { break };
            match timer {
                Timer::Heartbeat => self.beat(cx),
                Timer::Change => self.change(cx),
                Timer::Resend => self.resend(cx),
                Timer::Overdue => self.overdue(cx),
                Timer::Query => self.query(cx),
                Timer::Reconnect => self.connect(cx),
                Timer::Heal => self.on_heal_timer(cx),
                Timer::Leave => self.exit = Some(Exit::Left(cx.leaving.unwrap_or(LeaveBy::Term))),
            }
        }
    }

    fn on_control(&mut self, cx: &mut Cx, from: MemberId, message: Control) -> Result<(), Reject> {
        if let Some(rank) = self.view.rank_of(from) {
            match &message {
                Control::Probe { branch, .. } | Control::ProbeReply { branch, .. }
                    if branch.id != self.view.id =>
                {
                    self.detector.is_elsewhere(rank, cx.now);
                }
                Control::Yielded { take, .. } if take.from.id != self.view.id => {
                    self.detector.is_elsewhere(rank, cx.now);
                }
                _ => self.detector.hear(rank, cx.now),
            }
        }
        match message {
            Control::Heartbeat(heartbeat) => self.on_heartbeat(cx, from, &heartbeat),
            Control::LeaseEcho { view, sent } => self.on_lease_echo(cx, from, view, sent),
            Control::Suspect { view, accused } => self.on_suspect(cx, from, view, &accused),
            Control::FlushRequest { view, ballot, responders, .. } => {
                self.on_flush_request(cx, from, view, ballot, responders)
            }
            Control::FlushAck { view, ballot, received, delivered, slots } => {
                self.on_flush_ack(cx, from, view, ballot, received, delivered, slots)
            }
            Control::FlushNack { view, promised } => self.on_flush_nack(cx, from, view, promised),
            Control::Fetch { view, above, upto } => self.on_fetch(cx, from, view, &above, &upto),
            Control::Bodies { view, bodies } => self.on_bodies(cx, from, view, bodies),
            Control::Propose { ballot, kind, proposal } => self.on_propose(cx, from, ballot, kind, proposal),
            Control::Accept { view, ballot } => self.on_accept(cx, from, view, ballot),
            Control::Commit { parent, id, member, by } => self.on_commit(cx, from, parent, id, member, by),
            Control::Query { view } => self.on_query(cx, from, view),
            Control::Expelled { by } => self.on_expelled(cx, from, by),
            Control::Join { identity } => self.on_join(cx, from, &identity),
            Control::TailRequest { after } => self.on_tail_request(cx, from, after),
            Control::Lagging { halvings } => self.on_lagging(cx, from, halvings),
            Control::Ready { identity, .. } => self.on_ready(cx, from, *identity),
            Control::JoinerFetch { view, index } => self.on_joiner_fetch(cx, from, view, index),
            Control::Probe { branch, identity, ancestry } => {
                self.on_probe(cx, from, branch, &identity, &ancestry)
            }
            Control::ProbeReply { branch, rank0, ancestry } => {
                self.on_probe_reply(cx, from, branch, &rank0, &ancestry)
            }
            Control::Yielded { to, take } => self.on_yielded(cx, from, to, take),
            Control::Taken { from: branch, by, sponsor } => self.on_taken(cx, branch, by, &sponsor),
            Control::HealCancel { branch } => self.on_heal_cancel(cx, from, &branch),
            Control::Relay { from: author, to, message } => self.on_relay(cx, from, author, to, *message),
            Control::Tail { after, hash, entries, .. } => self.on_history(cx, after, hash, entries),
            Control::JoinRefused { .. } | Control::JoinRedirect { .. } | Control::JoinerFill { .. } => {
                Err(Reject::Unexpected { what: "word for a joiner" })
            }
        }
    }

    fn on_relay(
        &mut self,
        cx: &mut Cx,
        via: MemberId,
        author: MemberId,
        to: MemberId,
        message: Control,
    ) -> Result<(), Reject> {
        if !self.view.has(via) || !self.view.has(author) || matches!(message, Control::Relay { .. }) {
            return Err(Reject::Malformed { what: "relay" });
        }
        if to == cx.me.id {
            // The direct way may be closed in the other direction, too.
            cx.detours.insert(author, via);
            let handled = self.on_control(cx, author, message);
            cx.detours.remove(&author);
            return handled;
        }
        cx.send(to, Control::Relay { from: author, to, message: Box::new(message) });
        Ok(())
    }

    fn on_submit(&mut self, cx: &mut Cx, request: RequestId, submission: &Submission) {
        let body = encode(submission);
        let refusal = if body.len() as u64 > self.config().inline_max + 1024 {
            Some(Refusal::TooLarge)
        } else if self.blocked {
            Some(Refusal::NoQuorum)
        } else if cx.waiting.len() as u64 >= self.config().waiting {
            Some(Refusal::Busy)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            cx.answer(request, Answer::Refused(refusal));
            return;
        }
        let stamped = submission.stamp.is_some();
        cx.waiting.push_back(Own { request: Some(request), stamped, perhaps: false, of_view: false, body });
        self.settle(cx);
    }

    /// Leaves in order, or without the others' word when that takes too long.
    pub(crate) fn leave(&mut self, cx: &mut Cx, by: LeaveBy) {
        cx.leaving.get_or_insert(by);
        self.timers.set_earlier(Timer::Leave, cx.now.plus_ms(LEAVE_MS));
        if self.view.size() == 1 {
            self.exit = Some(Exit::Left(by));
            return;
        }
        self.renew_lease(cx);
        cx.propose(Change::Leave { member: cx.me.id, by }, false);
        self.settle(cx);
    }

    /// Places what may be placed on the ring, delivers what may be delivered.
    pub(crate) fn settle(&mut self, cx: &mut Cx) {
        self.pump(cx);
        while !self.is_wedged() && self.exit.is_none() {
            let Some((data, own)) = self.broadcast.next_delivery() else { break };
            self.deliver(cx, data, own, self.view.label);
            self.pump(cx);
        }
    }

    fn deliver(&mut self, cx: &mut Cx, data: Data, own: Option<Own>, label: Label) {
        let key = data.key();
        let origin = self.view.member(data.origin);
        let content = Content::Change { origin, oseq: data.oseq, body: data.body, digest: data.digest };
        let healed = self.record.state.healing.is_some();
        let delivery = self.record.apply(key, label, content);
        let (entry, applied, ended) =
            (delivery.entry.clone(), delivery.applied.clone(), delivery.ended.clone());
        let halting =
            delivery.events.iter().any(|e| matches!(e.kind, crate::state::EventKind::Halting { .. }));
        let promoted = self.promoted(cx, &delivery);
        cx.out.push_back(Output::Deliver(delivery));
        self.tell_promotions(cx, promoted);
        if let Some(request) = own.and_then(|own| own.request) {
            self.answer_delivered(cx, request, entry.index, label, &applied);
        }
        if let Applied::Ordered(transaction) = applied {
            self.begin_execution(cx, transaction);
        }
        if let Some(ended) = ended {
            self.end_transaction(cx, &ended, entry.index, label);
        }
        if halting {
            self.halted(cx);
        } else if self.record.state.members.values().any(|record| record.leaving.is_some()) {
            self.reconsider(cx);
        }
        if healed || self.record.state.healing.is_some() {
            self.healing_changed(cx);
        }
    }

    fn answer_delivered(
        &mut self,
        cx: &mut Cx,
        request: RequestId,
        index: HistoryIndex,
        label: Label,
        applied: &Applied,
    ) {
        let pending = match applied {
            Applied::Ordered(t) => Some(*t),
            Applied::Repeated { first, .. } => match **first {
                Applied::Ordered(t) if self.record.state.open.contains_key(&t) => Some(t),
                _ => None,
            },
            _ => None,
        };
        match pending {
            Some(transaction) => cx.awaited.entry(transaction).or_default().push(request),
            None => {
                let receipt = self.receipt(index, label);
                cx.answer(request, Answer::Done { receipt, applied: applied.clone() });
            }
        }
    }

    pub(crate) fn receipt(&self, index: HistoryIndex, label: Label) -> Receipt {
        let mut view = self.told_view.as_ref().unwrap_or(&self.view).clone();
        view.label = label;
        Receipt { index, view }
    }

    /// The DVM ends: the word must get round before anybody goes.
    fn halted(&mut self, cx: &mut Cx) {
        cx.leaving = Some(LeaveBy::Halt);
        let linger_ms = if self.view.size() == 1 { 0 } else { (self.silence_ms() / 4).min(HALT_LINGER_MS) };
        self.timers.set_earlier(Timer::Leave, cx.now.plus_ms(linger_ms));
    }

    /// Installs the view that `proposal` describes: delivers what the flush delivers, then the view itself.
    pub(crate) fn install(&mut self, cx: &mut Cx, proposal: &Proposal) {
        assert_eq!(proposal.parent, self.view.id, "a view succeeds the installed one");
        assert!(self.broadcast.holds(&proposal.upto), "a flush delivers only what is here");
        while let Some((data, own)) = self.broadcast.next_flushed(&proposal.upto) {
            let old = self.record.state.index < proposal.delivered;
            let view = if old { self.view.clone() } else { proposal.view.clone() };
            let label = view.label;
            self.told_view = Some(view);
            self.deliver(cx, data, own, label);
        }
        self.told_view = None;
        for own in self.broadcast.take_own().rev() {
            cx.waiting.push_front(own);
        }
        cx.waiting.retain(|own| !own.of_view);
        self.note_lost_primaries(cx, proposal);
        let content = Content::View(Box::new(proposal.clone()));
        let delivery = self.record.apply(Key::default(), proposal.view.label, content);
        let index = delivery.entry.index;
        let promoted = self.promoted(cx, &delivery);
        cx.out.push_back(Output::Deliver(delivery));
        self.tell_promotions(cx, promoted);
        self.remember(proposal);
        self.links.close_all(cx);
        self.exit = None;
        let departed = proposal.departures.iter().find(|d| d.member == cx.me.id);
        match departed.map(|d| &d.why) {
            Some(DepartureCause::Left(by)) => self.exit = Some(Exit::Left(*by)),
            Some(DepartureCause::Failed { .. }) => {
                unreachable!("a member accepts no view that calls it failed")
            }
            None => {
                for joiner in &proposal.joiners {
                    cx.know(joiner);
                }
                self.view = proposal.view.clone();
                self.rank = self.view.rank_of(cx.me.id).expect("who did not leave stays");
                self.broadcast = Broadcast::new(&self.view, self.rank);
                self.detector = Detector::new(&self.view, cx.now);
                self.edges.try_anew(&self.view);
                self.admission.installed(&self.view);
                self.begin(cx);
                self.answer_promotion(cx, index);
            }
        }
    }

    fn remember(&mut self, proposal: &Proposal) {
        let left = proposal.departures.iter().filter(|d| matches!(d.why, DepartureCause::Left(_)));
        let (left, members) = (left.map(|d| d.member).collect(), proposal.view.members.clone());
        self.past.push_back(Past { parent: proposal.parent, id: proposal.view.id, members, left });
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }

    /// Begins a view: nothing of an earlier one goes on but open transactions and what waits.
    fn begin(&mut self, cx: &mut Cx) {
        (self.wedge, self.coordination, self.blocked) = (None, None, false);
        let leave = cx.leaving.map(|_| cx.now.plus_ms(LEAVE_MS));
        let kept = self.timers.is_set(Timer::Leave);
        for timer in [Timer::Change, Timer::Resend, Timer::Overdue, Timer::Query, Timer::Reconnect] {
            self.timers.stop(timer);
        }
        if let (Some(at), false) = (leave, kept) {
            self.timers.set(Timer::Leave, at);
        }
        cx.stand(Standing::Normal);
        self.timers.set(Timer::Heartbeat, cx.now);
        self.heal_begins(cx);
        self.connect(cx);
        self.collect_again(cx);
        self.settle(cx);
        self.take_early_links(cx);
        self.reconsider(cx);
    }

    /// This member's timers fired so late that silence means nothing.
    pub(crate) fn forgive(&mut self, cx: &mut Cx) {
        self.detector.forgive(cx.now);
        if self.timers.is_set(Timer::Overdue) {
            self.timers.set(Timer::Overdue, cx.now.plus_ms(self.silence_ms() / 2));
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.view, self.record.state.view, "the seat is in its state's view");
        self.broadcast.check_invariants();
        if let Some(coordination) = &self.coordination {
            let promised = self.wedge.as_ref().map(|wedge| wedge.promised);
            assert_eq!(promised, Some(coordination.ballot), "a coordinator keeps its own promise");
        }
    }
}

/// How long a leaving member waits for the others' word, milliseconds.
pub(crate) const LEAVE_MS: u64 = 10_000;
/// How long a halted member stays so that the word gets round, milliseconds.
const HALT_LINGER_MS: u64 = 250;
