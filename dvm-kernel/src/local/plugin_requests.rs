//! Requests about plug-ins: libraries, agreed changes, commands and queries.

use super::Server;
use super::changes::{accepted, strange};
use super::documents;
use super::requests::Ask;
use super::roles::{Acts, Answerer};
use crate::peer::{Blob, BlobError};
use crate::plugins::{ITS_OWN, NO_LIMITS, ReplyError, ToPlugins, from_json};
use crate::security::ticket::unhex;
use dvm_core::ids::{HistoryIndex, MemberId, Name, TransactionId, is_name};
use dvm_core::state::{
    Applied, Change, ConfigEdit, InstanceState, Library, Limits, Mode, Payload, Placement, PluginSpec,
    Require, RestartPolicy, Selector, SnapshotEvery, State, Transaction, TransactionKind,
};
use dvm_plugin_api::local::{
    Answer, Every, Failure, FailureCode, Load, Receipt, Request, ToClient, ToKernel, TransactionDoc,
    TransactionKind as Asked, decode, encode,
};
use serde_json::Value;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How long another member may take to answer for us.
const RELAY: Duration = Duration::from_secs(60);
/// Between two looks for a primary that replies.
const AGAIN: Duration = Duration::from_millis(2);
/// How long a primary's reply waits for its lease.
const LEASE_WAIT: Duration = Duration::from_secs(10);

/// What a plug-in says: its reply or its own error.
type Said = Result<Value, String>;

impl Server {
    pub(super) fn put_blob(
        &self,
        hash: &str,
        size: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<Answer, Failure> {
        let hash = parse_hash(hash)?;
        self.peers.blobs().put(hash, size, offset, data).map_err(|error| {
            let code = match &error {
                BlobError::TooLarge { .. } => FailureCode::Usage,
                // The parts before it went to a kernel that is gone.
                BlobError::Gap { .. } => FailureCode::NotFound,
                _ => FailureCode::Failure,
            };
            Failure::new(code, error.to_string())
        })?;
        Ok(accepted(None))
    }

    pub(super) async fn transact(
        &self,
        ask: &Ask,
        kind: Asked,
        require: Option<String>,
        dry_run: bool,
    ) -> Result<Answer, Failure> {
        let require = match require {
            Some(rule) => rule.parse().map_err(|error: dvm_core::state::NoRule| {
                Failure::new(FailureCode::Usage, error.to_string())
            })?,
            None => self.in_state(|state| state.config.require).await?,
        };
        if let Asked::Unload { plugin } | Asked::Configure { plugin, .. } | Asked::Upgrade { plugin, .. } =
            &kind
        {
            self.check_loaded(ask, plugin).await?;
        }
        // What is to be loaded stays here while other members may still fetch it.
        let (mut _held, mut on) = (None, Vec::new());
        let kind = match kind {
            Asked::Load(load) => {
                let spec = self.spec(*load)?;
                on.clone_from(&spec.on);
                if spec.placement != Placement::Application {
                    _held = Some(self.spread(ask, &spec.library).await?);
                }
                TransactionKind::Load(Box::new(spec))
            }
            Asked::Upgrade { plugin, version, payload, hash, size, canary } => {
                let payload = payload_format(&payload)?;
                let library = Library { version, hash: parse_hash(&hash)?, size, payload };
                let canary = self.canary(&plugin, canary).await?;
                _held = Some(self.spread(ask, &library).await?);
                TransactionKind::Upgrade { plugin, library, canary }
            }
            Asked::Unload { plugin } => TransactionKind::Unload { plugin },
            Asked::Configure { plugin, replace, keys } => {
                let keys = keys.into_iter().map(|(key, value)| (key, value.map(|value| value.to_string())));
                TransactionKind::Configure { plugin, edit: ConfigEdit { replace, keys: keys.collect() } }
            }
        };
        self.serial.set(self.serial.get() + 1);
        let originator = self.identity.borrow().id;
        let id = TransactionId { originator, serial: self.serial.get() };
        let change = Change::Transaction(Box::new(Transaction { id, kind, require, dry_run }));
        let changed = match ask.deadline {
            None => self.change(ask, change).await,
            Some(deadline) => timeout_at(deadline, self.change(ask, change)).await.unwrap_or_else(|_| {
                Err(Failure::new(FailureCode::Unknown, format!("transaction {id} has not ended in time"))
                    .hint(format!("`dvm history --transaction {id}` shows its end")))
            }),
        };
        let (receipt, applied) = match changed {
            Ok(changed) => changed,
            Err(failure) if failure.code == FailureCode::NotFound && !on.is_empty() => {
                return Err(self.nowhere(failure, on).await?);
            }
            Err(failure) => return Err(failure),
        };
        let Applied::Ended { transaction, committed, dry_run, require, results } = applied else {
            return self.ordered_before(applied, receipt, require, dry_run).await;
        };
        Ok(Answer::Transaction(Box::new(TransactionDoc {
            transaction: transaction.to_string(),
            outcome: if committed { "committed" } else { "rejected" }.into(),
            dry_run,
            require: require.to_string(),
            receipt,
            results: documents::results(&results),
        })))
    }

    /// A load that no member may have is told with what was asked for and who is there.
    async fn nowhere(&self, failure: Failure, on: Vec<Selector>) -> Result<Failure, Failure> {
        let names = self.in_state(|state| {
            let members = state.view.members.iter().map(|member| state.name_of(*member));
            members.collect::<Vec<_>>()
        });
        let nobody = on.iter().map(|selector| match selector {
            Selector::Name(name) => format!("no member `{name}`"),
            Selector::Tag(tag, value) => format!("no member with the tag `{tag}={value}`"),
        });
        let (nobody, names) = (nobody.collect::<Vec<_>>().join(", "), names.await?.join(", "));
        Ok(failure.cause(nobody).hint(format!("members are {names}; `dvm members` shows their tags")))
    }

    /// A repeat of a request whose transaction was ordered before, through whichever member: how it ended is in the
    /// history.
    async fn ordered_before(
        &self,
        applied: Applied,
        receipt: Receipt,
        require: Require,
        dry_run: bool,
    ) -> Result<Answer, Failure> {
        let Applied::Ordered(id) = applied else { return Err(strange(&applied)) };
        let state = self.in_state(State::clone).await?;
        let outcome = self.mirror.borrow().entries().rev().find_map(|entry| {
            let entry = documents::entry(entry, &state);
            (entry.kind == "outcome" && entry.transaction == Some(id.to_string())).then_some(entry)
        });
        let word = match &outcome {
            Some(entry) if entry.detail["committed"] == true => "committed",
            Some(_) => "rejected",
            None => "unknown",
        };
        let results = outcome.and_then(|entry| serde_json::from_value(entry.detail["results"].clone()).ok());
        Ok(Answer::Transaction(Box::new(TransactionDoc {
            transaction: id.to_string(),
            outcome: word.into(),
            dry_run,
            require: require.to_string(),
            receipt,
            results: results.unwrap_or_default(),
        })))
    }

    /// Has all members hold a library that was sent before, ahead of what is ordered about it.
    async fn spread(&self, ask: &Ask, library: &Library) -> Result<Arc<Blob>, Failure> {
        let limit_ms = self.in_state(|state| state.config.exec_limit_ms).await?;
        let sent = self.peers.blobs().whole(&library.hash).filter(|blob| blob.size() == library.size);
        let blob = sent.ok_or_else(|| {
            Failure::new(FailureCode::NotFound, "this kernel does not have the library").hint("send it again")
        })?;
        self.peers.spread(library.hash, library.size, ask.left(Duration::from_millis(limit_ms))).await;
        Ok(blob)
    }

    /// The member that tries an upgrade first.
    async fn canary(&self, plugin: &str, asked: Option<String>) -> Result<Option<MemberId>, Failure> {
        let (name, wanted) = (plugin.to_owned(), asked.clone());
        let found = self.in_state(move |state| {
            let plugin = state.plugins.get(&name)?;
            let running = plugin.instances.iter().filter(|(_, i)| i.state == InstanceState::Running);
            let first = running.clone().min_by_key(|(_, instance)| instance.rank).map(|(member, _)| *member);
            match wanted {
                None => plugin.primary.or(first),
                Some(wanted) => {
                    let named = |member: &MemberId| state.name_of(*member) == wanted;
                    running.map(|(member, _)| *member).find(named)
                }
            }
        });
        let found = found.await?;
        match asked {
            Some(name) if found.is_none() => {
                let text = format!("no instance of `{plugin}` runs on `{name}`");
                Err(Failure::new(FailureCode::NotFound, text).hint(format!("see `dvm plugin show {plugin}`")))
            }
            _ => Ok(found),
        }
    }

    fn spec(&self, load: Load) -> Result<PluginSpec, Failure> {
        let usage = |text: String| Failure::new(FailureCode::Usage, text);
        if !is_name(&load.name) {
            return Err(usage(format!(
                "`{}` cannot be a plug-in's name: it begins with a letter, and letters, digits, `-`, `_`, `.` follow",
                load.name
            )));
        }
        let mode = match load.mode.as_str() {
            "parallel" => Mode::Parallel,
            "hot" => Mode::Hot,
            "warm" => Mode::Warm,
            "single" => Mode::Single,
            mode => return Err(usage(format!("`{mode}` is no mode: parallel, hot, warm or single"))),
        };
        let instances = match (mode, load.instances) {
            (Mode::Parallel, None) => 1,
            (Mode::Parallel, Some(_)) => {
                let text = "a parallel plug-in has an instance on every member";
                return Err(usage(text.into()).hint("choose the members by --on, or another --mode"));
            }
            (Mode::Single, None | Some(1)) => 1,
            (Mode::Single, Some(_)) => {
                return Err(
                    usage("a single plug-in has one instance".into()).hint("with standbys it is hot or warm")
                );
            }
            (Mode::Hot | Mode::Warm, Some(0)) => {
                return Err(usage("--instances counts the primary; it is at least 1".into()));
            }
            (Mode::Hot | Mode::Warm, instances) => instances.unwrap_or(2),
        };
        let placement = match load.placement.as_str() {
            "process" => Placement::Process,
            "kernel" if load.memory.is_some() || load.cpu_ms.is_some() => {
                let hint = "leave --limit out, or load it with --placement process";
                return Err(usage(NO_LIMITS.into()).hint(hint));
            }
            "kernel" => Placement::Kernel,
            "application" if load.memory.is_some() || load.cpu_ms.is_some() => {
                return Err(usage(ITS_OWN.into()).hint("leave --limit out"));
            }
            "application" => Placement::Application,
            placement => return Err(usage(format!("`{placement}` is no placement"))),
        };
        let on = load.on.into_iter().map(|term| match term.split_once('=') {
            Some((tag, value)) => Selector::Tag(tag.into(), value.into()),
            None => Selector::Name(term),
        });
        let snapshot_every = match load.snapshot_every {
            Every::Items(items) => SnapshotEvery::Items(items.max(1)),
            Every::Ms(ms) => SnapshotEvery::Ms(ms.max(1)),
        };
        let payload = payload_format(&load.payload)?;
        // An application brings its code itself.
        let hash = match placement {
            Placement::Application => [0; 32],
            Placement::Process | Placement::Kernel => parse_hash(&load.hash)?,
        };
        let library = Library { version: load.version, hash, size: load.size, payload };
        Ok(PluginSpec {
            mode,
            placement,
            config: load.config.into_iter().map(|(key, value)| (key, value.to_string())).collect(),
            restart: RestartPolicy { times: load.restart_times, window_ms: load.restart_window_ms },
            deadline_ms: load.deadline_ms,
            stateless: load.stateless,
            instances,
            on: on.collect(),
            only_confirmed: load.only_confirmed,
            snapshot_every,
            limits: Limits { memory: load.memory, cpu_ms: load.cpu_ms },
            ..PluginSpec::of(load.name, library)
        })
    }

    pub(super) async fn call(
        self: &Rc<Self>,
        ask: &Ask,
        plugin: String,
        command: Value,
    ) -> Result<Answer, Failure> {
        let payload = from_json(self.payload_of(Some(ask), &plugin).await?, &command)
            .map_err(|error| Failure::new(FailureCode::Usage, error))?;
        let change = Change::Command { plugin: plugin.clone(), payload };
        let (receipt, applied) = self.change(ask, change).await?;
        let Applied::Command = applied else { return Err(strange(&applied)) };
        let index = HistoryIndex(receipt.index);
        self.catch_up();
        let answerer = self.roles.borrow().answerer(&plugin);
        let (reply, member) = match answerer {
            Answerer::Primary(_) => self.primary_reply(ask, plugin, index).await?,
            Answerer::Anybody => match self.own_reply(plugin.clone(), index).await {
                Ok(said) => (said, self.identity.borrow().name.clone()),
                Err(error) => self.reply_elsewhere(ask, plugin, index, error).await?,
            },
        };
        Ok(Answer::Reply { reply, receipt: Some(receipt), member })
    }

    /// The reply of the primary. It is waited for while there is none, or the one there is may not act.
    async fn primary_reply(
        self: &Rc<Self>,
        ask: &Ask,
        plugin: Name,
        index: HistoryIndex,
    ) -> Result<(Said, Name), Failure> {
        let deadline = Instant::now() + ask.left(RELAY);
        let mut seen = self.version.subscribe();
        while Instant::now() < deadline {
            seen.borrow_and_update();
            let answerer = self.roles.borrow().answerer(&plugin);
            let primary = match &answerer {
                Answerer::Primary(primary) => primary.clone(),
                Answerer::Anybody => return Err(not_loaded(&plugin)),
            };
            let asked = async {
                let Some(name) = primary else { return std::future::pending().await };
                let said = if name == self.identity.borrow().name {
                    self.own_reply(plugin.clone(), index).await.ok()
                } else {
                    self.reply_of(&name, &plugin, index, ask.left(RELAY)).await
                };
                said.map(|said| (said, name))
            };
            let changed = async {
                while seen.changed().await.is_ok() && self.roles.borrow().answerer(&plugin) == answerer {}
            };
            tokio::select! {
                said = asked => match said {
                    Some(said) => return Ok(said),
                    None => sleep(AGAIN).await,
                },
                () = changed => {}
                () = sleep_until(deadline) => {}
            }
        }
        Err(Failure::new(
            FailureCode::Unknown,
            format!("the command is in the history at index {}; no primary of `{plugin}` has replied yet", index.0),
        )
        .hint(format!(
            "see `dvm plugin show {plugin}`; the same call with the same --id returns the reply when there is one"
        )))
    }

    async fn reply_of(
        &self,
        name: &Name,
        plugin: &Name,
        index: HistoryIndex,
        limit: Duration,
    ) -> Option<Said> {
        let wanted = name.clone();
        let look = move |state: &State| {
            state.members.values().find(|m| m.identity.name == wanted).map(|m| m.identity.id)
        };
        let member = self.in_state(look).await.ok()??;
        match self.peers.plugin_reply(member, plugin.clone(), index, limit).await {
            Ok(said) => said.map(|said| said.map(|text| serde_json::from_str(&text).unwrap_or(Value::Null))),
            Err(error) => {
                tracing::info!(peer = %member, %error, "no reply from there");
                None
            }
        }
    }

    /// Whether this member's instance may answer: it is no primary's to do, or its own as the primary under its lease.
    async fn may_answer(&self, plugin: &Name) -> bool {
        let deadline = Instant::now() + LEASE_WAIT;
        let mut seen = self.version.subscribe();
        while Instant::now() < deadline {
            seen.borrow_and_update();
            let (anybody, mine) = {
                let roles = self.roles.borrow();
                (roles.answerer(plugin) == Answerer::Anybody, roles.mine(plugin, self.clock.now()))
            };
            let look = match mine {
                _ if anybody => return true,
                None => return false,
                Some(Acts::Now) => return true,
                Some(Acts::From(from)) => self.clock.instant(from).min(deadline),
                Some(Acts::WithALease) => deadline,
            };
            // A renewed lease and another role are told; that its time has come is not.
            let _ = timeout_at(look, seen.changed()).await;
        }
        false
    }

    /// The reply of this kernel's own instance to a command.
    pub(crate) async fn own_reply(
        self: &Rc<Self>,
        plugin: Name,
        index: HistoryIndex,
    ) -> Result<Said, ReplyError> {
        let said = self.instance_reply(plugin.clone(), index).await?;
        // A lease that ended meanwhile is waited for: what is told was the primary's word when it was told.
        match self.may_answer(&plugin).await {
            true => Ok(said),
            false => {
                let why = "it is not the primary, or its lease is over".into();
                Err(ReplyError::NotRunning { plugin, why })
            }
        }
    }

    async fn instance_reply(self: &Rc<Self>, plugin: Name, index: HistoryIndex) -> Result<Said, ReplyError> {
        self.catch_up();
        let (answer, answered) = oneshot::channel();
        let asked = plugin.clone();
        self.tell_plugins(ToPlugins::Reply { plugin, index, answer });
        let gone = ReplyError::NotRunning { plugin: asked, why: "the manager of plug-ins has ended".into() };
        answered.await.unwrap_or(Err(gone))
    }

    /// The reply of another member's instance: of a parallel plug-in all reply the same.
    async fn reply_elsewhere(
        &self,
        ask: &Ask,
        plugin: Name,
        index: HistoryIndex,
        own: ReplyError,
    ) -> Result<(Said, Name), Failure> {
        for (_, name) in self.running_elsewhere(&plugin).await? {
            if let Some(said) = self.reply_of(&name, &plugin, index, ask.left(RELAY)).await {
                return Ok((said, name));
            }
        }
        Err(Failure::new(
            FailureCode::Failure,
            format!("the command is in the history at index {index}; no reply is there"),
        )
        .cause(own.to_string())
        .hint(format!(
            "see `dvm plugin show {plugin}`; one that has failed starts again with `dvm plugin upgrade {plugin} FILE`, and applies it"
        )))
    }

    pub(super) async fn query(
        self: &Rc<Self>,
        ask: &Ask,
        plugin: String,
        command: Value,
        fresh: bool,
    ) -> Result<Answer, Failure> {
        self.payload_of(fresh.then_some(ask), &plugin).await?;
        if fresh {
            let unstamped = Ask { stamp: None, ..*ask };
            self.change(&unstamped, Change::Noop).await?;
        }
        self.catch_up();
        let (answer, answered) = oneshot::channel();
        self.tell_plugins(ToPlugins::Query { plugin: plugin.clone(), command: command.clone(), answer });
        let own = match answered.await {
            Ok(Ok(reply)) => {
                let member = self.identity.borrow().name.clone();
                return Ok(Answer::Reply { reply, receipt: None, member });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the manager of plug-ins has ended".to_owned(),
        };
        if !ask.relayed {
            for (member, _) in self.running_elsewhere(&plugin).await? {
                let limit = ask.left(RELAY);
                let request =
                    Request::Call { plugin: plugin.clone(), command: command.clone(), query: true, fresh };
                let timeout_ms = Some(limit.as_millis() as u64);
                let message = encode(&ToKernel { id: 1, stamp: None, timeout_ms, seen: None, request });
                let relayed = self.peers.relay(member, message, limit).await;
                if let Ok(Ok(ToClient { answer: Ok(answer), .. })) = relayed.map(|bytes| decode(&bytes)) {
                    return Ok(answer);
                }
            }
        }
        Err(Failure::new(FailureCode::Failure, format!("no instance of `{plugin}` answers")).cause(own))
    }

    /// The payload format of a plug-in. With `ask`, one that this member does not know is looked for again behind all
    /// that was acknowledged before.
    pub(super) async fn payload_of(&self, ask: Option<&Ask>, plugin: &str) -> Result<Payload, Failure> {
        let wanted = plugin.to_owned();
        let look = move |state: &State| state.plugins.get(&wanted).map(|plugin| plugin.spec.library.payload);
        let found = match ask {
            Some(ask) => self.look_twice(ask, look).await?,
            None => self.in_state(look).await?,
        };
        found.ok_or_else(|| not_loaded(plugin))
    }

    /// Refuses what is about a plug-in that is not there, so that no transaction is ordered for it. One that is being
    /// loaded is there, and so is one that a repeated request is about: the order tells what becomes of those.
    async fn check_loaded(&self, ask: &Ask, plugin: &str) -> Result<(), Failure> {
        let (wanted, stamp) = (plugin.to_owned(), ask.stamp.clone());
        let look = move |state: &State| {
            let loaded = state.plugins.get(&wanted).is_some();
            let open = state.open.values().any(|open| *open.transaction.kind.plugin() == wanted);
            let session =
                stamp.as_ref().and_then(|stamp| state.sessions.get(&stamp.session).zip(Some(stamp)));
            let repeated = session.is_some_and(|(session, stamp)| stamp.seq <= session.last);
            (loaded || open || repeated).then_some(())
        };
        self.look_twice(ask, look).await?.ok_or_else(|| not_loaded(plugin))
    }

    /// Looks for something in the state, and if it is not there, again behind an empty entry: this member may lag behind
    /// what others have acknowledged.
    async fn look_twice<R: Send + 'static>(
        &self,
        ask: &Ask,
        look: impl Fn(&State) -> Option<R> + Clone + Send + 'static,
    ) -> Result<Option<R>, Failure> {
        if let Some(found) = self.in_state(look.clone()).await? {
            return Ok(Some(found));
        }
        let unstamped = Ask { stamp: None, ..*ask };
        self.change(&unstamped, Change::Noop).await?;
        self.in_state(look).await
    }

    /// Other members with a running instance.
    async fn running_elsewhere(&self, plugin: &str) -> Result<Vec<(MemberId, Name)>, Failure> {
        let (wanted, me) = (plugin.to_owned(), self.identity.borrow().id);
        self.in_state(move |state| {
            let instances =
                state.plugins.get(&wanted).map(|plugin| plugin.instances.clone()).unwrap_or_default();
            let running = instances
                .into_iter()
                .filter(|(member, instance)| *member != me && instance.state == InstanceState::Running);
            running.map(|(member, _)| (member, state.name_of(member))).collect()
        })
        .await
    }
}

fn payload_format(text: &str) -> Result<Payload, Failure> {
    match text {
        "json" => Ok(Payload::Json),
        "msgpack" => Ok(Payload::Msgpack),
        "bytes" => Ok(Payload::Bytes),
        _ => Err(Failure::new(FailureCode::Usage, format!("`{text}` is no payload format"))),
    }
}

fn not_loaded(plugin: &str) -> Failure {
    Failure::new(FailureCode::NotFound, format!("no plug-in `{plugin}` is loaded")).hint("see `dvm plugins`")
}

fn parse_hash(text: &str) -> Result<[u8; 32], Failure> {
    unhex(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::new(FailureCode::Usage, format!("`{text}` is no BLAKE3 hash")))
}
