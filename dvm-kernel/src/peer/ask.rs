//! Asking another kernel.

use super::blob::Blob;
use super::bulk::Bulk;
use super::fetch::{Missing, Turns};
use super::{BLOB_MAX, Blobs, FRAME_MAX, PART, Question, Reply, Through, read_bytes, transfer};
use crate::net::dial::{DialError, dial};
use crate::net::hello::Lane;
use crate::net::{Shared, frame};
use crate::plugins::{self, Execution};
use crate::services::keeper::Order;
use crate::services::processes::{News, Progress};
use dvm_core::Snapshot;
use dvm_core::ids::{HistoryIndex, MemberId, Name, TransactionId};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How long a kernel may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(10);

/// How long another member may take to execute a transaction; the asker's own limit is shorter.
const EXECUTION: Duration = Duration::from_secs(600);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It was lost, or said what makes no sense.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It answered another question.
    #[error("the answer fits no question")]
    Unexpected,
}

/// The other kernels.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(super) shared: Arc<Shared>,
    pub(super) blobs: Arc<Blobs>,
    /// Where libraries are received and sent.
    pub(super) bulk: Arc<Bulk>,
    /// The members of the present view in the ring's order, who may hold what is looked for.
    pub(super) members: Arc<Mutex<Vec<MemberId>>>,
    pub(super) turns: Arc<Turns>,
}

type Stream = TlsStream<TcpStream>;

impl Peers {
    /// Through these connections and with this store.
    pub(crate) fn new(shared: Arc<Shared>, blobs: Arc<Blobs>) -> Self {
        Self { shared, blobs, bulk: Arc::default(), members: Arc::default(), turns: Arc::default() }
    }

    /// The ring goes through these members, in this order.
    pub(crate) fn set_ring(&self, members: Vec<MemberId>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// The store.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) fn others(&self) -> Vec<MemberId> {
        let me = self.shared.vault.tls().me;
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.iter().copied().filter(|member| *member != me).collect()
    }

    /// Sends a state copy to a joiner.
    pub(crate) async fn send_snapshot(&self, to: MemberId, snapshot: &Snapshot) -> Result<(), AskError> {
        let bytes = postcard::to_allocvec(snapshot).expect("plain data");
        let blob = Blob::of(&bytes)?;
        let question = Question::Snapshot { hash: *blob.hash(), size: blob.size() };
        let mut stream = self.open(to, Lane::Bulk, &question).await?;
        transfer::send(&mut stream, &blob).await?;
        self.shared.tally.bulk_out.add(bytes.len());
        // The joiner closes when it has all.
        stream.shutdown().await?;
        Ok(())
    }

    /// Has another kernel answer a client's message.
    pub(crate) async fn relay(
        &self,
        to: MemberId,
        message: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let mut stream = self.open(to, Lane::Bulk, &Question::Relay(message)).await?;
        match reply(&mut stream, limit).await? {
            Reply::Relayed(answer) => Ok(answer),
            _ => Err(AskError::Unexpected),
        }
    }

    /// The reply of another kernel's instance to a command.
    pub(crate) async fn plugin_reply(
        &self,
        of: MemberId,
        plugin: Name,
        index: HistoryIndex,
        limit: Duration,
    ) -> Result<Option<Result<String, String>>, AskError> {
        let mut stream = self.open(of, Lane::Bulk, &Question::PluginReply { plugin, index }).await?;
        match reply(&mut stream, limit).await? {
            Reply::Plugin(reply) => Ok(reply),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Whether a member is one still.
    pub(crate) fn has(&self, member: MemberId) -> bool {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).contains(&member)
    }

    /// A message for another kernel's instance; whether it is taken.
    pub(crate) async fn message(
        &self,
        to: MemberId,
        plugin: Name,
        message: Vec<u8>,
        limit: Duration,
    ) -> Result<Result<(), String>, AskError> {
        let mut stream = self.open(to, Lane::Bulk, &Question::Message { plugin, message }).await?;
        match reply(&mut stream, limit).await? {
            Reply::Taken(taken) => Ok(taken),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Follows a process of another kernel, which starts it if it has not.
    pub(crate) async fn process(
        &self,
        at: MemberId,
        plugin: Name,
        key: String,
        order: Order,
        progress: Progress,
    ) -> Result<Process, AskError> {
        let stream = self.open(at, Lane::Bulk, &Question::Process { plugin, key, order, progress }).await?;
        Ok(Process { stream })
    }

    /// Has another kernel end a process.
    pub(crate) async fn end_process(
        &self,
        at: MemberId,
        plugin: Name,
        key: String,
        limit: Duration,
    ) -> Result<(), AskError> {
        let mut stream = self.open(at, Lane::Bulk, &Question::EndProcess { plugin, key }).await?;
        match reply(&mut stream, limit).await? {
            Reply::Taken(_) => Ok(()),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Has another kernel copy its state, to be compared later.
    pub(crate) async fn copy_state(&self, of: MemberId) -> Result<Copied, AskError> {
        let mut stream = self.open(of, Lane::Bulk, &Question::Verify).await?;
        match reply(&mut stream, SILENCE).await? {
            Reply::Copied(_) => Ok(Copied { stream }),
            _ => Err(AskError::Unexpected),
        }
    }

    async fn plugin_snapshot(&self, from: MemberId, question: Question) -> Result<Option<Vec<u8>>, AskError> {
        let mut stream = self.open(from, Lane::Bulk, &question).await?;
        match reply(&mut stream, SILENCE).await? {
            Reply::None => Ok(None),
            Reply::Bytes(size) => {
                let bytes = read_bytes(&mut stream, size, BLOB_MAX).await?;
                self.shared.tally.bulk_in.add(bytes.len());
                Ok(Some(bytes))
            }
            _ => Err(AskError::Unexpected),
        }
    }

    pub(super) async fn open(
        &self,
        to: MemberId,
        lane: Lane,
        question: &Question,
    ) -> Result<Stream, AskError> {
        let mut stream = dial(&self.shared, to, lane, None).await?;
        frame::write(&mut stream, question).await?;
        Ok(stream)
    }
}

/// A process of another kernel.
pub(crate) struct Process {
    stream: Stream,
}

impl Process {
    /// What is told of it next.
    pub(crate) async fn next(&mut self) -> Result<News, AskError> {
        let next = tokio::time::timeout(SILENCE, frame::read(&mut self.stream, FRAME_MAX)).await;
        Ok(next.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
    }
}

/// A kernel that has copied its state and waits to hear which index is meant.
pub(crate) struct Copied {
    stream: Stream,
}

impl Copied {
    /// Hashes of history and state at `index`, which is not below the copy's.
    pub(crate) async fn hashes(
        mut self,
        index: HistoryIndex,
        limit: Duration,
    ) -> Result<Option<([u8; 32], [u8; 32])>, AskError> {
        frame::write(&mut self.stream, &Through(index)).await?;
        match reply(&mut self.stream, limit).await? {
            Reply::Hashes(hashes) => Ok(hashes),
            _ => Err(AskError::Unexpected),
        }
    }
}

impl plugins::Peers for Peers {
    async fn library(&self, hash: [u8; 32], size: u64) -> Result<Arc<Blob>, Missing> {
        self.hold(hash, size).await
    }

    async fn executed(&self, by: MemberId, transaction: TransactionId) -> Option<Execution> {
        let asked = async {
            let mut stream = self.open(by, Lane::Bulk, &Question::Executed(transaction)).await?;
            match reply(&mut stream, EXECUTION).await? {
                Reply::Executed(ended) => Ok(ended),
                _ => Err(AskError::Unexpected),
            }
        };
        match asked.await {
            Ok(ended) => ended,
            Err(error) => Some(Err(format!("it does not say how it fared: {error}"))),
        }
    }

    async fn snapshot(
        &self,
        from: MemberId,
        plugin: Name,
        since: HistoryIndex,
        at_least: HistoryIndex,
    ) -> Option<Vec<u8>> {
        let question = Question::PluginSnapshot { plugin, since, at_least };
        match self.plugin_snapshot(from, question).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::info!(peer = %from, %error, "no snapshot of its plug-in");
                None
            }
        }
    }
}

pub(super) async fn reply(stream: &mut Stream, limit: Duration) -> io::Result<Reply> {
    const _: () = assert!(PART < FRAME_MAX);
    tokio::time::timeout(limit, frame::read(stream, FRAME_MAX))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
