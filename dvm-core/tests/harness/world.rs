//! Time, kernels, and how inputs reach a member and outputs leave it.

use super::net::{Link, LinkNo};
use dvm_core::ids::{Lineage, LinkId, MemberId, RequestId, Time, TransactionId, ViewId};
use dvm_core::state::{Change, Genesis, Stamp, Submission};
use dvm_core::wire::{Control, ExecResult, Identity, Ring, Verdict};
use dvm_core::{Answer, Config, Delivery, Input, Member, Output, Reject, Snapshot, Standing};
use std::collections::{BTreeMap, BTreeSet};

/// Time of one way, microseconds.
pub const HOP_US: u64 = 100;
/// Time from an exclusion to the new incarnation, microseconds.
const FENCE_US: u64 = 1_000;
/// Time of an execution, microseconds.
const EXECUTION_US: u64 = 1_000;
/// The wall clock at the beginning, milliseconds since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Something that will happen.
pub(super) enum Happening {
    Input { at: usize, of: Option<MemberId>, input: Input },
    Wake { at: usize },
    Control { from: MemberId, to: MemberId, message: Control },
    Snapshot { from: MemberId, to: MemberId, snapshot: Box<Snapshot> },
    Frame { link: LinkNo, end: usize, message: Ring },
    Connect { at: usize, of: MemberId, to: MemberId, view: ViewId },
    Probe { at: usize, of: MemberId, peer: MemberId },
    LinkDown { link: LinkNo, end: usize },
    Fence { at: usize, of: MemberId },
}

/// What a kernel answers when it is asked to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    Says(Verdict),
    /// Nothing until it is told.
    Holds,
}

/// One process.
pub struct Kernel {
    pub name: String,
    pub member: Member,
    pub alive: bool,
    /// Its machine lost power: nobody is told.
    pub dark: bool,
    pub paused: bool,
    pub execution: Execution,
    pub executing: Vec<TransactionId>,
    pub answers: Vec<(String, Answer)>,
    pub deliveries: Vec<Delivery>,
    pub orphans: Vec<(u64, usize)>,
    pub standings: Vec<Standing>,
    /// Text of the requests under way.
    pub(super) asked: BTreeMap<RequestId, String>,
    pub(super) links: BTreeMap<LinkId, (LinkNo, usize)>,
    pub(super) next_link: u64,
    inbox: Vec<Input>,
    next_request: u64,
    wake_us: Option<u64>,
}

/// Messages to lose: kind, from, to; `*` stands for any.
pub type Loss = (String, String, String);

/// Kernels and what lies between them.
pub struct World {
    pub config: Config,
    pub kernels: Vec<Kernel>,
    pub log: Vec<String>,
    /// Kinds of messages that are told.
    pub trace: BTreeSet<String>,
    pub losses: Vec<Loss>,
    /// Messages to keep back, as for losses, and those that are.
    pub late: Vec<Loss>,
    kept: Vec<Happening>,
    /// Who dies instead of sending its n-th message of a kind from now on.
    pub doomed: Vec<(usize, String, u32)>,
    /// Frames and messages sent so far, by kind.
    pub sent: BTreeMap<&'static str, u64>,
    pub(super) links: Vec<Link>,
    /// Ways that are cut, by kernel.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// Ways whose ring frames are held.
    pub(super) holds: BTreeSet<(usize, usize)>,
    pub(super) names: BTreeMap<MemberId, String>,
    pub(super) now_us: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    pushed: u64,
}

impl World {
    pub fn new() -> Self {
        Self {
            config: Config::default(),
            kernels: Vec::new(),
            log: Vec::new(),
            trace: BTreeSet::new(),
            losses: Vec::new(),
            late: Vec::new(),
            kept: Vec::new(),
            doomed: Vec::new(),
            sent: BTreeMap::new(),
            links: Vec::new(),
            cuts: BTreeSet::new(),
            holds: BTreeSet::new(),
            names: BTreeMap::new(),
            now_us: 0,
            queue: BTreeMap::new(),
            pushed: 0,
        }
    }

    /// A ring of `n` members `a`, `b`, … that stands and is at rest.
    pub fn ring(n: usize) -> Self {
        let mut world = Self::new();
        world.gather(n);
        world
    }

    /// Founds and joins until `n` members are in one view.
    pub fn gather(&mut self, n: usize) {
        for at in 0..n {
            let name = char::from(b'a' + at as u8).to_string();
            self.start(&name, (at > 0).then_some("a"));
            self.wait_us(200_000);
        }
        let whole = |k: &Kernel| k.member.view().is_some_and(|view| view.size() == n);
        assert!(self.kernels.iter().all(whole), "the ring stands");
        self.sent.clear();
    }

    /// Starts a kernel: it founds the DVM, or joins through `contact`.
    pub fn start(&mut self, name: &str, contact: Option<&str>) {
        let identity = self.fresh_identity(name);
        let seed = identity.id.0 as u64;
        let now = Time(self.now_us);
        let member = match contact {
            None => {
                let config = self.config.clone();
                let genesis = Genesis { name: "dvm".into(), id: 1, lineage: Lineage(1), config };
                Member::found(identity, genesis, seed, now)
            }
            Some(contact) => {
                let contact = self.kernels[self.at(contact)].member.identity().clone();
                Member::join(identity, contact, self.config.clone(), seed, now)
            }
        };
        self.kernels.push(Kernel {
            name: name.into(),
            member,
            alive: true,
            dark: false,
            paused: false,
            execution: Execution::Says(Verdict::Ok),
            executing: Vec::new(),
            answers: Vec::new(),
            deliveries: Vec::new(),
            orphans: Vec::new(),
            standings: Vec::new(),
            asked: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 1,
            inbox: Vec::new(),
            next_request: 1,
            wake_us: None,
        });
        self.offer(self.kernels.len() - 1, None, Input::Wake);
    }

    /// A new incarnation of a name; the first is told as `c`, the second as `c#2`.
    fn fresh_identity(&mut self, name: &str) -> Identity {
        let before =
            self.names.values().filter(|known| known.split('#').next() == Some(name)).count() as u128;
        let letter = u128::from(name.as_bytes()[0]);
        let id = MemberId(letter << 120 | (before + 1) << 112 | letter);
        let shown = if before == 0 { name.into() } else { format!("{name}#{}", before + 1) };
        self.names.insert(id, shown);
        Identity {
            id,
            name: name.into(),
            host: format!("host-{name}"),
            addresses: vec![format!("{name}:1")],
            pid: 1,
            log: String::new(),
            version: "0".into(),
            tags: BTreeMap::new(),
        }
    }

    /// The latest kernel of a name.
    pub fn at(&self, name: &str) -> usize {
        let at = self.kernels.iter().rposition(|kernel| kernel.name == name);
        at.unwrap_or_else(|| panic!("no kernel is called {name}"))
    }

    pub fn kernel(&self, name: &str) -> &Kernel {
        &self.kernels[self.at(name)]
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(super) fn after(&mut self, us: u64, happening: Happening) {
        self.pushed += 1;
        self.queue.insert((self.now_us + us, self.pushed), happening);
    }

    /// Plays on for a time.
    pub fn wait_us(&mut self, us: u64) {
        let until = self.now_us + us;
        while let Some((&(due, serial), _)) =
            self.queue.first_key_value().filter(|((due, _), _)| *due <= until)
        {
            let happening = self.queue.remove(&(due, serial)).expect("seen above");
            self.now_us = due;
            self.happen(happening);
        }
        self.now_us = until;
    }

    /// Plays on until nothing is under way: what remains are timers.
    pub fn run(&mut self) {
        let is_timer = |happening: &Happening| matches!(happening, Happening::Wake { .. });
        while !self.queue.values().all(is_timer) {
            let ((due, _), happening) = self.queue.pop_first().expect("something is under way");
            self.now_us = due;
            self.happen(happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Input { at, of, input } => self.offer(at, of, input),
            Happening::Wake { at } => self.wake(at),
            Happening::Control { from, to, message } => self.arrive(from, to, message),
            Happening::Snapshot { from, to, snapshot } => {
                if let Some(at) = self.present(to) {
                    self.offer(at, Some(to), Input::Snapshot { from, snapshot });
                }
            }
            Happening::Frame { link, end, message } => self.frame(link, end, message),
            Happening::Connect { at, of, to, view } => self.connect(at, of, to, view),
            Happening::Probe { at, of, peer } => {
                let answer = self.present(peer).is_none().then(|| self.nobody(at, peer)).flatten();
                answer.into_iter().for_each(|input| self.offer(at, Some(of), input));
            }
            Happening::LinkDown { link, end } => self.link_down(link, end),
            Happening::Fence { at, of } => self.fence(at, of),
        }
    }

    /// The kernel that is this incarnation now.
    pub(super) fn present(&self, member: MemberId) -> Option<usize> {
        self.kernels.iter().position(|kernel| kernel.alive && kernel.member.id() == member)
    }

    /// The kernel that is or was this incarnation.
    fn was(&self, member: MemberId) -> usize {
        let name = self.names[&member].split('#').next().expect("a name");
        self.kernels.iter().rposition(|kernel| kernel.name == name).expect("it was started")
    }

    /// What a try to reach an incarnation that is gone tells, if the way is open.
    pub(super) fn nobody(&self, at: usize, peer: MemberId) -> Option<Input> {
        let there = self.was(peer);
        if self.kernels[there].dark || !self.connects(at, there) {
            return None;
        }
        Some(if self.kernels[there].alive {
            Input::Replaced { peer, by: Box::new(self.kernels[there].member.identity().clone()) }
        } else {
            Input::Refused { peer }
        })
    }

    /// Something reaches a kernel, if it still is that incarnation.
    pub(super) fn offer(&mut self, at: usize, of: Option<MemberId>, input: Input) {
        let kernel = &mut self.kernels[at];
        if !kernel.alive || of.is_some_and(|of| of != kernel.member.id()) {
            return;
        }
        if kernel.paused {
            kernel.inbox.push(input);
            return;
        }
        let (now, wall_ms) = (Time(self.now_us), EPOCH_MS + self.now_us / 1_000);
        let _ = kernel.member.handle(now, Input::Clock { wall_ms });
        let handled = kernel.member.handle(now, input);
        kernel.member.check_invariants();
        if let Err(reject) = handled {
            self.tell_reject(at, &reject);
        }
        while self.kernels[at].alive {
            let Some(output) = self.kernels[at].member.poll_output() else { break };
            self.carry_out(at, output);
        }
        self.arm(at);
    }

    fn tell_reject(&mut self, at: usize, reject: &Reject) {
        if self.trace.contains("reject") {
            let name = self.shown(self.kernels[at].member.id());
            let line = format!("{name} rejects: {}", self.named(&reject.to_string()));
            self.log.push(line);
        }
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        let me = self.kernels[at].member.id();
        if let Some(kind) = Self::kind(&output) {
            if self.dies_instead(at, kind) {
                self.kill(at, false);
                return;
            }
            *self.sent.entry(kind).or_default() += 1;
            if self.trace.contains(kind) {
                let line = self.line(at, &output);
                self.log.push(line);
            }
        }
        match output {
            Output::Know(_) | Output::Restored { .. } | Output::Suspected { .. } => {}
            Output::Connect { to, view } => {
                self.after(2 * HOP_US, Happening::Connect { at, of: me, to, view });
            }
            Output::Close { link } => self.close(at, link),
            Output::Ring { link, message } => self.place(at, link, message),
            Output::Control { to, message } => self.send(me, to, message),
            Output::Probe { peer } => self.after(2 * HOP_US, Happening::Probe { at, of: me, peer }),
            Output::Snapshot { to, snapshot } => {
                if self.connects(at, self.was(to)) {
                    self.after(HOP_US, Happening::Snapshot { from: me, to, snapshot });
                }
            }
            Output::Deliver(delivery) => self.kernels[at].deliveries.push(*delivery),
            Output::Answer { request, answer } => {
                let asked = self.kernels[at].asked.remove(&request).expect("one answer to a request");
                self.kernels[at].answers.push((asked, answer));
            }
            Output::Execute { transaction, .. } => match self.kernels[at].execution {
                Execution::Holds => self.kernels[at].executing.push(transaction.id),
                Execution::Says(verdict) => {
                    let input = Input::Executed { transaction: transaction.id, result: result(verdict) };
                    self.after(EXECUTION_US, Happening::Input { at, of: Some(me), input });
                }
            },
            Output::Primary { .. } | Output::Lease { .. } => {}
            Output::Standing(standing) => self.stand(at, standing),
            Output::Orphans { fork, entries, .. } => {
                self.kernels[at].orphans.push((fork.0, entries.len()));
            }
        }
    }

    fn stand(&mut self, at: usize, standing: Standing) {
        let of = self.kernels[at].member.id();
        match &standing {
            Standing::Excluded { .. } => self.after(FENCE_US, Happening::Fence { at, of }),
            Standing::Left { .. } | Standing::Refused { .. } => self.kill(at, false),
            _ => {}
        }
        self.kernels[at].standings.push(standing);
    }

    /// Whether the kernel is to die instead of sending this.
    fn dies_instead(&mut self, at: usize, kind: &str) -> bool {
        let mut fits = self.doomed.iter_mut().filter(|(doomed, word, _)| *doomed == at && word == kind);
        fits.any(|(.., left)| {
            *left = left.saturating_sub(1);
            *left == 0
        })
    }

    pub(super) fn send(&mut self, from: MemberId, to: MemberId, message: Control) {
        let kind = Self::control_kind(&message);
        let is_meant = |(word, a, b): &Loss| {
            let fits = |pattern: &str, member| pattern == "*" || pattern == self.shown(member);
            word == kind && fits(a, from) && fits(b, to)
        };
        if self.losses.iter().any(is_meant) {
            return;
        }
        let is_late = self.late.iter().any(is_meant);
        let arrival = Happening::Control { from, to, message };
        if is_late {
            self.kept.push(arrival);
        } else {
            self.after(HOP_US, arrival);
        }
    }

    /// What was kept back arrives, in its order.
    pub fn late_arrive(&mut self) {
        self.late.clear();
        for arrival in std::mem::take(&mut self.kept) {
            self.after(HOP_US, arrival);
        }
    }

    fn arrive(&mut self, from: MemberId, to: MemberId, message: Control) {
        let (here, there) = (self.was(from), self.was(to));
        if self.cuts.contains(&(here, there)) {
            return;
        }
        match self.present(to) {
            Some(at) => self.offer(at, Some(to), Input::Control { from, message }),
            None => {
                let answer = self.nobody(here, to);
                answer.into_iter().for_each(|input| self.offer(here, Some(from), input));
            }
        }
    }

    fn fence(&mut self, at: usize, of: MemberId) {
        if !self.kernels[at].alive || self.kernels[at].member.id() != of {
            return;
        }
        if self.kernels[at].paused {
            self.after(FENCE_US, Happening::Fence { at, of });
            return;
        }
        let links: Vec<_> = self.kernels[at].links.keys().copied().collect();
        for link in links {
            self.close(at, link);
            self.offer(at, Some(of), Input::LinkDown { link });
        }
        let name = self.kernels[at].name.clone();
        let identity = self.fresh_identity(&name);
        self.offer(at, Some(of), Input::Fenced { identity });
    }

    pub fn pause(&mut self, at: usize) {
        self.kernels[at].paused = true;
    }

    /// A kernel runs again: what came meanwhile comes at once.
    pub fn resume(&mut self, at: usize) {
        self.kernels[at].paused = false;
        for input in std::mem::take(&mut self.kernels[at].inbox) {
            self.offer(at, None, input);
        }
        self.wake(at);
    }

    fn wake(&mut self, at: usize) {
        let kernel = &mut self.kernels[at];
        if kernel.paused {
            return;
        }
        kernel.wake_us = None;
        if kernel.member.next_deadline().is_some_and(|due| due.0 <= self.now_us) {
            self.offer(at, None, Input::Wake);
        } else {
            self.arm(at);
        }
    }

    fn arm(&mut self, at: usize) {
        let kernel = &mut self.kernels[at];
        let Some(due) = kernel.member.next_deadline().filter(|_| kernel.alive) else { return };
        let due_us = due.0.max(self.now_us + 1);
        if kernel.wake_us.is_none_or(|planned| planned > due_us) {
            kernel.wake_us = Some(due_us);
            self.after(due_us - self.now_us, Happening::Wake { at });
        }
    }

    /// A client of a kernel asks for a change; `asked` is what its answer is shown with.
    pub fn submit(&mut self, at: usize, asked: &str, stamp: Option<Stamp>, change: Change) {
        let request = self.request(at, asked);
        let submission = Submission { stamp, time_ms: EPOCH_MS + self.now_us / 1_000, change };
        self.offer(at, None, Input::Submit { request, submission });
    }

    pub fn request(&mut self, at: usize, asked: &str) -> RequestId {
        let kernel = &mut self.kernels[at];
        let request = RequestId(kernel.next_request);
        kernel.next_request += 1;
        kernel.asked.insert(request, asked.into());
        request
    }

    /// The executions that a kernel holds end.
    pub fn executed(&mut self, at: usize, verdict: Verdict) {
        for transaction in std::mem::take(&mut self.kernels[at].executing) {
            self.offer(at, None, Input::Executed { transaction, result: result(verdict) });
        }
    }
}

fn result(verdict: Verdict) -> ExecResult {
    match verdict {
        Verdict::Ok => ExecResult::ok(),
        Verdict::Abstain => ExecResult { verdict, ..ExecResult::ok() },
        Verdict::Failed | Verdict::Timeout => ExecResult {
            verdict,
            stage: "validate".into(),
            code: "config".into(),
            reason: "it does not want to".into(),
            pid: 0,
        },
    }
}
