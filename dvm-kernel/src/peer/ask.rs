//! Asking another kernel.

use super::{BLOB_MAX, Blobs, FRAME_MAX, PART, Question, Reply, Through, read_bytes, transfer};
use crate::net::dial::{DialError, dial};
use crate::net::hello::Lane;
use crate::net::{Shared, frame};
use crate::plugins::{self, Execution};
use crate::services::keeper::Order;
use crate::services::processes::{News, Progress};
use dvm_core::Snapshot;
use dvm_core::ids::{HistoryIndex, MemberId, Name, TransactionId};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::client::TlsStream;

/// How long a kernel may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(10);

/// How long another member may take to execute a transaction; the asker's own limit is shorter.
const EXECUTION: Duration = Duration::from_secs(600);

/// How often it is looked whether a member that is waited for is one still.
const LOOK: Duration = Duration::from_millis(20);

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
    shared: Arc<Shared>,
    blobs: Arc<Blobs>,
    /// The members of the present view, who may hold what is looked for.
    members: Arc<Mutex<Vec<MemberId>>>,
    /// One fetch of a library at a time, for each.
    fetches: Arc<Mutex<BTreeMap<[u8; 32], Turn>>>,
}

/// Held by whoever fetches.
type Turn = Arc<tokio::sync::Mutex<()>>;

type Stream = TlsStream<TcpStream>;

impl Peers {
    /// Through these connections and with this store.
    pub(crate) fn new(shared: Arc<Shared>, blobs: Arc<Blobs>) -> Self {
        Self { shared, blobs, members: Arc::default(), fetches: Arc::default() }
    }

    /// The view has these members.
    pub(crate) fn set_members(&self, members: Vec<MemberId>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// The store.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Has all other members fetch a library before its load is proposed, so that a slow way holds nothing up that is
    /// ordered. Who cannot is not waited for: it says so when it executes the load.
    pub(crate) async fn spread(&self, hash: [u8; 32], size: u64, limit: Duration) {
        let mut asked = JoinSet::new();
        for member in self.others() {
            let peers = self.clone();
            asked.spawn_local(async move {
                tokio::select! {
                    held = peers.hold(member, hash, size, limit) => held.map_err(|error| error.to_string()).flatten(),
                    () = peers.departs(member) => Err("it is no member any more".into()),
                }
                .map_err(|why| tracing::info!(peer = %member, why, "a library was not fetched ahead"))
            });
        }
        while asked.join_next().await.is_some() {}
    }

    async fn hold(
        &self,
        member: MemberId,
        hash: [u8; 32],
        size: u64,
        limit: Duration,
    ) -> Result<Result<(), String>, AskError> {
        let mut stream = self.open(member, &Question::Hold { hash, size }).await?;
        match reply(&mut stream, limit).await? {
            Reply::Held(held) => Ok(held),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Waits until a member is none any more.
    async fn departs(&self, member: MemberId) {
        while self.others().contains(&member) {
            sleep(LOOK).await;
        }
    }

    fn others(&self) -> Vec<MemberId> {
        let me = self.shared.vault.tls().me;
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.iter().copied().filter(|member| *member != me).collect()
    }

    /// Sends a state copy to a joiner.
    pub(crate) async fn send_snapshot(&self, to: MemberId, snapshot: &Snapshot) -> Result<(), AskError> {
        let bytes = postcard::to_allocvec(snapshot).expect("plain data");
        let (hash, size) = (*blake3::hash(&bytes).as_bytes(), bytes.len() as u64);
        let mut stream = self.open(to, &Question::Snapshot { hash, size }).await?;
        transfer::send(&mut stream, &bytes).await?;
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
        let mut stream = self.open(to, &Question::Relay(message)).await?;
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
        let mut stream = self.open(of, &Question::PluginReply { plugin, index }).await?;
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
        let mut stream = self.open(to, &Question::Message { plugin, message }).await?;
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
        let stream = self.open(at, &Question::Process { plugin, key, order, progress }).await?;
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
        let mut stream = self.open(at, &Question::EndProcess { plugin, key }).await?;
        match reply(&mut stream, limit).await? {
            Reply::Taken(_) => Ok(()),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Has another kernel copy its state, to be compared later.
    pub(crate) async fn copy_state(&self, of: MemberId) -> Result<Copied, AskError> {
        let mut stream = self.open(of, &Question::Verify).await?;
        match reply(&mut stream, SILENCE).await? {
            Reply::Copied(_) => Ok(Copied { stream }),
            _ => Err(AskError::Unexpected),
        }
    }

    async fn fetch(&self, from: MemberId, hash: [u8; 32], size: u64) -> Result<Option<Vec<u8>>, AskError> {
        let mut stream = self.open(from, &Question::Blob { hash }).await?;
        match reply(&mut stream, SILENCE).await? {
            Reply::None => Ok(None),
            Reply::Transfer(announced) => {
                Ok(Some(transfer::receive(&mut stream, &self.blobs, hash, announced, size).await?))
            }
            _ => Err(AskError::Unexpected),
        }
    }

    async fn plugin_snapshot(&self, from: MemberId, question: Question) -> Result<Option<Vec<u8>>, AskError> {
        let mut stream = self.open(from, &question).await?;
        match reply(&mut stream, SILENCE).await? {
            Reply::None => Ok(None),
            Reply::Bytes(size) => Ok(Some(read_bytes(&mut stream, size, BLOB_MAX).await?)),
            _ => Err(AskError::Unexpected),
        }
    }

    async fn open(&self, to: MemberId, question: &Question) -> Result<Stream, AskError> {
        let mut stream = dial(&self.shared, to, Lane::Bulk, None).await?;
        frame::write(&mut stream, question).await?;
        Ok(stream)
    }

    /// Who may have a library: whoever proposed its load first.
    fn holders(&self, hash: &[u8; 32]) -> Vec<MemberId> {
        let me = self.shared.vault.tls().me;
        let first = self.blobs.holder(hash).filter(|member| *member != me);
        let others = self.others().into_iter().filter(|member| Some(*member) != first);
        first.into_iter().chain(others).collect()
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
    async fn library(&self, hash: [u8; 32], size: u64) -> Result<Arc<Vec<u8>>, String> {
        let lock = {
            let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            fetches.retain(|_, lock| Arc::strong_count(lock) > 1);
            fetches.entry(hash).or_default().clone()
        };
        let _one_at_a_time = lock.lock().await;
        if let Some(bytes) = self.blobs.get(&hash) {
            return Ok(bytes);
        }
        let mut why = "no member has the library".to_owned();
        for member in self.holders(&hash) {
            match self.fetch(member, hash, size).await {
                Ok(Some(bytes)) => match self.blobs.keep(hash, bytes) {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => why = error.to_string(),
                },
                Ok(None) => {}
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }

    async fn executed(&self, by: MemberId, transaction: TransactionId) -> Option<Execution> {
        let asked = async {
            let mut stream = self.open(by, &Question::Executed(transaction)).await?;
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

async fn reply(stream: &mut Stream, limit: Duration) -> io::Result<Reply> {
    const _: () = assert!(PART < FRAME_MAX);
    tokio::time::timeout(limit, frame::read(stream, FRAME_MAX))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
