//! Reliable, totally ordered broadcast inside one view: DATA and STABLE laps, numbering, fair share, resend.
//!
//! Source: the slides' "Reliable Broadcast" and "Atomic Broadcast"; `docs/protocol.md` section 3. What the slides leave
//! open is decided here: numbers are Lamport numbers given when a message is placed on the link, and a message is
//! delivered when it has the smallest key and is stable.
//!
//! Why the smallest stable key is safe to deliver: let m from i be stable here. Any m' with a smaller key was placed
//! before m passed its origin, so on every later link m' precedes m; and it precedes STABLE(m), which starts behind m
//! and never overtakes. So m' is here when m is known to be stable.

use crate::config::Config;
use crate::ids::{Lamport, OriginSeq, Rank, RequestId};
use crate::io::Reject;
use crate::view::View;
use crate::wire::{Collect, Data, Key, Ring as Frame, carries_digest, digest};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;

/// A message of this member that has no number yet, or is not delivered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Own {
    /// Who waits for its answer; none for messages of the member itself.
    pub(crate) request: Option<RequestId>,
    /// Whether a repeat is harmless, so that it may be proposed again after an expulsion.
    pub(crate) stamped: bool,
    /// It was under way when this member was excluded: it may have taken effect already.
    pub(crate) perhaps: bool,
    /// Worked out from the present view; of no use in another.
    pub(crate) of_view: bool,
    /// The submission, encoded.
    pub(crate) body: Bytes,
}

/// One member's part in the broadcast of one view.
#[derive(Debug)]
pub(crate) struct Broadcast {
    me: Rank,
    successor: Rank,
    /// Links from each origin to me: what its frames' hop counter must say.
    hops: Vec<u16>,
    /// `closer[o]`: the last member on o's lap, o's predecessor.
    closer: Vec<Rank>,
    /// Highest number received, by origin; everything up to it was received.
    received: Vec<OriginSeq>,
    /// Highest number known to be received by all, by origin. Invariant: `stable[o] <= received[o]`.
    stable: Vec<OriginSeq>,
    /// Highest number delivered, by origin. Invariant: `delivered[o] <= stable[o]` until the flush.
    delivered: Vec<OriginSeq>,
    clock: Lamport,
    /// Received and not delivered, by origin: `store[o][i].oseq == delivered[o] + 1 + i`.
    store: Vec<VecDeque<Data>>,
    /// The same messages by key.
    order: BTreeMap<Key, OriginSeq>,
    /// Mine among them, oldest first.
    own: VecDeque<(OriginSeq, Own)>,
    own_bytes: u64,
    /// What goes to the successor next, in the order in which it came.
    forward: VecDeque<Forward>,
    /// Data frames waiting in `forward`.
    forward_data: usize,
    forwarded_since_own: usize,
    /// Origins whose data came since my last own message became stable, me included.
    active: Vec<bool>,
    last_key: Key,
}

#[derive(Debug)]
enum Forward {
    Data(Rank, OriginSeq),
    Stable(Vec<(Rank, OriginSeq)>),
    Collect(Collect),
}

impl Broadcast {
    pub(crate) fn new(view: &View, me: Rank) -> Self {
        let n = view.size();
        let mut hops = alloc::vec![0; n];
        let mut at = me;
        for distance in 1..n {
            at = view.predecessor(at);
            hops[at.at()] = distance as u16;
        }
        let mut active = alloc::vec![false; n];
        active[me.at()] = true;
        Self {
            me,
            successor: view.successor(me),
            hops,
            closer: (0..n).map(|o| view.predecessor(Rank(o as u16))).collect(),
            received: alloc::vec![0; n],
            stable: alloc::vec![0; n],
            delivered: alloc::vec![0; n],
            clock: Lamport(0),
            store: (0..n).map(|_| VecDeque::new()).collect(),
            order: BTreeMap::new(),
            own: VecDeque::new(),
            own_bytes: 0,
            forward: VecDeque::new(),
            forward_data: 0,
            forwarded_since_own: 0,
            active,
            last_key: Key::default(),
        }
    }

    fn is_alone(&self) -> bool {
        self.received.len() == 1
    }

    pub(crate) fn received(&self) -> &[OriginSeq] {
        &self.received
    }

    /// First frame on a link from the predecessor.
    pub(crate) fn resume_frame(&self) -> Frame {
        Frame::Resume { received: self.received.clone(), stable: self.stable.clone() }
    }

    /// A message from the predecessor. `Ok(false)` if it was here already.
    pub(crate) fn on_data(&mut self, data: Data) -> Result<bool, Reject> {
        let o = data.origin.at();
        if o >= self.received.len() || data.origin == self.me {
            return Err(Reject::Malformed { what: "origin of data" });
        }
        if data.hops != self.hops[o] {
            return Err(Reject::Malformed { what: "hop counter" });
        }
        if data.digest.is_some() != carries_digest(&data.body) {
            return Err(Reject::Malformed { what: "digest" });
        }
        if data.oseq <= self.received[o] {
            return Ok(false);
        }
        if data.oseq != self.received[o] + 1 {
            return Err(Reject::Gap {
                origin: data.origin.0,
                got: data.oseq,
                expected: self.received[o] + 1,
            });
        }
        if data.key() <= self.last_key || self.store[o].back().is_some_and(|last| last.lnum >= data.lnum) {
            return Err(Reject::Malformed { what: "order key" });
        }
        self.clock = self.clock.max(data.lnum);
        self.active[o] = true;
        let (origin, oseq) = (data.origin, data.oseq);
        self.keep(data);
        if self.closer[o] == self.me {
            self.stable[o] = oseq;
            self.push_stable(origin, oseq);
        } else {
            self.forward.push_back(Forward::Data(origin, oseq));
            self.forward_data += 1;
        }
        Ok(true)
    }

    fn keep(&mut self, data: Data) {
        let o = data.origin.at();
        self.received[o] = data.oseq;
        let before = self.order.insert(data.key(), data.oseq);
        assert!(before.is_none(), "two messages of one view share key {:?}", data.key());
        self.store[o].push_back(data);
    }

    /// Word from the predecessor that all members hold these.
    pub(crate) fn on_stable(&mut self, list: &[(Rank, OriginSeq)]) -> Result<(), Reject> {
        let known =
            |&(o, upto): &(Rank, OriginSeq)| o.at() < self.received.len() && upto <= self.received[o.at()];
        if !list.iter().all(known) {
            return Err(Reject::Malformed { what: "stable beyond what was received" });
        }
        for &(origin, upto) in list {
            let o = origin.at();
            if upto <= self.stable[o] {
                continue;
            }
            self.stable[o] = upto;
            if origin == self.me {
                self.active.fill(false);
                self.active[o] = true;
            }
            if self.closer[o] != self.successor {
                self.push_stable(origin, upto);
            }
        }
        Ok(())
    }

    /// Cumulative, so it merges into a STABLE at the end of the queue; it never passes DATA that came before it.
    fn push_stable(&mut self, origin: Rank, upto: OriginSeq) {
        if let Some(Forward::Stable(list)) = self.forward.back_mut() {
            match list.iter_mut().find(|(o, _)| *o == origin) {
                Some(entry) => entry.1 = upto,
                None => list.push((origin, upto)),
            }
        } else {
            self.forward.push_back(Forward::Stable(alloc::vec![(origin, upto)]));
        }
    }

    /// Queues a collection lap's frame behind what waits.
    pub(crate) fn push_collect(&mut self, collect: Collect) {
        self.forward.push_back(Forward::Collect(collect));
    }

    /// The next frame for the successor: forwarded ones in their order, own ones by fair share. The window is halved so
    /// often.
    pub(crate) fn next_frame(
        &mut self,
        waiting: &mut VecDeque<Own>,
        config: &Config,
        halvings: u8,
    ) -> Option<Frame> {
        let active = self.active.iter().filter(|a| **a).count();
        let turn = self.forward_data == 0 || self.forwarded_since_own + 1 >= active;
        if turn && self.may_number(waiting, active, config, halvings) {
            let own = waiting.pop_front().expect("something waits");
            self.forwarded_since_own = 0;
            return Some(Frame::Data(self.number(own)));
        }
        match self.forward.pop_front()? {
            Forward::Stable(list) => Some(Frame::Stable(list)),
            Forward::Collect(collect) => Some(Frame::Collect(collect)),
            Forward::Data(origin, oseq) => {
                self.forward_data -= 1;
                self.forwarded_since_own += 1;
                let at = oseq - self.delivered[origin.at()] - 1;
                let mut data = self.store[origin.at()][at as usize].clone();
                data.hops += 1;
                Some(Frame::Data(data))
            }
        }
    }

    /// The window: at least one message, at most `window` or the budget's share in bytes, whichever is more.
    fn may_number(&self, waiting: &VecDeque<Own>, active: usize, config: &Config, halvings: u8) -> bool {
        let Some(own) = waiting.front() else { return false };
        let share = (config.ring_budget / active.max(1) as u64) >> halvings;
        let window = (config.window >> halvings).max(1);
        (self.own.len() as u64) < window || self.own_bytes + cost(&own.body) <= share
    }

    /// Enqueue means placing on the link, and only then is a message numbered.
    fn number(&mut self, own: Own) -> Data {
        self.clock = self.clock.next();
        let oseq = self.received[self.me.at()] + 1;
        // The store holds how far each message had come when it was placed there; sending adds a link.
        let (body, digest) = (own.body.clone(), digest(&own.body));
        let stored = Data { origin: self.me, oseq, lnum: self.clock, hops: 0, body, digest };
        let data = Data { hops: 1, ..stored.clone() };
        self.keep(stored);
        self.own_bytes += cost(&own.body);
        self.own.push_back((oseq, own));
        data
    }

    /// Numbers own messages of a member that is alone: they are stable at once.
    pub(crate) fn number_alone(&mut self, waiting: &mut VecDeque<Own>) {
        assert!(self.is_alone(), "only a view of one has no link");
        while let Some(own) = waiting.pop_front() {
            let data = self.number(own);
            self.stable[self.me.at()] = data.oseq;
        }
    }

    /// The next message of the total order, if it is stable; with the member's own record if it is its own.
    pub(crate) fn next_delivery(&mut self) -> Option<(Data, Option<Own>)> {
        let (key, oseq) = self.order.first_key_value()?;
        if self.stable[key.origin.at()] < *oseq {
            return None;
        }
        Some(self.take_first())
    }

    /// The next message at or below `upto`, stable or not: what a flush delivers.
    pub(crate) fn next_flushed(&mut self, upto: &[OriginSeq]) -> Option<(Data, Option<Own>)> {
        while let Some((key, oseq)) = self.order.first_key_value() {
            if *oseq <= upto[key.origin.at()] {
                return Some(self.take_first());
            }
            self.order.pop_first();
        }
        None
    }

    fn take_first(&mut self) -> (Data, Option<Own>) {
        let (key, oseq) = self.order.pop_first().expect("the caller saw it");
        let o = key.origin.at();
        let data = self.store[o].pop_front().expect("what is in the order is in the store");
        assert_eq!((data.key(), data.oseq), (key, oseq), "store and order disagree");
        assert_eq!(oseq, self.delivered[o] + 1, "a gap in deliveries of an origin");
        assert!(key > self.last_key, "deliveries go by key");
        self.delivered[o] = oseq;
        self.last_key = key;
        let own = (key.origin == self.me).then(|| {
            let (own_seq, own) = self.own.pop_front().expect("own messages are remembered until delivered");
            assert_eq!(own_seq, oseq, "own messages are delivered in their order");
            self.own_bytes -= cost(&own.body);
            own
        });
        (data, own)
    }

    /// Own messages that were numbered and never delivered, oldest first.
    pub(crate) fn take_own(&mut self) -> impl DoubleEndedIterator<Item = Own> {
        core::mem::take(&mut self.own).into_iter().map(|(_, own)| own)
    }

    /// Requests of own messages that are numbered and not delivered; from now on nobody waits for them.
    pub(crate) fn forget_requests(&mut self) -> Vec<RequestId> {
        self.own.iter_mut().filter_map(|(_, own)| own.request.take()).collect()
    }

    /// Rebuilds the out-queue from what a successor says it has: data above it in key order, then STABLE; the
    /// caller adds open collections. Doubles are dropped by the receiver.
    pub(crate) fn resume(&mut self, received: &[OriginSeq], stable: &[OriginSeq]) -> Result<(), Reject> {
        let n = self.received.len();
        let others = (0..n).filter(|o| *o != self.successor.at());
        if received.len() != n || stable.len() != n || { others }.any(|o| received[o] > self.received[o]) {
            return Err(Reject::Malformed { what: "resume" });
        }
        let lacks =
            |key: &Key, oseq: OriginSeq| key.origin != self.successor && oseq > received[key.origin.at()];
        let again = self.order.iter().filter(|(key, oseq)| lacks(key, **oseq));
        self.forward = again.map(|(key, oseq)| Forward::Data(key.origin, *oseq)).collect();
        self.forward_data = self.forward.len();
        for (o, theirs) in stable.iter().enumerate() {
            if self.stable[o] > *theirs && self.closer[o] != self.successor {
                self.push_stable(Rank(o as u16), self.stable[o]);
            }
        }
        Ok(())
    }

    /// Bodies in `(above, upto]` that are still here, in key order.
    pub(crate) fn bodies(&self, above: &[OriginSeq], upto: &[OriginSeq]) -> Vec<Data> {
        let wanted =
            |key: &Key, oseq: OriginSeq| oseq > above[key.origin.at()] && oseq <= upto[key.origin.at()];
        let found = self.order.iter().filter(|(key, oseq)| wanted(key, **oseq));
        found.map(|(key, oseq)| self.stored(key.origin, *oseq).clone()).collect()
    }

    fn stored(&self, origin: Rank, oseq: OriginSeq) -> &Data {
        &self.store[origin.at()][(oseq - self.delivered[origin.at()] - 1) as usize]
    }

    /// Takes in bodies that another member sent during a flush; gaps and doubles are passed over.
    pub(crate) fn fill(&mut self, mut bodies: Vec<Data>) {
        bodies.sort_by_key(Data::key);
        for data in bodies {
            let o = data.origin.at();
            let next = o < self.received.len() && data.oseq == self.received[o] + 1;
            if next
                && data.key() > self.last_key
                && self.store[o].back().is_none_or(|last| last.lnum < data.lnum)
            {
                self.clock = self.clock.max(data.lnum);
                self.keep(data);
            }
        }
    }

    /// Whether every body up to `upto` is or was here.
    pub(crate) fn holds(&self, upto: &[OriginSeq]) -> bool {
        self.received.iter().zip(upto).all(|(have, need)| have >= need)
    }

    pub(crate) fn check_invariants(&self) {
        for o in 0..self.received.len() {
            assert!(self.stable[o] <= self.received[o], "stable beyond received");
            assert_eq!(
                self.delivered[o] + self.store[o].len() as u64,
                self.received[o],
                "the store has a hole"
            );
        }
        assert_eq!(self.order.len(), self.store.iter().map(VecDeque::len).sum::<usize>());
        let waiting = self.forward.iter().filter(|f| matches!(f, Forward::Data(..))).count();
        assert_eq!(waiting, self.forward_data);
        assert!(waiting <= self.order.len(), "what is forwarded is in the store");
    }
}

fn cost(body: &Bytes) -> u64 {
    64 + body.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Lineage, MemberId, ViewId};
    use crate::view::Label;

    /// How many of 100 messages are numbered before any is stable.
    fn numbered(halvings: u8) -> usize {
        let view = View {
            id: ViewId { epoch: Epoch(1), proposer: MemberId(1), round: 1 },
            proposer_name: "a".into(),
            lineage: Lineage(1),
            label: Label::Confirmed,
            members: alloc::vec![MemberId(1), MemberId(2)],
            ring: alloc::vec![Rank(0), Rank(1)],
        };
        let config = Config { ring_budget: 64 << 10, ..Config::default() };
        let body = Bytes::from_static(&[0; 8_000]);
        let own = Own { request: None, stamped: false, perhaps: false, of_view: false, body };
        let mut waiting = VecDeque::from(alloc::vec![own; 100]);
        let mut broadcast = Broadcast::new(&view, Rank(0));
        core::iter::from_fn(|| broadcast.next_frame(&mut waiting, &config, halvings)).count()
    }

    #[test]
    fn a_window_is_halved_as_often_as_a_joiner_needs_it() {
        assert_eq!([0, 1, 2, 3, 5, 8].map(numbered), [32, 16, 8, 4, 1, 1]);
    }
}
