//! How a run goes from gathering over chaos to healing, and how it may end.
//!
//! Every legal end is a variant of [`End`]; a run that reaches none of them in time after all faults have ended
//! has failed (I18).

use super::dice::pick;
use super::failure::Class;
use super::process::{Process, Run};
use super::world::{Event, World};
use dvm_core::ids::{MemberId, ViewId};
use dvm_core::view::{Label, View};
use dvm_core::{Input, Partition, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The first members join; nothing goes wrong.
    Gather,
    /// Phase one.
    Chaos,
    /// Phase two: no faults any more.
    Heal,
    /// All is well; each member is asked once more.
    Canary,
}

/// A legal end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody is left.
    AllDead,
    /// All that live are in one view, and it works.
    OneView {
        /// Its label.
        label: Label,
        /// Its size.
        size: usize,
    },
    /// `quorum`: those that live are no quorum of the last view, and they say so.
    Blocked,
    /// Every member that held the state is dead; the others never got in.
    OnlyJoiners,
    /// `survive`: branches that work, and whose common members are all dead, so that neither knows of the other.
    Strangers {
        /// How many.
        branches: usize,
    },
}

impl End {
    /// As it is counted.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::AllDead => "all-dead",
            Self::OneView { size: 1, .. } => "alone",
            Self::OneView { label: Label::Confirmed, .. } => "one-view",
            Self::OneView { label: Label::Provisional, .. } => "one-view-provisional",
            Self::Blocked => "blocked",
            Self::OnlyJoiners => "only-joiners",
            Self::Strangers { .. } => "strangers",
        }
    }
}

impl World {
    pub(crate) fn is_chaos(&self) -> bool {
        self.stage == Stage::Chaos
    }

    /// The run begins.
    pub(crate) fn begin(&mut self) {
        self.deadline_us = self.patience_us();
        if self.options.from_start {
            self.begin_chaos();
        }
        self.plan_inspection();
    }

    fn begin_chaos(&mut self) {
        self.trace(|_| "== chaos".into());
        self.stage = Stage::Chaos;
        for at in 0..self.plan.faults.len() {
            self.after(self.plan.faults[at].after_us, Event::Fault { at });
        }
        for client in 0..self.clients.count() {
            self.after(100 * client as u64, Event::Client { client });
        }
        self.after(self.options.chaos_ms * 1_000, Event::Heal);
    }

    /// All faults end at once. A machine without power stays so, or starts without its process.
    pub(crate) fn heal(&mut self) {
        self.trace(|_| "== heal".into());
        self.stage = Stage::Heal;
        self.clients.closing = true;
        self.deadline_us = self.now() + self.patience_us();
        self.net.heal();
        for host in 0..super::net::HOSTS {
            if self.net.is_down(host) && self.prng.chance(1, 2) {
                self.net.set_down(host, false);
            }
        }
        for link in &mut self.links {
            link.ends.iter_mut().for_each(|end| end.stuck = false);
        }
        for pid in 0..self.processes.len() {
            self.processes[pid].slow_us = 0;
            self.resume(pid);
            self.plan_drain(pid);
        }
        self.mend_links();
    }

    /// The bound of I18, and the longest pauses of healing, of leaving and of catching up.
    fn patience_us(&self) -> u64 {
        let config = &self.options.config;
        let bound_ms = 8 * config.silence_max_ms() + config.cut_silent_ms + config.exec_limit_ms;
        1_000 * (bound_ms + HEAL_PERIOD_MS + LEAVE_MS)
    }

    fn plan_inspection(&mut self) {
        self.after(self.options.config.silence_ms * 500, Event::Inspect);
    }

    /// A client does something.
    pub(crate) fn client(&mut self, client: usize) {
        let usable = |p: &Process| p.is_alive() && !p.exits;
        let mut pids: Vec<_> =
            (0..self.processes.len()).filter(|pid| usable(&self.processes[*pid])).collect();
        if !self.prng.chance(1, 10) {
            pids.retain(|pid| self.processes[*pid].had_state);
        }
        let now_us = self.now();
        if let Some(pid) = pick(&mut self.prng, &pids)
            && self.clients.wants(client, now_us, self.processes[pid].member.state())
        {
            let process = &mut self.processes[pid];
            let (request, serial, id) = (process.new_request(), process.new_serial(), process.id());
            let submission = self.clients.ask(client, (pid, request), id, serial, now_us);
            self.actors.submitted(&submission, now_us);
            self.checker.requests.submitted(pid, request, &submission, now_us);
            self.offer(pid, None, Input::Submit { request, submission });
        }
        if let Some(us) = self.clients.pause_us(client) {
            self.after(us, Event::Client { client });
        }
    }

    /// Looks whether the run may go on to its next stage.
    pub(crate) fn inspect(&mut self) {
        match self.stage {
            Stage::Gather => match self.standing_end() {
                Ok(End::OneView { size, .. }) if size == self.options.members => self.begin_chaos(),
                Ok(end) => self.check_deadline(&format!("gathering came to {end:?}")),
                Err(why) => self.check_deadline(&why),
            },
            Stage::Chaos => {}
            Stage::Heal => match self.standing_end() {
                Ok(End::OneView { .. }) => {
                    self.stage = Stage::Canary;
                    self.send_canaries();
                }
                Ok(end) => self.settle(end),
                Err(why) => {
                    self.settled = 0;
                    self.check_deadline(&why);
                }
            },
            Stage::Canary => self.inspect_canaries(),
        }
        self.plan_inspection();
    }

    fn inspect_canaries(&mut self) {
        match self.standing_end() {
            Ok(end @ End::OneView { .. }) => {
                let mut open = self.canaries.clone();
                open.retain(|key| !self.checker.requests.is_done(*key));
                if open.is_empty() {
                    self.finish(end);
                } else {
                    self.check_deadline(&format!("requests {open:?} of a working view came to nothing"));
                    self.send_canaries();
                }
            }
            Ok(_) => self.stage = Stage::Heal,
            Err(why) => self.check_deadline(&why),
        }
    }

    fn send_canaries(&mut self) {
        self.canaries.clear();
        let now_us = self.now();
        for pid in 0..self.processes.len() {
            if self.processes[pid].is_alive() && self.processes[pid].member.phase() == Phase::Normal {
                let request = self.processes[pid].new_request();
                let submission = self.clients.canary();
                self.checker.requests.submitted(pid, request, &submission, now_us);
                self.canaries.push((pid, request));
                self.offer(pid, None, Input::Submit { request, submission });
            }
        }
    }

    /// An end without a working view must last for a while.
    fn settle(&mut self, end: End) {
        self.settled += 1;
        if self.settled >= SETTLED {
            self.finish(end);
        }
    }

    fn check_deadline(&mut self, why: &str) {
        if self.now() >= self.deadline_us {
            let live = self.processes.iter().filter(|p| p.is_alive());
            let live = live.map(|p| {
                let (title, phase) = (p.title(), p.member.phase());
                let (view, waits) = (p.member.view().map(|v| (v.id, &v.members)), p.member.waiting_for());
                format!("\n  {title} {:?}: {phase:?} in {view:?}, waits for {waits:?}", p.id())
            });
            let text = format!("{why}; live:{}", live.collect::<String>());
            self.fail(Class::Liveness, "I18", text);
        }
    }

    fn finish(&mut self, end: End) {
        let stateless =
            self.processes.iter().find(|p| p.is_alive() && p.had_state && p.member.state().is_none());
        if let Some(process) = stateless {
            let text = format!("{} lives and has lost the state", process.title());
            self.fail(Class::Safety, "I21", text);
        }
        let live: Vec<_> = (0..self.processes.len()).filter(|pid| self.processes[*pid].is_alive()).collect();
        let works = matches!(end, End::OneView { .. });
        let last = live.iter().find_map(|pid| {
            let is_normal = self.processes[*pid].member.phase() == Phase::Normal;
            self.checker.place(*pid).filter(|_| works && is_normal)
        });
        let checker = &self.checker;
        let is_held = |no| live.iter().any(|pid| checker.has_held(*pid, no));
        match checker.requests.check_kept(&checker.tree, last, &checker.installs, is_held) {
            Ok(kept) => {
                self.figures.done += kept.done;
                self.figures.undone += kept.undone;
                self.figures.lost += kept.lost;
                self.end = Some(end);
            }
            Err(violation) => self.judge_safety(Err(violation)),
        }
    }

    /// The end that the run stands at, or what is still to come.
    fn standing_end(&mut self) -> Result<End, String> {
        let live: Vec<_> = (0..self.processes.len()).filter(|pid| self.processes[*pid].is_alive()).collect();
        if live.is_empty() {
            return Ok(End::AllDead);
        }
        if let Some(pid) = live.iter().find(|pid| self.processes[**pid].run == Run::Paused) {
            return Err(format!("{} is stopped", self.processes[*pid].title()));
        }
        let is_alive = |pid: usize| self.processes[pid].is_alive();
        if let Some((pid, request, since_us)) = self.checker.requests.unanswered(is_alive) {
            let title = self.processes[pid].title();
            return Err(format!("request {request} of {title} from {since_us} us is not answered"));
        }
        if let Some(pid) = live.iter().find(|pid| self.processes[**pid].leaving) {
            return Err(format!("{} was to leave", self.processes[*pid].title()));
        }
        if !live.iter().any(|pid| self.processes[*pid].had_state) {
            return Ok(End::OnlyJoiners);
        }
        if self.is_quorum_lost(&live) {
            return self.blocked(&live);
        }
        self.one_view(&live).or_else(|why| self.strangers(&live).ok_or(why))
    }

    /// Groups that are each in one view and cannot know of each other.
    fn strangers(&mut self, live: &[usize]) -> Option<End> {
        if self.options.config.partition == Partition::Quorum {
            return None;
        }
        let mut groups: BTreeMap<ViewId, Vec<usize>> = BTreeMap::new();
        for pid in live.iter().filter(|pid| self.processes[**pid].had_state) {
            groups.entry(self.processes[*pid].member.view()?.id).or_default().push(*pid);
        }
        let knows = |a: &[usize], b: &[usize]| {
            let state = self.processes[a[0]].member.state().expect("it is in a view");
            let gone = state.departed.iter().filter(|departed| !departed.in_order);
            let names: BTreeSet<_> = gone.map(|departed| &departed.identity.name).collect();
            b.iter().any(|pid| names.contains(&self.processes[*pid].identity.name))
        };
        let all: Vec<_> = groups.values().collect();
        let strange = all.iter().all(|a| all.iter().all(|b| a == b || !knows(a, b)));
        if all.len() < 2 || !strange {
            return None;
        }
        let all: Vec<Vec<usize>> = groups.into_values().collect();
        all.iter().all(|group| self.one_view(group).is_ok()).then_some(End::Strangers { branches: all.len() })
    }

    /// The newest view that a live member is in, and who of it lives.
    fn newest_view<'a>(&'a self, live: &[usize]) -> Option<(&'a View, Vec<MemberId>)> {
        let members = live.iter().map(|pid| &self.processes[*pid].member);
        let view = members.filter_map(|member| member.view()).max_by_key(|view| view.id.epoch)?;
        let present = live.iter().map(|pid| self.processes[*pid].id()).filter(|id| view.has(*id));
        Some((view, present.collect()))
    }

    fn is_quorum_lost(&self, live: &[usize]) -> bool {
        self.options.config.partition == Partition::Quorum
            && self.newest_view(live).is_some_and(|(view, present)| !view.is_quorum(&present))
    }

    fn blocked(&self, live: &[usize]) -> Result<End, String> {
        let (view, _) = self.newest_view(live).expect("a view without quorum was found");
        for pid in live {
            let process = &self.processes[*pid];
            let phase = process.member.phase();
            let says_so = phase == Phase::Blocked
                || (phase == Phase::Joining || phase == Phase::Excluded) && !view.has(process.id());
            if !says_so {
                return Err(format!("{} has no quorum and is {phase:?}", process.title()));
            }
        }
        Ok(End::Blocked)
    }

    fn one_view(&mut self, live: &[usize]) -> Result<End, String> {
        // A kernel that never got in, and whose contact is gone, waits until somebody tells it of another.
        let waits_in_vain = |process: &Process| {
            !process.had_state && process.contact.is_none_or(|contact| !self.is_present(contact))
        };
        let members: Vec<_> =
            live.iter().copied().filter(|pid| !waits_in_vain(&self.processes[*pid])).collect();
        let ids: BTreeSet<_> = members.iter().map(|pid| self.processes[*pid].id()).collect();
        let mut place = None;
        for pid in &members {
            let (process, title) = (&self.processes[*pid], self.processes[*pid].title());
            let phase = process.member.phase();
            if phase != Phase::Normal {
                return Err(format!("{title} is {phase:?}"));
            }
            let (Some(view), Some(state)) = (process.member.view(), process.member.state()) else {
                return Err(format!("{title} is normal without a state"));
            };
            if ids != view.members.iter().copied().collect() {
                return Err(format!("{title} is in {:?} with {:?}, live are {ids:?}", view.id, view.members));
            }
            if !state.open.is_empty() || state.healing.is_some() {
                return Err(format!("{title} has open {:?}, heals {:?}", state.open.keys(), state.healing));
            }
            let here = (view.id, state.index);
            if *place.get_or_insert(here) != here {
                return Err(format!("{title} is at {here:?}, another at {place:?}"));
            }
        }
        self.compare_states(&members)
    }

    fn compare_states(&mut self, members: &[usize]) -> Result<End, String> {
        for pid in members {
            let state = self.processes[*pid].member.state().expect("it was looked at");
            let (history_hash, hash) = (state.history_hash, state.hash());
            let at = self.checker.place(*pid).ok_or("a member delivered nothing and was given nothing")?;
            let verdict = self.checker.tree.note_history_hash(at, history_hash);
            let verdict = verdict.and_then(|()| self.checker.tree.note_state_hash(at, hash));
            self.judge_safety(verdict);
        }
        let view = self.processes[members[0]].member.view().expect("it was looked at");
        Ok(End::OneView { label: view.label, size: view.size() })
    }
}

/// Longest pause between two attempts to find a departed member.
const HEAL_PERIOD_MS: u64 = 30_000;
/// Longest time a leaving member waits for the others.
const LEAVE_MS: u64 = 10_000;
/// Inspections for which an end without a working view must last.
const SETTLED: u32 = 4;
