//! From a library to a child with a started instance, with the stage and code of whatever stops it.

use super::Peers;
use super::channel::{FromChild, Open, ToChild};
use super::history::{Base, Start};
use super::link::Link;
use super::manager::Shared;
use super::process::Ending;
use crate::peer::{Blob, Missing};
use bytes::Bytes;
use dvm_core::state::{Limits, Mode, Placement, PluginSpec};
use dvm_core::wire::{ExecResult, Verdict};
use dvm_plugin_api::abi::role;
use dvm_plugin_api::manifest;
use std::io;
use tokio::time::{Instant, timeout_at};

/// Why limits and placement `kernel` do not go together.
pub(crate) const NO_LIMITS: &str = "what an instance inside the kernel uses cannot be told from what the kernel uses, and so it has no --limit";

/// Why limits and placement `application` do not go together.
pub(crate) const ITS_OWN: &str = "what an application uses is its own, and so its instances have no --limit";

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
            _ => "no answer in time; the instance was ended",
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
        Placement::Kernel if spec.limits == Limits::default() => Ok(()),
        Placement::Kernel => Err(Trouble::new("check", "limit", NO_LIMITS)),
        Placement::Application if spec.limits == Limits::default() => Ok(()),
        Placement::Application => Err(Trouble::new("check", "limit", ITS_OWN)),
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

/// Starts an instance from `base`, with its role.
pub(super) async fn launch<P: Peers>(
    shared: &Shared<P>,
    spec: &PluginSpec,
    base: &Base,
    place: &Bytes,
    until: Until,
    deadline: Instant,
) -> Result<Link, Trouble> {
    let mut link = begin(shared, spec, base, place, until, deadline).await?;
    if until != Until::Valid {
        hand_over(&mut link, spec, base, until, deadline).await?;
    }
    Ok(link)
}

/// The same where the code is there already: in an application that has come.
pub(super) async fn launch_in(
    mut link: Link,
    spec: &PluginSpec,
    base: &Base,
    place: &Bytes,
    until: Until,
    deadline: Instant,
) -> Result<Link, Trouble> {
    start(&mut link, base, place, until, deadline).await?;
    hand_over(&mut link, spec, base, until, deadline).await?;
    Ok(link)
}

/// Gives an instance that was begun its state and its role.
pub(super) async fn hand_over(
    link: &mut Link,
    spec: &PluginSpec,
    base: &Base,
    until: Until,
    deadline: Instant,
) -> Result<(), Trouble> {
    if let (Start::From(state), Until::Restored) = (&base.state, until) {
        ask(link, "restore", &ToChild::Restore(state.clone()), deadline).await?;
    }
    ask(link, "start", &first_role(spec.mode), deadline).await
}

/// Asks a child, and waits for nothing else.
pub(super) async fn ask(
    link: &mut Link,
    stage: &'static str,
    message: &ToChild,
    deadline: Instant,
) -> Result<(), Trouble> {
    let answer = timeout_at(deadline, link.ask(message)).await;
    settle(stage, answer.map_err(|_| Trouble::late(stage))?)
}

/// A child with an instance that has neither state nor role, or none at all if it only is to be [valid](Until::Valid).
/// It is asked whether the configuration would do only where the state is new.
pub(super) async fn begin<P: Peers>(
    shared: &Shared<P>,
    spec: &PluginSpec,
    base: &Base,
    place: &Bytes,
    until: Until,
    deadline: Instant,
) -> Result<Link, Trouble> {
    if spec.placement == Placement::Application {
        let reason = "an application brings its own code, and there is none to put in its place";
        return Err(Trouble::new("check", "limit", reason));
    }
    let late = |stage| move |_| Trouble::late(stage);
    let library = timeout_at(deadline, shared.peers.library(spec.library.hash, spec.library.size)).await;
    let library = library.map_err(late("fetch"))?;
    let library = library.map_err(|Missing { code, reason }| Trouble::new("fetch", code, reason))?;
    let inside = spec.placement == Placement::Kernel;
    if inside {
        let admitted = timeout_at(deadline, shared.inside.admit()).await.map_err(late("start"))?;
        admitted.map_err(|reason| Trouble::new("start", "limit", reason))?;
    }
    let checked = tokio::task::spawn_blocking({
        let library = library.clone();
        move || check(&library, inside)
    });
    let checked = timeout_at(deadline, checked).await.map_err(late("check"))?;
    checked.map_err(|error| Trouble::new("check", "crash", error.to_string()))??;
    let speaker = shared.speaker(&spec.name);
    let link = match inside {
        true => Link::inside(&shared.inside, speaker, library),
        false => Link::start(&shared.options.kernel, speaker, &library),
    };
    let mut link =
        link.map_err(|error| Trouble::new("start", io_code(&error), format!("no child for it: {error}")))?;
    let notices = shared.options.desks.open(&spec.name);
    let open = Open {
        hash: spec.library.hash,
        socket: shared.options.socket.clone(),
        desk: notices.id(),
        plugin: spec.name.clone(),
        deadline_ms: spec.deadline_ms,
    };
    link.hold(notices);
    let open = rmp_serde::to_vec(&open).expect("it is plain data");
    ask(&mut link, "check", &ToChild::Open(open.into()), deadline).await?;
    start(&mut link, base, place, until, deadline).await?;
    Ok(link)
}

/// Has what is at the far end start an instance.
async fn start(
    link: &mut Link,
    base: &Base,
    place: &Bytes,
    until: Until,
    deadline: Instant,
) -> Result<(), Trouble> {
    let (config, place) = (base.config.clone(), place.clone());
    if base.state == Start::Fresh {
        let validate = ToChild::Validate { config: config.clone(), place: place.clone() };
        ask(link, "validate", &validate, deadline).await?;
    }
    if until != Until::Valid {
        ask(link, "start", &ToChild::Start { config, place }, deadline).await?;
    }
    Ok(())
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

/// What is to be seen of a library before anything of it runs.
fn check(library: &Blob, inside: bool) -> Result<(), Trouble> {
    let no_room = |error: io::Error| Trouble::new("check", io_code(&error), error.to_string());
    let library = library.map().map_err(no_room)?;
    manifest::read(&library).map_err(|error| Trouble::new("check", error.code(), error.to_string()))?;
    match inside && !manifest::catches_panics(&library) {
        true => Err(Trouble::new("check", "abi", manifest::ABORTS)),
        false => Ok(()),
    }
}

fn io_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::OutOfMemory => "no-space",
        io::ErrorKind::NotFound => "not-found",
        _ => "limit",
    }
}
