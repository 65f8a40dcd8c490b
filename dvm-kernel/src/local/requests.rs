//! Each request and its answer; reads are answered here, the rest by the siblings of this module.

use super::Server;
use super::changes::accepted;
use super::connections::Outgoing;
use super::documents::{self, Beside, Place, Seen};
use crate::plugins::{Figures, ToPlugins};
use crate::ring::RingGone;
use crate::security::fill_random;
use crate::security::ticket::Ticket;
use dvm_core::ids::{MemberId, Time};
use dvm_core::state::{Change, KeyRecord, State};
use dvm_core::wire::Identity;
use dvm_core::{Config, Member, Phase};
use dvm_plugin_api::local::{
    Answer, Chaos, FRAME_MAX, Failure, FailureCode, HistoryEntry, KeyDoc, LOCAL_VERSION, Request, Stamp,
    ToClient, ToKernel, decode, encode,
};
use serde_json::Value;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Bytes of entries in one answer, about.
const LIST_MAX: usize = FRAME_MAX * 3 / 4;

/// How long a client waits at most for a kernel that is behind what it saw elsewhere, and how often it is looked.
const REACH: Duration = Duration::from_secs(10);
const BEHIND: Duration = Duration::from_millis(1);

/// How long the plug-ins' manager is asked for figures of a status.
const FIGURES: Duration = Duration::from_millis(50);

/// Longest measurement.
const BENCH_MAX_MS: u64 = 600_000;

/// What goes with a request.
pub(super) struct Ask {
    pub(super) stamp: Option<Stamp>,
    /// When its answer is no longer waited for.
    pub(super) deadline: Option<Instant>,
    /// Another kernel asks on behalf of its client, and is not sent on again.
    pub(super) relayed: bool,
}

impl Ask {
    /// What is left of the time, at most `most`.
    pub(super) fn left(&self, most: Duration) -> Duration {
        let left = self.deadline.map_or(most, |deadline| deadline.saturating_duration_since(Instant::now()));
        left.min(most)
    }
}

impl From<RingGone> for Failure {
    fn from(gone: RingGone) -> Self {
        Self::new(FailureCode::NoDvm, gone.to_string())
    }
}

impl Server {
    /// Serves one request of a client.
    pub(super) async fn serve_request(self: &Rc<Self>, message: ToKernel, outgoing: &Outgoing) {
        let id = message.id;
        self.shared.tally.questions.add(1);
        let _unfinished = Counted::one(&self.unfinished);
        if let Request::Subscribe { since, kinds, follow, key_prefix } = message.request {
            let _subscriber = Counted::one(&self.subscribers);
            if let Some(answer) = self.subscribe(id, since, kinds, follow, key_prefix, outgoing).await {
                let _ = outgoing.send(ToClient { id, answer }).await;
            }
            return;
        }
        let answer = self.answer(message, false).await;
        // A client that is gone needs no answer.
        let _ = outgoing.send(ToClient { id, answer }).await;
    }

    /// Answers a request that another kernel sends on, in the local protocol's bytes.
    pub(crate) async fn answer_relayed(self: &Rc<Self>, message: &[u8]) -> Vec<u8> {
        let (id, answer) = match decode::<ToKernel>(message) {
            Ok(message) => (message.id, self.answer(message, true).await),
            Err(error) => (0, Err(Failure::new(FailureCode::Usage, error.to_string()))),
        };
        encode(&ToClient { id, answer })
    }

    async fn answer(self: &Rc<Self>, message: ToKernel, relayed: bool) -> Result<Answer, Failure> {
        let deadline = message.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let ask = Ask { stamp: message.stamp, deadline, relayed };
        let outside = matches!(self.feed.phase(), Phase::Joining | Phase::Excluded | Phase::Left);
        let heals = message.request == Request::Chaos(Chaos::Heal);
        if self.ended.get() || outside && !heals {
            let text = format!("the kernel of {} is not a member now", self.identity.borrow().name);
            return Err(Failure::new(FailureCode::NoDvm, text));
        }
        let answer = async {
            if let Some(seen) = &message.seen {
                self.reach(seen).await?;
            }
            self.dispatch(message.request, &ask).await
        };
        let Some(deadline) = deadline else { return answer.await };
        timeout_at(deadline, answer).await.unwrap_or_else(|_| {
            let ms = message.timeout_ms.unwrap_or_default();
            Err(Failure::new(FailureCode::Unknown, format!("not done within {ms} ms; it may still be"))
                .hint("`dvm status` shows what the DVM waits for; --timeout gives it longer"))
        })
    }

    /// Waits until this kernel has what a client was told elsewhere, as the receipt's cursor says.
    async fn reach(self: &Rc<Self>, cursor: &str) -> Result<(), Failure> {
        let place = Place::parse(cursor).ok_or_else(|| {
            Failure::new(FailureCode::Usage, format!("`{cursor}` is no cursor of a receipt"))
        })?;
        let until = Instant::now() + REACH;
        loop {
            self.catch_up();
            let (has, index) = (self.mirror.borrow().has(place), self.mirror.borrow().index());
            if !has {
                let text =
                    "the branch of the history that this client was last told of was lost in a partition";
                return Err(Failure::new(FailureCode::PartitionLost, text)
                    .cause("another branch stands, and nothing was done")
                    .hint("read your keys anew, then repeat; `dvm history --orphans` shows what was lost"));
            }
            if index >= place.index {
                return Ok(());
            }
            if Instant::now() >= until {
                let name = &self.identity.borrow().name;
                let text =
                    format!("{name} is at index {index}, behind what this client saw ({})", place.index);
                return Err(Failure::new(FailureCode::Failure, text).hint("ask another member: --member"));
            }
            sleep(BEHIND).await;
        }
    }

    async fn dispatch(self: &Rc<Self>, request: Request, ask: &Ask) -> Result<Answer, Failure> {
        match request {
            Request::Hello { .. } => Ok(Answer::Hello {
                version: LOCAL_VERSION,
                member: self.identity.borrow().name.clone(),
                dvm: self.dvm.clone(),
            }),
            Request::Status => self.status().await,
            Request::StateGet { key, fresh } => self.state_get(key, fresh, ask).await,
            Request::StateList { prefix, after } => self.state_list(prefix, after).await,
            Request::StateTransaction { conditions, then, otherwise } => {
                self.state_transaction(ask, conditions, then, otherwise).await
            }
            Request::Settings => self.settings().await,
            Request::Configure { changes, member } => self.configure(ask, changes, member).await,
            Request::Subscribe { .. } => {
                Err(Failure::new(FailureCode::Usage, "a subscription needs a connection of its own"))
            }
            Request::History { from, to, transaction } => self.history(from, to, transaction).await,
            Request::Verify => self.verify(ask).await,
            Request::Call { plugin, command, query: false, .. } => self.call(ask, plugin, command).await,
            Request::Call { plugin, command, fresh, .. } => self.query(ask, plugin, command, fresh).await,
            Request::Service { desk, ask: asked } => self.service(ask, desk, asked).await,
            Request::PutBlob { hash, size, offset, data } => self.put_blob(&hash, size, offset, &data),
            Request::Transact { kind, require, dry_run } => self.transact(ask, kind, require, dry_run).await,
            Request::Ticket => self.ticket(),
            Request::TicketOf { member } => self.ticket_of(&member, ask).await,
            Request::Remove { member, force } => self.remove(ask, &member, force).await,
            Request::Halt => self.halt(ask).await,
            Request::Promote => self.promote(ask).await,
            Request::Chaos(chaos) => self.chaos(chaos).await,
            Request::Bench { what, size, duration_ms, in_flight } => {
                self.bench(&what, size, duration_ms, in_flight).await
            }
            Request::Watch { times } => {
                self.ring.watch(times).await?;
                Ok(accepted(None))
            }
            Request::Attach { .. } => Err(Failure::new(
                FailureCode::Usage,
                "attaching is for the first request of a connection here",
            )),
            Request::Watched => Ok(self.ring.watched().await?),
            Request::Metrics => self.metrics().await,
        }
    }

    /// Looks something up in the state.
    pub(super) async fn in_state<R: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let found = self.ring.look(|member, _| member.state().map(look)).await?;
        found.ok_or_else(|| Failure::new(FailureCode::NoDvm, "this kernel is not a member"))
    }

    async fn status(self: &Rc<Self>) -> Result<Answer, Failure> {
        self.catch_up();
        let seen = self.ring.look(see).await?;
        let seen = seen.ok_or_else(|| Failure::new(FailureCode::NoDvm, "this kernel is not a member"))?;
        let figures = self.figures().await;
        let now = self.clock.now();
        let beside = Beside {
            uri: self.place.uri(),
            since_ms: self.opened.borrow().iter().map(|(id, since)| (*id, now.ms_since(*since))).collect(),
            figures,
        };
        Ok(Answer::Status(Box::new(documents::status(&seen, &beside))))
    }

    /// What this member alone knows of its plug-ins, as far as it is to be had at once.
    pub(super) async fn figures(&self) -> Figures {
        let (answer, answered) = oneshot::channel();
        self.tell_plugins(ToPlugins::Figures { answer });
        timeout(FIGURES, answered).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    pub(super) async fn state_get(
        self: &Rc<Self>,
        key: String,
        fresh: bool,
        ask: &Ask,
    ) -> Result<Answer, Failure> {
        if fresh {
            let unstamped = Ask { stamp: None, ..*ask };
            self.change(&unstamped, Change::Noop).await?;
        }
        let wanted = key.clone();
        let (record, index, label) = self
            .in_state(move |state| (state.keys.get(&wanted).cloned(), state.index, state.view.label))
            .await?;
        let Some(KeyRecord { value, version }) = record else {
            return Err(Failure::new(FailureCode::NotFound, format!("no key `{key}`"))
                .hint("`dvm state list` prints those that are there"));
        };
        let (value, version) = (json_of(&value), version.0);
        Ok(Answer::Key(KeyDoc { key, value, version, index: index.0, label: label.word().into() }))
    }

    async fn state_list(&self, prefix: String, after: Option<String>) -> Result<Answer, Failure> {
        let (keys, index) = self.in_state(|state| (state.keys.clone(), state.index.0)).await?;
        let from = after.as_deref().unwrap_or_default().max(prefix.as_str());
        let within = keys.range_from(from).take_while(|(key, _)| key.starts_with(&prefix));
        let within = within.skip_while(|(key, _)| after.as_ref().is_some_and(|after| *key <= after));
        let document = |(key, record): (&String, &KeyRecord)| KeyDoc {
            key: key.clone(),
            value: json_of(&record.value),
            version: record.version.0,
            index,
            label: String::new(),
        };
        Ok(Answer::Keys(fill(within.map(document))))
    }

    async fn settings(&self) -> Result<Answer, Failure> {
        let config = self.in_state(|state| state.config.clone()).await?;
        Ok(Answer::Settings(config.list().into_iter().map(|(key, value)| (key.into(), value)).collect()))
    }

    /// Kept entries: with a first index from there on, else the latest, as many as one answer holds.
    async fn history(
        self: &Rc<Self>,
        from: Option<u64>,
        to: Option<u64>,
        transaction: Option<String>,
    ) -> Result<Answer, Failure> {
        let state = self.in_state(State::clone).await?;
        self.catch_up();
        let mirror = self.mirror.borrow();
        let (low, high) = (from.unwrap_or(0), to.unwrap_or(u64::MAX));
        let within = mirror.entries().filter(|entry| entry.index.0 >= low && entry.first.0 <= high);
        let document = |entry| documents::entry(entry, &state);
        let wanted = |entry: &HistoryEntry| transaction.is_none() || entry.transaction == transaction;
        if from.is_some() {
            return Ok(Answer::History(fill(within.map(|entry| document(entry)).filter(wanted))));
        }
        let mut latest = fill(within.rev().map(|entry| document(entry)).filter(wanted));
        latest.reverse();
        Ok(Answer::History(latest))
    }

    fn ticket(&self) -> Result<Answer, Failure> {
        let mut secret = [0; 32];
        fill_random(&mut secret);
        self.tickets.borrow_mut().mint(&secret, self.clock.now());
        let identity = self.identity.borrow();
        let (addresses, contact) = (identity.addresses.clone(), identity.id);
        let (authority, dvm) = (self.shared.vault.fingerprint(), self.shared.dvm);
        Ok(Answer::Ticket(Ticket { addresses, contact, authority, dvm, secret }.text()))
    }

    async fn ticket_of(&self, member: &str, ask: &Ask) -> Result<Answer, Failure> {
        let id = self.find_member(member).await?;
        if id == self.identity.borrow().id {
            return self.ticket();
        }
        let limit = ask.left(REACH);
        let timeout_ms = Some(limit.as_millis() as u64);
        let asked = ToKernel { id: 1, stamp: None, timeout_ms, seen: None, request: Request::Ticket };
        let none = |why: String| {
            Failure::new(FailureCode::Failure, format!("{member} gave no ticket"))
                .cause(why)
                .hint("ask another")
        };
        let relayed = self.peers.relay(id, encode(&asked), limit).await;
        let relayed = relayed.map_err(|error| none(error.to_string()))?;
        decode::<ToClient>(&relayed).map_err(|error| none(error.to_string()))?.answer
    }

    /// Uses a ticket up: whom to join through, and the settings.
    pub(crate) async fn use_ticket(
        &self,
        dvm: u128,
        secret: &[u8; 32],
    ) -> Result<(Identity, Config), String> {
        if dvm != self.shared.dvm {
            return Err("the ticket is of another DVM".into());
        }
        let taken = self.tickets.borrow_mut().take(secret, self.clock.now());
        taken.map_err(|error| error.to_string())?;
        let config = self.in_state(|state| state.config.clone()).await.map_err(|failure| failure.message)?;
        Ok((self.identity.borrow().clone(), config))
    }

    async fn chaos(&self, chaos: Chaos) -> Result<Answer, Failure> {
        let allowed = match self.in_state(|state| state.config.chaos).await {
            // A kernel that was cut off and left out has no settings to ask, and must be reached too.
            Err(_) if chaos == Chaos::Heal => true,
            allowed => allowed?,
        };
        if !allowed {
            return Err(Failure::new(
                FailureCode::Denied,
                format!("DVM `{}` does not allow faults", self.dvm),
            )
            .hint("start one that does: dvm up --set chaos=true"));
        }
        match chaos {
            Chaos::Cut { to, from } => {
                tracing::warn!(?to, ?from, "cut by request");
                self.shared.cuts.cut(to, from);
            }
            Chaos::Heal => {
                tracing::warn!("healed by request");
                self.shared.cuts.heal();
            }
            Chaos::KillPlugin { plugin } => {
                let (answer, answered) = oneshot::channel();
                self.tell_plugins(ToPlugins::Kill { plugin: plugin.clone(), answer });
                if !answered.await.unwrap_or(false) {
                    let text = format!("no instance of `{plugin}` runs here");
                    return Err(Failure::new(FailureCode::NotFound, text));
                }
            }
        }
        Ok(accepted(None))
    }

    async fn bench(
        &self,
        what: &str,
        size: u64,
        duration_ms: u64,
        in_flight: u64,
    ) -> Result<Answer, Failure> {
        let usage = |text: String| Failure::new(FailureCode::Usage, text);
        let agree = match what {
            "ring" => false,
            "agree" => true,
            _ => return Err(usage(format!("`{what}` cannot be measured here; `ring` and `agree` can"))),
        };
        let config = self.in_state(|state| state.config.clone()).await?;
        // A message is a little more than its payload.
        let largest = config.inline_max - 64;
        if size > largest {
            return Err(usage(format!("a message has at most {largest} bytes, not {size}")));
        }
        if duration_ms == 0 || duration_ms > BENCH_MAX_MS || in_flight == 0 || in_flight > config.waiting {
            let most = config.waiting;
            return Err(usage(format!("measure up to {BENCH_MAX_MS} ms with 1 to {most} in flight")));
        }
        Ok(self.ring.bench(agree, size as usize, duration_ms, in_flight).await?)
    }
}

/// What a status needs of the member.
fn see(member: &Member, now: Time) -> Option<Seen> {
    let state = member.state()?.clone();
    let waiting = |id: &dvm_core::ids::TransactionId| -> Vec<MemberId> { member.open_waiting_for(*id) };
    Some(Seen {
        me: member.id(),
        phase: member.phase(),
        waiting_for: member.waiting_for(),
        members: member.members_status(now),
        open: state.open.keys().map(|id| (*id, waiting(id))).collect(),
        state,
    })
}

/// A key's value, which was JSON when it was put.
fn json_of(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or(Value::Null)
}

/// As many as one answer holds.
fn fill<T: serde::Serialize>(entries: impl Iterator<Item = T>) -> Vec<T> {
    let mut bytes = 0;
    let mut filled = Vec::new();
    for entry in entries {
        bytes += encode(&entry).len();
        if bytes > LIST_MAX {
            break;
        }
        filled.push(entry);
    }
    filled
}

/// One that is counted until it ends in any way.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn one(count: &'a Cell<usize>) -> Self {
        count.update(|count| count + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.update(|count| count - 1);
    }
}
