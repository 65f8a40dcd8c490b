//! A child as a process: started, watched, ended with everything it started itself, reaped.

use super::channel;
use super::context::Speaker;
use dvm_plugin_api::abi::level::INFO;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Longest line of a plug-in's output that is kept whole, bytes.
const LINE_MAX: u64 = 4 << 10;

/// A running child. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    exited: AsyncFd<OwnedFd>,
    /// How it ended, once it is reaped.
    ending: Option<Ending>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It was a thread, and has no more to say.
    Thread,
    /// It was an application, which ended its connection or itself.
    Gone,
}

impl Process {
    /// Starts `kernel plugin-host` with a descriptor of its library; the socket is the kernel's end.
    ///
    /// # Errors
    /// What the system says; nothing is left running.
    pub(super) fn start(
        kernel: &Path,
        speaker: Speaker,
        library: impl AsFd,
    ) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // It waits in the socket for the child that is to come.
        channel::send_descriptor(&ours, library.as_fd())?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(kernel);
        // The first word is what the child goes by; the others are for those who list processes.
        command.arg0("dvm-kernel").args(["plugin-host", &speaker.plugin, &speaker.member]);
        command.stdin(OwnedFd::from(theirs)).process_group(0);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let exited = match watch(&child) {
            Ok(exited) => exited,
            Err(error) => {
                end(&mut child, &mut None);
                return Err(error);
            }
        };
        let output = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let process = Self { child, exited, ending: None };
        for pipe in [output.0, output.1].into_iter().flatten() {
            let lines = pipe::Receiver::from_owned_fd(pipe)?;
            tokio::spawn(log(lines, speaker.clone(), process.pid()));
        }
        Ok((process, UnixStream::from_std(ours)?))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it uses at this moment, what it started itself left out; nothing of one that is gone.
    pub(super) fn usage(&self) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        Usage::read(&stat)
    }

    /// Waits for its end, ends what it started itself, and reaps it.
    pub(super) async fn ended(&mut self) -> Ending {
        // A pidfd that cannot be watched cannot tell of the end either; then the wait below does.
        let _ = self.exited.readable().await;
        self.end()
    }

    /// Kills it with everything it started, and reaps it.
    pub(super) fn end(&mut self) -> Ending {
        end(&mut self.child, &mut self.ending)
    }

    /// Kills it, and leaves the rest to [`ended`](Self::ended).
    pub(super) fn kill(&self) {
        // It may be gone already.
        let _ = kill_process_group(pid(&self.child), Signal::KILL);
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Resident memory, bytes.
    pub(super) memory: u64,
    /// Processor time since its start, milliseconds.
    pub(super) cpu_ms: u64,
}

impl Usage {
    /// From the text of `/proc/PID/stat`: fields 14, 15 and 24 of `proc_pid_stat(5)`, counted from behind the name.
    fn read(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(14)? + number(15)?;
        let memory = number(24)? * rustix::param::page_size() as u64;
        Some(Self { memory, cpu_ms: ticks * 1_000 / rustix::param::clock_ticks_per_second() })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A descriptor that reads as ready when the child has ended.
fn watch(child: &Child) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = pidfd_open(pid(child), PidfdFlags::empty())?;
    // SAFETY: the descriptor is owned, and gives the same one every time until it is dropped.
    unsafe { AsyncFd::register(descriptor) }.map_err(|error| error.into_parts().1)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a child has a process id")
}

/// The group outlives its leader, and its number is not given away before the leader is reaped: so the kill comes
/// first. A second call finds the leader reaped and changes nothing.
fn end(child: &mut Child, ending: &mut Option<Ending>) -> Ending {
    *ending.get_or_insert_with(|| {
        // Everything of it may be gone already.
        let _ = kill_process_group(pid(child), Signal::KILL);
        child.wait().map_or(Ending::Signal(Signal::KILL.as_raw()), Ending::of)
    })
}

impl Ending {
    /// What `kill -9` does.
    pub(super) const KILLED: Self = Self::Signal(Signal::KILL.as_raw());

    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Exit(code),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }

    /// The signal's name, where one ended it.
    pub(super) fn signal(self) -> Option<String> {
        match self {
            Self::Exit(_) | Self::Thread | Self::Gone => None,
            Self::Signal(number) => Some(signal_name(number)),
        }
    }

    /// For people.
    pub(super) fn text(self) -> String {
        match self {
            Self::Exit(code) => format!("its process exited with code {code}"),
            Self::Signal(number) => format!("its process was ended by {}", signal_name(number)),
            Self::Thread => "its thread was ended".into(),
            Self::Gone => "its application is gone".into(),
        }
    }
}

pub(crate) fn signal_name(number: i32) -> String {
    let named = [
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::HUP, "SIGHUP"),
        (Signal::ILL, "SIGILL"),
        (Signal::INT, "SIGINT"),
        (Signal::KILL, "SIGKILL"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::SYS, "SIGSYS"),
        (Signal::TERM, "SIGTERM"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::XCPU, "SIGXCPU"),
    ];
    let name = named.iter().find(|(signal, _)| signal.as_raw() == number);
    name.map_or_else(|| format!("signal {number}"), |(_, name)| (*name).into())
}

/// Puts a child's output into the log, line by line, a long one in pieces.
async fn log(output: impl AsyncRead + Unpin, speaker: Speaker, pid: u32) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        match level(text) {
            None if text.is_empty() => {}
            Some((level, text)) => speaker.say(level, pid, text),
            None => speaker.say(INFO, pid, text),
        }
    }
}

/// The level that a line of `sd-daemon(3)` form begins with.
fn level(line: &str) -> Option<(u8, &str)> {
    let (digit, text) = line.strip_prefix('<')?.split_once('>')?;
    let level = digit.parse().ok().filter(|level| *level < 8)?;
    Some((level, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_behind_any_name() {
        let numbers: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a name) with ) in it) S {}", numbers.join(" "));
        let page = rustix::param::page_size() as u64;
        let tick_ms = 1_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(Usage::read(&stat), Some(Usage { memory: 24 * page, cpu_ms: (14 + 15) * tick_ms }));
        assert_eq!(Usage::read("17 (short) S 1 2"), None);
    }
}
