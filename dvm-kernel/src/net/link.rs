//! A ring link: one TLS stream, driven by hand so that nothing stands between the socket and the member.
//!
//! After the handshake the socket and the TLS state are taken out of their asynchronous wrapping. A step reads what has
//! come, decrypts and decodes all of it, and lets the caller handle it; what the member then places is encoded behind
//! one another and leaves in one write. Reading never waits for writing.

use super::frame::{FrameError, RING_FRAME_MAX, Received, encode_ring};
use dvm_core::ids::{LinkId, MemberId};
use dvm_core::wire::Ring;
use rustls::Connection;
use std::collections::VecDeque;
use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes encrypted ahead of the socket: enough for one full write.
const AHEAD: usize = 256 << 10;

/// Reads in one step, so that a fast predecessor does not keep everything else waiting.
const READS: usize = 8;

/// Why a link is at its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The far end closed it.
    #[error("closed by the far end")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The far end does not speak TLS as it should.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The far end sent what is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// What has left a link, counted since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Frames.
    pub(crate) frames: u64,
    /// Their bytes, before encryption.
    pub(crate) bytes: u64,
}

/// A ring link.
pub(crate) struct Link {
    /// Our number for it.
    pub(crate) id: LinkId,
    /// Who is at the far end.
    pub(crate) peer: MemberId,
    stream: TcpStream,
    tls: Connection,
    received: Received,
    /// Encoded frames; those before `given` are encrypted.
    queue: Vec<u8>,
    given: usize,
    /// For each frame that has not left: where it ends, counted in bytes since the link was opened, and its cost.
    leaving: VecDeque<(u64, u64)>,
    /// The handshake may have brought more than itself.
    fresh: bool,
    /// Bytes encrypted since the link was opened.
    encrypted: u64,
    /// Of those, bytes that are in the socket for certain.
    out: u64,
    counts: Counts,
    /// Bytes decrypted and not told yet.
    arrived: u64,
}

impl Link {
    /// From a connection whose handshake and first frame are done.
    pub(crate) fn new(id: LinkId, peer: MemberId, stream: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(None);
        Self {
            id,
            peer,
            stream,
            tls,
            received: Received::new(RING_FRAME_MAX),
            queue: Vec::new(),
            given: 0,
            leaving: VecDeque::new(),
            fresh: true,
            encrypted: 0,
            out: 0,
            counts: Counts::default(),
            arrived: 0,
        }
    }

    /// Reads what has come, within bounds, and puts its frames behind `frames`. True: there may be more.
    pub(crate) fn read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        frames: &mut VecDeque<(LinkId, Ring)>,
    ) -> Result<bool, LinkError> {
        if std::mem::take(&mut self.fresh) {
            self.decrypt(&[])?;
            self.decode(frames)?;
        }
        for _ in 0..READS {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(LinkError::Closed),
                Poll::Ready(Ok(())) => {}
            }
            let length = buffer.filled().len();
            self.decrypt(&scratch[..length])?;
            self.decode(frames)?;
        }
        Ok(true)
    }

    /// Places a frame behind all placed before; its bytes.
    pub(crate) fn place(&mut self, message: &Ring) -> usize {
        let before = self.queue.len();
        encode_ring(message, &mut self.queue);
        let bytes = self.queue.len() - before;
        let end = self.encrypted + (self.queue.len() - self.given) as u64;
        self.leaving.push_back((end, message.cost()));
        self.counts.frames += 1;
        self.counts.bytes += bytes as u64;
        bytes
    }

    /// Writes as much as the socket takes; the sum of the costs of the frames that have left.
    pub(crate) fn write(&mut self, cx: &mut Context<'_>) -> Result<u64, LinkError> {
        loop {
            if !self.tls.wants_write() {
                self.out = self.encrypted;
                let part = (self.queue.len() - self.given).min(AHEAD);
                if part == 0 {
                    self.queue.clear();
                    self.given = 0;
                    break;
                }
                self.tls.writer().write_all(&self.queue[self.given..self.given + part])?;
                self.given += part;
                self.encrypted += part as u64;
            }
            match self.tls.write_tls(&mut Socket { stream: &mut self.stream, cx }) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.trim();
                    return Ok(self.left());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.left())
    }

    /// Whether something waits to be written.
    pub(crate) fn has_queued(&self) -> bool {
        !self.leaving.is_empty() || self.tls.wants_write()
    }

    /// Bytes that wait to be written, before encryption.
    pub(crate) fn queued_bytes(&self) -> u64 {
        (self.queue.len() - self.given) as u64
    }

    /// Bytes that came since this was asked last, after decryption.
    pub(crate) fn take_arrived(&mut self) -> u64 {
        std::mem::take(&mut self.arrived)
    }

    /// What has been placed so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn decrypt(&mut self, mut bytes: &[u8]) -> Result<(), LinkError> {
        loop {
            if !bytes.is_empty() {
                self.tls.read_tls(&mut bytes)?;
            }
            let state = self.tls.process_new_packets()?;
            let mut left = state.plaintext_bytes_to_read();
            self.received.make_room(left);
            self.arrived += left as u64;
            while left > 0 {
                let mut reader = self.tls.reader();
                let part = reader.fill_buf()?;
                self.received.tail().extend_from_slice(part);
                let length = part.len();
                left -= length;
                reader.consume(length);
            }
            if bytes.is_empty() {
                return if state.peer_has_closed() { Err(LinkError::Closed) } else { Ok(()) };
            }
        }
    }

    fn decode(&mut self, frames: &mut VecDeque<(LinkId, Ring)>) -> Result<(), LinkError> {
        while let Some(message) = self.received.take_ring()? {
            frames.push_back((self.id, message));
        }
        Ok(())
    }

    /// Forgets what was encrypted, once that is much.
    fn trim(&mut self) {
        if self.given > AHEAD {
            self.queue.drain(..self.given);
            self.given = 0;
        }
    }

    /// Sum of the costs of the frames that have left and were not told yet.
    fn left(&mut self) -> u64 {
        let mut sum = 0;
        while self.leaving.front().is_some_and(|(end, _)| *end <= self.out) {
            sum += self.leaving.pop_front().map_or(0, |(_, cost)| cost);
        }
        sum
    }
}

/// The socket as TLS wants to write to it.
struct Socket<'a, 'b> {
    stream: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.stream).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.stream).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn blocking(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
