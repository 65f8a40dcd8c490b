//! One descriptor that stays the same while what is waited for changes: a connection, the next one, a moment.
//!
//! It is an epoll set of at most one connection and a timer, so it can be waited for like a socket, in any loop. A forked
//! child shares the set with its parent: nothing here changes it when it is dropped.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// When it is readable even if nothing arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    Never,
    Now,
    At(Instant),
}

#[derive(Debug)]
pub(crate) struct Wake {
    set: OwnedFd,
    timer: OwnedFd,
    /// The connection in the set. It is open: who closes one has called [`watch`](Self::watch) with another before.
    watched: Option<(RawFd, EventFlags)>,
    alarm: Alarm,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&set, &timer, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self { set, timer, watched: None, alarm: Alarm::Never })
    }

    /// Makes it readable when `fd` is, and by the alarm, from now on. What was watched before must still be open: closed
    /// while a forked child holds it, it would stay in the set for ever.
    pub(crate) fn watch(&mut self, fd: Option<BorrowedFd<'_>>, alarm: Alarm) -> io::Result<()> {
        self.watch_for(fd.map(|fd| (fd, EventFlags::IN)), alarm)
    }

    /// The same where `fd` is ready for something else.
    pub(crate) fn watch_for(
        &mut self,
        fd: Option<(BorrowedFd<'_>, EventFlags)>,
        alarm: Alarm,
    ) -> io::Result<()> {
        let wanted = fd.map(|(fd, flags)| (fd.as_raw_fd(), flags));
        if self.watched != wanted {
            if let Some((old, _)) = self.watched.take() {
                // SAFETY: by this function's contract it is open.
                let old = unsafe { BorrowedFd::borrow_raw(old) };
                epoll::delete(&self.set, old)?;
            }
            if let Some((fd, flags)) = fd {
                epoll::add(&self.set, fd, EventData::new_u64(1), flags)?;
                self.watched = wanted;
            }
        }
        if self.alarm != alarm {
            // Setting it takes back what has fired.
            let after = match alarm {
                Alarm::Never => Duration::ZERO,
                Alarm::Now => Duration::from_nanos(1),
                Alarm::At(at) => at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)),
            };
            let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(after) };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.alarm = alarm;
        }
        Ok(())
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

/// Waits until `fd` has something to read, or until a moment; or less, when a signal comes.
pub(super) fn wait(fd: Option<BorrowedFd<'_>>, until: Option<Instant>) {
    let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
    let mut fds: Vec<_> = fd.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    // Whatever ends it, the caller looks for itself.
    let _ = poll(&mut fds, left.as_ref());
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn readable(wake: &Wake) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&timespec(Duration::from_millis(20)))).expect("polled") == 1
    }

    #[test]
    fn it_follows_what_is_watched() {
        let mut wake = Wake::new().expect("made");
        assert!(!readable(&wake));
        let (one, mut other) = UnixStream::pair().expect("a pair");
        wake.watch(Some(one.as_fd()), Alarm::Never).expect("watched");
        assert!(!readable(&wake));
        other.write_all(b"x").expect("written");
        assert!(readable(&wake));
        wake.watch(None, Alarm::Never).expect("watched");
        assert!(!readable(&wake));
    }

    #[test]
    fn it_tells_when_there_is_room() {
        let mut wake = Wake::new().expect("made");
        let (one, _other) = UnixStream::pair().expect("a pair");
        wake.watch_for(Some((one.as_fd(), EventFlags::OUT)), Alarm::Never).expect("watched");
        assert!(readable(&wake));
        wake.watch(Some(one.as_fd()), Alarm::Never).expect("watched");
        assert!(!readable(&wake));
    }

    #[test]
    fn an_alarm_stays_until_it_is_set_anew() {
        let mut wake = Wake::new().expect("made");
        for alarm in [Alarm::Now, Alarm::At(Instant::now())] {
            wake.watch(None, alarm).expect("set");
            assert!(readable(&wake) && readable(&wake), "{alarm:?}");
            wake.watch(None, Alarm::Never).expect("taken back");
            assert!(!readable(&wake));
        }
    }

    /// A child that was forked without exec holds what its parent closes.
    #[test]
    fn a_descriptor_that_another_holds_leaves_the_set() {
        let mut wake = Wake::new().expect("made");
        let (one, other) = UnixStream::pair().expect("a pair");
        let _held = one.try_clone().expect("held");
        wake.watch(Some(one.as_fd()), Alarm::Never).expect("watched");
        wake.watch(None, Alarm::Never).expect("watched");
        drop((one, other));
        assert!(!readable(&wake));
    }
}
