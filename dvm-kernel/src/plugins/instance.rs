//! One instance of a plug-in on this member: a task that tells it the history, keeps its replies, and starts it again.
//!
//! ```text
//! Keeping ──begin──► Launching ──► Running ──stop──► Over
//!                        ▲            │ failure
//!                        └──restart───┤
//!                        ▲            └──too many──► Failed ──stop──► Over
//!                        └────────begin, by an upgrade────┘
//! ```
//! An instance *applies* what it is told, or it only keeps it: a standby of a `warm` or `single` plug-in has the
//! primary's last snapshot and everything since, takes a newer one from time to time, and applies it all when it is
//! promoted.
//!
//! A failed instance takes its state from another member, with everything this one had in hand. If no other member has
//! one that runs, it is made again from the last base of its own, one item at a time where the failure was; what ends
//! the instance again is left out. All members do so alike, so that a command that kills every instance takes no effect
//! anywhere and the next one works.

mod serving;

use super::application::Attach;
use super::history::{Base, History, Item, Start};
use super::launch::{Trouble, Until, launch, launch_in};
use super::link::Link;
use super::manager::Shared;
use super::prepare::Successor;
use super::process::Ending;
use super::replies::{Replies, Reply, Tail};
use super::{FromPlugins, InstanceFigures, Peers, ReplyError, payload};
use bytes::Bytes;
use dvm_core::ids::{HistoryIndex, MemberId};
use dvm_core::state::{
    InstanceChange, InstanceFailure, InstanceReport, Library, Limits, Mode, Payload, Placement, PluginSpec,
    SnapshotEvery,
};
use dvm_plugin_api::service::LEFT_OUT;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Longest time to get a state and a child for it.
const LAUNCH: Duration = Duration::from_secs(30);
/// Before a failed child is started again: starting takes a processor, and whoever is told of the failure comes first.
const RESTART: Duration = Duration::from_millis(10);
/// Longest time another member may take for a snapshot.
const SNAPSHOT: Duration = Duration::from_secs(10);
/// Between two rounds of asking for a snapshot.
const ROUND: Duration = Duration::from_millis(100);
/// The same while there is none at all.
const SOON: Duration = Duration::from_millis(5);
/// Messages that wait for an instance's task; it takes them whatever its child does.
const INBOX: usize = 1_024;

/// Where a reply goes.
pub(super) type Asker = oneshot::Sender<Result<Result<Value, String>, ReplyError>>;

/// To the task of an instance.
#[derive(Debug)]
pub(super) enum Message {
    /// The next thing to tell it.
    Item(Item),
    /// Start. A keeper has what is to be begun with; one that failed for good has it if it is its `own`.
    Begin { own: bool },
    /// It is the primary from here on, and may act from then on.
    Promoted { fence: u64, from: Instant },
    /// The time has come for the primary with this token to act.
    Act { fence: u64 },
    /// It is the primary no longer.
    Demoted,
    /// A primary may act until then.
    Lease { until_us: u64 },
    /// What came of asking for a newer snapshot.
    Newer(Option<Bundle>),
    /// Where it is now, and whom to ask for a state.
    Around { place: Bytes, others: Vec<MemberId> },
    /// The reply to a command.
    Reply { index: u64, asker: Asker },
    /// Answer a query.
    Query { command: Bytes, asker: Asker },
    /// A snapshot for another member; everything up to `index` was told before.
    Snapshot { index: u64, answer: oneshot::Sender<Option<Vec<u8>>> },
    /// The state as it is now, or is kept, for a try of another library; none if this instance has none.
    State { answer: oneshot::Sender<Option<Bytes>> },
    /// Go on with another library, from the state as it is then; with a child of it that was begun before.
    Upgrade { library: Library, next: Option<Box<Successor>> },
    /// Would this configuration do?
    Validate { config: Bytes, answer: oneshot::Sender<Result<(), Trouble>> },
    /// An application wants to run it.
    Attach(Attach),
    /// Kill its process.
    Kill(oneshot::Sender<bool>),
    /// The plug-in is unloaded.
    Stop,
}

/// What others may read of an instance at any time.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    pub(super) applied: AtomicU64,
    /// 0 while there is no process.
    pub(super) pid: AtomicU32,
    /// Callbacks that were answered.
    callbacks: AtomicU64,
    /// Commands and events that were not.
    behind: AtomicU64,
    failures: AtomicU64,
}

impl Gauge {
    /// All of it.
    pub(super) fn read(&self) -> InstanceFigures {
        InstanceFigures {
            applied: self.applied.load(Ordering::Relaxed),
            pid: self.pid.load(Ordering::Relaxed),
            callbacks: self.callbacks.load(Ordering::Relaxed),
            behind: self.behind.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// A snapshot as it goes from one member's instance to another's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Bundle {
    index: u64,
    config: Bytes,
    state: Bytes,
    replies: Tail,
}

/// What an instance is doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// It keeps the last snapshot and what came since, without a child.
    Keeping,
    /// It gets its state and a child.
    Launching { tells: Tells },
    /// It runs.
    Running { link: Box<Link>, announce: Option<Announce> },
    /// It is gone for good.
    Failed { why: String },
    /// The plug-in is unloaded.
    Over,
}

/// What is told of an instance when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    /// That it has started.
    Started,
    /// That it was started again.
    Restarted,
    /// Only its process: it counts as running all the time.
    Moved,
}

/// What is to be reported when everything before a position of the history is answered.
#[derive(Debug)]
pub(super) struct Announce {
    position: u64,
    change: InstanceChange,
}

impl Announce {
    /// For an instance that was prepared before its load was decided: at once, so that all know its process.
    pub(super) fn prepared(link: &Link) -> Self {
        Self { position: 0, change: InstanceChange::Started { pid: link.pid() } }
    }
}

/// How an instance failed.
#[derive(Debug)]
struct Failure {
    cause: &'static str,
    ending: Option<Ending>,
    detail: String,
}

impl Failure {
    fn new(cause: &'static str, detail: String) -> Self {
        Self { cause, ending: None, detail }
    }

    fn of(ending: Ending) -> Self {
        let cause = match ending {
            Ending::Exit(_) | Ending::Thread | Ending::Gone => "exit",
            Ending::Signal(_) => "signal",
        };
        Self { cause, ending: Some(ending), detail: ending.text() }
    }
}

/// The task's own.
pub(super) struct Instance<P> {
    shared: Arc<Shared<P>>,
    me: MemberId,
    spec: PluginSpec,
    since: HistoryIndex,
    place: Bytes,
    others: Vec<MemberId>,
    inbox: mpsc::Receiver<Message>,
    /// The child to go on with after an upgrade.
    next: Option<Box<Successor>>,
    /// To its own inbox, for what it starts.
    own: mpsc::WeakSender<Message>,
    gauge: Arc<Gauge>,
    history: History,
    /// It applies what it is told, and does not only keep it.
    applies: bool,
    /// Its next state must be another's, though it has one itself.
    borrows: bool,
    /// The token of its promotion and when it may begin to act, while it is the primary.
    primary: Option<(u64, Instant)>,
    /// The configuration that the child was started with.
    child_config: Bytes,
    /// When it last asked for a newer snapshot, and whether the answer is still to come.
    asked: (Instant, bool),
    /// The configuration behind the last item.
    config: Bytes,
    replies: Replies,
    askers: BTreeMap<u64, Vec<Asker>>,
    /// What ended a child, to be left out if the state is made again from the own base.
    killers: Vec<u64>,
    /// When it was started again, within the policy's window.
    restarts: VecDeque<Instant>,
}

/// What an instance's task begins with.
pub(super) struct Beginning {
    pub(super) me: MemberId,
    pub(super) spec: PluginSpec,
    pub(super) since: HistoryIndex,
    pub(super) base: Base,
    pub(super) place: Bytes,
    pub(super) others: Vec<MemberId>,
    pub(super) phase: Phase,
}

/// An instance's task, from outside.
pub(super) struct Handle {
    pub(super) to: mpsc::Sender<Message>,
    pub(super) gauge: Arc<Gauge>,
    pub(super) task: tokio::task::JoinHandle<()>,
}

/// Starts the task of an instance.
pub(super) fn start<P: Peers>(shared: Arc<Shared<P>>, beginning: Beginning) -> Handle {
    let Beginning { me, spec, since, base, place, others, phase } = beginning;
    let (to, inbox) = mpsc::channel(INBOX);
    let gauge = Arc::new(Gauge::default());
    if let Phase::Running { link, .. } = &phase {
        gauge.pid.store(link.pid(), Ordering::Relaxed);
    }
    let instance = Instance {
        shared,
        me,
        since,
        place,
        others,
        inbox,
        next: None,
        own: to.downgrade(),
        gauge: gauge.clone(),
        applies: all_apply(spec.mode),
        borrows: false,
        primary: None,
        child_config: base.config.clone(),
        asked: (Instant::now() - ROUND, false),
        config: base.config.clone(),
        history: History::new(base, spec.stateless),
        spec,
        replies: Replies::default(),
        askers: BTreeMap::new(),
        killers: Vec::new(),
        restarts: VecDeque::new(),
    };
    Handle { to, gauge, task: tokio::spawn(instance.run(phase)) }
}

impl<P: Peers> Instance<P> {
    async fn run(mut self, mut phase: Phase) {
        loop {
            phase = match phase {
                Phase::Keeping => self.keep().await,
                Phase::Launching { tells } => self.launch(tells).await,
                Phase::Running { link, announce } => self.serve(*link, announce).await,
                Phase::Failed { why } => self.rest(&why).await,
                Phase::Over => break,
            };
        }
        self.gauge.pid.store(0, Ordering::Relaxed);
        self.inbox.close();
        while let Some(message) = self.inbox.recv().await {
            self.while_down(message, "it was unloaded", true);
        }
        self.refuse_askers("it was unloaded");
    }

    /// Until it is to start.
    async fn keep(&mut self) -> Phase {
        loop {
            self.ask_for_newer();
            let again = self.ask_again();
            let message = tokio::select! {
                message = self.inbox.recv() => message,
                () = sleep_until(again) => continue,
            };
            match message {
                Some(Message::Begin { .. }) => return Phase::Launching { tells: Tells::Started },
                None | Some(Message::Stop) => return Phase::Over,
                Some(message) => self.while_down(message, "it stands by", false),
            }
        }
    }

    /// Asks the primary for a snapshot, if this instance only keeps what it is told and has kept enough.
    fn ask_for_newer(&mut self) {
        let since = Instant::now().duration_since(self.asked.0);
        let due = match self.spec.snapshot_every {
            _ if !self.has_state() => true,
            SnapshotEvery::Items(items) => self.history.kept() as u64 >= items,
            SnapshotEvery::Ms(ms) => self.history.kept() > 0 && since >= Duration::from_millis(ms),
        };
        if self.applies || self.spec.stateless || self.asked.1 || !due || since < self.round() {
            return;
        }
        self.asked = (Instant::now(), true);
        let (shared, spec, own) = (self.shared.clone(), self.spec.clone(), self.own.clone());
        let at_least = self.history.base().index;
        let source = Source { others: self.others.clone(), since: self.since, at_least };
        tokio::spawn(async move {
            let bundle = source.obtain(&shared, &spec, false, Instant::now() + LAUNCH).await.ok().flatten();
            if let Some(own) = own.upgrade() {
                // The instance may have ended meanwhile.
                let _ = own.send(Message::Newer(bundle)).await;
            }
        });
    }

    /// When to look again whether a newer snapshot is wanted.
    fn ask_again(&self) -> Instant {
        let every = match self.spec.snapshot_every {
            SnapshotEvery::Ms(ms) if self.has_state() => Duration::from_millis(ms),
            _ => Duration::ZERO,
        };
        Instant::now() + every.max(self.round())
    }

    fn round(&self) -> Duration {
        if self.has_state() { ROUND } else { SOON }
    }

    /// Whether it has a state to begin from.
    fn has_state(&self) -> bool {
        self.history.base().state != Start::Elsewhere
    }

    /// A newer snapshot is the base from now on, if it is still wanted.
    fn newer(&mut self, bundle: Option<Bundle>) {
        self.asked.1 = false;
        let Some(Bundle { index, config, state, replies }) = bundle else { return };
        let base = self.history.base();
        let is_newer = index > base.index || index == base.index && base.state == Start::Elsewhere;
        if !self.applies && is_newer {
            self.replies.extend(replies);
            self.history.rebase(Base { index, config, state: Start::From(state) });
            self.gauge.applied.store(index, Ordering::Relaxed);
            self.settle_up_to(index);
        }
    }

    /// The state of its last snapshot, if there is one.
    fn kept(&self) -> Option<Bytes> {
        match &self.history.base().state {
            Start::From(state) => Some(state.clone()),
            Start::Fresh | Start::Elsewhere => None,
        }
    }

    /// Whether its role says that it applies what it is told.
    fn is_to_apply(&self) -> bool {
        all_apply(self.spec.mode) || self.primary.is_some()
    }

    /// Failed for good, unless another version comes. For that one what it has is kept: others may have failed, too.
    async fn rest(&mut self, why: &str) -> Phase {
        self.refuse_askers(why);
        loop {
            match self.inbox.recv().await {
                None | Some(Message::Stop) => return Phase::Over,
                Some(Message::Begin { own }) => {
                    self.borrows = !own;
                    return Phase::Launching { tells: Tells::Started };
                }
                Some(message) => self.while_down(message, why, true),
            }
        }
    }

    /// Gets a state and a child.
    async fn launch(&mut self, tells: Tells) -> Phase {
        let mut application = None;
        if self.spec.placement == Placement::Application {
            application = self.application().await;
            if application.is_none() {
                return Phase::Over;
            }
        }
        let deadline = Instant::now() + LAUNCH;
        let (shared, spec, place) = (self.shared.clone(), self.spec.clone(), self.place.clone());
        let own = self.history.base().clone();
        let source = Source { others: self.others.clone(), since: self.since, at_least: self.history.last() };
        let (applies, library) = (self.is_to_apply(), self.spec.library.hash);
        let until = if applies { Until::Restored } else { Until::Started };
        let next = self.next.take();
        let must = own.state == Start::Elsewhere || self.borrows;
        let work = async move {
            if tells == Tells::Restarted {
                sleep(RESTART).await;
            }
            // What begins again though nothing is wrong with it has its own state.
            let bundle = match must || applies && tells != Tells::Moved {
                _ if spec.stateless => None,
                true => source.obtain(&shared, &spec, must, deadline).await?,
                false => None,
            };
            let (base, replies) = match bundle {
                Some(Bundle { index, config, state, replies }) => {
                    (Base { index, config, state: Start::From(state) }, Some(replies))
                }
                None if spec.stateless => (Base { state: Start::Fresh, ..own }, None),
                None => (own, None),
            };
            let next = match next {
                Some(next) => next.take_over(&spec, &base, &place, until, deadline).await,
                None => None,
            };
            let link = match (next, application) {
                (Some(link), _) => link,
                (None, Some(link)) => launch_in(link, &spec, &base, &place, until, deadline).await?,
                (None, None) => launch(&shared, &spec, &base, &place, until, deadline).await?,
            };
            Ok::<_, Trouble>((link, base, replies))
        };
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                message = self.inbox.recv() => match message {
                    None | Some(Message::Stop) => return Phase::Over,
                    Some(message) => self.while_down(message, "it is being started", false),
                }
            }
        };
        match result {
            // What came meanwhile was too much to keep: a later state is needed.
            Ok((_, base, _)) if base.index < self.history.base().index => Phase::Launching { tells },
            // It was upgraded meanwhile: how the version before would have fared is nothing any more.
            _ if self.spec.library.hash != library => Phase::Launching { tells },
            // It was promoted meanwhile, and the child has no state yet.
            Ok(_) if self.is_to_apply() != applies => Phase::Launching { tells },
            Ok((link, base, replies)) => {
                self.applies = applies;
                self.launched(link, base, replies, tells)
            }
            Err(trouble) => {
                let cause = if trouble.timeout { "hang" } else { "exit" };
                self.failed(Failure::new(cause, format!("{}: {}", trouble.stage, trouble.reason)))
            }
        }
    }

    /// Waits for an application; none if the plug-in is unloaded first.
    async fn application(&mut self) -> Option<Link> {
        loop {
            match self.inbox.recv().await {
                None | Some(Message::Stop) => return None,
                Some(Message::Attach(attach)) => {
                    match attach.accept(&self.spec, &self.shared.options.desks) {
                        Ok(link) => return Some(link),
                        Err(error) => {
                            tracing::warn!(plugin = self.spec.name, %error, "an application could not attach")
                        }
                    }
                }
                // Nothing that runs would object.
                Some(Message::Validate { answer, .. }) => drop(answer.send(Ok(()))),
                Some(message) => self.while_down(message, "no application has attached for it", false),
            }
        }
    }

    fn launched(&mut self, link: Link, base: Base, replies: Option<Tail>, tells: Tells) -> Phase {
        let index = base.index;
        if let Some(replies) = replies {
            self.borrows = false;
            self.killers.clear();
            self.replies.extend(replies);
            self.history.rebase(base);
        } else {
            tracing::info!(plugin = self.spec.name, "it begins from what is here");
            self.history.rewind();
            for index in std::mem::take(&mut self.killers) {
                self.history.remove(index);
                self.replies.keep(index, Err(LEFT_OUT.into()));
                self.settle(index);
            }
        }
        self.gauge.applied.store(index, Ordering::Relaxed);
        self.settle_up_to(index);
        let pid = link.pid();
        self.child_config = self.history.base().config.clone();
        let change = match tells {
            Tells::Started => InstanceChange::Started { pid },
            Tells::Restarted => InstanceChange::Restarted { pid },
            Tells::Moved => InstanceChange::Moved { pid },
        };
        let position = self.history.end();
        Phase::Running { link: Box::new(link), announce: Some(Announce { position, change }) }
    }

    /// What becomes of a failed instance.
    fn failed(&mut self, failure: Failure) -> Phase {
        let killed = matches!(failure.ending, Some(Ending::KILLED | Ending::Thread | Ending::Gone));
        // An instance that somebody killed is not to blame for it, unless it happens again at the same place.
        if let Some(index) = self.history.suspect().filter(|_| !killed || self.history.is_careful()) {
            self.killers.push(index);
        }
        self.gauge.failures.fetch_add(1, Ordering::Relaxed);
        self.history.rewind();
        let now = Instant::now();
        let window = Duration::from_millis(self.spec.restart.window_ms);
        while self.restarts.front().is_some_and(|at| now.duration_since(*at) > window) {
            self.restarts.pop_front();
        }
        // Whoever attaches does so by itself, and as often as it likes.
        let again = self.restarts.len() < self.spec.restart.times as usize
            || self.spec.placement == Placement::Application;
        // Somebody else is the primary by the time that this is told.
        self.primary = None;
        self.applies = self.is_to_apply();
        let Failure { cause, ending, detail } = failure;
        let exit_code = match ending {
            Some(Ending::Exit(code)) => Some(code),
            _ => None,
        };
        let signal = ending.and_then(Ending::signal);
        tracing::warn!(plugin = self.spec.name, cause, detail, again, "a plug-in instance failed");
        let failure = InstanceFailure { cause: cause.into(), exit_code, signal, detail: detail.clone() };
        self.report(InstanceChange::Failed { failure, again });
        if !again {
            return Phase::Failed { why: detail };
        }
        if self.spec.placement != Placement::Application {
            self.restarts.push_back(now);
        }
        Phase::Launching { tells: Tells::Restarted }
    }

    /// A message while there is no child.
    fn while_down(&mut self, message: Message, why: &str, for_good: bool) {
        match message {
            // Nobody wants to be told what is long past.
            Message::Item(_) if for_good && self.spec.stateless => {}
            Message::Item(item) => {
                let index = item.index;
                // Without a state of its own it may let items go: it needs a later state then.
                if self.push(item).is_err() {
                    if for_good && self.has_state() {
                        tracing::warn!(
                            plugin = self.spec.name,
                            "too much came since it failed: its state is given up"
                        );
                    }
                    self.history.skip_to(index);
                }
            }
            Message::Begin { .. } | Message::Stop | Message::Act { .. } | Message::Lease { .. } => {}
            Message::Promoted { fence, from } => self.primary = Some((fence, from)),
            Message::Demoted => self.primary = None,
            Message::Newer(bundle) => self.newer(bundle),
            Message::Around { place, others } => (self.place, self.others) = (place, others),
            Message::Reply { index, asker } => match self.replies.get(index) {
                Some(reply) => answer(asker, self.spec.library.payload, reply),
                None if for_good => drop(asker.send(Err(self.not_running(why)))),
                None => self.askers.entry(index).or_default().push(asker),
            },
            Message::Query { asker, .. } => drop(asker.send(Err(self.not_running(why)))),
            Message::Snapshot { answer, .. } => drop(answer.send(None)),
            Message::State { answer } => drop(answer.send(self.kept())),
            Message::Upgrade { library, next } => self.upgraded(library, next.filter(|_| !for_good)),
            Message::Validate { answer, .. } => drop(answer.send(Err(not_validated(why)))),
            Message::Attach(attach) => attach.refuse(self.not_running(why).to_string()),
            Message::Kill(done) => drop(done.send(false)),
        }
    }

    /// Another version, which is not to blame for what the one before did.
    fn upgraded(&mut self, library: Library, next: Option<Box<Successor>>) {
        (self.spec.library, self.next) = (library, next);
        self.restarts.clear();
    }

    /// # Errors
    /// If the instance does not keep up.
    fn push(&mut self, item: Item) -> Result<(), Failure> {
        if let super::history::Kind::Configure(config) = &item.kind {
            self.config = config.clone();
        }
        match self.history.push(item) {
            true => Ok(()),
            false => Err(Failure::new("hang", "it does not keep up with its commands".into())),
        }
    }

    fn report(&self, what: InstanceChange) {
        let (plugin, since, member) = (self.spec.name.clone(), self.since, self.me);
        self.shared.tell(FromPlugins::Report(InstanceReport { plugin, since, member, what }));
    }

    fn not_running(&self, why: &str) -> ReplyError {
        ReplyError::NotRunning { plugin: self.spec.name.clone(), why: why.into() }
    }

    /// Answers those who wait for the reply to `index`.
    fn settle(&mut self, index: u64) {
        let Some(askers) = self.askers.remove(&index) else { return };
        for asker in askers {
            match self.replies.get(index) {
                Some(reply) => answer(asker, self.spec.library.payload, reply),
                None => drop(asker.send(Err(ReplyError::Gone))),
            }
        }
    }

    /// Answers those who wait for anything up to `index`: it is here now, or it will never be.
    fn settle_up_to(&mut self, index: u64) {
        while let Some((first, _)) = self.askers.first_key_value().filter(|(first, _)| **first <= index) {
            let first = *first;
            self.settle(first);
        }
    }

    fn refuse_askers(&mut self, why: &str) {
        for asker in std::mem::take(&mut self.askers).into_values().flatten() {
            let _ = asker.send(Err(self.not_running(why)));
        }
    }
}

/// Whether every instance applies what it is told, and not the primary alone.
fn all_apply(mode: Mode) -> bool {
    matches!(mode, Mode::Parallel | Mode::Hot)
}

fn answer(asker: Asker, format: Payload, reply: &Reply) {
    let reply = match reply {
        Ok(reply) => payload::to_json(format, reply),
        Err(error) => Err(error.clone()),
    };
    // Whoever asked may have gone.
    let _ = asker.send(Ok(reply));
}

fn not_validated(why: &str) -> Trouble {
    Trouble::new("validate", "crash", format!("this member's instance does not run: {why}"))
}

/// Where another member's state may be had.
struct Source {
    others: Vec<MemberId>,
    since: HistoryIndex,
    at_least: u64,
}

impl Source {
    /// Another member's state, asked for in the order of ranks; again and again if it is the only way.
    async fn obtain<P: Peers>(
        &self,
        shared: &Shared<P>,
        spec: &PluginSpec,
        must: bool,
        deadline: Instant,
    ) -> Result<Option<Bundle>, Trouble> {
        loop {
            for other in &self.others {
                let at_least = HistoryIndex(self.at_least);
                let asked = shared.peers.snapshot(*other, spec.name.clone(), self.since, at_least);
                let Ok(Some(bytes)) = timeout(SNAPSHOT, asked).await else { continue };
                match rmp_serde::from_slice::<Bundle>(&bytes) {
                    Ok(bundle) if bundle.index >= self.at_least => return Ok(Some(bundle)),
                    _ => tracing::warn!(
                        plugin = spec.name,
                        ?other,
                        "another member sent a snapshot that is of no use"
                    ),
                }
            }
            if !must {
                return Ok(None);
            }
            if Instant::now() + ROUND > deadline {
                return Err(Trouble::new(
                    "restore",
                    "not-found",
                    "no other member has an instance that runs",
                ));
            }
            sleep(ROUND).await;
        }
    }
}
