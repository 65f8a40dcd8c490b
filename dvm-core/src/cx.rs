//! What every part of a member needs and none of them owns: identity, time, chance, outputs, and the requests that
//! outlive a view.

use crate::ids::{MemberId, RequestId, Time, TransactionId};
use crate::io::{Answer, Output, Refusal, Standing};
use crate::prng::Prng;
use crate::record::Lateness;
use crate::ring::Own;
use crate::state::{Change, LeaveBy, Submission};
use crate::wire::{Control, Identity};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// The surroundings of one step.
#[derive(Debug)]
pub(crate) struct Cx {
    pub(crate) me: Identity,
    pub(crate) now: Time,
    pub(crate) wall_ms: u64,
    pub(crate) prng: Prng,
    pub(crate) out: VecDeque<Output>,
    pub(crate) late: Lateness,
    /// Own messages without a number, oldest first.
    pub(crate) waiting: VecDeque<Own>,
    /// Who waits for the end of a transaction that was ordered.
    pub(crate) awaited: BTreeMap<TransactionId, Vec<RequestId>>,
    /// Whom to send through while a message is answered that came that way.
    pub(crate) detours: BTreeMap<MemberId, MemberId>,
    /// Whom this kernel was told to join through when its process began.
    pub(crate) origin: Option<MemberId>,
    /// This member was told to leave.
    pub(crate) leaving: Option<LeaveBy>,
    standing: Option<Standing>,
}

impl Cx {
    pub(crate) fn new(me: Identity, seed: u64, now: Time) -> Self {
        Self {
            me,
            now,
            wall_ms: 0,
            prng: Prng::new(seed),
            out: VecDeque::new(),
            late: Lateness::default(),
            waiting: VecDeque::new(),
            awaited: BTreeMap::new(),
            detours: BTreeMap::new(),
            origin: None,
            leaving: None,
            standing: None,
        }
    }

    pub(crate) fn send(&mut self, to: MemberId, message: Control) {
        if let (Some(via), false) = (self.detours.get(&to).copied(), matches!(message, Control::Relay { .. }))
        {
            let (from, relayed) = (self.me.id, Box::new(message.clone()));
            self.out.push_back(Output::Control {
                to: via,
                message: Control::Relay { from, to, message: relayed },
            });
        }
        if to != self.me.id {
            self.out.push_back(Output::Control { to, message });
        }
    }

    pub(crate) fn send_all(&mut self, to: impl IntoIterator<Item = MemberId>, message: &Control) {
        for to in to {
            self.send(to, message.clone());
        }
    }

    pub(crate) fn know(&mut self, identity: &Identity) {
        if identity.id != self.me.id {
            self.out.push_back(Output::Know(Box::new(identity.clone())));
        }
    }

    pub(crate) fn answer(&mut self, request: RequestId, answer: Answer) {
        self.out.push_back(Output::Answer { request, answer });
    }

    /// Tells the shell how this member stands, once for each change.
    pub(crate) fn stand(&mut self, standing: Standing) {
        if self.standing.as_ref() != Some(&standing) {
            self.standing = Some(standing.clone());
            self.out.push_back(Output::Standing(standing));
        }
    }

    /// Proposes a change of the member's own, before what clients wait for. `of_view`: it means nothing in a later view.
    pub(crate) fn propose(&mut self, change: Change, of_view: bool) {
        let submission = Submission { stamp: None, time_ms: self.wall_ms, change };
        self.waiting.push_front(Own {
            request: None,
            stamped: false,
            perhaps: false,
            of_view,
            body: encode(&submission),
        });
    }

    /// Nothing that waits for a number will get one.
    pub(crate) fn refuse_waiting(&mut self, refusal: Refusal) {
        let (clients, own): (VecDeque<_>, _) =
            core::mem::take(&mut self.waiting).into_iter().partition(|own| own.request.is_some());
        self.waiting = own;
        for own in clients {
            let request = own.request.expect("clients have requests");
            if own.perhaps {
                self.leave_unknown([request], "this member was excluded with the change under way");
            } else {
                self.answer(request, Answer::Refused(refusal));
            }
        }
    }

    /// Nobody here will learn how these end.
    pub(crate) fn leave_unknown(&mut self, requests: impl IntoIterator<Item = RequestId>, reason: &str) {
        for request in requests {
            self.answer(request, Answer::Unknown { reason: String::from(reason) });
        }
    }

    /// Nobody here will learn how ordered transactions end.
    pub(crate) fn forget_awaited(&mut self, reason: &str) {
        let awaited = core::mem::take(&mut self.awaited);
        self.leave_unknown(awaited.into_values().flatten(), reason);
    }

    /// A part of `ms`, drawn anew each time, so that members do not act in step.
    pub(crate) fn some_of_ms(&mut self, ms: u64) -> u64 {
        ms / 2 + self.prng.below(ms / 2 + 1)
    }
}

pub(crate) fn encode(submission: &Submission) -> Bytes {
    // Measured first: a vector that grows as it is written would copy a long body several times.
    let length = postcard::experimental::serialized_size(submission).expect("a submission is plain data");
    let mut body = alloc::vec![0; length];
    postcard::to_slice(submission, &mut body).expect("it is of the measured length");
    body.into()
}
