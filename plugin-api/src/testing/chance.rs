//! Chance that a seed decides.

use std::ops::Range;

/// A generator of numbers: the same seed draws the same ones (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn within(&mut self, range: Range<i64>) -> i64 {
        assert!(range.start < range.end, "an empty range has no number");
        let size = range.end.wrapping_sub(range.start) as u64;
        range.start.wrapping_add((self.number() % size) as i64)
    }

    /// One of several.
    ///
    /// # Panics
    /// If there is none.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.within(0..all.len() as i64) as usize]
    }

    /// True in one of so many cases.
    pub fn once_in(&mut self, cases: u32) -> bool {
        self.number().is_multiple_of(u64::from(cases.max(1)))
    }
}
