//! Kernels as processes of this host. A process is touched by its number only, and only if it is a kernel.

use dvm_plugin_api::place::DvmPlace;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Pause between two looks at whether processes are gone.
const LOOK: Duration = Duration::from_millis(5);

/// Sends a signal to a process; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) -> std::io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process runs or is stopped; one that ended and was not waited for does not.
pub(crate) fn lives(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Whether a process is stopped: it does nothing until somebody lets it go on.
pub(crate) fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

/// The letter that the system has for a process's state.
fn state(pid: u32) -> Option<char> {
    stat(pid)?.chars().next()
}

/// What the system tells of a process: the letter of its state, the number of its parent, and more.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Before it is the name, which may hold anything, in parentheses.
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}

/// The processes that hold a kernel's plug-ins: its children of that kind.
pub(crate) fn plugin_hosts(kernel: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let parent = stat(*pid).and_then(|stat| stat.split(' ').nth(1)?.parse::<u32>().ok());
        parent == Some(kernel) && arguments(*pid).iter().any(|word| word == b"plugin-host")
    })
    .collect()
}

/// The command line of a process, in words.
fn arguments(pid: u32) -> Vec<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Whether a process is a kernel: a number in a file may have been given to another process since.
pub(crate) fn is_kernel(pid: u32) -> bool {
    let words = arguments(pid);
    let Some((program, rest)) = words.split_first() else { return false };
    program.ends_with(b"dvm-kernel") || rest.iter().any(|word| word == b"--bootstrap" || word == b"--join")
}

/// The kernel behind a member's socket or process file.
pub(crate) fn kernel_of(place: &DvmPlace, member: &str) -> Option<u32> {
    let by_file = place.pid(member);
    let by_socket = || {
        let stream = place.dial(member).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        u32::try_from(peer.pid.as_raw_pid()).ok()
    };
    by_file.filter(|pid| is_kernel(*pid)).or_else(|| by_socket().filter(|pid| is_kernel(*pid)))
}

/// All kernels of a DVM on this host, with their members' names.
pub(crate) fn kernels(place: &DvmPlace) -> Vec<(String, u32)> {
    let mut members = place.members().unwrap_or_default();
    for member in place.pids().unwrap_or_default() {
        if !members.contains(&member) {
            members.push(member);
        }
    }
    members.into_iter().filter_map(|member| kernel_of(place, &member).map(|pid| (member, pid))).collect()
}

/// Waits until no socket of a DVM accepts and none of the processes runs; whether that came to be in time. Where all
/// that are left are stopped there is nothing to wait for.
pub(crate) fn wait_gone(place: &DvmPlace, pids: &[u32], deadline: Instant) -> bool {
    loop {
        let left: Vec<_> = pids.iter().filter(|pid| lives(**pid)).collect();
        if left.is_empty() && !place.is_live() {
            return true;
        }
        let stopped = !left.is_empty() && left.iter().all(|pid| is_stopped(**pid));
        if stopped || Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK);
    }
}

/// Kills all kernels of a DVM on this host, again and again while something starts them anew; those that stay.
pub(crate) fn kill_all(place: &DvmPlace, deadline: Instant) -> Vec<(String, u32)> {
    loop {
        let running: Vec<_> = kernels(place).into_iter().filter(|(_, pid)| lives(*pid)).collect();
        if running.is_empty() || Instant::now() >= deadline {
            return running;
        }
        for (_, pid) in &running {
            // One that may not be killed is in the list that is returned.
            let _ = signal(*pid, Signal::KILL);
        }
        sleep(LOOK);
    }
}

/// Resident memory of a process, KiB.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
