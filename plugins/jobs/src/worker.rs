//! What the primary has decided, done behind the callbacks: the host is asked, and asked again where it must be.
//!
//! What it is given belongs to one promotion; when that is over, the rest is dropped, and the next primary decides anew.

use crate::{Command, queue::Try};
use dvm_plugin_api::{Error, Host, Program, Result, Work};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Something to be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Tell all instances.
    Tell(Command),
    /// Start a process, or follow the one that was started before.
    Start { what: Try, member: String, program: Program },
    /// End it.
    Kill { what: Try, member: String },
}

/// Something to be done under a promotion.
struct Ordered {
    fence: u64,
    action: Action,
    /// It was said that it is asked again.
    said: bool,
}

/// Who does it.
pub(crate) struct Worker {
    worker: dvm_plugin_api::Worker<Ordered>,
    /// The token of the present promotion; 0: none.
    fence: Arc<AtomicU64>,
}

impl Worker {
    pub(crate) fn start(host: &Host) -> Result<Self> {
        let fence = Arc::new(AtomicU64::new(0));
        let current = fence.clone();
        let worker = host.worker("jobs", move |host, ordered| work(host, ordered, &current))?;
        Ok(Self { worker, fence })
    }

    /// From now on only what belongs to this promotion is done; 0: nothing.
    pub(crate) fn promoted(&self, fence: u64) {
        self.fence.store(fence, Ordering::Release);
    }

    /// Whether there was room for it.
    pub(crate) fn does(&self, action: Action) -> bool {
        let fence = self.fence.load(Ordering::Acquire);
        self.worker.give(Ordered { fence, action, said: false }).is_ok()
    }
}

fn work(host: &Host, Ordered { fence, action, said }: &mut Ordered, current: &AtomicU64) -> Work {
    if *fence == 0 || current.load(Ordering::Acquire) != *fence {
        return Work::Done;
    }
    let Err(error) = attempt(host, *fence, action) else { return Work::Done };
    if !std::mem::replace(said, true) {
        host.log(format!("asked again until it is done: {action:?}: {error}"));
    }
    Work::Again(AGAIN)
}

fn attempt(host: &Host, fence: u64, action: &mut Action) -> Result<()> {
    match action {
        Action::Tell(command) => match host.broadcast(command) {
            Err(error) if error.to_string().contains("inline_max") => {
                command.shorten();
                Err(error)
            }
            told => told.map(drop),
        },
        // The effect on the outside: only under the lease.
        Action::Start { .. } if host.token() != Some(fence) => {
            Err(Error::new("there is no lease at present"))
        }
        Action::Start { what, member, program } => match host.spawn(member, &what.key(), program) {
            Err(_) if !host.peers().contains(member) => {
                host.broadcast(&Command::Lost { what: *what, member: member.clone(), fence }).map(drop)
            }
            started => started,
        },
        Action::Kill { what, member } => match host.kill(member, &what.key()) {
            Err(_) if !host.peers().contains(member) => Ok(()),
            killed => killed,
        },
    }
}
