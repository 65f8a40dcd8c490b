//! Where a line goes that an instance writes to its log.

use dvm_core::ids::Name;
use dvm_plugin_api::host::Context;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Whose instance it is that says something.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    pub(super) plugin: Name,
    pub(super) member: Name,
    /// The member's, as it is now.
    pub(super) rank: Arc<AtomicU16>,
}

impl Speaker {
    /// Puts a line of it into the log.
    pub(super) fn say(&self, level: u8, pid: u32, text: &str) {
        let (plugin, member, rank) = (&*self.plugin, &*self.member, self.rank.load(Ordering::Relaxed));
        match level {
            0..=3 => tracing::error!(target: "plugin", plugin, member, rank, pid, "{text}"),
            4 => tracing::warn!(target: "plugin", plugin, member, rank, pid, "{text}"),
            7 => tracing::debug!(target: "plugin", plugin, member, rank, pid, "{text}"),
            _ => tracing::info!(target: "plugin", plugin, member, rank, pid, "{text}"),
        }
    }
}

/// Of an instance in a process of its own: it logs to standard error, with the level before each line as `sd-daemon(3)`
/// has it.
pub(super) fn to_stderr() -> &'static Context {
    Context::new(|level, text| {
        let lines: String = text.lines().map(|line| format!("<{level}>{line}\n")).collect();
        // A log that cannot be written has nowhere to complain.
        let _ = std::io::stderr().write_all(lines.as_bytes());
    })
}

/// Of an instance inside this kernel: it logs to the kernel's log.
pub(super) fn to_log(speaker: Speaker) -> &'static Context {
    Context::new(move |level, text| {
        text.lines().for_each(|line| speaker.say(level, std::process::id(), line));
    })
}
