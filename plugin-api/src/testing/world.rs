//! What the plug-ins of a DVM in memory share: the order of the history, keys, the clock, processes, and what waits for whom.
//!
//! Instances ask it from callbacks and from threads of their own. What has a place in the history gets its index here at
//! once, and is told by the [`Dvm`] that it is for.

use super::Failure;
use super::desk::Desk;
use super::dvm::Dvm;
use super::process::{Processes, Scripts, Started, not_run};
use super::seat::locked;
use crate::service::event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Answers the calls of a plug-in that is not there.
pub(super) type Stub = Arc<dyn Fn(&Value) -> Result<Value, String> + Send + Sync>;

/// Another plug-in, as instances may call it.
pub(super) enum Other {
    Stub(Stub),
    Plugin(Box<Dvm>),
}

#[derive(Default)]
pub(super) struct World {
    inner: Mutex<Inner>,
    scripts: Scripts,
    /// By name; one that is at work is not here.
    others: Mutex<BTreeMap<String, Option<Other>>>,
    /// How another plug-in broke.
    broken: Mutex<Option<Failure>>,
}

#[derive(Default)]
struct Inner {
    /// Last index of the history.
    index: u64,
    now_ms: u64,
    members: Vec<String>,
    keys: BTreeMap<String, (Value, u64)>,
    desks: BTreeMap<u64, Desk>,
    desks_ever: u64,
    ordered: Vec<Ordered>,
    commands: Vec<Told>,
    processes: Processes,
}

/// A command with an index that the instances are to be told.
pub(super) struct Ordered {
    pub(super) plugin: String,
    pub(super) index: u64,
    pub(super) command: Value,
}

/// A command of the history.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) plugin: String,
    pub(super) index: u64,
    /// As the plug-in gets it, bytes.
    pub(super) size: usize,
    pub(super) command: Value,
}

impl World {
    pub(super) fn new(scripts: Scripts) -> Self {
        Self { scripts, ..Self::default() }
    }

    /// Gives the next place in the history, and what of a plug-in's comes before it.
    pub(super) fn place(&self, plugin: &str) -> (Vec<Ordered>, u64) {
        let mut inner = locked(&self.inner);
        let before = inner.take_ordered(plugin);
        inner.index += 1;
        (before, inner.index)
    }

    /// What of a plug-in's has a place and was not taken.
    pub(super) fn take_ordered(&self, plugin: &str) -> Vec<Ordered> {
        locked(&self.inner).take_ordered(plugin)
    }

    /// Gives a command a place.
    pub(super) fn order(&self, plugin: &str, command: Value) -> u64 {
        let mut inner = locked(&self.inner);
        inner.index += 1;
        let index = inner.index;
        inner.ordered.push(Ordered { plugin: plugin.into(), index, command });
        index
    }

    /// A command has its place.
    pub(super) fn told(&self, told: Told) {
        locked(&self.inner).commands.push(told);
    }

    /// A plug-in's commands behind an index, up to another one.
    pub(super) fn commands(&self, plugin: &str, after: u64, through: u64) -> Vec<Told> {
        let inner = locked(&self.inner);
        let within = |told: &&Told| told.plugin == plugin && told.index > after && told.index <= through;
        inner.commands.iter().filter(within).cloned().collect()
    }

    pub(super) fn now_ms(&self) -> u64 {
        locked(&self.inner).now_ms
    }

    pub(super) fn set_now(&self, now_ms: u64) {
        locked(&self.inner).now_ms = now_ms;
    }

    /// When something happens next by itself.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let inner = locked(&self.inner);
        let timers = inner.desks.values().filter_map(Desk::next_ms);
        timers.chain(inner.processes.next_ms()).min()
    }

    /// Does what is due.
    pub(super) fn tick(&self) {
        let mut inner = locked(&self.inner);
        let Inner { now_ms, desks, processes, .. } = &mut *inner;
        processes.tick(*now_ms);
        for desk in desks.values_mut() {
            desk.tick(*now_ms);
            for (member, key) in desk.followed.keys().cloned().collect::<Vec<_>>() {
                while desk.has_room() {
                    let progress =
                        desk.followed.get_mut(&(member.clone(), key.clone())).expect("it is there");
                    let Some(news) = processes.news(&member, &desk.plugin, &key, progress) else { break };
                    desk.offer(news);
                }
            }
        }
    }

    pub(super) fn set_members(&self, members: Vec<String>) {
        let mut inner = locked(&self.inner);
        for gone in inner.members.clone().iter().filter(|name| !members.contains(name)) {
            inner.processes.lose(gone);
            inner.desks.values_mut().for_each(|desk| desk.followed.retain(|(at, _), _| at != gone));
        }
        inner.members = members;
    }

    /// Whether there is such a member.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find_member(&self, member: &str) -> Result<(), String> {
        let known = locked(&self.inner).members.iter().any(|name| name == member);
        if known { Ok(()) } else { Err(format!("no member `{member}`")) }
    }

    /// The number of a new desk. A closed one takes part in nothing.
    pub(super) fn open_desk(&self, plugin: &str, member: &str, closed: bool) -> u64 {
        let mut inner = locked(&self.inner);
        inner.desks_ever += 1;
        let id = inner.desks_ever;
        if !closed {
            inner.desks.insert(id, Desk::new(plugin, member));
        }
        id
    }

    pub(super) fn close_desk(&self, id: u64) {
        locked(&self.inner).desks.remove(&id);
    }

    pub(super) fn serve(&self, id: u64) {
        let _ = self.with_desk(id, |desk| desk.serving = true);
    }

    pub(super) fn promoted(&self, id: u64, through: Option<u64>) {
        let _ = self.with_desk(id, |desk| desk.promoted = through);
    }

    pub(super) fn is_waited_for(&self, id: u64) -> bool {
        locked(&self.inner).desks.get(&id).is_some_and(Desk::is_waited_for)
    }

    /// The next event that comes to one instance alone.
    pub(super) fn take_event(&self, id: u64) -> Option<Vec<u8>> {
        locked(&self.inner).desks.get_mut(&id)?.take()
    }

    /// # Errors
    /// The instance is over.
    pub(super) fn with_desk<T>(&self, id: u64, act: impl FnOnce(&mut Desk) -> T) -> Result<T, String> {
        let mut inner = locked(&self.inner);
        inner.desks.get_mut(&id).map(act).ok_or_else(|| "this instance is over".into())
    }

    /// Has a message wait for a plug-in's instance on a member.
    ///
    /// # Errors
    /// As in a kernel.
    pub(super) fn send(&self, plugin: &str, member: &str, message: Vec<u8>) -> Result<(), String> {
        self.find_member(member)?;
        let mut inner = locked(&self.inner);
        let mut desks = inner.desks.values_mut();
        let desk = desks.find(|desk| desk.plugin == plugin && desk.member == member && desk.serving);
        match desk.map(|desk| desk.offer(message)) {
            Some(true) => Ok(()),
            Some(false) => Err(format!("{member} {}", crate::service::full(plugin))),
            None => Err(format!("{member} {}", crate::service::absent(plugin))),
        }
    }

    pub(super) fn key(&self, key: &str) -> Option<(Value, u64)> {
        locked(&self.inner).keys.get(key).cloned()
    }

    pub(super) fn keys(&self, prefix: &str) -> Vec<(String, Value, u64)> {
        let inner = locked(&self.inner);
        let within = inner.keys.iter().filter(|(key, _)| key.starts_with(prefix));
        within.map(|(key, (value, version))| (key.clone(), value.clone(), *version)).collect()
    }

    /// Sets a key, or deletes it; its version then. None: it has another version than it should, and nothing was done.
    pub(super) fn change_key(&self, key: &str, value: Option<Value>, version: Option<u64>) -> Option<u64> {
        let mut inner = locked(&self.inner);
        let present = inner.keys.get(key).map_or(0, |(_, version)| *version);
        if version.is_some_and(|version| version != present) {
            return None;
        }
        if value.is_none() && present == 0 {
            return Some(0);
        }
        inner.index += 1;
        let index = inner.index;
        let version = value.is_some().then_some(index);
        match value {
            Some(value) => drop(inner.keys.insert(key.into(), (value, index))),
            None => drop(inner.keys.remove(key)),
        }
        let told = event(index, "key-changed", json!({"key": key, "version": version}));
        inner.desks.values_mut().for_each(|desk| desk.key_changed(key, &told));
        Some(index)
    }

    /// Has an instance follow a process, which is started if there never was one.
    ///
    /// # Errors
    /// The instance follows too many.
    pub(super) fn spawn(&self, id: u64, what: &Started) -> Result<(), String> {
        let script = || match &self.scripts {
            Some(scripts) => scripts(what),
            None => {
                super::Script::new().fails("no process is scripted in this test: see `Testbed::processes`")
            }
        };
        let Started { plugin, member, key, .. } = what;
        // The test's own function is asked without a lock.
        let script = (!locked(&self.inner).processes.has(member, plugin, key)).then(script);
        let mut inner = locked(&self.inner);
        let Inner { now_ms, desks, processes, .. } = &mut *inner;
        let desk = desks.get_mut(&id).ok_or("this instance is over")?;
        desk.follow((member.clone(), key.clone()))?;
        if let Some(script) = script.filter(|_| !processes.has(member, plugin, key)) {
            if let Err(why) = processes.start(what, script, *now_ms) {
                desk.followed.remove(&(member.clone(), key.clone()));
                desk.offer(not_run(member, key, &why));
            }
        }
        Ok(())
    }

    pub(super) fn kill(&self, plugin: &str, member: &str, key: &str) {
        let mut inner = locked(&self.inner);
        let now_ms = inner.now_ms;
        inner.processes.kill(member, plugin, key, now_ms);
    }

    pub(super) fn add_other(&self, name: String, other: Other) {
        locked(&self.others).insert(name, Some(other));
    }

    pub(super) fn forget_others(&self) {
        // What is dropped asks this, too.
        let others = std::mem::take(&mut *locked(&self.others));
        drop(others);
    }

    /// Names of the other plug-ins.
    pub(super) fn others(&self) -> Vec<String> {
        locked(&self.others).keys().cloned().collect()
    }

    /// Has another plug-in do something; none if there is none, or it is at work.
    pub(super) fn with_other<T>(&self, name: &str, act: impl FnOnce(&mut Other) -> T) -> Option<T> {
        let mut other = locked(&self.others).get_mut(name)?.take()?;
        let result = act(&mut other);
        locked(&self.others).insert(name.into(), Some(other));
        Some(result)
    }

    pub(super) fn broke(&self, failure: Failure) {
        locked(&self.broken).get_or_insert(failure);
    }

    /// How another plug-in broke, if one did.
    pub(super) fn take_broken(&self) -> Option<Failure> {
        locked(&self.broken).take()
    }
}

impl Inner {
    fn take_ordered(&mut self, plugin: &str) -> Vec<Ordered> {
        let ordered = std::mem::take(&mut self.ordered);
        let (mine, rest) = ordered.into_iter().partition(|one| one.plugin == plugin);
        self.ordered = rest;
        mine
    }
}
