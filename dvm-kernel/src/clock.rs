//! The kernel's clocks: one that only rises and counts while the machine sleeps, and the wall clock that events tell.

use dvm_core::ids::Time;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;

/// Microseconds since the process started, by `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start_us: u64,
}

impl Clock {
    /// Starts at zero.
    pub(crate) fn start() -> Self {
        Self { start_us: boot_us() }
    }

    /// Now.
    pub(crate) fn now(self) -> Time {
        Time(boot_us() - self.start_us)
    }

    /// A time of this clock as the runtime counts.
    pub(crate) fn instant(self, time: Time) -> tokio::time::Instant {
        tokio::time::Instant::now() + std::time::Duration::from_micros(time.0.saturating_sub(self.now().0))
    }

    /// A time of this clock on the one that all processes of a host share, microseconds since it started.
    pub(crate) fn boot_us(self, time: Time) -> u64 {
        self.start_us + time.0
    }
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time of the wall clock as RFC 3339 in UTC, to the millisecond.
pub(crate) fn rfc3339(wall_ms: u64) -> String {
    let time = i64::try_from(wall_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", time.unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

/// One alarm, exact to the microsecond: timers of the runtime are exact to the millisecond only.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    clock: Clock,
    /// When it rings, if it is set.
    armed: Option<Time>,
}

impl Alarm {
    /// An alarm that is not set.
    pub(crate) fn new(clock: Clock) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        // SAFETY: the value owns the descriptor, which stays open until it is deregistered with the value.
        let timer = unsafe { AsyncFd::register(timer)? };
        Ok(Self { timer, clock, armed: None })
    }

    /// Sees to it that it rings at `deadline` or before: an earlier alarm is left as it is, which costs a wake and
    /// saves a system call on each move of the deadline.
    pub(crate) fn set(&mut self, deadline: Option<Time>) -> io::Result<()> {
        let Some(deadline) = deadline else { return Ok(()) };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        let at_us = (self.clock.start_us + deadline.0).max(1);
        let value =
            Timespec { tv_sec: (at_us / 1_000_000) as i64, tv_nsec: (at_us % 1_000_000 * 1_000) as i64 };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        self.armed = Some(deadline);
        Ok(())
    }

    /// Ready when it rings.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.timer.poll_read_ready(cx))?;
            let mut count = [0; 8];
            match guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                Ok(rung) => {
                    self.armed = None;
                    return Poll::Ready(rung.map(drop));
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// `CLOCK_BOOTTIME`, microseconds: the same in all processes of a host.
pub(crate) fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_alarm_rings_at_its_time_and_may_be_set_earlier() {
        let clock = Clock::start();
        let mut alarm = Alarm::new(clock).expect("a timer");
        alarm.set(Some(clock.now().plus_ms(60_000))).expect("set");
        let at = clock.now().plus_ms(3);
        alarm.set(Some(at)).expect("set");
        std::future::poll_fn(|cx| alarm.poll(cx)).await.expect("it rings");
        assert!(clock.now() >= at);
    }

    #[test]
    fn times_are_told_to_the_millisecond() {
        assert_eq!(rfc3339(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
    }
}
