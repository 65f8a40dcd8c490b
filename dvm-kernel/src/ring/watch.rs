//! What this kernel sees of a measurement: how much it writes to the ring, and when it hears of each operation, on the
//! clock that all kernels of a host share.
//!
//! A broadcast is heard of when it is delivered here, an agreement when its outcome arrives, one lap before it takes
//! effect. While nobody watches, nothing is kept; what costs time is done when the watch is over.

use super::Ring;
use crate::net::link::Counts;
use bytes::Bytes;
use dvm_core::ids::{HistoryIndex, Time};
use dvm_core::state::{Change, Submission};
use dvm_core::wire::Ring as Frame;
use dvm_plugin_api::local::Answer;

/// Things kept of each kind.
const KEPT_MAX: usize = 50_000;

/// Longest body that may be an empty agreement's outcome.
const OUTCOME_MAX: usize = 16 << 10;

/// Bytes of bodies kept.
const BYTES_MAX: usize = 64 << 20;

/// How long a watch is kept, milliseconds.
const KEPT_MS: u64 = 600_000;

/// A watch that runs.
pub(super) struct Watch {
    until: Time,
    /// Whether times are noted.
    times: bool,
    before: Counts,
    delivered: Vec<(HistoryIndex, Time)>,
    arrived: Vec<(Bytes, Time)>,
    /// Bytes of the bodies that arrived.
    bytes: usize,
}

impl Ring {
    /// Begins anew.
    pub(super) fn watch_start(&mut self, times: bool) {
        let (until, before) = (self.clock.now().plus_ms(KEPT_MS), self.counts());
        let (delivered, arrived) = (Vec::new(), Vec::new());
        self.watch = Some(Watch { until, times, before, delivered, arrived, bytes: 0 });
    }

    /// Ends it. The serial numbers of a measurement's transactions are so high that no index is one of them.
    pub(super) fn watch_end(&mut self) -> Answer {
        let Some(Watch { before, delivered, arrived, .. }) = self.watch.take() else {
            return Answer::Watched { times: Vec::new(), frames: 0, bytes: 0 };
        };
        let (clock, counts) = (self.clock, self.counts());
        let outcomes = arrived.into_iter().filter_map(|(body, at)| Some((outcome_of(&body)?, at)));
        let entries = delivered.into_iter().map(|(index, at)| (index.0, at));
        Answer::Watched {
            times: entries.chain(outcomes).map(|(key, at)| (key, clock.boot_us(at))).collect(),
            // Links may have been replaced meanwhile, so that less is counted now.
            frames: counts.frames.saturating_sub(before.frames),
            bytes: counts.bytes.saturating_sub(before.bytes),
        }
    }

    fn counts(&self) -> Counts {
        self.links.values().map(|link| link.counts()).fold(Counts::default(), |sum, one| Counts {
            frames: sum.frames + one.frames,
            bytes: sum.bytes + one.bytes,
        })
    }

    /// Drops what nobody has asked for.
    pub(super) fn watch_forget(&mut self) {
        let now = self.clock.now();
        self.watch.take_if(|watch| now > watch.until);
    }

    /// An entry is delivered.
    pub(super) fn watch_delivery(&mut self, index: HistoryIndex) {
        let now = self.clock.now();
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.times) else { return };
        if watch.delivered.len() < KEPT_MAX {
            watch.delivered.push((index, now));
        }
    }

    /// Frames have arrived.
    pub(super) fn watch_frames(&mut self) {
        let now = self.clock.now();
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.times) else { return };
        for (_, frame) in &self.frames {
            let Frame::Data(data) = frame else { continue };
            let length = data.body.len();
            if length <= OUTCOME_MAX && watch.bytes + length <= BYTES_MAX && watch.arrived.len() < KEPT_MAX {
                watch.arrived.push((data.body.clone(), now));
                watch.bytes += length;
            }
        }
    }
}

/// The serial number of the transaction whose outcome a body is.
fn outcome_of(body: &[u8]) -> Option<u64> {
    match postcard::from_bytes::<Submission>(body).ok()?.change {
        Change::Outcome(outcome) => Some(outcome.transaction.serial),
        _ => None,
    }
}
