//! What one instance is to be told, in order: where it starts from, what it was told since, and what it is not told yet.
//!
//! From a base (a start or a snapshot, with the configuration of that time) and the items since, its state can be made
//! again. A new snapshot from time to time becomes the base and keeps the rest short. A plug-in without state keeps
//! only what it has not answered.

use bytes::Bytes;
use std::collections::VecDeque;

/// Items after which the base moves.
const REBASE_ITEMS: usize = 4_096;
/// Bytes of items after which the base moves.
const REBASE_BYTES: usize = 8 << 20;
/// Most items that an instance may not have answered.
pub(super) const LAG_MAX: usize = 65_536;
/// Most bytes of items kept.
pub(super) const BYTES_MAX: usize = 128 << 20;
/// Items sent before earlier ones are answered.
const WINDOW: usize = 4_096;

/// Something an instance is told at one place of the history.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its index.
    pub(super) index: u64,
    /// What it is.
    pub(super) kind: Kind,
    /// The frame to its child.
    pub(super) frame: Bytes,
}

/// What an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command; it has a reply.
    Command,
    /// An event.
    Event,
    /// New members or ranks.
    Place,
    /// A new configuration: this.
    Configure(Bytes),
}

/// Where an instance's state comes from.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// Everything up to here is in it.
    pub(super) index: u64,
    /// The configuration to start with.
    pub(super) config: Bytes,
    /// The state.
    pub(super) state: Start,
}

/// The state an instance begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// What `start` makes.
    Fresh,
    /// A snapshot.
    From(Bytes),
    /// Only another member can tell.
    Elsewhere,
}

/// The items of one instance.
#[derive(Debug)]
pub(super) struct History {
    base: Base,
    stateless: bool,
    items: VecDeque<Item>,
    bytes: usize,
    /// How many items went before the first one here: positions count from the instance's beginning.
    dropped: u64,
    /// Of `items`: sent to the present child, and answered by it.
    sent: usize,
    done: usize,
    /// Up to this index items are sent one by one: one of them ended an earlier child.
    careful: u64,
}

impl History {
    pub(super) fn new(base: Base, stateless: bool) -> Self {
        let (items, bytes, dropped, sent, done, careful) = (VecDeque::new(), 0, 0, 0, 0, 0);
        Self { base, stateless, items, bytes, dropped, sent, done, careful }
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// The last index it knows of.
    pub(super) fn last(&self) -> u64 {
        self.items.back().map_or(self.base.index, |item| item.index)
    }

    /// How many items there are since the base.
    pub(super) fn kept(&self) -> usize {
        self.items.len()
    }

    /// Adds an item, unless the base has it: another member's state may be ahead of what this one was told. False if
    /// there are too many.
    pub(super) fn push(&mut self, item: Item) -> bool {
        if item.index <= self.base.index {
            return true;
        }
        self.bytes += item.frame.len();
        self.items.push_back(item);
        self.items.len() - self.done <= LAG_MAX && self.bytes <= BYTES_MAX
    }

    /// Position behind the last item.
    pub(super) fn end(&self) -> u64 {
        self.dropped + self.items.len() as u64
    }

    /// Position behind the last item sent.
    pub(super) fn position(&self) -> u64 {
        self.dropped + self.sent as u64
    }

    /// The next frame to send, if it may be sent now.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let item = self.items.get(self.sent)?;
        let window = if item.index <= self.careful || self.is_careful() { 1 } else { WINDOW };
        if self.sent - self.done >= window {
            return None;
        }
        self.sent += 1;
        Some(item.frame.clone())
    }

    /// The first item that was sent and has no answer.
    pub(super) fn waiting(&self) -> Option<&Item> {
        self.items.get(self.done).filter(|_| self.done < self.sent)
    }

    /// Items that have no answer.
    pub(super) fn unanswered(&self) -> u64 {
        (self.items.len() - self.done) as u64
    }

    /// The only one, if there is one alone.
    pub(super) fn suspect(&self) -> Option<u64> {
        (self.sent - self.done == 1).then(|| self.items[self.done].index)
    }

    /// Whether an item is sent alone because one of its time ended a child.
    pub(super) fn is_careful(&self) -> bool {
        self.waiting().is_some_and(|item| item.index <= self.careful)
    }

    /// The first waiting item is answered.
    pub(super) fn answered(&mut self) {
        assert!(self.done < self.sent, "an answer belongs to an item that was sent");
        self.done += 1;
        if self.stateless {
            self.drop_front(self.done);
        }
    }

    /// The child is gone: everything since the base is to be sent again, what it had in hand one by one.
    pub(super) fn rewind(&mut self) {
        if let Some(last) = self.sent.checked_sub(1).and_then(|at| self.items.get(at)) {
            self.careful = self.careful.max(last.index);
        }
        (self.sent, self.done) = (0, 0);
    }

    /// The child is gone, and nothing was wrong with it: everything since the base is to be sent again.
    pub(super) fn start_over(&mut self) {
        (self.sent, self.done, self.careful) = (0, 0, 0);
    }

    /// Leaves out what ended a child.
    pub(super) fn remove(&mut self, index: u64) {
        assert_eq!(self.sent, 0, "nothing is on its way");
        if let Some(at) = self.items.iter().position(|item| item.index == index) {
            let item = self.items.remove(at).expect("found just now");
            self.bytes -= item.frame.len();
        }
    }

    /// Whether everything before the position is answered.
    pub(super) fn is_done_to(&self, position: u64) -> bool {
        self.dropped + self.done as u64 >= position
    }

    /// Whether a snapshot should become the base.
    pub(super) fn wants_base(&self) -> bool {
        let state = match &self.base.state {
            Start::From(state) => state.len(),
            Start::Fresh | Start::Elsewhere => 0,
        };
        // A large state is not worth copying for a few small items.
        let many = self.sent >= REBASE_ITEMS.max(state >> 10) || self.bytes >= REBASE_BYTES.max(state / 2);
        many && self.sent > 0 && !self.stateless
    }

    /// A snapshot taken at `position` is the base from now on.
    pub(super) fn rebase_at(&mut self, position: u64, state: Bytes) {
        let count = position.saturating_sub(self.dropped) as usize;
        let index = match count.checked_sub(1).and_then(|at| self.items.get(at)) {
            Some(item) => item.index,
            None => self.base.index,
        };
        self.drop_front(count.min(self.done));
        (self.base.index, self.base.state) = (index, Start::From(state));
    }

    /// Another member's state is the base; nothing was sent of what follows it.
    pub(super) fn rebase(&mut self, base: Base) {
        self.rewind();
        let count = self.items.iter().take_while(|item| item.index <= base.index).count();
        self.drop_front(count);
        self.careful = 0;
        self.base = base;
    }

    /// Forgets everything up to `index`: only another member's state can be the base.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.drop_front(self.items.len());
        (self.base.index, self.base.state) = (index, Start::Elsewhere);
    }

    fn drop_front(&mut self, count: usize) {
        for item in self.items.drain(..count) {
            self.bytes -= item.frame.len();
            if let Kind::Configure(config) = item.kind {
                self.base.config = config;
            }
        }
        self.dropped += count as u64;
        self.sent = self.sent.saturating_sub(count);
        self.done = self.done.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(items: u64) -> History {
        let base = Base { index: 10, config: Bytes::from_static(b"old"), state: Start::Fresh };
        let mut history = History::new(base, false);
        for index in 11..11 + items {
            assert!(history.push(item(index)));
        }
        history
    }

    fn item(index: u64) -> Item {
        Item { index, kind: Kind::Command, frame: index.to_string().into() }
    }

    fn all(history: &mut History) -> Vec<Bytes> {
        std::iter::from_fn(|| history.next()).collect()
    }

    #[test]
    fn after_a_failure_everything_since_the_base_goes_again_one_by_one_to_where_it_was() {
        let mut history = history(4);
        assert_eq!(all(&mut history).len(), 4);
        history.answered();
        history.rewind();
        assert!(history.push(item(15)));
        for index in 11..=14 {
            assert_eq!(all(&mut history), [index.to_string()]);
            assert_eq!((history.suspect(), history.is_careful()), (Some(index), true));
            history.answered();
        }
        assert_eq!(all(&mut history), ["15"]);
        assert!(!history.is_careful());
    }

    #[test]
    fn what_ended_a_child_is_left_out() {
        let mut history = history(3);
        all(&mut history);
        history.rewind();
        history.remove(12);
        let mut sent = Vec::new();
        while let Some(frame) = history.next() {
            sent.push(frame);
            history.answered();
        }
        assert_eq!(sent, ["11", "13"]);
    }

    #[test]
    fn a_base_has_the_configuration_of_its_time() {
        let mut history = history(1);
        let kind = Kind::Configure(Bytes::from_static(b"new"));
        assert!(history.push(Item { kind, ..item(12) }));
        assert!(history.push(item(13)));
        assert_eq!(all(&mut history).len(), 3);
        let position = history.position() - 1;
        (0..3).for_each(|_| history.answered());
        history.rebase_at(position, Bytes::from_static(b"state"));
        assert_eq!((history.base().index, &history.base().config[..]), (12, &b"new"[..]));
        history.rewind();
        assert_eq!(all(&mut history), ["13"]);
    }

    #[test]
    fn anothers_state_replaces_all_that_is_in_it() {
        let mut history = history(5);
        all(&mut history);
        let state = Start::From(Bytes::from_static(b"state"));
        history.rebase(Base { index: 13, config: Bytes::new(), state });
        assert_eq!(all(&mut history), ["14", "15"], "and nothing is suspected any more");
        assert!(history.is_done_to(3) && !history.is_done_to(4));
    }

    #[test]
    fn what_a_state_from_ahead_has_in_it_is_not_told_again() {
        let mut history = history(2);
        let state = Start::From(Bytes::from_static(b"state"));
        history.rebase(Base { index: 14, config: Bytes::new(), state });
        for index in 13..=16 {
            assert!(history.push(item(index)));
        }
        assert_eq!(all(&mut history), ["15", "16"]);
    }

    #[test]
    fn an_instance_that_does_not_keep_up_is_noticed() {
        let mut history = history(LAG_MAX as u64);
        assert!(!history.push(item(1 << 20)));
        history.skip_to(1 << 20);
        assert_eq!((history.last(), &history.base().state), (1 << 20, &Start::Elsewhere));
    }
}
