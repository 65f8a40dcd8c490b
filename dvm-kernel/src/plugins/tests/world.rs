//! A DVM without a ring: one state, and a real manager with real children for each member.

use super::super::*;
use bytes::Bytes;
use dvm_core::Config;
use dvm_core::Delivery;
use dvm_core::ids::{Lineage, Rank, ViewId};
use dvm_core::state::*;
use dvm_core::view::{Label, View};
use dvm_core::wire::{Departure, DepartureCause, Identity, Key, Proposal};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Nothing in these tests takes longer.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// Asks the other managers directly.
#[derive(Clone, Default)]
pub(super) struct Neighbours {
    pub(super) library: Arc<Vec<u8>>,
    /// What the library is upgraded to.
    pub(super) next: Arc<Mutex<Arc<Vec<u8>>>>,
    pub(super) managers: Arc<Mutex<BTreeMap<MemberId, mpsc::Sender<ToPlugins>>>>,
}

impl Peers for Neighbours {
    async fn library(&self, hash: [u8; 32], _size: u64) -> Result<Arc<Blob>, Missing> {
        let next = self.next.lock().expect("no test panics with it").clone();
        let found =
            [&self.library, &next].into_iter().find(|library| *blake3::hash(library).as_bytes() == hash);
        match found {
            Some(library) => Ok(Arc::new(Blob::of(library).expect("there is room"))),
            None => Err(Missing { code: "not-found", reason: "nobody has it".into() }),
        }
    }

    async fn executed(&self, by: MemberId, transaction: TransactionId) -> Option<Execution> {
        let to = self.managers.lock().expect("no test panics with it").get(&by).cloned()?;
        let (answer, answered) = oneshot::channel();
        to.send(ToPlugins::Executed { transaction, answer }).await.ok()?;
        answered.await.ok()?
    }

    async fn snapshot(
        &self,
        from: MemberId,
        plugin: Name,
        since: HistoryIndex,
        at_least: HistoryIndex,
    ) -> Option<Vec<u8>> {
        let to = self.managers.lock().expect("no test panics with it").get(&from).cloned()?;
        let (answer, answered) = oneshot::channel();
        to.send(ToPlugins::Snapshot { plugin, since, at_least, answer }).await.ok()?;
        answered.await.ok()?
    }
}

pub(super) struct Manager {
    pub(super) identity: Identity,
    pub(super) to: mpsc::Sender<ToPlugins>,
    from: mpsc::Receiver<FromPlugins>,
    /// For a socket that nobody listens at.
    _directory: TempDir,
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) managers: Vec<Manager>,
    pub(super) neighbours: Neighbours,
    serial: u64,
    /// Instance events so far.
    pub(super) events: Vec<EventKind>,
    /// Instances placed so far.
    pub(super) placed: Vec<Placed>,
}

/// A file beside the tests' own executable.
fn built(name: &str, command: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test runs from a file");
    let directory = tests.parent().and_then(std::path::Path::parent).expect("target/PROFILE/deps");
    let path = directory.join(name);
    assert!(path.is_file(), "{} is missing; run `{command}` first", path.display());
    path
}

pub(super) fn counter() -> Vec<u8> {
    std::fs::read(built("libcounter.so", "cargo build -p dvm-plugin-counter")).expect("it is readable")
}

fn identity(number: usize) -> Identity {
    Identity {
        id: MemberId(number as u128 + 1),
        name: format!("k{number}"),
        host: "here".into(),
        addresses: Vec::new(),
        pid: 0,
        log: String::new(),
        version: String::new(),
        tags: BTreeMap::new(),
    }
}

impl World {
    pub(super) async fn new(members: usize) -> Self {
        Self::with(members, counter()).await
    }

    pub(super) async fn with(members: usize, library: Vec<u8>) -> Self {
        let lineage = Lineage(1);
        let genesis = Genesis { name: "test".into(), id: 1, lineage, config: Config::default() };
        let mut state = State::genesis(genesis, identity(0));
        for number in 1..members {
            let identity = identity(number);
            state.view.members.push(identity.id);
            state.view.ring.push(Rank(number as u16));
            state.members.insert(identity.id, MemberRecord { identity, leaving: None, mistaken: None });
        }
        let neighbours = Neighbours { library: Arc::new(library), ..Neighbours::default() };
        let mut world = Self {
            state,
            managers: Vec::new(),
            neighbours,
            serial: 0,
            events: Vec::new(),
            placed: Vec::new(),
        };
        for number in 0..members {
            world.add(identity(number)).await;
        }
        world
    }

    async fn add(&mut self, identity: Identity) {
        let directory = tempfile::tempdir().expect("a directory");
        let (reports, from) = mpsc::channel(64);
        let kernel = built("dvm-kernel", "cargo build -p dvm-kernel");
        let name = identity.name.clone();
        let (socket, desks) = (directory.path().join("none.sock"), Arc::default());
        let options = Options { name, kernel, reports, socket, desks };
        let to = start(Arc::new(self.neighbours.clone()), options);
        let (me, state) = (identity.id, Box::new(self.state.clone()));
        to.send(ToPlugins::Restored { me, state }).await.expect("the manager lives");
        self.neighbours.managers.lock().expect("no test panics with it").insert(me, to.clone());
        self.managers.push(Manager { identity, to, from, _directory: directory });
    }

    /// A view with one more member, which has the state as it is now.
    pub(super) async fn join(&mut self) {
        let joiner = identity(self.managers.len());
        self.add(joiner.clone()).await;
        let old = self.state.view.clone();
        let epoch = old.id.epoch.next();
        let mut view = View { id: ViewId { epoch, ..old.id }, ..old.clone() };
        view.ring.push(Rank(view.members.len() as u16));
        view.members.push(joiner.id);
        let proposal = Proposal {
            view,
            parent: old.id,
            joiners: vec![joiner],
            departures: Vec::new(),
            upto: vec![0; old.size()],
            delivered: self.state.index,
            time_ms: 0,
        };
        self.deliver(Content::View(Box::new(proposal))).await;
    }

    /// A view without the last member, whose manager is gone.
    pub(super) async fn lose(&mut self, name: &str) {
        let at = self.managers.iter().position(|manager| manager.identity.name == name).expect("a member");
        let Manager { identity, to, .. } = self.managers.remove(at);
        let (done, fenced) = oneshot::channel();
        to.send(ToPlugins::Fence { done }).await.expect("the manager lives");
        fenced.await.expect("its processes end");
        self.neighbours.managers.lock().expect("no test panics with it").remove(&identity.id);
        let old = self.state.view.clone();
        let epoch = old.id.epoch.next();
        let mut view = View { id: ViewId { epoch, ..old.id }, ..old.clone() };
        view.members.retain(|member| *member != identity.id);
        view.ring = (0..view.members.len()).map(|rank| Rank(rank as u16)).collect();
        let cause = FailureCause::LinkReset;
        let (noticed_by, last_heard_ms) = (view.members[0], None);
        let why = DepartureCause::Failed { cause, noticed_by, last_heard_ms };
        let proposal = Proposal {
            view,
            parent: old.id,
            joiners: Vec::new(),
            departures: vec![Departure { member: identity.id, why }],
            upto: vec![0; old.size()],
            delivered: self.state.index,
            time_ms: 0,
        };
        self.deliver(Content::View(Box::new(proposal))).await;
    }

    async fn deliver(&mut self, content: Content) -> HistoryIndex {
        self.serial += 1;
        let key = Key { lnum: dvm_core::ids::Lamport(self.serial), origin: Rank(0) };
        let effect = self.state.apply(key, Label::Confirmed, content);
        self.events.extend(effect.events.iter().map(|event| event.kind.clone()));
        self.placed.extend(effect.placed.iter().cloned());
        let first = effect.entry.first;
        let delivery = Delivery {
            entry: Arc::new(effect.entry),
            events: effect.events,
            applied: effect.applied,
            ended: effect.ended.map(Box::new),
            placed: effect.placed,
        };
        for manager in &self.managers {
            let delivery = Box::new(delivery.clone());
            manager.to.send(ToPlugins::Delivered(delivery)).await.expect("the manager lives");
        }
        for event in &delivery.events {
            let EventKind::InstancePromoted { plugin, member, fence, .. } = &event.kind else { continue };
            let promoted = self.managers.iter().find(|manager| manager.identity.name == *member);
            let (plugin, from) = (plugin.clone(), tokio::time::Instant::now());
            let primary = ToPlugins::Primary { plugin, fence: *fence, from };
            promoted.expect("a member").to.send(primary).await.expect("the manager lives");
        }
        first
    }

    pub(super) async fn submit(&mut self, change: Change) -> HistoryIndex {
        let submission = Submission { stamp: None, time_ms: 1_000, change };
        let body = Bytes::from(postcard::to_allocvec(&submission).expect("plain data"));
        let (origin, oseq) = (self.state.view.members[0], self.serial + 1);
        self.deliver(Content::Change { origin, oseq, digest: dvm_core::wire::digest(&body), body }).await
    }

    /// Runs a transaction at all members, by the rule, and orders its outcome.
    pub(super) async fn transact(
        &mut self,
        kind: TransactionKind,
        require: Require,
        dry_run: bool,
    ) -> Outcome {
        let id = TransactionId { originator: self.managers[0].identity.id, serial: self.serial + 1 };
        let transaction = Transaction { id, kind, require, dry_run };
        self.submit(Change::Transaction(Box::new(transaction.clone()))).await;
        for manager in &self.managers {
            let placed = self.state.open[&id].places.contains(&manager.identity.id);
            let (transaction, limit_ms) = (Box::new(transaction.clone()), 3_000);
            let execute = ToPlugins::Execute { transaction, placed, limit_ms };
            manager.to.send(execute).await.expect("the manager lives");
        }
        let mut results = BTreeMap::new();
        for at in 0..self.managers.len() {
            let member = self.managers[at].identity.id;
            loop {
                let told = timeout(LIMIT, self.managers[at].from.recv()).await.expect("in time");
                match told.expect("the manager lives") {
                    FromPlugins::Executed { transaction, result } if transaction == id => {
                        results.insert(member, result);
                        break;
                    }
                    FromPlugins::Executed { .. } => {}
                    FromPlugins::Report(report) => drop(self.submit(Change::Instance(report)).await),
                }
            }
        }
        let ok = results.values().filter(|result| result.verdict == dvm_core::wire::Verdict::Ok).count();
        let committed = require.is_met(ok, results.len());
        let outcome = Outcome { transaction: id, committed, results };
        self.submit(Change::Outcome(outcome.clone())).await;
        outcome
    }

    pub(super) async fn load(
        &mut self,
        config: &[(&str, &str)],
        more: impl FnOnce(&mut PluginSpec),
    ) -> Outcome {
        let config = config.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let library = Library {
            version: "0.1.0".into(),
            hash: *blake3::hash(&self.neighbours.library).as_bytes(),
            size: self.neighbours.library.len() as u64,
            payload: Payload::Msgpack,
        };
        let mut spec = PluginSpec {
            config,
            restart: RestartPolicy { times: 3, window_ms: 60_000 },
            deadline_ms: 3_000,
            stateless: false,
            ..PluginSpec::of("counter".into(), library)
        };
        more(&mut spec);
        self.transact(TransactionKind::Load(Box::new(spec)), Require::All, false).await
    }

    /// Upgrades to another library, which the member at `canary` tries first.
    pub(super) async fn upgrade(&mut self, library: Vec<u8>, canary: usize) -> Outcome {
        let (hash, size) = (*blake3::hash(&library).as_bytes(), library.len() as u64);
        *self.neighbours.next.lock().expect("no test panics with it") = Arc::new(library);
        let library = Library { version: "0.1.1".into(), hash, size, payload: Payload::Msgpack };
        let canary = Some(self.managers[canary].identity.id);
        let kind = TransactionKind::Upgrade { plugin: "counter".into(), library, canary };
        self.transact(kind, Require::All, false).await
    }

    pub(super) async fn command(&mut self, command: Value) -> HistoryIndex {
        let payload = from_json(Payload::Msgpack, &command).expect("JSON fits");
        self.submit(Change::Command { plugin: "counter".into(), payload }).await
    }

    pub(super) async fn reply(
        &self,
        at: usize,
        index: HistoryIndex,
    ) -> Result<Result<Value, String>, ReplyError> {
        let (answer, answered) = oneshot::channel();
        let ask = ToPlugins::Reply { plugin: "counter".into(), index, answer };
        self.managers[at].to.send(ask).await.expect("the manager lives");
        timeout(LIMIT, answered).await.expect("in time").expect("an answer")
    }

    pub(super) async fn query(&self, at: usize) -> Result<Result<Value, String>, ReplyError> {
        let (answer, answered) = oneshot::channel();
        let ask = ToPlugins::Query { plugin: "counter".into(), command: json!({"get": true}), answer };
        self.managers[at].to.send(ask).await.expect("the manager lives");
        timeout(LIMIT, answered).await.expect("in time").expect("an answer")
    }

    /// Orders what managers report until `done` holds.
    pub(super) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let waited = timeout(LIMIT, async {
            while !done(self) {
                self.reports().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        if waited.await.is_err() {
            panic!("it does not come to pass; events: {:?}", self.events);
        }
    }

    /// Orders what managers have reported.
    pub(super) async fn reports(&mut self) {
        for at in 0..self.managers.len() {
            if let Ok(FromPlugins::Report(report)) = self.managers[at].from.try_recv() {
                self.submit(Change::Instance(report)).await;
            }
        }
    }

    pub(super) async fn report(&mut self, at: usize) -> FromPlugins {
        let told = timeout(LIMIT, self.managers[at].from.recv()).await;
        told.expect("in time").expect("the manager lives")
    }

    pub(super) fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|kind| kind.word() == event).count()
    }

    /// Until what each member's instance has applied, or keeps, goes beyond an index.
    pub(super) async fn all_have_applied(&self, index: HistoryIndex) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        for manager in &self.managers {
            loop {
                let (answer, answered) = oneshot::channel();
                manager.to.send(ToPlugins::Figures { answer }).await.expect("the manager lives");
                let figures = answered.await.expect("an answer");
                if figures.instances.values().all(|one| one.applied > index.0) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "it does not come to pass");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    pub(super) async fn figures(&self, at: usize) -> Figures {
        let (answer, answered) = oneshot::channel();
        self.managers[at].to.send(ToPlugins::Figures { answer }).await.expect("the manager lives");
        answered.await.expect("an answer")
    }

    pub(super) async fn pid(&self, at: usize) -> u32 {
        self.figures(at).await.instances.values().next().map_or(0, |one| one.pid)
    }

    pub(super) async fn fence(&self, at: usize) {
        let (done, told) = oneshot::channel();
        self.managers[at].to.send(ToPlugins::Fence { done }).await.expect("the manager lives");
        timeout(LIMIT, told).await.expect("in time").expect("told");
    }

    /// No process of this world is left.
    pub(super) fn assert_nothing_left(&self, pids: &[u32]) {
        for pid in pids {
            assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
    }
}
