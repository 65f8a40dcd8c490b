//! The manager: what is loaded on this member, and what each entry of the history means to it.

use super::channel::{ToChild, frame};
use super::context::Speaker;
use super::history::{Base, Item, Kind, Start};
use super::inside::{IMAGES_MAX, Inside};
use super::instance::{self, Announce, Beginning, Handle, Message, Phase, Tells};
use super::launch::Trouble;
use super::link::Link;
use super::prepare::Successor;
use super::roster::Roster;
use super::{Execution, Figures, FromPlugins, Peers, ReplyError, ToPlugins, payload, prepare};
use crate::local::documents;
use crate::peer::give_way;
use crate::services::desk::Desks;
use bytes::Bytes;
use dvm_core::Delivery;
use dvm_core::ids::{HistoryIndex, MemberId, Name, TransactionId};
use dvm_core::state::{
    Applied, Change, Content, Ended, Entry, Event, EventKind, InstanceState, Library, Placement, PluginSpec,
    State, Submission, Transaction, TransactionKind,
};
use dvm_core::wire::{ExecResult, Verdict};
use dvm_plugin_api::Meta;
use dvm_plugin_api::host::encode_meta;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// Messages that wait for the manager.
const INBOX: usize = 16_384;
/// Snapshots that wait for an entry this member has not delivered.
const PARKED_MAX: usize = 1_024;
/// Ends of executions that are remembered for others, and those that others wait for.
const SAID_MAX: usize = 64;

/// What the manager must know.
#[derive(Debug)]
pub(crate) struct Options {
    /// This member's name.
    pub(crate) name: String,
    /// The executable to run as `plugin-host`.
    pub(crate) kernel: PathBuf,
    /// To the ring's task.
    pub(crate) reports: mpsc::Sender<FromPlugins>,
    /// This kernel's socket, where instances ask for services.
    pub(crate) socket: PathBuf,
    /// Where what comes by itself waits for them.
    pub(crate) desks: Arc<Desks>,
}

/// What the manager and the instances' tasks share.
#[derive(Debug)]
pub(super) struct Shared<P> {
    pub(super) peers: Arc<P>,
    pub(super) options: Options,
    /// What of plug-ins is in this process.
    pub(super) inside: Arc<Inside>,
    /// This member's.
    rank: Arc<AtomicU16>,
    /// To the ring's task, through a task of its own: nobody here waits for it.
    outbox: mpsc::UnboundedSender<FromPlugins>,
}

impl<P> Shared<P> {
    /// Who an instance of a plug-in is in the log.
    pub(super) fn speaker(&self, plugin: &Name) -> Speaker {
        Speaker { plugin: plugin.clone(), member: self.options.name.clone(), rank: self.rank.clone() }
    }

    /// Tells the ring's task. What is told is little and rare: results of transactions and ends of processes.
    pub(super) fn tell(&self, what: FromPlugins) {
        // The kernel ends when nobody listens any more.
        let _ = self.outbox.send(what);
    }
}

/// Starts the manager, on a thread of its own that lives as long as the sender does. Children are ended when it is
/// dropped; [`ToPlugins::Fence`] tells when they are.
pub(crate) fn start<P: Peers>(peers: Arc<P>, options: Options) -> mpsc::Sender<ToPlugins> {
    let (to, inbox) = mpsc::channel(INBOX);
    let run = move || {
        // Its other threads look at libraries.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(give_way).build();
        runtime.expect("a runtime needs a few descriptors, and the kernel has them").block_on(async {
            let (outbox, mut told) = mpsc::unbounded_channel();
            let reports = options.reports.clone();
            tokio::spawn(async move {
                while let Some(what) = told.recv().await {
                    if reports.send(what).await.is_err() {
                        return;
                    }
                }
            });
            let inside = Arc::new(Inside::new(IMAGES_MAX));
            let rank = Arc::default();
            Manager::new(Shared { peers, options, inside, rank, outbox }).run(inbox).await;
        });
    };
    std::thread::Builder::new().name("plugins".into()).spawn(run).expect("a kernel can start a thread");
    to
}

/// A loaded plug-in.
struct Loaded {
    spec: PluginSpec,
    since: HistoryIndex,
    /// This member's instance; none where it has none, or its load failed here.
    instance: Option<Handle>,
    /// It is one of the members that are to have an instance.
    placed: bool,
    /// The token of the last promotion.
    fence: u64,
}

impl Loaded {
    async fn tell(&self, message: Message) {
        if let Some(instance) = &self.instance {
            // An instance's task ends only after it was told to.
            let _ = instance.to.send(message).await;
        }
    }
}

/// A load that is executed and has no outcome yet.
enum Prepared {
    Executing {
        task: JoinHandle<()>,
        /// An instance is to start, and not only to be tried.
        placed: bool,
    },
    Ready(Link),
    /// An upgrade, with a child of the new version.
    Next(Box<Successor>),
    /// Without an instance: none was to start, or it could not.
    Without {
        placed: bool,
    },
}

struct Manager<P> {
    shared: Arc<Shared<P>>,
    roster: Roster,
    /// The last index delivered.
    index: u64,
    plugins: BTreeMap<Name, Loaded>,
    prepared: BTreeMap<TransactionId, Prepared>,
    /// Loads that have ended, from their tasks.
    ended: (mpsc::UnboundedSender<Executed>, mpsc::UnboundedReceiver<Executed>),
    /// How executions ended, the last ones, and who waits for the end of others.
    said: VecDeque<(TransactionId, Execution)>,
    askers: BTreeMap<TransactionId, Vec<oneshot::Sender<Option<Execution>>>>,
    /// Snapshots asked for by members that are ahead.
    parked: Vec<Parked>,
    /// Unloaded plug-ins whose processes may still be ending.
    leaving: Vec<JoinHandle<()>>,
}

/// How an execution ended.
type Executed = (TransactionId, Result<Prepared, Trouble>);

struct Parked {
    plugin: Name,
    since: HistoryIndex,
    at_least: u64,
    answer: oneshot::Sender<Option<Vec<u8>>>,
}

impl<P: Peers> Manager<P> {
    fn new(shared: Shared<P>) -> Self {
        Self {
            roster: Roster::new(shared.options.name.clone(), shared.rank.clone()),
            shared: Arc::new(shared),
            index: 0,
            plugins: BTreeMap::new(),
            prepared: BTreeMap::new(),
            ended: mpsc::unbounded_channel(),
            said: VecDeque::new(),
            askers: BTreeMap::new(),
            parked: Vec::new(),
            leaving: Vec::new(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<ToPlugins>) {
        loop {
            tokio::select! {
                biased;
                Some((transaction, result)) = self.ended.1.recv() => self.executed(transaction, result),
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => break,
                }
            }
        }
        self.fence().await;
    }

    async fn handle(&mut self, message: ToPlugins) {
        match message {
            ToPlugins::Restored { me, state } => self.restored(me, &state).await,
            ToPlugins::Delivered(delivery) => self.delivered(&delivery).await,
            ToPlugins::Execute { transaction, placed, limit_ms } => {
                self.execute(&transaction, placed, limit_ms).await;
            }
            ToPlugins::Primary { plugin, fence, from } => {
                if let Some(loaded) = self.plugins.get(&plugin) {
                    loaded.tell(Message::Promoted { fence: fence.0, from }).await;
                }
            }
            ToPlugins::Lease { until_us } => {
                for loaded in self.plugins.values().filter(|loaded| loaded.spec.mode.has_primary()) {
                    loaded.tell(Message::Lease { until_us }).await;
                }
            }
            ToPlugins::Reply { plugin, index, answer } => match self.running(&plugin) {
                Ok(loaded) => loaded.tell(Message::Reply { index: index.0, asker: answer }).await,
                Err(error) => drop(answer.send(Err(error))),
            },
            ToPlugins::Query { plugin, command, answer } => match self.running(&plugin) {
                Ok(loaded) => match payload::from_json(loaded.spec.library.payload, &command) {
                    Ok(command) => loaded.tell(Message::Query { command, asker: answer }).await,
                    Err(error) => drop(answer.send(Ok(Err(error)))),
                },
                Err(error) => drop(answer.send(Err(error))),
            },
            ToPlugins::Figures { answer } => {
                // Whoever asked may be gone.
                let _ = answer.send(self.figures());
            }
            ToPlugins::Snapshot { plugin, since, at_least, answer } => {
                let parked = Parked { plugin, since, at_least: at_least.0, answer };
                if parked.at_least <= self.index || self.parked.len() >= PARKED_MAX {
                    self.snapshot(parked).await;
                } else {
                    self.parked.push(parked);
                }
            }
            ToPlugins::Executed { transaction, answer } => {
                self.askers.retain(|_, askers| askers.iter().any(|asker| !asker.is_closed()));
                let said = self.said.iter().find(|(id, _)| *id == transaction).map(|(_, said)| said.clone());
                match said {
                    Some(said) => drop(answer.send(Some(said))),
                    None if self.askers.len() < SAID_MAX => {
                        self.askers.entry(transaction).or_default().push(answer);
                    }
                    None => drop(answer.send(None)),
                }
            }
            ToPlugins::Attach { plugin, attach } => match self.running(&plugin) {
                Ok(loaded) => loaded.tell(Message::Attach(attach)).await,
                Err(error) => attach.refuse(error.to_string()),
            },
            ToPlugins::Kill { plugin, answer } => match self.running(&plugin) {
                Ok(loaded) => loaded.tell(Message::Kill(answer)).await,
                Err(_) => drop(answer.send(false)),
            },
            ToPlugins::Fence { done } => {
                self.fence().await;
                let _ = done.send(());
            }
        }
    }

    fn figures(&self) -> Figures {
        let instances = self
            .plugins
            .iter()
            .filter_map(|(name, loaded)| Some((name.clone(), loaded.instance.as_ref()?.gauge.read())));
        let inside = &self.shared.inside;
        Figures {
            instances: instances.collect(),
            resident: inside.images(),
            quarantined: inside.quarantined(),
        }
    }

    fn running(&self, plugin: &Name) -> Result<&Loaded, ReplyError> {
        let why = match self.plugins.get(plugin) {
            Some(loaded) if loaded.instance.is_some() => return Ok(loaded),
            Some(loaded) if loaded.placed => "it could not be loaded on this member",
            Some(_) => "its instances are on other members",
            None => "no plug-in of that name is loaded",
        };
        Err(ReplyError::NotRunning { plugin: plugin.clone(), why: why.into() })
    }

    /// Ends and reaps every process, and every thread that comes back.
    async fn fence(&mut self) {
        let executing =
            std::mem::take(&mut self.prepared).into_values().filter_map(|prepared| match prepared {
                Prepared::Executing { task, .. } => Some(task),
                Prepared::Ready(_) | Prepared::Next(_) | Prepared::Without { .. } => None,
            });
        let instances = std::mem::take(&mut self.plugins).into_values();
        let instances = instances.filter_map(|loaded| Some(loaded.instance?.task));
        let tasks: Vec<_> = executing.chain(instances).chain(self.leaving.drain(..)).collect();
        tasks.iter().for_each(JoinHandle::abort);
        for task in tasks {
            // Cancelled, or just over: the process is gone either way.
            let _ = task.await;
        }
        self.shared.inside.settle().await;
        for parked in self.parked.drain(..) {
            let _ = parked.answer.send(None);
        }
        // Who asked learns that there will be no answer.
        self.askers.clear();
        while self.ended.1.try_recv().is_ok() {}
    }

    async fn restored(&mut self, me: MemberId, state: &State) {
        self.fence().await;
        self.index = state.index.0;
        self.roster.restore(me, state);
        for (_, plugin) in state.plugins.iter() {
            let (spec, since) = (plugin.spec.clone(), plugin.since);
            let fence = plugin.fence.map_or(0, |fence| fence.0);
            let mine = plugin.instances.get(&me).map(|mine| mine.state);
            let name = spec.name.clone();
            self.plugins
                .insert(name.clone(), Loaded { spec, since, instance: None, placed: mine.is_some(), fence });
            match mine {
                None | Some(InstanceState::Failed) => {}
                Some(InstanceState::Keeping) => self.begin_elsewhere(&name, Phase::Keeping),
                Some(InstanceState::Starting | InstanceState::Running) => {
                    self.begin_elsewhere(&name, Phase::Launching { tells: Tells::Started });
                }
            }
        }
    }

    /// Begins an instance whose state is another member's, or keeps what another has.
    fn begin_elsewhere(&mut self, name: &Name, phase: Phase) {
        let Some(loaded) = self.plugins.get(name) else { return };
        let (spec, since) = (loaded.spec.clone(), loaded.since);
        // A configuration that does not encode cannot start either; the member whose state it is has it encoded.
        let config = payload::config(spec.library.payload, &spec.config).unwrap_or_default();
        let base = Base { index: self.index, config, state: Start::Elsewhere };
        self.begin(spec, since, base, phase);
    }

    fn begin(&mut self, spec: PluginSpec, since: HistoryIndex, base: Base, phase: Phase) {
        let (name, me, place, others) =
            (spec.name.clone(), self.roster.me(), self.roster.place(), self.roster.others());
        let beginning = Beginning { me, spec: spec.clone(), since, base, place, others, phase };
        let instance = Some(instance::start(self.shared.clone(), beginning));
        let fence = self.plugins.get(&name).map_or(0, |loaded| loaded.fence);
        self.plugins.insert(name, Loaded { spec, since, instance, placed: true, fence });
    }

    async fn delivered(&mut self, delivery: &Delivery) {
        let entry = &*delivery.entry;
        if let Content::View(proposal) = &entry.content {
            self.roster.view(proposal);
            self.around(entry).await;
        }
        if let Some(ended) = &delivery.ended {
            self.ended(ended, entry).await;
        }
        self.placed(delivery).await;
        match &entry.content {
            Content::Change { body, .. } if delivery.applied == Applied::Command => {
                self.command(entry, body).await;
            }
            _ => {}
        }
        for event in &delivery.events {
            match &event.kind {
                EventKind::KeyChanged { key, .. } => {
                    let fields = || documents::fields(&event.kind).into();
                    self.shared.options.desks.key_changed(event.index.0, key, fields);
                }
                _ => self.event(event).await,
            }
        }
        self.index = entry.index.0;
        let index = self.index;
        for parked in self.parked.extract_if(.., |parked| parked.at_least <= index).collect::<Vec<_>>() {
            self.snapshot(parked).await;
        }
        self.leaving.retain(|task| !task.is_finished());
    }

    /// Instances that this member is to have from now on.
    async fn placed(&mut self, delivery: &Delivery) {
        let me = self.roster.me();
        for placed in delivery.placed.iter().filter(|placed| placed.member == me) {
            let Some(loaded) = self.plugins.get_mut(&placed.plugin) else { continue };
            loaded.placed = true;
            match (placed.state, &loaded.instance) {
                // What was kept is begun with.
                (InstanceState::Starting, Some(_)) => loaded.tell(Message::Begin { own: placed.own }).await,
                (InstanceState::Starting, None) => {
                    self.begin_elsewhere(&placed.plugin, Phase::Launching { tells: Tells::Started });
                }
                // With the load, the state is what `start` makes; later it is to be had of others.
                (InstanceState::Keeping, None) if loaded.since == delivery.entry.first => {
                    let (spec, since) = (loaded.spec.clone(), loaded.since);
                    let config = payload::config(spec.library.payload, &spec.config).unwrap_or_default();
                    let base = Base { index: since.0 - 1, config, state: Start::Fresh };
                    self.begin(spec, since, base, Phase::Keeping);
                }
                (InstanceState::Keeping, None) => self.begin_elsewhere(&placed.plugin, Phase::Keeping),
                _ => {}
            }
        }
    }

    /// Members or ranks have changed.
    async fn around(&self, entry: &Entry) {
        let (place, others) = (self.roster.place(), self.roster.others());
        let frame = frame(&ToChild::Place(place.clone()));
        for loaded in self.plugins.values() {
            loaded.tell(Message::Around { place: place.clone(), others: others.clone() }).await;
            let item = Item { index: entry.first.0, kind: Kind::Place, frame: frame.clone() };
            loaded.tell(Message::Item(item)).await;
        }
    }

    async fn command(&self, entry: &Entry, body: &Bytes) {
        let Ok(submission) = postcard::from_bytes::<Submission>(body) else { return };
        let Change::Command { plugin, payload } = submission.change else { return };
        let Some(loaded) = self.plugins.get(&plugin).filter(|loaded| loaded.instance.is_some()) else {
            return;
        };
        let mut meta = Meta::at(entry.first.0);
        meta.time = submission.time_ms;
        meta.seed = seed(entry, body);
        meta.fence = loaded.fence;
        meta.session = submission.stamp.map(|stamp| stamp.session);
        let frame = frame(&ToChild::Apply { meta: encode_meta(&meta).into(), command: payload });
        loaded.tell(Message::Item(Item { index: entry.first.0, kind: Kind::Command, frame })).await;
    }

    async fn event(&mut self, event: &Event) {
        if self.plugins.is_empty() {
            return;
        }
        match &event.kind {
            EventKind::InstancePromoted { plugin, fence, .. } => {
                if let Some(loaded) = self.plugins.get_mut(plugin) {
                    loaded.fence = fence.0;
                }
            }
            EventKind::InstanceDemoted { plugin, member, .. }
            | EventKind::InstanceFailed { plugin, member, .. }
                if *member == self.shared.options.name =>
            {
                if let Some(loaded) = self.plugins.get(plugin) {
                    loaded.tell(Message::Demoted).await;
                }
            }
            _ => {}
        }
        let fields = documents::fields(&event.kind);
        let told = dvm_plugin_api::Event::new(event.index.0, event.kind.word(), fields);
        let told = rmp_serde::to_vec_named(&told).expect("an event is plain data");
        let frame = frame(&ToChild::Event(told.into()));
        for loaded in self.plugins.values() {
            let item = Item { index: event.index.0, kind: Kind::Event, frame: frame.clone() };
            loaded.tell(Message::Item(item)).await;
        }
    }

    async fn snapshot(&self, parked: Parked) {
        match self.plugins.get(&parked.plugin).filter(|loaded| loaded.since == parked.since) {
            Some(loaded) if loaded.instance.is_some() => {
                loaded.tell(Message::Snapshot { index: self.index, answer: parked.answer }).await;
            }
            _ => drop(parked.answer.send(None)),
        }
    }

    /// Does what a transaction asks, up to the point where nothing is changed yet.
    async fn execute(&mut self, transaction: &Transaction, placed: bool, limit_ms: u64) {
        let id = transaction.id;
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        match &transaction.kind {
            TransactionKind::Load(spec) => {
                if self.prepared.contains_key(&id) {
                    return;
                }
                let task = self.prepare(id, (**spec).clone(), placed, deadline);
                self.prepared.insert(id, Prepared::Executing { task, placed });
            }
            TransactionKind::Unload { .. } => self.tell(id, ExecResult::ok()),
            TransactionKind::Upgrade { plugin, library, canary } => {
                if self.prepared.contains_key(&id) {
                    return;
                }
                let Some(task) = self.try_upgrade(id, plugin, library, *canary, deadline).await else {
                    return;
                };
                self.prepared.insert(id, Prepared::Executing { task, placed: false });
            }
            TransactionKind::Configure { plugin, .. }
                if self.plugins.get(plugin).is_some_and(|loaded| !loaded.placed) =>
            {
                // It has nothing to refuse with.
                self.tell(id, ExecResult::ok());
            }
            TransactionKind::Configure { plugin, edit } => {
                let loaded = match self.running(plugin) {
                    Ok(loaded) => loaded,
                    Err(error) => {
                        let trouble = Trouble::new("validate", "crash", error.to_string());
                        return self.tell(id, trouble.result());
                    }
                };
                let config = edit.apply(&loaded.spec.config);
                let config = match payload::config(loaded.spec.library.payload, &config) {
                    Ok(config) => config,
                    Err(reason) => {
                        return self.tell(id, Trouble::new("validate", "config", reason).result());
                    }
                };
                let (answer, answered) = oneshot::channel();
                loaded.tell(Message::Validate { config, answer }).await;
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    let result = match timeout_at(deadline, answered).await {
                        Ok(Ok(Ok(()))) => ExecResult::ok(),
                        Ok(Ok(Err(trouble))) => trouble.result(),
                        Ok(Err(_)) => Trouble::new("validate", "crash", "its instance ended").result(),
                        Err(_) => Trouble::late("validate").result(),
                    };
                    shared.tell(FromPlugins::Executed { transaction: id, result });
                });
            }
        }
    }

    /// Tries another library: it must start with the present configuration, and take over the state that the instance
    /// here has now. Whoever is not the canary waits for its word first.
    async fn try_upgrade(
        &mut self,
        id: TransactionId,
        plugin: &Name,
        library: &Library,
        canary: Option<MemberId>,
        deadline: Instant,
    ) -> Option<JoinHandle<()>> {
        let Some(loaded) = self.plugins.get(plugin) else {
            self.tell(id, Trouble::new("check", "not-found", "it is not loaded here").result());
            return None;
        };
        let payload = loaded.spec.library.payload;
        let spec = PluginSpec { library: library.clone(), ..loaded.spec.clone() };
        let state = if spec.stateless || loaded.instance.is_none() {
            None
        } else {
            let (answer, answered) = oneshot::channel();
            loaded.tell(Message::State { answer }).await;
            Some(answered)
        };
        let pid = loaded.instance.as_ref().map_or(0, |instance| instance.gauge.pid.load(Ordering::Relaxed));
        let canary = canary.filter(|canary| *canary != self.roster.me());
        let upgrade = prepare::Upgrade { transaction: id, spec, payload, canary, state, runs: pid != 0 };
        let (shared, place, ended) = (self.shared.clone(), self.roster.place(), self.ended.0.clone());
        Some(tokio::spawn(async move {
            let tried = upgrade.try_out(&shared, &place, deadline).await;
            let prepared = tried.map(|next| match next {
                Some(next) => Prepared::Next(Box::new(next)),
                None => Prepared::Without { placed: false },
            });
            // The manager that is gone has no use for it.
            let _ = ended.send((id, prepared));
        }))
    }

    fn tell(&mut self, transaction: TransactionId, result: ExecResult) {
        let said = match result.verdict {
            Verdict::Ok => Ok(()),
            _ => Err(result.reason.clone()),
        };
        for asker in self.askers.remove(&transaction).unwrap_or_default() {
            // Whoever asked may be gone.
            let _ = asker.send(Some(said.clone()));
        }
        self.said.push_back((transaction, said));
        if self.said.len() > SAID_MAX {
            self.said.pop_front();
        }
        self.shared.tell(FromPlugins::Executed { transaction, result });
    }

    fn prepare(
        &self,
        id: TransactionId,
        spec: PluginSpec,
        placed: bool,
        deadline: Instant,
    ) -> JoinHandle<()> {
        let (shared, place, ended) = (self.shared.clone(), self.roster.place(), self.ended.0.clone());
        tokio::spawn(async move {
            let loaded = prepare::load(&shared, &spec, &place, placed, deadline).await;
            let prepared = loaded.map(|link| link.map_or(Prepared::Without { placed }, Prepared::Ready));
            let _ = ended.send((id, prepared));
        })
    }

    /// A load or an upgrade has been executed; if its outcome came first, nobody waits for it any more.
    fn executed(&mut self, id: TransactionId, result: Result<Prepared, Trouble>) {
        let Some(Prepared::Executing { placed, .. }) = self.prepared.get(&id) else { return };
        let placed = *placed;
        match result {
            Ok(prepared) => {
                let result = match &prepared {
                    Prepared::Ready(link) => ExecResult::loaded(link.pid()),
                    _ => ExecResult::ok(),
                };
                self.prepared.insert(id, prepared);
                self.tell(id, result);
            }
            Err(trouble) => {
                self.prepared.insert(id, Prepared::Without { placed });
                tracing::info!(transaction = %id, stage = trouble.stage, reason = trouble.reason, "load failed here");
                self.tell(id, trouble.result());
            }
        }
    }

    /// A transaction's outcome took effect.
    async fn ended(&mut self, ended: &Ended, entry: &Entry) {
        let transaction = &ended.transaction;
        // Nobody's word counts any more.
        for asker in self.askers.remove(&transaction.id).unwrap_or_default() {
            let _ = asker.send(None);
        }
        let (mut prepared, mut next) = (None, None);
        let placed = match self.prepared.remove(&transaction.id) {
            Some(Prepared::Ready(link)) => {
                prepared = Some(link);
                true
            }
            Some(Prepared::Next(successor)) => {
                next = Some(successor);
                true
            }
            Some(Prepared::Executing { task, placed }) => {
                task.abort();
                placed
            }
            Some(Prepared::Without { placed }) => placed,
            None => false,
        };
        if !ended.committed || transaction.dry_run {
            return;
        }
        match &transaction.kind {
            TransactionKind::Load(spec) => {
                self.loaded((**spec).clone(), prepared, placed, ended, entry.first);
            }
            TransactionKind::Upgrade { plugin, library, .. } => {
                let Some(loaded) = self.plugins.get_mut(plugin) else { return };
                loaded.spec.library = library.clone();
                loaded.tell(Message::Upgrade { library: library.clone(), next }).await;
            }
            TransactionKind::Unload { plugin } => {
                let Some(loaded) = self.plugins.remove(plugin) else { return };
                loaded.tell(Message::Stop).await;
                self.leaving.extend(loaded.instance.map(|instance| instance.task));
            }
            TransactionKind::Configure { plugin, edit } => {
                let Some(loaded) = self.plugins.get_mut(plugin) else { return };
                loaded.spec.config = edit.apply(&loaded.spec.config);
                let Ok(config) = payload::config(loaded.spec.library.payload, &loaded.spec.config) else {
                    return;
                };
                let frame = frame(&ToChild::Configure(config.clone()));
                let item = Item { index: entry.first.0, kind: Kind::Configure(config), frame };
                loaded.tell(Message::Item(item)).await;
            }
        }
    }

    fn loaded(
        &mut self,
        spec: PluginSpec,
        link: Option<Link>,
        placed: bool,
        ended: &Ended,
        since: HistoryIndex,
    ) {
        let result = ended.results.get(&self.roster.me());
        let ok = result.is_some_and(|result| result.verdict == Verdict::Ok);
        if spec.placement == Placement::Application && placed && ok {
            let config = payload::config(spec.library.payload, &spec.config).unwrap_or_default();
            let base = Base { index: since.0 - 1, config, state: Start::Fresh };
            return self.begin(spec, since, base, Phase::Launching { tells: Tells::Started });
        }
        let (Some(link), true) = (link, ok) else {
            self.plugins.insert(spec.name.clone(), Loaded { spec, since, instance: None, placed, fence: 0 });
            return;
        };
        let config = payload::config(spec.library.payload, &spec.config).unwrap_or_default();
        let base = Base { index: since.0 - 1, config, state: Start::Fresh };
        let announce = Some(Announce::prepared(&link));
        self.begin(spec, since, base, Phase::Running { link: Box::new(link), announce });
    }
}

/// A number for a command, the same at every instance.
fn seed(entry: &Entry, body: &Bytes) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&entry.first.0.to_le_bytes());
    hasher.update(body);
    let hash = hasher.finalize();
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}
