//! One connection to one kernel: frames with deadlines. A frame cut short by a deadline is kept for the next call.

use super::{Target, wake};
use crate::local::{
    Answer, FRAME_MAX, Failure, FailureCode, LOCAL_VERSION, Request, Stamp, ToClient, ToKernel, decode,
    write_frame,
};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a kernel may say nothing before it is asked whether it is there.
const QUIET: Duration = Duration::from_secs(2);

/// How long it may take to say so.
const ANSWER: Duration = Duration::from_secs(2);

/// How exact the former is, so that not every message sets a timer.
const GRAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// When to see whether the kernel is there, if it says nothing until then; and whether it was asked.
    look_at: Instant,
    asked: bool,
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
    /// Connects and says hello; [`greeted`](Self::greeted) tells what comes of it.
    pub(super) fn begin(target: &Target, member: &str) -> Result<Self, Refusal> {
        let stream = target.place.dial(member).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Refusal::Silent,
            io::ErrorKind::PermissionDenied => Refusal::Failed(
                Failure::new(FailureCode::Denied, format!("the kernel of {member} is not ours to talk to"))
                    .cause(error.to_string()),
            ),
            _ => Refusal::Gone,
        })?;
        let look_at = Instant::now() + QUIET;
        let (asked, received, last_id, member) = (false, Vec::new(), 0, member.into());
        let mut connection = Self { stream, look_at, asked, received, last_id, member };
        let hello = Request::Hello { version: LOCAL_VERSION, client: target.client.clone() };
        // An empty socket has room for it.
        connection.send(&hello, With::default(), None, None).map_err(|_| Refusal::Gone)?;
        Ok(connection)
    }

    /// Whether the kernel has answered hello; where `outside`, one that is no member will do.
    pub(super) fn greeted(&mut self, outside: bool) -> Result<bool, Refusal> {
        let Some(message) = self.try_receive().map_err(|_| Refusal::Gone)? else { return Ok(false) };
        match message.answer {
            Ok(Answer::Hello { member, .. }) => {
                self.member = member;
                Ok(true)
            }
            Ok(_) => {
                let message = format!("what answers at {}'s socket is no kernel", self.member);
                Err(Refusal::Failed(
                    Failure::new(FailureCode::Failure, message)
                        .hint("are `dvm` and `dvm-kernel` of one version?"),
                ))
            }
            Err(failure) if failure.code == FailureCode::NoDvm && outside => Ok(true),
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
        write_frame(&mut Quiet(&self.stream), &message).map_err(timed_out)?;
        self.look_at = self.look_at.max(Instant::now() + QUIET);
        Ok(self.last_id)
    }

    /// Waits for a message; `TimedOut` at the deadline, `UnexpectedEof` when the kernel is gone. Where `watched`, also what
    /// [`look`](Self::look) finds.
    pub(super) fn receive(&mut self, deadline: Option<Instant>, watched: bool) -> io::Result<ToClient> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            left(deadline)?;
            let until = deadline.into_iter().chain(watched.then_some(self.look_at)).min();
            wake::wait(Some(self.fd()), until);
            if !self.fill()? && watched {
                self.look()?;
            }
        }
    }

    /// When [`look`](Self::look) is due, if nothing is received until then.
    pub(super) fn looks_at(&self) -> Instant {
        self.look_at
    }

    /// After nothing was received: asks the kernel whether it is there if it has said nothing for long. One that is stopped
    /// holds its connections, and would keep its clients waiting for as long.
    ///
    /// # Errors
    /// `ConnectionAborted` when it does not answer.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now < self.look_at {
            return Ok(());
        }
        if self.asked {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let hello = Request::Hello { version: LOCAL_VERSION, client: String::new() };
        self.send(&hello, With::default(), None, Some(now + GRAIN))
            .map_err(|_| io::ErrorKind::ConnectionAborted)?;
        (self.look_at, self.asked) = (now + ANSWER, true);
        Ok(())
    }

    /// It is there.
    fn heard(&mut self) {
        let look_at = Instant::now() + QUIET;
        if self.asked || look_at > self.look_at + GRAIN {
            (self.look_at, self.asked) = (look_at, false);
        }
    }

    /// A message if one is here; `UnexpectedEof` when the kernel is gone.
    pub(super) fn try_receive(&mut self) -> io::Result<Option<ToClient>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Whether a whole message is here that was not taken: the descriptor does not tell of it any more.
    pub(super) fn holds_message(&self) -> bool {
        let length = self.received.split_first_chunk::<4>();
        length.is_some_and(|(length, rest)| rest.len() >= u32::from_le_bytes(*length) as usize)
    }

    /// The stream, and what was received by it and not taken.
    pub(super) fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.received)
    }

    /// What has something to read when a message, or the kernel's end, may be there.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Takes what has arrived; whether there was anything.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        match recv(&self.stream, &mut chunk[..], RecvFlags::DONTWAIT).map_err(io::Error::from) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => {
                self.received.extend_from_slice(&chunk[..length]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                Ok(false)
            }
            Err(error) => Err(error),
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
        self.heard();
        Ok(Some(message))
    }
}

/// Writes to a socket whose other end may be gone without SIGPIPE, which would end a program that does not ignore it.
struct Quiet<'a>(&'a UnixStream);

impl io::Write for Quiet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
