//! Timers: each has a row, its meaning, and at most one deadline.

use crate::ids::Time;

/// What a member in a view waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Send heartbeats, look who is silent.
    Heartbeat,
    /// Begin a ballot: faults and joiners that come together were gathered, or the coordinator did nothing.
    Change,
    /// Send a ballot's messages again.
    Resend,
    /// A ballot's answers are overdue.
    Overdue,
    /// Ask how the wedged view ended.
    Query,
    /// Try the ring link again.
    Reconnect,
    /// Look for departed members, or go on with a healing.
    Heal,
    /// Leave, though nobody agreed.
    Leave,
}

const COUNT: usize = Timer::Leave as usize + 1;

/// All deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: [Option<Time>; COUNT],
}

const ALL: [Timer; COUNT] = [
    Timer::Heartbeat,
    Timer::Change,
    Timer::Resend,
    Timer::Overdue,
    Timer::Query,
    Timer::Reconnect,
    Timer::Heal,
    Timer::Leave,
];

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Time) {
        self.due[timer as usize] = Some(at);
    }

    /// Sets it unless it is due earlier.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Time) {
        let due = &mut self.due[timer as usize];
        *due = Some(due.map_or(at, |due| due.min(at)));
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.due[timer as usize] = None;
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.due[timer as usize].is_some()
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.due.iter().flatten().min().copied()
    }

    /// Takes a timer whose time has come.
    pub(crate) fn take_due(&mut self, now: Time) -> Option<Timer> {
        let timer = ALL.into_iter().find(|timer| self.due[*timer as usize].is_some_and(|due| due <= now))?;
        self.stop(timer);
        Some(timer)
    }
}
