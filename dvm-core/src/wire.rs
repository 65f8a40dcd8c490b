//! What members say to each other. The bytes on the wire are the transport's (`dvm-kernel`).
//!
//! | message | from | to | for |
//! |---|---|---|---|
//! | `Ring::Data`, `Ring::Stable` | predecessor | successor | reliable, ordered broadcast |
//! | `Ring::Collect` | predecessor | successor | results of a transaction, combined round the ring |
//! | `Ring::Resume` | successor | predecessor | what the successor holds; nothing is sent on a link before it |
//! | `Heartbeat` | member | its observers | liveness, progress, which view the member is in |
//! | `LeaseEcho` | member | the member of a primary | the primary may act on |
//! | `Suspect` | observer | coordinators to be | evidence against members |
//! | `FlushRequest` … `Commit` | coordinator | the unsuspected and the joiners | one view change |
//! | `Fetch`, `Bodies` | either side of a flush | the other | bodies the one lacks |
//! | `Query`, `Commit`, `Expelled` | the wedged, and those who know more | each other | how a view ended |
//! | `Join` … `Ready`, `JoinerFetch`, `JoinerFill` | joiner | sponsor, coordinator | learn first, flush last |
//! | `Probe`, `ProbeReply`, `Yielded`, `Taken` | rank 0 of a branch | departed members, the other branch | healing |

use crate::ids::{Epoch, HistoryIndex, Lamport, Lineage, MemberId, Name, OriginSeq, Rank, Time, ViewId};
use crate::state::{Entry, FailureCause, LeaveBy, Take};
use crate::view::{Label, View};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Who a member is: what others need to reach it and to show it to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// This incarnation.
    pub id: MemberId,
    /// What people call it; unique in a view.
    pub name: Name,
    /// The machine it runs on; informative, never a key.
    pub host: String,
    /// Where it listens, `ADDRESS:PORT`, the first preferred.
    pub addresses: Vec<String>,
    /// Process id on its host.
    pub pid: u32,
    /// Its log file on its host.
    pub log: String,
    /// The build's version.
    pub version: String,
    /// Free `key=value` pairs for selectors.
    pub tags: BTreeMap<String, String>,
}

/// A frame of the ring. A link belongs to one view, so frames need not name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ring {
    /// One origin's message on its first lap.
    Data(Data),
    /// Second lap: every member holds all of `origin` up to the number. Cumulative.
    Stable(Vec<(Rank, OriginSeq)>),
    /// Results of one open transaction, gathered so far.
    Collect(Collect),
    /// From the successor, first on every link: what it has received and knows to be stable, by rank.
    Resume {
        /// Highest sequence number received, by rank of origin.
        received: Vec<OriginSeq>,
        /// Highest sequence number known stable, by rank of origin.
        stable: Vec<OriginSeq>,
    },
}

impl Ring {
    /// What this frame counts against a link's room, bytes: its body and a flat sum for the rest.
    #[must_use]
    pub fn cost(&self) -> u64 {
        64 + match self {
            Ring::Data(data) => data.body.len() as u64,
            Ring::Stable(list) => 8 * list.len() as u64,
            Ring::Collect(collect) => 64 * collect.results.len() as u64,
            Ring::Resume { received, .. } => 16 * received.len() as u64,
        }
    }
}

/// One message of the ordered broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Rank of its originator.
    pub origin: Rank,
    /// From 1 per origin and view, without gaps.
    pub oseq: OriginSeq,
    /// Lamport number, given when the message was placed on the link.
    pub lnum: Lamport,
    /// Links it has travelled; the originator sends 1.
    pub hops: u16,
    /// The submission's bytes, decoded only at delivery.
    pub body: Bytes,
    /// BLAKE3 of a long body: made once, by its originator, so that the others need not walk it for the chain hash.
    pub digest: Option<Digest>,
}

/// A BLAKE3 hash.
pub type Digest = [u8; 32];

/// Bodies of more than this many bytes carry their digest.
const SHORT_BODY: usize = 256;

/// The digest that travels with a body: none for a short one.
#[must_use]
pub fn digest(body: &[u8]) -> Option<Digest> {
    carries_digest(body).then(|| *blake3::hash(body).as_bytes())
}

/// Whether a body is long enough to travel with its digest.
#[must_use]
pub fn carries_digest(body: &[u8]) -> bool {
    body.len() > SHORT_BODY
}

impl Data {
    /// Its place in the total order of its view.
    #[must_use]
    pub fn key(&self) -> Key {
        Key { lnum: self.lnum, origin: self.origin }
    }
}

/// Place in the total order inside a view: Lamport number, then rank of the origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The message's Lamport number; 0 for the view's own entry, which is first.
    pub lnum: Lamport,
    /// Rank of its origin.
    pub origin: Rank,
}

/// One member's execution result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Whether it could do what was asked.
    pub verdict: Verdict,
    /// Where it stopped: `fetch`, `check`, `start`, `validate` or `restore`; empty when ok.
    pub stage: String,
    /// A short code: `not-found`, `corrupt`, `wrong-machine`, `abi`, …; empty when ok.
    pub code: String,
    /// The reason, for people.
    pub reason: String,
    /// Of a load that is ok: the process of the instance, so that all know it once the load takes effect; else 0.
    pub pid: u32,
}

impl ExecResult {
    /// The member did it.
    #[must_use]
    pub fn ok() -> Self {
        let (stage, code, reason) = Default::default();
        Self { verdict: Verdict::Ok, stage, code, reason, pid: 0 }
    }

    /// The member did it, and this process holds its instance.
    #[must_use]
    pub fn loaded(pid: u32) -> Self {
        Self { pid, ..Self::ok() }
    }
}

/// How a member's execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Done.
    Ok,
    /// Refused or impossible; the reason says why.
    Failed,
    /// Not done within the limit.
    Timeout,
    /// It had nothing to do.
    Abstain,
}

/// The combined results of one transaction on their way round the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    /// The transaction.
    pub transaction: crate::ids::TransactionId,
    /// 1, and one more after each view change.
    pub attempt: u64,
    /// Who started this lap and will work out the verdict.
    pub starter: Rank,
    /// Each contributor's own result.
    pub results: BTreeMap<MemberId, ExecResult>,
    /// Links it has travelled.
    pub hops: u16,
}

/// Round and coordinator of an attempt to change the view. Higher rounds win; in a round the lower rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// From 1.
    pub round: u64,
    /// The coordinator's rank in the view that is being left.
    pub rank: Rank,
}

impl Ord for Ballot {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.round.cmp(&other.round).then(other.rank.cmp(&self.rank))
    }
}

impl PartialOrd for Ballot {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Which of the acceptors' slots a ballot uses; a ballot adopts only proposals of its own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BallotKind {
    /// By a quorum of a confirmed view.
    Confirmed,
    /// By whoever is left, under `survive`.
    Provisional,
    /// By the operator's word.
    Promoted,
}

/// The view a coordinator proposes, and all that its install needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The new view.
    pub view: View,
    /// The old view it succeeds.
    pub parent: ViewId,
    /// Those who join with it, in the order of their ranks.
    pub joiners: Vec<Identity>,
    /// Those who are no longer in it, and why.
    pub departures: Vec<Departure>,
    /// Per rank of the old view: the last message that the flush delivers.
    pub upto: Vec<OriginSeq>,
    /// Last index delivered anywhere before the flush; later entries carry the new view's label.
    pub delivered: HistoryIndex,
    /// The proposer's wall clock, milliseconds since 1970; told, never decided on.
    pub time_ms: u64,
}

/// A member that a view leaves out. All but `member` is told in events and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Who.
    pub member: MemberId,
    /// Why.
    pub why: DepartureCause,
}

/// Why a member is no longer in the view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DepartureCause {
    /// In order.
    Left(LeaveBy),
    /// By evidence.
    Failed {
        /// The evidence's class.
        cause: FailureCause,
        /// Who noticed first, as far as the coordinator knows.
        noticed_by: MemberId,
        /// How long the coordinator had not heard of it, milliseconds.
        last_heard_ms: Option<u64>,
    },
}

/// What an acceptor has accepted in one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The slot.
    pub kind: BallotKind,
    /// The ballot it was last accepted in.
    pub ballot: Ballot,
    /// The proposal, unchanged since it was first made.
    pub proposal: Proposal,
}

/// Class of evidence against a member, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Evidence {
    /// Frames pass one way only, or the flow is stuck: an edge to avoid.
    BadEdge,
    /// It names another view for 4T.
    NotMember,
    /// No frame for T.
    Silent,
    /// Its process is gone: connection refused, or another incarnation at its address.
    Dead,
}

/// A sign of life and of progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The sender's summary of its view.
    pub view: Summary,
    /// Per rank: milliseconds since the sender last heard of it; `u32::MAX` if never in this view.
    pub heard_ms: Vec<u32>,
    /// Per rank: what the sender has received.
    pub received: Vec<OriginSeq>,
    /// How late the sender's own timers fire, milliseconds (local health, after Lifeguard).
    pub late_ms: u32,
    /// Last history index delivered.
    pub index: HistoryIndex,
    /// The sender has a primary, and asks whoever stands by it for [`Control::LeaseEcho`]: when it sent this, by its clock.
    pub lease: Option<Time>,
}

/// A branch of the history, as far as healing and expulsion need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The view.
    pub id: ViewId,
    /// Its line of descent.
    pub lineage: Lineage,
    /// Its label.
    pub label: Label,
    /// Epoch of the last confirmed view before or at it.
    pub last_confirmed: Epoch,
    /// How many members it has.
    pub size: u32,
    /// Its oldest member.
    pub rank0: MemberId,
    /// History index when this summary was made.
    pub index: HistoryIndex,
}

/// Messages outside the ring. Each may be lost, doubled or late, and is idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// The sender knows of no view without the receiver.
    LeaseEcho {
        /// The view that both are in.
        view: ViewId,
        /// The heartbeat's own time of sending, returned.
        sent: Time,
    },
    /// Evidence against members of `view`.
    Suspect {
        /// The view in which they are members.
        view: ViewId,
        /// Who and how.
        accused: Vec<(MemberId, Evidence)>,
    },
    /// Phase 1: stop the ring traffic of `view`, promise, report.
    FlushRequest {
        /// The view to be left.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
        /// Its kind.
        kind: BallotKind,
        /// R: all that the coordinator does not suspect; each must answer.
        responders: Vec<MemberId>,
    },
    /// Phase 1, answer.
    FlushAck {
        /// The view to be left.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
        /// What the sender has received, by rank.
        received: Vec<OriginSeq>,
        /// Its last delivered index.
        delivered: HistoryIndex,
        /// What it has accepted, at most one per kind.
        slots: Vec<Accepted>,
    },
    /// A higher ballot was promised; back off.
    FlushNack {
        /// The view to be left.
        view: ViewId,
        /// The promise.
        promised: Ballot,
    },
    /// Asks for bodies: per rank, all in `(above, upto]`.
    Fetch {
        /// The view to be left.
        view: ViewId,
        /// Per rank: the last the asker has.
        above: Vec<OriginSeq>,
        /// Per rank: the last it needs.
        upto: Vec<OriginSeq>,
    },
    /// Answer to `Fetch`.
    Bodies {
        /// The view to be left.
        view: ViewId,
        /// In key order.
        bodies: Vec<Data>,
    },
    /// Phase 2.
    Propose {
        /// The attempt.
        ballot: Ballot,
        /// Its kind: the slot it goes to.
        kind: BallotKind,
        /// What is proposed.
        proposal: Box<Proposal>,
    },
    /// Phase 2, answer: all bodies are here and the proposal is recorded.
    Accept {
        /// The view to be left.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
    },
    /// Phase 3: the view is installed.
    Commit {
        /// The view that was left.
        parent: ViewId,
        /// The view that stands.
        id: ViewId,
        /// Whether the receiver is in it. One that is and does not hold its proposal asks the sender for the history.
        member: bool,
        /// The sender's branch, for whom is out of it.
        by: Summary,
    },
    /// A wedged member asks how `view` ended.
    Query {
        /// The view it is still in.
        view: ViewId,
    },
    /// The receiver is not in the sender's view.
    Expelled {
        /// The sender's view.
        by: Summary,
    },
    /// A kernel asks to become a member.
    Join {
        /// Who it is.
        identity: Box<Identity>,
    },
    /// It may not.
    JoinRefused {
        /// Why, for people.
        reason: String,
    },
    /// The sponsor to ask is another one.
    JoinRedirect {
        /// It.
        sponsor: Box<Identity>,
    },
    /// The joiner asks for entries after an index.
    TailRequest {
        /// The last index it has.
        after: HistoryIndex,
    },
    /// Entries after the asked index, in order, at most a bounded number of bytes.
    Tail {
        /// The index they follow.
        after: HistoryIndex,
        /// First bytes of the sender's chain hash there, as far as it knows: entries of another branch may have the
        /// same indices.
        hash: Option<u64>,
        /// They.
        entries: Vec<Entry>,
        /// The sponsor's own last index.
        index: HistoryIndex,
    },
    /// A joiner does not catch up with the ring: its members are to go slower until it has.
    Lagging {
        /// How often their windows are halved.
        halvings: u8,
    },
    /// The joiner has caught up; passed on by the sponsor to the coordinator.
    Ready {
        /// Who.
        identity: Box<Identity>,
        /// Its last index.
        index: HistoryIndex,
    },
    /// A joiner asks the coordinator of a flush for what it lacks.
    JoinerFetch {
        /// The view to be left.
        view: ViewId,
        /// The joiner's last index.
        index: HistoryIndex,
    },
    /// All entries the coordinator has delivered after `index`, then all bodies it has not delivered.
    JoinerFill {
        /// The view to be left.
        view: ViewId,
        /// The asked index.
        index: HistoryIndex,
        /// As in [`Control::Tail`].
        hash: Option<u64>,
        /// Delivered entries.
        entries: Vec<Entry>,
        /// Undelivered bodies up to the proposal's `upto`, in key order.
        bodies: Vec<Data>,
        /// How far the sender has received, by rank: its entries and bodies together reach so far.
        received: Vec<OriginSeq>,
    },
    /// A branch looks for another one.
    Probe {
        /// The sender's branch.
        branch: Summary,
        /// Who asks.
        identity: Box<Identity>,
        /// The views the sender's branch came through, newest first, bounded.
        ancestry: Vec<(ViewId, HistoryIndex)>,
    },
    /// The answer of a member of another branch of the lineage.
    ProbeReply {
        /// Its branch.
        branch: Summary,
        /// Its rank 0, whom healing concerns.
        rank0: Box<Identity>,
        /// The views its branch came through, newest first, bounded.
        ancestry: Vec<(ViewId, HistoryIndex)>,
    },
    /// The losing branch has ordered its `yield`.
    Yielded {
        /// To which branch.
        to: ViewId,
        /// What that branch takes in: the one that yields, after the entry.
        take: Box<Take>,
    },
    /// The winning branch has ordered its `take`: join through the sender.
    Taken {
        /// The branch that was taken from.
        from: ViewId,
        /// The winner.
        by: Summary,
        /// Whom to join through.
        sponsor: Box<Identity>,
    },
    /// One of the two entries could not be ordered; both are cancelled.
    HealCancel {
        /// The sender's branch.
        branch: Summary,
    },
    /// A message passed on because the direct way is closed.
    Relay {
        /// Who said it.
        from: MemberId,
        /// To whom.
        to: MemberId,
        /// What; never another `Relay`.
        message: Box<Control>,
    },
}
