//! A thread for bytes in bulk, below all others of this kernel.
//!
//! Encrypting, hashing and copying a library takes a processor for as long as the library is large. It is done here, and
//! gives way to the ring and to clients, whichever kernel of this machine they are of. The thread begins with the first
//! library: an idle kernel has none.

use rustix::process::{getpriority_process, setpriority_process};
use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

/// How much the system prefers the kernel's other threads, of at most 19 below the common. At 19, a machine that is busy
/// with other things would hold a load up until its members' time is over.
const NICE: i32 = 10;

/// The thread; not started before it is needed.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    handle: OnceLock<Handle>,
}

impl Bulk {
    /// Runs something there; dropped, it is ended. `None`: it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(task, self.handle());
        tasks.join_next().await?.ok()
    }

    /// Has something run there to its end.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle().spawn(task);
    }

    fn handle(&self) -> &Handle {
        self.handle.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime needs a few descriptors, and the kernel has them");
            let handle = runtime.handle().clone();
            let run = move || {
                give_way();
                runtime.block_on(std::future::pending::<()>());
            };
            std::thread::Builder::new().name("bulk".into()).spawn(run).expect("a kernel can start a thread");
            handle
        })
    }
}

/// Has the system prefer other threads of this kernel to this one, for good.
pub(crate) fn give_way() {
    let lowered = getpriority_process(None).and_then(|now| setpriority_process(None, (now + NICE).min(19)));
    if let Err(error) = lowered {
        tracing::info!(%error, "a thread for bytes in bulk cannot give way to others");
    }
}
