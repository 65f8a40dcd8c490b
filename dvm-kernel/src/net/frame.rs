//! Frames between kernels: a length (`u32`, little endian) and that many bytes of postcard.
//!
//! Postcard writes no field names and reads back what the same build wrote; kernels of another wire version are refused
//! in the [preamble](super::hello). A length is checked before anything is allocated, and memory grows with the bytes
//! that have come, never with the length that was announced.

use bytes::{Buf, Bytes, BytesMut};
use dvm_core::wire::{Data, Ring};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// Largest frame of a ring link, bytes: a body of `inline_max` (at most 1 MiB) or the results of a large view.
pub(crate) const RING_FRAME_MAX: usize = 4 << 20;

/// Largest frame of a control connection, bytes: the bodies that a flush fills in.
pub(crate) const CONTROL_FRAME_MAX: usize = 64 << 20;

/// Largest first frame, bytes.
pub(crate) const HELLO_MAX: usize = 4 << 10;

/// Memory for what is received is taken in pieces of this many bytes.
const PIECE: usize = 16 << 10;

/// What the far end sent is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// It is longer than any frame may be.
    #[error("a frame of {length} bytes, where at most {max} are allowed")]
    TooLong {
        /// As announced.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// It does not decode.
    #[error("a frame that does not decode: {0}")]
    Garbage(#[from] postcard::Error),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Appends a frame to a queue of bytes.
pub(crate) fn encode<T: Serialize>(message: &T, queue: &mut Vec<u8>) {
    frame(queue, |queue| {
        postcard::serialize_with_flavor(message, Append(queue)).expect("messages are plain data");
    });
}

/// Appends a frame of the ring to a queue of bytes: postcard, and a body as it is behind it, so that its reader need not
/// copy it.
pub(crate) fn encode_ring(message: &Ring, queue: &mut Vec<u8>) {
    let Ring::Data(data) = message else { return encode(message, queue) };
    let head = Ring::Data(Data { body: Bytes::new(), ..data.clone() });
    frame(queue, |queue| {
        postcard::serialize_with_flavor(&head, Append(queue)).expect("messages are plain data");
        queue.extend_from_slice(&data.body);
    });
}

fn frame(queue: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = queue.len();
    queue.extend_from_slice(&[0; 4]);
    fill(queue);
    let length = u32::try_from(queue.len() - start - 4).expect("messages are below 4 GiB");
    queue[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Bytes that came and are not decoded yet.
#[derive(Debug)]
pub(crate) struct Received {
    bytes: BytesMut,
    max: usize,
}

impl Received {
    /// Nothing yet; frames of at most `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { bytes: BytesMut::new(), max }
    }

    /// Where further bytes go.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Makes room for further bytes. Bodies keep the memory they came in, so that it is taken in pieces that hold many.
    pub(crate) fn make_room(&mut self, bytes: usize) {
        if self.bytes.capacity() - self.bytes.len() < bytes {
            self.bytes.reserve(bytes.max(PIECE));
        }
    }

    /// The next whole frame, if there is one.
    fn take_frame(&mut self) -> Result<Option<BytesMut>, FrameError> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.max {
            return Err(FrameError::TooLong { length, max: self.max });
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.bytes.advance(4);
        Ok(Some(self.bytes.split_to(length)))
    }

    /// The message in the next whole frame.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(frame) = self.take_frame()? else { return Ok(None) };
        Ok(Some(postcard::from_bytes(&frame)?))
    }

    /// The ring's message in the next whole frame. A body shares the memory it came in.
    pub(crate) fn take_ring(&mut self) -> Result<Option<Ring>, FrameError> {
        let Some(frame) = self.take_frame()? else { return Ok(None) };
        let (mut message, rest) = postcard::take_from_bytes(&frame)?;
        let head = frame.len() - rest.len();
        match &mut message {
            Ring::Data(data) => data.body = frame.freeze().slice(head..),
            _ if rest.is_empty() => {}
            _ => return Err(FrameError::Garbage(postcard::Error::DeserializeBadEncoding)),
        }
        Ok(Some(message))
    }
}

/// Writes one frame.
pub(crate) async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    // First frames may hold secrets.
    let mut bytes = Zeroizing::new(Vec::with_capacity(HELLO_MAX));
    encode(message, &mut bytes);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Reads one frame and not a byte more.
pub(crate) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> io::Result<T> {
    let length = from.read_u32_le().await? as usize;
    if length > max {
        return Err(FrameError::TooLong { length, max }.into());
    }
    let mut body = Zeroizing::new(Vec::with_capacity(length.min(HELLO_MAX)));
    from.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&body).map_err(|error| FrameError::Garbage(error).into())
}

/// Postcard straight into the queue.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_core::ids::{Lamport, Rank};

    fn data(length: usize) -> Ring {
        let body = Bytes::from(vec![7; length]);
        Ring::Data(Data { origin: Rank(1), oseq: 300, lnum: Lamport(u64::MAX), hops: 2, body, digest: None })
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let messages = [data(0), data(1), data(70_000), Ring::Stable(vec![(Rank(3), 9)])];
        let mut queue = Vec::new();
        messages.iter().for_each(|message| encode_ring(message, &mut queue));
        for cut in [1, 3, 4_096, queue.len()] {
            let mut received = Received::new(RING_FRAME_MAX);
            let mut came = Vec::new();
            for part in queue.chunks(cut) {
                received.tail().extend_from_slice(part);
                while let Some(message) = received.take_ring().expect("frames") {
                    came.push(message);
                }
            }
            assert_eq!(came, messages);
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_come() {
        let mut received = Received::new(100);
        received.tail().extend_from_slice(&101u32.to_le_bytes());
        assert!(matches!(received.take_ring(), Err(FrameError::TooLong { length: 101, max: 100 })));
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        let mut seed = dvm_core::Prng::new(1);
        for _ in 0..20_000 {
            let length = seed.below(64) as usize;
            let mut received = Received::new(100);
            received.tail().extend_from_slice(&(length as u32).to_le_bytes());
            received.tail().extend((0..length).map(|_| seed.next_u64() as u8));
            // Whether it decodes is chance; that it ends is not.
            if seed.chance(1, 2) {
                let _ = received.take::<dvm_core::wire::Control>();
            } else {
                let _ = received.take_ring();
            }
        }
    }
}
