//! The thread that does what the primary has decided: it asks the host, and asks again where it must.
//!
//! What it is given belongs to one promotion; when that is over, the rest is dropped, and the next primary decides anew.

use crate::{Command, queue::Try};
use dvm_plugin_api::{Error, Host, Program, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
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

/// The thread, from outside. It ends with this value.
pub(crate) struct Worker {
    to: Sender<(u64, Action)>,
    /// The token of the present promotion; 0: none.
    fence: Arc<AtomicU64>,
}

impl Worker {
    pub(crate) fn start(host: Host) -> Result<Self> {
        let (to, actions) = channel();
        let fence = Arc::new(AtomicU64::new(0));
        let current = fence.clone();
        thread::Builder::new().name("jobs".into()).spawn(move || run(&host, &actions, &current))?;
        Ok(Self { to, fence })
    }

    /// From now on only what belongs to this promotion is done; 0: nothing.
    pub(crate) fn promoted(&self, fence: u64) {
        self.fence.store(fence, Ordering::Release);
    }

    pub(crate) fn does(&self, action: Action) {
        // The thread lives as long as this value.
        let _ = self.to.send((self.fence.load(Ordering::Acquire), action));
    }
}

fn run(host: &Host, actions: &Receiver<(u64, Action)>, current: &AtomicU64) {
    for (fence, mut action) in actions {
        let mut said = false;
        while fence != 0 && current.load(Ordering::Acquire) == fence {
            let Err(error) = attempt(host, fence, &mut action) else { break };
            if !std::mem::replace(&mut said, true) {
                host.log(format!("asked again until it is done: {action:?}: {error}"));
            }
            thread::sleep(AGAIN);
        }
    }
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
