//! What this kernel has done since it started: counted where it happens, read when somebody asks.
//!
//! A count is one relaxed addition, so that the ring's thread can afford it; nothing here is ever waited for. What a
//! number means is told where it is [named](crate::local).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the laps that are told apart, microseconds; longer ones are counted together.
pub(crate) const LAPS_US: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Own broadcasts under way whose lap is measured; with more in flight, some are not.
const UNDER_WAY: usize = 4_096;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// So many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// So many until now.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Things and their bytes, one way.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    pub(crate) things: Count,
    pub(crate) bytes: Count,
}

impl Volume {
    /// One more, of so many bytes.
    pub(crate) fn add(&self, bytes: usize) {
        self.things.add(1);
        self.bytes.add(bytes as u64);
    }
}

/// All counts of a kernel, shared by its threads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Ring frames placed on links.
    pub(crate) ring_out: Volume,
    /// Ring frames that came.
    pub(crate) ring_in: Volume,
    /// Ring links that came about.
    pub(crate) links: Count,
    /// Control messages for others.
    pub(crate) control_out: Count,
    /// Control messages from others.
    pub(crate) control_in: Count,
    /// Entries of the history.
    pub(crate) entries: Count,
    /// Those of them that are views.
    pub(crate) views: Count,
    /// Times that this member came to suspect another.
    pub(crate) suspicions: Count,
    /// Requests that took effect.
    pub(crate) done: Count,
    /// Requests that did not and never will.
    pub(crate) refused: Count,
    /// Requests whose end this member cannot learn.
    pub(crate) unknown: Count,
    /// Times that readers of the history fell too far behind.
    pub(crate) overflows: Count,
    /// Laps of own broadcasts.
    pub(crate) laps: Laps,
    /// Clients that came.
    pub(crate) clients: Count,
    /// What they asked.
    pub(crate) questions: Count,
    /// Libraries, states and state copies sent to other kernels.
    pub(crate) bulk_out: Volume,
    /// Those that came.
    pub(crate) bulk_in: Volume,
}

/// How long laps took.
#[derive(Debug, Default)]
pub(crate) struct Laps {
    /// By upper bound; the last of them has none.
    within: [Count; LAPS_US.len() + 1],
    sum_us: Count,
}

impl Laps {
    fn note(&self, us: u64) {
        let place = LAPS_US.partition_point(|bound| *bound < us);
        self.within[place].add(1);
        self.sum_us.add(us);
    }

    /// For each upper bound how many took no longer, then how many there were, and their sum.
    pub(crate) fn read(&self) -> ([u64; LAPS_US.len() + 1], u64) {
        let mut sum = 0;
        let upto = self.within.each_ref().map(|count| {
            sum += count.get();
            sum
        });
        (upto, self.sum_us.get())
    }
}

/// Own broadcasts of the present view that are under way, and since when. Owned by the ring's task.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    /// The last one numbered.
    last: u64,
    begun: VecDeque<(u64, u64)>,
}

impl UnderWay {
    /// Own broadcast `oseq` goes onto the ring; again, after a link was replaced, or for the first time.
    pub(crate) fn begins(&mut self, oseq: u64, now_us: u64) {
        if oseq > self.last {
            self.last = oseq;
            if self.begun.len() < UNDER_WAY {
                self.begun.push_back((oseq, now_us));
            }
        }
    }

    /// It is stable, and delivered here.
    pub(crate) fn ends(&mut self, oseq: u64, now_us: u64, laps: &Laps) {
        while let Some((begun, since)) = self.begun.pop_front_if(|(begun, _)| *begun <= oseq) {
            if begun == oseq {
                laps.note(now_us.saturating_sub(since));
            }
        }
    }

    /// Another view: numbers begin anew.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_is_from_the_first_time_on_the_ring_to_the_delivery() {
        let (laps, mut under_way) = (Laps::default(), UnderWay::default());
        under_way.begins(1, 1_000);
        under_way.begins(2, 1_010);
        under_way.begins(1, 5_000);
        under_way.ends(1, 1_050, &laps);
        under_way.ends(2, 9_001_010, &laps);
        under_way.ends(3, 9_001_010, &laps);
        let (upto, sum) = laps.read();
        assert_eq!((upto[0], upto[LAPS_US.len() - 1], upto[LAPS_US.len()], sum), (1, 1, 2, 9_000_050));
        under_way.begins(3, 0);
        under_way.forget();
        under_way.begins(1, 10);
        under_way.ends(1, 110, &laps);
        assert_eq!(laps.read().0[1], 2, "100 us are within 100 us");
    }
}
