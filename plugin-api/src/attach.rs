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
//! A program with a loop of its own, which is to have no thread for it, takes the instance by [`attach_driven`] and runs it
//! when its descriptor is readable.
//!
//! An instance has the [services](crate::service) of its host here as in any other place. What it logs goes to the
//! application's standard error. A panic ends the instance and not the application.

use crate::Plugin;
use crate::client::{Alarm, Client, Wake};
use crate::host::{Asker, Context, Hosted, Hosting, Module, Turn};
use crate::local::{Failure, FailureCode};
use rustix::event::PollFlags;
use rustix::event::epoll::EventFlags;
use std::fmt;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Version of what a kernel and an attached application say to each other.
pub const ATTACH_VERSION: u16 = 1;

/// An instance that runs in this process, on a thread of its own. Dropping it detaches it.
#[derive(Debug)]
pub struct Attached {
    ender: Ender,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

/// Runs the instance of a loaded plug-in, on the member that the client talks to, in this process.
///
/// # Errors
/// If no such plug-in is loaded with placement `application`, if that member has no instance of it, or another
/// application runs it already.
pub fn attach<P: Plugin>(client: &Client, plugin: &str) -> Result<Attached, Failure> {
    let mut driven = attach_driven::<P>(client, plugin)?;
    let ender = driven.ender()?;
    let run = move || driven.wait(None).map(drop);
    let thread = std::thread::Builder::new().name(plugin.into()).spawn(run).map_err(system)?;
    Ok(Attached { ender, thread: Some(thread) })
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
        self.ender.end();
        // How it ended is nobody's business any more.
        let _ = thread.join();
    }
}

/// As [`attach`], without a thread: the instance runs when the program says so.
///
/// # Errors
/// As [`attach`].
pub fn attach_driven<P: Plugin>(client: &Client, plugin: &str) -> Result<Driven, Failure> {
    Driven::of(client, plugin, Module::of::<P>())
}

/// An instance in this process that runs when the program says so. Dropping it detaches it, with its plug-in's `stop`.
///
/// Its kernel waits for each callback as long as the plug-in's `--deadline` says, whether or not the program runs it: a
/// program that is away for longer has lost the instance.
///
/// The thread that runs an instance must not wait for an ordered command to it, which nobody would apply meanwhile.
pub struct Driven {
    plugin: String,
    context: &'static Context,
    hosting: Hosting,
    wake: Wake,
    /// The process that attached: a forked child shares the connection, and lets its parent have it.
    process: u32,
    ended: Option<Result<(), Failure>>,
}

impl Driven {
    /// With the plug-in's code.
    ///
    /// # Errors
    /// As [`attach`].
    pub fn of(client: &Client, plugin: &str, module: Module) -> Result<Self, Failure> {
        let seat = client.attach(plugin)?;
        let name = plugin.to_owned();
        let context = Context::new(move |_, text| {
            let lines: String = text.lines().map(|line| format!("{name}: {line}\n")).collect();
            // A log that cannot be written has nowhere to complain.
            let _ = io::stderr().write_all(lines.as_bytes());
        });
        context.opened(match seat.desk {
            Some((desk, deadline_ms)) => Ok(Asker::new(seat.kernel, desk, plugin.into(), deadline_ms)),
            None => Err("this kernel is older than services for applications; update it".into()),
        });
        let hosting = Hosting::new(seat.stream, Hosted::of(module, context), seat.received);
        let mut wake = Wake::new().map_err(system)?;
        // The first that it is told may have come with the kernel's answer.
        wake.watch(Some(hosting.as_fd()), Alarm::Now).map_err(system)?;
        let process = std::process::id();
        Ok(Self { plugin: plugin.into(), context, hosting, wake, process, ended: None })
    }

    /// Makes the callbacks that are due, as many as 64 KiB of what its kernel says hold, and waits for nothing else. How many
    /// it made; none: the instance is over, because the plug-in was unloaded. Once it is over every further call says so.
    ///
    /// # Errors
    /// Why it is over, if not for that: it panicked, or its kernel let it go or is gone.
    pub fn run_pending(&mut self) -> Result<Option<usize>, Failure> {
        if self.ended.is_none() {
            let turn = self.hosting.turn().and_then(|turn| {
                let writes = self.hosting.wants().contains(PollFlags::OUT);
                let flags = if writes { EventFlags::OUT } else { EventFlags::IN };
                self.wake.watch_for(Some((self.hosting.as_fd(), flags)), Alarm::Never).map(|()| turn)
            });
            if let Ok(Turn::Done(callbacks)) = turn {
                return Ok(Some(callbacks));
            }
            self.ended = Some(self.end(turn));
        }
        self.ended.clone().expect("it is over").map(|()| None)
    }

    /// Runs the instance in this thread until it is over, or so long. Whether it is over, because the plug-in was unloaded.
    ///
    /// # Errors
    /// As [`run_pending`](Self::run_pending).
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<bool, Failure> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        if self.ended.is_none() {
            let turn = self.hosting.run(until);
            if let Ok(Turn::Done(_)) = turn {
                return self.run_pending().map(|done| done.is_none());
            }
            self.ended = Some(self.end(turn));
        }
        self.ended.clone().expect("it is over").map(|()| true)
    }

    /// What gives the instance up from another thread, or from a callback.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn ender(&self) -> Result<Ender, Failure> {
        let stream = self.hosting.socket().try_clone().map_err(system)?;
        Ok(Ender { stream, context: self.context })
    }

    /// How it ended.
    fn end(&mut self, turn: io::Result<Turn>) -> Result<(), Failure> {
        let hosted = self.hosting.hosted();
        let (panic, given_up) = (hosted.panic().map(str::to_owned), self.context.is_over());
        hosted.end();
        let gone = format!("the instance of {} in this application is over", self.plugin);
        let gone = Failure::new(FailureCode::Failure, gone);
        match (turn, panic) {
            (_, Some(panic)) => Err(gone.cause(format!("it panicked: {panic}"))),
            (Ok(Turn::Stopped), None) => Ok(()),
            (_, None) if given_up => Err(gone.cause("it was given up here")),
            (Ok(_), None) => Err(gone
                .cause("its kernel let it go, or is gone")
                .hint("`dvm plugin show` and the kernel's log say why; attach again")),
            (Err(error), None) => Err(gone.cause(error.to_string())),
        }
    }
}

/// Its descriptor is readable when [`run_pending`](Driven::run_pending) has something to do, and stays the same.
impl AsFd for Driven {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven").field("plugin", &self.plugin).field("ended", &self.ended).finish()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if self.ended.is_none() && self.process == std::process::id() {
            // The kernel sees the end of the connection, which others may hold a copy of.
            let _ = self.hosting.socket().shutdown(Shutdown::Both);
            self.hosting.hosted().end();
        }
    }
}

/// Ends an instance from elsewhere.
#[derive(Debug)]
pub struct Ender {
    stream: UnixStream,
    context: &'static Context,
}

impl Ender {
    /// Gives the instance up: it may not act any more, and whoever runs it is told that it is over. For the DVM it has
    /// failed. Does not wait.
    pub fn end(&self) {
        self.context.close();
        // A connection that has ended is what is wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn system(error: io::Error) -> Failure {
    Failure::new(FailureCode::Failure, "the system has no room for an instance").cause(error.to_string())
}
