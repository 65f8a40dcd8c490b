//! The ring's task: the only owner of the [`Member`], and the only thing on its thread that matters for latency.
//!
//! One step reads every ring link, hands all that came to the member, carries out what it wants, and writes each link
//! once; only then are others told. There is no hop between tasks from socket to socket. Control connections and
//! handshakes are small tasks of the same thread; whatever may take long is on the other one, behind
//! [`Feed`](crate::feed::Feed) and [`ToRing`].

mod bench;
mod handle;
mod outputs;
mod watch;

pub(crate) use handle::{Depths, RingGone, RingHandle, ToRing};

use crate::clock::{Alarm, Clock, wall_ms};
use crate::feed::{Feed, Restored, Told};
use crate::net::link::Link;
use crate::net::{FromNet, Net};
use crate::tally::UnderWay;
use bench::Bench;
use dvm_core::ids::{HistoryIndex, LinkId, MemberId, RequestId, Time};
use dvm_core::state::LeaveBy;
use dvm_core::wire::Ring as Frame;
use dvm_core::{Answer, Input, Member, Phase};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use watch::Watch;

/// Steps before other tasks of the thread have their turn.
const STEPS: usize = 16;

/// Things taken from each channel in a step.
const TAKEN: usize = 64;

/// Bytes read at once.
const SCRATCH: usize = 64 << 10;

/// How old the wall clock that the member knows may be, milliseconds.
const WALL_AGE_MS: u64 = 5;

/// How long what is queued may take to leave when the kernel ends.
const FAREWELL_MS: u64 = 500;

/// How the member's part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// In order.
    Left(LeaveBy),
    /// It may not be a member.
    Refused(String),
}

/// Told once: that it is a member, or why it cannot be.
pub(crate) type Admitted = Box<dyn FnOnce(Result<MemberId, String>)>;

/// The task's state.
pub(crate) struct Ring {
    member: Member,
    clock: Clock,
    alarm: Alarm,
    wall: Interval,
    /// When the member was last told the wall clock.
    wall_told: Time,
    net: Rc<Net>,
    from_net: mpsc::Receiver<FromNet>,
    inbox: mpsc::Receiver<ToRing>,
    feed: Arc<Feed>,
    admitted: Option<Admitted>,
    links: BTreeMap<LinkId, Link>,
    last_link: u64,
    last_request: u64,
    /// Who waits for the answer to a request.
    waiting: HashMap<RequestId, Waiter>,
    bench: Option<Bench>,
    watch: Option<Watch>,
    under_way: UnderWay,
    /// Inputs that arose while outputs were carried out.
    inputs: VecDeque<Input>,
    frames: VecDeque<(LinkId, Frame)>,
    scratch: Vec<u8>,
    /// Told after the links are written.
    told: Vec<Told>,
    /// Index of the last state that was told whole: the member may be ahead of the outputs it was taken at, and what it
    /// has delivered up to there is in it.
    restored: HistoryIndex,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    /// Ring links cut by request, kept so that the far end is not told, and when they count as broken.
    stalled: Vec<(Link, Option<Time>)>,
    ended: Option<Ended>,
}

/// Who waits for an answer.
enum Waiter {
    Local(oneshot::Sender<Answer>),
    Bench(Time),
}

/// What connects the task with everything else.
pub(crate) struct Ends {
    /// Connections.
    pub(crate) net: Rc<Net>,
    /// What they hear.
    pub(crate) from_net: mpsc::Receiver<FromNet>,
    /// What the other thread asks.
    pub(crate) inbox: mpsc::Receiver<ToRing>,
    /// What the other thread is told.
    pub(crate) feed: Arc<Feed>,
    /// Told when the member is admitted.
    pub(crate) admitted: Admitted,
}

impl Ring {
    /// For a member that was just made.
    pub(crate) fn new(member: Member, clock: Clock, ends: Ends) -> io::Result<Self> {
        let mut wall = tokio::time::interval(Duration::from_secs(1));
        wall.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Ends { net, from_net, inbox, feed, admitted } = ends;
        let mut ring = Self {
            member,
            clock,
            alarm: Alarm::new(clock)?,
            wall,
            wall_told: clock.now(),
            net,
            from_net,
            inbox,
            feed,
            admitted: Some(admitted),
            links: BTreeMap::new(),
            last_link: 0,
            last_request: 0,
            waiting: HashMap::new(),
            bench: None,
            watch: None,
            under_way: UnderWay::default(),
            inputs: VecDeque::new(),
            frames: VecDeque::new(),
            scratch: vec![0; SCRATCH],
            told: Vec::new(),
            restored: HistoryIndex(0),
            answers: Vec::new(),
            stalled: Vec::new(),
            ended: None,
        };
        // Before anybody is told of the state: the founding has this date.
        let told = ring.member.handle(clock.now(), Input::Clock { wall_ms: wall_ms() });
        debug_assert!(told.is_ok(), "the time is never refused");
        if ring.member.state().is_some() {
            ring.tell_restored();
        }
        Ok(ring)
    }

    /// Runs until the member has left or may not join.
    pub(crate) async fn run(mut self) -> io::Result<Ended> {
        poll_fn(|cx| self.poll(cx)).await?;
        let until = self.clock.now().plus_ms(FAREWELL_MS);
        self.alarm.set(Some(until))?;
        poll_fn(|cx| self.poll_farewell(cx, until)).await;
        Ok(self.ended.expect("the task runs until it is set"))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..STEPS {
            let busy = self.gather(cx)?;
            self.handle_all();
            // What left makes room for more, so the member is asked until nothing changes.
            while self.write_links(cx) {
                self.handle_all();
            }
            self.alarm.set(self.member.next_deadline())?;
            self.tell();
            if self.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            if !busy {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what has come; whether there was anything.
    fn gather(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut busy = self.read_links(cx);
        for _ in 0..TAKEN {
            let Poll::Ready(Some(from_net)) = self.from_net.poll_recv(cx) else { break };
            busy = true;
            self.on_net(from_net);
        }
        for _ in 0..TAKEN {
            let Poll::Ready(Some(asked)) = self.inbox.poll_recv(cx) else { break };
            busy = true;
            self.on_asked(asked);
        }
        if let Poll::Ready(rung) = self.alarm.poll(cx) {
            rung?;
            busy = true;
            if self.member.next_deadline().is_some_and(|deadline| deadline <= self.clock.now()) {
                self.inputs.push_back(Input::Wake);
            }
        }
        while self.wall.poll_tick(cx).is_ready() {
            self.bench_end();
            self.watch_forget();
            busy = true;
        }
        // What came is handled after this, so that what it leads to is told with its time.
        let now = self.clock.now();
        if busy && now.ms_since(self.wall_told) >= WALL_AGE_MS {
            self.wall_told = now;
            self.inputs.push_front(Input::Clock { wall_ms: wall_ms() });
        }
        Ok(busy)
    }

    fn read_links(&mut self, cx: &mut Context<'_>) -> bool {
        if self.net.shared().cuts.any() || !self.stalled.is_empty() {
            self.apply_cuts();
        }
        let mut down = Vec::new();
        let mut more = false;
        let mut bytes = 0;
        for link in self.links.values_mut() {
            match link.read(cx, &mut self.scratch, &mut self.frames) {
                Ok(rest) => more |= rest,
                Err(error) => down.push((link.id, error.to_string())),
            }
            bytes += link.take_arrived();
        }
        if bytes > 0 {
            let arrived = &self.net.shared().tally.ring_in;
            arrived.things.add(self.frames.len() as u64);
            arrived.bytes.add(bytes);
        }
        if self.watch.is_some() {
            self.watch_frames();
        }
        let busy = more || !self.frames.is_empty() || !down.is_empty();
        let frames = self.frames.drain(..).map(|(link, message)| Input::Ring { link, message });
        self.inputs.extend(frames);
        for (link, why) in down {
            self.link_down(link, &why);
        }
        busy
    }

    /// Writes every link once; whether the member has to hear of it.
    fn write_links(&mut self, cx: &mut Context<'_>) -> bool {
        let mut down = Vec::new();
        for link in self.links.values_mut().filter(|link| link.has_queued()) {
            match link.write(cx) {
                Ok(0) => {}
                Ok(cost) => self.inputs.push_back(Input::Written { link: link.id, cost }),
                Err(error) => down.push((link.id, error.to_string())),
            }
        }
        for (link, why) in down {
            self.link_down(link, &why);
        }
        !self.inputs.is_empty()
    }

    fn link_down(&mut self, link: LinkId, why: &str) {
        if let Some(link) = self.links.remove(&link) {
            tracing::debug!(link = link.id.0, peer = %link.peer, why, "ring link ended");
            self.inputs.push_back(Input::LinkDown { link: link.id });
        }
    }

    /// Links to members that are cut stall; after the time TCP needs to give up they count as broken.
    fn apply_cuts(&mut self) {
        let net = self.net.clone();
        let (cuts, book) = (&net.shared().cuts, &net.shared().book);
        let now = self.clock.now();
        let cut: Vec<_> =
            self.links.values().filter(|link| cuts.stops_connecting(link.peer, book)).map(|l| l.id).collect();
        let gives_up = now.plus_ms(net.shared().silence().as_millis() as u64);
        for link in cut.into_iter().filter_map(|link| self.links.remove(&link)) {
            self.stalled.push((link, Some(gives_up)));
        }
        let healed = !cuts.any();
        let mut kept = Vec::new();
        for (link, gives_up) in std::mem::take(&mut self.stalled) {
            match gives_up {
                Some(_) if healed => drop(self.links.insert(link.id, link)),
                Some(at) if at <= now => {
                    self.inputs.push_back(Input::LinkDown { link: link.id });
                    kept.push((link, None));
                }
                Some(at) => kept.push((link, Some(at))),
                None if healed => {}
                None => kept.push((link, None)),
            }
        }
        self.stalled = kept;
    }

    /// Hands all inputs to the member and carries out what it wants after each.
    fn handle_all(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = self.clock.now();
            if let Err(reject) = self.member.handle(now, input) {
                tracing::debug!(%reject, "input refused");
            }
            while let Some(output) = self.member.poll_output() {
                self.carry_out(output);
            }
        }
        self.feed.set_phase(self.member.phase());
        if self.admitted.is_some() && self.member.phase() == Phase::Normal {
            let admitted = self.admitted.take().expect("looked at above");
            admitted(Ok(self.member.id()));
        }
    }

    /// Lets others know, now that the ring has been served.
    fn tell(&mut self) {
        for (waiter, answer) in self.answers.drain(..) {
            // A client that gave up does not wait any more.
            let _ = waiter.send(answer);
        }
        if !self.feed.push(&mut self.told) {
            tracing::warn!("readers of the history fell too far behind and begin anew");
            self.net.shared().tally.overflows.add(1);
            self.tell_restored();
            self.feed.push(&mut self.told);
        }
    }

    fn tell_restored(&mut self) {
        let Some(state) = self.member.state() else { return };
        self.restored = state.index;
        self.told.push(Told::Restored(Box::new(Restored {
            me: self.member.id(),
            state: state.clone(),
            events: self.member.events().cloned().collect(),
            entries: self.member.history().cloned().collect(),
        })));
    }

    /// What is queued leaves, as far as it can.
    fn poll_farewell(&mut self, cx: &mut Context<'_>, until: Time) -> Poll<()> {
        for link in self.links.values_mut() {
            // An end of the link is an end of the wait for it.
            let _ = link.read(cx, &mut self.scratch, &mut self.frames);
            self.frames.clear();
        }
        self.links.retain(|_, link| link.has_queued() && link.write(cx).is_ok() && link.has_queued());
        let rung = self.alarm.poll(cx).is_ready();
        if self.links.is_empty() || (rung && self.clock.now() >= until) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
