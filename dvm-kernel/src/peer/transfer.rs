//! A blob on its way from one kernel to another. Its outline goes first, then the receiver says how many parts it has, then
//! come the others, each as soon as the sender has it itself.
//!
//! A part is kept and handed on only when the outline proves it. So what a receiver has outlives the connection it came on:
//! the next one, from whoever has the same bytes, goes on there, even after a sender that sent wrong ones.

use super::blob::{Blob, BlobError, Outline};
use super::bulk::{Pace, STRETCH};
use super::{BLOB_MAX, Blobs, PART};
use crate::net::frame::{self, HELLO_MAX};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How long nothing may come, or nothing be taken, before somebody else is asked.
pub(super) const STALL: Duration = Duration::from_secs(2);

/// Largest outline, bytes.
const OUTLINE_MAX: usize = HELLO_MAX + (BLOB_MAX as usize).div_ceil(PART) * 32;

/// From the receiver: it has so many parts already.
#[derive(Debug, Serialize, Deserialize)]
struct Resume(u64);

/// Why a blob did not arrive. What has arrived is kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    /// The connection was lost or stalled.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The sender sent something else; it is not to be asked again.
    #[error(transparent)]
    Wrong(BlobError),
    /// There is no room for it here, whoever sends it.
    #[error(transparent)]
    NoRoom(BlobError),
}

impl From<BlobError> for TransferError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::NoRoom { .. } => Self::NoRoom(error),
            _ => Self::Wrong(error),
        }
    }
}

/// Receives a blob of so many bytes, or what is missing of it.
///
/// # Errors
/// See [`TransferError`].
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    blobs: &Blobs,
    hash: [u8; 32],
    size: u64,
    max: u64,
) -> Result<Arc<Blob>, TransferError> {
    if size > max {
        return Err(BlobError::TooLarge { size, max }.into());
    }
    let outline: Outline = in_time(frame::read(stream, OUTLINE_MAX)).await?;
    let blob = blobs.begin(hash, size, outline)?;
    frame::write(stream, &Resume(blob.here() as u64)).await?;
    let (mut pace, mut part) = (Pace::default(), BytesMut::with_capacity(PART));
    for at in blob.here()..blob.count() {
        part.clear();
        read_part(stream, &mut part, blob.part_size(at), &mut pace).await?;
        blob.push(at, &part)?;
        tokio::task::yield_now().await;
    }
    Ok(blob)
}

/// Sends what the receiver does not have, in step with its own arrival.
///
/// # Errors
/// Of the connection; the blob does not go on arriving; or the receiver claims to have more than there is.
pub(super) async fn send(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), blob: &Blob) -> io::Result<()> {
    frame::write(stream, blob.outline()).await?;
    let Resume(begin) = in_time(frame::read(stream, HELLO_MAX)).await?;
    let begin = usize::try_from(begin).ok().filter(|begin| *begin <= blob.count()).ok_or_else(|| {
        let text = format!("it has {begin} parts of {}", blob.count());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })?;
    let (mut pace, mut buffer) = (Pace::default(), vec![0; STRETCH]);
    for at in begin..blob.count() {
        in_time(blob.arrives(at)).await?;
        for from in (0..blob.part_size(at)).step_by(STRETCH) {
            let stretch = &mut buffer[..STRETCH.min(blob.part_size(at) - from)];
            blob.read(stretch, (at * PART + from) as u64)?;
            in_time(stream.write_all(stretch)).await?;
            pace.step(stretch.len());
        }
        tokio::task::yield_now().await;
    }
    in_time(stream.flush()).await
}

async fn read_part(
    from: &mut (impl AsyncRead + Unpin),
    part: &mut BytesMut,
    size: usize,
    pace: &mut Pace,
) -> io::Result<()> {
    let mut from = from.take(size as u64);
    while part.len() < size {
        match in_time(from.read_buf(part)).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => pace.step(read),
        }
    }
    Ok(())
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALL, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const COUNT: usize = 6;
    const SIZE: usize = COUNT * PART - 1_000;

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|at| (at / 3 * 7) as u8).collect()
    }

    fn blob_of(bytes: &[u8]) -> Blob {
        Blob::of(bytes).expect("there is room")
    }

    fn whole_of(blob: &Blob) -> Vec<u8> {
        blob.map().expect("there is room").to_vec()
    }

    async fn part_of(blob: &Blob, at: usize) -> Vec<u8> {
        blob.arrives(at).await.expect("it lives");
        let mut part = vec![0; blob.part_size(at)];
        blob.read(&mut part, (at * PART) as u64).expect("it is here");
        part
    }

    async fn get(
        stream: &mut DuplexStream,
        blobs: &Blobs,
        hash: [u8; 32],
    ) -> Result<Arc<Blob>, TransferError> {
        receive(stream, blobs, hash, SIZE as u64, SIZE as u64).await
    }

    /// Another kernel's end of a connection: it announces the outline, hears from where, and is on its own then.
    async fn announce(stream: &mut DuplexStream, whole: &Blob) -> usize {
        frame::write(stream, whole.outline()).await.expect("room");
        let Resume(begin) = frame::read(stream, HELLO_MAX).await.expect("where to begin");
        begin as usize
    }

    /// Sends so many parts, and a bit of the next one, and is gone.
    async fn die_after(mut stream: DuplexStream, whole: &Blob, parts: usize) -> usize {
        let begin = announce(&mut stream, whole).await;
        for at in begin..begin + parts {
            stream.write_all(&part_of(whole, at).await).await.expect("room");
        }
        stream.write_all(&part_of(whole, begin + parts).await[..1_000]).await.expect("room");
        begin
    }

    #[tokio::test]
    async fn a_blob_is_handed_on_while_it_arrives() {
        let (whole, near, far) = (blob_of(&bytes()), Blobs::default(), Blobs::default());
        let (mut source, mut near_in) = duplex(PART);
        let (mut near_out, mut far_in) = duplex(PART);
        let source = async {
            assert_eq!(announce(&mut source, &whole).await, 0);
            for at in 0..COUNT {
                source.write_all(&part_of(&whole, at).await).await.expect("room");
                // The next part leaves only when this one has come through the member between to the one behind it.
                far.appears(whole.hash()).await.arrives(at).await.expect("it lives");
            }
        };
        let hand_on = async {
            let blob = near.appears(whole.hash()).await;
            send(&mut near_out, &blob).await
        };
        let (near_got, far_got) =
            (get(&mut near_in, &near, *whole.hash()), get(&mut far_in, &far, *whole.hash()));
        let ((), near_got, sent, far_got) = tokio::join!(source, near_got, hand_on, far_got);
        sent.expect("it is sent");
        for got in [near_got, far_got] {
            assert_eq!(whole_of(&got.expect("it is whole")), bytes());
        }
    }

    #[tokio::test]
    async fn a_transfer_goes_on_where_it_broke_off() {
        let (whole, blobs) = (blob_of(&bytes()), Blobs::default());
        for (parts, begun) in [(2, 0), (1, 2)] {
            let (there, mut here) = duplex(PART);
            let (begin, got) =
                tokio::join!(die_after(there, &whole, parts), get(&mut here, &blobs, *whole.hash()));
            assert_eq!(begin, begun);
            assert!(matches!(got, Err(TransferError::Io(_))), "{got:?}");
        }
        // From another one, which is itself only a part further.
        let other = Blob::begin(*whole.hash(), whole.size(), whole.outline().clone()).expect("its outline");
        let (mut there, mut here) = duplex(PART);
        let arrive = async {
            for at in 0..COUNT {
                other.push(at, &part_of(&whole, at).await).expect("it is right");
                tokio::task::yield_now().await;
            }
        };
        let (sent, (), got) =
            tokio::join!(send(&mut there, &other), arrive, get(&mut here, &blobs, *whole.hash()));
        sent.expect("it is sent");
        assert_eq!(whole_of(&got.expect("it is whole")), bytes());
    }

    #[tokio::test]
    async fn a_wrong_byte_goes_no_further_and_spoils_nothing() {
        let (whole, near, far) = (blob_of(&bytes()), Blobs::default(), Blobs::default());
        let (mut liar, mut near_in) = duplex(PART);
        let (mut near_out, mut far_in) = duplex(PART);
        let lie = async {
            announce(&mut liar, &whole).await;
            let mut sent = whole_of(&whole);
            sent[2 * PART + 77] ^= 0x10;
            // Nobody need take all of it.
            let _ = liar.write_all(&sent).await;
        };
        let near_got = async {
            let got = get(&mut near_in, &near, *whole.hash()).await;
            assert!(matches!(got, Err(TransferError::Wrong(BlobError::Part { at: 2 }))), "{got:?}");
            drop(near_in);
            // Whoever is behind got what was right, and waits meanwhile.
            let arriving = far.appears(whole.hash()).await;
            arriving.arrives(1).await.expect("it lives");
            assert_eq!(arriving.here(), 2);
            let (mut honest, mut again) = duplex(PART);
            let (sent, got) = tokio::join!(send(&mut honest, &whole), get(&mut again, &near, *whole.hash()));
            sent.expect("it is sent");
            got
        };
        let hand_on = async {
            let blob = near.appears(whole.hash()).await;
            send(&mut near_out, &blob).await
        };
        let far_got = get(&mut far_in, &far, *whole.hash());
        let ((), near_got, sent, far_got) = tokio::join!(lie, near_got, hand_on, far_got);
        sent.expect("it is sent");
        for got in [near_got, far_got] {
            assert_eq!(whole_of(&got.expect("it is whole")), bytes());
        }
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused() {
        let (whole, blobs) = (blob_of(&bytes()), Blobs::default());
        // The outline of something else.
        let (mut there, mut here) = duplex(PART);
        let other = blob_of(&[7; SIZE]);
        let (_, got) = tokio::join!(send(&mut there, &other), async {
            let got = get(&mut here, &blobs, *whole.hash()).await;
            drop(here);
            got
        });
        assert!(matches!(got, Err(TransferError::Wrong(BlobError::Outline { .. }))), "{got:?}");
        assert!(blobs.get(whole.hash()).is_none());
        // A receiver that has more than there is.
        let (mut there, mut here) = duplex(PART);
        frame::write(&mut here, &Resume(COUNT as u64 + 1)).await.expect("room");
        assert!(send(&mut there, &whole).await.is_err());
        // More is announced than is allowed: nothing is read.
        let (_there, mut here) = duplex(PART);
        let got = receive(&mut here, &blobs, *whole.hash(), SIZE as u64, SIZE as u64 - 1).await;
        assert!(matches!(got, Err(TransferError::Wrong(BlobError::TooLarge { .. }))), "{got:?}");
    }

    #[tokio::test]
    async fn who_stalls_is_given_up() {
        let (whole, blobs) = (blob_of(&bytes()), Blobs::default());
        let (mut there, mut here) = duplex(PART);
        let stall = async {
            announce(&mut there, &whole).await;
            there.write_all(&part_of(&whole, 0).await).await.expect("room");
        };
        // And who takes nothing.
        let (mut sender, mut deaf) = duplex(PART);
        frame::write(&mut deaf, &Resume(0)).await.expect("room");
        let got = get(&mut here, &blobs, *whole.hash());
        let ((), got, sent) = tokio::join!(stall, got, send(&mut sender, &whole));
        assert!(matches!(got, Err(TransferError::Io(error)) if error.kind() == io::ErrorKind::TimedOut));
        assert_eq!(blobs.get(whole.hash()).expect("it is kept").here(), 1);
        assert_eq!(sent.expect_err("no end").kind(), io::ErrorKind::TimedOut);
    }
}
