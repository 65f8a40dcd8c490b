//! The one queue of everything that is going to happen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events by time; those of equal time in the order they were put in.
pub(crate) struct Queue<E> {
    /// Small keys only, so that reordering the heap moves no event.
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    serial: u64,
    now_us: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), serial: 0, now_us: 0 }
    }

    /// Simulated time, microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// How many events have been put in so far.
    pub(crate) fn pushed(&self) -> u64 {
        self.serial
    }

    /// Puts an event at a time, or now if that has gone by.
    pub(crate) fn push(&mut self, at_us: u64, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.serial += 1;
        self.heap.push(Reverse((at_us.max(self.now_us), self.serial, slot)));
    }

    /// Moves time on to the next event.
    pub(crate) fn pop(&mut self) -> Option<E> {
        let Reverse((at_us, _, slot)) = self.heap.pop()?;
        self.now_us = at_us;
        self.free.push(slot);
        self.slots[slot].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_in_the_order_they_were_put_in() {
        let mut queue = Queue::new();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            queue.push(at, event);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, "abcd");
        assert_eq!(queue.now_us(), 5);
    }
}
