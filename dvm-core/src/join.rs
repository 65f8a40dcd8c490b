//! A kernel that is no member: it learns the state first and is admitted by a flush last.
//!
//! A kernel that was excluded comes back this way, as a new incarnation; until it is admitted it keeps what it had, and
//! goes on from there alone when nobody of the view that beat it answers any more (R11 of `docs/protocol.md`).

use crate::admission::HALVINGS_MAX;
use crate::config::{Config, Merge, Partition};
use crate::cx::Cx;
use crate::ids::{HistoryIndex, LinkId, MemberId, Rank, Time, ViewId};
use crate::io::{Answer, Input, Output, Refusal, Reject, Side, Snapshot, Standing};
use crate::record::Record;
use crate::ring::Own;
use crate::seat::Seat;
use crate::state::{Content, Entry, FailureCause, LeaveBy, Submission};
use crate::view::{Label, View};
use crate::wire::{Accepted, Control, Data, Departure, DepartureCause, Identity, Key, Proposal, Summary};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Lag at which a joiner counts as caught up, in indices; or this much traffic, if that is more.
const LAG_MAX: u64 = 64;
const LAG_MAX_MS: u64 = 20;
/// The most that counts as so much traffic, in indices.
const TRAFFIC_MAX: u64 = 4_096;
/// How long a joiner tries before the ring goes slower for it, and slower again.
const CHASE_MS: u64 = 3_000;
/// Links of a view that is still to be installed here, at most.
const EARLY_MAX: usize = 8;

/// A kernel on its way in.
#[derive(Debug)]
pub(crate) struct Joining {
    config: Config,
    /// Whom it was told to ask.
    origin: MemberId,
    /// Whom it asks.
    contact: MemberId,
    /// Which of those that could know was asked last.
    tried: usize,
    /// Those whose branch lacks confirmed entries that are kept here: what they say does not count.
    behind: BTreeSet<MemberId>,
    /// When one that was asked last answered.
    heard: Time,
    /// When it asks again.
    due: Time,
    /// What a sponsor gave it, kept up with the tail.
    learned: Option<Record>,
    chase: Chase,
    /// The last proposal that names it, until it is accepted and after.
    held: Option<Held>,
    /// The seat it lost, and with it the state it keeps until it is admitted.
    pub(crate) lost: Option<Box<Seat>>,
    /// Nobody of the view that beat it answers, and it may not go on alone.
    stranded: bool,
    early: Vec<(LinkId, MemberId, ViewId)>,
}

/// A joiner behind a history that goes on.
#[derive(Debug, Default)]
struct Chase {
    /// Since when it is behind.
    begun: Option<Time>,
    /// How far the history was, and when.
    seen: Option<(Time, u64)>,
    /// How fast it grows, indices in [`LAG_MAX_MS`].
    traffic: u64,
}

impl Chase {
    /// Whether a lag is small enough for a flush to make up for.
    fn is_over(&mut self, now: Time, mine: u64, theirs: u64) -> bool {
        match self.seen {
            Some((at, index)) if now.ms_since(at) >= LAG_MAX_MS => {
                self.traffic = theirs.saturating_sub(index) * LAG_MAX_MS / now.ms_since(at);
                self.seen = Some((now, theirs));
            }
            Some(_) => {}
            None => self.seen = Some((now, theirs)),
        }
        let over = theirs <= mine + LAG_MAX.max(self.traffic.min(TRAFFIC_MAX));
        self.begun = if over { None } else { self.begun.or(Some(now)) };
        over
    }

    /// How often the members' windows are to be halved.
    fn halvings(&self, now: Time) -> u8 {
        let times = self.begun.map_or(0, |begun| now.ms_since(begun) / CHASE_MS);
        u8::try_from(times).unwrap_or(u8::MAX).min(HALVINGS_MAX)
    }
}

/// A proposal that names this joiner.
#[derive(Debug)]
struct Held {
    accepted: Accepted,
    /// Messages that the flush delivers above what is applied here, in key order; there once it was accepted.
    bodies: Option<Vec<Data>>,
}

/// What becomes of a joiner.
#[derive(Debug)]
pub(crate) enum Next {
    /// It goes on trying.
    Same,
    /// It has a seat.
    Seated(Box<Seat>),
    /// It goes on alone from the seat it lost: as yet another incarnation, since this one may still be admitted.
    Alone,
    /// A later view left it out before it could take its seat.
    Excluded(Summary, MemberId),
    /// It may not join.
    Refused(alloc::string::String),
    /// It gives up in order.
    Left(LeaveBy),
}

impl Joining {
    pub(crate) fn new(config: Config, contact: MemberId, lost: Option<Box<Seat>>, cx: &mut Cx) -> Self {
        cx.stand(Standing::Joining);
        Self {
            config,
            origin: cx.origin.unwrap_or(contact),
            contact,
            tried: 0,
            behind: BTreeSet::new(),
            heard: cx.now,
            due: cx.now,
            learned: None,
            chase: Chase::default(),
            held: None,
            lost,
            stranded: false,
            early: Vec::new(),
        }
    }

    pub(crate) fn next_deadline(&self) -> Time {
        self.due
    }

    pub(crate) fn forgive(&mut self, now: Time) {
        self.heard = now;
    }

    fn silence_ms(&self) -> u64 {
        self.config.silence_ms
    }

    pub(crate) fn handle(&mut self, cx: &mut Cx, input: Input) -> Result<Next, Reject> {
        match input {
            Input::Wake if cx.now >= self.due => return Ok(self.ask(cx)),
            Input::Control { from, message } => return self.on_control(cx, from, message),
            Input::Snapshot { from, snapshot } => self.on_snapshot(cx, from, *snapshot),
            Input::Submit { request, submission } => {
                let refusal = match &self.lost {
                    None => Some(Refusal::NotMember),
                    Some(_) if self.stranded => Some(Refusal::NoQuorum),
                    Some(_) if cx.waiting.len() as u64 >= self.config.waiting => Some(Refusal::Busy),
                    Some(_) => None,
                };
                match refusal {
                    Some(refusal) => cx.answer(request, Answer::Refused(refusal)),
                    None => {
                        let (body, stamped) = (crate::cx::encode(&submission), submission.stamp.is_some());
                        let own =
                            Own { request: Some(request), stamped, perhaps: false, of_view: false, body };
                        cx.waiting.push_back(own);
                    }
                }
            }
            Input::LinkUp { link, peer, view, side } => return self.on_link_up(cx, link, peer, view, side),
            Input::LinkDown { link } => self.early.retain(|(early, ..)| *early != link),
            Input::Refused { peer } if peer == self.contact => self.try_another(&cx.me),
            Input::Replaced { peer, by } if peer == self.contact => {
                if by.id == cx.me.id {
                    self.try_another(&cx.me);
                } else {
                    cx.know(&by);
                    self.contact = by.id;
                }
            }
            Input::Leave { by } => return Ok(Next::Left(by)),
            Input::Promote { request, .. } => cx.answer(request, Answer::Refused(Refusal::NotMember)),
            _ => {}
        }
        Ok(Next::Same)
    }

    /// Asks for the state, or for what came after it.
    fn ask(&mut self, cx: &mut Cx) -> Next {
        self.due = cx.now.plus_ms((self.silence_ms() / 8).max(1));
        let silent_ms = cx.now.ms_since(self.heard);
        if silent_ms > 4 * self.silence_ms()
            && let Some(next) = self.give_up(cx)
        {
            return next;
        }
        if silent_ms > self.silence_ms() && cx.prng.chance(1, 2) {
            self.try_another(&cx.me);
        }
        match &self.learned {
            None => cx.send(self.contact, Control::Join { identity: Box::new(cx.me.clone()) }),
            Some(record) => {
                cx.send(self.contact, Control::TailRequest { after: record.state.index });
                let halvings = self.chase.halvings(cx.now);
                if halvings > 0 {
                    let members = record.state.view.members.iter().copied();
                    cx.send_all(members, &Control::Lagging { halvings });
                }
            }
        }
        Next::Same
    }

    /// Nobody of the view that beat this member answers.
    fn give_up(&mut self, cx: &mut Cx) -> Option<Next> {
        if self.lost.as_ref()?.config().partition == Partition::Survive {
            return Some(Next::Alone);
        }
        self.begin_anew();
        if !self.stranded
            && let Some(lost) = &mut self.lost
        {
            self.stranded = true;
            cx.refuse_waiting(Refusal::NoQuorum);
            let numbered = lost.broadcast.forget_requests();
            cx.leave_unknown(numbered, "this member was excluded, and no quorum is in reach");
            cx.forget_awaited("this member was excluded, and no quorum is in reach");
            cx.stand(Standing::Blocked);
        }
        None
    }

    /// What was learned is of no use.
    fn begin_anew(&mut self) {
        (self.learned, self.held, self.chase) = (None, None, Chase::default());
    }

    /// Turns to the next member that could know.
    fn try_another(&mut self, me: &Identity) {
        let seat = self.lost.as_ref().filter(|seat| seat.config().partition == Partition::Quorum);
        let state = self.learned.as_ref().or(seat.map(|seat| &seat.record)).map(|record| &record.state);
        let Some(state) = state else {
            self.contact = self.origin;
            return;
        };
        let members: Vec<_> = state.view.members.iter().copied().chain([self.origin]).collect();
        let mine = |m: &MemberId| state.members.get(m).is_some_and(|record| record.identity.name == me.name);
        for _ in 0..members.len() {
            self.tried = (self.tried + 1) % members.len();
            if !mine(&members[self.tried]) {
                self.contact = members[self.tried];
                return;
            }
        }
    }

    fn hear(&mut self, cx: &mut Cx, from: MemberId) {
        self.heard = cx.now;
        self.contact = from;
        if core::mem::take(&mut self.stranded) {
            cx.stand(Standing::Joining);
        }
    }

    fn on_control(&mut self, cx: &mut Cx, from: MemberId, message: Control) -> Result<Next, Reject> {
        match message {
            Control::Tail { .. } if self.behind.contains(&from) => {
                Err(Reject::Unexpected { what: "word of a branch that is behind" })
            }
            Control::Tail { after, hash, entries, index } => {
                if self.lost.as_ref().is_none_or(|seat| index >= seat.record.state.index) {
                    self.hear(cx, from);
                }
                self.on_tail(cx, from, (after, hash), entries, index)
            }
            Control::Propose { ballot, kind, proposal } => {
                if !proposal.joiners.iter().any(|joiner| joiner.id == cx.me.id) {
                    return Err(Reject::Unexpected { what: "proposal without this joiner" });
                }
                self.hear(cx, from);
                let accepted = Accepted { kind, ballot, proposal: *proposal };
                let same = self.held.take().filter(|held| held.accepted.proposal == accepted.proposal);
                let bodies = same.and_then(|held| held.bodies);
                self.held = Some(Held { accepted, bodies });
                self.accept(cx, from);
                Ok(Next::Same)
            }
            fill @ Control::JoinerFill { .. } => self.on_fill(cx, from, fill),
            Control::Commit { id, .. } => self.on_commit(cx, id),
            Control::Heartbeat(heartbeat) => {
                let next = self.on_commit(cx, heartbeat.view.id)?;
                if cx.now.ms_since(self.heard) > self.silence_ms() {
                    // Somebody takes this kernel for a member, and may know why.
                    self.contact = from;
                }
                Ok(next)
            }
            Control::JoinRefused { reason } if from == self.contact => Ok(Next::Refused(reason)),
            Control::JoinRedirect { sponsor } if from == self.contact => {
                cx.know(&sponsor);
                self.hear(cx, sponsor.id);
                self.due = cx.now;
                Ok(Next::Same)
            }
            Control::Probe { branch, identity, .. } if identity.id == from => {
                // A branch looks for what this kernel was. It is as good as any, unless one is being joined.
                let fits = self.lost.as_ref().is_some_and(|seat| {
                    let state = &seat.record.state;
                    state.view.lineage == branch.lineage
                        && branch.last_confirmed >= state.last_confirmed
                        && branch.index >= state.index
                });
                if fits
                    && (self.stranded
                        || cx.now.ms_since(self.heard) > self.silence_ms()
                        || self.is_stale(&branch))
                {
                    cx.know(&identity);
                    self.begin_anew();
                    self.hear(cx, from);
                    self.due = cx.now;
                }
                Ok(Next::Same)
            }
            Control::Join { .. } => {
                // Somebody takes this kernel for a member; the one it asks itself knows more.
                let known = self.learned.as_ref().and_then(|r| r.state.members.get(&self.contact));
                if let Some(record) = known {
                    let sponsor = Box::new(record.identity.clone());
                    cx.send(from, Control::JoinRedirect { sponsor });
                }
                Ok(Next::Same)
            }
            Control::FlushRequest { .. } | Control::Suspect { .. } => {
                if let Some(held) = &self.held {
                    cx.send(from, Control::Query { view: held.accepted.proposal.parent });
                }
                Ok(Next::Same)
            }
            _ => Err(Reject::Unexpected { what: "word for a member" }),
        }
    }

    /// Whether what is being learned is of a branch that is behind this one.
    fn is_stale(&self, branch: &Summary) -> bool {
        self.learned.as_ref().is_some_and(|record| record.state.last_confirmed < branch.last_confirmed)
    }

    fn on_snapshot(&mut self, cx: &mut Cx, from: MemberId, snapshot: Snapshot) {
        if self.lost.as_ref().is_some_and(|seat| !seat.record.state.may_give_way_to(&snapshot.state)) {
            self.behind.insert(from);
            self.try_another(&cx.me);
            return;
        }
        self.hear(cx, from);
        if self.learned.as_ref().is_some_and(|record| record.state.index >= snapshot.state.index)
            && self.learned.as_ref().is_some_and(|r| r.state.view.id.epoch >= snapshot.state.view.id.epoch)
        {
            return;
        }
        self.behind.clear();
        self.config = snapshot.state.config.clone();
        for record in snapshot.state.members.values() {
            cx.know(&record.identity);
        }
        (self.learned, self.chase) = (Some(Record::of_snapshot(snapshot)), Chase::default());
        self.due = cx.now;
    }

    fn on_tail(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        (after, hash): (HistoryIndex, Option<u64>),
        entries: Vec<Entry>,
        index: HistoryIndex,
    ) -> Result<Next, Reject> {
        let me = cx.me.id;
        let Some(record) = &mut self.learned else { return Ok(Next::Same) };
        if !record.agrees(after, hash) {
            // Another branch: begin anew with whoever said it.
            self.begin_anew();
            self.due = cx.now;
            return Ok(Next::Same);
        }
        let asked_more = !entries.is_empty();
        for entry in entries {
            if learn(record, cx, &entry).is_err() {
                // Another branch: begin anew with whoever said it.
                self.begin_anew();
                self.due = cx.now;
                return Ok(Next::Same);
            }
            let Content::View(proposal) = &entry.content else { continue };
            if proposal.departures.iter().any(|departure| departure.member == me) {
                return Ok(Next::Excluded(record.state.summary(), from));
            }
        }
        let (mine, is_member) = (record.state.index, record.state.view.has(me));
        if is_member && mine == index {
            return Ok(self.seat(cx, mine, Vec::new()));
        }
        if self.chase.is_over(cx.now, mine.0, index.0) && !is_member {
            cx.send(from, Control::Ready { identity: Box::new(cx.me.clone()), index: mine });
        }
        if asked_more && mine < index {
            self.due = cx.now;
        }
        Ok(Next::Same)
    }

    /// Accepts the held proposal, or asks its coordinator for what is lacking.
    fn accept(&mut self, cx: &mut Cx, coordinator: MemberId) {
        let Some(held) = &self.held else { return };
        let parent = held.accepted.proposal.parent;
        if held.bodies.is_some() {
            cx.send(coordinator, Control::Accept { view: parent, ballot: held.accepted.ballot });
        } else if let Some(record) = &self.learned {
            cx.send(coordinator, Control::JoinerFetch { view: parent, index: record.state.index });
        }
    }

    fn on_fill(&mut self, cx: &mut Cx, from: MemberId, fill: Control) -> Result<Next, Reject> {
        let Control::JoinerFill { view, index, hash, entries, bodies, received } = fill else {
            return Err(Reject::Unexpected { what: "word for a member" });
        };
        self.hear(cx, from);
        let (Some(record), Some(held)) = (&mut self.learned, &mut self.held) else { return Ok(Next::Same) };
        let proposal = &held.accepted.proposal;
        if proposal.parent != view || held.bodies.is_some() {
            return Ok(Next::Same);
        }
        if !record.agrees(index, hash) || entries.iter().any(|entry| learn(record, cx, entry).is_err()) {
            self.begin_anew();
            return Ok(Next::Same);
        }
        let n = record.state.view.size();
        // A fill that was asked for another ballot's proposal may be late, and lack what this one delivers.
        let reaches =
            received.len() == n && received.iter().zip(&proposal.upto).all(|(have, need)| have >= need);
        if record.state.view.id != view || proposal.upto.len() != n || !reaches {
            return Ok(Next::Same);
        }
        let key = record.state.key;
        let mut bodies = bodies;
        bodies.retain(|data| {
            data.origin.at() < n && data.key() > key && data.oseq <= proposal.upto[data.origin.at()]
        });
        bodies.sort_by_key(Data::key);
        held.bodies = Some(bodies);
        self.accept(cx, from);
        Ok(Next::Same)
    }

    /// The view `id` stands.
    fn on_commit(&mut self, cx: &mut Cx, id: ViewId) -> Result<Next, Reject> {
        let ready = self.held.as_ref().filter(|held| held.accepted.proposal.view.id == id);
        if ready.is_none_or(|held| held.bodies.is_none()) {
            // Without the bodies the tail brings the view, too.
            return Ok(Next::Same);
        }
        let Some(Held { accepted: Accepted { proposal, .. }, bodies: Some(bodies) }) = self.held.take()
        else {
            unreachable!("looked at above")
        };
        let record = self.learned.as_mut().expect("what is held was filled into it");
        if record.state.view.id != proposal.parent {
            return Ok(Next::Same);
        }
        let (from, key) = (record.state.index, record.state.key);
        let mut outputs = Vec::new();
        // The tail may have brought some of them meanwhile.
        for data in bodies.into_iter().filter(|data| data.key() > key) {
            let old = record.state.index < proposal.delivered;
            let label = if old { record.state.view.label } else { proposal.view.label };
            let (key, origin) = (data.key(), record.state.view.member(data.origin));
            let content = Content::Change { origin, oseq: data.oseq, body: data.body, digest: data.digest };
            outputs.push(Output::Deliver(record.apply(key, label, content)));
        }
        let label = proposal.view.label;
        let content = Content::View(Box::new(proposal));
        outputs.push(Output::Deliver(record.apply(Key::default(), label, content)));
        Ok(self.seat(cx, from, outputs))
    }

    /// Takes the seat: what was learned replaces what was kept.
    fn seat(&mut self, cx: &mut Cx, restored: HistoryIndex, deliveries: Vec<Output>) -> Next {
        let record = self.learned.take().expect("a seat needs a state");
        if let Some(mut lost) = self.lost.take() {
            let (fork, sure) = lost.record.fork(&record);
            let entries: Vec<Arc<Entry>> =
                lost.record.entries().filter(|entry| entry.index > fork).cloned().collect();
            keep_requests(&mut lost, cx);
            // Where the fork is not known, entries that both histories share would be among them.
            if sure && record.state.config.merge == Merge::Resubmit {
                resubmit(&entries, cx);
            }
            if !entries.is_empty() || !sure {
                cx.out.push_back(Output::Orphans { fork, entries, truncated: !sure });
            }
            let open = &record.state.open;
            let ended: Vec<_> = cx.awaited.keys().filter(|t| !open.contains_key(t)).copied().collect();
            for requests in ended.into_iter().filter_map(|t| cx.awaited.remove(&t)).collect::<Vec<_>>() {
                cx.leave_unknown(requests, "this member was excluded while the transaction was open");
            }
        }
        cx.out.push_back(Output::Restored { index: restored });
        cx.out.extend(deliveries);
        let mut seat = Box::new(Seat::new(record, cx));
        seat.links.early.append(&mut self.early);
        seat.take_early_links(cx);
        Next::Seated(seat)
    }

    fn on_link_up(
        &mut self,
        cx: &mut Cx,
        link: LinkId,
        peer: MemberId,
        view: ViewId,
        side: Side,
    ) -> Result<Next, Reject> {
        if side == Side::Outgoing || self.early.len() >= EARLY_MAX {
            cx.out.push_back(Output::Close { link });
            return Ok(Next::Same);
        }
        self.early.push((link, peer, view));
        // Only a member that has installed a view opens links for it.
        self.on_commit(cx, view)
    }

    /// Whom it waits for.
    pub(crate) fn waiting_for(&self) -> Vec<MemberId> {
        alloc::vec![self.contact]
    }
}

/// Applies an entry that another member delivered, unless it is here already.
fn learn(record: &mut Record, cx: &mut Cx, entry: &Entry) -> Result<(), &'static str> {
    if entry.index <= record.state.index {
        return Ok(());
    }
    record.apply_entry(entry)?;
    if let Content::View(proposal) = &entry.content {
        for joiner in &proposal.joiners {
            cx.know(joiner);
        }
    }
    Ok(())
}

/// What clients of a lost branch changed there is proposed again, in its order and before what this member's own clients
/// wait for. Every member of the branch does so: the first proposal of each change acts, and whatever the interleaving,
/// those come in the branch's order; the others are repeats. A change without a stamp is left out: it would take effect
/// as often as it is proposed.
fn resubmit(orphans: &[Arc<Entry>], cx: &mut Cx) {
    for entry in orphans.iter().rev() {
        let Content::Change { body, .. } = &entry.content else { continue };
        let Ok(submission) = postcard::from_bytes::<Submission>(body) else { continue };
        if submission.stamp.is_some() && submission.change.is_of_clients() {
            let body = body.clone();
            cx.waiting.push_front(Own { request: None, stamped: true, perhaps: true, of_view: false, body });
        }
    }
}

/// What clients of an excluded member wait for is proposed again where a repeat is harmless.
fn keep_requests(lost: &mut Seat, cx: &mut Cx) {
    cx.waiting.retain(|own| own.request.is_some() || own.stamped);
    for own in lost.broadcast.take_own().rev() {
        match own.request {
            _ if own.stamped => cx.waiting.push_front(Own { perhaps: true, ..own }),
            Some(request) => {
                cx.leave_unknown([request], "this member was excluded with the change under way")
            }
            None => {}
        }
    }
}

/// The seat of a member that goes on alone from the view it had, as its new incarnation.
pub(crate) fn alone(mut lost: Box<Seat>, cx: &mut Cx) -> Box<Seat> {
    let old = &lost.view;
    let wedge = lost.wedge.as_ref();
    // What a proposal accepted here may have delivered elsewhere is delivered here too, and no more.
    let accepted = wedge.and_then(|wedge| wedge.slots.iter().max_by_key(|slot| slot.proposal.view.label));
    let (upto, delivered) = match accepted {
        Some(slot) => (slot.proposal.upto.clone(), slot.proposal.delivered),
        None => (lost.broadcast.received().to_vec(), lost.record.state.index),
    };
    let cause =
        DepartureCause::Failed { cause: FailureCause::Expelled, noticed_by: cx.me.id, last_heard_ms: None };
    let departures = old.members.iter().map(|member| Departure { member: *member, why: cause.clone() });
    let proposal = Proposal {
        view: View {
            id: ViewId {
                epoch: old.id.epoch.max(lost.record.state.epoch_floor).next(),
                proposer: cx.me.id,
                round: 1,
            },
            proposer_name: cx.me.name.clone(),
            lineage: old.lineage,
            label: Label::Provisional,
            members: alloc::vec![cx.me.id],
            ring: alloc::vec![Rank(0)],
        },
        parent: old.id,
        joiners: alloc::vec![cx.me.clone()],
        departures: departures.collect(),
        upto,
        delivered,
        time_ms: cx.wall_ms,
    };
    cx.waiting.retain(|own| own.request.is_some() || own.stamped);
    // What the old incarnation was executing has ended with it.
    lost.collecting.clear();
    lost.install(cx, &proposal);
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_that_stays_behind_has_the_ring_go_slower_and_slower() {
        let mut chase = Chase::default();
        let at = |ms: u64| Time::default().plus_ms(ms);
        // The history grows by 1,000 a second; within 20 ms that is less than the lag that is always allowed.
        assert!(!chase.is_over(at(0), 0, 1_000));
        assert_eq!(chase.halvings(at(2_999)), 0);
        assert!(!chase.is_over(at(3_000), 3_900, 4_000));
        assert_eq!((chase.halvings(at(3_000)), chase.halvings(at(6_500))), (1, 2));
        assert_eq!(chase.halvings(at(600_000)), HALVINGS_MAX);
        assert!(chase.is_over(at(7_000), 7_936, 8_000));
        assert_eq!(chase.halvings(at(60_000)), 0, "it has caught up");
    }

    #[test]
    fn much_traffic_allows_more_lag() {
        let mut chase = Chase::default();
        let at = |ms: u64| Time::default().plus_ms(ms);
        assert!(!chase.is_over(at(0), 0, 10_000));
        // 100 a millisecond: 2,000 in 20 ms.
        assert!(chase.is_over(at(100), 18_000, 20_000));
        assert!(!chase.is_over(at(100), 17_999, 20_000));
    }
}
