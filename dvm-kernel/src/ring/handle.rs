//! How the other thread asks the ring's task.

use dvm_core::ids::Time;
use dvm_core::state::{Change, Stamp};
use dvm_core::{Answer, Input, Member};
use dvm_plugin_api::local::Answer as LocalAnswer;
use tokio::sync::{mpsc, oneshot};

/// What is looked up in the member, on its thread: short, without waiting.
pub(crate) type Look = Box<dyn FnOnce(&Member, Time) + Send>;

/// To the ring's task.
pub(crate) enum ToRing {
    /// Propose a change.
    Submit {
        /// With it, the change takes effect at most once.
        stamp: Option<Stamp>,
        /// It.
        change: Change,
        /// How it ended.
        answer: oneshot::Sender<Answer>,
    },
    /// The operator's word.
    Promote {
        /// The new lineage.
        lineage: u128,
        /// How it ended.
        answer: oneshot::Sender<Answer>,
    },
    /// Something for the member that is not answered.
    Input(Input),
    /// Look something up.
    Look(Look),
    /// Tell how much is under way.
    Depths {
        /// It.
        answer: oneshot::Sender<Depths>,
    },
    /// Count while others measure.
    Watch {
        /// Note when their operations are heard of, too.
        times: bool,
    },
    /// Tell what was noted.
    Watched {
        /// It.
        answer: oneshot::Sender<LocalAnswer>,
    },
    /// Measure.
    Bench {
        /// Agreements rather than broadcasts.
        agree: bool,
        /// Bytes of each message.
        size: usize,
        /// How long, milliseconds.
        duration_ms: u64,
        /// How many are in flight.
        in_flight: u64,
        /// What was measured.
        answer: oneshot::Sender<LocalAnswer>,
    },
}

/// How much is under way at this moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depths {
    /// Ring links that stand.
    pub(crate) links: usize,
    /// Requests of this member that are not answered.
    pub(crate) waiting: usize,
    /// Bytes on ring links that the sockets did not take yet.
    pub(crate) queued_bytes: u64,
}

/// The ring's task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel is ending")]
pub(crate) struct RingGone;

/// The way to the ring's task.
#[derive(Clone)]
pub(crate) struct RingHandle {
    inbox: mpsc::Sender<ToRing>,
}

impl RingHandle {
    /// Through this channel.
    pub(crate) fn new(inbox: mpsc::Sender<ToRing>) -> Self {
        Self { inbox }
    }

    /// Proposes a change.
    pub(crate) async fn submit(&self, stamp: Option<Stamp>, change: Change) -> Result<Answer, RingGone> {
        self.ask(|answer| ToRing::Submit { stamp, change, answer }).await
    }

    /// Promotes this side's history.
    pub(crate) async fn promote(&self, lineage: u128) -> Result<Answer, RingGone> {
        self.ask(|answer| ToRing::Promote { lineage, answer }).await
    }

    /// Looks something up in the member.
    pub(crate) async fn look<R: Send + 'static>(
        &self,
        look: impl FnOnce(&Member, Time) -> R + Send + 'static,
    ) -> Result<R, RingGone> {
        self.ask(|answer| {
            ToRing::Look(Box::new(move |member, now| {
                // Whoever asked may have given up.
                let _ = answer.send(look(member, now));
            }))
        })
        .await
    }

    /// Measures.
    pub(crate) async fn bench(
        &self,
        agree: bool,
        size: usize,
        duration_ms: u64,
        in_flight: u64,
    ) -> Result<LocalAnswer, RingGone> {
        self.ask(|answer| ToRing::Bench { agree, size, duration_ms, in_flight, answer }).await
    }

    /// How much is under way.
    pub(crate) async fn depths(&self) -> Result<Depths, RingGone> {
        self.ask(|answer| ToRing::Depths { answer }).await
    }

    /// Begins to note what others measure.
    pub(crate) async fn watch(&self, times: bool) -> Result<(), RingGone> {
        self.inbox.send(ToRing::Watch { times }).await.map_err(|_| RingGone)
    }

    /// What was noted.
    pub(crate) async fn watched(&self) -> Result<LocalAnswer, RingGone> {
        self.ask(|answer| ToRing::Watched { answer }).await
    }

    /// Gives the member something.
    pub(crate) async fn input(&self, input: Input) -> Result<(), RingGone> {
        self.inbox.send(ToRing::Input(input)).await.map_err(|_| RingGone)
    }

    async fn ask<R>(&self, message: impl FnOnce(oneshot::Sender<R>) -> ToRing) -> Result<R, RingGone> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(message(answer)).await.map_err(|_| RingGone)?;
        answered.await.map_err(|_| RingGone)
    }
}
