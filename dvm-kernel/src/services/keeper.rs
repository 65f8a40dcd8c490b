//! The far end of a process that a plug-in has started: `dvm-kernel process-host`.
//!
//! It starts the program in a process group of its own, and waits: for the program's end, or for that of its socket, which
//! is the kernel's. Either ends everything in the group. So a process never outlives its kernel, even one that was killed,
//! and a job that is run again elsewhere does not run twice. What leaves the group (`setsid`) leaves its keeper.

use crate::plugins::channel;
use crate::plugins::child::{close_inherited, take_socket};
use bytes::BytesMut;
use dvm_plugin_api::service::KILL_AFTER_MS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(KILL_AFTER_MS);

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The program and its arguments; at least the first.
    pub(crate) argv: Vec<String>,
    /// Set beside what the kernel has.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it starts.
    pub(crate) cwd: Option<String>,
}

/// To the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// First: run this.
    Start(Order),
    /// End it, gently at first.
    Terminate,
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// It runs.
    Started(u32),
    /// It is over; last.
    Ended(End),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It never began, or nobody can tell; why.
    Failed(String),
}

/// The process, from start to end.
pub(crate) fn main() -> ExitCode {
    match close_inherited().and_then(|()| take_socket()).and_then(keep) {
        Ok(()) => ExitCode::SUCCESS,
        // The kernel is gone, and with it whoever would read of it.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep(mut socket: UnixStream) -> io::Result<()> {
    let mut received = BytesMut::new();
    let order = loop {
        match channel::take::<ToKeeper>(&mut received)? {
            Some(ToKeeper::Start(order)) => break order,
            Some(ToKeeper::Terminate) => {}
            None if !fill(&mut socket, &mut received)? => return Ok(()),
            None => {}
        }
    };
    let (program, arguments) = order.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).envs(&order.env).current_dir(order.cwd.as_deref().unwrap_or("/"));
    let started = command.stdin(Stdio::null()).process_group(0).spawn();
    // The process alone holds its output.
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    rustix::stdio::dup2_stderr(File::options().write(true).open("/dev/null")?)?;
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let why = match (&order.cwd, error.kind()) {
                (Some(cwd), io::ErrorKind::NotFound) => format!("cannot run `{program}` in `{cwd}`: {error}"),
                _ => format!("cannot run `{program}`: {error}"),
            };
            return tell(&mut socket, &FromKeeper::Ended(End::Failed(why)));
        }
    };
    let pid = Pid::from_raw(child.id() as i32).expect("a child has a process id");
    let guard = Group(pid);
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    tell(&mut socket, &FromKeeper::Started(child.id()))?;
    let mut kill_at = None;
    loop {
        while let Some(told) = channel::take::<ToKeeper>(&mut received)? {
            if let ToKeeper::Terminate = told {
                guard.signal(Signal::TERM);
                kill_at.get_or_insert(Instant::now() + GRACE);
            }
        }
        let happened = wait(&socket, &ended, kill_at)?;
        if happened.ended {
            break;
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            guard.signal(Signal::KILL);
            kill_at = None;
        }
        if happened.told && !fill(&mut socket, &mut received)? {
            drop(guard);
            child.wait()?;
            return Ok(());
        }
    }
    // The group's number is not given away before its leader is reaped.
    drop(guard);
    let end = end_of(child.wait()?);
    tell(&mut socket, &FromKeeper::Ended(end))
}

/// A process group, ended when this is dropped.
struct Group(Pid);

impl Group {
    fn signal(&self, signal: Signal) {
        // Everything of it may be gone already.
        let _ = kill_process_group(self.0, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// What a keeper waits for.
#[derive(Clone, Copy, Default)]
struct Happened {
    /// The process has ended.
    ended: bool,
    /// The kernel has said something, or is gone.
    told: bool,
}

fn wait(socket: &UnixStream, ended: &OwnedFd, until: Option<Instant>) -> io::Result<Happened> {
    let mut watched = [PollFd::new(socket, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left =
        left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
    match poll(&mut watched, left.as_ref()) {
        Ok(_) => {
            let [told, ended] = watched.map(|one| !one.revents().is_empty());
            Ok(Happened { ended, told })
        }
        Err(Errno::INTR) => Ok(Happened::default()),
        Err(error) => Err(error.into()),
    }
}

/// Reads once; false at the end.
fn fill(socket: &mut UnixStream, received: &mut BytesMut) -> io::Result<bool> {
    let mut chunk = [0; 4 << 10];
    let count = socket.read(&mut chunk)?;
    received.extend_from_slice(&chunk[..count]);
    Ok(count > 0)
}

fn tell(socket: &mut UnixStream, what: &FromKeeper) -> io::Result<()> {
    socket.write_all(&channel::frame(what))
}

fn end_of(status: ExitStatus) -> End {
    status.code().map_or_else(|| End::Signal(status.signal().unwrap_or_default()), End::Exit)
}

/// Starts a keeper; its socket is the kernel's end.
pub(super) fn start(kernel: &std::path::Path, key: &str) -> io::Result<(tokio::process::Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = tokio::process::Command::new(kernel);
    // The first word is what the keeper goes by; the other is for those who list processes.
    command.arg0("dvm-kernel").args(["process-host", key]).process_group(0);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok((command.spawn()?, ours))
}
