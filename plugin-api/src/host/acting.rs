//! When an instance may act on the world: its host is told, and its plug-in asks from any thread.

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The right of one instance to act.
#[derive(Debug, Default)]
pub struct Acting {
    fence: AtomicU64,
    until_us: AtomicU64,
    over: AtomicBool,
}

impl Acting {
    /// It is the primary with this token; 0: it is none.
    pub fn promoted(&self, fence: u64) {
        self.fence.store(fence, Ordering::Release);
    }

    /// A primary may act until then, `CLOCK_BOOTTIME`, microseconds.
    pub fn leased(&self, until_us: u64) {
        self.until_us.store(until_us, Ordering::Release);
    }

    /// It may never act again.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether it may never act again.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The token under which it may act now; 0 if it may not. This process's own clock tells, so that a primary stops
    /// though its kernel is stopped.
    pub fn token(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let now_us = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        let acts = !self.is_over() && now_us < self.until_us.load(Ordering::Acquire);
        if acts { self.fence.load(Ordering::Acquire) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_a_promotion_and_a_lease_that_runs() {
        let acting = Acting::default();
        acting.promoted(7);
        assert_eq!(acting.token(), 0, "without a lease");
        acting.leased(1);
        assert_eq!(acting.token(), 0, "the lease is over");
        acting.leased(u64::MAX);
        assert_eq!(acting.token(), 7);
        acting.promoted(0);
        assert_eq!(acting.token(), 0, "it was demoted");
        acting.end();
        acting.promoted(8);
        assert_eq!((acting.token(), acting.is_over()), (0, true));
    }
}
