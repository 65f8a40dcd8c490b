//! One connection to one kernel: frames with deadlines. A frame cut short by a deadline is kept for the next call.

use super::Target;
use crate::local::{
    Answer, FRAME_MAX, Failure, FailureCode, LOCAL_VERSION, Request, Stamp, ToClient, ToKernel, decode,
    write_frame,
};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Bytes received and not yet decoded: less than one frame after each call.
    received: Vec<u8>,
    /// Of the last request sent.
    last_id: u64,
    /// The member at the other end.
    pub(super) member: String,
}

/// Why a kernel cannot be talked to.
pub(super) enum Refusal {
    /// Nobody is there.
    Gone,
    /// Somebody is, and said nothing in time.
    Silent,
    /// Its kernel is no member now: on its way in, or out.
    Outside,
    /// It said no.
    Failed(Failure),
}

/// What goes with a request.
#[derive(Clone, Copy, Default)]
pub(super) struct With<'a> {
    pub(super) stamp: Option<&'a Stamp>,
    /// Cursor of the last receipt.
    pub(super) seen: Option<&'a str>,
}

impl Connection {
    /// Connects and says hello.
    pub(super) fn open(target: &Target, member: &str, until: Instant) -> Result<Self, Refusal> {
        let stream = target.place.dial(member).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Refusal::Silent,
            io::ErrorKind::PermissionDenied => Refusal::Failed(
                Failure::new(FailureCode::Denied, format!("the kernel of {member} is not ours to talk to"))
                    .cause(error.to_string()),
            ),
            _ => Refusal::Gone,
        })?;
        let mut connection = Self { stream, received: Vec::new(), last_id: 0, member: member.into() };
        let hello = Request::Hello { version: LOCAL_VERSION, client: target.client.clone() };
        let silent_or_gone = |error: io::Error| {
            if error.kind() == io::ErrorKind::TimedOut { Refusal::Silent } else { Refusal::Gone }
        };
        connection.send(&hello, With::default(), None, Some(until)).map_err(silent_or_gone)?;
        match connection.receive(Some(until)).map_err(silent_or_gone)?.answer {
            Ok(Answer::Hello { member, .. }) => {
                connection.member = member;
                Ok(connection)
            }
            Ok(_) => Err(Refusal::Failed(
                Failure::new(FailureCode::Failure, format!("what answers at {member}'s socket is no kernel"))
                    .hint("are `dvm` and `dvm-kernel` of one version?"),
            )),
            Err(failure) if failure.code == FailureCode::NoDvm && target.outside => Ok(connection),
            Err(failure) if failure.code == FailureCode::NoDvm => Err(Refusal::Outside),
            Err(failure) => Err(Refusal::Failed(failure)),
        }
    }

    /// Sends a request; its number.
    pub(super) fn send(
        &mut self,
        request: &Request,
        with: With<'_>,
        timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> io::Result<u64> {
        self.last_id += 1;
        let message = ToKernel {
            id: self.last_id,
            stamp: with.stamp.cloned(),
            seen: with.seen.map(Into::into),
            timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            request: request.clone(),
        };
        self.stream.set_write_timeout(left(deadline)?)?;
        write_frame(&mut self.stream, &message).map_err(timed_out)?;
        Ok(self.last_id)
    }

    /// Waits for a message; `TimedOut` at the deadline, `UnexpectedEof` when the kernel is gone.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> io::Result<ToClient> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.stream.set_read_timeout(left(deadline)?)?;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
        }
    }

    /// The next whole frame received, if there is one.
    fn take(&mut self) -> io::Result<Option<ToClient>> {
        let Some((length, rest)) = self.received.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if length > FRAME_MAX {
            return Err(wrong("a frame exceeds the largest frame".into()));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = decode(body).map_err(|error| wrong(error.to_string()))?;
        self.received.drain(..4 + length);
        Ok(Some(message))
    }
}

/// What is left until a deadline, as sockets want it: never zero, which would mean no limit.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

/// A socket's timeout is told as `WouldBlock`.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}
