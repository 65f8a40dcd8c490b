//! The replicated record of a plug-in and its instances.

use crate::ids::{Fence, HistoryIndex, MemberId, Name, Rank};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
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

impl Mode {
    /// Whether one instance is the primary.
    #[must_use]
    pub fn has_primary(self) -> bool {
        self != Self::Parallel
    }
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
    /// What is loaded.
    pub library: Library,
    /// Who runs it.
    pub mode: Mode,
    /// Where.
    pub placement: Placement,
    /// JSON text by key.
    pub config: BTreeMap<String, String>,
    /// When a failed instance is started again.
    pub restart: RestartPolicy,
    /// Longest a callback may take, milliseconds.
    pub deadline_ms: u64,
    /// It has no state to hand over.
    pub stateless: bool,
    /// How many instances are wanted, the primary included, from 1. `parallel` has one on every member it may be on.
    pub instances: u16,
    /// Members it may be on: any of these; every member if there are none.
    pub on: Vec<Selector>,
    /// There is no primary in a provisional view, and a promotion waits until the old one's lease is over.
    pub only_confirmed: bool,
    /// How often a standby of a `warm` or `single` plug-in takes a new snapshot.
    pub snapshot_every: SnapshotEvery,
    /// What an instance may use.
    pub limits: Limits,
}

impl PluginSpec {
    /// A load that asks for nothing in particular: one instance everywhere, each in a process of its own, without state
    /// to hand over, never started again.
    #[must_use]
    pub fn of(name: Name, library: Library) -> Self {
        Self {
            name,
            library,
            mode: Mode::Parallel,
            placement: Placement::Process,
            config: BTreeMap::new(),
            restart: RestartPolicy { times: 0, window_ms: 0 },
            deadline_ms: 1_000,
            stateless: true,
            instances: 1,
            on: Vec::new(),
            only_confirmed: false,
            snapshot_every: SnapshotEvery::Items(4_096),
            limits: Limits::default(),
        }
    }
}

/// A plug-in's library, as its manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Its version.
    pub version: String,
    /// BLAKE3 of the file.
    pub hash: [u8; 32],
    /// Its size, bytes.
    pub size: u64,
    /// Its payload format.
    pub payload: Payload,
}

/// Which members a plug-in may be on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// The member of this name.
    Name(Name),
    /// Members with this tag, at this value.
    Tag(String, String),
}

/// How far a standby's snapshot may fall behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotEvery {
    /// So many commands and events.
    Items(u64),
    /// So many milliseconds.
    Ms(u64),
}

/// What an instance's process may use; without a limit, what the kernel may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space, bytes.
    pub memory: Option<u64>,
    /// Processor time, milliseconds.
    pub cpu_ms: Option<u64>,
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
    /// The member whose instance answers commands and acts on the world, in modes that have one.
    pub primary: Option<MemberId>,
    /// The token of the last promotion.
    pub fence: Option<Fence>,
    /// The entry that loaded it.
    pub since: HistoryIndex,
}

/// How a plug-in does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// As many instances run as are wanted.
    Running,
    /// Fewer do.
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
    /// The entry that told of its end while it ran, the last time; 0 for none. Who failed last has seen most.
    pub ran: HistoryIndex,
}

/// An instance that a member is to have from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Of which plug-in.
    pub plugin: Name,
    /// Where.
    pub member: MemberId,
    /// `Starting` or `Keeping`; it may have been a keeper before it starts.
    pub state: InstanceState,
    /// An instance that was there begins again with the state that it kept, and no other one has its own: not all that were
    /// lost need have lost the same. False: the state is another's, where it is not a keeper's or a new one's.
    pub own: bool,
}

/// Whether an instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Its member keeps its snapshot and what came since, and starts it when the one that runs is lost.
    Keeping,
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
    /// It goes on in another process, as after an upgrade. That is no event.
    Moved {
        /// Its process.
        pid: u32,
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
        let wanted = match self.spec.mode {
            Mode::Parallel => self.instances.len(),
            Mode::Hot | Mode::Warm | Mode::Single => usize::from(self.spec.instances),
        };
        let waits = self.spec.placement == Placement::Application
            && self.instances.values().any(|i| i.state == InstanceState::Starting);
        match running {
            // Applications come and go.
            0 if waits => PluginState::Degraded,
            0 => PluginState::Failed,
            n if n >= wanted => PluginState::Running,
            _ => PluginState::Degraded,
        }
    }
}
