//! stub
use crate::ids::*;
use crate::state::*;
use crate::view::View;
use crate::wire::Identity;
use crate::*;

use alloc::sync::Arc;
use alloc::vec::Vec;

/// One member of a DVM.
pub struct Member {}
/// Phase for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// j
    Joining,
    /// n
    Normal,
    /// f
    Flushing,
    /// b
    Blocked,
    /// e
    Excluded,
    /// l
    Left,
}
/// What this member knows of another, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who.
    pub id: MemberId,
    /// Milliseconds since it was heard; `None` for itself or never.
    pub last_heard_ms: Option<u64>,
    /// Whether this member suspects it.
    pub suspected: bool,
    /// Last index it said it had delivered.
    pub index: HistoryIndex,
}
#[allow(missing_docs, unused_variables)]
impl Member {
    /// The first kernel of a DVM, sole member of its first, confirmed view.
    pub fn found(identity: Identity, genesis: Genesis, seed: u64, now: Time) -> Self {
        loop {}
    }
    /// A kernel that joins through `contact`. `config` holds until the snapshot brings the DVM's.
    pub fn join(identity: Identity, contact: Identity, config: Config, seed: u64, now: Time) -> Self {
        loop {}
    }
    pub fn handle(&mut self, now: Time, input: Input) -> Result<(), Reject> {
        loop {}
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }
    pub fn next_deadline(&self) -> Option<Time> {
        None
    }
    pub fn id(&self) -> MemberId {
        loop {}
    }
    pub fn identity(&self) -> &Identity {
        loop {}
    }
    pub fn phase(&self) -> Phase {
        loop {}
    }
    /// The replicated state; `None` before the snapshot arrived.
    pub fn state(&self) -> Option<&State> {
        loop {}
    }
    /// The installed view; `None` while joining.
    pub fn view(&self) -> Option<&View> {
        loop {}
    }
    /// Whom the running view change, or the blocked member, waits for.
    pub fn waiting_for(&self) -> Vec<MemberId> {
        loop {}
    }
    pub fn members_status(&self, now: Time) -> Vec<MemberStatus> {
        loop {}
    }
    /// Kept entries, oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> + ExactSizeIterator {
        [].iter()
    }
    /// Kept events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        [].iter()
    }
    /// All history before this index is no longer kept.
    pub fn history_low(&self) -> HistoryIndex {
        loop {}
    }
    /// Members that have not contributed to an open transaction's collection, as far as known here.
    pub fn open_waiting_for(&self, t: TransactionId) -> Vec<MemberId> {
        loop {}
    }
    /// Checks the invariants that are too costly for every step of the daemon; tests and simulator call it after every input.
    /// # Panics
    /// On a violation.
    pub fn check_invariants(&self) {}
}
