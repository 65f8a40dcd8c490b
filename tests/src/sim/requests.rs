//! What clients were promised: every request ends once, what is acknowledged stays, what is refused never was.

use super::failure::{Verdict, Violation, ensure};
use super::tree::{NodeNo, Tree};
use bytes::Bytes;
use dvm_core::ids::{MemberId, RequestId, TransactionId, ViewId};
use dvm_core::state::{Applied, Change, Content, Ended, Stamp, Submission};
use dvm_core::view::{Label, View};
use dvm_core::wire::{self, ExecResult};
use dvm_core::{Answer, Receipt};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All requests of a run, and the effects they had.
#[derive(Default)]
pub(crate) struct Requests {
    /// By process and the process's number.
    all: BTreeMap<(usize, RequestId), Request>,
    /// By body, which no two requests share.
    bodies: HashMap<Bytes, (usize, RequestId)>,
    /// Where each (session, seq) took effect, on whatever branch.
    stamps: BTreeMap<(String, u64), Vec<NodeNo>>,
    /// Where each transaction ended, on whatever branch.
    ended: BTreeMap<TransactionId, Vec<NodeNo>>,
    /// How each member's execution came out.
    executed: BTreeMap<(MemberId, TransactionId), ExecResult>,
    /// Entries by which a branch gives way or takes another in.
    healing: BTreeMap<NodeNo, Healing>,
    /// Branches taken in.
    pub(crate) takes: u64,
    /// Nobody fails in this run.
    pub(crate) is_calm: bool,
}

/// One request to one process.
struct Request {
    body: Bytes,
    is_transaction: bool,
    since_us: u64,
    end: Option<End>,
    /// An entry with its body was delivered somewhere.
    delivered: bool,
}

/// How a request ended.
enum End {
    Done { at: NodeNo, label: Label, view: ViewId },
    Refused,
    Unknown,
}

/// What an entry means for the healing of a cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Healing {
    /// The branch takes no writes from here on.
    Yields,
    /// It does again.
    Stays,
    /// The branch takes in another one with this fence.
    Takes { fence: u64 },
}

/// What became of acknowledged entries.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) done: u64,
    pub(crate) undone: u64,
    pub(crate) lost: u64,
}

impl Requests {
    /// A client hands a request to a process.
    pub(crate) fn submitted(&mut self, pid: usize, request: RequestId, submission: &Submission, now_us: u64) {
        let body = postcard::to_allocvec(submission).expect("a submission is plain data");
        let body = Bytes::from(body);
        let is_transaction = matches!(submission.change, Change::Transaction(_));
        let known = self.bodies.insert(body.clone(), (pid, request));
        assert!(known.is_none(), "the simulator makes no two equal submissions");
        let request_end = Request { body, is_transaction, since_us: now_us, end: None, delivered: false };
        self.all.insert((pid, request), request_end);
    }

    /// A member's execution of a transaction comes out so.
    pub(crate) fn executed(&mut self, member: MemberId, transaction: TransactionId, result: &ExecResult) {
        self.executed.entry((member, transaction)).or_insert_with(|| result.clone());
    }

    /// An entry was delivered for the first time, by anybody, in `view`.
    pub(crate) fn delivered(&mut self, tree: &Tree, no: NodeNo, view: Option<&View>) -> Verdict {
        let node = tree.node(no);
        let Some(Content::Change { body, .. }) = node.entry.as_deref().map(|entry| &entry.content) else {
            return Ok(());
        };
        let submission = postcard::from_bytes::<Submission>(body)
            .map_err(|error| Violation { rule: "I1", text: format!("a body does not decode: {error}") })?;
        self.takes += u64::from(matches!(submission.change, Change::Take(_)));
        if let Some(step) = Healing::of(&submission.change, &node.applied) {
            self.healing.insert(no, step);
        }
        match self.bodies.get(body) {
            Some(key) => {
                let request = self.all.get_mut(key).expect("bodies belong to requests");
                request.delivered = true;
                ensure(!matches!(request.end, Some(End::Refused)), "refused", || {
                    format!("request {key:?} was refused and is delivered at {}", node.index)
                })?;
            }
            None => ensure(is_internal(&submission.change), "I1", || {
                format!("entry {} was submitted by nobody: {submission:?}", node.index)
            })?,
        }
        if let (Some(stamp), true) = (submission.stamp, took_effect(&node.applied)) {
            self.stamped(tree, no, stamp)?;
        }
        if let Some(ended) = &node.ended {
            let before = self.ended.entry(ended.transaction.id).or_default();
            let twice = before.iter().any(|at| tree.is_ancestor(*at, no));
            before.push(no);
            ensure(!twice, "I13", || format!("{} ended twice on one branch", ended.transaction.id))?;
            self.check_end(ended, view)?;
        }
        Ok(())
    }

    /// The verdict follows from the results by the transaction's own rule, among the electorate's members that are in
    /// the view still, and each result is what its member came to. When nobody failed, everybody contributed.
    fn check_end(&self, ended: &Ended, view: Option<&View>) -> Verdict {
        let told = |(m, result): (&MemberId, &ExecResult)| {
            self.executed.get(&(*m, ended.transaction.id)) == Some(result)
        };
        ensure(ended.results.iter().all(told), "I13", || format!("results that nobody came to: {ended:?}"))?;
        let electorate: BTreeSet<_> = ended.electorate.iter().collect();
        let all = electorate.into_iter().eq(ended.results.keys());
        ensure(all || !self.is_calm, "I13", || format!("not all contributed: {ended:?}"))?;
        let stays = |m: &&MemberId| view.is_none_or(|view| view.has(**m));
        let is_ok = |m: &&MemberId| ended.results.get(m).is_some_and(|r| r.verdict == wire::Verdict::Ok);
        let count = ended.electorate.iter().filter(stays).count();
        let ok = ended.electorate.iter().filter(stays).filter(is_ok).count();
        let met = ended.transaction.require.is_met(ok, count);
        ensure(met == ended.committed, "I13", || format!("{ok} of {count} were ok: {ended:?}"))
    }

    /// What the entry at `no` means for the healing of a cut, if anything.
    pub(crate) fn healing(&self, no: NodeNo) -> Option<Healing> {
        self.healing.get(&no).copied()
    }

    /// Whether a client made this body.
    pub(crate) fn is_clients(&self, body: &Bytes) -> bool {
        self.bodies.contains_key(body)
    }

    fn stamped(&mut self, tree: &Tree, no: NodeNo, stamp: Stamp) -> Verdict {
        let Stamp { session, seq } = stamp;
        let before = self.stamps.entry((session, seq)).or_default();
        let twice = before.iter().find(|at| tree.is_ancestor(**at, no));
        ensure(twice.is_none(), "I15", || {
            let first = twice.map(|at| tree.node(*at).entry.clone());
            format!("a stamp took effect twice: {first:?}\n  and {:?}", tree.node(no).entry)
        })?;
        before.push(no);
        Ok(())
    }

    /// A process answers a request; `at` is its place in the history.
    pub(crate) fn answered(
        &mut self,
        tree: &Tree,
        at: Option<NodeNo>,
        key: (usize, RequestId),
        answer: &Answer,
    ) -> Verdict {
        let request = self.all.get_mut(&key);
        let request = request.ok_or_else(|| Violation {
            rule: "answer",
            text: format!("request {key:?} was never made and is answered {answer:?}"),
        })?;
        ensure(request.end.is_none(), "answer", || format!("request {key:?} is answered twice: {answer:?}"))?;
        request.end = Some(match answer {
            Answer::Done { receipt, applied } => request.check_receipt(tree, at, receipt, applied)?,
            Answer::Refused(refusal) => {
                ensure(!request.delivered, "refused", || {
                    format!("request {key:?} was delivered and is refused: {refusal}")
                })?;
                End::Refused
            }
            Answer::Unknown { .. } => End::Unknown,
        });
        Ok(())
    }

    /// The oldest request that a live process has not answered.
    pub(crate) fn unanswered(&self, is_alive: impl Fn(usize) -> bool) -> Option<(usize, RequestId, u64)> {
        let mut open = self.all.iter().filter(|((pid, _), request)| request.end.is_none() && is_alive(*pid));
        open.next().map(|((pid, id), request)| (*pid, *id, request.since_us))
    }

    /// Whether a request ended with a receipt.
    pub(crate) fn is_done(&self, key: (usize, RequestId)) -> bool {
        self.all.get(&key).is_some_and(|request| matches!(request.end, Some(End::Done { .. })))
    }

    /// How many transactions ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.len() as u64
    }

    /// No acknowledged entry is missing from the last history, at `last`, unless it was provisional, or all that
    /// had delivered it died. Without a last history nothing can be missing.
    pub(crate) fn check_kept(
        &self,
        tree: &Tree,
        last: Option<NodeNo>,
        installs: &BTreeMap<ViewId, NodeNo>,
        is_held: impl Fn(NodeNo) -> bool,
    ) -> Verdict<Kept> {
        let mut kept = Kept::default();
        for (key, request) in &self.all {
            let Some(End::Done { at, label, view }) = request.end else {
                kept.undone += 1;
                continue;
            };
            kept.done += 1;
            let Some(last) = last else { continue };
            if tree.is_ancestor(at, last) {
                continue;
            }
            kept.lost += 1;
            // What a flush delivers is confirmed by the view that it leads to, and not for those of another branch.
            let view = installs.get(&view).copied().filter(|view| tree.is_ancestor(at, *view)).unwrap_or(at);
            ensure(label == Label::Provisional || !is_held(view), "lost write", || {
                format!("request {key:?}, confirmed at {}, is not in the last history", tree.node(at).index)
            })?;
        }
        Ok(kept)
    }
}

impl Request {
    fn check_receipt(
        &self,
        tree: &Tree,
        at: Option<NodeNo>,
        receipt: &Receipt,
        applied: &Applied,
    ) -> Verdict<End> {
        let wrong = |text: String| Violation { rule: "receipt", text };
        let place = at.and_then(|at| tree.at_index(at, receipt.index));
        let place =
            place.ok_or_else(|| wrong(format!("no entry ends at {} of {receipt:?}", receipt.index)))?;
        let node = tree.node(place);
        let (label, view) = (receipt.view.label, receipt.view.id);
        if self.is_transaction && matches!(applied, Applied::Ended { .. }) {
            return Ok(End::Done { at: place, label, view });
        }
        let body = match node.entry.as_deref().map(|entry| &entry.content) {
            Some(Content::Change { body, .. }) => Some(body),
            _ => None,
        };
        ensure(body == Some(&self.body), "receipt", || {
            format!("{receipt:?} names the entry {:?}", node.entry)
        })?;
        ensure(node.applied == *applied, "receipt", || {
            format!("the answer tells {applied:?}, the entry did {:?}", node.applied)
        })?;
        Ok(End::Done { at: place, label, view })
    }
}

impl Healing {
    fn of(change: &Change, applied: &Applied) -> Option<Self> {
        match (change, applied) {
            (_, Applied::Refused { .. }) => None,
            (Change::Yield { .. }, _) => Some(Self::Yields),
            (Change::YieldCancel, _) => Some(Self::Stays),
            (Change::Take(take), _) => Some(Self::Takes { fence: take.fence }),
            _ => None,
        }
    }
}

/// Whether the state remembers the stamp: everything but what the session itself turned away.
fn took_effect(applied: &Applied) -> bool {
    match applied {
        Applied::Repeated { .. } => false,
        Applied::Refused { code, .. } => code != "sequence",
        _ => true,
    }
}

/// What members propose by themselves.
fn is_internal(change: &Change) -> bool {
    matches!(
        change,
        Change::Outcome(_)
            | Change::Leave { .. }
            | Change::Halt { .. }
            | Change::Yield { .. }
            | Change::YieldCancel
            | Change::Take(_)
            | Change::TakeCancel { .. }
    )
}
