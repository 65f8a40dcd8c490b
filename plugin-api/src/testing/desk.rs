//! What waits for one instance in memory, and what it has set going.

use super::process::Progress;
use crate::service::{self, FOLLOWED_MAX, TICK_MIN_MS, TIMERS_MAX, WAITING_MAX, WATCHES_MAX, event};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An event that comes to one instance alone.
pub(super) fn own_event(kind: &str, fields: Value) -> Vec<u8> {
    event(0, kind, fields)
}

/// An instance's.
pub(super) struct Desk {
    pub(super) plugin: String,
    pub(super) member: String,
    /// It is its member's instance and applies what it is told.
    pub(super) serving: bool,
    /// The last index before it became the primary, if it is that.
    pub(super) promoted: Option<u64>,
    waiting: VecDeque<Vec<u8>>,
    /// Changes of keys that found no room.
    lost: u64,
    timers: BTreeMap<String, Timer>,
    watches: BTreeSet<String>,
    /// By member and key.
    pub(super) followed: BTreeMap<(String, String), Progress>,
}

struct Timer {
    due_ms: u64,
    every_ms: Option<u64>,
}

impl Desk {
    pub(super) fn new(plugin: &str, member: &str) -> Self {
        Self {
            plugin: plugin.into(),
            member: member.into(),
            serving: false,
            promoted: None,
            waiting: VecDeque::new(),
            lost: 0,
            timers: BTreeMap::new(),
            watches: BTreeSet::new(),
            followed: BTreeMap::new(),
        }
    }

    /// Has an event wait; false: there is no room.
    pub(super) fn offer(&mut self, event: Vec<u8>) -> bool {
        let room = self.has_room();
        if room {
            self.waiting.push_back(event);
        }
        room
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.serving && (!self.waiting.is_empty() || self.lost > 0)
    }

    /// The next event.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            return Some(own_event("overflow", json!({"lost": lost})));
        }
        self.waiting.pop_front()
    }

    pub(super) fn key_changed(&mut self, key: &str, event: &[u8]) {
        let watched = self.watches.iter().any(|prefix| key.starts_with(prefix));
        if watched && !self.offer(event.into()) {
            self.lost += 1;
        }
    }

    pub(super) fn watch(&mut self, prefix: String) -> Result<(), String> {
        if self.watches.len() >= WATCHES_MAX && !self.watches.contains(&prefix) {
            return Err(too_many(WATCHES_MAX, "prefixes are watched"));
        }
        self.watches.insert(prefix);
        Ok(())
    }

    pub(super) fn unwatch(&mut self, prefix: &str) {
        self.watches.remove(prefix);
    }

    pub(super) fn set_timer(
        &mut self,
        name: String,
        due_ms: u64,
        every_ms: Option<u64>,
    ) -> Result<(), String> {
        if self.timers.len() >= TIMERS_MAX && !self.timers.contains_key(&name) {
            return Err(too_many(TIMERS_MAX, "timers are set"));
        }
        let every_ms = every_ms.map(|ms| ms.max(TICK_MIN_MS));
        self.timers.insert(name, Timer { due_ms, every_ms });
        Ok(())
    }

    pub(super) fn cancel_timer(&mut self, name: &str) {
        self.timers.remove(name);
    }

    /// Has what is due wait; a tick that finds no room is left out.
    pub(super) fn tick(&mut self, now_ms: u64) {
        while let Some((due_ms, name)) = self.first_due().filter(|(due_ms, _)| *due_ms <= now_ms) {
            self.offer(own_event("timer", json!({"name": name})));
            match self.timers.get_mut(&name) {
                Some(Timer { due_ms: next, every_ms: Some(every_ms) }) => *next = due_ms + *every_ms,
                _ => drop(self.timers.remove(&name)),
            }
        }
    }

    /// When a timer is due next.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.first_due().map(|(due_ms, _)| due_ms)
    }

    fn first_due(&self) -> Option<(u64, String)> {
        self.timers
            .iter()
            .map(|(name, timer)| (timer.due_ms, name))
            .min()
            .map(|(due, name)| (due, name.clone()))
    }

    /// Begins to follow a process, from its beginning as far as it is kept.
    pub(super) fn follow(&mut self, process: (String, String)) -> Result<(), String> {
        self.followed.retain(|_, progress| !progress.is_over());
        if self.followed.len() >= FOLLOWED_MAX && !self.followed.contains_key(&process) {
            return Err(too_many(FOLLOWED_MAX, "processes are followed"));
        }
        self.followed.insert(process, Progress::default());
        Ok(())
    }
}

fn too_many(most: usize, what: &str) -> String {
    format!("{}; end one first", service::too_many(most, what))
}
