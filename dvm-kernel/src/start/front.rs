//! The first process: it holds the launcher's descriptors until the kernel has said how it went.

use dvm_plugin_api::local::{BOOTSTRAP_MAGIC, Bootstrapped};
use rustix::io::FdFlags;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Starts the kernel, and passes its line on.
pub(crate) fn front() -> ExitCode {
    close_on_exec();
    match start_and_wait() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut stderr = io::stderr().lock();
            let _ = writeln!(stderr, "error: the kernel cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the kernel became a member.
fn start_and_wait() -> io::Result<bool> {
    // The path may name another file by now; this is the program that runs.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "dvm-kernel".into()));
    command.args(["--bootstrap", "-", "--detached"]).process_group(0);
    command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().expect("piped");
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let Some(document) = line.strip_prefix(BOOTSTRAP_MAGIC) else { continue };
        let ready = matches!(serde_json::from_str(document), Ok(Bootstrapped::Ready { .. }));
        if !ready {
            // It is gone before its end is told, so that its name is free.
            child.wait()?;
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()?;
        return Ok(ready);
    }
    let status = child.wait()?;
    Err(io::Error::other(format!("it said nothing and ended ({status})")))
}

/// The kernel gets none of the descriptors that this process was left.
fn close_on_exec() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: the descriptor is only looked up; one that was closed meanwhile is refused, and that is what we want.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}
