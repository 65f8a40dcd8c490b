//! What instances of this kernel's plug-ins ask of their host: each question and its answer, on this server's thread.
//!
//! Who asks is known by the number of its desk, which only its own process was told. What lasts (a timer, a followed
//! process) is a task of its own that ends with the desk.

use super::Server;
use super::requests::Ask;
use crate::peer::AskError;
use crate::plugins::from_json;
use crate::services::desk::{Desk, own_event};
use crate::services::keeper::{End, Order};
use crate::services::processes::{News, Progress, STREAMS};
use dvm_core::ids::{MemberId, Name};
use dvm_core::state::{Applied, Change};
use dvm_plugin_api::local::{Answer, Condition, Failure, FailureCode, Operation};
use dvm_plugin_api::service::{self, FOLLOWED_MAX, NOT_YET, TICK_MIN_MS, TIMERS_MAX, WATCHES_MAX};
use serde_json::{Value, json};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_local;
use tokio::time::sleep;

/// How long another member's kernel may take to take a message.
const MESSAGE: Duration = Duration::from_secs(5);

/// Pause before a member that could not be reached is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Longest timer.
const TIMER_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Server {
    /// Answers a plug-in instance.
    pub(super) async fn service(
        self: &Rc<Self>,
        ask: &Ask,
        desk: u64,
        asked: service::Ask,
    ) -> Result<Answer, Failure> {
        let desk = self.desks.find(desk).ok_or_else(|| {
            Failure::new(FailureCode::Denied, "whoever asks is no plug-in instance of this kernel")
        })?;
        if !asked.is_private() && !desk.is_serving() {
            return Err(Failure::new(FailureCode::Rejected, NOT_YET));
        }
        self.serve_instance(ask, &desk, asked).await.map(Answer::Service)
    }

    async fn serve_instance(
        self: &Rc<Self>,
        ask: &Ask,
        desk: &Arc<Desk>,
        asked: service::Ask,
    ) -> Result<Value, Failure> {
        use service::Ask as Asked;
        match asked {
            Asked::Call { plugin, command, query, .. } => {
                let answer = match query {
                    true => self.query(ask, plugin, command, false).await?,
                    false => self.call(ask, plugin, command).await?,
                };
                let Answer::Reply { reply, .. } = answer else { return Err(unexpected()) };
                return reply.map_err(|error| Failure::new(FailureCode::Failure, error));
            }
            Asked::Broadcast { command } => return self.broadcast(ask, desk.plugin(), &command).await,
            Asked::Send { member, body } => self.send(desk, &member, body).await?,
            Asked::Get { key } => return self.key(ask, key).await,
            Asked::Put { key, value, version } => return self.put(ask, key, value, version).await,
            Asked::Delete { key } => {
                self.state_transaction(ask, Vec::new(), vec![Operation::Delete { key }], Vec::new()).await?;
            }
            Asked::Watch { prefix } => {
                desk.watch(prefix)
                    .then_some(())
                    .ok_or_else(|| too_many(WATCHES_MAX, "prefixes are watched"))?;
            }
            Asked::Unwatch { prefix } => desk.unwatch(&prefix),
            Asked::Timer { name, after_ms, every_ms } => set_timer(desk, name, after_ms, every_ms)?,
            Asked::CancelTimer { name } => desk.cancel_timer(&name),
            Asked::Spawn { member, key, argv, env, cwd } => {
                self.spawn(desk, member, key, Order { argv, env, cwd }).await?;
            }
            Asked::Kill { member, key } => {
                let id = self.find_member(&member).await?;
                spawn_local(self.clone().kill_process(id, desk.plugin().clone(), key));
            }
            Asked::Done { index } => self.effects_done(desk, index)?,
            Asked::Undone => return self.effects_undone(desk).await,
            other => {
                let text = format!("this kernel does not know the service {other:?}");
                return Err(Failure::new(FailureCode::Usage, text).hint("update it"));
            }
        }
        Ok(Value::Null)
    }

    async fn broadcast(&self, ask: &Ask, plugin: &Name, command: &Value) -> Result<Value, Failure> {
        let payload = from_json(self.payload_of(Some(ask), plugin).await?, command)
            .map_err(|error| Failure::new(FailureCode::Usage, error))?;
        let (receipt, applied) =
            self.change(ask, Change::Command { plugin: plugin.clone(), payload }).await?;
        match applied {
            Applied::Command => Ok(json!({"index": receipt.index})),
            applied => Err(super::changes::strange(&applied)),
        }
    }

    async fn send(&self, desk: &Desk, member: &str, body: Value) -> Result<(), Failure> {
        if let Some(why) = service::message_refusal(&body) {
            let hint = "put it into a key, and send the key's name";
            return Err(Failure::new(FailureCode::Usage, why).hint(hint));
        }
        let id = self.find_member(member).await?;
        let me = self.identity.borrow().clone();
        let message = own_event("message", json!({"from": me.name, "body": body}));
        let taken = match id == me.id {
            true => self.desks.message(desk.plugin(), message),
            false => match self.peers.message(id, desk.plugin().clone(), message.to_vec(), MESSAGE).await {
                Ok(taken) => taken,
                Err(error) => {
                    let text = format!("whether {member} has the message cannot be known");
                    return Err(Failure::new(FailureCode::Unknown, text).cause(error.to_string()));
                }
            },
        };
        taken.map_err(|why| Failure::new(FailureCode::NotFound, format!("{member} {why}")))
    }

    async fn key(self: &Rc<Self>, ask: &Ask, key: String) -> Result<Value, Failure> {
        match self.state_get(key, false, ask).await {
            Ok(Answer::Key(key)) => Ok(json!({"value": key.value, "version": key.version})),
            Err(failure) if failure.code == FailureCode::NotFound => Ok(Value::Null),
            Err(failure) => Err(failure),
            Ok(_) => Err(unexpected()),
        }
    }

    async fn put(
        &self,
        ask: &Ask,
        key: String,
        value: Value,
        version: Option<u64>,
    ) -> Result<Value, Failure> {
        let condition = version.map(|version| match version {
            0 => Condition::Absent,
            version => Condition::Version(version),
        });
        let conditions = condition.into_iter().map(|condition| (key.clone(), condition)).collect();
        let put = vec![Operation::Put { key: key.clone(), value }];
        match self.state_transaction(ask, conditions, put, Vec::new()).await {
            Ok(Answer::Done { version, .. }) => Ok(json!({"version": version})),
            Err(failure) if failure.code == FailureCode::Rejected => Ok(Value::Null),
            Err(failure) => Err(failure),
            Ok(_) => Err(unexpected()),
        }
    }

    async fn spawn(
        self: &Rc<Self>,
        desk: &Arc<Desk>,
        member: Name,
        key: String,
        order: Order,
    ) -> Result<(), Failure> {
        if order.argv.is_empty() {
            return Err(Failure::new(FailureCode::Usage, service::NO_PROGRAM));
        }
        let id = self.find_member(&member).await?;
        let (server, to) = (self.clone(), desk.clone());
        let start = || {
            let told = Told { desk: to, member: member.clone(), key: key.clone() };
            spawn_local(server.follow_process(id, told, order)).abort_handle()
        };
        desk.follow((member.clone(), key.clone()), start)
            .then_some(())
            .ok_or_else(|| too_many(FOLLOWED_MAX, "processes are followed"))
    }

    /// Tells an instance of a process until it has ended, or its member has.
    async fn follow_process(self: Rc<Self>, member: MemberId, told: Told, order: Order) {
        let mut progress = Progress::default();
        loop {
            let here = self.identity.borrow().id == member;
            let over = match here {
                true => self.follow_here(&told, &order, &mut progress).await,
                false => self.follow_there(member, &told, &order, &mut progress).await.unwrap_or_else(|error| {
                    tracing::debug!(peer = %member, key = told.key, %error, "a process is asked for again");
                    false
                }),
            };
            if over || !here && !self.peers.has(member) {
                return;
            }
            sleep(AGAIN).await;
        }
    }

    async fn follow_there(
        &self,
        member: MemberId,
        told: &Told,
        order: &Order,
        progress: &mut Progress,
    ) -> Result<bool, AskError> {
        let (plugin, key) = (told.desk.plugin().clone(), told.key.clone());
        let mut process = self.peers.process(member, plugin, key, order.clone(), *progress).await?;
        while !told.tell(progress, process.next().await?).await {}
        Ok(true)
    }

    async fn follow_here(&self, told: &Told, order: &Order, progress: &mut Progress) -> bool {
        let mut follow = match self.follow_own(told.desk.plugin(), &told.key, order.clone(), *progress).await
        {
            Ok(follow) => follow,
            Err(why) => return told.tell(progress, News::Ended(End::Failed(why))).await,
        };
        while !told.tell(progress, follow.next().await).await {}
        true
    }

    /// Follows a process of this kernel, for an instance here or on another member.
    pub(crate) async fn follow_own(
        &self,
        plugin: &Name,
        key: &str,
        order: Order,
        progress: Progress,
    ) -> Result<crate::services::processes::Follow, String> {
        self.is_loaded(plugin).await?;
        let follow = self.processes.follow(plugin, key, order, progress)?;
        // What is unloaded from here on ends what it has started; what was unloaded meanwhile has ended it before.
        if let Err(why) = self.is_loaded(plugin).await {
            self.processes.end_all_but(|of| of != plugin).await;
            return Err(why);
        }
        Ok(follow)
    }

    async fn is_loaded(&self, plugin: &Name) -> Result<(), String> {
        let wanted = plugin.clone();
        match self.in_state(move |state| state.plugins.get(&wanted).is_some()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("no plug-in `{plugin}` is loaded here")),
            Err(failure) => Err(failure.message),
        }
    }

    async fn kill_process(self: Rc<Self>, member: MemberId, plugin: Name, key: String) {
        while self.identity.borrow().id != member {
            match self.peers.end_process(member, plugin.clone(), key.clone(), MESSAGE).await {
                Ok(()) => return,
                Err(_) if !self.peers.has(member) => return,
                Err(_) => sleep(AGAIN).await,
            }
        }
        self.processes.terminate(&plugin, &key);
    }
}

/// Whom to tell of a process.
struct Told {
    desk: Arc<Desk>,
    member: Name,
    key: String,
}

impl Told {
    /// Has the instance told; whether there is nothing more to tell.
    async fn tell(&self, progress: &mut Progress, news: News) -> bool {
        progress.note(&news);
        let mut fields = json!({"member": self.member, "key": self.key});
        let (kind, over) = match news {
            News::Quiet => return false,
            News::Started(pid) => {
                fields["pid"] = pid.into();
                ("process-started", false)
            }
            News::Output { stream, at, text, .. } => {
                fields["stream"] = STREAMS[usize::from(stream).min(1)].into();
                fields["at"] = at.into();
                fields["text"] = text.into();
                ("process-output", false)
            }
            News::Ended(end) => {
                match end {
                    End::Exit(code) => fields["exit_code"] = code.into(),
                    End::Signal(number) => fields["signal"] = crate::plugins::signal_name(number).into(),
                    End::Failed(why) => fields["error"] = why.into(),
                }
                ("process-exit", true)
            }
        };
        let gone = !self.desk.put(own_event(kind, fields)).await;
        over || gone
    }
}

fn set_timer(desk: &Arc<Desk>, name: String, after_ms: u64, every_ms: Option<u64>) -> Result<(), Failure> {
    let after = Duration::from_millis(after_ms).min(TIMER_MAX);
    let every = every_ms.map(|ms| Duration::from_millis(ms.max(TICK_MIN_MS)).min(TIMER_MAX));
    let (event, to) = (own_event("timer", json!({"name": name})), desk.clone());
    let tick = async move {
        sleep(after).await;
        to.offer(event.clone());
        let Some(every) = every else { return };
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            to.offer(event.clone());
        }
    };
    desk.set_timer(name, || spawn_local(tick).abort_handle())
        .then_some(())
        .ok_or_else(|| too_many(TIMERS_MAX, "timers are set"))
}

fn too_many(most: usize, what: &str) -> Failure {
    Failure::new(FailureCode::Rejected, service::too_many(most, what)).hint("end one first")
}

fn unexpected() -> Failure {
    Failure::new(FailureCode::Failure, "the answer fits no service")
}
