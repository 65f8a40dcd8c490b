//! The checkers' common entrance: hears everything that members say and do, and objects.
//!
//! It stands outside: it believes only outputs, recorded as they happen, so that the dead bear witness too.

use super::ballots::Ballots;
use super::failure::{Verdict, Violation, ensure};
use super::requests::{Healing, Requests};
use super::tree::{NodeNo, Tree};
use dvm_core::ids::{HistoryIndex, MemberId, RequestId, ViewId};
use dvm_core::state::{Content, Entry, State};
use dvm_core::wire::Data;
use dvm_core::{Answer, Delivery, Member, Partition, Phase};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a member's outputs tell about its history, in their order.
pub(crate) enum Step {
    Deliver(Box<Delivery>),
    Restored(HistoryIndex),
    Orphans {
        fork: HistoryIndex,
        entries: Vec<Arc<Entry>>,
        truncated: bool,
    },
    /// A copy of the state with this index and history hash goes to a joiner.
    Copied(HistoryIndex, [u8; 32]),
    Answer(RequestId, Answer),
    /// A message of its own goes on the ring of this view.
    Placed(ViewId, Data),
}

/// Hears everything, and objects.
pub(crate) struct Checker {
    pub(crate) tree: Tree,
    pub(crate) ballots: Ballots,
    pub(crate) requests: Requests,
    seats: Vec<Seat>,
    pub(crate) deliveries: u64,
    pub(crate) joins: u64,
    /// Where each view was installed.
    pub(crate) installs: BTreeMap<ViewId, NodeNo>,
}

/// Where one process stands in the history.
#[derive(Default)]
struct Seat {
    at: Option<NodeNo>,
    /// Where it stood when a snapshot replaced its state.
    left: Vec<NodeNo>,
    /// Copies of the state that it was given, the last one last.
    copies: Vec<Copied>,
    /// Per origin: the last sequence number delivered in the present view.
    oseqs: BTreeMap<MemberId, u64>,
    fence: u64,
    index: HistoryIndex,
    /// Its branch gives way, as far as it has delivered.
    yields: bool,
    /// Fences of the branches taken in since the state was looked at.
    taken: Vec<u64>,
    /// It had stopped the ring when it was looked at last: what it delivers next, a flush delivers.
    wedged: bool,
    /// The last message that it numbered.
    numbered: (Option<ViewId>, u64),
}

/// A copy of the state, and who gave it.
struct Copied {
    at: NodeNo,
    sponsor: usize,
}

impl Checker {
    /// `founded` is the founder's state before anything happened.
    pub(crate) fn new(founded: &State) -> Self {
        let quorum = founded.config.partition == Partition::Quorum;
        let mut tree = Tree::new(founded, quorum);
        tree.note_history_hash(0, founded.history_hash).expect("the first is equal to itself");
        Self {
            tree,
            ballots: Ballots::new(&founded.view, quorum),
            requests: Requests::default(),
            seats: vec![Seat { at: Some(0), ..Seat::default() }],
            deliveries: 0,
            joins: 0,
            installs: BTreeMap::new(),
        }
    }

    /// A process that joins; the founder has seat 0 from the beginning.
    pub(crate) fn seat(&mut self, pid: usize) {
        if pid == self.seats.len() {
            self.seats.push(Seat::default());
        }
    }

    /// Where a process stands.
    pub(crate) fn place(&self, pid: usize) -> Option<NodeNo> {
        self.seats[pid].at
    }

    /// Whether a process ever held the entry at `no`.
    pub(crate) fn has_held(&self, pid: usize, no: NodeNo) -> bool {
        let seat = &self.seats[pid];
        seat.at.iter().chain(&seat.left).any(|at| self.tree.is_ancestor(no, *at))
    }

    /// A copy of the state arrives at a joiner.
    pub(crate) fn copied(&mut self, pid: usize, sponsor: usize, state: &State) {
        if let Some(at) = self.tree.find(state.index, state.history_hash) {
            self.seats[pid].copies.push(Copied { at, sponsor });
        }
    }

    /// All that one input made a process do. `member` is `None` if it died over it.
    pub(crate) fn batch(
        &mut self,
        pid: usize,
        id: MemberId,
        steps: &mut Vec<Step>,
        member: Option<&Member>,
    ) -> Verdict {
        // What stands before a view in one batch was delivered by the flush.
        let flushed = steps.iter().rposition(|step| {
            matches!(step, Step::Deliver(delivery) if matches!(delivery.entry.content, Content::View(_)))
        });
        // One that died before the view was told leaves the beginning of a flush.
        let cut_short = member.is_none() && flushed.is_none() && self.seats[pid].wedged;
        if let Some(member) = member {
            self.seats[pid].wedged = matches!(member.phase(), Phase::Flushing | Phase::Blocked);
        }
        let (mut answers, mut orphans, mut whole) = (Vec::new(), None, flushed.is_some());
        let yielded = self.seats[pid].yields;
        let mut previous = None;
        for (at, step) in steps.drain(..).enumerate() {
            match step {
                Step::Deliver(delivery) => {
                    let in_flush = cut_short || flushed.is_some_and(|end| at < end);
                    if yielded && self.seats[pid].yields {
                        self.check_yielding(id, &delivery.entry)?;
                    }
                    self.deliver(pid, id, *delivery, in_flush)?;
                }
                Step::Restored(index) => {
                    whole = true;
                    previous = self.seats[pid].at;
                    self.restore(pid, index, member)?;
                }
                Step::Orphans { fork, entries, truncated } => orphans = Some((fork, entries, truncated)),
                Step::Copied(index, hash) => self.copy(pid, index, hash)?,
                Step::Answer(request, answer) => answers.push((request, answer)),
                Step::Placed(view, data) => self.placed(pid, view, &data)?,
            }
        }
        if let (Some(previous), Some(_)) = (previous, member) {
            self.check_orphans(pid, previous, orphans)?;
        }
        for (request, answer) in &answers {
            let at = self.seats[pid].at;
            self.requests.answered(&self.tree, at, (pid, *request), answer)?;
        }
        member.map_or(Ok(()), |member| self.check_state(pid, member, whole))
    }

    fn deliver(&mut self, pid: usize, id: MemberId, delivery: Delivery, in_flush: bool) -> Verdict {
        let seat = &mut self.seats[pid];
        let Some(at) = seat.at else {
            let text = format!("{id:?} delivers {:?} before it has a state", delivery.entry);
            return Err(Violation { rule: "contract", text });
        };
        let entry = delivery.entry.clone();
        let view = self.ballots.view(self.tree.node(at).view);
        let is_member = view.is_some_and(|view| view.has(id));
        let normal = is_member && !in_flush && matches!(entry.content, Content::Change { .. });
        let (no, is_new) = self.tree.deliver(at, delivery, normal)?;
        self.deliveries += 1;
        let seat = &mut self.seats[pid];
        seat.at = Some(no);
        match &entry.content {
            Content::Change { origin, oseq, .. } => {
                let last = seat.oseqs.insert(*origin, *oseq).unwrap_or(0);
                ensure(*oseq == last + 1, "I2", || {
                    format!("{id:?} delivers {oseq} of {origin:?} after {last} in {:?}", entry.view)
                })?;
            }
            Content::View(proposal) => {
                seat.oseqs.clear();
                let first = *self.installs.entry(entry.view).or_insert(no);
                ensure(first == no, "I6", || format!("{:?} was installed after two histories", entry.view))?;
                if is_new {
                    self.joins += proposal.joiners.len() as u64;
                    self.ballots.install(&entry, proposal, id)?;
                }
            }
        }
        if is_new {
            self.requests.delivered(&self.tree, no, self.ballots.view(entry.view))?;
        }
        let seat = &mut self.seats[pid];
        match self.requests.healing(no) {
            Some(Healing::Yields) => seat.yields = true,
            Some(Healing::Stays) => seat.yields = false,
            Some(Healing::Takes { fence }) => seat.taken.push(fence),
            None => {}
        }
        Ok(())
    }

    /// A member that is alone numbers and delivers in one step: it takes no writes once its branch yields.
    fn check_yielding(&self, id: MemberId, entry: &Entry) -> Verdict {
        let Content::Change { origin, body, .. } = &entry.content else { return Ok(()) };
        let alone = *origin == id && self.ballots.view(entry.view).is_some_and(|view| view.size() == 1);
        ensure(!alone || !self.requests.is_clients(body), "yield", || {
            format!("{id:?} has yielded and orders {entry:?}")
        })
    }

    /// What a member places on the ring of its own, and not again, has its number since now.
    fn placed(&mut self, pid: usize, view: ViewId, data: &Data) -> Verdict {
        let seat = &mut self.seats[pid];
        if seat.numbered.0 == Some(view) && data.oseq <= seat.numbered.1 {
            return Ok(());
        }
        seat.numbered = (Some(view), data.oseq);
        ensure(!seat.yields || !self.requests.is_clients(&data.body), "yield", || {
            format!("process {pid} has yielded and numbers {data:?} in {view:?}")
        })
    }

    /// A process asks for what came after `index`: it goes on from there, and may not have passed it already.
    pub(crate) fn check_asked(&self, pid: usize, index: HistoryIndex) -> Verdict {
        let passed = self.seats[pid].index;
        ensure(index >= passed, "I22", || {
            format!("process {pid} was at {passed} and asks for what came after {index}")
        })
    }

    /// The place of a copy must be one that its sender passed.
    fn copy(&mut self, pid: usize, index: HistoryIndex, hash: [u8; 32]) -> Verdict {
        let at = self.seats[pid].at.and_then(|at| self.tree.at_index(at, index));
        match at {
            Some(at) => self.tree.note_history_hash(at, hash),
            None => {
                let text = format!("a snapshot at {index}, where no entry of its sender ends");
                Err(Violation { rule: "I14", text })
            }
        }
    }

    /// A snapshot, and perhaps a tail, became a process's state.
    fn restore(&mut self, pid: usize, index: HistoryIndex, member: Option<&Member>) -> Verdict {
        let state = member.and_then(Member::state);
        let hash = state.map(|state| (state.index, state.history_hash));
        let view = state.and_then(|state| state.ancestry.iter().rev().find(|(_, at)| *at <= index));
        let tip = hash.and_then(|(index, hash)| self.tree.find(index, hash));
        let exact = tip.and_then(|tip| self.tree.at_index(tip, index));
        let Some(no) = exact.or_else(|| self.below_copies(pid, index, view.map(|(view, _)| *view))) else {
            let text = format!("process {pid} restored {index}, which follows from no copy it was given");
            return Err(Violation { rule: "I14", text });
        };
        let mut oseqs = BTreeMap::new();
        for node in self.tree.upward(no) {
            let Some(Content::Change { origin, oseq, .. }) = node.entry.as_deref().map(|e| &e.content) else {
                break;
            };
            oseqs.entry(*origin).or_insert(*oseq);
        }
        let seat = &mut self.seats[pid];
        seat.left.extend(seat.at);
        (seat.at, seat.oseqs, seat.yields) = (Some(no), oseqs, false);
        Ok(())
    }

    /// Without a known hash: below a copy it was given, the way that its sponsor went, or else others. Branches may have
    /// come to the same index, but in different views.
    fn below_copies(&self, pid: usize, index: HistoryIndex, view: Option<ViewId>) -> Option<NodeNo> {
        let copies = self.seats[pid].copies.iter().rev();
        let mut below = copies.flat_map(|copy| {
            let mut found = self.tree.below_at_index(copy.at, index);
            found.retain(|no| view.is_none_or(|view| self.tree.node(*no).view == view));
            let sponsor = self.seats[copy.sponsor].at;
            found.sort_by_key(|no| !sponsor.is_some_and(|at| self.tree.is_ancestor(*no, at)));
            found
        });
        below.next()
    }

    /// What only the lost branch had went to the orphan journal.
    fn check_orphans(
        &mut self,
        pid: usize,
        previous: NodeNo,
        orphans: Option<(HistoryIndex, Vec<Arc<Entry>>, bool)>,
    ) -> Verdict {
        let at = self.seats[pid].at.expect("it was just restored");
        let fork = self.tree.fork(previous, at);
        let mut lost: Vec<_> = self.tree.upward(previous).collect();
        lost.truncate(lost.len() - self.tree.upward(fork).count());
        let lost: Vec<_> = lost.into_iter().rev().filter_map(|node| node.entry.clone()).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let Some((told, entries, truncated)) = orphans else {
            let text = format!("process {pid} lost {} entries and tells of none", lost.len());
            return Err(Violation { rule: "orphans", text });
        };
        let index = self.tree.node(fork).index;
        let same = |a: &Arc<Entry>, b: &Arc<Entry>| a.index == b.index && a.content == b.content;
        let whole = entries.len() == lost.len() && entries.iter().zip(&lost).all(|(a, b)| same(a, b));
        let tail = entries.iter().rev().zip(lost.iter().rev()).all(|(a, b)| same(a, b));
        ensure(truncated && tail || !truncated && whole && told == index, "orphans", || {
            let (got, expected) = (entries.len(), lost.len());
            format!("process {pid} parted after {index} and lost {expected}; it tells of {got} after {told}")
        })
    }

    /// The member's state is the one that follows from what it delivered, and equals all others' there.
    fn check_state(&mut self, pid: usize, member: &Member, whole: bool) -> Verdict {
        let Some(state) = member.state() else { return Ok(()) };
        let is_joining = matches!(member.phase(), Phase::Joining | Phase::Excluded);
        let seat = &mut self.seats[pid];
        let Some(at) = seat.at.filter(|at| self.tree.node(*at).index == state.index) else {
            return ensure(is_joining || seat.at.is_none(), "contract", || {
                format!("process {pid} is at {}, its deliveries elsewhere", state.index)
            });
        };
        if is_joining && self.tree.find(state.index, state.history_hash) != Some(at) {
            // It may be catching up on another branch, and has not told of it yet.
            return Ok(());
        }
        self.tree.note_history_hash(at, state.history_hash)?;
        if whole || state.index.0 % 16 == 0 {
            self.tree.note_state_hash(at, state.hash())?;
        }
        ensure(state.fence >= seat.fence && state.index >= seat.index, "I22", || {
            let (fence, index) = (seat.fence, seat.index);
            format!(
                "process {pid} fell from index {index}, fence {fence} to {}, {}",
                state.index, state.fence
            )
        })?;
        // Each branch taken in lifts it, above both.
        let lifted = seat.fence + seat.taken.len() as u64;
        let above = state.fence >= lifted && seat.taken.iter().all(|fence| state.fence > *fence);
        ensure(above, "I22", || {
            let (fence, taken) = (seat.fence, &seat.taken);
            format!("process {pid} took in {taken:?} at fence {fence} and is at {}", state.fence)
        })?;
        seat.taken.clear();
        (seat.fence, seat.index) = (state.fence, state.index);
        Ok(())
    }
}
