//! Faults as they strike, and as they end.

use super::dice::{one_of, pick};
use super::faults::{FaultKind, Strike};
use super::net::Host;
use super::process::Run;
use super::world::{Event, Undo, World};
use dvm_core::ids::MemberId;
use dvm_core::state::LeaveBy;
use dvm_core::{Input, Output, Prng};

impl World {
    /// A planned fault strikes, if there is anything to strike.
    pub(crate) fn fault(&mut self, at: usize) {
        if !self.is_chaos() {
            return;
        }
        let fault = self.plan.faults[at].clone();
        let mut dice = Prng::new(fault.dice);
        let struck = match fault.kind {
            FaultKind::Crash => self.strike_crash(&mut dice, false),
            FaultKind::PowerOff => self.strike_crash(&mut dice, true),
            FaultKind::Pause => self.a_running(&mut dice).map(|pid| self.pause(pid, fault.for_us)),
            FaultKind::CutOneWay => self.strike_cut_one_way(&mut dice, fault.for_us),
            FaultKind::CutGroup => self.strike_cut_group(&mut dice, fault.for_us),
            FaultKind::StuckFlow => self.strike_stuck_flow(&mut dice, fault.for_us),
            FaultKind::StuckEdge => self.two_hosts(&mut dice).map(|(from, to)| {
                self.net.set_stuck(from, to, true);
                self.after(fault.for_us, Event::Undo(Undo::StuckEdge { from, to }));
            }),
            FaultKind::ResetLink => pick(&mut dice, &self.standing_links()).map(|no| self.reset(no)),
            FaultKind::ResetControl => self.strike_reset_control(&mut dice),
            FaultKind::Spike => self.a_running(&mut dice).map(|pid| {
                let (host, us) = (self.processes[pid].host, self.options.config.silence_ms * 1_000);
                self.net.set_spike(host, us / one_of(&mut dice, &[1, 3, 20]));
                self.after(fault.for_us, Event::Undo(Undo::Spike { host }));
            }),
            FaultKind::SlowMember => self.a_running(&mut dice).map(|pid| {
                self.processes[pid].slow_us = one_of(&mut dice, &[200, 1_000, 5_000]);
                self.after(fault.for_us, Event::Undo(Undo::Slow { pid }));
            }),
            FaultKind::Join => {
                self.next_host += 1;
                self.start(self.next_host - 1);
                Some(())
            }
            FaultKind::Leave => self.a_running(&mut dice).map(|pid| {
                self.processes[pid].leaving = true;
                let by = one_of(&mut dice, &[LeaveBy::Term, LeaveBy::Remove]);
                self.offer(pid, None, Input::Leave { by });
            }),
            FaultKind::Restart => self.dead_host(&mut dice).map(|host| self.start(host)),
        };
        if struck.is_some() {
            self.figures.fault(fault.kind.word());
            self.trace(|_| format!("! fault {} {} struck", fault.number, fault.kind.word()));
        }
    }

    /// An output that a fault is aimed at.
    pub(crate) fn carry_out_struck(&mut self, pid: usize, output: Output, strike: Strike, for_us: u64) {
        let receiver = self.receiver(pid, &output);
        if strike == Strike::Isolate {
            self.isolate(pid, for_us);
        }
        match (strike, output) {
            (Strike::Lose, Output::Control { message, .. }) => self.note_said(pid, &message),
            (Strike::Lose, Output::Snapshot { .. }) => {}
            (Strike::Late, Output::Control { to, message }) => {
                let late_us = self.options.config.silence_ms * 1_000 + for_us;
                self.send(pid, to, message, late_us);
            }
            (_, output) => self.carry_out(pid, output),
        }
        match strike {
            Strike::CrashAfter => self.kill(pid, false),
            Strike::CrashReceiver | Strike::PauseReceiver => {
                let Some(target) = receiver else { return };
                let pause_us = (strike == Strike::PauseReceiver).then_some(for_us);
                let of = self.processes[target].id();
                let us = self.prng.below(2 * self.options.noise.hop_us + 1);
                self.after(us, Event::Strike { pid: target, of, pause_us });
            }
            Strike::PauseSender => self.pause(pid, for_us),
            Strike::ResetLinks => {
                let links: Vec<_> = self.processes[pid].links.values().map(|(no, _)| *no).collect();
                for no in links {
                    self.reset(no);
                }
            }
            Strike::CutPair | Strike::CutWay => {
                let Some(target) = receiver else { return };
                let (a, b) = (self.processes[pid].host, self.processes[target].host);
                let both = vec![(a, b), (b, a)];
                let id = self.net.cut(if strike == Strike::CutPair { both } else { vec![(a, b)] });
                self.after(for_us, Event::Undo(Undo::Cut { id }));
            }
            Strike::CrashBefore | Strike::Isolate | Strike::Lose | Strike::Late => {}
        }
    }

    fn isolate(&mut self, pid: usize, for_us: u64) {
        let here = self.processes[pid].host;
        let others = (0..super::net::HOSTS).filter(|host| *host != here);
        let id = self.net.cut(others.flat_map(|host| [(here, host), (host, here)]).collect());
        self.after(for_us, Event::Undo(Undo::Cut { id }));
    }

    /// The process at the far end of an output.
    pub(crate) fn receiver(&self, pid: usize, output: &Output) -> Option<usize> {
        match output {
            Output::Control { to, .. } | Output::Snapshot { to, .. } | Output::Connect { to, .. } => {
                self.who.get(to).copied()
            }
            Output::Ring { link, .. } => {
                let (no, end) = self.processes[pid].links.get(link)?;
                Some(self.links[*no].ends[1 - end].pid)
            }
            _ => None,
        }
    }

    /// An aimed fault reaches its receiver.
    pub(crate) fn strike(&mut self, pid: usize, of: MemberId, pause_us: Option<u64>) {
        if !self.is_present(of) || !self.is_chaos() {
            return;
        }
        match pause_us {
            Some(us) => self.pause(pid, us),
            None => self.kill(pid, false),
        }
    }

    /// A fault that lasts ends.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Pause { pid } => self.resume(pid),
            Undo::Slow { pid } => {
                self.processes[pid].slow_us = 0;
                self.plan_drain(pid);
            }
            Undo::Cut { id } => {
                self.net.mend(id);
                self.mend_links();
            }
            Undo::StuckFlow { link, end } => {
                self.links[link].ends[end].stuck = false;
                self.mend_links();
            }
            Undo::StuckEdge { from, to } => {
                self.net.set_stuck(from, to, false);
                self.mend_links();
            }
            Undo::Spike { host } => self.net.set_spike(host, 0),
        }
    }

    /// Whether a fault may kill this process; it counts as killed then.
    pub(crate) fn may_kill(&mut self, pid: usize) -> bool {
        let allowed = self.deaths < self.options.deaths_max && self.processes[pid].is_alive();
        self.deaths += usize::from(allowed);
        allowed
    }

    fn strike_crash(&mut self, dice: &mut Prng, power_off: bool) -> Option<()> {
        let pid = pick(dice, &self.alive())?;
        self.may_kill(pid).then(|| self.kill(pid, power_off))
    }

    fn strike_cut_one_way(&mut self, dice: &mut Prng, for_us: u64) -> Option<()> {
        let way = self.two_hosts(dice)?;
        let id = self.net.cut(vec![way]);
        self.after(for_us, Event::Undo(Undo::Cut { id }));
        Some(())
    }

    fn strike_cut_group(&mut self, dice: &mut Prng, for_us: u64) -> Option<()> {
        let hosts = 0..super::net::HOSTS;
        let groups: Vec<_> = hosts.clone().map(|_| dice.chance(1, 2)).collect();
        // A third of the cuts lose packets one way only.
        let both_ways = !dice.chance(1, 3);
        let pairs = hosts.clone().flat_map(|from| hosts.clone().map(move |to| (from, to)));
        let ways = pairs.filter(|(from, to)| groups[*from] != groups[*to] && (both_ways || groups[*from]));
        let id = self.net.cut(ways.collect());
        self.after(for_us, Event::Undo(Undo::Cut { id }));
        Some(())
    }

    fn strike_stuck_flow(&mut self, dice: &mut Prng, for_us: u64) -> Option<()> {
        let link = pick(dice, &self.standing_links())?;
        let end = dice.below(2) as usize;
        self.links[link].ends[end].stuck = true;
        self.after(for_us, Event::Undo(Undo::StuckFlow { link, end }));
        Some(())
    }

    fn strike_reset_control(&mut self, dice: &mut Prng) -> Option<()> {
        let pid = self.a_running(dice)?;
        let contacts: Vec<_> = self.processes[pid].contacts.iter().copied().collect();
        let peer = pick(dice, &contacts).filter(|peer| self.is_present(*peer))?;
        let (me, other) = (self.processes[pid].id(), self.who[&peer]);
        self.after(1, Event::Input { pid, of: Some(me), input: Input::Reset { peer } });
        self.after(1, Event::Input { pid: other, of: Some(peer), input: Input::Reset { peer: me } });
        Some(())
    }

    fn pause(&mut self, pid: usize, for_us: u64) {
        if self.processes[pid].run == Run::Running {
            self.processes[pid].run = Run::Paused;
            self.trace(|world| format!("{} is stopped", world.processes[pid].title()));
            self.after(for_us, Event::Undo(Undo::Pause { pid }));
        }
    }

    pub(crate) fn resume(&mut self, pid: usize) {
        if self.processes[pid].run != Run::Paused {
            return;
        }
        self.trace(|world| format!("{} goes on", world.processes[pid].title()));
        self.processes[pid].run = Run::Running;
        self.processes[pid].wake_us = None;
        self.plan_drain(pid);
        self.arm(pid);
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|pid| self.processes[*pid].is_alive()).collect()
    }

    fn a_running(&self, dice: &mut Prng) -> Option<usize> {
        let mut running = self.alive();
        running.retain(|pid| self.processes[*pid].run == Run::Running && !self.processes[*pid].leaving);
        pick(dice, &running)
    }

    fn two_hosts(&self, dice: &mut Prng) -> Option<(Host, Host)> {
        let hosts: Vec<_> = self.alive().into_iter().map(|pid| self.processes[pid].host).collect();
        let (from, to) = (pick(dice, &hosts)?, pick(dice, &hosts)?);
        (from != to).then_some((from, to))
    }

    fn dead_host(&self, dice: &mut Prng) -> Option<Host> {
        let dead = self.processes.iter().filter(|p| !p.is_alive() && !self.net.is_down(p.host));
        let dead: Vec<_> = dead.map(|p| p.host).collect();
        pick(dice, &dead)
    }

    fn standing_links(&self) -> Vec<usize> {
        (0..self.links.len()).filter(|no| !self.links[*no].broken).collect()
    }
}
