//! What a member holds of the history: the state, and a bounded tail of entries and events that it serves to readers
//! and joiners.

use crate::ids::{HistoryIndex, Time};
use crate::io::{Delivery, Snapshot};
use crate::state::{Content, Entry, Event, State};
use crate::view::Label;
use crate::wire::Key;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Entries of the trail that a snapshot carries.
const TRAIL_MAX: usize = 4_096;

/// The state and the kept tail.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) state: State,
    entries: VecDeque<Arc<Entry>>,
    /// Sum of what `entries` weigh.
    bytes: u64,
    events: VecDeque<Arc<Event>>,
    trail: VecDeque<(HistoryIndex, u64)>,
    /// Entries at or below it are not kept.
    low: HistoryIndex,
}

impl Record {
    pub(crate) fn founded(state: State) -> Self {
        let founding = Arc::new(state.founding_event(0));
        let mut record = Self::at(state);
        record.events.push_back(founding);
        record
    }

    pub(crate) fn of_snapshot(snapshot: Snapshot) -> Self {
        let mut record = Self::at(snapshot.state);
        record.events = snapshot.events.into();
        record.trail = snapshot.trail.into();
        record
    }

    fn at(state: State) -> Self {
        let low = state.index;
        let trail = [(state.index, short(&state.history_hash))].into();
        Self { state, entries: VecDeque::new(), bytes: 0, events: VecDeque::new(), trail, low }
    }

    /// Dates the founding, which happened before the wall clock was known.
    pub(crate) fn date_founding(&mut self, wall_ms: u64) {
        if let Some(first) = self.events.front_mut().filter(|event| event.time_ms == 0) {
            Arc::make_mut(first).time_ms = wall_ms;
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state.clone(),
            events: self.events.iter().cloned().collect(),
            trail: self.trail.iter().copied().collect(),
        }
    }

    /// Applies the next entry.
    pub(crate) fn apply(&mut self, key: Key, label: Label, content: Content) -> Box<Delivery> {
        let effect = self.state.apply(key, label, content);
        self.keep(effect)
    }

    /// Applies an entry that another member delivered.
    pub(crate) fn apply_entry(&mut self, entry: &Entry) -> Result<Box<Delivery>, &'static str> {
        let effect = self.state.apply_entry(entry)?;
        Ok(self.keep(effect))
    }

    fn keep(&mut self, effect: crate::state::Effect) -> Box<Delivery> {
        let entry = Arc::new(effect.entry);
        self.bytes += weight(&entry);
        self.entries.push_back(entry.clone());
        self.trail.push_back((entry.index, short(&self.state.history_hash)));
        self.events.extend(effect.events.iter().cloned().map(Arc::new));
        let config = &self.state.config;
        while self.entries.len() as u64 > config.history_entries || self.bytes > config.history_bytes {
            let gone = self.entries.pop_front().expect("more than the limit");
            self.bytes -= weight(&gone);
            self.low = gone.index;
        }
        while self.events.len() as u64 > config.history_entries {
            self.events.pop_front();
        }
        while self.trail.len() > TRAIL_MAX {
            self.trail.pop_front();
        }
        let (events, applied, placed) = (effect.events, effect.applied, effect.placed);
        Box::new(Delivery { entry, events, applied, ended: effect.ended.map(Box::new), placed })
    }

    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> + ExactSizeIterator {
        self.entries.iter()
    }

    pub(crate) fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.events.iter()
    }

    pub(crate) fn low(&self) -> HistoryIndex {
        self.low
    }

    /// Entries after `index`, oldest first; `None` if some are no longer kept, or `index` lies ahead.
    pub(crate) fn after(&self, index: HistoryIndex) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        if index < self.low || index > self.state.index {
            return None;
        }
        let from = self.entries.partition_point(|entry| entry.index <= index);
        Some(self.entries.range(from..))
    }

    /// First bytes of the chain hash at an index, 0 where no entry of this history ends; nothing where that is not known.
    pub(crate) fn hash_at(&self, index: HistoryIndex) -> Option<u64> {
        let at = self.trail.partition_point(|(at, _)| *at < index);
        let known = at > 0 || self.trail.front().is_some_and(|(first, _)| *first == index);
        known.then(|| self.trail.get(at).filter(|(at, _)| *at == index).map_or(0, |(_, hash)| *hash))
    }

    /// Whether entries that follow `index` in another history may follow this one, as far as that one knows its hash.
    pub(crate) fn agrees(&self, index: HistoryIndex, hash: Option<u64>) -> bool {
        index != self.state.index || hash.is_none_or(|hash| hash == short(&self.state.history_hash))
    }

    /// The last index that the other history's trail shares with this one, and whether that is sure.
    pub(crate) fn fork(&self, other: &Record) -> (HistoryIndex, bool) {
        let mine = |index: &HistoryIndex| {
            let at = self.trail.binary_search_by_key(index, |(index, _)| *index).ok()?;
            Some(self.trail[at].1)
        };
        let shared = other.trail.iter().rev().find(|(index, hash)| mine(index) == Some(*hash));
        match shared {
            Some((index, _)) => (*index, *index >= self.low),
            None => (self.low, false),
        }
    }
}

fn weight(entry: &Entry) -> u64 {
    256 + match &entry.content {
        Content::Change { body, .. } => body.len() as u64,
        Content::View(proposal) => 64 * proposal.view.members.len() as u64,
    }
}

fn short(hash: &[u8; 32]) -> u64 {
    u64::from_le_bytes(hash[..8].try_into().expect("eight bytes"))
}

/// A part of a tail, bounded in bytes.
pub(crate) fn part<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0;
    let within = entries.take_while(|entry| {
        bytes += weight(entry);
        bytes <= bytes_max || bytes == weight(entry)
    });
    within.map(|entry| (**entry).clone()).collect()
}

/// How late this member's own timers fire: after Lifeguard (Dadgar et al., 2018), whoever is slow accuses nobody.
#[derive(Debug, Default)]
pub(crate) struct Lateness {
    late_ms: u64,
    noted: Time,
}

impl Lateness {
    /// Notes that something due at `due` happens at `now`; whether that is so late that nothing can be concluded from
    /// silence.
    pub(crate) fn note(&mut self, due: Option<Time>, now: Time, silence_ms: u64) -> bool {
        let late_ms = due.map_or(0, |due| now.ms_since(due));
        if now.ms_since(self.noted) > 10 * silence_ms {
            self.late_ms = 0;
        }
        if late_ms > self.late_ms {
            (self.late_ms, self.noted) = (late_ms, now);
        }
        late_ms > silence_ms / 4
    }

    /// By how much time-outs are widened, milliseconds.
    pub(crate) fn widen_ms(&self, silence_ms: u64) -> u64 {
        self.late_ms.min(3 * silence_ms)
    }

    pub(crate) fn late_ms(&self) -> u32 {
        u32::try_from(self.late_ms).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cx::encode;
    use crate::ids::{Epoch, Lamport, MemberId, Rank, ViewId};
    use crate::state::{Change, Submission};
    use crate::view::View;
    use crate::wire::Proposal;

    fn record() -> Record {
        Record::founded(State::example())
    }

    /// Applies a change that nobody else's history has at the same place.
    fn go_on(record: &mut Record, lnum: u64, time_ms: u64) {
        let submission = Submission { stamp: None, time_ms, change: Change::Noop };
        let (origin, oseq) = (MemberId(1), lnum);
        let content = Content::Change { origin, oseq, body: encode(&submission), digest: None };
        let key = Key { lnum: Lamport(lnum), origin: Rank(0) };
        let _ = record.apply(key, Label::Confirmed, content);
    }

    fn view_after(record: &Record, round: u64) -> Content {
        let parent = record.state.view.clone();
        let id = ViewId { epoch: Epoch(parent.id.epoch.0 + 1), proposer: MemberId(1), round };
        let view = View { id, ..parent.clone() };
        let (joiners, departures) = (Vec::new(), Vec::new());
        let (upto, delivered) = (alloc::vec![0], record.state.index);
        let time_ms = 0;
        Content::View(Box::new(Proposal {
            view,
            parent: parent.id,
            joiners,
            departures,
            upto,
            delivered,
            time_ms,
        }))
    }

    #[test]
    fn entries_of_another_branch_with_the_same_indices_are_told_by_the_hash() {
        let (mut mine, mut same, mut other) = (record(), record(), record());
        go_on(&mut mine, 1, 1);
        go_on(&mut same, 1, 1);
        go_on(&mut other, 1, 2);
        let at = mine.state.index;
        assert_eq!((at, at), (same.state.index, other.state.index));
        go_on(&mut same, 2, 1);
        go_on(&mut other, 2, 1);
        assert!(mine.agrees(at, same.hash_at(at)) && !mine.agrees(at, other.hash_at(at)));
        // An index inside an entry, or one that is no longer known, or not asked for now.
        assert_eq!(same.hash_at(HistoryIndex(99)), Some(0));
        assert_eq!(same.hash_at(HistoryIndex(0)), None);
        assert!(mine.agrees(at, None) && mine.agrees(HistoryIndex(1), Some(0)));
    }

    #[test]
    fn a_session_may_be_opened_by_whoever_an_entry_names() {
        // An entry that another member tells may be of a branch whose members this one does not know.
        let submission = Submission { stamp: None, time_ms: 0, change: Change::OpenSession };
        let (origin, oseq) = (MemberId(99), 1);
        let content = Content::Change { origin, oseq, body: encode(&submission), digest: None };
        let key = Key { lnum: Lamport(1), origin: Rank(3) };
        let applied = record().apply(key, Label::Confirmed, content).applied;
        assert!(matches!(applied, crate::state::Applied::Session(name) if name.len() == 33));
    }

    #[test]
    fn a_view_follows_its_parent_only() {
        let (mut mine, mut other) = (record(), record());
        for (record, round) in [(&mut mine, 1), (&mut other, 2)] {
            let content = view_after(record, round);
            let _ = record.apply(Key::default(), Label::Confirmed, content);
        }
        let content = view_after(&other, 1);
        let entry = other.apply(Key::default(), Label::Confirmed, content).entry;
        assert_eq!(entry.first, mine.state.index.next(), "the indices fit");
        let before = mine.state.clone();
        assert!(mine.apply_entry(&entry).is_err());
        assert_eq!(mine.state, before);
    }
}
