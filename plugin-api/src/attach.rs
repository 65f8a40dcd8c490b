//! An application's process as the place of a plug-in's instance.
//!
//! ```no_run
//! # use dvm_plugin_api::{Host, Meta, Plugin, Result};
//! # struct Counter;
//! # impl Plugin for Counter {
//! #     type Config = serde_json::Value; type Command = i64; type Reply = i64;
//! #     fn start(_: serde_json::Value, _: Host) -> Result<Self> { Ok(Self) }
//! #     fn apply(&mut self, command: i64, _: &Meta) -> Result<i64> { Ok(command) }
//! # }
//! use dvm_plugin_api::client::{Client, Target};
//!
//! # fn main() -> std::result::Result<(), dvm_plugin_api::local::Failure> {
//! let client = Client::connect(Target::find(None, "my application")?)?;
//! let attached = dvm_plugin_api::attach::<Counter>(&client, "counter")?;
//! // … the application's own work …
//! attached.wait()
//! # }
//! ```
//!
//! The plug-in was loaded with `--placement application`, which needs no library. Its instance on the member that the
//! client talks to runs here, on a thread of its own: the same callbacks in the same order as in any other place. When
//! the application goes the instance has failed, and the next one that attaches goes on from another instance's state,
//! or from the last snapshot and what came since.
//!
//! What an instance logs goes to the application's standard error. A panic ends the instance and not the application.

use crate::Plugin;
use crate::abi::{HostCalls, HostCallsRef, Slice};
use crate::client::Client;
use crate::host::{Acting, CallError, Instance, Module};
use crate::local::{Failure, FailureCode, bytes};
use crate::plugin::Role;
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// Version of what a kernel and an attached application say to each other.
pub const ATTACH_VERSION: u16 = 1;

/// Largest frame, bytes: a snapshot must fit.
const FRAME_MAX: usize = 512 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// An instance that runs in this process. Dropping it detaches it.
#[derive(Debug)]
pub struct Attached {
    stream: UnixStream,
    seat: &'static Seat,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

/// Runs the instance of a loaded plug-in, on the member that the client talks to, in this process.
///
/// # Errors
/// If no such plug-in is loaded with placement `application`, if that member has no instance of it, or another
/// application runs it already.
pub fn attach<P: Plugin>(client: &Client, plugin: &str) -> Result<Attached, Failure> {
    let (stream, received) = client.attach(plugin)?;
    let failed = |error: io::Error| Failure::new(FailureCode::Failure, error.to_string());
    let mine = stream.try_clone().map_err(failed)?;
    let seat = Box::leak(Box::new(Seat { plugin: plugin.into(), ..Seat::default() }));
    let mut hosted =
        Hosted { module: Module::of::<P>(), seat, calls: calls(seat), instance: None, panic: None };
    let run = move || hosted.serve(stream, received);
    let thread = std::thread::Builder::new().name(plugin.into()).spawn(run).map_err(failed)?;
    Ok(Attached { stream: mine, seat, thread: Some(thread) })
}

impl Attached {
    /// Waits until the instance is over.
    ///
    /// # Errors
    /// Why it is, if not because the plug-in was unloaded: it panicked, or its kernel let it go or is gone.
    pub fn wait(mut self) -> Result<(), Failure> {
        let thread = self.thread.take().expect("it is waited for once");
        thread.join().unwrap_or_else(|_| Err(Failure::new(FailureCode::Failure, "its thread panicked")))
    }

    /// Whether the instance is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Gives the instance up; for the DVM it has failed. A callback that runs is waited for.
    pub fn detach(self) {}
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.seat.acting.end();
        // A connection that has ended is what is wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
        // How it ended is nobody's business any more.
        let _ = thread.join();
    }
}

/// What the instance's host knows of it. A plug-in may keep what leads to it for ever.
#[derive(Debug, Default)]
struct Seat {
    plugin: String,
    acting: Acting,
}

fn calls(seat: &'static Seat) -> HostCallsRef {
    fn seat_of(ctx: *const ()) -> &'static Seat {
        // SAFETY: what `calls` put there, which lives for ever.
        unsafe { &*ctx.cast::<Seat>() }
    }
    extern "C" fn log(ctx: *const (), _: u8, text: Slice<'_>) {
        let text = String::from_utf8_lossy(text.as_slice());
        let lines = text.lines().map(|line| format!("{}: {line}\n", seat_of(ctx).plugin));
        // A log that cannot be written has nowhere to complain.
        let _ = io::stderr().write_all(lines.collect::<String>().as_bytes());
    }
    extern "C" fn token(ctx: *const ()) -> u64 {
        seat_of(ctx).acting.token()
    }
    let ask = crate::abi::no_services;
    HostCalls { ctx: (&raw const *seat).cast(), log, token, ask }.leak()
}

/// From the kernel; the same as it says to a plug-in's process, but for what has to do with libraries.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Would this configuration do?
    Validate {
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        config: Vec<u8>,
        /// Where.
        #[serde(with = "bytes")]
        place: Vec<u8>,
    },
    /// Start the instance.
    Start {
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        config: Vec<u8>,
        /// Where.
        #[serde(with = "bytes")]
        place: Vec<u8>,
    },
    /// Take this state over.
    Restore(#[serde(with = "bytes")] Vec<u8>),
    /// Its role, with its token.
    Role {
        /// As the ABI numbers it.
        role: u32,
        /// The token.
        fence: u64,
    },
    /// A primary may act until then.
    Lease {
        /// By `CLOCK_BOOTTIME`, microseconds.
        until_us: u64,
    },
    /// Apply a command.
    Apply {
        /// Where it stands.
        #[serde(with = "bytes")]
        meta: Vec<u8>,
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        command: Vec<u8>,
    },
    /// Answer a query.
    Query(#[serde(with = "bytes")] Vec<u8>),
    /// Take a new configuration.
    Configure(#[serde(with = "bytes")] Vec<u8>),
    /// Something happened.
    Event(#[serde(with = "bytes")] Vec<u8>),
    /// Members or ranks changed.
    Place(#[serde(with = "bytes")] Vec<u8>),
    /// Tell the state.
    Snapshot,
    /// End the instance.
    Stop,
}

/// To the kernel: the answer to each of the above, in order.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// Done; with the reply or the state, if there is one.
    Done(#[serde(with = "bytes")] Vec<u8>),
    /// The plug-in's own error.
    Own(String),
    /// It panicked, now or before.
    Panic(String),
}

/// What the thread holds.
struct Hosted {
    module: Module,
    seat: &'static Seat,
    calls: HostCallsRef,
    instance: Option<Instance>,
    panic: Option<String>,
}

impl Hosted {
    /// Answers what comes, until the plug-in is to stop or the connection ends.
    fn serve(&mut self, stream: UnixStream, received: Vec<u8>) -> Result<(), Failure> {
        let ended = self.answer_all(&stream, received);
        self.seat.acting.end();
        let stopped = matches!(ended, Ok(true));
        if let Some(instance) = self.instance.take().filter(|_| self.panic.is_none()) {
            // No process ends with it; nobody hears how its end went.
            let _ = instance.stop();
        }
        let gone = format!("the instance of {} in this application is over", self.seat.plugin);
        let gone = Failure::new(FailureCode::Failure, gone);
        match (ended, self.panic.take()) {
            (_, Some(panic)) => Err(gone.cause(format!("it panicked: {panic}"))),
            (Ok(_), None) if stopped => Ok(()),
            (Ok(_), None) => Err(gone
                .cause("its kernel let it go, or is gone")
                .hint("`dvm plugin show` and the kernel's log say why; attach again")),
            (Err(error), None) => Err(gone.cause(error.to_string())),
        }
    }

    /// True where the plug-in was told to stop.
    fn answer_all(&mut self, stream: &UnixStream, mut received: Vec<u8>) -> io::Result<bool> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let (mut at, mut answers, mut chunk) = (0, Vec::new(), vec![0; READ_BYTES]);
        loop {
            while let Some((told, length)) = take(&received[at..])? {
                at += length;
                let stops = told == Told::Stop;
                put(&self.handle(told), &mut answers);
                if stops {
                    // It is over, whether or not anybody waits for the answer.
                    let _ = send_all(stream, &mut answers);
                    return Ok(true);
                }
                if answers.len() >= READ_BYTES {
                    send_all(stream, &mut answers)?;
                }
            }
            send_all(stream, &mut answers)?;
            received.drain(..std::mem::take(&mut at));
            let count = (&mut &*stream).read(&mut chunk)?;
            if count == 0 {
                return Ok(false);
            }
            received.extend_from_slice(&chunk[..count]);
        }
    }

    fn handle(&mut self, told: Told) -> Said {
        let calls = self.calls;
        let result = match (told, &mut self.instance) {
            (Told::Validate { config, place }, _) => nothing(self.module.validate(&config, &place, calls)),
            (Told::Start { config, place }, _) => {
                let started = self.module.start(&config, &place, calls);
                nothing(started.map(|instance| self.instance = Some(instance)))
            }
            (Told::Lease { until_us }, _) => {
                self.seat.acting.leased(until_us);
                Ok(Vec::new())
            }
            (Told::Stop, None) => Ok(Vec::new()),
            (Told::Stop, Some(_)) => nothing(self.instance.take().map_or(Ok(()), Instance::stop)),
            (_, None) => Err(CallError::Own("there is no instance here yet".into())),
            (Told::Apply { meta, command }, Some(instance)) => instance.apply(&command, &meta),
            (Told::Query(command), Some(instance)) => instance.query(&command),
            (Told::Configure(config), Some(instance)) => nothing(instance.configure(&config)),
            (Told::Event(event), Some(instance)) => nothing(instance.on_event(&event)),
            (Told::Place(place), Some(instance)) => nothing(instance.on_place(&place)),
            (Told::Role { role, fence }, Some(instance)) => {
                self.seat.acting.promoted(fence);
                nothing(instance.on_role(Role::numbered(role, fence).unwrap_or(Role::Active)))
            }
            (Told::Restore(state), Some(instance)) => nothing(instance.restore(&state)),
            (Told::Snapshot, Some(instance)) => instance.snapshot(),
        };
        match result {
            Ok(bytes) => Said::Done(bytes),
            Err(CallError::Own(text)) => Said::Own(text),
            Err(CallError::Panic(text)) => {
                self.panic = Some(text.clone());
                Said::Panic(text)
            }
            Err(error @ CallError::Poisoned) => Said::Panic(error.to_string()),
        }
    }
}

fn nothing(result: Result<(), CallError>) -> Result<Vec<u8>, CallError> {
    result.map(|()| Vec::new())
}

/// The first whole frame, and how many bytes it has.
fn take(received: &[u8]) -> io::Result<Option<(Told, usize)>> {
    let Some((length, rest)) = received.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > FRAME_MAX {
        return Err(invalid(format!(
            "the kernel sent {length} bytes at once; at most {FRAME_MAX} are allowed"
        )));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let told = rmp_serde::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    Ok(Some((told, 4 + length)))
}

fn put(said: &Said, to: &mut Vec<u8>) {
    let body = rmp_serde::to_vec(said).expect("an answer is plain data");
    to.extend_from_slice(&(body.len() as u32).to_le_bytes());
    to.extend_from_slice(&body);
}

/// Sends without SIGPIPE, which would end an application that does not ignore it.
fn send_all(stream: &UnixStream, answers: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < answers.len() {
        match send(stream, &answers[sent..], SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    answers.clear();
    Ok(())
}
