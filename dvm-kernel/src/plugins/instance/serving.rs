//! An instance that runs: what is sent to its child, and what each answer means.

use super::super::channel::{FromChild, ToChild, frame};
use super::super::history::Kind;
use super::super::launch::settle;
use super::super::link::Next;
use super::*;
use crate::services::desk::Notices;
use dvm_plugin_api::abi::role;
use tokio::time::sleep_until;

/// Longest time an unloaded instance may take to answer what it has in hand and end.
const STOPPING: Duration = Duration::from_secs(10);
/// Longest deadline of a callback that a timer is set for, milliseconds.
const DEADLINE_MAX: u64 = 24 * 60 * 60 * 1_000;
/// Between two looks at what a limited child uses.
const LOOK: Duration = Duration::from_millis(25);
/// Bytes placed ahead of a child's reading.
const BACKLOG: usize = 1 << 20;
/// Events of its own that are taken from its desk and not yet sent to the child.
const NOTICES: usize = 64;

/// Something to do behind the items before it.
enum Op {
    Query {
        command: Bytes,
        asker: Asker,
    },
    /// A snapshot for another member.
    Snapshot {
        index: u64,
        config: Bytes,
        answer: oneshot::Sender<Option<Vec<u8>>>,
    },
    /// A snapshot for the own history, taken at this position; then it begins again, if so.
    Rebase {
        position: u64,
        again: bool,
    },
    /// The state, for a try.
    State {
        answer: oneshot::Sender<Option<Bytes>>,
    },
    Validate {
        config: Bytes,
        answer: oneshot::Sender<Result<(), Trouble>>,
    },
    /// The state that a standby kept, before what came since.
    Restore(Bytes),
    Role {
        role: u32,
        fence: u64,
    },
    Lease {
        until_us: u64,
    },
    /// An event that comes to this instance alone.
    Notice(Bytes),
    Stop,
}

/// A frame that was sent and has no answer yet.
enum Pending {
    Item,
    Op(Op),
}

/// Why an instance runs no longer.
enum End {
    Stopped,
    /// It is to begin again, with another state or role; nothing is wrong with it.
    Again,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A child at work.
struct Serving {
    link: Link,
    notices: Option<Notices>,
    pending: VecDeque<Pending>,
    /// Each behind the items before its position.
    ops: VecDeque<(u64, Op)>,
    /// Since when the child has been at the first pending frame, as far as answers tell.
    busy_since: Instant,
    announce: Option<Announce>,
    /// When to look next at what the child uses.
    look_at: Instant,
    /// The plug-in is unloaded: the last time to end by itself.
    stop_by: Option<Instant>,
}

impl<P: Peers> Instance<P> {
    /// Tells the child the history until it or the plug-in ends.
    pub(super) async fn serve(&mut self, mut link: Link, announce: Option<Announce>) -> Phase {
        self.gauge.pid.store(link.pid(), Ordering::Relaxed);
        let (pending, ops, busy_since) = (VecDeque::new(), VecDeque::new(), Instant::now());
        let look_at = busy_since;
        let notices = link.take_notices();
        if let (Some(notices), true) = (&notices, self.applies) {
            notices.serve();
        }
        let mut serving =
            Serving { link, notices, pending, ops, busy_since, announce, look_at, stop_by: None };
        if let Some((fence, from)) = self.primary {
            self.act_from(fence, from);
        }
        let end = loop {
            if let Err(end) = self.step(&mut serving).await {
                break end;
            }
        };
        self.gauge.pid.store(0, Ordering::Relaxed);
        let why = match &end {
            End::Stopped => "it was unloaded",
            End::Again => "it begins again",
            End::Failed(failure) => &failure.detail,
        };
        let sent = serving.pending.into_iter().filter_map(|pending| match pending {
            Pending::Op(op) => Some(op),
            Pending::Item => None,
        });
        for op in sent.chain(serving.ops.into_iter().map(|(_, op)| op)) {
            self.refuse(op, why);
        }
        match end {
            End::Failed(failure) if serving.stop_by.is_none() => self.failed(failure),
            End::Again if serving.stop_by.is_none() => {
                self.history.start_over();
                let tells = serving.announce.map_or(Tells::Moved, |announce| match announce.change {
                    InstanceChange::Restarted { .. } => Tells::Restarted,
                    InstanceChange::Moved { .. } => Tells::Moved,
                    _ => Tells::Started,
                });
                Phase::Launching { tells }
            }
            End::Failed(_) | End::Again | End::Stopped => Phase::Over,
        }
    }

    /// Waits for one thing to happen and does what follows from it.
    async fn step(&mut self, serving: &mut Serving) -> Result<(), End> {
        self.feed(serving);
        self.gauge.behind.store(self.history.unanswered(), Ordering::Relaxed);
        self.ask_for_newer();
        let (again, keeps) = (self.ask_again(), !self.applies);
        let limit = Duration::from_millis(self.spec.deadline_ms.clamp(1, DEADLINE_MAX));
        let deadline = serving.busy_since + limit;
        let deadline = serving.stop_by.map_or(deadline, |stop_by| stop_by.min(deadline));
        tokio::select! {
            biased;
            next = serving.link.next() => {
                let mut next = Some(next);
                while let Some(Next::Answer(answer)) = next {
                    let pending = serving.pending.pop_front();
                    self.answered(pending, answer)?;
                    next = serving.link.ready().map(Next::Answer);
                }
                serving.busy_since = Instant::now();
                self.announce(serving);
                match next {
                    Some(Next::Ended(_)) if serving.stop_by.is_some() => Err(End::Stopped),
                    Some(Next::Ended(ending)) => Err(End::Failed(Failure::of(ending))),
                    _ => Ok(()),
                }
            }
            event = notice(&mut serving.notices), if self.applies && serving.ops.len() < NOTICES => {
                serving.ops.push_back((self.history.end(), Op::Notice(event)));
                Ok(())
            }
            // Whoever told it to stop has gone, and `stop` is given its time all the same.
            message = self.inbox.recv(), if serving.stop_by.is_none() => {
                let mut message = Some(message.ok_or(End::Stopped)?);
                for _ in 0..INBOX {
                    let Some(one) = message else { break };
                    self.while_up(one, serving)?;
                    message = self.inbox.try_recv().ok();
                }
                match message {
                    Some(last) => self.while_up(last, serving),
                    None => Ok(()),
                }
            }
            () = sleep_until(serving.look_at), if self.spec.limits != Limits::default() => {
                serving.look_at = Instant::now() + LOOK;
                self.look(&serving.link)
            }
            () = sleep_until(again), if keeps => Ok(()),
            () = sleep_until(deadline), if !serving.pending.is_empty() => {
                let detail = format!("a callback took longer than {} ms", limit.as_millis());
                Err(End::Failed(Failure::new("hang", detail)))
            }
        }
    }

    /// Ends a child that uses more than it may.
    fn look(&self, link: &Link) -> Result<(), End> {
        const MIB: u64 = 1 << 20;
        // One that is gone will be told so.
        let Some(usage) = link.usage() else { return Ok(()) };
        let Limits { memory, cpu_ms } = self.spec.limits;
        if let Some(limit) = memory.filter(|limit| usage.memory > *limit) {
            let (held, limit) = (usage.memory / MIB, limit / MIB);
            let detail = format!("it held {held} MiB of memory, where {limit} are allowed");
            return Err(Failure::new("memory-limit", detail).into());
        }
        if let Some(limit) = cpu_ms.filter(|limit| usage.cpu_ms > *limit) {
            let detail = format!("it used {} ms of processor time, where {limit} are allowed", usage.cpu_ms);
            return Err(Failure::new("cpu-limit", detail).into());
        }
        Ok(())
    }

    /// Sends what may be sent.
    fn feed(&mut self, serving: &mut Serving) {
        if serving.pending.is_empty() {
            serving.busy_since = Instant::now();
        }
        self.announce(serving);
        while serving.link.backlog() < BACKLOG {
            let reached = |position| !self.applies || position <= self.history.position();
            if serving.ops.front().is_some_and(|(position, _)| reached(*position)) {
                let (_, op) = serving.ops.pop_front().expect("there is one");
                serving.link.send(&self.frame_of(&op));
                serving.pending.push_back(Pending::Op(op));
            } else if let Some(frame) = self.applies.then(|| self.history.next()).flatten() {
                serving.link.send(&frame);
                serving.pending.push_back(Pending::Item);
                self.rebase(serving);
            } else {
                break;
            }
        }
    }

    /// Asks for a snapshot when the items since the last one are many.
    fn rebase(&mut self, serving: &mut Serving) {
        if !self.history.wants_base() {
            return;
        }
        let is_rebase = |op: &Op| matches!(op, Op::Rebase { .. });
        let sent = serving.pending.iter().any(|pending| matches!(pending, Pending::Op(op) if is_rebase(op)));
        if !sent && !serving.ops.iter().any(|(_, op)| is_rebase(op)) {
            let position = self.history.position();
            serving.ops.push_front((position, Op::Rebase { position, again: false }));
        }
    }

    fn announce(&mut self, serving: &mut Serving) {
        let done = |announce: &mut Announce| !self.applies || self.history.is_done_to(announce.position);
        if let Some(announce) = serving.announce.take_if(done) {
            self.report(announce.change);
        }
    }

    fn frame_of(&self, op: &Op) -> Bytes {
        frame(&match op {
            Op::Query { command, .. } => ToChild::Query(command.clone()),
            Op::Snapshot { .. } | Op::Rebase { .. } | Op::State { .. } => ToChild::Snapshot,
            Op::Validate { config, .. } => {
                ToChild::Validate { config: config.clone(), place: self.place.clone() }
            }
            Op::Restore(state) => ToChild::Restore(state.clone()),
            Op::Role { role, fence } => ToChild::Role { role: *role, fence: *fence },
            Op::Lease { until_us } => ToChild::Lease { until_us: *until_us },
            Op::Notice(event) => ToChild::Event(event.clone()),
            Op::Stop => ToChild::Stop,
        })
    }

    /// A message while there is a child.
    fn while_up(&mut self, message: Message, serving: &mut Serving) -> Result<(), End> {
        let end = self.history.end();
        let mut behind = |op| serving.ops.push_back((end, op));
        match message {
            Message::Item(item) if self.applies => self.push(item)?,
            Message::Item(item) => {
                let index = item.index;
                if self.push(item).is_err() {
                    self.history.skip_to(index);
                }
            }
            Message::Begin { .. } => {}
            Message::Promoted { fence, from } => self.promoted(fence, from, serving)?,
            Message::Act { fence } if self.primary.is_some_and(|(token, _)| token == fence) => {
                if let Some(notices) = &serving.notices {
                    notices.promoted(self.history.last());
                }
                behind(Op::Role { role: role::PRIMARY, fence });
            }
            Message::Act { .. } => {}
            Message::Demoted => {
                self.primary = None;
                if let Some(notices) = &serving.notices {
                    notices.demoted();
                }
                if self.applies && !self.is_to_apply() {
                    // A standby that only keeps what it is told has a child without a state.
                    self.applies = false;
                    return Err(End::Again);
                }
                behind(Op::Role { role: role::STANDBY, fence: 0 });
                // It may be busy for a while before it hears of its role.
                serving.ops.push_front((0, Op::Lease { until_us: 0 }));
            }
            Message::Lease { until_us } if self.primary.is_some() => {
                serving.ops.push_front((0, Op::Lease { until_us }));
            }
            Message::Lease { .. } => {}
            Message::Newer(bundle) => self.newer(bundle),
            Message::Around { place, others } => (self.place, self.others) = (place, others),
            Message::Reply { index, asker } => match self.replies.get(index) {
                Some(reply) => answer(asker, self.spec.library.payload, reply),
                None if index <= self.gauge.applied.load(Ordering::Relaxed) => {
                    let _ = asker.send(Err(ReplyError::Gone));
                }
                None => self.askers.entry(index).or_default().push(asker),
            },
            Message::Query { asker, .. } if !self.applies => {
                let _ = asker.send(Err(self.not_running("it stands by")));
            }
            Message::Query { command, asker } => behind(Op::Query { command, asker }),
            Message::Snapshot { answer, .. } if !self.applies => drop(answer.send(None)),
            Message::Snapshot { index, answer } => {
                behind(Op::Snapshot { index, config: self.config.clone(), answer });
            }
            Message::State { answer } if !self.applies => drop(answer.send(self.kept())),
            Message::State { answer } => behind(Op::State { answer }),
            Message::Upgrade { library, next } => {
                self.upgraded(library, next);
                if !self.applies || self.spec.stateless {
                    return Err(End::Again);
                }
                behind(Op::Rebase { position: end, again: true });
            }
            Message::Validate { config, answer } => behind(Op::Validate { config, answer }),
            Message::Attach(attach) => attach.refuse(match self.spec.placement {
                Placement::Application => "another application runs this member's instance".into(),
                _ => format!("{} is not loaded with --placement application", self.spec.name),
            }),
            Message::Kill(done) => {
                serving.link.kill();
                let _ = done.send(true);
            }
            Message::Stop => {
                behind(Op::Stop);
                serving.stop_by = Some(Instant::now() + STOPPING);
            }
        }
        Ok(())
    }

    /// It is the primary: whatever it kept is applied, and when its time has come it is told so.
    fn promoted(&mut self, fence: u64, from: Instant, serving: &mut Serving) -> Result<(), End> {
        self.primary = Some((fence, from));
        if !self.applies {
            let base = self.history.base();
            if base.config != self.child_config {
                return Err(End::Again);
            }
            match &base.state {
                Start::Fresh => {}
                Start::From(state) => serving.ops.push_front((0, Op::Restore(state.clone()))),
                Start::Elsewhere => {
                    return Err(Failure::new("exit", "it has no snapshot to begin from".into()).into());
                }
            }
            self.applies = true;
            if let Some(notices) = &serving.notices {
                notices.serve();
            }
        }
        self.act_from(fence, from);
        Ok(())
    }

    /// Tells itself when the time has come to act as the primary.
    fn act_from(&self, fence: u64, from: Instant) {
        let own = self.own.clone();
        tokio::spawn(async move {
            sleep_until(from).await;
            if let Some(own) = own.upgrade() {
                // The instance may have ended meanwhile.
                let _ = own.send(Message::Act { fence }).await;
            }
        });
    }

    /// What an answer means.
    fn answered(&mut self, pending: Option<Pending>, answer: FromChild) -> Result<(), End> {
        let panicked = |text: String| Err(End::Failed(Failure::new("panic", text)));
        self.gauge.callbacks.fetch_add(1, Ordering::Relaxed);
        match pending {
            None => Err(End::Failed(Failure::new("exit", "its process answers what nobody asked".into()))),
            Some(Pending::Item) => match answer {
                FromChild::Panic(text) => {
                    self.killers.extend(self.history.waiting().map(|item| item.index));
                    panicked(text)
                }
                answer => self.told(answer),
            },
            Some(Pending::Op(op)) => {
                let panic = match &answer {
                    FromChild::Panic(text) => Some(text.clone()),
                    _ => None,
                };
                let stopped = matches!(op, Op::Stop);
                let again = matches!(op, Op::Rebase { again: true, .. }) && panic.is_none();
                self.done(op, answer);
                match panic {
                    _ if stopped => Err(End::Stopped),
                    _ if again => Err(End::Again),
                    Some(text) => panicked(text),
                    None => Ok(()),
                }
            }
        }
    }

    /// The first waiting item was taken by the plug-in.
    fn told(&mut self, answer: FromChild) -> Result<(), End> {
        let item = self.history.waiting().expect("an answer belongs to an item");
        let (index, kind) = (item.index, item.kind.clone());
        let reply = match answer {
            FromChild::Done(reply) => Ok(reply),
            FromChild::Own(text) | FromChild::Panic(text) => Err(text),
            FromChild::NotLoaded { reason, .. } => Err(reason),
        };
        self.history.answered();
        self.gauge.applied.store(index, Ordering::Relaxed);
        match (kind, reply) {
            (Kind::Command, reply) => self.replies.keep(index, reply),
            (Kind::Configure(_), Err(text)) => {
                let detail = format!("it does not take its new configuration: {text}");
                return Err(End::Failed(Failure::new("poisoned", detail)));
            }
            (_, Err(text)) => {
                tracing::warn!(plugin = self.spec.name, index, text, "an event was not understood")
            }
            (_, Ok(_)) => {}
        }
        self.settle_up_to(index);
        Ok(())
    }

    /// Something other than an item was answered.
    fn done(&mut self, op: Op, answer: FromChild) {
        match (op, answer) {
            (Op::Query { asker, .. }, FromChild::Done(reply)) => {
                super::answer(asker, self.spec.library.payload, &Ok(reply));
            }
            (Op::Query { asker, .. }, FromChild::Own(text)) => drop(asker.send(Ok(Err(text)))),
            (Op::Snapshot { index, config, answer }, FromChild::Done(state)) => {
                let replies = self.replies.tail(index);
                let bundle = rmp_serde::to_vec(&Bundle { index, config, state, replies });
                let _ = answer.send(Some(bundle.expect("a snapshot is plain data")));
            }
            (Op::Restore(_) | Op::Role { .. } | Op::Lease { .. } | Op::Notice(_), FromChild::Done(_)) => {}
            (Op::Notice(_), FromChild::Own(text)) => {
                tracing::warn!(plugin = self.spec.name, text, "an event was not understood");
            }
            (Op::State { answer }, FromChild::Done(state)) => drop(answer.send(Some(state))),
            (Op::Rebase { position, .. }, FromChild::Done(state)) => self.history.rebase_at(position, state),
            (Op::Validate { answer, .. }, said) => drop(answer.send(settle("validate", Ok(said)))),
            (op, FromChild::Own(text) | FromChild::Panic(text)) => self.refuse(op, &text),
            (op, FromChild::NotLoaded { reason, .. }) => self.refuse(op, &reason),
            (Op::Stop, FromChild::Done(_)) => {}
        }
    }

    /// Something will not be answered.
    fn refuse(&self, op: Op, why: &str) {
        match op {
            Op::Query { asker, .. } => drop(asker.send(Err(self.not_running(why)))),
            Op::Snapshot { answer, .. } => drop(answer.send(None)),
            Op::State { answer } => drop(answer.send(None)),
            Op::Validate { answer, .. } => drop(answer.send(Err(not_validated(why)))),
            Op::Rebase { .. }
            | Op::Restore(_)
            | Op::Role { .. }
            | Op::Lease { .. }
            | Op::Notice(_)
            | Op::Stop => {}
        }
    }
}

/// The next event that waits at an instance's desk.
async fn notice(notices: &mut Option<Notices>) -> Bytes {
    match notices {
        Some(notices) => notices.next().await,
        None => std::future::pending().await,
    }
}
