//! The replicated record of a plug-in and its instances.

use crate::ids::{Fence, HistoryIndex, MemberId, Name, Rank};
use alloc::collections::BTreeMap;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Who runs a plug-in and who applies its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One active instance on every member.
    Parallel,
    /// A primary and standbys that apply every command.
    Hot,
    /// A primary and standbys that hold its last snapshot.
    Warm,
    /// One instance.
    Single,
}

/// Where an instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// In a process of its own.
    Process,
    /// Inside the kernel, on its own thread.
    Kernel,
    /// In an application's process.
    Application,
}

/// A plug-in's payload format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// JSON text.
    Json,
    /// MessagePack.
    Msgpack,
    /// Anything.
    Bytes,
}

/// At most `times` restarts in `window_ms`; beyond it the instance stays failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// 0: never.
    pub times: u32,
    /// Milliseconds.
    pub window_ms: u64,
}

/// What a load asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginSpec {
    /// The name it is loaded under.
    pub name: Name,
    /// The version in its manifest.
    pub version: String,
    /// BLAKE3 of the library.
    pub hash: [u8; 32],
    /// Its size, bytes.
    pub size: u64,
    /// Who runs it.
    pub mode: Mode,
    /// Where.
    pub placement: Placement,
    /// Its payload format, from its manifest.
    pub payload: Payload,
    /// JSON text by key.
    pub config: BTreeMap<String, String>,
    /// When a failed instance is started again.
    pub restart: RestartPolicy,
    /// Longest a callback may take, milliseconds.
    pub deadline_ms: u64,
    /// It has no state to hand over.
    pub stateless: bool,
}

/// A loaded plug-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// What was asked for; `config` is the present one.
    pub spec: PluginSpec,
    /// How it does.
    pub state: PluginState,
    /// By member.
    pub instances: BTreeMap<MemberId, Instance>,
    /// Restarts since it was loaded.
    pub restarts: u64,
    /// Failures since it was loaded.
    pub failures: u64,
    /// The primary's fencing token, where there is a primary.
    pub fence: Option<Fence>,
    /// The entry that loaded it.
    pub since: HistoryIndex,
}

/// How a plug-in does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// Every instance runs.
    Running,
    /// Some do.
    Degraded,
    /// None does.
    Failed,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Order in which instances came, from 0.
    pub rank: Rank,
    /// Whether it runs.
    pub state: InstanceState,
    /// Its process, where it has one; 0 unknown.
    pub pid: u32,
    /// Why it failed, if it did.
    pub reason: String,
}

/// Whether an instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// It gets its snapshot.
    Starting,
    /// It runs.
    Running,
    /// It is gone.
    Failed,
}

/// A kernel's word on its own instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Of which plug-in.
    pub plugin: Name,
    /// Since which entry it is loaded, so that a late report of an earlier load means nothing.
    pub since: HistoryIndex,
    /// On which member.
    pub member: MemberId,
    /// What happened.
    pub what: InstanceChange,
}

/// What happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceChange {
    /// A joiner's instance has its snapshot and runs.
    Started {
        /// Its process.
        pid: u32,
    },
    /// It was started again after a failure.
    Restarted {
        /// Its process.
        pid: u32,
    },
    /// It failed.
    Failed {
        /// How.
        failure: InstanceFailure,
        /// Whether its restart policy will start it again.
        again: bool,
    },
}

/// How an instance failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFailure {
    /// `exit`, `signal`, `panic`, `hang`, `memory-limit`, `cpu-limit`, `poisoned` or `member-lost`.
    pub cause: String,
    /// Exit code, where it exited.
    pub exit_code: Option<i32>,
    /// Signal name, where it was killed.
    pub signal: Option<String>,
    /// More, for people.
    pub detail: String,
}

impl Plugin {
    /// How it does, worked out from its instances.
    #[must_use]
    pub fn condition(&self) -> PluginState {
        let running = self.instances.values().filter(|i| i.state == InstanceState::Running).count();
        match running {
            0 => PluginState::Failed,
            n if n == self.instances.len() => PluginState::Running,
            _ => PluginState::Degraded,
        }
    }
}
