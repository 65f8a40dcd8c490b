//! Bytes on their way from one kernel to another, known by their hash. What has arrived outlives the connection it came
//! on: the next one, from whoever has the same bytes, goes on where the last one broke off.

use super::{Blobs, read_onto, write_bytes};
use crate::net::frame::{self, HELLO_MAX};
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// From the receiver: it has so many bytes already.
#[derive(Debug, Serialize, Deserialize)]
struct From(u64);

/// Receives what was announced, and verifies it.
///
/// # Errors
/// Of the connection, with what has arrived kept for another try; or that the bytes are others, which are forgotten.
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    blobs: &Blobs,
    hash: [u8; 32],
    size: u64,
    max: u64,
) -> io::Result<Vec<u8>> {
    let mut begun = Begun { blobs, hash, bytes: blobs.take_begun(&hash) };
    begun.bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    frame::write(stream, &From(begun.bytes.len() as u64)).await?;
    read_onto(stream, &mut begun.bytes, size, max).await?;
    let bytes = std::mem::take(&mut begun.bytes);
    if *blake3::hash(&bytes).as_bytes() != hash {
        let text = "the bytes that came are not those that were announced";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(bytes)
}

/// Sends what the receiver does not have.
///
/// # Errors
/// Of the connection; or the receiver claims to have more than there is.
pub(super) async fn send(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let From(offset) = frame::read(stream, HELLO_MAX).await?;
    let missing = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
    let missing = missing.ok_or_else(|| {
        let text = format!("it has {offset} bytes of {}", bytes.len());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })?;
    write_bytes(stream, missing).await
}

/// What has arrived so far. Dropped before all is there, it is kept.
struct Begun<'a> {
    blobs: &'a Blobs,
    hash: [u8; 32],
    bytes: Vec<u8>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            self.blobs.keep_begun(self.hash, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const SIZE: usize = 1 << 20;

    /// A connection that carries `passes` bytes of what is sent and then breaks.
    async fn broken(bytes: &[u8], blobs: &Blobs, passes: usize) -> (u64, io::Result<Vec<u8>>) {
        let hash = *blake3::hash(bytes).as_bytes();
        let (mut here, mut there) = duplex(64 << 10);
        let sent = async {
            let From(offset) = frame::read(&mut there, HELLO_MAX).await.expect("an offset");
            there.write_all(&bytes[offset as usize..][..passes]).await.expect("room");
            drop(there);
            offset
        };
        tokio::join!(sent, receive(&mut here, blobs, hash, SIZE as u64, SIZE as u64))
    }

    #[tokio::test]
    async fn a_transfer_goes_on_where_it_broke_off() {
        let bytes: Vec<u8> = (0..SIZE).map(|i| (i * 7) as u8).collect();
        let hash = *blake3::hash(&bytes).as_bytes();
        let blobs = Blobs::default();
        let (offset, result) = broken(&bytes, &blobs, 300_000).await;
        assert_eq!((offset, result.is_err()), (0, true));
        let (offset, result) = broken(&bytes, &blobs, 400_000).await;
        assert_eq!((offset, result.is_err()), (300_000, true));
        let (mut here, mut there) = duplex(64 << 10);
        let (sent, received) = tokio::join!(
            send(&mut there, &bytes),
            receive(&mut here, &blobs, hash, SIZE as u64, SIZE as u64)
        );
        sent.expect("it is sent");
        assert!(received.expect("it is whole") == bytes);
        assert!(blobs.take_begun(&hash).is_empty(), "nothing is left");
    }

    #[tokio::test]
    async fn other_bytes_and_absurd_offsets_are_refused_and_forgotten() {
        let (bytes, blobs) = (vec![1; 1_000], Blobs::default());
        let (mut here, mut there) = duplex(4_096);
        let received = receive(&mut here, &blobs, [9; 32], 1_000, 1_000);
        let (_, received) = tokio::join!(send(&mut there, &bytes), received);
        assert_eq!(received.expect_err("another hash").kind(), io::ErrorKind::InvalidData);
        assert!(blobs.take_begun(&[9; 32]).is_empty());
        let (mut here, mut there) = duplex(4_096);
        frame::write(&mut here, &From(1_001)).await.expect("room");
        assert!(send(&mut there, &bytes).await.is_err());
        // More is announced than is allowed: nothing is read.
        let (mut here, mut there) = duplex(4_096);
        assert!(receive(&mut here, &blobs, [9; 32], 1_001, 1_000).await.is_err());
        drop(here);
        let mut said = Vec::new();
        there.read_to_end(&mut said).await.expect("an end");
    }
}
