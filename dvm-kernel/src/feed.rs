//! From the ring's thread to the other one: what happened, in history order.
//!
//! The ring never waits for its readers. They have a long queue; if it is full, its entries give way to one copy of the
//! state, from which readers begin anew. While nobody listens the other thread is not even woken for each entry.

use dvm_core::ids::{Fence, HistoryIndex, MemberId, Name, Time};
use dvm_core::state::{Entry, Event, State, Transaction};
use dvm_core::{Delivery, Phase, Snapshot, Standing};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Entries that may wait.
const KEPT: usize = 64 << 10;

/// Entries that may wait without waking a thread that nobody listens to.
const LAZY: usize = 512;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Told {
    /// An entry took effect.
    Delivered(Box<Delivery>),
    /// What was told before is of the past: this is the state that later entries follow.
    Restored(Box<Restored>),
    /// The member's standing changed.
    Standing(Standing),
    /// The member has come to suspect another.
    Suspected(MemberId),
    /// This member's instance of a plug-in was promoted.
    Primary {
        /// Of which plug-in.
        plugin: Name,
        /// Its token.
        fence: Fence,
        /// It may not act before.
        from: Time,
    },
    /// Primaries of this member may act until then.
    Lease {
        /// Exclusive.
        until: Time,
    },
    /// A transaction is to be executed.
    Execute {
        /// It.
        transaction: Box<Transaction>,
        /// A load: this member is to start an instance.
        placed: bool,
        /// Time for it, milliseconds.
        limit_ms: u64,
    },
    /// A state copy is to be sent.
    Snapshot {
        /// To whom.
        to: MemberId,
        /// It.
        snapshot: Box<Snapshot>,
    },
    /// A branch was lost.
    Orphans {
        /// Last index that both branches share.
        fork: HistoryIndex,
        /// What only the lost branch had.
        entries: Vec<Arc<Entry>>,
        /// Whether a part of it was no longer kept.
        truncated: bool,
    },
}

/// A state with the tails that go with it.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The incarnation.
    pub(crate) me: MemberId,
    /// The state.
    pub(crate) state: State,
    /// Kept events, oldest first.
    pub(crate) events: Vec<Arc<Event>>,
    /// Kept entries, oldest first.
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// The queue, shared by both threads.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    queue: Mutex<VecDeque<Told>>,
    wake: Notify,
    /// Readers that want each entry at once.
    eager: AtomicUsize,
    /// The member's phase, as a place in [`PHASES`].
    phase: AtomicU8,
}

/// All phases; a kernel begins with the first.
const PHASES: [Phase; 6] =
    [Phase::Joining, Phase::Normal, Phase::Flushing, Phase::Blocked, Phase::Excluded, Phase::Left];

impl Feed {
    /// Adds what happened. False: entries were dropped, and a [`Told::Restored`] must follow.
    pub(crate) fn push(&self, batch: &mut Vec<Told>) -> bool {
        if batch.is_empty() {
            return true;
        }
        let mut urgent = self.eager.load(Ordering::Relaxed) > 0;
        urgent |= batch.iter().any(|told| !matches!(told, Told::Delivered(_)));
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(batch.drain(..));
        let whole = queue.len() <= KEPT;
        if !whole {
            queue.retain(|told| !matches!(told, Told::Delivered(_) | Told::Restored(_)));
        }
        let woken = urgent || !whole || queue.len() >= LAZY;
        drop(queue);
        if woken {
            self.wake.notify_one();
        }
        whole
    }

    /// Takes all that waits.
    pub(crate) fn take(&self) -> VecDeque<Told> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How much waits.
    pub(crate) fn depth(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until something was added.
    pub(crate) async fn added(&self) {
        self.wake.notified().await;
    }

    /// The member's phase now, known before anything that is told of it.
    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// The member's phase has changed, or not.
    pub(crate) fn set_phase(&self, phase: Phase) {
        let place = PHASES.iter().position(|one| *one == phase).expect("all are listed");
        self.phase.store(place as u8, Ordering::Release);
    }

    /// Wants each entry at once while the value lives.
    pub(crate) fn listen(self: &Arc<Self>) -> Listening {
        self.eager.fetch_add(1, Ordering::Relaxed);
        // What waited until now is wanted too.
        self.wake.notify_one();
        Listening(self.clone())
    }
}

/// See [`Feed::listen`].
#[derive(Debug)]
pub(crate) struct Listening(Arc<Feed>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.eager.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_give_way_and_the_rest_stays() {
        let feed = Feed::default();
        let entry = || {
            let (index, view) = (
                HistoryIndex(1),
                dvm_core::ids::ViewId { epoch: dvm_core::ids::Epoch(1), proposer: MemberId(1), round: 1 },
            );
            let content = dvm_core::state::Content::Change {
                origin: MemberId(1),
                oseq: 1,
                body: bytes::Bytes::new(),
                digest: None,
            };
            let label = dvm_core::view::Label::Confirmed;
            let entry =
                Arc::new(Entry { index, first: index, view, label, key: Default::default(), content });
            let applied = dvm_core::state::Applied::Done;
            Told::Delivered(Box::new(Delivery {
                entry,
                events: Vec::new(),
                applied,
                ended: None,
                placed: Vec::new(),
            }))
        };
        let mut batch: Vec<_> = (0..KEPT).map(|_| entry()).collect();
        assert!(feed.push(&mut batch));
        batch.extend([Told::Standing(Standing::Normal), entry()]);
        assert!(!feed.push(&mut batch), "it was full");
        assert!(matches!(feed.take().make_contiguous(), [Told::Standing(_)]));
    }
}
