//! A DVM in memory: its members, its history, and how instances are told it.

use super::Testbed;
use super::chance::Chance;
use super::failure::{Breach, Broken, Failure};
use super::history::{Item, Record, Reply, State, What, reply_text};
use super::instance::{Running, encode, place};
use super::seat::{Outside, Settings};
use super::world::{Ordered, Other, Told, World};
use crate::host::CallError;
use crate::service;
use crate::{Event, Meta};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Steps that a failure shows.
const STEPS_SHOWN: usize = 12;
/// Lines of instances that a failure shows.
const LINES_SHOWN: usize = 6;
/// Panics in one step, beyond which it is told as if it were without end.
const PANICS_MAX: u64 = 100;
/// Things that come to one instance alone, and turns of workers, in one step; the rest waits for the next one. A plug-in
/// that answers each message with another one goes on without end.
const ALONE_MAX: usize = 10_000;
/// What the clock of the first command says, milliseconds since 1970.
const TIME_FIRST: u64 = 1_700_000_000_000;

/// A DVM in memory that runs one plug-in. [`Testbed`](super::Testbed) makes it.
///
/// Members are `k0`, `k1` and so on. Each step tells every instance all there is to tell, and compares what they are and
/// say. After a [`Failure::Broken`] it is good for nothing more.
pub struct Dvm {
    pub(super) bed: Testbed,
    /// By rank.
    pub(super) members: Vec<Member>,
    /// How many members there ever were.
    pub(super) born: usize,
    pub(super) items: Vec<Item>,
    /// What instances were after so many items: `records[0]` after their start.
    pub(super) records: Vec<Option<Record>>,
    pub(super) base: Base,
    /// Members with an instance, in the order in which they become the primary.
    pub(super) holders: Vec<String>,
    pub(super) primary: Option<(String, u64)>,
    /// The configuration before any item.
    pub(super) config: Vec<u8>,
    pub(super) chance: Chance,
    pub(super) outside: Arc<Outside>,
    pub(super) world: Arc<World>,
    /// It is not another one's plug-in, for calls.
    is_first: bool,
    pub(super) panics: u64,
    pub(super) steps: u64,
    time: u64,
    last: VecDeque<String>,
    /// The panic that a run is to end with.
    pub(super) panic: Option<Failure>,
}

pub(super) struct Member {
    pub(super) name: String,
    pub(super) paused: bool,
    pub(super) instance: Option<Running>,
}

/// Where an instance begins from when no other one has a state.
pub(super) struct Base {
    /// So much of the history is in it.
    pub(super) at: usize,
    pub(super) state: Option<Vec<u8>>,
}

impl Dvm {
    pub(super) fn start(bed: Testbed) -> Result<Self, Failure> {
        let world = Arc::new(World::new(bed.scripts.clone()));
        Self::start_in(bed, world, true)
    }

    fn start_in(mut bed: Testbed, world: Arc<World>, is_first: bool) -> Result<Self, Failure> {
        let config = bed.format.encode(&bed.config);
        let names: Vec<String> = (0..bed.members).map(|rank| format!("k{rank}")).collect();
        world.set_members(names.clone());
        for (name, stub) in std::mem::take(&mut bed.stubs) {
            world.add_other(name, Other::Stub(stub));
        }
        for other in std::mem::take(&mut bed.others) {
            let name = other.name.clone();
            let dvm = Self::start_in(other.members(bed.members), world.clone(), false)?;
            world.add_other(name, Other::Plugin(Box::new(dvm)));
        }
        let members = names.into_iter().map(|name| Member { name, paused: false, instance: None });
        let mut dvm = Self {
            born: bed.members,
            members: members.collect(),
            items: Vec::new(),
            records: vec![None],
            base: Base { at: 0, state: None },
            holders: Vec::new(),
            primary: None,
            config,
            chance: Chance::new(bed.seed),
            outside: Arc::default(),
            world,
            is_first,
            panics: 0,
            steps: 0,
            time: TIME_FIRST,
            last: VecDeque::new(),
            panic: None,
            bed,
        };
        dvm.validate(&dvm.config, &dvm.names())?;
        dvm.settle()?;
        Ok(dvm)
    }

    /// Asks the plug-in on each member whether a configuration would do.
    fn validate(&self, config: &[u8], names: &[String]) -> Result<(), Failure> {
        names.iter().try_for_each(|name| {
            settled(Running::validate(
                self.bed.module,
                config,
                &place(name, names),
                self.settings(name, true),
            ))
        })
    }

    /// What an instance on a member asks with.
    pub(super) fn settings(&self, member: &str, mute: bool) -> Settings {
        let (plugin, member) = (self.bed.name.clone(), member.to_owned());
        Settings { plugin, member, outside: self.outside.clone(), world: self.world.clone(), mute }
    }

    /// An ordered command; its reply.
    ///
    /// # Errors
    /// [`Failure::Own`] is the plug-in's own error.
    pub fn call(&mut self, command: impl Into<Value>) -> Result<Value, Failure> {
        let command = command.into();
        self.step(format!("call {command}"));
        let (before, index) = self.world.place(&self.bed.name);
        before.into_iter().for_each(|ordered| self.command(ordered.index, ordered.command, false));
        self.command(index, command, true);
        let position = self.items.len();
        self.settle()?;
        if self.bed.mode.has_primary() && !self.primary_hears() {
            let text =
                "the primary is paused: it replies when it is resumed, or another one that is promoted";
            return Err(Failure::Unanswered(text.into()));
        }
        match self.records[position].as_ref() {
            Some(Record { reply: Ok(reply), .. }) => self.decoded(reply),
            Some(Record { reply: Err(error), .. }) => Err(Failure::Own(error.clone())),
            None => Err(Failure::Unanswered("every instance is paused; resume one".into())),
        }
    }

    /// A query, at the primary or the first instance.
    ///
    /// # Errors
    /// [`Failure::Own`] is the plug-in's own error.
    pub fn query(&mut self, command: impl Into<Value>) -> Result<Value, Failure> {
        let command = command.into();
        self.step(format!("query {command}"));
        let primary = self.primary.as_ref().map(|(name, _)| name);
        let asked = |member: &Member| match primary {
            Some(primary) => member.name == *primary,
            None => true,
        };
        let at = self.members.iter().position(|member| asked(member) && member.hears());
        let Some(at) = at else {
            return Err(Failure::Unanswered("every instance is paused; resume one".into()));
        };
        let bytes = self.bed.format.encode(&command);
        let instance = self.members[at].instance.as_mut().expect("it hears");
        let answer = instance.query(&bytes);
        if let Err(CallError::Panic(text)) = &answer {
            self.fell(at, text.clone(), self.items.len());
            self.settle()?;
            return Err(Failure::Own(format!("panicked: {text}")));
        }
        self.look_again(at, Breach::Queried, &command)?;
        self.decoded(&settled(answer)?)
    }

    /// A new configuration: every instance validates it and takes it.
    ///
    /// # Errors
    /// [`Failure::Own`] with the plug-in's reason against it; nothing was changed then.
    pub fn configure(&mut self, config: impl Into<Value>) -> Result<(), Failure> {
        let config = config.into();
        self.step(format!("configure {config}"));
        let bytes = self.bed.format.encode(&config);
        self.validate(&bytes, &self.names())?;
        self.bed.config = config;
        self.push(What::Configure(bytes));
        let position = self.items.len();
        self.settle()?;
        match &self.records[position] {
            Some(Record { reply: Err(error), .. }) => Err(Failure::Own(error.clone())),
            _ => Ok(()),
        }
    }

    /// Something happens in the DVM, which every instance is told.
    ///
    /// # Errors
    /// If the plug-in breaks at it.
    pub fn event(&mut self, kind: &str, fields: Map<String, Value>) -> Result<(), Failure> {
        self.step(format!("event {kind}"));
        self.happened(kind, |_| Value::Object(fields));
        self.settle()
    }

    /// Time goes on: timers tick, processes do what their scripts say, workers try again. Everything else takes no time.
    ///
    /// # Errors
    /// If the plug-in breaks at it.
    pub fn advance(&mut self, time: Duration) -> Result<(), Failure> {
        self.step(format!("advance {} ms", time.as_millis()));
        let until = self.world.now_ms().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.settle()?;
        while let Some(next) = self.next_ms().filter(|next| *next <= until) {
            self.world.set_now(next);
            self.settle()?;
        }
        self.world.set_now(until);
        Ok(())
    }

    /// How much time has gone by.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.world.now_ms())
    }

    /// A key's value and version.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<(Value, u64)> {
        self.world.key(key)
    }

    /// All keys that begin so, with their values and versions.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<(String, Value, u64)> {
        self.world.keys(prefix)
    }

    /// Somebody sets a key, or deletes it; instances that watch it are told.
    ///
    /// # Errors
    /// [`Failure::Misuse`] for a key that cannot be changed; or if the plug-in breaks at what follows.
    pub fn set_key(&mut self, key: &str, value: Option<Value>) -> Result<(), Failure> {
        if let Some(why) = service::key_refusal(key, true) {
            return Err(Failure::Misuse(why));
        }
        self.step(format!("set the key {key}"));
        self.world.change_key(key, value, None);
        self.settle()
    }

    /// Has another [plug-in](Testbed::plugin) of this DVM do something.
    ///
    /// # Errors
    /// [`Failure::Misuse`] if there is none of that name.
    pub fn plugin<T>(&mut self, name: &str, act: impl FnOnce(&mut Self) -> T) -> Result<T, Failure> {
        let mut act = Some(act);
        let done = self.world.with_other(name, |other| match other {
            Other::Plugin(dvm) => act.take().map(|act| act(dvm)),
            Other::Stub(_) => None,
        });
        let done = done.flatten().ok_or_else(|| Failure::Misuse(format!("there is no plug-in {name}")))?;
        self.settle()?;
        Ok(done)
    }

    /// Names of the members, by rank.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|member| member.name.clone()).collect()
    }

    /// The member with the primary.
    #[must_use]
    pub fn primary(&self) -> Option<&str> {
        self.primary.as_ref().map(|(name, _)| &**name)
    }

    /// The last lines that instances logged, each with its member's name before it.
    #[must_use]
    pub fn logged(&self) -> Vec<String> {
        self.outside.lines()
    }

    /// The tokens that instances were given when they asked for one, with the members' names. They rise.
    #[must_use]
    pub fn tokens(&self) -> Vec<(String, u64)> {
        self.outside.tokens()
    }

    /// What the instance on a member is, as it writes it for another one.
    ///
    /// # Errors
    /// If there is no such instance, or it panics.
    pub fn snapshot(&mut self, member: &str) -> Result<Vec<u8>, Failure> {
        let at = self.find(member)?;
        match self.members[at].instance.as_mut() {
            Some(instance) if instance.applies => settled(instance.snapshot()),
            _ => Err(Failure::Misuse(format!("{member} has no instance with a state"))),
        }
    }

    /// Unloads the plug-in: every instance is told to stop.
    ///
    /// # Errors
    /// If one panics at it.
    pub fn stop(mut self) -> Result<(), Failure> {
        let instances = self.members.iter_mut().filter_map(|member| member.instance.take());
        // All are, whatever one says.
        let told: Vec<_> = instances.map(|instance| settled(instance.stop())).collect();
        told.into_iter().collect()
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, Failure> {
        self.members.iter().position(|member| member.name == name).ok_or_else(|| {
            Failure::Misuse(format!("there is no member {name}; there are {}", self.names().join(", ")))
        })
    }

    /// Notes what the test does.
    pub(super) fn step(&mut self, what: String) {
        self.steps += 1;
        if self.last.len() == STEPS_SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(format!("{}: {what}", self.steps));
    }

    pub(super) fn push(&mut self, what: What) -> u64 {
        self.push_with(|_| what)
    }

    fn push_with(&mut self, what: impl FnOnce(u64) -> What) -> u64 {
        let (before, index) = self.world.place(&self.bed.name);
        before.into_iter().for_each(|ordered| self.command(ordered.index, ordered.command, false));
        self.add(index, what(index));
        index
    }

    fn add(&mut self, index: u64, what: What) {
        assert!(self.items.last().is_none_or(|last| last.index < index), "indices rise");
        self.items.push(Item { index, what, left_out: false });
        self.records.push(None);
    }

    /// A command at its place, by a client or by an instance.
    fn command(&mut self, index: u64, command: Value, by_client: bool) {
        let (seed, advance) = (self.chance.number(), self.chance.number());
        // The clock of who proposes: it goes on, and steps back at times.
        self.time =
            self.time.wrapping_add(advance % 2_000).wrapping_sub(if advance % 16 == 0 { 5_000 } else { 0 });
        let mut meta = Meta::at(index);
        (meta.seed, meta.time, meta.fence) =
            (seed, self.time, self.primary.as_ref().map_or(0, |(_, fence)| *fence));
        meta.session = (by_client && advance % 2 == 1).then(|| format!("session-{}", advance % 5));
        let (bytes, meta) = (self.bed.format.encode(&command), encode(&meta));
        let plugin = self.bed.name.clone();
        self.world.told(Told { plugin, index, size: bytes.len(), command: command.clone() });
        self.add(index, What::Command { command, bytes, meta });
    }

    /// Commands that instances have given a place.
    fn take_ordered(&mut self) {
        for Ordered { index, command, .. } in self.world.take_ordered(&self.bed.name) {
            self.command(index, command, false);
        }
    }

    /// Something happens; the fields may have its index.
    pub(super) fn happened(&mut self, kind: &str, fields: impl FnOnce(u64) -> Value) -> u64 {
        let bytes = |index| service::event(index, kind, fields(index));
        self.push_with(|index| What::Event { kind: kind.into(), bytes: bytes(index) })
    }

    fn decoded(&self, reply: &[u8]) -> Result<Value, Failure> {
        let reply = self.bed.format.decode(reply);
        reply.map_err(|error| Failure::Own(format!("the reply does not fit into JSON: {error}")))
    }

    pub(super) fn broken(&self, breach: Breach, at: usize, position: usize, detail: String) -> Failure {
        let item = position.checked_sub(1).map(|last| &self.items[last]);
        let lines = self.outside.lines();
        let lines = lines.iter().skip(lines.len().saturating_sub(LINES_SHOWN));
        Failure::Broken(Box::new(Broken {
            breach,
            member: self.members[at].name.clone(),
            index: item.map_or(0, |item| item.index),
            what: item.map_or("its start".into(), Item::name),
            command: item.and_then(Item::command).cloned(),
            detail,
            seed: self.bed.seed,
            step: self.steps,
            before: self.last.iter().cloned().chain(lines.map(|line| format!("log of {line}"))).collect(),
        }))
    }

    /// Tells every instance that hears what it was not told, one item at a time, all of them in step; behind that, one
    /// after another, what comes to one alone, and lets workers work.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let (panics, mut alone) = (self.panics, 0);
        loop {
            if let Some(panic) = self.panic.take_if(|_| self.panics - panics > PANICS_MAX) {
                return Err(panic);
            }
            if let Some(broken) = self.world.take_broken() {
                return Err(broken);
            }
            self.take_ordered();
            self.place_instances()?;
            let end = self.items.len();
            let due = |running: &Running| {
                running.at < end || running.roles.front().is_some_and(|(behind, _)| *behind <= running.at)
            };
            let waiting = self.members.iter().filter(|member| !member.paused);
            let waiting = waiting.filter_map(|member| member.instance.as_ref());
            let waiting = waiting
                .filter(|running| if running.applies { due(running) } else { !running.roles.is_empty() });
            if let Some(position) = waiting.map(|running| running.at).min() {
                self.tell(position)?;
                continue;
            }
            alone += 1;
            if alone > ALONE_MAX || !(self.tell_alone()? || self.work() || self.settle_others()?) {
                return Ok(());
            }
        }
    }

    /// Tells one instance something that comes to it alone; whether there was something.
    fn tell_alone(&mut self) -> Result<bool, Failure> {
        self.world.tick();
        let waited_for = |member: &Member| {
            let seat = member.instance.as_ref().filter(|_| member.hears()).map(|running| running.seat.id);
            seat.is_some_and(|seat| self.world.is_waited_for(seat))
        };
        let all: Vec<_> = (0..self.members.len()).filter(|at| waited_for(&self.members[*at])).collect();
        let at = match all[..] {
            [] => return Ok(false),
            [at] => at,
            _ => *self.chance.one_of(&all),
        };
        let running = self.members[at].instance.as_mut().expect("it is waited for");
        let Some(event) = self.world.take_event(running.seat.id) else { return Ok(false) };
        if let Err(error) = running.alone(&event) {
            self.fell(
                at,
                error.to_string(),
                self.members[at].instance.as_ref().map_or(0, |running| running.at),
            );
            return Ok(true);
        }
        let what = rmp_serde::from_slice::<Event>(&event).expect("it was encoded here");
        self.look_again(at, Breach::Alone, &json!({"kind": what.kind, "fields": what.fields}))?;
        Ok(true)
    }

    /// Gives workers a turn; whether one did something.
    fn work(&self) -> bool {
        let now_ms = self.world.now_ms();
        let running = self.members.iter().filter(|member| !member.paused);
        let running = running.filter_map(|member| member.instance.as_ref());
        running.filter(|running| running.seat.work(now_ms)).count() > 0
    }

    /// Has other plug-ins do what they have to; whether that left something to do here.
    fn settle_others(&mut self) -> Result<bool, Failure> {
        if self.is_first {
            self.others(Self::settle)?;
        }
        let mine = |member: &Member| member.hears().then(|| member.instance.as_ref().map(|one| one.seat.id));
        let mut mine = self.members.iter().filter_map(mine).flatten();
        let ordered = self.world.take_ordered(&self.bed.name);
        let has_ordered = !ordered.is_empty();
        let waited_for = mine.any(|seat| self.world.is_waited_for(seat));
        drop(mine);
        ordered.into_iter().for_each(|one| self.command(one.index, one.command, false));
        Ok(has_ordered || waited_for)
    }

    /// Has each other plug-in do something.
    pub(super) fn others(&self, act: impl Fn(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        for name in self.world.others() {
            let done = self.world.with_other(&name, |other| match other {
                Other::Plugin(dvm) => act(dvm),
                Other::Stub(_) => Ok(()),
            });
            done.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// When something happens next by itself.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let now_ms = self.world.now_ms();
        let running = self.members.iter().filter(|member| !member.paused);
        let working = running.filter_map(|member| member.instance.as_ref()?.seat.works_next(now_ms));
        working.chain(self.world.next_ms().filter(|next| *next > now_ms)).min()
    }

    /// Tells those that were told so much their roles, and the next item.
    pub(super) fn tell(&mut self, position: usize) -> Result<(), Failure> {
        let (mut told, mut fallen) = (Vec::new(), Vec::new());
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            let Some(running) = member.instance.as_mut().filter(|running| running.at == position) else {
                continue;
            };
            if member.paused {
                continue;
            }
            let through = position.checked_sub(1).map_or(0, |last| self.items[last].index);
            let result = Self::next(running, self.items.get(position), (position, through));
            match result {
                Ok(Some(reply)) => told.push((at, reply)),
                Ok(None) => {}
                Err(text) => fallen.push((at, text)),
            }
        }
        for (at, reply) in told {
            if let Err(text) = self.compare(at, position + 1, Some(reply))? {
                fallen.push((at, text));
            }
        }
        for (at, text) in fallen {
            if position < self.items.len() && self.records[position + 1].is_none() {
                self.items[position].left_out = true;
            }
            self.fell(at, text, (position + 1).min(self.items.len()));
        }
        self.leave_out(position);
        Ok(())
    }

    /// The roles due behind a position and index, then an item. An error is a panic's text.
    fn next(
        running: &mut Running,
        item: Option<&Item>,
        (position, through): (usize, u64),
    ) -> Result<Option<Reply>, String> {
        let applies = running.applies;
        while running.roles.front().is_some_and(|(behind, _)| !applies || *behind <= position) {
            let (_, role) = running.roles.pop_front().expect("there is one");
            running.role(role, through).map_err(|error| error.to_string())?;
        }
        let Some(item) = item.filter(|_| applies) else { return Ok(None) };
        if item.left_out {
            running.at += 1;
            return Ok(None);
        }
        let reply = match running.tell(item) {
            Ok(reply) => Ok(reply),
            // It is to be started again with the new configuration.
            Err(CallError::Own(error)) if matches!(item.what, What::Configure(_)) => return Err(error),
            Err(CallError::Own(error)) => Err(error),
            Err(error) => return Err(error.to_string()),
        };
        running.at += 1;
        Ok(Some(reply))
    }

    /// What fails at every instance takes no effect anywhere.
    fn leave_out(&mut self, position: usize) {
        if self.items.get(position).is_some_and(|item| item.left_out) && self.records[position + 1].is_none()
        {
            let reply = Err(crate::service::LEFT_OUT.into());
            self.records[position + 1] = Some(Record { member: "all".into(), reply, state: None });
        }
    }

    /// Compares an instance that came to a position with the first that did. The inner error is a panic's text.
    pub(super) fn compare(
        &mut self,
        at: usize,
        position: usize,
        reply: Option<Reply>,
    ) -> Result<Result<(), String>, Failure> {
        let running = self.members[at].instance.as_mut().expect("it was told something");
        let state = match self.bed.stateless {
            true => None,
            false => match running.state() {
                Ok(state) => Some(state),
                Err(error) => return Ok(Err(error.to_string())),
            },
        };
        match &self.records[position] {
            Some(record) => {
                let difference = differ(record, &self.members[at].name, reply.as_ref(), state.as_ref());
                difference.map_or(Ok(Ok(())), |detail| Err(self.broken(Breach::Parted, at, position, detail)))
            }
            None => {
                let member = self.members[at].name.clone();
                self.records[position] =
                    Some(Record { member, reply: reply.unwrap_or(Ok(Vec::new())), state });
                Ok(Ok(()))
            }
        }
    }

    /// After something that should have left an instance as it was.
    pub(super) fn look_again(&mut self, at: usize, breach: Breach, what: &Value) -> Result<(), Failure> {
        let running = self.members[at].instance.as_mut().expect("it answered");
        let position = running.at;
        let Some(Record { state: Some(before), .. }) = &self.records[position] else { return Ok(()) };
        let now = settled(running.state())?;
        if now == *before {
            return Ok(());
        }
        let detail = format!("{what}\nbefore: {}\nafter:  {}", before.text(), now.text());
        Err(self.broken(breach, at, position, detail))
    }

    /// Whether a primary is there and hears.
    fn primary_hears(&self) -> bool {
        let primary = self.primary.as_ref().and_then(|(name, _)| self.find(name).ok());
        primary.is_some_and(|at| self.members[at].hears())
    }

    /// An instance has panicked.
    pub(super) fn fell(&mut self, at: usize, text: String, position: usize) {
        self.panics += 1;
        if self.panic.is_none() {
            self.panic = Some(self.broken(Breach::Panicked, at, position, text.clone()));
        }
        self.lose(at, "panic", &text);
    }

    /// An instance is gone.
    pub(super) fn lose(&mut self, at: usize, cause: &str, detail: &str) {
        if self.members[at].instance.take().is_none() {
            return;
        }
        let member = self.members[at].name.clone();
        let fields =
            json!({"plugin": self.bed.name, "member": member, "rank": at, "cause": cause, "detail": detail});
        self.happened("instance-failed", |_| fields);
        if self.primary() == Some(&member) {
            self.primary = None;
        }
    }
}

impl Drop for Dvm {
    fn drop(&mut self) {
        // They have what all share, which has them.
        if self.is_first {
            self.world.forget_others();
        }
    }
}

impl Member {
    /// Whether its instance is told things as they happen.
    pub(super) fn hears(&self) -> bool {
        !self.paused && self.instance.as_ref().is_some_and(|running| running.applies)
    }
}

/// How an instance differs from the one that came there first.
fn differ(first: &Record, name: &str, reply: Option<&Reply>, state: Option<&State>) -> Option<String> {
    let Record { member, reply: expected, state: was } = first;
    if let Some(reply) = reply.filter(|reply| *reply != expected) {
        let (expected, reply) = (reply_text(expected), reply_text(reply));
        return Some(format!("reply on {member}: {expected}\nreply on {name}: {reply}"));
    }
    match (was, state) {
        (Some(was), Some(state)) if was != state => {
            Some(format!("state on {member}: {}\nstate on {name}: {}", was.text(), state.text()))
        }
        _ => None,
    }
}

/// A call's result where a panic is an end.
pub(super) fn settled<T>(result: Result<T, CallError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::Own(error.to_string()))
}
