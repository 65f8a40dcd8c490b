//! A DVM in memory: its members, its history, and how instances are told it.

use super::Testbed;
use super::chance::Chance;
use super::failure::{Breach, Broken, Failure};
use super::history::{Item, Record, Reply, State, What, reply_text};
use super::instance::{Outside, Running, encode, place};
use crate::host::CallError;
use crate::{Event, Meta};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// Steps that a failure shows.
const STEPS_SHOWN: usize = 12;
/// Lines of instances that a failure shows.
const LINES_SHOWN: usize = 6;
/// Panics in one step, beyond which it is told as if it were without end.
const PANICS_MAX: u64 = 100;
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
        let config = bed.format.encode(&bed.config);
        let names: Vec<String> = (0..bed.members).map(|rank| format!("k{rank}")).collect();
        for name in &names {
            settled(Running::validate(bed.module, &config, &place(name, &names)))?;
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
            panics: 0,
            steps: 0,
            time: TIME_FIRST,
            last: VecDeque::new(),
            panic: None,
            bed,
        };
        dvm.settle()?;
        Ok(dvm)
    }

    /// An ordered command; its reply.
    ///
    /// # Errors
    /// [`Failure::Own`] is the plug-in's own error.
    pub fn call(&mut self, command: impl Into<Value>) -> Result<Value, Failure> {
        let command = command.into();
        self.step(format!("call {command}"));
        let (seed, advance) = (self.chance.number(), self.chance.number());
        // The clock of who proposes: it goes on, and steps back at times.
        self.time =
            self.time.wrapping_add(advance % 2_000).wrapping_sub(if advance % 16 == 0 { 5_000 } else { 0 });
        let mut meta = Meta::at(self.next_index());
        (meta.seed, meta.time, meta.fence) =
            (seed, self.time, self.primary.as_ref().map_or(0, |(_, fence)| *fence));
        meta.session = (advance % 2 == 1).then(|| format!("session-{}", advance % 5));
        let (bytes, meta) = (self.bed.format.encode(&command), encode(&meta));
        self.push(What::Command { command, bytes, meta });
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
        let names = self.names();
        let bytes = self.bed.format.encode(&config);
        for name in &names {
            settled(Running::validate(self.bed.module, &bytes, &place(name, &names)))?;
        }
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
        self.happened(kind, Value::Object(fields));
        self.settle()
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

    pub(super) fn next_index(&self) -> u64 {
        self.items.len() as u64 + 1
    }

    pub(super) fn push(&mut self, what: What) {
        let index = self.next_index();
        self.items.push(Item { index, what, left_out: false });
        self.records.push(None);
    }

    pub(super) fn happened(&mut self, kind: &str, fields: Value) -> u64 {
        let index = self.next_index();
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let bytes = encode(&Event::new(index, kind, fields));
        self.push(What::Event { kind: kind.into(), bytes });
        index
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

    /// Tells every instance that hears what it was not told, one item at a time, all of them in step.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let panics = self.panics;
        loop {
            if let Some(panic) = self.panic.take_if(|_| self.panics - panics > PANICS_MAX) {
                return Err(panic);
            }
            self.place_instances()?;
            let end = self.items.len();
            let due = |running: &Running| {
                running.at < end || running.roles.front().is_some_and(|(behind, _)| *behind <= running.at)
            };
            let waiting = self.members.iter().filter(|member| !member.paused);
            let waiting = waiting.filter_map(|member| member.instance.as_ref());
            let waiting = waiting
                .filter(|running| if running.applies { due(running) } else { !running.roles.is_empty() });
            let Some(position) = waiting.map(|running| running.at).min() else { return Ok(()) };
            self.tell(position)?;
        }
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
            let result = Self::next(running, self.items.get(position), position);
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

    /// The roles due, then an item. An error is a panic's text.
    fn next(running: &mut Running, item: Option<&Item>, position: usize) -> Result<Option<Reply>, String> {
        let applies = running.applies;
        while running.roles.front().is_some_and(|(behind, _)| !applies || *behind <= position) {
            let (_, role) = running.roles.pop_front().expect("there is one");
            running.role(role).map_err(|error| error.to_string())?;
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
            let reply = Err("the plug-in fails at this; it took no effect".into());
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
        let Some(running) = self.members[at].instance.take() else { return };
        // Its memory is gone with its process; here it is left alone, and may act no longer.
        running.expire();
        let member = self.members[at].name.clone();
        let fields =
            json!({"plugin": self.bed.name, "member": member, "rank": at, "cause": cause, "detail": detail});
        self.happened("instance-failed", fields);
        if self.primary() == Some(&member) {
            self.primary = None;
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
