//! Questions between kernels, on bulk connections, off the ring's thread.
//!
//! A connection carries one question and its answer; bytes in bulk follow the frame that announces them, in parts, so
//! that nothing is allocated on the word of the far end. Nothing here changes the replicated state.

mod ask;
mod blob;
mod blobs;
mod bulk;
mod fetch;
mod memory;
mod serve;
mod transfer;

pub(crate) use ask::{AskError, Peers};
pub(crate) use blob::{Blob, BlobError};
pub(crate) use blobs::Blobs;
pub(crate) use bulk::give_way;
pub(crate) use fetch::Missing;
pub(crate) use serve::serve;

use crate::plugins::Execution;
use crate::services::keeper::Order;
use crate::services::processes::Progress;
use dvm_core::ids::{HistoryIndex, Name, TransactionId};
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest question or answer, bytes; what is larger follows in parts.
const FRAME_MAX: usize = 5 << 20;

/// Bytes of one part. A blob that is handed on is a part behind at each member.
const PART: usize = 256 << 10;

/// Largest state copy, bytes.
const SNAPSHOT_MAX: u64 = 1 << 30;

/// Largest library or snapshot of a plug-in, bytes.
pub(crate) const BLOB_MAX: u64 = 1 << 30;

/// What one kernel asks another.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// Here is the state you asked to join with: a transfer follows.
    Snapshot {
        /// BLAKE3.
        hash: [u8; 32],
        /// How many bytes.
        size: u64,
    },
    /// The library with this hash, by a transfer (on a connection for libraries).
    Blob {
        /// BLAKE3.
        hash: [u8; 32],
        /// Even if it has only begun to arrive.
        arriving: bool,
    },
    /// Fetch the library with this hash from me, or from whoever has it: its load will be proposed.
    Hold {
        /// BLAKE3.
        hash: [u8; 32],
        /// Its size, bytes.
        size: u64,
    },
    /// A snapshot of your instance of a plug-in.
    PluginSnapshot {
        /// The plug-in.
        plugin: Name,
        /// The entry that loaded it.
        since: HistoryIndex,
        /// It contains everything up to here.
        at_least: HistoryIndex,
    },
    /// How does your execution of a transaction end?
    Executed(TransactionId),
    /// Copy your state; I will say through which index to bring it, and then want its hashes.
    Verify,
    /// The reply of your instance of a plug-in to the command at an index.
    PluginReply {
        /// The plug-in.
        plugin: Name,
        /// The command's.
        index: HistoryIndex,
    },
    /// A message for your instance of a plug-in: an event, as the plug-in API encodes it.
    Message {
        /// The plug-in.
        plugin: Name,
        /// The event.
        #[serde(with = "as_bytes")]
        message: Vec<u8>,
    },
    /// Start a process for a plug-in unless you have, and tell me of it from here on. `News` follow, until it has ended.
    Process {
        /// The plug-in.
        plugin: Name,
        /// Its key.
        key: String,
        /// What is run.
        order: Order,
        /// What I know of it.
        progress: Progress,
    },
    /// End that process.
    EndProcess {
        /// The plug-in.
        plugin: Name,
        /// Its key.
        key: String,
    },
    /// Answer this for a client of mine (`ToKernel`, as the local protocol encodes it).
    Relay(#[serde(with = "as_bytes")] Vec<u8>),
}

/// How it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// So many bytes follow.
    Bytes(u64),
    /// A transfer of so many bytes follows.
    Transfer(u64),
    /// It has none of that.
    None,
    /// It has the library, or why not.
    Held(Result<(), String>),
    /// How an execution ended; nothing when its outcome is known already.
    Executed(Option<Execution>),
    /// The state is copied, as of this index. [`Through`] is expected.
    Copied(HistoryIndex),
    /// Hashes of history and state at the asked index; nothing if it cannot be brought there.
    Hashes(Option<([u8; 32], [u8; 32])>),
    /// An instance's reply as JSON text, or its own error; nothing if there is none.
    Plugin(Option<Result<String, String>>),
    /// A message is taken, or why not.
    Taken(Result<(), String>),
    /// A `ToClient`, as the local protocol encodes it.
    Relayed(#[serde(with = "as_bytes")] Vec<u8>),
}

/// See [`Reply::Copied`].
#[derive(Debug, Serialize, Deserialize)]
struct Through(HistoryIndex);

/// Writes bytes in parts; others have their turn in between.
async fn write_bytes(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(PART) {
        to.write_all(part).await?;
        tokio::task::yield_now().await;
    }
    to.flush().await
}

/// Reads `size` bytes, at most `max`; memory grows with what comes.
async fn read_bytes(from: &mut (impl AsyncRead + Unpin), size: u64, max: u64) -> io::Result<Vec<u8>> {
    if size > max {
        let text = format!("{size} bytes are announced, where at most {max} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    let mut from = from.take(size);
    while (bytes.len() as u64) < size {
        bytes.reserve(PART.min((size - bytes.len() as u64) as usize));
        if from.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes)
}

/// Bytes as bytes, not as a sequence of numbers.
mod as_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Bytes::deserialize(deserializer).map(Vec::from)
    }
}
