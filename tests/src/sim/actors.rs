//! Who acts on the world as a primary, and when: never two at a time, and never with a falling token.
//!
//! An instance acts from its promotion, or the end of the wait that goes with it, to the end of its lease; a stopped
//! kernel's plug-in process goes on acting so long. The promise is for `quorum` and for `--only-confirmed` plug-ins,
//! within a lineage: under `survive` both sides of a cut may act, and the resource must look at the token.

use super::failure::{Verdict, ensure};
use super::world::World;
use dvm_core::Partition;
use dvm_core::ids::{Fence, HistoryIndex, Lineage, MemberId, Time};
use dvm_core::state::{Change, InstanceChange, Submission};
use std::collections::{BTreeMap, BTreeSet};

/// A plug-in as one load of it, in one lineage.
type Load = (Lineage, String, HistoryIndex);

/// All that ever acted.
#[derive(Default)]
pub(crate) struct Actors {
    actors: BTreeMap<Load, Vec<Actor>>,
    /// Instances that their members called failed: they act no more, whatever becomes of the word.
    failed: BTreeSet<(MemberId, String, HistoryIndex)>,
    /// Promotions that waited for a lease to end.
    pub(crate) waits: u64,
    /// Promotions in all.
    pub(crate) promotions: u64,
}

/// One promotion.
struct Actor {
    member: MemberId,
    fence: Fence,
    /// It may not act before, global microseconds.
    from_us: u64,
    /// When it acted last without a break, from and until.
    acts: Option<(u64, u64)>,
    ended: bool,
}

impl Actors {
    /// Clients tell of failures in their member's name.
    pub(crate) fn submitted(&mut self, submission: &Submission, now_us: u64) {
        let Change::Instance(report) = &submission.change else { return };
        if matches!(report.what, InstanceChange::Failed { .. }) {
            let (member, plugin, since) = (report.member, &report.plugin, report.since);
            self.failed.insert((member, plugin.clone(), since));
            self.end(now_us, |load, actor| (&load.1, load.2, actor.member) == (plugin, since, member));
        }
    }

    /// A member acts no more.
    pub(crate) fn gone(&mut self, member: MemberId, now_us: u64) {
        self.end(now_us, |_, actor| actor.member == member);
    }

    fn end(&mut self, now_us: u64, which: impl Fn(&Load, &Actor) -> bool) {
        for (load, actors) in &mut self.actors {
            for actor in actors.iter_mut().filter(|actor| !actor.ended && which(load, actor)) {
                actor.ended = true;
                // One that ends before its time has come has not acted.
                actor.acts = actor.acts.filter(|(from, _)| *from < now_us);
                actor.acts = actor.acts.map(|(from, until)| (from, until.min(now_us)));
            }
        }
    }

    /// A member's lease lasts until `until_us`, which is now if it was taken back.
    fn leased(&mut self, member: MemberId, now_us: u64, until_us: u64) -> Verdict {
        for (load, actors) in &mut self.actors {
            let Some(at) = actors.iter().position(|actor| actor.member == member && !actor.ended) else {
                continue;
            };
            let actor = &mut actors[at];
            let start = actor.from_us.max(now_us);
            actor.acts = match actor.acts {
                Some((from, until)) if until >= start => Some((from, until_us.max(from))),
                _ if until_us > start => Some((start, until_us)),
                acts => acts,
            };
            // A lease that was taken back before the time to act had come.
            actor.acts = actor.acts.filter(|(from, until)| from < until);
            let actor = &actors[at];
            let Some((from, until)) = actor.acts else { continue };
            for other in actors.iter().enumerate().filter(|(no, _)| *no != at).map(|(_, other)| other) {
                let Some((others_from, others_until)) = other.acts else { continue };
                let apart = until <= others_from || others_until <= from;
                let ascends = (from < others_from) == (actor.fence < other.fence);
                ensure(apart && ascends, "lease", || {
                    format!(
                        "{member:?} acts for {} with token {} from {from} to {until} us, {:?} with token {} from \
                         {others_from} to {others_until} us",
                        load.1, actor.fence, other.member, other.fence
                    )
                })?;
            }
        }
        Ok(())
    }
}

impl World {
    /// A member's instance was promoted.
    pub(crate) fn promoted(&mut self, pid: usize, plugin: String, fence: Fence, from: Time) {
        // It may have been the primary before, and lost that by an entry of the same moment.
        self.demoted(pid);
        self.actors.promotions += 1;
        let process = &self.processes[pid];
        let Some(state) = process.member.state() else { return };
        let Some(loaded) = state.plugins.get(&plugin) else { return };
        if state.config.partition != Partition::Quorum && !loaded.spec.only_confirmed {
            return;
        }
        let (member, since) = (process.id(), loaded.since);
        let ended = self.actors.failed.contains(&(member, plugin.clone(), since));
        let from_us = process.global_us(from);
        self.actors.waits += u64::from(from > process.local(self.now()));
        let actor = Actor { member, fence, from_us, acts: None, ended };
        self.actors.actors.entry((state.view.lineage, plugin, since)).or_default().push(actor);
    }

    /// A member's lease changed.
    pub(crate) fn leased(&mut self, pid: usize, until: Time) {
        self.demoted(pid);
        let (process, now_us) = (&self.processes[pid], self.now());
        let (member, until_us) = (process.id(), process.global_us(until));
        let verdict = self.actors.leased(member, now_us, until_us);
        self.judge_safety(verdict);
    }

    /// Ends what a member's state no longer calls a primary.
    pub(crate) fn demoted(&mut self, pid: usize) {
        let (process, now_us) = (&self.processes[pid], self.queue.now_us());
        let (member, state) = (process.id(), process.member.state());
        self.actors.end(now_us, |load, actor| {
            let plugin = state.and_then(|state| state.plugins.get(&load.1)).filter(|p| p.since == load.2);
            let primary = plugin.filter(|plugin| plugin.primary == Some(member));
            actor.member == member && primary.and_then(|plugin| plugin.fence) != Some(actor.fence)
        });
    }
}
