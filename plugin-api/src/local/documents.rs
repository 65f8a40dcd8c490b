//! The documents that scripts parse: field names here are the JSON of the command line.

use super::request::Stamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where a change took effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its index.
    pub index: u64,
    /// Line of descent of the view.
    pub lineage: String,
    /// The view.
    pub view: String,
    /// Its epoch.
    pub epoch: u64,
    /// `confirmed` or `provisional`.
    pub label: String,
    /// To resume a subscription right after it.
    pub cursor: String,
}

/// A key. Absent receipts fields are those of [`Receipt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyDoc {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Index of the entry that set it.
    pub version: u64,
    /// Index the reading member had applied.
    pub index: u64,
    /// Label of its view.
    pub label: String,
}

/// Everything about a DVM, as one kernel knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The DVM.
    pub dvm: DvmDoc,
    /// Its view.
    pub view: ViewDoc,
    /// Last index applied here.
    pub index: u64,
    /// That place, for a subscription that begins behind it.
    #[serde(default)]
    pub cursor: String,
    /// Hash of the state at that index.
    pub state_hash: String,
    /// The member that answers.
    pub through: String,
    /// By rank.
    pub members: Vec<MemberDoc>,
    /// Those who are gone, the latest last.
    pub departed: Vec<DepartedDoc>,
    /// By name.
    pub plugins: Vec<PluginDoc>,
    /// Without an outcome yet.
    pub transactions: Vec<OpenDoc>,
    /// Libraries that are mapped into the answering member's kernel, and stay there.
    #[serde(default)]
    pub resident: Vec<ResidentDoc>,
    /// Threads of plug-ins in the answering member's kernel that were told to end and did not.
    #[serde(default)]
    pub quarantined: Vec<QuarantinedDoc>,
}

/// A DVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DvmDoc {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// What `--dvm` takes.
    pub uri: String,
    /// Its line of descent.
    pub lineage: String,
    /// `survive` or `quorum`.
    pub partition: String,
}

/// A view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDoc {
    /// Epoch, proposer, round.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// `confirmed` or `provisional`.
    pub label: String,
    /// Members.
    pub size: usize,
    /// `normal`, `flushing` or `blocked`.
    pub phase: String,
    /// Whom a flush, or a blocked side, waits for.
    pub waiting_for: Vec<String>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDoc {
    /// This incarnation.
    pub id: String,
    /// Its name.
    pub name: String,
    /// 0 the oldest.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// Where it listens.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// `joining`, `normal`, `suspected`, `leaving` or `fenced`.
    pub state: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Last index it said it had applied.
    pub index: u64,
    /// Its log file.
    pub log: String,
    /// How long ago it was heard; none for the answering member.
    pub last_heard_ms: Option<u64>,
    /// Its build.
    pub version: String,
}

/// A member that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartedDoc {
    /// Its name.
    pub member: String,
    /// Its incarnation.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// `left`, or the failure's cause.
    pub cause: String,
    /// The entry.
    pub index: u64,
    /// When, RFC 3339.
    pub time: String,
}

/// A plug-in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginDoc {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// BLAKE3 of its library.
    pub hash: String,
    /// `parallel`, `hot`, `warm` or `single`.
    pub mode: String,
    /// `loading`, `running`, `degraded` or `failed`.
    pub state: String,
    /// Its configuration.
    pub config: Map<String, Value>,
    /// Instances asked for.
    pub wanted: usize,
    /// Restarts since it was loaded.
    pub restarts: u64,
    /// Failures since it was loaded.
    pub failures: u64,
    /// The member of its primary.
    pub primary: Option<String>,
    /// The primary's fencing token.
    pub fence: Option<u64>,
    /// By rank.
    pub instances: Vec<InstanceDoc>,
}

/// An instance of a plug-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDoc {
    /// Where.
    pub member: String,
    /// The order in which the instances were placed: it runs up, and is no member's rank.
    pub rank: u16,
    /// `active`, `primary` or `standby`.
    pub role: String,
    /// `starting`, `running` or `failed`.
    pub state: String,
    /// `process`, `kernel` or `application`.
    pub placement: String,
    /// Its process; 0 unknown.
    pub pid: u32,
    /// Index of the last command it applied, as far as the answering member knows.
    pub applied: Option<u64>,
}

/// A library that is mapped into a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentDoc {
    /// The plug-in that brought it.
    pub plugin: String,
    /// BLAKE3 of it.
    pub hash: String,
    /// How often an instance was begun with it; every time but the first it was mapped already.
    pub opened: u64,
}

/// A thread of a plug-in that does not end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedDoc {
    /// Its plug-in.
    pub plugin: String,
    /// Since when it was to end, milliseconds.
    pub since_ms: u64,
}

/// A transaction without an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDoc {
    /// Its identity.
    pub id: String,
    /// `load`, `unload`, `configure`.
    pub kind: String,
    /// The plug-in.
    pub plugin: String,
    /// `ordering`, `executing` or `deciding`.
    pub phase: String,
    /// How long it has been open here.
    pub since_ms: u64,
    /// Members without a result, as far as known here.
    pub waiting_for: Vec<String>,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionDoc {
    /// Its identity.
    pub transaction: String,
    /// `committed`, `rejected` or `unknown`.
    pub outcome: String,
    /// Whether nothing was to change.
    pub dry_run: bool,
    /// Its rule.
    pub require: String,
    /// Where its outcome stands.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// Each member's own.
    pub results: Vec<ResultDoc>,
}

/// One member's result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultDoc {
    /// Whose.
    pub member: String,
    /// `ok`, `failed`, `timeout`, `abstain` or `absent`.
    pub result: String,
    /// Where it stopped.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub stage: String,
    /// A short code.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub code: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
}

/// An event. Fields of its kind are in `more`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventDoc {
    /// Version of the document's form.
    pub schema: u32,
    /// Its place in the history; none for what a blocked or losing side tells, and for `overflow`.
    pub index: Option<u64>,
    /// The view.
    pub view: String,
    /// Its epoch.
    pub epoch: u64,
    /// Its label.
    pub label: String,
    /// Its lineage.
    pub lineage: String,
    /// To resume right after its entry.
    pub cursor: String,
    /// The proposer's clock, RFC 3339.
    pub time: String,
    /// What happened.
    pub kind: String,
    /// Fields of the kind.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An entry of the history, for people and `history --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The last index it takes.
    pub index: u64,
    /// The first.
    pub first: u64,
    /// The view.
    pub view: String,
    /// Its label.
    pub label: String,
    /// Who proposed it.
    pub origin: String,
    /// `view`, `keys`, `settings`, `tags`, `command`, `transaction`, `outcome`, `instance`, `leave`, `halt`, …
    pub kind: String,
    /// When, RFC 3339.
    pub time: String,
    /// The transaction it belongs to.
    pub transaction: Option<String>,
    /// The client's session and its number there. A pair that stood before changed nothing: it was sent again by a client
    /// whose kernel was lost.
    pub stamp: Option<Stamp>,
    /// Its content, for people and scripts.
    pub detail: Value,
}

/// A member's hashes at one index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyMember {
    /// Whose.
    pub member: String,
    /// The index its hashes are of; 0 when it did not answer.
    pub index: u64,
    /// Chain hash of its history.
    pub history_hash: String,
    /// Hash of its state.
    pub state_hash: String,
}
