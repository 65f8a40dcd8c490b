//! Which callback of which instance a thread is in, so that what is asked is known to come from it.

use super::seat::Seat;
use crate::service::Moment;
use crate::worker::Turn;
use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<Option<Stage>> = const { Cell::new(None) };
}

/// A callback that runs.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    seat: &'static Seat,
    moment: Moment,
}

impl Stage {
    /// The one that this thread is in.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.get()
    }

    /// Its instance has a worker, which has its turns from the DVM.
    pub(crate) fn enlist(self, turn: Box<dyn FnMut() -> Turn + Send>) {
        self.seat.enlist(turn);
    }

    /// From where a question comes that is asked by this seat.
    pub(super) fn moment(seat: &Seat) -> Moment {
        let here = Self::current().filter(|stage| std::ptr::eq(stage.seat, seat));
        here.map_or(Moment::Thread, |stage| stage.moment)
    }
}

/// Runs a callback.
pub(super) fn during<R>(seat: &'static Seat, moment: Moment, callback: impl FnOnce() -> R) -> R {
    let before = CURRENT.replace(Some(Stage { seat, moment }));
    let result = callback();
    CURRENT.set(before);
    result
}
