//! What the daemon does for its member: carries out outputs, as the real kernel will.

use super::checker::Step;
use super::dice::{between, permille};
use super::failure::{Class, Violation};
use super::faults::{Aim, Point, Strike};
use super::mutant::Mutant;
use super::process::Run;
use super::trace;
use super::world::{Event, World, new_identity};
use dvm_core::ids::{MemberId, TransactionId};
use dvm_core::view::Label;
use dvm_core::wire::{Control, ExecResult, Identity, Verdict};
use dvm_core::{Answer, Input, Output, Snapshot, Standing};

impl World {
    /// Carries out all outputs of one input, then lets the checkers look.
    pub(crate) fn carry_out_all(&mut self, pid: usize) {
        while self.failure.is_none() && self.processes[pid].is_alive() {
            let Some(output) = self.processes[pid].member.poll_output() else { break };
            self.trace(|world| format!("{} -> {}", world.processes[pid].title(), trace::output(&output)));
            match self.aimed(pid, &output) {
                Some((Strike::CrashBefore, _)) => self.kill(pid, false),
                Some((strike, for_us)) => self.carry_out_struck(pid, output, strike, for_us),
                None => self.carry_out(pid, output),
            }
        }
        self.demoted(pid);
        let mut steps = std::mem::take(&mut self.steps);
        let process = &mut self.processes[pid];
        let member = process.is_alive().then_some(&process.member);
        process.had_state |= member.is_some_and(|member| member.state().is_some());
        let verdict = self.checker.batch(pid, process.identity.id, &mut steps, member);
        steps.clear();
        self.steps = steps;
        self.judge_safety(verdict);
        if self.processes[pid].exits && self.processes[pid].is_alive() {
            self.processes[pid].exits = false;
            self.kill(pid, false);
        }
    }

    pub(crate) fn carry_out(&mut self, pid: usize, output: Output) {
        match output {
            Output::Know(identity) => {
                self.processes[pid].known.insert(identity.id);
            }
            Output::Connect { to, view } => {
                self.check_known(pid, to);
                let (of, until_us) = (self.processes[pid].id(), self.now() + self.connect_timeout_us());
                let hop = self.hop_to(pid, to);
                self.after(2 * hop, Event::Connect { pid, of, to, view, until_us });
            }
            Output::Close { link } => self.close(pid, link),
            Output::Ring { link, message } => self.place(pid, link, message),
            Output::Control { to, message } => self.send(pid, to, message, 0),
            Output::Probe { peer } => {
                self.check_known(pid, peer);
                let (of, hop) = (self.processes[pid].id(), self.hop_to(pid, peer));
                self.after(2 * hop, Event::Probe { pid, of, peer });
            }
            Output::Snapshot { to, snapshot } => self.send_snapshot(pid, to, snapshot),
            Output::Deliver(delivery) => self.steps.push(Step::Deliver(delivery)),
            Output::Restored { index } => self.steps.push(Step::Restored(index)),
            Output::Orphans { fork, entries, truncated } => {
                self.steps.push(Step::Orphans { fork, entries, truncated });
            }
            Output::Answer { request, answer } => self.answer(pid, request, answer),
            Output::Execute { transaction, .. } => self.execute(pid, transaction.id),
            Output::Primary { plugin, fence, from } => self.promoted(pid, plugin, fence, from),
            Output::Lease { until } => self.leased(pid, until),
            Output::Standing(standing) => self.standing(pid, standing),
            // Advice, which may be wrong.
            Output::Suspected { .. } => {}
        }
    }

    /// The first process of an incarnation that may be spoken to.
    fn check_known(&mut self, pid: usize, to: MemberId) {
        let process = &self.processes[pid];
        if to != process.id() && !process.known.contains(&to) {
            let text = format!("{} speaks to {to:?}, of whom it was never told", process.title());
            self.judge_safety(Err(Violation { rule: "contract", text }));
        }
    }

    fn hop_to(&mut self, pid: usize, to: MemberId) -> u64 {
        let from = self.processes[pid].host;
        let to = self.who.get(&to).map_or(from, |to| self.processes[*to].host);
        self.net.hop_us(from, to)
    }

    pub(crate) fn connect_timeout_us(&self) -> u64 {
        self.options.config.silence_ms * 500
    }

    /// The process that is this incarnation now, and whether there is one.
    pub(crate) fn is_present(&self, member: MemberId) -> bool {
        self.who.get(&member).is_some_and(|pid| {
            let process = &self.processes[*pid];
            process.is_alive() && process.id() == member
        })
    }

    /// Sends a control message; `late_us` is added to its way.
    pub(crate) fn send(&mut self, pid: usize, to: MemberId, mut message: Control, late_us: u64) {
        self.check_known(pid, to);
        let from = self.processes[pid].id();
        self.note_said(pid, &message);
        self.mutate(&mut message);
        let Some(&target) = self.who.get(&to) else { return };
        let (here, there) = (self.processes[pid].host, self.processes[target].host);
        if !self.is_present(to) {
            if self.net.connects(here, there) {
                let hop = self.net.hop_us(here, there);
                let input = self.nobody_there(pid, to);
                self.after(2 * hop, Event::Input { pid, of: Some(from), input });
            }
            return;
        }
        let [first, second] = self.net.datagram(here, there);
        if let Some(us) = second {
            let message = message.clone();
            self.after(us + late_us, Event::Control { pid, from, to, message });
        }
        if let Some(us) = first {
            self.after(us + late_us, Event::Control { pid, from, to, message });
        }
    }

    /// What a member says counts as said, also where nobody hears it.
    pub(crate) fn note_said(&mut self, pid: usize, message: &Control) {
        let verdict = self.checker.ballots.sent(self.processes[pid].id(), message);
        self.judge_safety(verdict);
        if let Control::TailRequest { after } = message {
            let verdict = self.checker.check_asked(pid, *after);
            self.judge_safety(verdict);
        }
    }

    pub(crate) fn control(&mut self, pid: usize, from: MemberId, to: MemberId, message: Control) {
        let Some(&target) = self.who.get(&to) else { return };
        let (here, there) = (self.processes[pid].host, self.processes[target].host);
        if !self.is_present(to) || !self.net.passes(here, there) {
            return;
        }
        if self.options.mutant == Some(Mutant::FalseAccept)
            && let Control::Propose { ballot, proposal, .. } = &message
        {
            let message = Control::Accept { view: proposal.parent, ballot: *ballot };
            self.send(target, from, message, 0);
            return;
        }
        let receiver = &mut self.processes[target];
        receiver.known.insert(from);
        receiver.contacts.insert(from);
        if self.processes[pid].id() == from {
            self.processes[pid].contacts.insert(to);
        }
        self.offer(target, Some(to), Input::Control { from, message });
    }

    pub(crate) fn probe(&mut self, pid: usize, of: MemberId, peer: MemberId) {
        let Some(&target) = self.who.get(&peer) else { return };
        let (here, there) = (self.processes[pid].host, self.processes[target].host);
        if self.net.connects(here, there) && !self.is_present(peer) {
            let input = self.nobody_there(pid, peer);
            self.offer(pid, Some(of), input);
        }
    }

    /// An incarnation is gone: perhaps another answers where it was.
    pub(crate) fn nobody_there(&mut self, pid: usize, peer: MemberId) -> Input {
        let host = self.processes[self.who[&peer]].host;
        let now = self.processes.iter().find(|p| p.is_alive() && p.host == host && p.run == Run::Running);
        match now.map(|process| process.identity.clone()) {
            Some(identity) => {
                self.processes[pid].known.insert(identity.id);
                Input::Replaced { peer, by: Box::new(identity) }
            }
            None => Input::Refused { peer },
        }
    }

    fn send_snapshot(&mut self, pid: usize, to: MemberId, snapshot: Box<Snapshot>) {
        self.check_known(pid, to);
        self.steps.push(Step::Copied(snapshot.state.index, snapshot.state.history_hash));
        let from = self.processes[pid].id();
        let slow = between(&mut self.prng, 1, 40) * self.options.config.silence_ms * 10;
        let hop = self.hop_to(pid, to);
        self.after(hop + slow, Event::Snapshot { pid, from, to, snapshot });
    }

    pub(crate) fn snapshot(&mut self, pid: usize, from: MemberId, to: MemberId, snapshot: Box<Snapshot>) {
        let Some(&target) = self.who.get(&to) else { return };
        let (here, there) = (self.processes[pid].host, self.processes[target].host);
        if self.is_present(from) && self.is_present(to) && self.net.connects(here, there) {
            self.processes[target].known.insert(from);
            self.offer(target, Some(to), Input::Snapshot { from, snapshot });
        }
    }

    fn answer(&mut self, pid: usize, mut request: dvm_core::ids::RequestId, mut answer: Answer) {
        match (self.options.mutant, &mut answer) {
            (Some(Mutant::CrossedAnswers), _) if self.prng.chance(1, 8) => request.0 = request.0.max(2) - 1,
            (Some(Mutant::FalseLabel), Answer::Done { receipt, .. }) => receipt.view.label = Label::Confirmed,
            _ => {}
        }
        self.clients.answered((pid, request), &answer);
        self.steps.push(Step::Answer(request, answer));
    }

    fn execute(&mut self, pid: usize, transaction: TransactionId) {
        let wishes = self.options.execution.clone();
        let limit_us = self.options.config.exec_limit_ms * 1_000;
        let prng = &mut self.prng;
        let (mut us, mut result) = (between(prng, 1, wishes.usual_us), ExecResult::ok());
        if permille(prng, wishes.never) {
            (us, result.verdict) = (limit_us, Verdict::Timeout);
        } else if permille(prng, wishes.slow) {
            us = between(prng, 1, limit_us);
        }
        if result.verdict == Verdict::Ok && permille(prng, wishes.fail) {
            result = ExecResult {
                verdict: Verdict::Failed,
                stage: "start".into(),
                code: "abi".into(),
                reason: "on purpose".into(),
                pid: 0,
            };
        }
        let id = self.processes[pid].id();
        self.checker.requests.executed(id, transaction, &result);
        let of = Some(id);
        self.after(
            us.min(limit_us),
            Event::Input { pid, of, input: Input::Executed { transaction, result } },
        );
    }

    fn standing(&mut self, pid: usize, standing: Standing) {
        match standing {
            Standing::Excluded { by } => {
                let process = &self.processes[pid];
                let view = process.member.view();
                let verdict =
                    view.map_or(Ok(()), |view| self.checker.ballots.excluded(process.id(), view, by));
                self.judge_safety(verdict);
                let us = between(&mut self.prng, 1_000, 100_000);
                let of = self.processes[pid].id();
                self.after(us, Event::Fence { pid, of });
            }
            Standing::Left { .. } => self.processes[pid].exits = true,
            Standing::Refused { reason } => {
                let (title, name) = (self.processes[pid].title(), self.processes[pid].identity.name.clone());
                let others = self.processes.iter().enumerate().filter(|(other, _)| *other != pid);
                let rivals = others.filter(|(_, p)| p.is_alive() && p.identity.name == name).count();
                if rivals == 0 && !self.processes[pid].leaving {
                    self.fail(Class::Liveness, "refused", format!("{title} may not join: {reason}"));
                }
                self.processes[pid].exits = true;
            }
            Standing::Joining | Standing::Normal | Standing::Flushing | Standing::Blocked => {}
        }
    }

    /// An excluded process has ended its plug-ins: everything of the old incarnation is closed.
    pub(crate) fn fence(&mut self, pid: usize, of: MemberId) {
        match self.processes[pid].run {
            Run::Dead => return,
            Run::Paused => {
                self.after(20_000, Event::Fence { pid, of });
                return;
            }
            Run::Running if self.processes[pid].id() != of => return,
            Run::Running => {}
        }
        let links: Vec<_> = self.processes[pid].links.keys().copied().collect();
        for link in links {
            self.close(pid, link);
            self.offer(pid, Some(of), Input::LinkDown { link });
        }
        if !self.processes[pid].is_alive() {
            return;
        }
        self.reset_contacts(pid);
        let (id, now_us) = (self.processes[pid].id(), self.now());
        self.actors.gone(id, now_us);
        let incarnation = self.processes[pid].incarnations + 1;
        let old = &self.processes[pid].identity;
        let fresh = new_identity(&mut self.prng, self.processes[pid].host, incarnation);
        let identity = Identity { id: fresh.id, ..old.clone() };
        let process = &mut self.processes[pid];
        process.contacts.clear();
        (process.incarnations, process.identity) = (incarnation, identity.clone());
        self.who.insert(identity.id, pid);
        self.offer(pid, None, Input::Fenced { identity });
    }

    /// All that the process spoke with learn that their connections are gone, where the word gets through.
    pub(crate) fn reset_contacts(&mut self, pid: usize) {
        let (peer, host) = (self.processes[pid].id(), self.processes[pid].host);
        let contacts: Vec<_> = self.processes[pid].contacts.iter().copied().collect();
        for contact in contacts {
            let target = self.who[&contact];
            let there = self.processes[target].host;
            if self.net.passes(host, there) {
                let hop = self.net.hop_us(host, there);
                self.after(
                    hop,
                    Event::Input { pid: target, of: Some(contact), input: Input::Reset { peer } },
                );
            }
        }
    }

    /// A process ends. Without power its machine tells nobody.
    pub(crate) fn kill(&mut self, pid: usize, power_off: bool) {
        if !self.processes[pid].is_alive() {
            return;
        }
        self.trace(|world| format!("{} ends", world.processes[pid].title()));
        if power_off {
            let host = self.processes[pid].host;
            self.net.set_down(host, true);
        }
        self.processes[pid].run = Run::Dead;
        let (id, now_us) = (self.processes[pid].id(), self.now());
        self.actors.gone(id, now_us);
        self.processes[pid].inbox.clear();
        let links: Vec<_> = self.processes[pid].links.keys().copied().collect();
        for link in links {
            self.close(pid, link);
        }
        self.reset_contacts(pid);
    }

    /// Deliberate mistakes in what is sent.
    fn mutate(&mut self, message: &mut Control) {
        let Control::FlushAck { received, slots, .. } = message else { return };
        match self.options.mutant {
            Some(Mutant::ForgetSlots) => slots.clear(),
            Some(Mutant::ShortReceived) => received.fill(0),
            _ => {}
        }
    }

    /// Whether a planned fault waits for this output.
    fn aimed(&mut self, pid: usize, output: &Output) -> Option<(Strike, u64)> {
        if self.plan.aims.is_empty() || !self.is_chaos() {
            return None;
        }
        let point = Point::of(output)?;
        let passed = self.passed.entry(point).or_default();
        *passed += 1;
        let (passed, struck) = (*passed, &self.struck);
        let is_due = |aim: &&Aim| {
            let since = match aim.follows {
                Some(number) => struck.get(&number).map(|then| then.get(&point).copied().unwrap_or(0)),
                None => Some(0),
            };
            aim.point == point && since.is_some_and(|since| passed == since + aim.nth)
        };
        let aim = self.plan.aims.iter().find(is_due)?;
        let (number, strike, for_us) = (aim.number, aim.strike, aim.for_us);
        let victim = match strike {
            Strike::CrashBefore | Strike::CrashAfter => Some(pid),
            Strike::CrashReceiver => Some(self.receiver(pid, output)?),
            _ => None,
        };
        if victim.is_some_and(|victim| !self.may_kill(victim)) {
            return None;
        }
        self.struck.insert(number, self.passed.clone());
        self.figures.fault(strike.word());
        self.trace(|world| format!("! {} on {} at {point:?}", strike.word(), world.processes[pid].title()));
        Some((strike, for_us))
    }
}
