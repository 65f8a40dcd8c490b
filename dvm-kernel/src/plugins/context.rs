//! What an instance's calls to its host lead to: one [`Context`] an instance, wherever it runs.

use crate::services::asker::{Access, Asker};
use dvm_core::ids::Name;
use dvm_plugin_api::abi::{HostCalls, HostCallsRef, Out, Slice, hand_out};
use dvm_plugin_api::host::Acting;
use std::io::Write;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

/// What the host knows of one instance. A plug-in may keep what leads to it for ever, and so it is never freed.
#[derive(Debug)]
pub(super) struct Context {
    log: Log,
    /// Once it may never act again the instance is over, whatever its code still does.
    acting: Acting,
    /// What it asks for services with.
    asker: OnceLock<Asker>,
}

/// Where a line goes.
#[derive(Debug)]
pub(super) enum Log {
    /// To standard error, with its level before it, as `sd-daemon(3)` has it.
    Stderr,
    /// To this process's log.
    Here(Speaker),
}

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

impl Context {
    pub(super) fn new(log: Log) -> &'static Self {
        Box::leak(Box::new(Self { log, acting: Acting::default(), asker: OnceLock::new() }))
    }

    /// The functions that lead here.
    pub(super) fn calls(&'static self) -> HostCallsRef {
        HostCalls { ctx: (&raw const *self).cast(), log, token, ask }.leak()
    }

    /// From here on it may ask for services.
    pub(super) fn opened(&self, access: Access) {
        // It holds one library.
        let _ = self.asker.set(Asker::new(access));
    }

    pub(super) fn promoted(&self, fence: u64) {
        self.acting.promoted(fence);
    }

    pub(super) fn leased(&self, until_us: u64) {
        self.acting.leased(until_us);
    }

    /// From here on nothing that the instance asks does anything.
    pub(super) fn close(&self) {
        self.acting.end();
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        match self.asker.get() {
            _ if self.acting.is_over() => Err("this instance is over".into()),
            Some(asker) => asker.ask(request),
            None => Err("nothing can be asked while the library is loaded".into()),
        }
    }

    fn log(&self, level: u8, text: &str) {
        if self.acting.is_over() {
            return;
        }
        match &self.log {
            Log::Stderr => {
                let lines: String = text.lines().map(|line| format!("<{level}>{line}\n")).collect();
                // A log that cannot be written has nowhere to complain.
                let _ = std::io::stderr().write_all(lines.as_bytes());
            }
            Log::Here(speaker) => {
                text.lines().for_each(|line| speaker.say(level, std::process::id(), line));
            }
        }
    }
}

/// The context behind a pointer that a plug-in gives back.
fn behind(ctx: *const ()) -> &'static Context {
    // SAFETY: `calls` gave the pointer out, and a context is never freed.
    unsafe { &*ctx.cast::<Context>() }
}

extern "C" fn log(ctx: *const (), level: u8, text: Slice<'_>) {
    behind(ctx).log(level, &String::from_utf8_lossy(text.as_slice()));
}

extern "C" fn token(ctx: *const ()) -> u64 {
    behind(ctx).acting.token()
}

extern "C" fn ask(ctx: *const (), request: Slice<'_>, out: Out) -> u32 {
    hand_out(behind(ctx).ask(request.as_slice()), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_has_a_token_of_its_own_and_none_once_it_is_over() {
        let (one, other) = (Context::new(Log::Stderr), Context::new(Log::Stderr));
        let token = |context: &'static Context| {
            let calls = context.calls();
            calls.token()(calls.ctx())
        };
        one.promoted(7);
        assert_eq!(token(one), 0, "without a lease");
        one.leased(u64::MAX);
        other.leased(u64::MAX);
        assert_eq!((token(one), token(other)), (7, 0));
        one.close();
        one.promoted(8);
        assert_eq!(token(one), 0);
    }
}
