//! How a library gets to every member before its load is ordered, and to any member that lacks it later.
//!
//! Whoever proposes a load asks all others at once to hold its library. Each takes it from its predecessor on the ring,
//! which hands it on while it still receives it itself: however many members, the proposer sends it once. Bytes only flow
//! the ring's way from the proposer, so no two wait for each other. A predecessor that is lost, stalls or sends something
//! else is passed over for the one before it, and the transfer goes on where it broke off; when the proposer is no
//! member, whoever has all of it is asked.

use super::ask::{AskError, Peers, reply};
use super::blob::Blob;
use super::transfer::{self, STALL, TransferError};
use super::{BLOB_MAX, Question, Reply};
use crate::net::Shared;
use crate::net::frame::{self, HELLO_MAX};
use crate::net::hello::Lane;
use crate::security::ticket::hex;
use dvm_core::ids::MemberId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpStream as StdStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How often it is looked whether a member that is waited for is one still.
const LOOK: Duration = Duration::from_millis(20);

/// How long a blob that is to be handed on may take to begin here: all members were asked to hold it at once.
const BEGINS: Duration = Duration::from_secs(1);

/// One fetch of a library at a time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    held: Mutex<BTreeMap<[u8; 32], Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Held by whoever fetches.
    fn of(&self, hash: [u8; 32]) -> Arc<tokio::sync::Mutex<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, turn| Arc::strong_count(turn) > 1);
        held.entry(hash).or_default().clone()
    }
}

impl Peers {
    /// Has all other members fetch a library before its load is proposed, so that a slow way holds nothing up that is
    /// ordered. Who cannot is not waited for: it says so when it executes the load.
    pub(crate) async fn spread(&self, hash: [u8; 32], size: u64, limit: Duration) {
        let mut asked = JoinSet::new();
        for member in self.others() {
            let peers = self.clone();
            asked.spawn_local(async move {
                tokio::select! {
                    held = peers.ask_to_hold(member, hash, size, limit) => {
                        held.map_err(|error| error.to_string()).flatten()
                    }
                    () = peers.departs(member) => Err("it is no member any more".into()),
                }
                .map_err(|why| tracing::info!(peer = %member, why, "a library was not fetched ahead"))
            });
        }
        while asked.join_next().await.is_some() {}
    }

    async fn ask_to_hold(
        &self,
        member: MemberId,
        hash: [u8; 32],
        size: u64,
        limit: Duration,
    ) -> Result<Result<(), String>, AskError> {
        let mut stream = self.open(member, Lane::Bulk, &Question::Hold { hash, size }).await?;
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

    /// Has a library here, whole.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn hold(&self, hash: [u8; 32], size: u64) -> Result<Arc<Blob>, Missing> {
        let peers = self.clone();
        let fetched = self.bulk.run(async move { peers.fetch(hash, size).await });
        match self.blobs.whole(&hash) {
            Some(blob) => Ok(blob),
            None => fetched.await.unwrap_or_else(|error| {
                Err(Missing { code: "limit", reason: format!("it cannot be fetched: {error}") })
            }),
        }
    }

    async fn fetch(&self, hash: [u8; 32], size: u64) -> Result<Arc<Blob>, Missing> {
        let turn = self.turns.of(hash);
        let _one_at_a_time = turn.lock().await;
        let mut why = "no member has the library".to_owned();
        let mut wrong = BTreeSet::new();
        loop {
            if let Some(blob) = self.blobs.whole(&hash) {
                return Ok(blob);
            }
            let before = self.blobs.get(&hash).map_or(0, |blob| blob.here());
            for source in self.sources(&hash) {
                if wrong.contains(&source.member) {
                    continue;
                }
                match self.fetch_from(source, hash, size).await {
                    Ok(Some(blob)) => return Ok(blob),
                    Ok(None) => {}
                    Err(FetchError::Transfer(TransferError::NoRoom(error))) => {
                        return Err(Missing { code: "no-space", reason: error.to_string() });
                    }
                    Err(error) => {
                        tracing::info!(peer = %source.member, hash = hex(&hash), %error, "a library did not arrive");
                        if let FetchError::Transfer(TransferError::Wrong(_)) = error {
                            wrong.insert(source.member);
                        }
                        why = error.to_string();
                    }
                }
            }
            // Another round only while each brings something: members may have come and gone meanwhile.
            if self.blobs.get(&hash).map_or(0, |blob| blob.here()) == before {
                return Err(Missing { code: "not-found", reason: why });
            }
        }
    }

    async fn fetch_from(
        &self,
        source: Source,
        hash: [u8; 32],
        size: u64,
    ) -> Result<Option<Arc<Blob>>, FetchError> {
        let question = Question::Blob { hash, arriving: source.arriving };
        let mut stream = self.open(source.member, Lane::Library, &question).await?;
        match reply(&mut stream, BEGINS + STALL).await? {
            Reply::None => Ok(None),
            Reply::Transfer(announced) if announced == size => {
                let blob = transfer::receive(&mut stream, &self.blobs, hash, size, BLOB_MAX).await?;
                self.shared.tally.bulk_in.add(blob.size() as usize);
                Ok(Some(blob))
            }
            _ => Err(AskError::Unexpected.into()),
        }
    }

    /// Whom to ask for a library, in this order.
    fn sources(&self, hash: &[u8; 32]) -> Vec<Source> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        sources(&members, self.shared.vault.tls().me, self.blobs.holder(hash))
    }

    /// Serves a connection on which a library is asked for.
    pub(crate) fn serve_library(&self, stream: StdStream) {
        let peers = self.clone();
        let not_sent = |error: io::Error| tracing::info!(%error, "a library was not sent");
        let serve = async move { peers.hand_on(stream).await.unwrap_or_else(not_sent) };
        self.bulk.spawn(serve).unwrap_or_else(not_sent);
    }

    async fn hand_on(&self, stream: StdStream) -> io::Result<()> {
        let shared: &Shared = &self.shared;
        let asked = async {
            let Some((mut stream, from)) =
                super::serve::introduce(shared, TcpStream::from_std(stream)?).await?
            else {
                return Ok(None);
            };
            let question = frame::read(&mut stream, HELLO_MAX).await?;
            Ok::<_, io::Error>(Some((stream, from, question)))
        };
        let asked = timeout(super::serve::HANDSHAKE, asked).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let Some((mut stream, from, question)) = asked else { return Ok(()) };
        let Question::Blob { hash, arriving } = question else {
            return Err(io::Error::other("a question that is no library's"));
        };
        let found = match self.blobs.whole(&hash) {
            None if arriving => timeout(BEGINS, self.blobs.appears(&hash)).await.ok(),
            found => found,
        };
        let Some(blob) = found else { return frame::write(&mut stream, &Reply::None).await };
        tracing::info!(peer = %from, hash = hex(&hash), whole = blob.is_whole(), "library handed on");
        frame::write(&mut stream, &Reply::Transfer(blob.size())).await?;
        transfer::send(&mut stream, &blob).await?;
        shared.tally.bulk_out.add(blob.size() as usize);
        stream.shutdown().await
    }
}

/// Somebody who may have a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    member: MemberId,
    /// It may still be receiving it: it got it, or gets it, from further back.
    arriving: bool,
}

/// All others, backwards round the ring. Up to whoever proposed, each may hand on what it still receives; beyond, it must
/// have all, or two could wait for each other.
fn sources(ring: &[MemberId], me: MemberId, proposer: Option<MemberId>) -> Vec<Source> {
    let at = ring.iter().position(|member| *member == me).unwrap_or(0);
    let (after, before) = (ring.iter().skip(at + 1).rev(), ring.iter().take(at).rev());
    let mut arriving = proposer.is_some_and(|proposer| proposer != me && ring.contains(&proposer));
    let backwards = before.chain(after).filter(|member| **member != me);
    let source = |member: &MemberId| {
        arriving &= Some(*member) != proposer;
        Source { member: *member, arriving }
    };
    backwards.map(source).collect()
}

/// Why a library is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// As a member's result has it.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) reason: String,
}

/// Why a library did not come from a member.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// It does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It was lost.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The transfer broke off.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_flow_the_rings_way_from_the_proposer_and_nowhere_else() {
        let ring: Vec<_> = [4, 7, 1, 9].map(MemberId).into();
        let seen = |me: u128, proposer: Option<u128>| {
            let sources = sources(&ring, MemberId(me), proposer.map(MemberId));
            sources.into_iter().map(|source| (source.member.0, source.arriving)).collect::<Vec<_>>()
        };
        assert_eq!(seen(9, Some(4)), [(1, true), (7, true), (4, false)]);
        assert_eq!(seen(7, Some(4)), [(4, false), (9, false), (1, false)]);
        // Round the end.
        assert_eq!(seen(7, Some(1)), [(4, true), (9, true), (1, false)]);
        // Nobody knows who has it.
        assert_eq!(seen(1, None), [(7, false), (4, false), (9, false)]);
        assert_eq!(seen(1, Some(3)), [(7, false), (4, false), (9, false)]);
        assert_eq!(seen(1, Some(1)), [(7, false), (4, false), (9, false)]);
    }
}
