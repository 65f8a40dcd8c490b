//! The tail of the history as clients read it: events and entries, numbered in the order this kernel tells them.

use super::documents::Place;
use dvm_core::Delivery;
use dvm_core::ids::{HistoryIndex, ViewId};
use dvm_core::state::{Content, Entry, Event};
use dvm_plugin_api::local::EventDoc;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Something subscribers are told.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// An event of the history.
    Event(Arc<Event>),
    /// What has no place in it.
    Note(Rc<EventDoc>),
}

/// Views kept, as many as the state keeps.
const ANCESTRY_MAX: usize = 1_024;

/// The tail.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// The DVM.
    dvm: u128,
    items: VecDeque<Item>,
    /// Number of the first item.
    first: u64,
    /// All events after this index are kept.
    low: HistoryIndex,
    entries: VecDeque<Arc<Entry>>,
    entry_bytes: u64,
    /// Views of this branch and the index of each one's entry.
    ancestry: VecDeque<(ViewId, HistoryIndex)>,
    /// Last index told.
    index: HistoryIndex,
    /// One more each time another history took this one's place.
    generation: u64,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// Number of the next item.
    next: u64,
    /// Only events after this index.
    after: HistoryIndex,
    generation: u64,
    /// The last event read.
    last: Option<Place>,
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Found {
    /// What comes next, at least one.
    Items(Vec<Item>),
    /// What it wanted is no longer kept; it goes on after this index.
    Overflow(HistoryIndex),
    /// The branch it read is no longer this kernel's; it goes on after this index.
    OtherBranch(HistoryIndex),
    /// It read another DVM, up to here, which had the name before; it goes on with all that is kept.
    OtherDvm(HistoryIndex),
    /// Nothing new.
    Nothing,
}

impl Mirror {
    /// Nothing yet of the DVM with this number.
    pub(crate) fn new(dvm: u128) -> Self {
        Self {
            dvm,
            items: VecDeque::new(),
            first: 0,
            low: HistoryIndex(0),
            entries: VecDeque::new(),
            entry_bytes: 0,
            ancestry: VecDeque::new(),
            index: HistoryIndex(0),
            generation: 0,
        }
    }

    /// An entry took effect.
    pub(crate) fn push(&mut self, delivery: &Delivery, entries_max: u64, bytes_max: u64) {
        let entry = &delivery.entry;
        if let Content::View(proposal) = &entry.content {
            self.ancestry.push_back((proposal.view.id, entry.index));
            if self.ancestry.len() > ANCESTRY_MAX {
                self.ancestry.pop_front();
            }
        }
        self.entry_bytes += size(entry);
        self.entries.push_back(entry.clone());
        while self.entries.len() as u64 > entries_max || self.entry_bytes > bytes_max {
            let Some(first) = self.entries.pop_front() else { break };
            self.entry_bytes -= size(&first);
        }
        self.items.extend(delivery.events.iter().map(|event| Item::Event(Arc::new(event.clone()))));
        while self.items.len() as u64 > entries_max {
            if let Some(Item::Event(event)) = self.items.pop_front() {
                self.low = event.index;
            }
            self.first += 1;
        }
        self.index = entry.index;
    }

    /// Tells something without a place in the history.
    pub(crate) fn note(&mut self, note: EventDoc) {
        self.items.push_back(Item::Note(Rc::new(note)));
    }

    /// Another history takes this one's place.
    pub(crate) fn reset(
        &mut self,
        index: HistoryIndex,
        ancestry: Vec<(ViewId, HistoryIndex)>,
        events: Vec<Arc<Event>>,
        entries: Vec<Arc<Entry>>,
    ) {
        self.first += self.items.len() as u64;
        self.low = events.first().map_or(index, |event| HistoryIndex(event.index.0 - 1));
        self.items = events.into_iter().map(Item::Event).collect();
        self.entry_bytes = entries.iter().map(|entry| size(entry)).sum();
        self.entries = entries.into();
        (self.ancestry, self.index) = (ancestry.into(), index);
        self.generation += 1;
    }

    /// Kept entries, oldest first.
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// How many entries are kept, and their bytes, about.
    pub(crate) fn kept(&self) -> (usize, u64) {
        (self.entries.len(), self.entry_bytes)
    }

    /// Last index told.
    pub(crate) fn index(&self) -> HistoryIndex {
        self.index
    }

    /// See [`Mirror::reset`].
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Entries in `(after, through]`, if all of them are kept.
    pub(crate) fn span(&self, after: HistoryIndex, through: HistoryIndex) -> Option<Vec<Arc<Entry>>> {
        let within = self.entries.iter().rev().take_while(|entry| entry.index > after);
        let mut span: Vec<_> = within.filter(|entry| entry.index <= through).cloned().collect();
        span.reverse();
        let whole = span.first().map_or(after == through, |first| first.first.0 == after.0 + 1);
        whole.then_some(span)
    }

    /// A reader of what comes next.
    pub(crate) fn read_now(&self) -> Reader {
        let next = self.first + self.items.len() as u64;
        Reader { next, after: self.index, generation: self.generation, last: None }
    }

    /// A reader of all that is kept.
    pub(crate) fn read_all(&self) -> Reader {
        Reader { next: self.first, after: HistoryIndex(0), generation: self.generation, last: None }
    }

    /// A reader of what comes after an index.
    pub(crate) fn read_after(&self, after: HistoryIndex) -> Reader {
        Reader { after, ..self.read_all() }
    }

    /// A reader that goes on after a place.
    pub(crate) fn read_from(&self, place: Place) -> Reader {
        // A generation that never is, so that the place's branch is looked at first.
        Reader { next: self.first, after: place.index, generation: u64::MAX, last: Some(place) }
    }

    /// What a reader finds, at most `max` items.
    pub(crate) fn read(&self, reader: &mut Reader, max: usize) -> Found {
        if reader.generation != self.generation {
            reader.generation = self.generation;
            reader.next = self.first;
            if let Some(last) = reader.last.take_if(|last| !self.has(*last)) {
                if last.dvm != self.dvm as u32 {
                    reader.after = HistoryIndex(0);
                    return Found::OtherDvm(last.index);
                }
                reader.after = self.index;
                return Found::OtherBranch(self.index);
            }
        }
        if reader.after < self.low && reader.last.is_none() && reader.after.0 > 0
            || reader.last.is_some_and(|last| last.index < self.low) && reader.next <= self.first
        {
            reader.after = self.low;
            reader.last = None;
            reader.next = self.first;
            return Found::Overflow(self.low);
        }
        reader.next = reader.next.max(self.first);
        let mut found = Vec::new();
        while found.len() < max {
            let Some(item) = self.items.get((reader.next - self.first) as usize) else { break };
            reader.next += 1;
            match item {
                Item::Event(event) if event.index <= reader.after => continue,
                Item::Event(event) => {
                    reader.after = event.index;
                    // At the end of its entry, for a cursor never stands inside one.
                    reader.last = Some(Place::new(self.dvm, event.view_id, event.index));
                }
                Item::Note(_) => {}
            }
            found.push(item.clone());
        }
        if found.is_empty() { Found::Nothing } else { Found::Items(found) }
    }

    /// The place of the entry that ends at an index of this branch, if its view is still known.
    pub(crate) fn place(&self, index: HistoryIndex) -> Option<Place> {
        let (view, _) = *self.ancestry.iter().rev().find(|(_, at)| *at <= index)?;
        Some(Place::new(self.dvm, view, index))
    }

    /// Whether a place lies on this branch, as far as is still known; one that lies ahead may.
    pub(crate) fn has(&self, place: Place) -> bool {
        if place.dvm != self.dvm as u32 {
            return false;
        }
        let Some((oldest, _)) = self.ancestry.front() else { return true };
        let newest = self.ancestry.back().map_or(place.view.epoch, |(view, _)| view.epoch);
        if place.view.epoch < oldest.epoch {
            return true;
        }
        if place.view.epoch > newest {
            // On this branch that view would be here before its entries.
            return self.index < place.index;
        }
        let Some(at) = self.ancestry.iter().position(|(view, _)| *view == place.view) else { return false };
        self.ancestry.get(at + 1).is_none_or(|(_, next)| place.index <= *next)
    }
}

fn size(entry: &Entry) -> u64 {
    96 + match &entry.content {
        Content::Change { body, .. } => body.len() as u64,
        Content::View(proposal) => 256 * proposal.view.members.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_core::ids::{Epoch, MemberId};

    fn view(epoch: u64, proposer: u128) -> ViewId {
        ViewId { epoch: Epoch(epoch), proposer: MemberId(proposer), round: 1 }
    }

    #[test]
    fn a_place_of_a_lost_branch_is_told_from_one_that_lies_ahead() {
        let mut mirror = Mirror::new(5);
        let ancestry = vec![(view(1, 1), HistoryIndex(1)), (view(2, 1), HistoryIndex(10))];
        mirror.reset(HistoryIndex(60), ancestry, Vec::new(), Vec::new());
        let has =
            |epoch, proposer, index| mirror.has(Place::new(5, view(epoch, proposer), HistoryIndex(index)));
        assert!(has(1, 1, 10) && has(2, 1, 11) && has(2, 1, 60), "on this branch");
        assert!(has(2, 1, 61) && has(3, 1, 61), "ahead");
        assert!(!has(1, 1, 11) && !has(2, 9, 11), "behind a fork, in another view");
        assert!(!has(3, 9, 50), "a later view, whose entry would be here by now");
        let place = |view, index| Some(Place::new(5, view, HistoryIndex(index)));
        assert_eq!(mirror.place(HistoryIndex(10)), place(view(2, 1), 10));
        assert_eq!(mirror.place(HistoryIndex(9)), place(view(1, 1), 9));
    }

    #[test]
    fn a_reader_of_another_dvm_begins_anew_and_one_of_a_lost_branch_misses_nothing_to_come() {
        let mut mirror = Mirror::new(5);
        mirror.reset(HistoryIndex(10), vec![(view(1, 1), HistoryIndex(1))], Vec::new(), Vec::new());
        let found = |dvm, proposer, index| {
            let mut reader = mirror.read_from(Place::new(dvm, view(1, proposer), HistoryIndex(index)));
            let found = match mirror.read(&mut reader, 8) {
                Found::OtherDvm(last) => ("another DVM", last.0),
                Found::OtherBranch(resume) => ("another branch", resume.0),
                Found::Nothing => ("nothing", 0),
                found => panic!("{found:?}"),
            };
            (found, reader.after.0)
        };
        assert_eq!(found(6, 7, 24), (("another DVM", 24), 0));
        assert_eq!(found(5, 7, 24), (("another branch", 10), 10), "what comes is from 11 on");
        assert_eq!(found(5, 1, 24), (("nothing", 0), 24), "ahead");
    }
}
