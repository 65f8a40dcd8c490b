//! Client sessions: by them a request that is repeated takes effect once.
//!
//! A session is a name with a sequence number: the next one acts, an earlier one gets the answer that was kept, a later
//! one is refused. The state keeps a bounded number of them, and closes the one least recently used.

use super::{Applied, Change, State, Step, Submission, refused};
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
    pub(super) fn apply_submission(&mut self, submission: Submission, step: &mut Step) {
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
        if matches!(submission.change, Change::OpenSession) {
            step.applied = refused("invalid", "a session is not opened within another one");
            return;
        }
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
        self.sessions_by_use.remove(&session.used);
        session.used = used;
        self.sessions_by_use.insert(used, name.clone());
        self.sessions.insert(name, session);
        if self.sessions.len() > SESSIONS_MAX {
            let oldest = self.sessions_by_use.iter().next().map(|(used, name)| (*used, name.clone()));
            if let Some((used, name)) = oldest {
                self.close_session(name, used);
            }
        }
    }

    fn close_session(&mut self, name: String, used: HistoryIndex) {
        let last = self.sessions.get(&name).map_or(0, |session| session.last);
        self.sessions.remove(&name);
        self.sessions_by_use.remove(&used);
        self.sessions_closed = self.sessions_closed.max(used);
        let mut key = (name, 0);
        for seq in last.saturating_sub(ANSWERS_MAX) + 1..=last {
            key.1 = seq;
            self.answers.remove(&key);
        }
    }

    /// Sessions that the DVM opened after an index, with the entry that opened each.
    pub(crate) fn sessions_opened_after(&self, index: HistoryIndex) -> Vec<(String, HistoryIndex)> {
        let from = index.next();
        let used = self.sessions_by_use.range_from(&from);
        let opened = used.filter_map(|(_, name)| {
            let session = self.sessions.get(name).filter(|session| session.opened > index)?;
            name.starts_with(GIVEN).then(|| (name.clone(), session.opened))
        });
        let mut opened: Vec<_> = opened.collect();
        opened.drain(..opened.len().saturating_sub(ADOPTED_MAX));
        opened
    }

    /// Sessions of a branch that is taken in are open here from now on; what they did there did not happen here.
    /// `step`'s entry takes an index for each.
    pub(super) fn adopt_sessions(&mut self, sessions: &[(String, HistoryIndex)], step: &Step) {
        for (place, (name, opened)) in (0..).zip(sessions) {
            // One that was closed here must not begin again, or what it did here would be done twice.
            if *opened > self.sessions_closed && self.sessions.get(name).is_none() {
                let used = HistoryIndex(step.first.0 + place);
                let session = Session { used, ..Session::new(*opened) };
                self.keep_session(name.clone(), session, used);
            }
        }
    }
}
