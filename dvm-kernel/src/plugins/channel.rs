//! What a kernel and the child that holds a plug-in say to each other: the kernel's half.
//!
//! A frame is a length (`u32`, little endian, at most [`FRAME_MAX`]) and that many bytes of MessagePack. The kernel
//! sends [`ToChild`] without waiting; the child answers each with one [`FromChild`], in order. The other half is the plug-in
//! API's `host::Told` and `host::Said`, the same without [`Bytes`].

use bytes::{Buf, Bytes, BytesMut};
use dvm_plugin_api::host::FRAME_MAX;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;

/// What a child is to load, which it has a descriptor of, and where it asks for services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    /// BLAKE3 of the library.
    pub(super) hash: [u8; 32],
    /// The kernel's socket.
    pub(super) socket: PathBuf,
    /// The number of the instance's desk there.
    pub(super) desk: u64,
    /// The plug-in's name.
    pub(super) plugin: String,
    /// Longest time of a callback, milliseconds.
    pub(super) deadline_ms: u64,
}

/// Sends a descriptor ahead of all frames, with a byte to carry it.
///
/// # Errors
/// What the system says.
pub(super) fn send_descriptor(to: &StdStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for one");
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_descriptor`] sent.
///
/// # Errors
/// What the system says; or something else came.
pub(super) fn receive_descriptor(from: &StdStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::other("no descriptor came"))
}

/// To the child. Payloads are in the plug-in's format; `place`, `meta` and events as the plug-in API encodes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ToChild {
    /// Load the library: an [`Open`].
    Open(Bytes),
    /// Would this configuration do?
    Validate { config: Bytes, place: Bytes },
    /// Start the instance.
    Start { config: Bytes, place: Bytes },
    /// Take this state over.
    Restore(Bytes),
    /// Its role, as the plug-in API numbers it, with its token.
    Role { role: u32, fence: u64 },
    /// A primary may act until then, by the clock that all processes of the host share, microseconds.
    Lease { until_us: u64 },
    /// Apply a command.
    Apply { meta: Bytes, command: Bytes },
    /// Answer a query.
    Query(Bytes),
    /// Take a new configuration.
    Configure(Bytes),
    /// Something happened.
    Event(Bytes),
    /// Members or ranks changed.
    Place(Bytes),
    /// Tell the state.
    Snapshot,
    /// End the instance, then the process.
    Stop,
}

/// The child's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromChild {
    /// Done; with the reply or the state, if there is one.
    Done(Bytes),
    /// The plug-in's own error.
    Own(String),
    /// The plug-in panicked, now or before.
    Panic(String),
    /// The library cannot be loaded.
    NotLoaded { code: String, reason: String },
}

/// Appends a frame.
pub(super) fn put<T: Serialize>(message: &T, to: &mut Vec<u8>) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    rmp_serde::encode::write(to, message).expect("messages are plain data");
    let length = (to.len() - start - 4) as u32;
    to[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// A frame by itself.
pub(crate) fn frame<T: Serialize>(message: &T) -> Bytes {
    let mut bytes = Vec::new();
    put(message, &mut bytes);
    bytes.into()
}

/// Takes the first whole frame out of what was received.
///
/// # Errors
/// `InvalidData` for a length above the bound or bytes that do not decode.
pub(crate) fn take<T: DeserializeOwned>(received: &mut BytesMut) -> io::Result<Option<T>> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let Some(length) = received.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_MAX {
        return Err(invalid(format!("a frame of {length} bytes; at most {FRAME_MAX} are allowed")));
    }
    if received.len() < 4 + length {
        return Ok(None);
    }
    let message =
        rmp_serde::from_slice(&received[4..4 + length]).map_err(|error| invalid(error.to_string()))?;
    received.advance(4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_and_in_order_however_they_arrive() {
        let answers = [
            FromChild::Done(Bytes::from_static(b"reply")),
            FromChild::Own("no".into()),
            FromChild::Done(Bytes::new()),
        ];
        let mut sent = Vec::new();
        answers.iter().for_each(|answer| put(answer, &mut sent));
        let (mut received, mut got) = (BytesMut::new(), Vec::new());
        for byte in sent {
            received.extend_from_slice(&[byte]);
            got.extend(take::<FromChild>(&mut received).expect("a frame"));
        }
        assert_eq!(got, answers);
        assert!(received.is_empty());
    }

    #[test]
    fn a_length_above_the_bound_and_bytes_that_do_not_decode_are_refused() {
        let mut long = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert!(take::<FromChild>(&mut long).is_err());
        let mut garbage = BytesMut::from(&[2, 0, 0, 0, 0xc1, 0xc1][..]);
        assert!(take::<FromChild>(&mut garbage).is_err());
    }
}
