//! Work that callbacks leave to somebody else, done in order behind them.
//!
//! A callback that must come to the same at every instance may ask nothing of its host, and one that waits delays all that
//! follow. What a plug-in has to ask or do because of them it gives to a [`Worker`]: a thread of its own in a DVM. In the
//! [DVM in memory](crate::testing) it is no thread, but has its turn when the callbacks have had theirs, so that a test
//! does the same under the same seed.

use crate::plugin::{Error, Host, Result};
use crate::testing::Stage;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces of work that wait for one worker.
pub const WORK_MAX: usize = 64 << 10;

/// What became of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is over, whatever came of it.
    Done,
    /// It is to be done again after this time, and what waits behind it waits.
    Again(Duration),
}

/// Does work of type `T`, one piece after another in the order in which they were given. What is not begun when this value
/// is dropped is not done.
pub struct Worker<T> {
    inbox: Arc<Inbox<T>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(name: &str, does: impl FnMut(&mut T) -> Work + Send + 'static) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let mut turns = Turns { inbox: inbox.clone(), present: None, does };
        match Stage::current() {
            Some(stage) => stage.enlist(Box::new(move || turns.turn())),
            None => {
                thread::Builder::new().name(name.into()).spawn(move || turns.run())?;
            }
        }
        Ok(Self { inbox })
    }

    /// Has it do something. Never waits.
    ///
    /// # Errors
    /// [`WORK_MAX`] pieces wait already; this one is not done.
    pub fn give(&self, work: T) -> Result<()> {
        let mut inner = self.inbox.lock();
        if inner.waiting.len() >= WORK_MAX {
            return Err(Error::new(format!("{WORK_MAX} pieces of work wait already")));
        }
        inner.waiting.push_back(work);
        self.inbox.changed.notify_one();
        Ok(())
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        // The thread is not waited for: it may be waiting for an answer.
        self.inbox.lock().closed = true;
        self.inbox.changed.notify_one();
    }
}

impl<T> fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("waiting", &self.inbox.lock().waiting.len()).finish()
    }
}

/// What a worker has still to do.
struct Inbox<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

struct Inner<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        let inner = Inner { waiting: VecDeque::new(), closed: false };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }
}

impl<T> Inbox<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what comes next, or where something is to be done again, until then. False: nothing is to be done any more.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut inner = self.lock();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let ready = match left {
                Some(left) => left.is_zero(),
                None => !inner.waiting.is_empty(),
            };
            if inner.closed || ready {
                return !inner.closed;
            }
            inner = match left {
                Some(left) => {
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// What a worker's turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There is nothing to do.
    Idle,
    /// Something was done; there may be more.
    Worked,
    /// The first piece is to be done again after this time.
    Again(Duration),
}

/// Who does the work.
struct Turns<T, F> {
    inbox: Arc<Inbox<T>>,
    /// What is to be done again.
    present: Option<T>,
    does: F,
}

impl<T, F: FnMut(&mut T) -> Work> Turns<T, F> {
    /// Does one piece, if there is one.
    fn turn(&mut self) -> Turn {
        let next = self.present.take().or_else(|| {
            let mut inner = self.inbox.lock();
            if inner.closed { None } else { inner.waiting.pop_front() }
        });
        let Some(mut work) = next else { return Turn::Idle };
        match (self.does)(&mut work) {
            Work::Done => Turn::Worked,
            Work::Again(pause) => {
                self.present = Some(work);
                Turn::Again(pause)
            }
        }
    }

    /// The thread.
    fn run(&mut self) {
        let mut until = None;
        while self.inbox.wait(until) {
            until = match self.turn() {
                Turn::Again(pause) => Some(Instant::now() + pause),
                Turn::Idle | Turn::Worked => None,
            };
        }
    }
}

impl Host {
    /// A [`Worker`] of this instance, to be made in `start`. What it does may ask this host for everything that a thread
    /// of the plug-in's own may.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn worker<T: Send + 'static>(
        &self,
        name: &str,
        mut does: impl FnMut(&Self, &mut T) -> Work + Send + 'static,
    ) -> Result<Worker<T>> {
        let host = self.clone();
        Worker::start(name, move |work| does(&host, work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{self, RecvTimeoutError};

    /// Longest time that a test waits for what should come.
    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn work_is_done_in_order_and_again_until_it_is_done() {
        let (to, done) = mpsc::channel();
        let mut tries = 0;
        let worker = Worker::start("worker", move |work: &mut u32| {
            tries += 1;
            if *work == 2 && tries < 4 {
                return Work::Again(Duration::from_millis(1));
            }
            to.send((*work, tries)).expect("the test listens");
            Work::Done
        });
        let worker = worker.expect("a thread");
        for work in 1..=3 {
            worker.give(work).expect("there is room");
        }
        let got: Vec<_> = (0..3).map(|_| done.recv_timeout(SOON).expect("it is done")).collect();
        assert_eq!(got, [(1, 1), (2, 4), (3, 5)]);
        drop(worker);
        assert_eq!(done.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected), "the thread ends");
    }

    #[test]
    fn what_is_to_be_done_again_ends_with_the_worker() {
        let (to, done) = mpsc::channel();
        let worker = Worker::start("worker", move |_: &mut ()| {
            to.send(()).expect("the test listens");
            Work::Again(Duration::from_secs(3_600))
        });
        let worker = worker.expect("a thread");
        worker.give(()).expect("there is room");
        done.recv_timeout(SOON).expect("it was tried");
        drop(worker);
        assert_eq!(done.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected), "the thread ends");
    }

    #[test]
    fn too_much_work_is_refused() {
        let (go, wait) = mpsc::channel::<()>();
        let worker = Worker::start("worker", move |_: &mut ()| {
            // It goes on when the test lets go.
            let _ = wait.recv();
            Work::Done
        });
        let worker = worker.expect("a thread");
        let given = (0..WORK_MAX + 2).take_while(|_| worker.give(()).is_ok()).count();
        assert!((WORK_MAX..=WORK_MAX + 1).contains(&given), "{given}");
        drop(go);
    }
}
