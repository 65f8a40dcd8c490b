//! From a library to a child with a started instance, with the stage and code of whatever stops it.

use super::Peers;
use super::channel::{FromChild, ToChild};
use super::history::{Base, Start};
use super::link::Link;
use super::manager::Shared;
use super::process::Ending;
use crate::services::asker::Access;
use bytes::Bytes;
use dvm_core::state::{Mode, Placement, PluginSpec};
use dvm_core::wire::{ExecResult, Verdict};
use dvm_plugin_api::abi::role;
use dvm_plugin_api::manifest;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::{Instant, timeout_at};

/// What stopped a launch. Nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) stage: &'static str,
    pub(super) code: String,
    pub(super) reason: String,
    pub(super) timeout: bool,
}

impl Trouble {
    pub(super) fn new(stage: &'static str, code: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { stage, code: code.into(), reason: reason.into(), timeout: false }
    }

    pub(super) fn late(stage: &'static str) -> Self {
        let reason = match stage {
            "fetch" => "the library did not arrive in time",
            _ => "no answer in time; the plug-in's process was ended",
        };
        Self { timeout: true, ..Self::new(stage, "timeout", reason) }
    }

    /// As a member's result.
    pub(super) fn result(self) -> ExecResult {
        let verdict = if self.timeout { Verdict::Timeout } else { Verdict::Failed };
        ExecResult { verdict, stage: self.stage.into(), code: self.code, reason: self.reason, pid: 0 }
    }
}

/// Whether this kernel can run a plug-in in the way that is asked for.
pub(super) fn is_possible(spec: &PluginSpec) -> Result<(), Trouble> {
    match spec.placement {
        Placement::Process => Ok(()),
        Placement::Kernel | Placement::Application => {
            let reason = "this kernel does not run plug-ins outside a process of their own yet";
            Err(Trouble::new("check", "limit", reason))
        }
    }
}

/// How far a launch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It would start: the library loads and the configuration is valid.
    Valid,
    /// It has started, and has no state yet.
    Started,
    /// It has its state.
    Restored,
}

/// What a new instance is told of its role.
pub(super) fn first_role(mode: Mode) -> ToChild {
    let role = if mode.has_primary() { role::STANDBY } else { role::ACTIVE };
    ToChild::Role { role, fence: 0 }
}

/// Starts an instance from `base`. The child is asked whether the configuration would do only where the state is new.
pub(super) async fn launch<P: Peers>(
    shared: &Shared<P>,
    spec: &PluginSpec,
    base: &Base,
    place: &Bytes,
    until: Until,
    deadline: Instant,
) -> Result<Link, Trouble> {
    let late = |stage| move |_| Trouble::late(stage);
    let library = timeout_at(deadline, shared.peers.library(spec.library.hash, spec.library.size)).await;
    let library = library.map_err(late("fetch"))?;
    let library = library.map_err(|reason| Trouble::new("fetch", "not-found", reason))?;
    let path = copy_path(&shared.options.directory, &spec.name);
    let copy = tokio::task::spawn_blocking({
        let path = path.clone();
        move || check_and_copy(&library, &path)
    });
    let copy = timeout_at(deadline, copy).await.map_err(late("check"))?;
    let _copy = copy.map_err(|error| Trouble::new("check", "crash", error.to_string()))??;
    let notices = shared.options.desks.open(&spec.name);
    let access = Access {
        socket: shared.options.socket.clone(),
        desk: notices.id(),
        plugin: spec.name.clone(),
        deadline_ms: spec.deadline_ms,
    };
    let mut link = Link::start(&shared.options.kernel, &spec.name, &shared.options.name, notices)
        .map_err(|error| Trouble::new("start", io_code(&error), format!("no process for it: {error}")))?;
    let mut ask = async |stage, message| {
        let answer = timeout_at(deadline, link.ask(&message)).await;
        settle(stage, answer.map_err(late(stage))?)
    };
    ask("check", ToChild::Open { library: path, access }).await?;
    let (config, place) = (base.config.clone(), place.clone());
    if base.state == Start::Fresh {
        ask("validate", ToChild::Validate { config: config.clone(), place: place.clone() }).await?;
    }
    if until == Until::Valid {
        return Ok(link);
    }
    ask("start", ToChild::Start { config, place }).await?;
    if let (Start::From(state), Until::Restored) = (&base.state, until) {
        ask("restore", ToChild::Restore(state.clone())).await?;
    }
    ask("start", first_role(spec.mode)).await?;
    Ok(link)
}

/// What an answer means at a stage.
pub(super) fn settle(stage: &'static str, answer: Result<FromChild, Ending>) -> Result<(), Trouble> {
    match answer {
        Ok(FromChild::Done(_)) => Ok(()),
        Ok(FromChild::Own(reason)) => Err(Trouble::new(stage, "config", reason)),
        Ok(FromChild::Panic(reason)) => Err(Trouble::new(stage, "crash", format!("it panicked: {reason}"))),
        Ok(FromChild::NotLoaded { code, reason }) => Err(Trouble::new(stage, code, reason)),
        Err(ending) => Err(Trouble::new(stage, "crash", ending.text())),
    }
}

/// No two children share a copy, so each may be removed without a thought for the others.
fn copy_path(directory: &Path, plugin: &str) -> PathBuf {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    directory.join(format!("{plugin}-{}.so", SERIAL.fetch_add(1, Ordering::Relaxed)))
}

fn check_and_copy(library: &Arc<Vec<u8>>, path: &Path) -> Result<Copy, Trouble> {
    manifest::read(library).map_err(|error| Trouble::new("check", error.code(), error.to_string()))?;
    let copy = Copy(path.into());
    let write = || -> io::Result<()> {
        // One that an earlier kernel left behind may be mapped: it is replaced, never written to.
        let _ = fs::remove_file(path);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
        file.write_all(library)
    };
    match write() {
        Ok(()) => Ok(copy),
        Err(error) => {
            let reason = format!("cannot write {}: {error}", path.display());
            Err(Trouble::new("fetch", io_code(&error), reason))
        }
    }
}

fn io_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no-space",
        io::ErrorKind::NotFound => "not-found",
        _ => "limit",
    }
}

/// A private copy. It goes as soon as the child has mapped it, or nothing came of it.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = fs::remove_file(&self.0);
    }
}
