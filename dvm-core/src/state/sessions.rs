//! Client sessions: by them a request that is repeated takes effect once.
//!
//! A session is a name with a sequence number: the next one acts, an earlier one gets the answer that was kept, a later
//! one is refused. The state keeps a bounded number of them, and closes the one least recently used.

use super::{Applied, State, Step, Submission, refused};
use crate::ids::HistoryIndex;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Sessions kept.
const SESSIONS_MAX: usize = 64 << 10;
/// Answers kept per session.
const ANSWERS_MAX: u64 = 32;
/// Sessions that go with a branch that is taken in, the latest used.
const ADOPTED_MAX: usize = 256;
/// How a name begins that the DVM gave out, and no client can choose.
const GIVEN: char = '#';

/// A client session: what it did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The last sequence number that took effect; 0 before any.
    pub last: u64,
    /// The entry that opened it.
    pub opened: HistoryIndex,
    /// The entry that used it last.
    pub used: HistoryIndex,
}

impl Session {
    fn new(opened: HistoryIndex) -> Self {
        Self { last: 0, opened, used: opened }
    }
}

impl State {
    pub(super) fn apply_submission<P>(&mut self, submission: Submission<P>, step: &mut Step) {
        let Some(stamp) = submission.stamp else {
            self.apply_change(submission.change, step);
            return;
        };
        let mut session = match self.sessions.get(&stamp.session).copied() {
            Some(session) => session,
            None if stamp.seq == 1 && !stamp.session.starts_with(GIVEN) => Session::new(step.first),
            None => {
                step.applied = refused("sequence", "the session is not known here; open a new one");
                return;
            }
        };
        if stamp.seq <= session.last {
            step.applied = match self.answers.get(&(stamp.session, stamp.seq)) {
                Some((index, first)) => Applied::Repeated { index: *index, first: Box::new(first.clone()) },
                None => refused("sequence", "the first answer is no longer kept"),
            };
            return;
        }
        if stamp.seq != session.last + 1 {
            step.applied = refused("sequence", "an earlier request of the session has not arrived");
            return;
        }
        self.apply_change(submission.change, step);
        session.last = stamp.seq;
        // As `apply` numbers it: one index per event, and receipts name the last.
        let index = HistoryIndex(self.index.0 + (step.kinds.len() as u64).max(1));
        self.answers.insert((stamp.session.clone(), stamp.seq), (index, step.applied.clone()));
        if stamp.seq > ANSWERS_MAX {
            self.answers.remove(&(stamp.session.clone(), stamp.seq - ANSWERS_MAX));
        }
        self.keep_session(stamp.session, session, step.first);
    }

    /// Opens a session under a name that no other can have: the message that asked for it, which is the only one of its
    /// number in its view on every branch.
    pub(super) fn open_session(&mut self, step: &mut Step) {
        let place = postcard::to_allocvec(&(self.view.id, step.message)).expect("plain data");
        let name = alloc::format!("{GIVEN}{:.32}", blake3::hash(&place).to_hex());
        self.keep_session(name.clone(), Session::new(step.first), step.first);
        step.applied = Applied::Session(name);
    }

    fn keep_session(&mut self, name: String, mut session: Session, used: HistoryIndex) {
        self.sessions_by_use.remove(&(session.used, name.clone()));
        session.used = used;
        self.sessions_by_use.insert((used, name.clone()), ());
        self.sessions.insert(name, session);
        if self.sessions.len() > SESSIONS_MAX {
            let oldest = self.sessions_by_use.iter().next().map(|(key, ())| key.clone());
            oldest.into_iter().for_each(|key| self.close_session(key));
        }
    }

    fn close_session(&mut self, key: (HistoryIndex, String)) {
        self.sessions_by_use.remove(&key);
        let (used, name) = key;
        let last = self.sessions.get(&name).map_or(0, |session| session.last);
        self.sessions.remove(&name);
        self.sessions_closed = self.sessions_closed.max(used);
        let mut key = (name, 0);
        for seq in last.saturating_sub(ANSWERS_MAX) + 1..=last {
            key.1 = seq;
            self.answers.remove(&key);
        }
    }

    /// Sessions that the DVM opened after an index, with the entry that opened each.
    pub(crate) fn sessions_opened_after(&self, index: HistoryIndex) -> Vec<(String, HistoryIndex)> {
        let from = (index.next(), String::new());
        let used = self.sessions_by_use.range_from(&from);
        let opened = used.filter_map(|((_, name), ())| {
            let session = self.sessions.get(name).filter(|session| session.opened > index)?;
            name.starts_with(GIVEN).then(|| (name.clone(), session.opened))
        });
        let mut opened: Vec<_> = opened.collect();
        opened.drain(..opened.len().saturating_sub(ADOPTED_MAX));
        opened
    }

    /// Sessions of a branch that is taken in are open here from now on; what they did there did not happen here.
    pub(super) fn adopt_sessions(&mut self, sessions: Vec<(String, HistoryIndex)>, used: HistoryIndex) {
        for (name, opened) in sessions {
            // One that was closed here must not begin again, or what it did here would be done twice.
            if opened > self.sessions_closed && self.sessions.get(&name).is_none() {
                self.keep_session(name, Session { used, ..Session::new(opened) }, used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemberId;
    use crate::state::{Change, Stamp, Step};
    use bytes::Bytes;

    /// A request that a session opens another one with.
    fn open(state: &mut State, session: &str, seq: u64) -> Applied {
        let index = state.index.next();
        state.index = index;
        let message = Some((MemberId(1), index.0));
        let mut step = Step {
            first: index,
            message,
            kinds: Vec::new(),
            placed: Vec::new(),
            applied: Applied::Done,
            ended: None,
            time_ms: 0,
        };
        let stamp = Some(Stamp { session: session.into(), seq });
        let submission = Submission::<Bytes> { stamp, time_ms: 0, change: Change::OpenSession };
        state.apply_submission(submission, &mut step);
        step.applied
    }

    #[test]
    fn every_session_is_in_the_order_of_use_once() {
        let mut state = State::example();
        let Applied::Session(first) = open(&mut state, "s", 1) else { panic!("it opens one") };
        let Applied::Session(second) = open(&mut state, &first, 1) else { panic!("it opens one") };
        state.adopt_sessions(
            alloc::vec![("#x".into(), HistoryIndex(9)), ("#y".into(), HistoryIndex(9))],
            HistoryIndex(9),
        );
        let by_use: Vec<_> = state.sessions_by_use.iter().map(|((_, name), ())| name.clone()).collect();
        assert_eq!(by_use.len(), state.sessions.len());
        assert!(
            ["s", &first, &second, "#x", "#y"].iter().all(|name| by_use.iter().any(|known| known == name))
        );
    }
}
