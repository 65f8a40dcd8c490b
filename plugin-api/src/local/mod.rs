//! What local clients and a kernel say to each other over the kernel's Unix socket.
//!
//! A frame is a length (`u32`, little endian, at most [`FRAME_MAX`]) and that many bytes of MessagePack with named
//! fields, so that either side may know fields the other does not. The client sends [`ToKernel`], the kernel
//! [`ToClient`]; an answer carries its request's number. A subscription is answered by any number of
//! [`Answer::Event`] and ends with [`Answer::End`] or an error.

mod bootstrap;
mod documents;
mod request;

pub use bootstrap::*;
pub use documents::*;
pub(crate) use request::serde_bytes_vec as bytes;
pub use request::*;

use std::io::{self, Read, Write};

/// Largest frame, bytes.
pub const FRAME_MAX: usize = 4 << 20;

/// Version of this protocol; a kernel refuses a client whose version it does not speak.
pub const LOCAL_VERSION: u16 = 1;

/// Encodes a message as the body of a frame.
///
/// # Panics
/// Never: the messages are plain data.
#[must_use]
pub fn encode<T: serde::Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("messages are plain data")
}

/// Decodes the body of a frame.
///
/// # Errors
/// If the bytes are not a message of this kind.
pub fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(body)
}

/// Writes one frame.
///
/// # Errors
/// What the writer says, or `InvalidInput` for a message above [`FRAME_MAX`]; then nothing was written.
pub fn write_frame<T: serde::Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = encode(message);
    if body.len() > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message exceeds the largest frame"));
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame)
}

/// Reads one frame; `None` at the end of the stream.
///
/// # Errors
/// What the reader says; `InvalidData` for a length above [`FRAME_MAX`] or bytes that do not decode.
pub fn read_frame<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame exceeds the largest frame"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    decode(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
