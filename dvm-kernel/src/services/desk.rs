//! The desks of this member's instances: who may ask, what waits for whom, what each has set going.
//!
//! A desk is opened before its instance is started, and closed with it: its timers, watches and followed processes end
//! then, and what waited is dropped. Both threads see it: the local server fills it, the instance's task empties it.

use crate::security::draw_id;
use bytes::Bytes;
use dvm_core::ids::Name;
use dvm_plugin_api::service::{self, FOLLOWED_MAX, TIMERS_MAX, WAITING_MAX, WATCHES_MAX};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// No promotion.
const NEVER: u64 = u64::MAX;

/// All desks of this kernel.
#[derive(Debug, Default)]
pub(crate) struct Desks(Mutex<BTreeMap<u64, Arc<Desk>>>);

/// One instance's.
#[derive(Debug)]
pub(crate) struct Desk {
    id: u64,
    plugin: Name,
    /// It is its member's instance and applies what it is told.
    serving: AtomicBool,
    /// The last index before it became the primary.
    promoted: AtomicU64,
    waiting: mpsc::Sender<Bytes>,
    /// Changes of keys that found no room.
    lost: AtomicU64,
    going: Mutex<Going>,
}

/// What an instance has set going.
#[derive(Debug, Default)]
struct Going {
    timers: BTreeMap<String, AbortHandle>,
    /// By member and key.
    followed: BTreeMap<(Name, String), AbortHandle>,
    watches: BTreeSet<String>,
    closed: bool,
}

/// The instance's end of its desk.
#[derive(Debug)]
pub(crate) struct Notices {
    desks: Arc<Desks>,
    desk: Arc<Desk>,
    waiting: mpsc::Receiver<Bytes>,
}

/// An event that comes to one instance alone.
pub(crate) fn own_event(kind: &str, fields: Value) -> Bytes {
    service::event(0, kind, fields).into()
}

impl Desks {
    /// Opens a desk for an instance that is about to start.
    pub(crate) fn open(self: &Arc<Self>, plugin: &str) -> Notices {
        let (to, waiting) = mpsc::channel(WAITING_MAX);
        let desk = Arc::new(Desk {
            id: draw_id() as u64,
            plugin: plugin.into(),
            serving: AtomicBool::new(false),
            promoted: AtomicU64::new(NEVER),
            waiting: to,
            lost: AtomicU64::new(0),
            going: Mutex::default(),
        });
        self.all().insert(desk.id, desk.clone());
        Notices { desks: self.clone(), desk, waiting }
    }

    /// The desk with this number.
    pub(crate) fn find(&self, id: u64) -> Option<Arc<Desk>> {
        self.all().get(&id).cloned()
    }

    /// A message for the instance of a plug-in here.
    ///
    /// # Errors
    /// Why it is not taken, to be read behind the member's name.
    pub(crate) fn message(&self, plugin: &str, message: Bytes) -> Result<(), String> {
        let serving = self.all().values().find(|desk| desk.plugin == plugin && desk.is_serving()).cloned();
        let Some(desk) = serving else { return Err(service::absent(plugin)) };
        desk.waiting.try_send(message).map_err(|_| service::full(plugin))
    }

    /// A key has changed.
    pub(crate) fn key_changed(&self, index: u64, key: &str, fields: impl FnOnce() -> Value) {
        let watching = |desk: &&Arc<Desk>| desk.going().watches.iter().any(|prefix| key.starts_with(prefix));
        let watching: Vec<_> = self.all().values().filter(watching).cloned().collect();
        if watching.is_empty() {
            return;
        }
        let event = Bytes::from(service::event(index, "key-changed", fields()));
        for desk in watching {
            if desk.waiting.try_send(event.clone()).is_err() {
                desk.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Desk>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn plugin(&self) -> &Name {
        &self.plugin
    }

    /// Whether its instance is its member's, and not one whose load may still be rejected.
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// The last index before it became the primary, if it is that.
    pub(crate) fn promoted(&self) -> Option<u64> {
        Some(self.promoted.load(Ordering::Acquire)).filter(|index| *index != NEVER)
    }

    /// Has an event wait, unless there is no room.
    pub(crate) fn offer(&self, event: Bytes) {
        let _ = self.waiting.try_send(event);
    }

    /// Has an event wait, once there is room. False: the instance has ended.
    pub(crate) async fn put(&self, event: Bytes) -> bool {
        self.waiting.send(event).await.is_ok()
    }

    /// Begins to watch; false if there are too many.
    pub(crate) fn watch(&self, prefix: String) -> bool {
        let mut going = self.going();
        let room = going.watches.len() < WATCHES_MAX || going.watches.contains(&prefix);
        room && {
            going.watches.insert(prefix);
            true
        }
    }

    pub(crate) fn unwatch(&self, prefix: &str) {
        self.going().watches.remove(prefix);
    }

    /// Sets a timer in place of the one of its name; false if there are too many.
    pub(crate) fn set_timer(&self, name: String, start: impl FnOnce() -> AbortHandle) -> bool {
        let mut going = self.going();
        going.timers.retain(|_, timer| !timer.is_finished());
        let room = going.timers.len() < TIMERS_MAX || going.timers.contains_key(&name);
        room && !going.closed && {
            going.timers.insert(name, start()).inspect(AbortHandle::abort);
            true
        }
    }

    pub(crate) fn cancel_timer(&self, name: &str) {
        self.going().timers.remove(name).inspect(AbortHandle::abort);
    }

    /// Follows a process, in place of what followed it before; false if there are too many.
    pub(crate) fn follow(&self, process: (Name, String), start: impl FnOnce() -> AbortHandle) -> bool {
        let mut going = self.going();
        going.followed.retain(|_, following| !following.is_finished());
        let room = going.followed.len() < FOLLOWED_MAX || going.followed.contains_key(&process);
        room && !going.closed && {
            going.followed.insert(process, start()).inspect(AbortHandle::abort);
            true
        }
    }

    fn going(&self) -> MutexGuard<'_, Going> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notices {
    /// The desk's number, by which the instance asks.
    pub(crate) fn id(&self) -> u64 {
        self.desk.id
    }

    /// The instance is its member's from here on.
    pub(crate) fn serve(&self) {
        self.desk.serving.store(true, Ordering::Release);
    }

    /// It is told that it is the primary behind everything up to this index.
    pub(crate) fn promoted(&self, index: u64) {
        self.desk.promoted.store(index, Ordering::Release);
    }

    /// It is the primary no longer.
    pub(crate) fn demoted(&self) {
        self.desk.promoted.store(NEVER, Ordering::Release);
    }

    /// The next event. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Bytes {
        if self.waiting.is_empty() {
            let lost = self.desk.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                return own_event("overflow", json!({"lost": lost}));
            }
        }
        match self.waiting.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.desks.all().remove(&self.desk.id);
        let mut going = self.desk.going();
        going.closed = true;
        going.watches.clear();
        std::mem::take(&mut going.timers).values().for_each(AbortHandle::abort);
        std::mem::take(&mut going.followed).values().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_plugin_api::Event;

    fn read(event: &Bytes) -> Event {
        rmp_serde::from_slice(event).expect("an event")
    }

    #[tokio::test]
    async fn messages_go_to_the_instance_that_serves_and_are_refused_beyond_bounds() {
        let desks = Arc::new(Desks::default());
        let mut notices = desks.open("a");
        let message = || own_event("message", json!({"from": "k0"}));
        assert!(desks.message("a", message()).expect_err("not yet").contains("no instance of `a` that runs"));
        notices.serve();
        for _ in 0..WAITING_MAX {
            desks.message("a", message()).expect("there is room");
        }
        assert!(desks.message("a", message()).expect_err("full").contains("send it later"));
        assert_eq!(read(&notices.next().await).kind, "message");
        desks.message("a", message()).expect("there is room again");
        drop(notices);
        assert!(desks.message("a", message()).is_err(), "it has ended");
    }

    #[tokio::test]
    async fn changes_of_keys_that_find_no_room_are_counted_and_told() {
        let desks = Arc::new(Desks::default());
        let mut notices = desks.open("a");
        let desk = desks.find(notices.id()).expect("it is open");
        assert!(desk.watch("app/".into()));
        desks.key_changed(7, "other", || unreachable!("nobody watches it"));
        for index in 0..WAITING_MAX as u64 + 3 {
            desks.key_changed(index, "app/x", || json!({"key": "app/x"}));
        }
        for index in 0..WAITING_MAX as u64 {
            let event = read(&notices.next().await);
            assert_eq!((event.index, event.kind.as_str()), (index, "key-changed"));
        }
        let event = read(&notices.next().await);
        assert_eq!((event.kind.as_str(), &event.fields["lost"]), ("overflow", &json!(3)));
        desk.unwatch("app/");
        desks.key_changed(9, "app/x", || unreachable!("nobody watches it any more"));
    }

    #[tokio::test]
    async fn what_an_instance_has_set_going_is_bounded_and_ends_with_it() {
        let desks = Arc::new(Desks::default());
        let notices = desks.open("a");
        let desk = desks.find(notices.id()).expect("it is open");
        let mut tasks = Vec::new();
        for number in 0..TIMERS_MAX {
            let task = tokio::spawn(std::future::pending::<()>());
            assert!(desk.set_timer(number.to_string(), || task.abort_handle()));
            tasks.push(task);
        }
        assert!(!desk.set_timer("more".into(), || unreachable!("there is no room")));
        let again = tokio::spawn(std::future::pending::<()>());
        assert!(desk.set_timer("0".into(), || again.abort_handle()), "it takes the place of one");
        assert!(tasks.remove(0).await.expect_err("replaced").is_cancelled());
        drop(notices);
        for task in tasks.into_iter().chain([again]) {
            assert!(task.await.expect_err("ended with the instance").is_cancelled());
        }
    }
}
