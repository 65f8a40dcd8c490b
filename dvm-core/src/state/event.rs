//! What subscribers are told: one stream, the same at every member.

use super::change::LeaveBy;
use super::plugins::{InstanceFailure, PluginState};
use crate::ids::{Fence, HistoryIndex, Lineage, MemberId, Name, Rank, ViewId};
use crate::view::Label;
use crate::wire::ExecResult;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One event. Its index is its own; an entry that yields several takes as many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the history.
    pub index: HistoryIndex,
    /// The last index of its entry: a cursor never stands inside an entry.
    pub entry: HistoryIndex,
    /// The view it was delivered in, as text (`7.k1.2`).
    pub view: String,
    /// The same, as an identity.
    pub view_id: ViewId,
    /// Its label.
    pub label: Label,
    /// Its lineage.
    pub lineage: Lineage,
    /// The proposer's wall clock, milliseconds since 1970.
    pub time_ms: u64,
    /// What happened.
    pub kind: EventKind,
}

/// A member as an event names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberBrief {
    /// Its name.
    pub name: Name,
    /// Its incarnation.
    pub id: MemberId,
    /// Its machine.
    pub host: String,
    /// Its rank; of one that is gone, its rank in the old view.
    pub rank: Rank,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Members in the view the event belongs to.
    pub members: u32,
}

/// The cause of a member's failure, by its evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCause {
    /// Its connections were reset and new ones are refused: the process died.
    LinkReset,
    /// Nothing was heard of it.
    Silent,
    /// It could be heard and could not hear, or the other way, and no ring order avoids that.
    OneWay,
    /// Its links live and nothing moves on them.
    NoProgress,
    /// It is alive in another view.
    OtherView,
    /// A newer view left it out.
    Expelled,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the event table in docs/events.md")]
pub enum EventKind {
    MemberJoined { member: MemberBrief },
    MemberLeft { member: MemberBrief, by: LeaveBy },
    MemberFailed { member: MemberBrief, cause: FailureCause, noticed_by: Name, last_heard_ms: Option<u64> },
    MemberChanged { member: MemberBrief },
    PluginLoaded { plugin: Name, results: Vec<(Name, Option<ExecResult>)> },
    PluginUnloaded { plugin: Name, results: Vec<(Name, Option<ExecResult>)> },
    PluginConfigured { plugin: Name, results: Vec<(Name, Option<ExecResult>)> },
    PluginUpgraded { plugin: Name, version: String, results: Vec<(Name, Option<ExecResult>)> },
    PluginRejected { plugin: Name, results: Vec<(Name, Option<ExecResult>)> },
    PluginChanged { plugin: Name, state: PluginState, from: PluginState },
    InstanceStarted { plugin: Name, member: Name, rank: Rank },
    InstanceRestarted { plugin: Name, member: Name, rank: Rank },
    InstanceFailed { plugin: Name, member: Name, rank: Rank, failure: InstanceFailure },
    InstancePromoted { plugin: Name, member: Name, rank: Rank, fence: Fence, from: Option<Name> },
    InstanceDemoted { plugin: Name, member: Name, rank: Rank },
    ConfigChanged { keys: Vec<String>, member: Option<Name> },
    KeyChanged { key: String, version: Option<HistoryIndex> },
    LabelChanged,
    Halting { by: Name },
}

impl EventKind {
    /// The event's name, as users filter by it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::MemberJoined { .. } => "member-joined",
            Self::MemberLeft { .. } => "member-left",
            Self::MemberFailed { .. } => "member-failed",
            Self::MemberChanged { .. } => "member-changed",
            Self::PluginLoaded { .. } => "plugin-loaded",
            Self::PluginUnloaded { .. } => "plugin-unloaded",
            Self::PluginConfigured { .. } => "plugin-configured",
            Self::PluginUpgraded { .. } => "plugin-upgraded",
            Self::PluginRejected { .. } => "plugin-rejected",
            Self::PluginChanged { .. } => "plugin-changed",
            Self::InstanceStarted { .. } => "instance-started",
            Self::InstanceRestarted { .. } => "instance-restarted",
            Self::InstanceFailed { .. } => "instance-failed",
            Self::InstancePromoted { .. } => "instance-promoted",
            Self::InstanceDemoted { .. } => "instance-demoted",
            Self::ConfigChanged { .. } => "config-changed",
            Self::KeyChanged { .. } => "key-changed",
            Self::LabelChanged => "label-changed",
            Self::Halting { .. } => "halting",
        }
    }
}
