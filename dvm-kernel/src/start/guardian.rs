//! `--respawn`: a process that outlives this kernel starts it again. It is `dvm guardian`, one for a DVM and host; this kernel
//! sees to it that there is one.

use super::places::Places;
use dvm_plugin_api::local::Bootstrap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Its command line.
pub(super) fn command(bootstrap: &Bootstrap, places: &Places, (times, window_ms): (u32, u64)) -> Command {
    let kernel = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "dvm-kernel".into());
    // Of the same installation; else what the path has.
    let beside = kernel.with_file_name("dvm");
    let mut command = Command::new(if beside.is_file() { beside } else { PathBuf::from("dvm") });
    command.arg("guardian").arg("--place").arg(places.place.directory()).arg("--program").arg(kernel);
    command.arg("--logs").arg(&places.logs).arg("--listen").arg(&bootstrap.listen);
    command.arg("--respawn").arg(format!("{times}/{window_ms}ms"));
    for (key, value) in &bootstrap.tags {
        command.arg("--tag").arg(format!("{key}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command
}

/// Starts it, on a thread that waits for its end. One that finds another at work ends at once.
pub(super) fn start(mut command: Command) {
    let run = move || match command.status() {
        Ok(status) => tracing::debug!(%status, "the guardian has ended"),
        Err(error) => {
            let program = command.get_program().display().to_string();
            tracing::warn!(%error, program, "nobody starts this kernel again: the guardian cannot be started");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("guardian".into()).spawn(run) {
        tracing::warn!(%error, "nobody starts this kernel again: no thread for the guardian");
    }
}
