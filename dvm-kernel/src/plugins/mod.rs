//! This kernel's plug-in instances: what the ring's task tells about them, and what it hears.
//!
//! The manager is a task beside the ring's: it never makes the ring wait, and everything it learns of the history it
//! learns from [`ToPlugins::Delivered`], in order. What it wants to change it proposes, like anybody else.
//!
//! It has a thread of its own, so that starting a process costs the ring nothing, and because Linux ties a child's life
//! to the *thread* that made it. From the outside in:
//!
//! ```text
//! manager    one: what is loaded, what becomes of each entry of the history
//! instance   one task a plug-in: its stream of commands and events, its replies, its failures and restarts
//! prepare    what is done for a transaction before it is decided
//! launch     a library becomes a child with a started instance
//! link       a child and what is said with it
//! process    the child as a process: its group, its end, its output
//! thread     the child as a thread of this kernel
//! application an instance in an application's process, from its connection on
//! inside     the images and threads of this kernel's own process
//! channel    the frames between the two
//! child      the far end: `dvm-kernel plugin-host`, or the thread
//! context    where the lines go that an instance logs
//! ```

mod application;
pub(crate) mod channel;
pub(crate) mod child;
mod context;
mod history;
mod inside;
mod instance;
mod launch;
mod link;
mod manager;
mod payload;
mod prepare;
mod process;
mod replies;
mod roster;
mod thread;

pub(crate) use application::Attach;
pub(crate) use inside::{Image, Quarantined};
pub(crate) use launch::{ITS_OWN, NO_LIMITS};
pub(crate) use manager::{Options, start};
pub(crate) use payload::{from_json, to_json};
pub(crate) use process::signal_name;

use crate::peer::{Blob, Missing};
use dvm_core::Delivery;
use dvm_core::ids::{Fence, HistoryIndex, MemberId, Name, TransactionId};
use dvm_core::state::{InstanceReport, State, Transaction};
use dvm_core::wire::ExecResult;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// From the ring's task, in history order; and from the local server.
#[derive(Debug)]
pub(crate) enum ToPlugins {
    /// The state that later deliveries follow: at the founding, after a join, after a fence. Every instance that still
    /// runs belongs to an earlier incarnation and is ended first.
    Restored {
        /// This member's incarnation.
        me: MemberId,
        /// A copy (cheap: the tables are persistent). Plug-ins with a starting instance of `me` are to be started.
        state: Box<State>,
    },
    /// An entry took effect.
    Delivered(Box<Delivery>),
    /// Execute a transaction; answered by [`FromPlugins::Executed`] in any case, at the latest when `limit_ms` is over.
    Execute {
        /// It.
        transaction: Box<Transaction>,
        /// A load: start an instance, and do not only make sure that one could.
        placed: bool,
        /// Time this member has, milliseconds.
        limit_ms: u64,
    },
    /// This member's instance was promoted by the entry delivered before.
    Primary {
        /// The plug-in.
        plugin: Name,
        /// Its token.
        fence: Fence,
        /// It may not act before.
        from: Instant,
    },
    /// This member's primaries may act until then.
    Lease {
        /// By the clock that all processes of this host share, microseconds.
        until_us: u64,
    },
    /// The reply of this member's instance to the command that took effect at `index`, now or as soon as it is there.
    Reply {
        /// The plug-in.
        plugin: Name,
        /// First index of the command's entry.
        index: HistoryIndex,
        /// The plug-in's reply as JSON, or its own error; `Err` outside: why there is none.
        answer: oneshot::Sender<Result<Result<Value, String>, ReplyError>>,
    },
    /// A read-only command to this member's instance.
    Query {
        /// The plug-in.
        plugin: Name,
        /// As JSON.
        command: Value,
        /// As in `Reply`.
        answer: oneshot::Sender<Result<Result<Value, String>, ReplyError>>,
    },
    /// What this member alone knows, for `status`.
    Figures {
        /// Now.
        answer: oneshot::Sender<Figures>,
    },
    /// Another member's joining instance wants a snapshot taken at `at_least` or later.
    Snapshot {
        /// The plug-in.
        plugin: Name,
        /// The entry that loaded it.
        since: HistoryIndex,
        /// The snapshot must contain everything up to here.
        at_least: HistoryIndex,
        /// Opaque bytes for the other manager; `None` when there is no instance here that runs.
        answer: oneshot::Sender<Option<Vec<u8>>>,
    },
    /// How the execution of a transaction ends here, now or as soon as it has; `None` when its outcome is known already.
    Executed {
        /// Which.
        transaction: TransactionId,
        /// Whether it succeeded, or why not.
        answer: oneshot::Sender<Option<Execution>>,
    },
    /// An application runs this member's instance from here on, if it may.
    Attach {
        /// The plug-in.
        plugin: Name,
        /// Its connection; it is answered by that.
        attach: Attach,
    },
    /// Kills this kernel's instance of a plug-in (chaos).
    Kill {
        /// The plug-in.
        plugin: Name,
        /// Whether there was one.
        answer: oneshot::Sender<bool>,
    },
    /// Ends and reaps every plug-in process: this incarnation was excluded, or the kernel ends.
    Fence {
        /// Told when none is left.
        done: oneshot::Sender<()>,
    },
}

/// What a member alone knows of its plug-ins.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Of each instance here.
    pub(crate) instances: BTreeMap<Name, InstanceFigures>,
    /// Libraries that are mapped into this kernel.
    pub(crate) resident: Vec<Image>,
    /// Threads of plug-ins in this kernel that do not end.
    pub(crate) quarantined: Vec<Quarantined>,
}

/// Figures of an instance of this member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstanceFigures {
    /// The highest index it has applied.
    pub(crate) applied: u64,
    /// Its process; 0 while there is none.
    pub(crate) pid: u32,
    /// Callbacks that were answered.
    pub(crate) callbacks: u64,
    /// Commands and events that it has not answered.
    pub(crate) behind: u64,
    /// Times that it failed.
    pub(crate) failures: u64,
}

/// How a member's execution of a transaction ended: well, or why not.
pub(crate) type Execution = Result<(), String>;

/// Why an instance has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    /// This member has no instance of it that runs.
    #[error("this member's instance of {plugin} does not run: {why}")]
    NotRunning {
        /// The plug-in.
        plugin: Name,
        /// Why.
        why: String,
    },
    /// It took effect so long ago that the reply is gone.
    #[error("the reply is no longer kept")]
    Gone,
}

/// To the ring's task.
#[derive(Debug)]
pub(crate) enum FromPlugins {
    /// An execution has ended.
    Executed {
        /// Of which transaction.
        transaction: TransactionId,
        /// How.
        result: ExecResult,
    },
    /// What became of an instance of this member, to be proposed to all.
    Report(InstanceReport),
}

/// What the manager needs of the rest of the kernel: bytes that other members have.
pub(crate) trait Peers: Send + Sync + 'static {
    /// The library with this hash, verified: from this kernel's own store, or fetched from any member that has it.
    fn library(&self, hash: [u8; 32], size: u64) -> impl Future<Output = Result<Arc<Blob>, Missing>> + Send;

    /// How another member's execution of a transaction ended ([`ToPlugins::Executed`] over there).
    fn executed(
        &self,
        by: MemberId,
        transaction: TransactionId,
    ) -> impl Future<Output = Option<Execution>> + Send;

    /// A snapshot of another member's instance ([`ToPlugins::Snapshot`] over there).
    fn snapshot(
        &self,
        from: MemberId,
        plugin: Name,
        since: HistoryIndex,
        at_least: HistoryIndex,
    ) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

#[cfg(test)]
mod tests;
