//! One kernel process: a member, and the part of the daemon around it that the run plays.

use super::link::LinkNo;
use super::net::Host;
use dvm_core::ids::{LinkId, MemberId, RequestId, Time};
use dvm_core::wire::Identity;
use dvm_core::{Input, Member};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// It does.
    Running,
    /// It is stopped: what comes waits.
    Paused,
    /// It is gone.
    Dead,
}

/// One kernel process.
pub(crate) struct Process {
    pub(crate) host: Host,
    pub(crate) member: Member,
    /// Its present incarnation.
    pub(crate) identity: Identity,
    /// How many incarnations it has been.
    pub(crate) incarnations: u64,
    pub(crate) run: Run,
    /// Whom it was told to join through; `None` for the founder.
    pub(crate) contact: Option<MemberId>,
    started_us: u64,
    /// Its clock's rate, parts in a million.
    rate_ppm: u64,
    /// When it is going to look at its timers.
    pub(crate) wake_us: Option<u64>,
    /// What came while it was stopped or slow.
    pub(crate) inbox: VecDeque<Input>,
    /// An event stands that empties the inbox.
    pub(crate) draining: bool,
    /// Time it takes over each input, microseconds.
    pub(crate) slow_us: u64,
    /// Identities it may speak to: those it was told, and those that spoke to it.
    pub(crate) known: BTreeSet<MemberId>,
    /// Incarnations it has exchanged control messages with, as its present one.
    pub(crate) contacts: BTreeSet<MemberId>,
    pub(crate) links: BTreeMap<LinkId, (LinkNo, usize)>,
    next_link: u64,
    next_request: u64,
    next_serial: u64,
    /// It was told to leave.
    pub(crate) leaving: bool,
    /// It goes when its queued outputs are carried out.
    pub(crate) exits: bool,
    /// It held the replicated state at some time.
    pub(crate) had_state: bool,
    /// Wakes in a row at one moment; a member that never moves its deadline on is stuck.
    pub(crate) spins: u32,
}

impl Process {
    pub(crate) fn new(host: Host, member: Member, identity: Identity, now_us: u64, rate_ppm: u64) -> Self {
        Self {
            host,
            member,
            identity,
            incarnations: 1,
            run: Run::Running,
            contact: None,
            started_us: now_us,
            rate_ppm,
            wake_us: None,
            inbox: VecDeque::new(),
            draining: false,
            slow_us: 0,
            known: BTreeSet::new(),
            contacts: BTreeSet::new(),
            links: BTreeMap::new(),
            next_link: 0,
            next_request: 0,
            next_serial: 0,
            leaving: false,
            exits: false,
            had_state: false,
            spins: 0,
        }
    }

    pub(crate) fn id(&self) -> MemberId {
        self.identity.id
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.run != Run::Dead
    }

    /// Its name and incarnation, for people.
    pub(crate) fn title(&self) -> String {
        format!("{}#{}", self.identity.name, self.incarnations)
    }

    /// What its own clock shows.
    pub(crate) fn local(&self, now_us: u64) -> Time {
        Time((now_us - self.started_us) * self.rate_ppm / 1_000_000)
    }

    /// The first moment at which its own clock shows `time`.
    pub(crate) fn global_us(&self, time: Time) -> u64 {
        self.started_us.saturating_add((time.0.saturating_mul(1_000_000)).div_ceil(self.rate_ppm))
    }

    pub(crate) fn new_link(&mut self, no: LinkNo, end: usize) -> LinkId {
        self.next_link += 1;
        self.links.insert(LinkId(self.next_link), (no, end));
        LinkId(self.next_link)
    }

    pub(crate) fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub(crate) fn new_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }
}
