//! Effects of commands that are done, and those that may not be.
//!
//! A primary says up to which command its effects are done. The mark is a key of the DVM's own, `dvm/effects/NAME`, so that
//! it is ordered and every member has it; marks go there several at a time. What is undone follows from the mark and the
//! history: the plug-in's commands between the two. Nothing else is kept, and nothing at all for a plug-in that marks
//! nothing.

use super::Server;
use super::requests::Ask;
use crate::plugins::to_json;
use crate::services::desk::Desk;
use bytes::Bytes;
use dvm_core::ids::{HistoryIndex, Name};
use dvm_core::state::{
    Applied, Change, Content, KeyCondition, KeyOperation, KeyTransaction, Payload, State, Submission,
};
use dvm_plugin_api::local::{Failure, FailureCode};
use dvm_plugin_api::service::{self, Undone};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::spawn_local;
use tokio::time::sleep;

/// Marks wait for company so long.
const BATCH: Duration = Duration::from_millis(20);

/// Pause before a mark that could not be ordered is proposed again.
const AGAIN: Duration = Duration::from_millis(250);

/// Marks on their way into the history.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Of each plug-in the last, and the desk of who said it.
    waiting: BTreeMap<Name, (u64, u64)>,
    writing: bool,
}

/// The value of a plug-in's key.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Mark {
    /// The plug-in as it was loaded there.
    loaded: u64,
    /// Effects of all commands up to this one are done.
    done: u64,
}

/// What undone commands are looked for with.
struct Wanted {
    payload: Payload,
    /// Only commands behind this index.
    after: u64,
}

impl Server {
    /// The effects up to a command are done.
    pub(super) fn effects_done(self: &Rc<Self>, desk: &Desk, index: u64) -> Result<(), Failure> {
        desk.promoted().ok_or_else(|| no_primary(desk.plugin()))?;
        let mut marks = self.marks.borrow_mut();
        let mark = marks.waiting.entry(desk.plugin().clone()).or_insert((index, desk.id()));
        *mark = (mark.0.max(index), desk.id());
        if !std::mem::replace(&mut marks.writing, true) {
            spawn_local(self.clone().write_marks());
        }
        Ok(())
    }

    async fn write_marks(self: Rc<Self>) {
        loop {
            sleep(BATCH).await;
            let waiting = std::mem::take(&mut self.marks.borrow_mut().waiting);
            if waiting.is_empty() {
                self.marks.borrow_mut().writing = false;
                return;
            }
            for (plugin, (index, desk)) in waiting {
                // One that has ended says no more; who follows it does what is not marked again.
                while self.desks.find(desk).is_some_and(|desk| desk.promoted().is_some()) {
                    match self.write_mark(&plugin, index).await {
                        Ok(()) => break,
                        Err(failure) => tracing::info!(plugin, %failure, "a mark is proposed again"),
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn write_mark(&self, plugin: &Name, index: u64) -> Result<(), Failure> {
        let key = service::effects_key(plugin);
        let (name, wanted) = (plugin.clone(), key.clone());
        let found = self.in_state(move |state| {
            let loaded = state.plugins.get(&name)?.since.0;
            let record = state.keys.get(&wanted);
            Some((loaded, record.map(|record| record.version), mark(state, &name)))
        });
        let Some((loaded, version, present)) = found.await? else { return Ok(()) };
        if present.is_some_and(|mark| mark.done >= index) {
            return Ok(());
        }
        let condition = version.map_or(KeyCondition::Absent, KeyCondition::Version);
        let value = serde_json::to_vec(&Mark { loaded, done: index }).expect("a mark is plain data");
        let transaction = KeyTransaction {
            conditions: vec![(key.clone(), condition)],
            then: vec![KeyOperation::Put { key, value: value.into() }],
            otherwise: Vec::new(),
        };
        let ask = Ask { stamp: None, deadline: None, relayed: false };
        match self.change(&ask, Change::Keys(transaction)).await? {
            (_, Applied::Keys { held: true, .. }) => Ok(()),
            _ => Err(Failure::new(FailureCode::Rejected, "another mark came first")),
        }
    }

    /// The plug-in's commands before the promotion whose effects nobody has marked.
    pub(super) async fn effects_undone(self: &Rc<Self>, desk: &Desk) -> Result<Value, Failure> {
        let plugin = desk.plugin().clone();
        let through = desk.promoted().ok_or_else(|| no_primary(&plugin))?;
        let name = plugin.clone();
        let wanted = self.in_state(move |state| {
            let loaded = state.plugins.get(&name)?;
            let after = mark(state, &name).map_or(0, |mark| mark.done).max(loaded.since.0);
            Some(Wanted { payload: loaded.spec.library.payload, after })
        });
        let wanted = wanted
            .await?
            .ok_or_else(|| Failure::new(FailureCode::NotFound, format!("no plug-in `{plugin}` is loaded")))?;
        self.catch_up();
        let undone = self.undone(&plugin, &wanted, through);
        serde_json::to_value(undone).map_err(|error| Failure::new(FailureCode::Failure, error.to_string()))
    }

    fn undone(&self, plugin: &Name, wanted: &Wanted, through: u64) -> Undone {
        let mirror = self.mirror.borrow();
        let first = mirror.entries().next().map_or(mirror.index(), |entry| HistoryIndex(entry.first.0 - 1));
        // A repeat of a session's command took effect where it came first.
        let mut sessions: BTreeMap<String, u64> = BTreeMap::new();
        let delivered = mirror.entries().take_while(|entry| entry.index.0 <= through);
        let commands = delivered.filter_map(|entry| {
            let Content::Change { body, .. } = &entry.content else { return None };
            let Submission { stamp, change, .. } = postcard::from_bytes::<Submission>(body).ok()?;
            if let Some(stamp) = stamp {
                let last = sessions.entry(stamp.session).or_default();
                if stamp.seq <= *last {
                    return None;
                }
                *last = stamp.seq;
            }
            let Change::Command { plugin: of, payload } = change else { return None };
            let wanted_now = of == *plugin && entry.first.0 > wanted.after;
            let json = move |payload: Bytes| to_json(wanted.payload, &payload).unwrap_or(Value::Null);
            wanted_now.then(|| (entry.first.0, payload.len(), move || json(payload)))
        });
        let missed = first.0 > wanted.after && through > wanted.after;
        Undone { missed, ..Undone::of(commands) }
    }
}

/// The mark of a plug-in as it is loaded now.
fn mark(state: &State, plugin: &str) -> Option<Mark> {
    let record = state.keys.get(&service::effects_key(plugin))?;
    let mark: Mark = serde_json::from_slice(&record.value).ok()?;
    let loaded = state.plugins.get(plugin)?.since.0;
    Some(mark).filter(|mark| mark.loaded == loaded)
}

fn no_primary(plugin: &str) -> Failure {
    Failure::new(FailureCode::Rejected, service::no_primary(plugin))
        .hint("load it with --mode hot, warm or single")
}
