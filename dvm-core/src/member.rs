//! One member of a DVM: routes inputs to its seat in a view, or to its attempt to get one.

use crate::config::Config;
use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, Time, TransactionId};
use crate::io::{Answer, Input, Output, Refusal, Reject, Standing};
use crate::join::{Joining, Next, alone};
use crate::record::Record;
use crate::ring::Own;
use crate::seat::{Exit, Seat};
use crate::state::{Entry, Event, Genesis, LeaveBy, State};
use crate::view::View;
use crate::wire::Identity;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One member of a DVM. Holds no socket, no clock and no source of entropy.
///
/// Contract: after each [`handle`](Self::handle), call [`poll_output`](Self::poll_output) until it returns `None` and
/// carry the outputs out in order; then wait for an input or for [`next_deadline`](Self::next_deadline).
#[derive(Debug)]
pub struct Member {
    cx: Cx,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Joining(Box<Joining>),
    Seated(Box<Seat>),
    /// It ends its plug-ins, then becomes a new incarnation; `contact` sponsors that one. Without a contact it goes on
    /// alone.
    Excluded {
        seat: Option<Box<Seat>>,
        contact: Option<MemberId>,
        config: Box<Config>,
    },
    Left,
}

/// What a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is on its way in.
    Joining,
    /// It orders changes.
    Normal,
    /// A view change is running.
    Flushing,
    /// It has no quorum.
    Blocked,
    /// It was left out and ends its plug-ins.
    Excluded,
    /// It is gone.
    Left,
}

/// What this member knows of another, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who.
    pub id: MemberId,
    /// Milliseconds since it was heard; `None` for the member itself.
    pub last_heard_ms: Option<u64>,
    /// Whether this member suspects it.
    pub suspected: bool,
    /// Last index it said it had delivered.
    pub index: HistoryIndex,
}

impl Member {
    /// The first kernel of a DVM, sole member of its first, confirmed view.
    #[must_use]
    pub fn found(identity: Identity, genesis: Genesis, seed: u64, now: Time) -> Self {
        let state = State::genesis(genesis, identity.clone());
        let mut cx = Cx::new(identity, seed, now);
        let seat = Seat::new(Record::founded(state), &mut cx);
        Self { cx, place: Place::Seated(Box::new(seat)) }
    }

    /// A kernel that joins through `contact`. `config` holds until the snapshot brings the DVM's.
    #[must_use]
    pub fn join(identity: Identity, contact: Identity, config: Config, seed: u64, now: Time) -> Self {
        let mut cx = Cx::new(identity, seed, now);
        cx.know(&contact);
        cx.origin = Some(contact.id);
        let joining = Joining::new(config, contact.id, None, &mut cx);
        Self { cx, place: Place::Joining(Box::new(joining)) }
    }

    /// Takes one input.
    ///
    /// # Errors
    /// `Reject` tells why a message was refused; what it asked for did not happen.
    ///
    /// # Panics
    /// If an invariant of the protocol is broken: a member that lost its state must not vote.
    pub fn handle(&mut self, now: Time, input: Input) -> Result<(), Reject> {
        let due = self.next_deadline();
        self.cx.now = self.cx.now.max(now);
        self.note_lateness(due);
        if let Input::Clock { wall_ms } = input {
            self.cx.wall_ms = wall_ms;
            if let Place::Seated(seat) = &mut self.place {
                seat.record.date_founding(wall_ms);
            }
            return Ok(());
        }
        let cx = &mut self.cx;
        let handled = match &mut self.place {
            Place::Seated(seat) => seat.handle(cx, input),
            Place::Joining(joining) => {
                let next = joining.handle(cx, input);
                next.map(|next| self.go_on(next))
            }
            Place::Excluded { .. } => self.handle_excluded(input),
            Place::Left => {
                if let Input::Submit { request, .. } | Input::Promote { request, .. } = input {
                    cx.answer(request, Answer::Refused(Refusal::NotMember));
                }
                Err(Reject::Out)
            }
        };
        self.follow_exit();
        handled
    }

    /// The next thing the member wants from the world.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.out.pop_front()
    }

    /// When [`Input::Wake`] is due, whatever else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        match &self.place {
            Place::Seated(seat) => seat.timers.next(),
            Place::Joining(joining) => Some(joining.next_deadline()),
            Place::Excluded { .. } | Place::Left => None,
        }
    }

    fn note_lateness(&mut self, due: Option<Time>) {
        let silence_ms = match &self.place {
            Place::Seated(seat) => seat.silence_ms(),
            _ => self.state().map_or(Config::default().silence_ms, |state| state.config.silence_ms),
        };
        if self.cx.late.note(due, self.cx.now, silence_ms) {
            match &mut self.place {
                Place::Seated(seat) => seat.forgive(&mut self.cx),
                Place::Joining(joining) => joining.forgive(self.cx.now),
                Place::Excluded { .. } | Place::Left => {}
            }
        }
    }

    fn handle_excluded(&mut self, input: Input) -> Result<(), Reject> {
        let Place::Excluded { seat, contact, config } = &mut self.place else { return Ok(()) };
        match input {
            Input::Fenced { identity } => {
                self.cx.me = identity;
                let (seat, contact, config) = (seat.take(), *contact, (**config).clone());
                self.place = match (contact, seat) {
                    (None, Some(seat)) => Place::Seated(alone(seat, &mut self.cx)),
                    (contact, seat) => {
                        let contact = contact.unwrap_or(self.cx.me.id);
                        Place::Joining(Box::new(Joining::new(config, contact, seat, &mut self.cx)))
                    }
                };
                Ok(())
            }
            Input::Submit { request, submission } => {
                let most = seat.as_ref().map_or(0, |seat| seat.config().waiting);
                if self.cx.waiting.len() as u64 >= most {
                    self.cx.answer(request, Answer::Refused(Refusal::Busy));
                } else {
                    let (body, stamped) = (crate::cx::encode(&submission), submission.stamp.is_some());
                    let own = Own { request: Some(request), stamped, perhaps: false, of_view: false, body };
                    self.cx.waiting.push_back(own);
                }
                Ok(())
            }
            Input::Promote { request, .. } => {
                self.cx.answer(request, Answer::Refused(Refusal::NotMember));
                Ok(())
            }
            Input::Leave { by } => {
                self.depart(by);
                Ok(())
            }
            _ => Err(Reject::Out),
        }
    }

    /// What a joiner's last input led to.
    fn go_on(&mut self, next: Next) {
        match next {
            Next::Same => {}
            Next::Seated(seat) => {
                self.place = Place::Seated(seat);
                if let (Some(by), Place::Seated(seat)) = (self.cx.leaving, &mut self.place) {
                    seat.leave(&mut self.cx, by);
                }
            }
            Next::Excluded(by, contact) => {
                let Place::Joining(joining) = &mut self.place else { unreachable!("only a joiner goes on") };
                let seat = joining.lost.take();
                self.expel(seat, by.id, Some(contact));
            }
            Next::Alone => {
                let Place::Joining(joining) = &mut self.place else { unreachable!("only a joiner goes on") };
                let seat = joining.lost.take();
                let by = seat.as_ref().expect("who goes on alone had a seat").view.id;
                self.expel(seat, by, None);
            }
            Next::Refused(reason) => {
                self.end_requests();
                self.cx.stand(Standing::Refused { reason });
                self.place = Place::Left;
            }
            Next::Left(by) => self.depart(by),
        }
    }

    /// Acts on a seat that was lost.
    fn follow_exit(&mut self) {
        let Place::Seated(seat) = &mut self.place else { return };
        match seat.exit.take() {
            None => {}
            Some(Exit::Left(by)) => self.depart(by),
            Some(Exit::Excluded { by, contact }) => {
                let Place::Seated(mut seat) = core::mem::replace(&mut self.place, Place::Left) else {
                    unreachable!("looked at above")
                };
                seat.links.close_all(&mut self.cx);
                self.expel(Some(seat), by.id, Some(contact));
            }
        }
    }

    fn expel(&mut self, seat: Option<Box<Seat>>, by: crate::ids::ViewId, contact: Option<MemberId>) {
        let config = seat.as_ref().map_or_else(Config::default, |seat| seat.config().clone());
        self.place = Place::Excluded { seat, contact, config: Box::new(config) };
        self.cx.stand(Standing::Excluded { by });
    }

    fn depart(&mut self, by: LeaveBy) {
        if let Place::Seated(seat) = &mut self.place {
            let numbered = seat.broadcast.forget_requests();
            self.cx.leave_unknown(numbered, "this member left");
            seat.links.close_all(&mut self.cx);
        }
        self.end_requests();
        self.place = Place::Left;
        self.cx.stand(Standing::Left { by });
    }

    fn end_requests(&mut self) {
        self.cx.refuse_waiting(Refusal::NotMember);
        self.cx.forget_awaited("this member left");
    }

    /// This incarnation.
    #[must_use]
    pub fn id(&self) -> MemberId {
        self.cx.me.id
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.cx.me
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.place {
            Place::Joining(_) => Phase::Joining,
            Place::Seated(seat) if seat.blocked => Phase::Blocked,
            Place::Seated(seat) if seat.is_wedged() => Phase::Flushing,
            Place::Seated(_) => Phase::Normal,
            Place::Excluded { .. } => Phase::Excluded,
            Place::Left => Phase::Left,
        }
    }

    /// The seat it has, or the one it lost and whose state it keeps.
    fn seat(&self) -> Option<&Seat> {
        match &self.place {
            Place::Seated(seat) => Some(seat),
            Place::Joining(joining) => joining.lost.as_deref(),
            Place::Excluded { seat, .. } => seat.as_deref(),
            Place::Left => None,
        }
    }

    /// The replicated state; `None` before it was first admitted.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        self.seat().map(|seat| &seat.record.state)
    }

    /// The installed view; `None` before it was first admitted.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.seat().map(|seat| &seat.view)
    }

    /// Whom the running view change, the blocked member, or the joiner waits for.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<MemberId> {
        match &self.place {
            Place::Seated(seat) => seat.waiting_for(),
            Place::Joining(joining) => joining.waiting_for(),
            Place::Excluded { .. } | Place::Left => Vec::new(),
        }
    }

    /// What is known of each member of the view, by rank.
    #[must_use]
    pub fn members_status(&self, now: Time) -> Vec<MemberStatus> {
        let Some(seat) = self.seat() else { return Vec::new() };
        let ranks = seat.ranks().map(|rank| {
            let mine = rank == seat.rank;
            let index = if mine { seat.record.state.index } else { seat.detector.index(rank) };
            MemberStatus {
                id: seat.view.member(rank),
                last_heard_ms: (!mine).then(|| now.ms_since(seat.detector.heard(rank))),
                suspected: seat.is_suspected(rank),
                index,
            }
        });
        ranks.collect()
    }

    /// Kept entries, oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.seat().into_iter().flat_map(|seat| seat.record.entries())
    }

    /// Kept events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.seat().into_iter().flat_map(|seat| seat.record.events())
    }

    /// Entries at or before this index are no longer kept.
    #[must_use]
    pub fn history_low(&self) -> HistoryIndex {
        self.seat().map(|seat| seat.record.low()).unwrap_or_default()
    }

    /// Members from which no result of an open transaction is known here.
    #[must_use]
    pub fn open_waiting_for(&self, transaction: TransactionId) -> Vec<MemberId> {
        self.seat().map(|seat| seat.open_waiting_for(transaction)).unwrap_or_default()
    }

    /// Checks the invariants that are too costly for every step of the daemon; tests and simulator call it after every
    /// input.
    ///
    /// # Panics
    /// On a violation.
    pub fn check_invariants(&self) {
        if let Place::Seated(seat) = &self.place {
            seat.check_invariants();
        }
    }
}
