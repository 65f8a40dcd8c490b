//! The HTTP server: one thread, which waits for all who are connected at once and for nobody alone.
//!
//! It answers `GET /metrics` and says no to everything else. A connection carries one request, is read up to a limit
//! and kept for a while; where too many come, the oldest gives way.

use crate::listen::{Address, Listener};
use crate::text;
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use serde::Serialize;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Connections at a time.
const GUESTS: usize = 32;
/// How long one may take to ask and to take its answer.
const STAY: Duration = Duration::from_secs(5);
/// Longest request, bytes.
const REQUEST_MAX: usize = 8 << 10;
/// How long the kernel may take to tell.
const KERNEL: Duration = Duration::from_secs(2);

/// How it has fared.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Counts {
    /// Scrapes that were answered.
    scrapes: u64,
    /// Requests that were not: for something else, garbled, or while the kernel did not tell.
    errors: u64,
}

#[derive(Debug, Default)]
struct Tally {
    scrapes: AtomicU64,
    errors: AtomicU64,
}

/// The server, from outside. Dropped, it ends.
pub(crate) struct Server {
    listen: Vec<String>,
    tally: Arc<Tally>,
    /// The thread ends when the other end of its socket does.
    running: Option<(UnixStream, JoinHandle<()>)>,
}

impl Server {
    /// Listens at all addresses, or at none.
    pub(crate) fn start(addresses: Vec<Address>) -> Result<Self, String> {
        let listeners = addresses.iter().map(Address::listen).collect::<Result<Vec<_>, _>>()?;
        let listen = listeners.iter().map(|listener| listener.name().to_owned()).collect();
        let target = Target::find(None, "metrics").map_err(|failure| failure.message)?;
        let target = Target { only: target.prefer.clone(), reach: KERNEL, ..target };
        let tally = Arc::<Tally>::default();
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let house =
            House { listeners, end: theirs, guests: Vec::new(), kernel: Kernel { target, client: None } };
        let told = tally.clone();
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || house.run(&told));
        let thread = thread.map_err(|error| format!("no thread for the server: {error}"))?;
        Ok(Self { listen, tally, running: Some((ours, thread)) })
    }

    /// Where it listens.
    pub(crate) fn listen(&self) -> &[String] {
        &self.listen
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts { scrapes: read(&self.tally.scrapes), errors: read(&self.tally.errors) }
    }

    /// Ends it; its addresses are free then.
    pub(crate) fn stop(&mut self) {
        if let Some((socket, thread)) = self.running.take() {
            drop(socket);
            // If it panicked, it has ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread has.
struct House {
    listeners: Vec<Listener>,
    /// Reads as ended when the thread is to end.
    end: UnixStream,
    /// Oldest first.
    guests: Vec<Guest>,
    kernel: Kernel,
}

/// A connection.
struct Guest {
    socket: OwnedFd,
    until: Instant,
    request: Vec<u8>,
    /// Empty while it is asking.
    answer: Vec<u8>,
    written: usize,
}

/// What becomes of a connection.
#[derive(PartialEq, Eq)]
enum Stays {
    Yes,
    No,
}

impl House {
    fn run(mut self, tally: &Tally) {
        loop {
            let (ready, ended) = match self.wait() {
                Ok(found) => found,
                Err(error) => {
                    eprintln!("metrics are not served any more: {error}");
                    return;
                }
            };
            if ended {
                return;
            }
            let now = Instant::now();
            let kernel = &mut self.kernel;
            let mut guests = ready[self.listeners.len()..].iter();
            self.guests.retain_mut(|guest| {
                let ready = guests.next().is_some_and(|ready| *ready);
                let stays = !ready || guest.serve(kernel, tally) == Stays::Yes;
                stays && guest.until > now
            });
            for (listener, _) in self.listeners.iter().zip(&ready).filter(|(_, ready)| **ready) {
                // One that has gone again is no trouble; without a descriptor, somebody has to leave first.
                if let Ok(socket) = listener.accept() {
                    if self.guests.len() == GUESTS {
                        self.guests.remove(0);
                    }
                    let (request, answer) = Default::default();
                    self.guests.push(Guest { socket, until: now + STAY, request, answer, written: 0 });
                } else if !self.guests.is_empty() {
                    self.guests.remove(0);
                }
            }
        }
    }

    /// Waits for something to do: which listeners and guests are ready, and whether it is the end.
    fn wait(&self) -> io::Result<(Vec<bool>, bool)> {
        let mut waited = vec![PollFd::new(&self.end, PollFlags::IN)];
        waited.extend(self.listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        waited.extend(self.guests.iter().map(|guest| {
            let asks = guest.answer.is_empty();
            PollFd::new(&guest.socket, if asks { PollFlags::IN } else { PollFlags::OUT })
        }));
        let until = self.guests.iter().map(|guest| guest.until).min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut waited, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        Ok((ready[1..].to_vec(), ready[0]))
    }
}

impl Guest {
    /// Does what can be done without waiting.
    fn serve(&mut self, kernel: &mut Kernel, tally: &Tally) -> Stays {
        if self.answer.is_empty() {
            let mut bytes = [0; 2_048];
            match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((0, _)) => return Stays::No,
                Ok((count, _)) => self.request.extend_from_slice(&bytes[..count]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Stays::Yes,
                Err(_) => return Stays::No,
            }
            let whole = self.request.windows(4).any(|four| four == b"\r\n\r\n");
            if !whole && self.request.len() <= REQUEST_MAX {
                return Stays::Yes;
            }
            let (status, answer) = if whole {
                answer(&self.request, kernel)
            } else {
                plain("431 Request Header Fields Too Large", "")
            };
            let count = if status == 200 { &tally.scrapes } else { &tally.errors };
            count.fetch_add(1, Ordering::Relaxed);
            self.answer = answer;
        }
        match send(&self.socket, &self.answer[self.written..], SendFlags::NOSIGNAL) {
            Ok(count) => self.written += count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => return Stays::No,
        }
        if self.written < self.answer.len() {
            return Stays::Yes;
        }
        // It is closed next, whatever this says.
        let _ = shutdown(&self.socket, Shutdown::Write);
        Stays::No
    }
}

/// The answer to a request, and its status.
fn answer(request: &[u8], kernel: &mut Kernel) -> (u16, Vec<u8>) {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<_> = std::str::from_utf8(line).unwrap_or_default().split(' ').collect();
    let &[method, target, version] = &words[..] else { return plain("400 Bad Request", "no HTTP request") };
    if !version.starts_with("HTTP/1.") {
        return plain("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here");
    }
    if target.split('?').next() != Some("/metrics") {
        return plain("404 Not Found", "there is only /metrics");
    }
    match method {
        "GET" => match kernel.ask() {
            Ok(text) => reply("200 OK", text::TYPE, &text),
            Err(failure) => plain("503 Service Unavailable", &failure.message),
        },
        "HEAD" => reply("200 OK", text::TYPE, ""),
        _ => plain("405 Method Not Allowed", "ask with GET"),
    }
}

fn plain(status: &str, why: &str) -> (u16, Vec<u8>) {
    reply(status, "text/plain; charset=utf-8", &format!("{why}\n"))
}

fn reply(status: &str, kind: &str, body: &str) -> (u16, Vec<u8>) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let code = status.split(' ').next().and_then(|code| code.parse().ok());
    (code.expect("it begins with a number"), [head.as_bytes(), body.as_bytes()].concat())
}

/// The kernel that this instance belongs to.
struct Kernel {
    target: Target,
    client: Option<Client>,
}

impl Kernel {
    /// What it tells now, as text.
    fn ask(&mut self) -> Result<String, Failure> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.target.clone())?,
        };
        let Answer::Metrics(metrics) = client.request(Request::Metrics, None, Some(KERNEL))? else {
            return Err(Failure::new(FailureCode::Failure, "the kernel's answer makes no sense"));
        };
        self.client = Some(client);
        Ok(text::encode(&metrics))
    }
}
