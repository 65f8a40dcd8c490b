//! Following the history: what the ring's task tells becomes what clients, subscribers and plug-ins hear.

use super::{Server, documents, journal};
use crate::clock::wall_ms;
use crate::feed::{Restored, Told};
use crate::plugins::{FromPlugins, ToPlugins};
use crate::security::draw_id;
use dvm_core::ids::{HistoryIndex, MemberId, Time};
use dvm_core::state::{
    Applied, Change, Content, InstanceReport, Library, State, Submission, Transaction, TransactionKind,
};
use dvm_core::view::View;
use dvm_core::{Answer, Delivery, Input, Refusal, Snapshot, Standing};
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// Messages to the plug-ins' manager that may wait; beyond it, entries wait in the feed.
const OUTBOX_MAX: usize = 64 << 10;

/// How long ending all plug-ins of an incarnation may take.
const FENCE: Duration = Duration::from_secs(10);

/// Pause before a report that could not be proposed is proposed again.
const AGAIN: Duration = Duration::from_millis(20);

/// How often it is looked whether anything waits that nobody was woken for.
const LOOK: Duration = Duration::from_millis(500);

/// Lost branches that are told of to whoever asks for all events.
const LOST_MAX: usize = 16;

/// Attempts to send a state copy.
const SNAPSHOT_TRIES: usize = 3;

impl Server {
    /// Follows until the member has left.
    pub(super) async fn follow(self: Rc<Self>) {
        while !self.ended.get() {
            let _ = timeout(LOOK, self.feed.added()).await;
            self.catch_up();
        }
    }

    /// Takes in all that was told so far.
    pub(super) fn catch_up(self: &Rc<Self>) {
        if self.outbox.borrow().len() > OUTBOX_MAX {
            return;
        }
        let told = self.feed.take();
        if told.is_empty() {
            return;
        }
        for told in told {
            self.on_told(told);
        }
        self.version.send_modify(|version| *version += 1);
    }

    fn on_told(self: &Rc<Self>, told: Told) {
        match told {
            Told::Delivered(delivery) => self.on_delivered(delivery),
            Told::Restored(restored) => self.on_restored(*restored),
            Told::Standing(standing) => self.on_standing(standing),
            Told::Suspected(member) => {
                let by = self.identity.borrow().name.clone();
                self.note("member-suspected", move |state| documents::suspected(state, member, &by));
            }
            Told::Primary { plugin, fence, from } => {
                self.roles.borrow_mut().primary(&plugin, fence, from);
                self.wake_readers();
                let from = self.clock.instant(from);
                self.tell_plugins(ToPlugins::Primary { plugin, fence, from });
            }
            Told::Lease { until } => {
                self.roles.borrow_mut().lease(until);
                self.wake_readers();
                self.tell_plugins(ToPlugins::Lease { until_us: self.clock.boot_us(until) });
            }
            Told::Execute { transaction, placed, limit_ms } => self.on_execute(transaction, placed, limit_ms),
            Told::Snapshot { to, snapshot } => {
                spawn_local(self.clone().send_snapshot(to, snapshot));
            }
            Told::Orphans { fork, entries, truncated } => {
                let lost = journal::Lost { fork, discarded: entries.len(), path: self.journal_path(fork) };
                *self.orphans.borrow_mut() = Some(lost.clone());
                spawn_local(self.clone().write_journal(lost, entries, truncated));
            }
        }
    }

    fn on_delivered(self: &Rc<Self>, delivery: Box<Delivery>) {
        match &delivery.entry.content {
            Content::View(proposal) => self.peers.set_ring(ring(&proposal.view)),
            Content::Change { body, .. } => {
                if let Applied::Ordered(id) = &delivery.applied {
                    self.opened.borrow_mut().insert(*id, self.clock.now());
                }
                if let Some(ended) = &delivery.ended {
                    self.opened.borrow_mut().remove(&ended.transaction.id);
                    self.on_unloaded(&ended.transaction, ended.committed);
                    spawn_local(self.clone().keep_libraries());
                }
                if delivery.events.iter().any(|event| event.kind.word() == "halting") {
                    self.halting.set(true);
                }
                // Settings are rare; only those that begin as one are decoded.
                if delivery.events.iter().any(|event| event.kind.word() == "config-changed") {
                    self.on_settings(body);
                }
            }
        }
        for event in &delivery.events {
            self.count_event(event.kind.word());
        }
        self.roles.borrow_mut().delivered(&delivery);
        let (entries, bytes) = self.kept.get();
        self.mirror.borrow_mut().push(&delivery, entries, bytes);
        // While there are no plug-ins, their manager need only know who the members are.
        if self.plugins_listen.borrow().is_some() || matches!(delivery.entry.content, Content::View(_)) {
            self.tell_plugins(ToPlugins::Delivered(delivery));
        }
    }

    /// What an unloaded plug-in has started goes with it.
    fn on_unloaded(self: &Rc<Self>, transaction: &Transaction, committed: bool) {
        let TransactionKind::Unload { plugin } = &transaction.kind else { return };
        if committed && !transaction.dry_run {
            let (server, plugin) = (self.clone(), plugin.clone());
            spawn_local(async move { server.processes.end_all_but(|of| *of != plugin).await });
        }
    }

    fn on_settings(&self, body: &[u8]) {
        let Ok(Submission { change: Change::Settings(list), .. }) = postcard::from_bytes::<Submission>(body)
        else {
            return;
        };
        for (key, value) in list {
            let (mut entries, mut bytes) = self.kept.get();
            match (key.as_str(), value.parse()) {
                ("history_entries", Ok(value)) => entries = value,
                ("history_bytes", Ok(value)) => bytes = value,
                ("silence_ms", Ok(value)) => self.shared.set_silence_ms(value),
                _ => {}
            }
            self.kept.set((entries, bytes));
        }
    }

    fn on_restored(self: &Rc<Self>, restored: Restored) {
        let Restored { me, state, events, entries } = restored;
        self.peers.set_ring(ring(&state.view));
        self.roles.borrow_mut().restored(&state);
        self.kept.set((state.config.history_entries, state.config.history_bytes));
        self.mirror.borrow_mut().reset(state.index, state.ancestry.clone(), events, entries);
        if let Some(lost) = self.orphans.borrow_mut().take() {
            let mut told = self.lost.borrow_mut();
            if told.len() == LOST_MAX {
                told.pop_front();
            }
            told.push_back(lost.told(&state));
            self.count_event("partition-lost");
        }
        let (server, loaded) = (self.clone(), state.plugins.clone());
        spawn_local(async move { server.processes.end_all_but(|of| loaded.get(of).is_some()).await });
        if !state.plugins.is_empty() || !state.open.is_empty() {
            self.plugins_listen.borrow_mut().get_or_insert_with(|| self.feed.listen());
        }
        spawn_local(self.clone().keep_libraries());
        self.tell_plugins(ToPlugins::Restored { me, state: Box::new(state) });
    }

    /// Keeps the libraries of all loaded plug-ins here, also of those that have no instance here: one may be placed here
    /// when other members are lost. What is missing is fetched, and what is needed no more is collected.
    async fn keep_libraries(self: Rc<Self>) {
        let libraries = |state: &State| -> Vec<_> {
            state.plugins.iter().map(|(_, plugin)| plugin.spec.library.clone()).collect()
        };
        // It is no member any more: it keeps what it has.
        let Ok(libraries) = self.in_state(libraries).await else { return };
        self.peers.blobs().need(libraries.iter().map(|library| library.hash).collect());
        for Library { hash, size, .. } in libraries {
            if let Err(missing) = self.peers.hold(hash, size).await {
                tracing::info!(why = missing.reason, "the library of a loaded plug-in is not here");
            }
        }
    }

    fn on_execute(&self, transaction: Box<Transaction>, placed: bool, limit_ms: u64) {
        let library = match &transaction.kind {
            TransactionKind::Load(spec) => Some(&spec.library),
            TransactionKind::Upgrade { library, .. } => Some(library),
            TransactionKind::Unload { .. } | TransactionKind::Configure { .. } => None,
        };
        if let Some(library) = library {
            self.peers.blobs().held_by(library.hash, transaction.id.originator);
        }
        self.plugins_listen.borrow_mut().get_or_insert_with(|| self.feed.listen());
        self.tell_plugins(ToPlugins::Execute { transaction, placed, limit_ms });
    }

    fn on_standing(self: &Rc<Self>, standing: Standing) {
        match standing {
            // When the DVM ends, all leave, and the last ones are not told that the others are missing.
            Standing::Blocked if !self.halting.get() && !self.blocked.replace(true) => {
                self.note("quorum-lost", |_| json!({}));
            }
            Standing::Normal if self.blocked.replace(false) => self.note("quorum-regained", |_| json!({})),
            Standing::Excluded { .. } => {
                self.roles.borrow_mut().step_down();
                spawn_local(self.clone().fence());
            }
            Standing::Left { by } => {
                self.left.set(Some(by));
                self.ended.set(true);
            }
            Standing::Refused { .. } => self.ended.set(true),
            _ => {}
        }
    }

    /// Tells subscribers something that has no place in the history.
    fn note(self: &Rc<Self>, kind: &'static str, more: impl FnOnce(&State) -> Value + 'static) {
        self.count_event(kind);
        let server = self.clone();
        spawn_local(async move {
            if let Some(state) = server.copy_state().await {
                let note = documents::note(&state, kind, more(&state), wall_ms());
                server.mirror.borrow_mut().note(note);
                server.wake_readers();
            }
        });
    }

    /// Those who wait for what this server is told look again.
    pub(super) fn wake_readers(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// A copy of the member's state.
    pub(crate) async fn copy_state(&self) -> Option<State> {
        self.ring.look(|member, _| member.state().cloned()).await.ok().flatten()
    }

    /// Ends everything of the excluded incarnation, then goes on as a new one.
    async fn fence(self: Rc<Self>) {
        let (done, fenced) = oneshot::channel();
        self.tell_plugins(ToPlugins::Fence { done });
        if timeout(FENCE, fenced).await.is_err() {
            // A process that cannot be killed hangs in the operating system and does no harm any more.
            tracing::error!("plug-ins of the excluded incarnation do not end");
        }
        self.processes.end_all_but(|_| false).await;
        let id = MemberId(draw_id());
        if let Err(error) = self.shared.vault.renew(id) {
            tracing::error!(%error, "no certificate for a new incarnation");
            std::process::abort();
        }
        self.identity.borrow_mut().id = id;
        let identity = self.identity.borrow().clone();
        tracing::info!(%id, "a new incarnation");
        // The ring's task has ended: there is nothing to go on with.
        let _ = self.ring.input(Input::Fenced { identity }).await;
    }

    async fn send_snapshot(self: Rc<Self>, to: MemberId, snapshot: Box<Snapshot>) {
        for attempt in 1..=SNAPSHOT_TRIES {
            match self.peers.send_snapshot(to, &snapshot).await {
                Ok(()) => return,
                Err(error) => tracing::info!(peer = %to, attempt, %error, "a state copy was not sent"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Proposes what the plug-ins' manager reports, in order, until it is in the history.
    pub(super) async fn report(self: Rc<Self>, mut reports: mpsc::Receiver<FromPlugins>) {
        while let Some(report) = reports.recv().await {
            let done = match report {
                FromPlugins::Executed { transaction, result } => {
                    self.ring.input(Input::Executed { transaction, result }).await
                }
                FromPlugins::Report(report) => self.propose(report).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn propose(&self, report: InstanceReport) -> Result<(), crate::ring::RingGone> {
        loop {
            match self.ring.submit(None, Change::Instance(report.clone())).await? {
                Answer::Done { .. } | Answer::Unknown { .. } | Answer::Refused(Refusal::NotMember) => {
                    return Ok(());
                }
                Answer::Refused(_) => sleep(AGAIN).await,
            }
            if report.member != self.identity.borrow().id {
                // It is of an incarnation that is out; nobody wants to know any more.
                return Ok(());
            }
        }
    }

    /// Waits for the next change of what was told, or for `until`.
    pub(super) async fn wait_for_news(self: &Rc<Self>, seen: &mut tokio::sync::watch::Receiver<u64>) {
        let _ = timeout(LOOK, seen.changed()).await;
        self.catch_up();
    }

    /// Waits until everything through `index` was told; false if it does not come to that.
    pub(super) async fn wait_through(self: &Rc<Self>, index: HistoryIndex, until: Time) -> bool {
        let _listening = self.feed.listen();
        let mut seen = self.version.subscribe();
        while self.mirror.borrow().index() < index {
            if self.ended.get() || self.clock.now() > until {
                return false;
            }
            self.wait_for_news(&mut seen).await;
        }
        true
    }
}

/// The members in the order of the ring.
fn ring(view: &View) -> Vec<MemberId> {
    view.ring.iter().map(|rank| view.member(*rank)).collect()
}
