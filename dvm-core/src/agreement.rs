//! Distributed agreement: every member executes, the results are combined on one lap, the outcome is broadcast.
//!
//! Source: the slides' "Distributed Agreement"; `docs/protocol.md` section 4. COLLECT follows STABLE, a member that is
//! not ready parks the frame and nothing else, and the first outcome in the total order is the one that counts.

use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, TransactionId};
use crate::io::{Answer, Output, Reject};
use crate::seat::Seat;
use crate::state::{Applied, Change, Ended, Outcome};
use crate::view::Label;
use crate::wire::{Collect, ExecResult, Verdict};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// What this member does about one open transaction.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    /// Its own result, once it has one; kept over view changes.
    result: Option<ExecResult>,
    /// It was asked to execute, as a member of the electorate.
    executes: bool,
    /// Results that wait for its own.
    parked: Option<Collect>,
    /// What it placed on the ring last in this view.
    passed_on: Option<Collect>,
    /// It has proposed the outcome in this view.
    decided: bool,
}

impl Seat {
    /// A transaction was ordered: execute it, and collect if it is this member's to do.
    pub(crate) fn begin_execution(&mut self, cx: &mut Cx, transaction: TransactionId) {
        let Some(open) = self.record.state.open.get(&transaction) else { return };
        let placed = open.places.contains(&cx.me.id);
        cx.out.push_back(Output::Execute { transaction: Box::new(open.transaction.clone()), placed });
        let collecting = Collecting { executes: true, ..Collecting::default() };
        self.collecting.insert(transaction, collecting);
        if !self.is_wedged() && self.starter(transaction) == cx.me.id {
            self.start_collection(cx, transaction);
        }
    }

    /// The originator while it is a member, else rank 0.
    fn starter(&self, transaction: TransactionId) -> MemberId {
        if self.view.has(transaction.originator) { transaction.originator } else { self.view.members[0] }
    }

    fn start_collection(&mut self, cx: &mut Cx, transaction: TransactionId) {
        let collect = Collect {
            transaction,
            attempt: self.view.id.epoch.0,
            starter: self.rank,
            results: BTreeMap::new(),
            hops: 0,
        };
        if self.view.size() == 1 {
            self.close_lap(cx, collect);
        } else {
            self.pass_on(cx, collect);
        }
    }

    /// After a view change: the same list everywhere, collected anew with the results that are there.
    pub(crate) fn collect_again(&mut self, cx: &mut Cx) {
        let open: Vec<_> = self.record.state.open.keys().copied().collect();
        self.collecting.retain(|transaction, _| open.contains(transaction));
        for transaction in open {
            let collecting = self.collecting.entry(transaction).or_default();
            (collecting.parked, collecting.passed_on, collecting.decided) = (None, None, false);
            if self.starter(transaction) == cx.me.id {
                self.start_collection(cx, transaction);
            }
        }
    }

    pub(crate) fn on_collect(&mut self, cx: &mut Cx, collect: Collect) -> Result<(), Reject> {
        if collect.starter.at() >= self.view.size() || collect.attempt != self.view.id.epoch.0 {
            return Err(Reject::Malformed { what: "collection" });
        }
        let Some(collecting) = self.collecting.get(&collect.transaction) else {
            // Its outcome is already here.
            return Ok(());
        };
        if collect.starter == self.rank {
            if !collecting.decided && collecting.parked.is_none() {
                self.close_lap(cx, collect);
            }
            return Ok(());
        }
        if collecting.passed_on.is_some() || collecting.parked.is_some() {
            return Ok(());
        }
        self.contribute(cx, collect);
        Ok(())
    }

    /// Adds this member's result and sends the collection on, or parks it until there is one.
    fn contribute(&mut self, cx: &mut Cx, mut collect: Collect) {
        let me = cx.me.id;
        let transaction = collect.transaction;
        let collecting = self.collecting.get_mut(&transaction).expect("it is open");
        match (&collecting.result, collecting.executes) {
            (Some(result), _) => drop(collect.results.insert(me, result.clone())),
            // A joiner has nothing to say.
            (None, false) => {}
            (None, true) => {
                collecting.parked = Some(collect);
                return;
            }
        }
        collect.hops += 1;
        self.pass_on(cx, collect);
    }

    fn pass_on(&mut self, cx: &mut Cx, collect: Collect) {
        let collecting = self.collecting.get_mut(&collect.transaction).expect("it is open");
        collecting.passed_on = Some(collect.clone());
        self.broadcast.push_collect(collect);
        self.pump(cx);
    }

    /// The lap is over: with this member's own result, the verdict.
    fn close_lap(&mut self, cx: &mut Cx, mut collect: Collect) {
        let collecting = self.collecting.get_mut(&collect.transaction).expect("it is open");
        match (&collecting.result, collecting.executes) {
            (Some(result), _) => drop(collect.results.insert(cx.me.id, result.clone())),
            (None, false) => {}
            (None, true) => {
                collecting.parked = Some(collect);
                return;
            }
        }
        collecting.decided = true;
        let open = &self.record.state.open[&collect.transaction];
        let electorate: Vec<_> = open.electorate.iter().copied().filter(|m| self.view.has(*m)).collect();
        let is_ok = |m: &&MemberId| collect.results.get(m).is_some_and(|r| r.verdict == Verdict::Ok);
        let ok = electorate.iter().filter(is_ok).count();
        let committed = open.transaction.require.is_met(ok, electorate.len());
        let outcome = Outcome { transaction: collect.transaction, committed, results: collect.results };
        cx.propose(Change::Outcome(outcome), true);
        self.pump(cx);
    }

    pub(crate) fn on_executed(&mut self, cx: &mut Cx, transaction: TransactionId, result: ExecResult) {
        let Some(collecting) = self.collecting.get_mut(&transaction) else { return };
        collecting.result.get_or_insert(result);
        if let Some(collect) = collecting.parked.take() {
            if self.is_wedged() {
                return;
            }
            if collect.starter == self.rank {
                self.close_lap(cx, collect);
            } else {
                self.contribute(cx, collect);
            }
            self.settle(cx);
        }
    }

    /// A new link to the successor: what was last placed of each open collection goes again.
    pub(crate) fn collect_resumes(&mut self) {
        let again: Vec<_> = self.collecting.values().filter_map(|c| c.passed_on.clone()).collect();
        for collect in again {
            self.broadcast.push_collect(collect);
        }
    }

    /// A transaction's outcome took effect.
    pub(crate) fn end_transaction(&mut self, cx: &mut Cx, ended: &Ended, index: HistoryIndex, label: Label) {
        self.collecting.remove(&ended.transaction.id);
        let Some(requests) = cx.awaited.remove(&ended.transaction.id) else { return };
        let named = ended.electorate.iter();
        let named = named.map(|m| (self.record.state.name_of(*m), ended.results.get(m).cloned()));
        let applied = Applied::Ended {
            transaction: ended.transaction.id,
            committed: ended.committed,
            dry_run: ended.transaction.dry_run,
            require: ended.transaction.require,
            results: named.collect(),
        };
        for request in requests {
            let receipt = self.receipt(index, label);
            cx.answer(request, Answer::Done { receipt, applied: applied.clone() });
        }
    }

    /// Members of the electorate from which no result is known here.
    pub(crate) fn open_waiting_for(&self, transaction: TransactionId) -> Vec<MemberId> {
        let (Some(open), Some(collecting)) =
            (self.record.state.open.get(&transaction), self.collecting.get(&transaction))
        else {
            return Vec::new();
        };
        let seen = collecting.parked.as_ref().or(collecting.passed_on.as_ref());
        let mut waits = open.electorate.clone();
        waits.retain(|m| self.view.has(*m) && !seen.is_some_and(|c| c.results.contains_key(m)));
        if collecting.result.is_some() {
            waits.retain(|m| *m != self.view.member(self.rank));
        }
        waits
    }
}
