//! One run: processes, network, clients and faults on one queue of events.

use super::actors::Actors;
use super::checker::{Checker, Step};
use super::clients::{Clients, EPOCH_MS};
use super::dice::{between, stream};
use super::end::{End, Stage};
use super::failure::{Class, Failure, Verdict};
use super::faults::{Plan, Point};
use super::figures::Figures;
use super::link::{Link, LinkNo};
use super::net::{HOSTS, Host, Net};
use super::options::{Level, Options};
use super::process::{Process, Run};
use super::trace::{self, Tracer};
use dvm_core::ids::{Lineage, MemberId, RequestId, Time, ViewId};
use dvm_core::state::Genesis;
use dvm_core::wire::{Control, Identity, Ring};
use dvm_core::{Input, Member, Prng, Snapshot};
use std::collections::BTreeMap;

/// What is going to happen.
pub(crate) enum Event {
    /// A process of one of the first machines starts and joins.
    Start { host: Host },
    /// Something reaches a process; if `of` is given, only as that incarnation.
    Input { pid: usize, of: Option<MemberId>, input: Input },
    /// A process looks at its timers.
    Wake { pid: usize },
    /// A slow or woken process takes the next input from its inbox.
    Drain { pid: usize },
    /// The wall clock is read.
    Clock { pid: usize },
    /// A link that was asked for comes about, or not.
    Connect { pid: usize, of: MemberId, to: MemberId, view: ViewId, until_us: u64 },
    /// A frame leaves the out-queue of one end.
    Leave { link: LinkNo, end: usize, message: Ring },
    /// A frame arrives at one end.
    Frame { link: LinkNo, end: usize, message: Ring },
    /// One end learns that its link is gone.
    LinkDown { link: LinkNo, end: usize },
    /// Bytes of one end have been unacknowledged for too long, if it still holds the same.
    UserTimeout { link: LinkNo, end: usize, holding: u64 },
    /// A control message arrives.
    Control { pid: usize, from: MemberId, to: MemberId, message: Control },
    /// A state copy arrives.
    Snapshot { pid: usize, from: MemberId, to: MemberId, snapshot: Box<Snapshot> },
    /// A probe is answered, or not.
    Probe { pid: usize, of: MemberId, peer: MemberId },
    /// A process that was excluded has ended its plug-ins and goes on as a new incarnation.
    Fence { pid: usize, of: MemberId },
    /// A client does something.
    Client { client: usize },
    /// A planned fault strikes.
    Fault { at: usize },
    /// A fault that lasts ends.
    Undo(Undo),
    /// An aimed fault strikes a process.
    Strike { pid: usize, of: MemberId, pause_us: Option<u64> },
    /// Phase one ends.
    Heal,
    /// The run's state is looked at.
    Inspect,
}

/// How a fault that lasts ends.
pub(crate) enum Undo {
    Pause { pid: usize },
    Slow { pid: usize },
    Cut { id: u64 },
    StuckFlow { link: LinkNo, end: usize },
    StuckEdge { from: Host, to: Host },
    Spike { host: Host },
}

/// One run.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) plan: Plan,
    pub(crate) queue: super::queue::Queue<Event>,
    pub(crate) net: Net,
    pub(crate) links: Vec<Link>,
    pub(crate) processes: Vec<Process>,
    /// Which process an incarnation is, or was.
    pub(crate) who: BTreeMap<MemberId, usize>,
    pub(crate) clients: Clients,
    pub(crate) checker: Checker,
    pub(crate) actors: Actors,
    pub(crate) stage: Stage,
    pub(crate) end: Option<End>,
    pub(crate) failure: Option<Failure>,
    pub(crate) figures: Figures,
    pub(crate) prng: Prng,
    /// How often each point of the protocol was passed in phase one.
    pub(crate) passed: BTreeMap<Point, u64>,
    /// The same at the moment at which each aimed fault struck.
    pub(crate) struck: BTreeMap<usize, BTreeMap<Point, u64>>,
    pub(crate) deaths: usize,
    pub(crate) next_host: Host,
    pub(crate) canaries: Vec<(usize, RequestId)>,
    pub(crate) deadline_us: u64,
    /// Inspections in a row that found the same end.
    pub(crate) settled: u32,
    /// Outputs of the input in hand, for the checker.
    pub(crate) steps: Vec<Step>,
    tracer: Option<Tracer>,
}

impl World {
    pub(crate) fn new(options: Options, plan: Plan, tracer: Option<Tracer>) -> Self {
        let mut prng = stream(options.seed, 5);
        let identity = new_identity(&mut prng, 0, 1);
        let lineage = Lineage(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64()));
        let (name, config) = ("sim".to_owned(), options.config.clone());
        let genesis = Genesis { name, id: u128::from(options.seed) + 1, lineage, config };
        let member = Member::found(identity.clone(), genesis, prng.next_u64(), Time(0));
        let mut checker = Checker::new(member.state().expect("the founder has the state"));
        checker.requests.is_calm = options.level == Level::Calm;
        let mut world = Self {
            net: Net::new(options.seed, options.noise.clone()),
            clients: Clients::new(&options),
            plan,
            queue: super::queue::Queue::new(),
            links: Vec::new(),
            processes: Vec::new(),
            who: BTreeMap::new(),
            checker,
            actors: Actors::default(),
            stage: Stage::Gather,
            end: None,
            failure: None,
            figures: Figures::default(),
            prng,
            passed: BTreeMap::new(),
            struck: BTreeMap::new(),
            deaths: 0,
            next_host: options.members,
            canaries: Vec::new(),
            deadline_us: 0,
            settled: 0,
            steps: Vec::new(),
            tracer,
            options,
        };
        world.enter(0, member, identity, None);
        world.schedule_start();
        world
    }

    fn schedule_start(&mut self) {
        for host in 1..self.options.members {
            let at = self.prng.below(self.options.config.silence_ms * 500);
            self.queue.push(at, Event::Start { host });
        }
        self.begin();
    }

    /// Plays until the run has ended, one way or another.
    pub(crate) fn play(&mut self) {
        while self.failure.is_none() && self.end.is_none() {
            let event = self.queue.pop().expect("the next inspection is always in the queue");
            self.step(event);
            if self.queue.pushed() > EVENTS_MAX {
                self.fail(Class::Liveness, "livelock", format!("more than {EVENTS_MAX} events"));
            }
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Start { host } => self.start(host),
            Event::Input { pid, of, input } => self.offer(pid, of, input),
            Event::Wake { pid } => self.wake(pid),
            Event::Drain { pid } => self.drain(pid),
            Event::Clock { pid } => self.clock(pid),
            Event::Connect { pid, of, to, view, until_us } => self.connect(pid, of, to, view, until_us),
            Event::Leave { link, end, message } => self.leave_queue(link, end, message),
            Event::Frame { link, end, message } => self.frame(link, end, message),
            Event::LinkDown { link, end } => self.link_down(link, end),
            Event::UserTimeout { link, end, holding } => self.user_timeout(link, end, holding),
            Event::Control { pid, from, to, message } => self.control(pid, from, to, message),
            Event::Snapshot { pid, from, to, snapshot } => self.snapshot(pid, from, to, snapshot),
            Event::Probe { pid, of, peer } => self.probe(pid, of, peer),
            Event::Fence { pid, of } => self.fence(pid, of),
            Event::Client { client } => self.client(client),
            Event::Fault { at } => self.fault(at),
            Event::Undo(undo) => self.undo(undo),
            Event::Strike { pid, of, pause_us } => self.strike(pid, of, pause_us),
            Event::Heal => self.heal(),
            Event::Inspect => self.inspect(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.queue.now_us()
    }

    pub(crate) fn after(&mut self, us: u64, event: Event) {
        self.queue.push(self.now() + us, event);
    }

    /// Notes the first failure.
    pub(crate) fn fail(&mut self, class: Class, rule: &'static str, text: String) {
        let at_us = self.now();
        self.failure.get_or_insert(Failure { class, rule, text, at_us });
    }

    /// Notes what a checker objects to.
    pub(crate) fn judge_safety(&mut self, verdict: Verdict) {
        if let Err(violation) = verdict {
            self.fail(Class::Safety, violation.rule, violation.text);
        }
    }

    /// Writes a line, if somebody reads.
    pub(crate) fn trace(&mut self, line: impl FnOnce(&Self) -> String) {
        if let Some(mut tracer) = self.tracer.take() {
            tracer(&format!("{:11.6} {}", self.now() as f64 / 1e6, line(self)));
            self.tracer = Some(tracer);
        }
    }

    /// A process begins on a machine and joins; it takes the name of that machine.
    pub(crate) fn start(&mut self, host: Host) {
        if host >= HOSTS
            || self.net.is_down(host)
            || self.processes.iter().any(|p| p.is_alive() && p.host == host)
        {
            return;
        }
        let with_state = |p: &&Process| p.is_alive() && p.member.state().is_some() && !p.leaving;
        let contacts: Vec<_> = self.processes.iter().filter(with_state).map(|p| p.identity.clone()).collect();
        if contacts.is_empty() {
            return;
        }
        let contact = contacts[self.prng.below(contacts.len() as u64) as usize].clone();
        let before = self.processes.iter().filter(|p| p.host == host).map(|p| p.incarnations).max();
        let incarnation = before.unwrap_or(0) + 1;
        let identity = new_identity(&mut self.prng, host, incarnation);
        let (config, seed) = (self.options.config.clone(), self.prng.next_u64());
        let member = Member::join(identity.clone(), contact.clone(), config, seed, Time(0));
        self.enter(host, member, identity, Some(&contact));
    }

    fn enter(&mut self, host: Host, member: Member, identity: Identity, contact: Option<&Identity>) {
        let pid = self.processes.len();
        let off = self.options.noise.drift_ppm;
        let rate_ppm = 1_000_000 - off + self.prng.below(2 * off + 1);
        let mut process = Process::new(host, member, identity, self.now(), rate_ppm);
        process.incarnations = process.identity.id.0 as u64 >> 48;
        process.contact = contact.map(|contact| contact.id);
        process.known.extend(process.contact);
        self.who.insert(process.id(), pid);
        self.trace(|_| format!("{} starts as {:?}", process.title(), process.id()));
        self.processes.push(process);
        self.checker.seat(pid);
        self.clock(pid);
    }

    /// Something reaches a process.
    pub(crate) fn offer(&mut self, pid: usize, of: Option<MemberId>, input: Input) {
        let process = &mut self.processes[pid];
        if !process.is_alive() || of.is_some_and(|of| of != process.id()) {
            return;
        }
        if process.run == Run::Paused || process.slow_us > 0 || process.draining {
            process.inbox.push_back(input);
            self.plan_drain(pid);
        } else {
            self.feed(pid, input);
        }
    }

    pub(crate) fn plan_drain(&mut self, pid: usize) {
        let process = &mut self.processes[pid];
        if process.run == Run::Running && !process.draining && !process.inbox.is_empty() {
            process.draining = true;
            let slow_us = process.slow_us;
            self.after(slow_us + 1, Event::Drain { pid });
        }
    }

    fn drain(&mut self, pid: usize) {
        let process = &mut self.processes[pid];
        process.draining = false;
        if process.run != Run::Running {
            return;
        }
        if let Some(input) = process.inbox.pop_front() {
            self.feed(pid, input);
        }
        self.plan_drain(pid);
    }

    /// Hands an input to the member and carries out what it wants.
    fn feed(&mut self, pid: usize, input: Input) {
        self.trace(|world| format!("{} <- {}", world.processes[pid].title(), trace::input(&input)));
        if let Input::Snapshot { from, snapshot } = &input {
            self.checker.copied(pid, self.who[from], &snapshot.state);
        }
        self.figures.inputs += 1;
        let now_us = self.now();
        let process = &mut self.processes[pid];
        let rejected = process.member.handle(process.local(now_us), input);
        process.member.check_invariants();
        if let Err(reject) = rejected {
            self.figures.rejects += 1;
            self.trace(|world| format!("{} rejects: {reject}", world.processes[pid].title()));
        }
        self.carry_out_all(pid);
        self.arm(pid);
    }

    /// Has the process look at its timers when the next one is due.
    pub(crate) fn arm(&mut self, pid: usize) {
        let now_us = self.now();
        let process = &self.processes[pid];
        if !process.is_alive() {
            return;
        }
        let Some(deadline) = process.member.next_deadline() else { return };
        let due_us = process.global_us(deadline).max(now_us);
        if process.wake_us.is_some_and(|wake_us| wake_us <= due_us) {
            return;
        }
        let wake_us = due_us.saturating_add(self.net.late_us()).min(now_us + WAKE_MAX_US);
        self.processes[pid].wake_us = Some(wake_us);
        self.queue.push(wake_us, Event::Wake { pid });
    }

    fn wake(&mut self, pid: usize) {
        let now_us = self.now();
        let process = &mut self.processes[pid];
        // An earlier look may have been planned since; then this one is of no use.
        if process.run != Run::Running || process.wake_us != Some(now_us) {
            return;
        }
        process.wake_us = None;
        let is_due = process.member.next_deadline().is_some_and(|deadline| deadline <= process.local(now_us));
        if !is_due {
            self.arm(pid);
            return;
        }
        if process.inbox.contains(&Input::Wake) {
            return;
        }
        self.offer(pid, None, Input::Wake);
        self.watch_spin(pid, now_us);
    }

    /// A deadline that stays in the past would be a busy loop.
    fn watch_spin(&mut self, pid: usize, now_us: u64) {
        let process = &mut self.processes[pid];
        let local = process.local(now_us);
        let still_due =
            process.inbox.is_empty() && process.member.next_deadline().is_some_and(|d| d <= local);
        process.spins = if still_due && process.is_alive() { process.spins + 1 } else { 0 };
        if process.spins > SPINS_MAX {
            let (title, due) = (process.title(), process.member.next_deadline());
            self.fail(
                Class::Liveness,
                "spin",
                format!("{title} wakes at {local:?} and remains due at {due:?}"),
            );
        }
    }

    fn clock(&mut self, pid: usize) {
        if !self.processes[pid].is_alive() {
            return;
        }
        let wall_ms = EPOCH_MS + self.now() / 1_000 + pid as u64;
        self.offer(pid, None, Input::Clock { wall_ms });
        let next = between(&mut self.prng, 500_000, 2_000_000);
        self.after(next, Event::Clock { pid });
    }
}

/// A fresh incarnation on a machine. Its id shows machine and incarnation, behind a random byte so that the order
/// of ids is not that of their age.
pub(crate) fn new_identity(prng: &mut Prng, host: Host, incarnation: u64) -> Identity {
    let shown = prng.below(256) << 56 | (host as u64 & 0xff) << 48 | (incarnation & 0xffff) << 32;
    let high = shown | prng.next_u64() >> 32;
    // The low half ends with the incarnation too, for the process's own count.
    let low = (incarnation & 0xffff) << 48 | prng.next_u64() >> 16;
    Identity {
        id: MemberId(u128::from(high) << 64 | u128::from(low)),
        name: format!("k{host}"),
        host: format!("host{host}"),
        addresses: vec![format!("10.0.0.{host}:4711")],
        pid: 100 + host as u32,
        log: String::new(),
        version: "0".into(),
        tags: BTreeMap::from([("zone".into(), format!("z{}", host % 2))]),
    }
}

/// More events than any run needs.
const EVENTS_MAX: u64 = 3_000_000;
/// Longest sleep of a process.
const WAKE_MAX_US: u64 = 60_000_000;
/// Wakes in a row that may leave the deadline in the past.
const SPINS_MAX: u32 = 200;
