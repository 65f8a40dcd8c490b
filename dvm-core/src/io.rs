//! What goes into a member and what comes out: plain data, comparable and printable, so that a run can be
//! recorded, compared and replayed.

use crate::ids::{Fence, HistoryIndex, LinkId, MemberId, Name, RequestId, Time, TransactionId, ViewId};
use crate::state::{Applied, Entry, Event, LeaveBy, State, Submission, Transaction};
use crate::view::View;
use crate::wire::{Control, ExecResult, Identity, Ring};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Which end of a ring link a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It opened the link, to its successor.
    Outgoing,
    /// It accepted the link, from its predecessor.
    Incoming,
}

/// Something that happened outside the member.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The time given by [`next_deadline`](crate::Member::next_deadline) has come, or gone by.
    Wake,
    /// The shell's wall clock, milliseconds since 1970; told in events, never decided on.
    Clock {
        /// Now.
        wall_ms: u64,
    },
    /// A ring link stands. The first frame on it is the acceptor's [`Ring::Resume`].
    LinkUp {
        /// The shell's number for it.
        link: LinkId,
        /// Who is at the far end.
        peer: MemberId,
        /// The view it was opened for.
        view: ViewId,
        /// Our end.
        side: Side,
    },
    /// A ring link is gone: reset, closed by the far end, or failed.
    LinkDown {
        /// Which.
        link: LinkId,
    },
    /// A ring link that was asked for could not be opened.
    LinkFailed {
        /// To whom.
        to: MemberId,
        /// For which view.
        view: ViewId,
    },
    /// A control or bulk connection with a peer was reset or ended.
    Reset {
        /// Who.
        peer: MemberId,
    },
    /// A connection attempt shows that the incarnation is gone: refused, or another one answers there.
    Refused {
        /// Who is gone.
        peer: MemberId,
    },
    /// As `Refused`, and this one answers there now.
    Replaced {
        /// Who is gone.
        peer: MemberId,
        /// Who is there.
        by: Box<Identity>,
    },
    /// Bytes of ring frames, counted by [`Ring::cost`], have left the shell's queue of a link.
    Written {
        /// Which.
        link: LinkId,
        /// How much.
        cost: u64,
    },
    /// A frame came on a ring link.
    Ring {
        /// On which.
        link: LinkId,
        /// What.
        message: Ring,
    },
    /// A control message came.
    Control {
        /// Who sent it (authenticated by the transport).
        from: MemberId,
        /// What.
        message: Control,
    },
    /// The state copy that a sponsor sent has arrived whole.
    Snapshot {
        /// The sponsor.
        from: MemberId,
        /// It.
        snapshot: Box<Snapshot>,
    },
    /// A local client or the kernel itself proposes a change.
    Submit {
        /// The shell's number; the answer carries it.
        request: RequestId,
        /// What.
        submission: Submission,
    },
    /// The execution asked for by [`Output::Execute`] has ended.
    Executed {
        /// Of which transaction.
        transaction: TransactionId,
        /// How.
        result: ExecResult,
    },
    /// Leave the DVM in order.
    Leave {
        /// By whose wish.
        by: LeaveBy,
    },
    /// Everything of the old incarnation is ended; go on as this new one.
    Fenced {
        /// The new incarnation.
        identity: Identity,
    },
    /// The operator's word: make this side's history the confirmed one, in a new lineage.
    Promote {
        /// The shell's number; the answer carries it.
        request: RequestId,
        /// The new lineage, drawn by the shell.
        lineage: u128,
    },
}

/// A copy of the replicated state as of one history index. Cheap to make: the tables are persistent.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// The state, its current view included.
    pub state: State,
    /// All kept events, oldest first: a joiner serves the same cursors as everybody.
    pub events: Vec<Arc<Event>>,
    /// The last entries' indices with the first bytes of the chain hash there, oldest first: where a member that comes
    /// back finds the last entry that its own history shares.
    pub trail: Vec<(HistoryIndex, u64)>,
}

/// Something the member wants from the world. Outputs are carried out in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// An identity the member may speak to from now on; replaces what was known of that id.
    Know(Box<Identity>),
    /// Open a ring link; answered by `LinkUp` or `LinkFailed`.
    Connect {
        /// To whom.
        to: MemberId,
        /// For which view.
        view: ViewId,
    },
    /// Close a ring link; nothing is answered.
    Close {
        /// Which.
        link: LinkId,
    },
    /// Place a frame in a link's out-queue, behind all placed before.
    Ring {
        /// Which link.
        link: LinkId,
        /// What.
        message: Ring,
    },
    /// Send a control message, if the peer can be reached.
    Control {
        /// To whom.
        to: MemberId,
        /// What.
        message: Control,
    },
    /// Try a new connection to a peer; answered by `Refused` if its process is gone, else by nothing.
    Probe {
        /// Whom.
        peer: MemberId,
    },
    /// Send a state copy to a joiner, off the ring's task.
    Snapshot {
        /// To whom.
        to: MemberId,
        /// It.
        snapshot: Box<Snapshot>,
    },
    /// An entry took effect.
    Deliver(Box<Delivery>),
    /// A request ended.
    Answer {
        /// Which.
        request: RequestId,
        /// How.
        answer: Answer,
    },
    /// Start executing a transaction; answered by `Executed`, at the latest when its limit has passed.
    Execute {
        /// It.
        transaction: Box<Transaction>,
        /// A load: this member is to start an instance, and not only to make sure that it could.
        placed: bool,
    },
    /// This member's instance of a plug-in was promoted: it answers commands and acts on the world while the lease lasts.
    Primary {
        /// Of which plug-in.
        plugin: Name,
        /// Its token.
        fence: Fence,
        /// It may not act before: the old primary may hold its lease so long.
        from: Time,
    },
    /// Primaries of this member may act until then, and no longer.
    Lease {
        /// Exclusive.
        until: Time,
    },
    /// The member's standing changed.
    Standing(Standing),
    /// This member has come to suspect another: advice, which may be taken back without a word.
    Suspected {
        /// Whom.
        member: MemberId,
    },
    /// A branch was lost: its entries after the fork, for the orphan journal, oldest first.
    Orphans {
        /// Last index that both branches share.
        fork: HistoryIndex,
        /// What only the lost branch had.
        entries: Vec<Arc<Entry>>,
        /// Whether a prefix was already dropped from the kept history.
        truncated: bool,
    },
    /// A snapshot became this member's state; subscribers read anew. Entries go on after its index.
    Restored {
        /// Its index.
        index: HistoryIndex,
    },
}

/// One entry that took effect, with everything a reader of the history needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The events it yields, in order.
    pub events: Vec<Event>,
    /// What it did, as the proposer is told.
    pub applied: Applied,
    /// For a [`Change::Outcome`](crate::state::Change::Outcome) that took effect first: the transaction it ends.
    pub ended: Option<Box<crate::state::Ended>>,
    /// Instances that members are to have from now on, whose state is to be had from others.
    pub placed: Vec<crate::state::Placed>,
}

/// Where a change took effect, as told to whoever proposed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The entry's last index.
    pub index: HistoryIndex,
    /// The view it was delivered in, with label and lineage.
    pub view: View,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took effect.
    Done {
        /// Where.
        receipt: Receipt,
        /// What it did.
        applied: Applied,
    },
    /// It took no effect and never will.
    Refused(Refusal),
    /// It was numbered, and this member cannot learn its end.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// Why a request took no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The member is not in a view with a quorum.
    #[error("this side of the DVM has no quorum")]
    NoQuorum,
    /// Too many requests wait for a number.
    #[error("too many requests wait at this member")]
    Busy,
    /// The kernel is no member yet, or no longer.
    #[error("this kernel is not a member")]
    NotMember,
    /// The branch yields to another one.
    #[error("this side of the DVM is being merged into the other side")]
    Yielding,
    /// The body exceeds the limit for inline payloads.
    #[error("the payload exceeds inline_max")]
    TooLarge,
}

/// What a member is, seen from its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not admitted yet.
    Joining,
    /// It orders changes.
    Normal,
    /// A view change is running; clients queue.
    Flushing,
    /// No quorum: reads only.
    Blocked,
    /// It was excluded. End every plug-in process, then answer with [`Input::Fenced`].
    Excluded {
        /// The view that excluded it.
        by: ViewId,
    },
    /// It left in order, or the DVM was halted: deliver what is queued, then exit.
    Left {
        /// By whose wish.
        by: LeaveBy,
    },
    /// It may not join; exit.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Why an input was refused. The member is then as it was before the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// A frame on a link that is not the current one.
    #[error("frame on link {link}, which is not in use")]
    StaleLink {
        /// The link.
        link: LinkId,
    },
    /// The sender is not in the view.
    #[error("{from:?} is not a member of view {view:?}")]
    NotMember {
        /// Who.
        from: MemberId,
        /// Of what.
        view: ViewId,
    },
    /// The message speaks of another view.
    #[error("the message is for view {theirs:?}, this member is in {ours:?}")]
    OtherView {
        /// Its.
        theirs: ViewId,
        /// Ours.
        ours: ViewId,
    },
    /// A vector has the wrong length, a rank or a number is out of range, or a body does not decode.
    #[error("malformed message: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A gap in an origin's sequence: the link lost a frame.
    #[error("gap on the link: got {got} of rank {origin}, expected {expected}")]
    Gap {
        /// Rank of the origin.
        origin: u16,
        /// What came.
        got: u64,
        /// What should have come.
        expected: u64,
    },
    /// The message comes too late or too early to mean anything.
    #[error("unexpected {what}")]
    Unexpected {
        /// What.
        what: &'static str,
    },
    /// The member is no longer one.
    #[error("the member is out")]
    Out,
}
