//! A child, process or thread, and the socket to it: frames go out without waiting, answers come back in order, and at last its end.

use super::channel::{self, FromChild, ToChild};
use super::context::Speaker;
use super::inside::Inside;
use super::process::{Ending, Process, Usage};
use super::thread::Thread;
use crate::peer::Blob;
use crate::services::desk::Notices;
use bytes::BytesMut;
use rustix::net::Shutdown;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// How long a child may take to die after it closed its socket.
const DYING: Duration = Duration::from_millis(100);
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// What a child does next.
#[derive(Debug)]
pub(super) enum Next {
    /// The answer to the earliest frame that has none.
    Answer(FromChild),
    /// It is gone, with everything it started.
    Ended(Ending),
}

/// A running child. Dropping it kills and reaps a process, and tells a thread to end.
#[derive(Debug)]
pub(super) struct Link {
    far: Far,
    socket: UnixStream,
    /// Frames on their way out; the first `written` bytes are gone.
    out: Vec<u8>,
    written: usize,
    received: BytesMut,
    /// Nothing more will come from the socket.
    closed: bool,
    /// The instance's end of its desk, until it serves. An application of old has none.
    notices: Option<Notices>,
}

/// What is at the other end.
#[derive(Debug)]
enum Far {
    Process(Process),
    Thread(Thread),
    /// An application; its end is its connection's.
    Application {
        pid: u32,
    },
}

impl Far {
    /// Waits for its end.
    async fn ended(&mut self) -> Ending {
        match self {
            Self::Process(process) => process.ended().await,
            Self::Thread(thread) => {
                thread.ended().await;
                Ending::Thread
            }
            Self::Application { .. } => std::future::pending().await,
        }
    }

    /// Ends it, as far as it can be ended.
    fn end(&mut self) -> Ending {
        match self {
            Self::Process(process) => process.end(),
            Self::Thread(thread) => {
                thread.close();
                Ending::Thread
            }
            Self::Application { .. } => Ending::Gone,
        }
    }
}

impl Link {
    /// Starts a child that holds nothing yet.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub(super) fn start(kernel: &Path, speaker: Speaker, library: &Blob) -> io::Result<Self> {
        let (process, socket) = Process::start(kernel, speaker, library)?;
        Ok(Self::new(Far::Process(process), socket))
    }

    /// Starts a child inside this kernel.
    ///
    /// # Errors
    /// As [`Thread::start`].
    pub(super) fn inside(inside: &Arc<Inside>, speaker: Speaker, library: Arc<Blob>) -> io::Result<Self> {
        let (thread, socket) = Thread::start(inside, speaker, library)?;
        Ok(Self::new(Far::Thread(thread), socket))
    }

    /// An application that came by itself, with the first that it is told.
    pub(super) fn application(
        pid: u32,
        socket: UnixStream,
        greeting: Vec<u8>,
        notices: Option<Notices>,
    ) -> Self {
        Self { out: greeting, notices, ..Self::new(Far::Application { pid }, socket) }
    }

    fn new(far: Far, socket: UnixStream) -> Self {
        let (out, received) = (Vec::new(), BytesMut::new());
        Self { far, socket, out, written: 0, received, closed: false, notices: None }
    }

    /// Its instance has this desk.
    pub(super) fn hold(&mut self, notices: Notices) {
        self.notices = Some(notices);
    }

    /// The desk, for whoever tells the instance what waits there.
    pub(super) fn take_notices(&mut self) -> Option<Notices> {
        self.notices.take()
    }

    /// The process it is in.
    pub(super) fn pid(&self) -> u32 {
        match &self.far {
            Far::Process(process) => process.pid(),
            Far::Thread(_) => std::process::id(),
            Far::Application { pid } => *pid,
        }
    }

    /// What the child uses at this moment; nobody knows it of a thread.
    pub(super) fn usage(&self) -> Option<Usage> {
        match &self.far {
            Far::Process(process) => process.usage(),
            Far::Thread(_) | Far::Application { .. } => None,
        }
    }

    /// Bytes that wait to be sent.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// Places a frame in the out-queue.
    pub(super) fn send(&mut self, frame: &[u8]) {
        self.out.extend_from_slice(frame);
    }

    /// Ends the child at once, a thread as soon as it comes back; [`next`](Self::next) will tell.
    pub(super) fn kill(&self) {
        match &self.far {
            Far::Process(process) => process.kill(),
            Far::Thread(thread) => {
                thread.close();
                self.hang_up();
            }
            Far::Application { .. } => self.hang_up(),
        }
    }

    fn hang_up(&self) {
        // One that is closed already ends as well.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// An answer that is already here.
    pub(super) fn ready(&mut self) -> Option<FromChild> {
        match channel::take(&mut self.received) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "a plug-in's process speaks nonsense and is ended");
                self.kill();
                self.received.clear();
                self.closed = true;
                None
            }
        }
    }

    /// Sends what can be sent until there is an answer or the child has ended. All answers come before the end. May
    /// be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(answer) = self.ready() {
                return Next::Answer(answer);
            }
            if self.closed && matches!(self.far, Far::Application { .. }) {
                return Next::Ended(self.far.end());
            }
            if self.closed {
                let dying = tokio::time::timeout(DYING, self.far.ended()).await;
                return Next::Ended(dying.unwrap_or_else(|_| self.far.end()));
            }
            self.write();
            let interest = match self.backlog() {
                0 => Interest::READABLE,
                _ => Interest::READABLE | Interest::WRITABLE,
            };
            tokio::select! {
                biased;
                ready = self.socket.ready(interest) => match ready {
                    Ok(ready) if ready.is_readable() => drop(self.read_some()),
                    Ok(_) => {}
                    Err(_) => self.closed = true,
                },
                _ = self.far.ended() => {
                    while self.read_some() {}
                    self.closed = true;
                }
            }
        }
    }

    /// Sends a message and waits for its answer, with nothing else under way.
    ///
    /// # Errors
    /// The child's end.
    pub(super) async fn ask(&mut self, message: &ToChild) -> Result<FromChild, Ending> {
        channel::put(message, &mut self.out);
        match self.next().await {
            Next::Answer(answer) => Ok(answer),
            Next::Ended(ending) => Err(ending),
        }
    }

    fn write(&mut self) {
        while self.backlog() > 0 {
            match self.socket.try_write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.out.drain(..self.written);
                    self.written = 0;
                    return;
                }
                // The child is going; reading tells.
                Err(_) => break,
            }
        }
        self.out.clear();
        self.written = 0;
    }

    /// Reads once; whether there may be more.
    fn read_some(&mut self) -> bool {
        self.received.reserve(READ_BYTES);
        match self.socket.try_read_buf(&mut self.received) {
            Ok(0) => {
                self.closed = true;
                false
            }
            Ok(_) => true,
            Err(error) => {
                self.closed |= error.kind() != io::ErrorKind::WouldBlock;
                false
            }
        }
    }
}
