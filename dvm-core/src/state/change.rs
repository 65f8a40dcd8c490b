//! What can be proposed, and what it answers.

use super::plugins::{InstanceReport, Library, PluginSpec};
use crate::ids::{Epoch, HistoryIndex, Lineage, MemberId, Name, TransactionId, ViewId};
use crate::view::{Label, View};
use crate::wire::{Digest, ExecResult, Identity, Key, Proposal, Summary};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The body of one message: a change with its stamp. Whoever does not keep payloads decodes it with borrowed ones,
/// `Submission<&[u8]>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission<P = Bytes> {
    /// With it, the change takes effect at most once.
    pub stamp: Option<Stamp>,
    /// The proposer's wall clock, milliseconds since 1970.
    pub time_ms: u64,
    /// What is proposed.
    pub change: Change<P>,
}

/// Place of a request in its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The session. One that was not opened by [`Change::OpenSession`] is opened by sequence number 1.
    pub session: String,
    /// One more than the session's last.
    pub seq: u64,
}

/// A change of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<P = Bytes> {
    /// Nothing; its place in the history is what a fresh read waits for.
    Noop,
    /// Replicated keys.
    Keys(KeyTransaction),
    /// Settings, `KEY=VALUE`.
    Settings(Vec<(String, String)>),
    /// Tags of a member; `None` removes.
    Tags {
        /// Whose.
        member: MemberId,
        /// What.
        tags: BTreeMap<String, Option<String>>,
    },
    /// Opens a session; the answer names it.
    OpenSession,
    /// A command to a plug-in, ordered for all its instances.
    Command {
        /// Which plug-in.
        plugin: Name,
        /// In the plug-in's own payload format.
        payload: P,
    },
    /// A change that every member must execute before it is decided.
    Transaction(Box<Transaction>),
    /// How a transaction ends. The first one in the history counts.
    Outcome(Outcome),
    /// A kernel tells what became of its own instance of a plug-in.
    Instance(InstanceReport),
    /// A member leaves with the next view.
    Leave {
        /// Who.
        member: MemberId,
        /// By whose wish.
        by: LeaveBy,
    },
    /// The DVM ends.
    Halt {
        /// Name of the member that was asked.
        by: Name,
    },
    /// This branch gives way to another one.
    Yield {
        /// The winner.
        to: Summary,
        /// Whom to tell there.
        rank0: Box<Identity>,
        /// The entry of the last view that both branches share.
        fork: HistoryIndex,
    },
    /// It does not, after all.
    YieldCancel,
    /// This branch takes another one's members in.
    Take(Box<Take>),
    /// It does not, after all.
    TakeCancel {
        /// Of which branch.
        from: ViewId,
    },
}

impl<P> Change<P> {
    /// Whether a client asked for it and means the DVM, on whatever branch: not a member's own word, nor one about the
    /// members of one branch.
    pub(crate) fn is_of_clients(&self) -> bool {
        matches!(
            self,
            Self::Noop
                | Self::Keys(_)
                | Self::Settings(_)
                | Self::Tags { .. }
                | Self::Command { .. }
                | Self::Transaction(_)
        )
    }
}

/// What the winner of a healed cut must rise above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// The loser's branch.
    pub from: Summary,
    /// The loser's highest fence.
    pub fence: u64,
    /// The loser's members; each comes back as a new incarnation.
    pub members: Vec<Identity>,
    /// Sessions that the DVM opened on the loser's branch since the fork, with the entry that opened each.
    pub sessions: Vec<(String, HistoryIndex)>,
}

/// By whose wish a member left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaveBy {
    /// `dvm remove`.
    Remove,
    /// SIGTERM or SIGINT.
    Term,
    /// `dvm halt`.
    Halt,
}

/// A change that members execute, with the rule that combines their results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its identity.
    pub id: TransactionId,
    /// What to do.
    pub kind: TransactionKind,
    /// When it commits.
    pub require: Require,
    /// Execute, tell, change nothing.
    pub dry_run: bool,
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransactionKind {
    /// Load a plug-in.
    Load(Box<PluginSpec>),
    /// Unload it.
    Unload {
        /// Which.
        plugin: Name,
    },
    /// Change its configuration.
    Configure {
        /// Which.
        plugin: Name,
        /// How.
        edit: ConfigEdit,
    },
    /// Put another library in its place; its state is handed over.
    Upgrade {
        /// Which.
        plugin: Name,
        /// To what.
        library: Library,
        /// The member that tries it first, else the primary's.
        canary: Option<MemberId>,
    },
}

impl TransactionKind {
    /// The plug-in it is about; one transaction a name is open at a time.
    #[must_use]
    pub fn plugin(&self) -> &Name {
        match self {
            Self::Load(spec) => &spec.name,
            Self::Unload { plugin } | Self::Configure { plugin, .. } | Self::Upgrade { plugin, .. } => plugin,
        }
    }

    /// `load`, `unload`, `configure` or `upgrade`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Load(_) => "load",
            Self::Unload { .. } => "unload",
            Self::Configure { .. } => "configure",
            Self::Upgrade { .. } => "upgrade",
        }
    }
}

/// An edit of a configuration: JSON text by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigEdit {
    /// Start from nothing instead of from the present configuration.
    pub replace: bool,
    /// Keys to set (`Some`, JSON text) or to remove.
    pub keys: BTreeMap<String, Option<String>>,
}

impl ConfigEdit {
    /// The configuration after the edit.
    #[must_use]
    pub fn apply(&self, present: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut config = if self.replace { BTreeMap::new() } else { present.clone() };
        for (key, value) in &self.keys {
            match value {
                Some(value) => drop(config.insert(key.clone(), value.clone())),
                None => drop(config.remove(key)),
            }
        }
        config
    }
}

/// The tunable failure condition: how many of the electorate must be ok.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Require {
    /// Each.
    #[default]
    All,
    /// More than half.
    Majority,
    /// So many.
    AtLeast(u32),
    /// One.
    Any,
}

impl Require {
    /// Whether `ok` of `electorate` members suffice. No `ok` never does.
    #[must_use]
    pub fn is_met(self, ok: usize, electorate: usize) -> bool {
        ok > 0
            && match self {
                Self::All => ok == electorate,
                Self::Majority => 2 * ok > electorate,
                Self::AtLeast(k) => ok >= k as usize,
                Self::Any => true,
            }
    }
}

impl core::fmt::Display for Require {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Majority => f.write_str("majority"),
            Self::AtLeast(k) => write!(f, "at-least:{k}"),
            Self::Any => f.write_str("any"),
        }
    }
}

impl core::str::FromStr for Require {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        let at_least = || text.strip_prefix("at-least:")?.parse().ok().filter(|k| *k > 0).map(Self::AtLeast);
        match text {
            "all" => Ok(Self::All),
            "majority" => Ok(Self::Majority),
            "any" => Ok(Self::Any),
            _ => at_least().ok_or_else(|| NoRule { text: text.into() }),
        }
    }
}

/// Not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no rule: all, majority, at-least:K or any")]
pub struct NoRule {
    /// What was given.
    pub text: String,
}

/// How a transaction ends, worked out once by whoever closes its collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// The verdict.
    pub committed: bool,
    /// Each member's own result; a member of the electorate without one was absent.
    pub results: BTreeMap<MemberId, ExecResult>,
}

/// A transaction whose outcome took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// It.
    pub transaction: Transaction,
    /// The verdict.
    pub committed: bool,
    /// Each member's own result.
    pub results: BTreeMap<MemberId, ExecResult>,
    /// Members it was decided among, in rank order.
    pub electorate: Vec<MemberId>,
}

/// Conditions on keys and what to do when they all hold, or else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTransaction {
    /// All must hold.
    pub conditions: Vec<(String, KeyCondition)>,
    /// Done if they do.
    pub then: Vec<KeyOperation>,
    /// Done if one does not.
    pub otherwise: Vec<KeyOperation>,
}

/// A condition on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyCondition {
    /// It has this version.
    Version(HistoryIndex),
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyOperation {
    /// Set it.
    Put {
        /// The key.
        key: String,
        /// Its value: JSON text.
        value: Bytes,
    },
    /// Delete it, if it exists.
    Delete {
        /// The key.
        key: String,
    },
}

/// What a change did, as its proposer is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Done; there is nothing more to say.
    Done,
    /// A key transaction ran.
    Keys {
        /// Whether the conditions held.
        held: bool,
        /// Version of the keys it put: the entry's first index.
        version: HistoryIndex,
        /// The first condition that did not hold, with the key's present version (0: absent).
        failed: Option<(String, HistoryIndex)>,
    },
    /// A session was opened.
    Session(String),
    /// A command was ordered at this index; the plug-in answers it.
    Command,
    /// A transaction was ordered; its outcome follows.
    Ordered(TransactionId),
    /// A transaction ended. Told to its originator in place of `Ordered`.
    Ended {
        /// Which.
        transaction: TransactionId,
        /// The verdict.
        committed: bool,
        /// Whether nothing was to change.
        dry_run: bool,
        /// Its rule.
        require: Require,
        /// Results, by member in rank order; `None` is absent.
        results: Vec<(Name, Option<ExecResult>)>,
    },
    /// Nothing changed.
    Refused {
        /// A short code: `not-found`, `exists`, `busy`, `invalid`, `sequence`, `denied`.
        code: String,
        /// For people.
        reason: String,
    },
    /// The session had this request before.
    Repeated {
        /// Index of the entry that took effect.
        index: HistoryIndex,
        /// What it did then.
        first: Box<Applied>,
    },
}

/// One element of the one history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The last index it takes: one per event, at least one. Receipts and cursors name this one.
    pub index: HistoryIndex,
    /// The first index it takes.
    pub first: HistoryIndex,
    /// The view whose ranks and order it belongs to.
    pub view: ViewId,
    /// The label of the view it was delivered in.
    pub label: Label,
    /// Its place in that view's order.
    pub key: Key,
    /// What it is.
    pub content: Content,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A message of the ordered broadcast.
    Change {
        /// Who proposed it.
        origin: MemberId,
        /// Its sequence number in its view.
        oseq: u64,
        /// A [`Submission`], encoded.
        body: Bytes,
        /// As it came with a long body ([`digest`](crate::wire::digest)).
        digest: Option<Digest>,
    },
    /// A view was installed.
    View(Box<Proposal>),
}

/// What the founder of a DVM decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Its name.
    pub name: Name,
    /// Its identity for ever.
    pub id: u128,
    /// The first lineage.
    pub lineage: Lineage,
    /// The settings.
    pub config: crate::Config,
}

/// A member that is no longer one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// Who it was.
    pub identity: Identity,
    /// Why it is gone: `left` and by whom, or the failure's cause.
    pub cause: String,
    /// Whether it left in order.
    pub in_order: bool,
    /// The entry.
    pub index: HistoryIndex,
    /// The proposer's wall clock then, milliseconds since 1970.
    pub time_ms: u64,
    /// It had been called silent before, and lived.
    pub mistaken: Option<Mistaken>,
}

/// A member that was called silent and lived: the next time it is waited for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistaken {
    /// How often T is doubled for it, 1 or 2.
    pub doublings: u8,
    /// When it came back, by the proposer's wall clock, milliseconds since 1970.
    pub time_ms: u64,
}

/// Where a branch stands in healing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Healing {
    /// It gives way.
    Yielding {
        /// To which branch.
        to: Summary,
        /// Whom to tell there: every member may come to be the one that does.
        rank0: Box<Identity>,
        /// The entry of the last view that both branches share.
        fork: HistoryIndex,
    },
    /// It takes another branch's members in.
    Taking(Box<Take>),
}

/// A summary of `view` at `index`.
#[must_use]
pub fn summary(view: &View, last_confirmed: Epoch, index: HistoryIndex) -> Summary {
    Summary {
        id: view.id,
        lineage: view.lineage,
        label: view.label,
        last_confirmed,
        size: view.members.len() as u32,
        rank0: view.members[0],
        index,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for rule in [Require::All, Require::Majority, Require::AtLeast(3), Require::Any] {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        for bad in ["", "at-least:", "at-least:0", "most", "at-least:-1"] {
            assert!(bad.parse::<Require>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_ok_never_commits_and_each_rule_counts_in_the_electorate() {
        for rule in [Require::All, Require::Majority, Require::AtLeast(1), Require::Any] {
            assert!(!rule.is_met(0, 5) && !rule.is_met(0, 0), "{rule}");
            assert!(rule.is_met(5, 5), "{rule}");
        }
        assert!(
            !Require::All.is_met(4, 5) && Require::Majority.is_met(3, 5) && !Require::Majority.is_met(2, 4)
        );
        assert!(
            Require::AtLeast(2).is_met(2, 5)
                && !Require::AtLeast(3).is_met(2, 5)
                && Require::Any.is_met(1, 5)
        );
    }
}
