//! A thread for bytes in bulk, below all others of this kernel.
//!
//! Encrypting, hashing and copying a library takes a processor for as long as the library is large. It is done here, and
//! gives way to the ring and to clients, whichever kernel of this machine they are of. The thread begins with the first
//! library: an idle kernel has none.

use rustix::process::{getpriority_process, setpriority_process};
use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

/// How much the system prefers the kernel's other threads, of at most 19 below the common. At 19, a machine that is busy
/// with other things would hold a load up until its members' time is over.
const NICE: i32 = 10;

/// Bytes hashed, encrypted or copied at a stretch: some 100 us of work.
pub(super) const STRETCH: usize = 64 << 10;

/// Work in stretches. Whoever is only preferred less keeps the processor for its slice of some milliseconds once it has
/// it; one that gives it up after each stretch is in nobody's way.
#[derive(Debug, Default)]
pub(super) struct Pace {
    done: usize,
}

impl Pace {
    /// So many bytes more are done; gives way where that makes a stretch.
    pub(super) fn step(&mut self, bytes: usize) {
        self.done += bytes;
        if self.done >= STRETCH {
            self.done = 0;
            std::thread::yield_now();
        }
    }
}

/// The thread; not started before it is needed.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    handle: Mutex<Option<Handle>>,
}

impl Bulk {
    /// Runs something there; dropped, it is ended.
    ///
    /// # Errors
    /// There is no thread for it, or it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(task, &self.handle()?);
        let ended = tasks.join_next().await.expect("one was just spawned");
        ended.map_err(io::Error::other)
    }

    /// Has something run there to its end.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.handle()?.spawn(task);
        Ok(())
    }

    /// Another kernel may ask for what needs the thread when this one is out of descriptors: that is no reason to die.
    fn handle(&self) -> io::Result<Handle> {
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &*handle {
            return Ok(handle.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let begun = runtime.handle().clone();
        let run = move || {
            give_way();
            runtime.block_on(std::future::pending::<()>());
        };
        std::thread::Builder::new().name("bulk".into()).spawn(run)?;
        Ok(handle.insert(begun).clone())
    }
}

/// Has the system prefer other threads of this kernel to this one, for good.
pub(crate) fn give_way() {
    let lowered = getpriority_process(None).and_then(|now| setpriority_process(None, (now + NICE).min(19)));
    if let Err(error) = lowered {
        tracing::info!(%error, "a thread for bytes in bulk cannot give way to others");
    }
}
