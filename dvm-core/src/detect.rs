//! Who is gone: heartbeats, evidence, suspicion.
//!
//! A member is suspected on one word that its process is gone, or on the word of enough observers that it is silent.
//! A member that is late itself accuses nobody ([`Lateness`](crate::record::Lateness)). What suspicion leads to is the
//! flush's business.

use crate::cx::Cx;
use crate::ids::{HistoryIndex, MemberId, Rank, Time, ViewId};
use crate::io::{Output, Reject};
use crate::seat::Seat;
use crate::state::FailureCause;
use crate::timer::Timer;
use crate::view::{View, ring_order};
use crate::wire::{Control, Departure, DepartureCause, Evidence, Heartbeat, Identity};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Streams that are begun anew before their edge counts as bad.
const RESETS_MAX: u32 = 2;
/// How long an edge counts as bad at its beginning, in silence time-outs.
const EDGE_SILENCES: u64 = 60;
/// How long it does elsewhere after its beginning spoke of it last, in silence time-outs.
const HEARSAY_SILENCES: u64 = 2;

/// Ring edges that carry nothing, though both ends live. They outlive views: the next ring avoids them, too.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// When it was noticed here, or told by the member it begins at.
    bad: BTreeMap<(MemberId, MemberId), Time>,
}

impl Edges {
    fn note(&mut self, from: MemberId, to: MemberId, now: Time) {
        self.bad.insert((from, to), now);
    }

    fn forget(&mut self, me: MemberId, now: Time, silence_ms: u64) {
        self.bad.retain(|(from, _), at| {
            let silences = if *from == me { EDGE_SILENCES } else { HEARSAY_SILENCES };
            now.ms_since(*at) < silences * silence_ms
        });
    }

    /// A view begins. Where no order of its ring avoids the bad edges, they are tried anew: it was agreed on because
    /// nothing better was left.
    pub(crate) fn try_anew(&mut self, view: &View) {
        if ring_order(view.size(), &self.among(&view.members)).is_none() {
            self.bad.retain(|(from, to), _| !(view.has(*from) && view.has(*to)));
        }
    }

    fn from(&self, from: MemberId) -> impl Iterator<Item = MemberId> {
        self.bad.keys().filter(move |(a, _)| *a == from).map(|(_, b)| *b)
    }

    /// Those between these members, as ranks.
    pub(crate) fn among(&self, members: &[MemberId]) -> Vec<(Rank, Rank)> {
        let rank = |m: &MemberId| members.iter().position(|x| x == m).map(|at| Rank(at as u16));
        self.bad.keys().filter_map(|(a, b)| Some((rank(a)?, rank(b)?))).collect()
    }
}

/// What is known about the other members of one view, by rank.
#[derive(Debug)]
pub(crate) struct Detector {
    others: Vec<Other>,
    now: Time,
}

#[derive(Debug)]
struct Other {
    heard: Time,
    index: HistoryIndex,
    /// Since when its heartbeats name another view.
    elsewhere_since: Option<Time>,
    /// Evidence by accuser, with the time of its last word.
    accused_by: BTreeMap<Rank, (Evidence, Time)>,
    /// Its ring stream from me is at this mark since then, though more was sent, and was begun anew so often.
    stuck: Option<(u64, Time, u32)>,
    /// It asked how this view ended: it is wedged.
    asks: bool,
    /// It left a ballot of this member unanswered then: without its answer no ballot here can end.
    mute: Option<Time>,
    /// It is mute because no ring can reach it.
    cut_off: bool,
    /// The shell was told that it is suspected.
    told: bool,
}

impl Detector {
    pub(crate) fn new(view: &View, now: Time) -> Self {
        let other = || Other {
            heard: now,
            index: HistoryIndex(0),
            elsewhere_since: None,
            accused_by: BTreeMap::new(),
            stuck: None,
            asks: false,
            mute: None,
            cut_off: false,
            told: false,
        };
        Self { others: view.members.iter().map(|_| other()).collect(), now }
    }

    pub(crate) fn tick(&mut self, now: Time) {
        self.now = now;
    }

    pub(crate) fn hear(&mut self, rank: Rank, now: Time) {
        self.others[rank.at()].heard = now;
    }

    pub(crate) fn heard(&self, rank: Rank) -> Time {
        self.others[rank.at()].heard
    }

    pub(crate) fn index(&self, rank: Rank) -> HistoryIndex {
        self.others[rank.at()].index
    }

    /// Notes that a member is wedged in this view.
    pub(crate) fn asks(&mut self, rank: Rank) {
        self.others[rank.at()].asks = true;
    }

    pub(crate) fn anybody_asks(&self) -> bool {
        self.others.iter().any(|other| other.asks)
    }

    /// Notes that a member left a ballot unanswered.
    pub(crate) fn mute(&mut self, rank: Rank, now: Time) {
        self.others[rank.at()].mute = Some(now);
    }

    /// Notes that no order of the ring reaches a member.
    pub(crate) fn cut_off(&mut self, rank: Rank, now: Time) {
        self.mute(rank, now);
        self.others[rank.at()].cut_off = true;
    }

    /// Nothing can be concluded from the time that has passed.
    pub(crate) fn forgive(&mut self, now: Time) {
        for other in &mut self.others {
            other.heard = now;
            other.stuck = None;
            other.elsewhere_since = other.elsewhere_since.map(|_| now);
        }
    }

    fn has(&self, rank: Rank, evidence: Evidence) -> bool {
        self.others[rank.at()].accused_by.values().any(|(e, _)| *e == evidence)
    }

    /// Notes that a member speaks for another view.
    pub(crate) fn is_elsewhere(&mut self, rank: Rank, now: Time) {
        self.others[rank.at()].elsewhere_since.get_or_insert(now);
    }

    /// Whether one word is enough, and was said.
    fn is_out(&self, rank: Rank) -> bool {
        self.has(rank, Evidence::Dead)
            || self.has(rank, Evidence::NotMember)
            || self.others[rank.at()].mute.is_some()
    }
}

impl Seat {
    /// T widened by this member's own lateness, or doubled for one that was called silent before and lived,
    /// milliseconds.
    fn patience_ms(&self, cx: &Cx, rank: Rank) -> u64 {
        let silence_ms = self.silence_ms();
        let mistaken = self.record.state.members.get(&self.view.member(rank)).and_then(|m| m.mistaken);
        let doublings = mistaken.map_or(0, |m| m.doublings_left(cx.wall_ms, silence_ms));
        (silence_ms + cx.late.widen_ms(silence_ms)).max(silence_ms << doublings)
    }

    fn watches(&self, rank: Rank) -> bool {
        rank != self.rank && self.view.observers(rank, self.config().observers).contains(&self.rank)
    }

    pub(crate) fn is_suspected(&self, rank: Rank) -> bool {
        if rank == self.rank {
            return false;
        }
        if self.detector.is_out(rank) {
            return true;
        }
        let accusers = self.detector.others[rank.at()].accused_by.iter();
        let accusers = accusers.filter(|(accuser, (evidence, _))| {
            *evidence == Evidence::Silent && !self.detector.is_out(**accuser) && !self.i_accuse(**accuser)
        });
        let accusers = accusers.count();
        let observers = self.view.observers(rank, self.config().observers);
        let live = observers.iter().filter(|o| {
            !self.detector.is_out(**o) && !self.i_accuse(**o) && self.could_contradict(rank, **o)
        });
        let live = live.count();
        accusers >= (self.config().accusers as usize).min(live).max(1)
    }

    /// Whether an observer of `rank` may still say something about it: not one that let this member's accusation
    /// stand for T without a word.
    fn could_contradict(&self, rank: Rank, observer: Rank) -> bool {
        let mine = self.detector.others[rank.at()].accused_by.get(&self.rank);
        let Some((_, since)) = mine.filter(|_| observer != self.rank) else { return true };
        self.detector.now.ms_since(*since) < self.silence_ms() || self.detector.heard(observer) > *since
    }

    fn i_accuse(&self, rank: Rank) -> bool {
        self.detector.others[rank.at()].accused_by.contains_key(&self.rank)
    }

    pub(crate) fn suspects(&self) -> Vec<Rank> {
        self.ranks().filter(|rank| self.is_suspected(*rank)).collect()
    }

    /// Tells the shell of each suspicion as it arises.
    pub(crate) fn tell_suspects(&mut self, cx: &mut Cx, suspects: &[Rank]) {
        for rank in self.ranks() {
            let suspected = suspects.contains(&rank);
            let told = core::mem::replace(&mut self.detector.others[rank.at()].told, suspected);
            if suspected && !told {
                cx.out.push_back(Output::Suspected { member: self.view.member(rank) });
            }
        }
    }

    /// R: all members that this one does not suspect, itself included, by rank.
    pub(crate) fn unsuspected(&self) -> Vec<MemberId> {
        self.ranks().filter(|rank| !self.is_suspected(*rank)).map(|rank| self.view.member(rank)).collect()
    }

    pub(crate) fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.view.size()).map(|rank| Rank(rank as u16))
    }

    /// Notes this member's own evidence and tells the others.
    pub(crate) fn accuse(&mut self, cx: &mut Cx, rank: Rank, evidence: Evidence) {
        let me = self.rank;
        let known = self.detector.others[rank.at()].accused_by.insert(me, (evidence, cx.now));
        if known.map(|(evidence, _)| evidence) != Some(evidence) {
            self.tell_suspicions(cx);
            self.reconsider(cx);
        }
    }

    fn tell_suspicions(&mut self, cx: &mut Cx) {
        let me = self.rank;
        let accused = self.ranks().filter_map(|rank| {
            let (evidence, _) = self.detector.others[rank.at()].accused_by.get(&me)?;
            Some((self.view.member(rank), *evidence))
        });
        let mine = self.view.member(me);
        let edges = self.edges.from(mine).map(|to| (to, Evidence::BadEdge));
        let accused: Vec<_> = accused.chain(edges).collect();
        if !accused.is_empty() {
            let message = Control::Suspect { view: self.view.id, accused };
            cx.send_all(self.unsuspected(), &message);
        }
    }

    pub(crate) fn on_suspect(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        view: ViewId,
        accused: &[(MemberId, Evidence)],
    ) -> Result<(), Reject> {
        let accuser = self.admit(cx, from, view)?;
        for (member, evidence) in accused {
            if *evidence == Evidence::BadEdge {
                self.edges.note(from, *member, cx.now);
                continue;
            }
            let Some(rank) = self.view.rank_of(*member).filter(|rank| *rank != self.rank) else { continue };
            self.detector.others[rank.at()].accused_by.insert(accuser, (*evidence, cx.now));
            let hears = cx.now.ms_since(self.detector.heard(rank)) < self.silence_ms() / 2;
            if *evidence == Evidence::Silent && self.watches(rank) && hears {
                // The accuser learns that somebody who would know does not agree.
                cx.send(from, Control::Heartbeat(self.heartbeat(cx)));
            }
        }
        self.reconsider(cx);
        Ok(())
    }

    /// Heartbeats, and a look at who is silent.
    pub(crate) fn beat(&mut self, cx: &mut Cx) {
        let silence_ms = self.silence_ms();
        self.timers.set(Timer::Heartbeat, cx.now.plus_ms((silence_ms / 4).max(1)));
        let asks = self.has_primary(cx);
        let mut to = if self.is_wedged() || asks {
            self.others()
        } else {
            let observers = self.view.observers(self.rank, self.config().observers);
            observers.into_iter().map(|rank| self.view.member(rank)).collect()
        };
        to.retain(|m| *m != cx.me.id);
        let mut heartbeat = self.heartbeat(cx);
        heartbeat.lease = asks.then_some(cx.now);
        cx.send_all(to, &Control::Heartbeat(heartbeat));
        self.renew_lease(cx);
        self.look(cx);
    }

    fn heartbeat(&self, cx: &Cx) -> Heartbeat {
        let heard = self.detector.others.iter().map(|other| cx.now.ms_since(other.heard));
        Heartbeat {
            view: self.record.state.summary(),
            heard_ms: heard.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX)).collect(),
            received: self.broadcast.received().to_vec(),
            late_ms: cx.late.late_ms(),
            index: self.record.state.index,
            lease: None,
        }
    }

    fn look(&mut self, cx: &mut Cx) {
        let (now, silence_ms) = (cx.now, self.silence_ms());
        let me = self.rank;
        let mut told = Vec::new();
        for rank in self.ranks() {
            let (watches, patience_ms) = (self.watches(rank), self.patience_ms(cx, rank));
            let other = &mut self.detector.others[rank.at()];
            other.accused_by.retain(|accuser, (evidence, at)| {
                *evidence == Evidence::Dead || *accuser == me || now.ms_since(*at) < 2 * silence_ms
            });
            // It answers others, so perhaps this one too by now.
            other.mute = other.mute.filter(|at| now.ms_since(*at) < 2 * silence_ms || other.heard <= *at);
            let silent_ms = now.ms_since(other.heard);
            let mine = other.accused_by.get(&me).map(|(evidence, _)| *evidence);
            let taken_back = match mine {
                Some(Evidence::Silent) => silent_ms <= silence_ms / 2,
                Some(Evidence::NotMember) => silent_ms <= silence_ms / 2 && other.elsewhere_since.is_none(),
                _ => false,
            };
            if taken_back {
                other.accused_by.remove(&me);
            }
            if other.elsewhere_since.is_some_and(|since| now.ms_since(since) > 4 * silence_ms) {
                told.push((rank, Evidence::NotMember));
            } else if !watches {
                continue;
            } else if silent_ms > patience_ms && mine.is_none() {
                told.push((rank, Evidence::Silent));
            } else if mine.is_none() {
                self.timers.set_earlier(Timer::Heartbeat, other.heard.plus_ms(patience_ms + 1));
            }
        }
        for (rank, evidence) in told {
            self.accuse(cx, rank, evidence);
        }
        self.watch_link(cx);
        self.edges.forget(cx.me.id, cx.now, silence_ms);
        self.tell_suspicions(cx);
        self.reconsider(cx);
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        cx: &mut Cx,
        from: MemberId,
        heartbeat: &Heartbeat,
    ) -> Result<(), Reject> {
        let theirs = heartbeat.view.id;
        if theirs != self.view.id && self.prove_commit(cx, theirs) && self.exit.is_some() {
            return Ok(());
        }
        let Some(rank) = self.view.rank_of(from) else {
            if self.is_wedged()
                && heartbeat.view.lineage == self.view.lineage
                && theirs.epoch > self.view.id.epoch
            {
                // Whoever speaks to a stranger takes him for a member: its history tells how this view ended.
                let after = self.record.state.index;
                cx.send(from, Control::TailRequest { after });
            }
            self.tell_past(cx, from, theirs);
            return Err(Reject::NotMember { from, view: self.view.id });
        };
        if theirs != self.view.id {
            if heartbeat.view.lineage == self.view.lineage && theirs.epoch > self.view.id.epoch {
                cx.send(from, Control::Query { view: self.view.id });
            } else {
                self.tell_past(cx, from, theirs);
            }
            self.detector.others[rank.at()].elsewhere_since.get_or_insert(cx.now);
            return Err(Reject::OtherView { theirs, ours: self.view.id });
        }
        let other = &mut self.detector.others[rank.at()];
        other.elsewhere_since = None;
        other.index = heartbeat.index;
        if let Some(sent) = heartbeat.lease {
            self.echo(cx, from, sent);
        }
        if self.blocked {
            self.reconsider(cx);
        }
        self.watch_progress(cx, rank, heartbeat);
        Ok(())
    }

    /// A successor whose heartbeats come but whose received vector stands still: the stream is stuck, and a new one
    /// begins with what is missing.
    fn watch_progress(&mut self, cx: &mut Cx, rank: Rank, heartbeat: &Heartbeat) {
        if self.is_wedged() || rank != self.view.successor(self.rank) {
            return;
        }
        let mine = self.broadcast.received();
        let lag = mine.iter().zip(&heartbeat.received).enumerate();
        let behind = lag.clone().any(|(o, (mine, theirs))| o != rank.at() && mine > theirs);
        let mark: u64 = heartbeat.received.iter().sum();
        let silence_ms = self.silence_ms();
        let stuck = &mut self.detector.others[rank.at()].stuck;
        match *stuck {
            _ if !behind => *stuck = None,
            Some((at, since, resets)) if at == mark => {
                if cx.now.ms_since(since) > silence_ms {
                    *stuck = Some((mark, cx.now, resets + 1));
                    if resets + 1 >= RESETS_MAX {
                        self.edges.note(self.view.member(self.rank), self.view.member(rank), cx.now);
                    }
                    self.links.reset_outgoing(cx);
                    self.connect(cx);
                }
            }
            _ => *stuck = Some((mark, cx.now, 0)),
        }
    }

    /// The successor lives, by what is heard of it or because nobody else misses it, and no stream to it comes about.
    fn watch_link(&mut self, cx: &mut Cx) {
        let successor = self.view.successor(self.rank);
        let missing = self.links.missing_since.filter(|_| successor != self.rank && !self.is_wedged());
        let missing_ms = missing.map_or(0, |since| cx.now.ms_since(since));
        let heard = cx.now.ms_since(self.detector.heard(successor)) < self.silence_ms();
        let silences = if heard { 2 } else { 4 };
        if missing_ms > silences * self.silence_ms() && (heard || !self.is_suspected(successor)) {
            self.edges.note(self.view.member(self.rank), self.view.member(successor), cx.now);
        }
    }

    /// A control connection was reset: is its process still there?
    pub(crate) fn on_reset(&mut self, cx: &mut Cx, peer: MemberId) {
        if self.view.has(peer) && peer != cx.me.id {
            cx.out.push_back(Output::Probe { peer });
        }
    }

    /// The incarnation is gone.
    pub(crate) fn on_refused(&mut self, cx: &mut Cx, peer: MemberId) {
        if let Some(rank) = self.view.rank_of(peer).filter(|rank| *rank != self.rank) {
            self.accuse(cx, rank, Evidence::Dead);
        }
        self.admission.gone(peer);
    }

    /// The incarnation is gone, and another is in its place: a departed member that is looked for may be found so.
    pub(crate) fn on_replaced(&mut self, cx: &mut Cx, peer: MemberId, by: &Identity) {
        self.on_refused(cx, peer);
        if !self.view.has(peer) && !self.view.has(by.id) {
            self.find(cx, by);
        }
    }

    /// Whether an edge of the present ring is bad.
    pub(crate) fn has_bad_edge(&self) -> bool {
        let bad = self.edges.among(&self.view.members);
        bad.iter().any(|(a, b)| self.view.successor(*a) == *b)
    }

    /// Why a suspected member is left out.
    pub(crate) fn departure(&self, cx: &Cx, rank: Rank) -> Departure {
        let other = &self.detector.others[rank.at()];
        let strongest = other
            .accused_by
            .iter()
            .max_by_key(|(accuser, (evidence, _))| (*evidence, core::cmp::Reverse(**accuser)));
        let (accuser, evidence) =
            strongest.map_or((self.rank, Evidence::Silent), |(accuser, (evidence, _))| (*accuser, *evidence));
        let cause = match evidence {
            _ if other.cut_off && evidence != Evidence::Dead => FailureCause::OneWay,
            Evidence::Dead => FailureCause::LinkReset,
            Evidence::Silent => FailureCause::Silent,
            Evidence::NotMember => FailureCause::OtherView,
            Evidence::BadEdge => FailureCause::NoProgress,
        };
        let noticed_by = self.view.member(accuser);
        let last_heard_ms = Some(cx.now.ms_since(other.heard));
        let why = DepartureCause::Failed { cause, noticed_by, last_heard_ms };
        Departure { member: self.view.member(rank), why }
    }

    /// Whether the evidence against all suspects is that they are dead: then little else can come with it.
    pub(crate) fn all_dead(&self) -> bool {
        self.suspects().into_iter().all(|rank| self.detector.has(rank, Evidence::Dead))
    }
}
