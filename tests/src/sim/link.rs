//! One ring link: two FIFO streams between two processes, which break together.

use dvm_core::ids::{LinkId, MemberId, ViewId};
use dvm_core::wire::Ring;
use std::collections::VecDeque;

/// A link of the run, by number.
pub(crate) type LinkNo = usize;

/// Bytes a link takes in a microsecond (about a gigabit a second).
const BYTES_PER_US: u64 = 125;

/// One ring link. End 0 opened it, end 1 accepted it.
pub(crate) struct Link {
    pub(crate) view: ViewId,
    pub(crate) ends: [End; 2],
    /// Nothing that is still in a queue will arrive.
    pub(crate) broken: bool,
}

/// One end, and the stream that it sends.
pub(crate) struct End {
    /// Whose.
    pub(crate) pid: usize,
    /// Of which incarnation.
    pub(crate) member: MemberId,
    /// The process's number for it.
    pub(crate) id: LinkId,
    /// The process was told that it is gone, or closed it.
    pub(crate) down: bool,
    /// It is broken, and the word of it cannot get here.
    pub(crate) orphaned: bool,
    /// When the process hears that the link stands.
    pub(crate) up_us: u64,
    /// When the last frame placed has left the out-queue.
    leave_us: u64,
    /// When the last frame arrives at the other end; later ones arrive later.
    arrive_us: u64,
    /// Frames that left the queue and get no further.
    pub(crate) held: VecDeque<Ring>,
    /// Sum of their costs.
    pub(crate) held_cost: u64,
    /// This flow alone is stuck.
    pub(crate) stuck: bool,
    /// Tells one time-out of unacknowledged bytes from the next.
    pub(crate) holding: u64,
}

impl Link {
    pub(crate) fn new(view: ViewId, ends: [End; 2]) -> Self {
        let mut link = Self { view, ends, broken: false };
        for end in 0..2 {
            // Frames come after the receiver has heard of the link.
            link.ends[end].arrive_us = link.ends[1 - end].up_us;
        }
        link
    }

    /// Places a frame of `cost` bytes in an end's queue: when it has left.
    pub(crate) fn place(&mut self, end: usize, now_us: u64, cost: u64, slow_us: u64) -> u64 {
        let end = &mut self.ends[end];
        end.leave_us = end.leave_us.max(now_us) + 1 + cost / BYTES_PER_US + slow_us;
        end.leave_us
    }

    /// When a frame that leaves now and travels for `hop_us` arrives: never before an earlier one.
    pub(crate) fn arrival(&mut self, end: usize, now_us: u64, hop_us: u64) -> u64 {
        let end = &mut self.ends[end];
        end.arrive_us = end.arrive_us.max(now_us + hop_us);
        end.arrive_us
    }

    /// When the last frame of an end arrives.
    pub(crate) fn last_arrival(&self, end: usize) -> u64 {
        self.ends[end].arrive_us
    }
}

impl End {
    pub(crate) fn new(pid: usize, member: MemberId, id: LinkId, up_us: u64) -> Self {
        Self {
            pid,
            member,
            id,
            down: false,
            orphaned: false,
            up_us,
            leave_us: 0,
            arrive_us: 0,
            held: VecDeque::new(),
            held_cost: 0,
            stuck: false,
            holding: 0,
        }
    }
}
