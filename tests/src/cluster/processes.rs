//! Processes of a ground: all whose environment names its runtime directory, whoever started them.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Process {
    /// Whether it holds a plug-in.
    #[must_use]
    pub fn is_plugin_host(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "plugin-host")
    }
}

/// The processes that have `DVM_RUNTIME_DIR=directory` in their environment; those that ended and were not yet waited
/// for have none.
pub(super) fn of(directory: &Path) -> Vec<Process> {
    let mark = [b"DVM_RUNTIME_DIR=", directory.as_os_str().as_bytes()].concat();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    })
    .map(|pid| Process { pid, arguments: arguments(pid) })
    .collect()
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Whether a process runs or is stopped; one that ended and was not yet waited for does not.
#[must_use]
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    test_kill_process(number(pid)).is_ok() && !matches!(state, None | Some('Z' | 'X'))
}

/// Sends a signal.
///
/// # Panics
/// When the process is gone.
pub fn signal(pid: u32, signal: Signal) {
    kill_process(number(pid), signal).unwrap_or_else(|error| panic!("cannot signal process {pid}: {error}"));
}

fn number(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a positive number")
}
