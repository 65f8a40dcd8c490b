//! A [`Hosted`] instance at its end of a socket: frames in, callbacks, answers out.
//!
//! A frame is a length (`u32`, little endian, at most [`FRAME_MAX`]) and that many bytes of MessagePack. The kernel sends
//! [`Told`] without waiting, and each is answered by one [`Said`], in order. Nothing here waits but the callbacks: whoever
//! has nothing else to do waits by [`run`](Hosting::run), and a program with a loop of its own takes a [`turn`](Hosting::turn)
//! whenever the socket is ready.

use super::hosted::{Hosted, Said, Told};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Largest frame, bytes: a snapshot must fit.
pub const FRAME_MAX: usize = 512 << 20;
/// Bytes read in one turn: a loop has others to serve.
const READ_BYTES: usize = 64 << 10;
/// Answers wait for company so long, and no longer.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// Answers wait for company up to so many bytes.
const FLUSH_BYTES: usize = 64 << 10;

/// An instance and its socket.
pub struct Hosting {
    socket: UnixStream,
    hosted: Hosted,
    /// Bytes received and not yet handled.
    received: Vec<u8>,
    /// Answers on their way out; the first `sent` bytes are gone.
    answers: Vec<u8>,
    sent: usize,
    flushed: Instant,
    /// It was told to stop.
    stopped: bool,
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// So many callbacks were made; nothing more can be done until the socket is [ready](Hosting::wants).
    Done(usize),
    /// It was told to stop, and has.
    Stopped,
    /// The kernel has closed the connection, or is gone.
    Gone,
}

impl Hosting {
    /// With what was received by the socket already.
    #[must_use]
    pub fn new(socket: UnixStream, hosted: Hosted, received: Vec<u8>) -> Self {
        let (answers, flushed) = (Vec::new(), Instant::now());
        Self { socket, hosted, received, answers, sent: 0, flushed, stopped: false }
    }

    /// The instance.
    pub fn hosted(&mut self) -> &mut Hosted {
        &mut self.hosted
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// What the socket is to be ready for before another turn does anything.
    #[must_use]
    pub fn wants(&self) -> PollFlags {
        if self.answers.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Reads what is here, a bounded part of it, makes the callbacks, and sends the answers as far as there is room.
    ///
    /// # Errors
    /// The socket's, and frames that do not read.
    pub fn turn(&mut self) -> io::Result<Turn> {
        match self.try_turn() {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(Turn::Gone)
            }
            other => other,
        }
    }

    fn try_turn(&mut self) -> io::Result<Turn> {
        let mut callbacks = 0;
        if !self.flush()? {
            return Ok(Turn::Done(callbacks));
        }
        if whole(&self.received)?.is_none() && !self.stopped && !self.fill()? {
            return Ok(Turn::Gone);
        }
        let mut at = 0;
        while !self.stopped {
            let Some(body) = whole(&self.received[at..])? else { break };
            let told: Told = rmp_serde::from_slice(body).map_err(|error| invalid(error.to_string()))?;
            at += 4 + body.len();
            callbacks += 1;
            self.stopped = told == Told::Stop;
            put(&self.hosted.handle(told), &mut self.answers);
            let due = self.answers.len() >= FLUSH_BYTES || self.flushed.elapsed() >= FLUSH_AFTER;
            if due && !self.flush()? {
                break;
            }
        }
        self.received.drain(..at);
        if self.received.is_empty() {
            // A state that was handed over is large, and there is one.
            self.received.shrink_to(READ_BYTES);
        }
        if self.flush()? && self.stopped {
            return Ok(Turn::Stopped);
        }
        Ok(Turn::Done(callbacks))
    }

    /// Waits and takes turns until it is over, or until a moment: then what the last turn did.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub fn run(&mut self, until: Option<Instant>) -> io::Result<Turn> {
        loop {
            let turn = self.turn()?;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if !matches!(turn, Turn::Done(_)) || left == Some(Duration::ZERO) {
                return Ok(turn);
            }
            let left = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            // Whatever ends it, the turn looks for itself.
            let _ = poll(&mut [PollFd::new(&self.socket, self.wants())], left.as_ref());
        }
    }

    /// Sends what can be sent; whether that was all.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.answers.len() {
            // SIGPIPE would end an application that does not ignore it.
            match send(&self.socket, &self.answers[self.sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.answers.clear();
        self.answers.shrink_to(FLUSH_BYTES);
        (self.sent, self.flushed) = (0, Instant::now());
        Ok(true)
    }

    /// Takes some of what has arrived; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.received.reserve(READ_BYTES);
        let count = recv(&self.socket, spare_capacity(&mut self.received), RecvFlags::DONTWAIT);
        self.flushed = Instant::now();
        match count {
            Ok((count, _)) => Ok(count > 0),
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Hosting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The body of the first frame, if all of it is here.
fn whole(received: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = received.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_MAX {
        return Err(invalid(format!(
            "the kernel sent {length} bytes at once; at most {FRAME_MAX} are allowed"
        )));
    }
    Ok(rest.get(..length))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn put(said: &Said, to: &mut Vec<u8>) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    rmp_serde::encode::write(to, said).expect("an answer is plain data");
    let length = (to.len() - start - 4) as u32;
    to[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Module};
    use super::*;
    use crate::{Host, Meta, Place, Plugin, Result};
    use std::io::{Read, Write};

    /// Says what it is told, as often as it is told to.
    struct Echo;

    impl Plugin for Echo {
        type Config = ();
        type Command = (String, usize);
        type Reply = String;

        fn start((): (), _: Host) -> Result<Self> {
            Ok(Self)
        }

        fn apply(&mut self, (text, times): (String, usize), _: &Meta) -> Result<String> {
            Ok(text.repeat(times))
        }
    }

    fn framed(told: &Told) -> Vec<u8> {
        let body = rmp_serde::to_vec(told).expect("plain data");
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend(body);
        frame
    }

    fn heard(socket: &mut UnixStream) -> Said {
        let mut length = [0; 4];
        socket.read_exact(&mut length).expect("an answer");
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        socket.read_exact(&mut body).expect("all of it");
        rmp_serde::from_slice(&body).expect("an answer")
    }

    /// An instance that has started, and the kernel's end.
    fn started() -> (Hosting, UnixStream) {
        let (ours, mut kernel) = UnixStream::pair().expect("a pair");
        let hosted = Hosted::of(Module::of::<Echo>(), Context::new(|_, _| {}));
        let mut hosting = Hosting::new(ours, hosted, Vec::new());
        let place = rmp_serde::to_vec_named(&Place::default()).expect("plain data");
        let config = rmp_serde::to_vec(&()).expect("plain data");
        kernel.write_all(&framed(&Told::Start { config, place })).expect("sent");
        assert_eq!(hosting.turn().expect("a turn"), Turn::Done(1));
        assert_eq!(heard(&mut kernel), Said::Done(Vec::new()));
        (hosting, kernel)
    }

    fn apply(text: &str, times: usize) -> Vec<u8> {
        let meta = rmp_serde::to_vec_named(&Meta::at(1)).expect("plain data");
        framed(&Told::Apply { meta, command: rmp_serde::to_vec(&(text, times)).expect("plain data") })
    }

    fn reply(said: Said) -> usize {
        let Said::Done(reply) = said else { panic!("{said:?}") };
        rmp_serde::from_slice::<String>(&reply).expect("text").len()
    }

    #[test]
    fn frames_are_answered_once_they_are_whole_and_a_turn_never_waits() {
        let (mut hosting, mut kernel) = started();
        assert_eq!(hosting.turn().expect("a turn"), Turn::Done(0), "nothing is here");
        let frame = apply("x", 3);
        let (first, last) = frame.split_at(frame.len() - 1);
        kernel.write_all(first).expect("sent");
        assert_eq!(hosting.turn().expect("a turn"), Turn::Done(0), "a part is here");
        kernel.write_all(last).expect("sent");
        kernel.write_all(&frame).expect("sent");
        assert_eq!(hosting.turn().expect("a turn"), Turn::Done(2));
        assert_eq!((reply(heard(&mut kernel)), reply(heard(&mut kernel))), (3, 3));
        drop(kernel);
        assert_eq!(hosting.turn().expect("a turn"), Turn::Gone);
    }

    /// The kernel does not read: what has no room waits, nothing more is read, and then it goes on where it was.
    #[test]
    fn answers_without_room_wait_and_come_in_order() {
        let (mut hosting, mut kernel) = started();
        const LARGE: usize = 4 << 20;
        for text in ["x", "yy"] {
            kernel.write_all(&apply(text, LARGE)).expect("sent");
        }
        kernel.write_all(&framed(&Told::Stop)).expect("sent");
        let first = hosting.turn().expect("a turn");
        assert!(matches!(first, Turn::Done(1..)), "{first:?}");
        assert_eq!(hosting.wants(), PollFlags::OUT);
        assert_eq!(hosting.turn().expect("a turn"), Turn::Done(0));
        let reader = std::thread::spawn(move || {
            let sizes = [reply(heard(&mut kernel)), reply(heard(&mut kernel))];
            (sizes, heard(&mut kernel))
        });
        assert_eq!(hosting.run(None).expect("it ends"), Turn::Stopped);
        assert_eq!(reader.join().expect("it reads"), ([LARGE, 2 * LARGE], Said::Done(Vec::new())));
    }

    #[test]
    fn lengths_above_the_bound_and_bytes_that_do_not_decode_are_errors() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff, 0][..], &[2, 0, 0, 0, 0xc1, 0xc1]] {
            let (mut hosting, mut kernel) = started();
            kernel.write_all(bytes).expect("sent");
            let error = hosting.turn().expect_err("it is refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    /// It waits, and returns when time is up or the kernel is gone.
    #[test]
    fn waiting_has_an_end() {
        let (mut hosting, kernel) = started();
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(hosting.run(Some(soon)).expect("time is up"), Turn::Done(0));
        assert!(Instant::now() >= soon);
        drop(kernel);
        assert_eq!(hosting.run(None).expect("it ends"), Turn::Gone);
    }
}
