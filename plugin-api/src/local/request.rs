//! Requests, answers, errors.

use super::documents::{EventDoc, HistoryEntry, KeyDoc, Receipt, Status, TransactionDoc, VerifyMember};
use super::metrics::MetricDoc;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// From a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToKernel {
    /// The client's number for it; the answers carry it.
    pub id: u64,
    /// With it the change takes effect once, however often it is sent.
    pub stamp: Option<Stamp>,
    /// How long the kernel may take, milliseconds; `None`: no limit.
    pub timeout_ms: Option<u64>,
    /// Cursor of the last receipt the client was given. A kernel whose history does not have it refuses with
    /// `partition-lost`; one that is behind it catches up first.
    pub seen: Option<String>,
    /// What is asked.
    pub request: Request,
}

/// From the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToClient {
    /// Number of the request it answers.
    pub id: u64,
    /// The answer, or why there is none.
    pub answer: Result<Answer, Failure>,
}

/// Place of a request in a client's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The session: a key that the client chose.
    pub session: String,
    /// From 1, one more each time.
    pub seq: u64,
}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// First on every connection. Answered by [`Answer::Hello`].
    Hello {
        /// [`LOCAL_VERSION`](super::LOCAL_VERSION).
        version: u16,
        /// Who it is, for the log.
        client: String,
    },
    /// Everything about the DVM as this kernel knows it; orders nothing. [`Answer::Status`].
    Status,
    /// A key. [`Answer::Key`], or failure `not-found`.
    StateGet {
        /// The key.
        key: String,
        /// Order a no-op first, so that nothing acknowledged before is missed.
        fresh: bool,
    },
    /// Keys that begin with `prefix`, in order, as many as one answer holds. [`Answer::Keys`].
    StateList {
        /// What they begin with.
        prefix: String,
        /// Only those after this one: the last of the answer before. An empty answer is the end.
        after: Option<String>,
    },
    /// Conditions on keys, and what to do if they all hold, or else. [`Answer::Done`]; failure `rejected` where
    /// `otherwise` is empty and a condition does not hold.
    StateTransaction {
        /// All must hold.
        conditions: Vec<(String, Condition)>,
        /// Done if they do.
        then: Vec<Operation>,
        /// Done if one does not.
        otherwise: Vec<Operation>,
    },
    /// All settings. [`Answer::Settings`].
    Settings,
    /// Changes settings of the DVM, or tags of a member. [`Answer::Done`].
    Configure {
        /// `KEY`, `VALUE`; for a member an empty value removes the tag.
        changes: Vec<(String, String)>,
        /// A member's name, or `None` for the DVM.
        member: Option<String>,
    },
    /// The events. [`Answer::Event`] each, then [`Answer::End`].
    Subscribe {
        /// Where to begin.
        since: Since,
        /// Only kinds that begin with one of these; empty: all but `key-changed` and `member-suspected`.
        kinds: Vec<String>,
        /// Go on with new ones.
        follow: bool,
        /// Only `key-changed` of keys that begin with this.
        key_prefix: Option<String>,
    },
    /// Kept entries. [`Answer::History`].
    History {
        /// First index.
        from: Option<u64>,
        /// Last index.
        to: Option<u64>,
        /// Only of this transaction.
        transaction: Option<String>,
    },
    /// The hashes of every member at one index. [`Answer::Verify`].
    Verify,
    /// A command to a plug-in. [`Answer::Reply`].
    Call {
        /// Which plug-in.
        plugin: String,
        /// As JSON; the kernel converts it to the plug-in's payload.
        command: Value,
        /// Read only, at one instance.
        query: bool,
        /// Before a query, order a no-op.
        fresh: bool,
    },
    /// What a plug-in instance of this kernel asks of its host. [`Answer::Service`].
    Service {
        /// The number that the instance was given.
        desk: u64,
        /// What.
        ask: crate::service::Ask,
    },
    /// A part of a library, before a `Transact` that names its hash. [`Answer::Done`] without a receipt.
    PutBlob {
        /// BLAKE3 of the whole, hexadecimal.
        hash: String,
        /// Of the whole, bytes.
        size: u64,
        /// Where this part begins.
        offset: u64,
        /// At most 1 MiB.
        #[serde(with = "serde_bytes_vec")]
        data: Vec<u8>,
    },
    /// A change that every member executes before it is decided. [`Answer::Transaction`].
    Transact {
        /// What.
        kind: TransactionKind,
        /// `all`, `majority`, `at-least:K` or `any`; `None`: the DVM's setting.
        require: Option<String>,
        /// Execute and tell, change nothing.
        dry_run: bool,
    },
    /// The log's path is in [`Status`]; this asks for a single-use join ticket. [`Answer::Ticket`].
    Ticket,
    /// The same ticket, minted by another member: it is worth something after this kernel's end. [`Answer::Ticket`].
    TicketOf {
        /// Its name, `rank:N` or an id prefix.
        member: String,
    },
    /// A member leaves. [`Answer::Done`].
    Remove {
        /// Its name, `rank:N` or an id prefix.
        member: String,
        /// End it even if it does not answer.
        force: bool,
    },
    /// The DVM ends. [`Answer::Done`].
    Halt,
    /// This side's history becomes the confirmed one, in a new lineage. [`Answer::Done`].
    Promote,
    /// A fault at this kernel; only where `chaos=true`, else `denied`. [`Answer::Done`].
    Chaos(Chaos),
    /// A measurement inside this kernel. [`Answer::Bench`].
    Bench {
        /// `ring` or `agree`.
        what: String,
        /// Bytes of each message.
        size: u64,
        /// How long, milliseconds.
        duration_ms: u64,
        /// How many are kept in flight: 1 measures time, more measures throughput.
        in_flight: u64,
    },
    /// This kernel counts what it writes to the ring while others measure, for ten minutes at most. [`Answer::Done`].
    Watch {
        /// It also notes when it hears of each operation.
        times: bool,
    },
    /// Ends a watch. [`Answer::Watched`].
    Watched,
    /// What this kernel has counted since it started, and what it measures now; orders nothing. [`Answer::Metrics`].
    Metrics,
    /// The first after hello: from the answer on the connection is that of a plug-in's instance on this member, which
    /// runs in the client's process. [`Answer::AttachedAt`] where `services` are wanted, else [`Answer::Attached`].
    Attach {
        /// A plug-in loaded with placement `application`.
        plugin: String,
        /// [`ATTACH_VERSION`](crate::ATTACH_VERSION).
        version: u16,
        /// The instance may ask for [services](crate::service). An older application does not know of them.
        #[serde(default)]
        services: bool,
    },
}

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Since {
    /// With what comes next.
    Now,
    /// With the oldest kept.
    All,
    /// After this index.
    Index(u64),
    /// After this cursor.
    Cursor(String),
}

impl std::str::FromStr for Since {
    type Err = String;

    /// From an index, a cursor, `now` or `all`. What a cursor looks like only kernels know.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => return Err("expected an index, a cursor, `now` or `all`".into()),
            "now" => Self::Now,
            "all" => Self::All,
            text => text.parse().map_or_else(|_| Self::Cursor(text.into()), Self::Index),
        })
    }
}

/// A condition on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has this version.
    Version(u64),
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Sets it.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Value,
    },
    /// Deletes it, if it exists.
    Delete {
        /// The key.
        key: String,
    },
}

/// What an agreed change does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransactionKind {
    /// Loads a plug-in whose library was sent by [`Request::PutBlob`].
    Load(Box<Load>),
    /// Unloads it.
    Unload {
        /// Which.
        plugin: String,
    },
    /// Changes its configuration.
    Configure {
        /// Which.
        plugin: String,
        /// Start from nothing.
        replace: bool,
        /// `None` removes.
        keys: BTreeMap<String, Option<Value>>,
    },
    /// Puts a library, sent by [`Request::PutBlob`], in the place of the one that is loaded.
    Upgrade {
        /// Which.
        plugin: String,
        /// Version in its manifest.
        version: String,
        /// `json`, `msgpack` or `bytes`, from its manifest.
        payload: String,
        /// BLAKE3 of the library, hexadecimal.
        hash: String,
        /// Its size, bytes.
        size: u64,
        /// Name of the member that tries it first; the primary's, or the first instance's, if not said.
        canary: Option<String>,
    },
}

/// What a load asks for. Manifest fields come from `dvm plugin check`'s reading of the library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The name it is loaded under.
    pub name: String,
    /// Version in its manifest.
    pub version: String,
    /// `json`, `msgpack` or `bytes`, from its manifest.
    pub payload: String,
    /// BLAKE3 of the library, hexadecimal.
    pub hash: String,
    /// Its size, bytes.
    pub size: u64,
    /// `parallel`, `hot`, `warm` or `single`.
    pub mode: String,
    /// `process`, `kernel` or `application`; the last has no library, and so no hash and no size.
    pub placement: String,
    /// Its configuration.
    pub config: BTreeMap<String, Value>,
    /// At most so many restarts in `restart_window_ms`.
    pub restart_times: u32,
    /// Milliseconds.
    pub restart_window_ms: u64,
    /// Longest a callback may take, milliseconds.
    pub deadline_ms: u64,
    /// It has no state to hand over.
    pub stateless: bool,
    /// How many instances, the primary included; what the mode has by itself if not said.
    #[serde(default)]
    pub instances: Option<u16>,
    /// Members that it may be on: names, and `tag=value`. All, if there are none.
    #[serde(default)]
    pub on: Vec<String>,
    /// No primary in provisional views.
    #[serde(default)]
    pub only_confirmed: bool,
    /// How often a standby that does not apply commands takes a new snapshot.
    #[serde(default)]
    pub snapshot_every: Every,
    /// Memory that an instance may hold, bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processor time that an instance may use, milliseconds.
    #[serde(default)]
    pub cpu_ms: Option<u64>,
}

impl Load {
    /// A library with what a load has unless told otherwise; `hash` and `size` are those of its file.
    #[must_use]
    pub fn of(name: String, version: String, payload: String, hash: String, size: u64) -> Self {
        Self {
            name,
            version,
            payload,
            hash,
            size,
            mode: "parallel".into(),
            placement: "process".into(),
            config: BTreeMap::new(),
            restart_times: 3,
            restart_window_ms: 60_000,
            deadline_ms: 5_000,
            stateless: false,
            instances: None,
            on: Vec::new(),
            only_confirmed: false,
            snapshot_every: Every::default(),
            memory: None,
            cpu_ms: None,
        }
    }
}

/// How far a standby's snapshot may fall behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// So many commands and events.
    Items(u64),
    /// So many milliseconds.
    Ms(u64),
}

impl Default for Every {
    fn default() -> Self {
        Self::Items(4_096)
    }
}

/// A fault on request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chaos {
    /// From now on this kernel passes no frame to or from these members (names).
    Cut {
        /// Frames from here to them are dropped.
        to: Vec<String>,
        /// Frames from them are dropped.
        from: Vec<String>,
    },
    /// All frames pass again.
    Heal,
    /// This kernel's instance of a plug-in is killed.
    KillPlugin {
        /// Which.
        plugin: String,
    },
}

/// What a kernel answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello {
        /// The kernel's protocol version.
        version: u16,
        /// The member's name.
        member: String,
        /// The DVM's name.
        dvm: String,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::StateGet`].
    Key(KeyDoc),
    /// To [`Request::StateList`]. Each with its value and version; the label is empty.
    Keys(Vec<KeyDoc>),
    /// To [`Request::Settings`].
    Settings(Vec<(String, String)>),
    /// A change took effect.
    Done {
        /// Where; `None` for what is not in the history.
        receipt: Option<Receipt>,
        /// For [`Request::StateTransaction`]: whether the conditions held.
        held: Option<bool>,
        /// For [`Request::StateTransaction`]: the version that the keys it put have now. It is the first index of the
        /// entry, which of several keys is not the one that the receipt names.
        version: Option<u64>,
    },
    /// To [`Request::Subscribe`].
    Event(Box<EventDoc>),
    /// A stream's end.
    End {
        /// `halt` when the DVM ended, `kept` when all that was kept is told, `lost` when this kernel ends.
        why: String,
    },
    /// To [`Request::History`].
    History(Vec<HistoryEntry>),
    /// To [`Request::Verify`].
    Verify {
        /// The index compared at.
        through_index: u64,
        /// Each member's hashes.
        members: Vec<VerifyMember>,
    },
    /// To [`Request::Call`].
    Reply {
        /// The plug-in's reply, or its own error.
        reply: Result<Value, String>,
        /// Where the command stands; `None` for a query.
        receipt: Option<Receipt>,
        /// Who answered.
        member: String,
    },
    /// To [`Request::Service`].
    Service(Value),
    /// To [`Request::Transact`].
    Transaction(Box<TransactionDoc>),
    /// To [`Request::Ticket`].
    Ticket(String),
    /// To [`Request::Bench`]: each operation's time, microseconds, ascending, at most 100,000 of them, and counts.
    Bench {
        /// Time from submission to delivery at this member.
        times_us: Vec<f64>,
        /// When the first operations began, as [`Answer::Watched`] names them and tells time.
        begun: Vec<(u64, u64)>,
        /// Operations that ended.
        operations: u64,
        /// How long it took.
        elapsed_us: u64,
    },
    /// To [`Request::Attach`] of an application without services, or by an older kernel.
    Attached,
    /// To [`Request::Attach`].
    AttachedAt {
        /// The number of the instance's desk, for [`Request::Service`].
        desk: u64,
        /// Longest time of a callback, milliseconds.
        deadline_ms: u64,
    },
    /// To [`Request::Watched`].
    Watched {
        /// The index of an entry and when it was delivered, or the serial number of a transaction and when its outcome
        /// arrived; microseconds by `CLOCK_BOOTTIME`, which all kernels of a host share.
        times: Vec<(u64, u64)>,
        /// Ring frames this kernel wrote meanwhile.
        frames: u64,
        /// Ring bytes this kernel wrote meanwhile.
        bytes: u64,
    },
    /// To [`Request::Metrics`].
    Metrics(Vec<MetricDoc>),
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub code: FailureCode,
    /// What happened, to whom.
    pub message: String,
    /// Why, where known.
    pub cause: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl Answer {
    /// Where in the history it stands, if it does.
    #[must_use]
    pub fn receipt(&self) -> Option<&Receipt> {
        match self {
            Self::Done { receipt, .. } | Self::Reply { receipt, .. } => receipt.as_ref(),
            Self::Transaction(document) => {
                Some(&document.receipt).filter(|receipt| !receipt.cursor.is_empty())
            }
            _ => None,
        }
    }
}

impl Failure {
    /// A failure with a message alone.
    #[must_use]
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, hint: None }
    }

    /// The same with what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

/// Kinds of failure, each with the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// Anything else.
    Failure,
    /// The request makes no sense.
    Usage,
    /// No kernel can be reached.
    NoDvm,
    /// Voted down, or a condition does not hold.
    Rejected,
    /// The history that stands does not have the session's earlier requests: the branch they were in was lost.
    SessionLost,
    /// The history that stands does not have what the client was last told: the branch it was told on was lost.
    PartitionLost,
    /// Timed out, or the kernel was lost: the outcome is unknown.
    Unknown,
    /// No such thing.
    NotFound,
    /// Not allowed.
    Denied,
    /// This side of the DVM has no quorum.
    NoQuorum,
}

impl FailureCode {
    /// The command line's exit code.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NoDvm => 3,
            Self::Rejected | Self::SessionLost | Self::PartitionLost => 4,
            Self::Unknown => 5,
            Self::NotFound => 6,
            Self::Denied => 7,
            Self::NoQuorum => 8,
        }
    }

    /// As `--json` prints it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Usage => "usage",
            Self::NoDvm => "no-dvm",
            Self::Rejected => "rejected",
            Self::SessionLost => "session-lost",
            Self::PartitionLost => "partition-lost",
            Self::Unknown => "unknown",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::NoQuorum => "no-quorum",
        }
    }
}

/// Bytes as MessagePack `bin`.
pub(crate) mod serde_bytes_vec {
    use serde::{Deserializer, Serializer, de::Visitor};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_begin() {
        for (text, since) in [
            ("45", Since::Index(45)),
            ("now", Since::Now),
            ("all", Since::All),
            ("7.k1.2-45", Since::Cursor("7.k1.2-45".into())),
        ] {
            assert_eq!(text.parse(), Ok(since), "{text}");
        }
        assert!("".parse::<Since>().is_err());
    }
}
