//! Subscriptions: one stream of events each, from a place the client names, at the client's pace.

use super::Server;
use super::connections::{ClientGone, Outgoing};
use super::documents::{self, Place};
use super::mirror::{Found, Item, Reader};
use crate::clock::wall_ms;
use dvm_core::Phase;
use dvm_core::ids::HistoryIndex;
use dvm_core::state::LeaveBy;
use dvm_plugin_api::local::{Answer, EventDoc, Failure, FailureCode, Since, ToClient};
use serde_json::{Value, json};
use std::rc::Rc;

/// Events read at a time.
const BATCH: usize = 128;

/// Kinds that are told only where they are asked for.
const QUIET: [&str; 2] = ["key-changed", "member-suspected"];

/// What a subscriber wants to hear.
struct Wanted {
    kinds: Vec<String>,
    key_prefix: Option<String>,
}

impl Wanted {
    fn has(&self, event: &EventDoc) -> bool {
        let by_kind = if self.kinds.is_empty() {
            !QUIET.contains(&event.kind.as_str())
        } else {
            self.kinds.iter().any(|prefix| event.kind.starts_with(prefix.as_str()))
        };
        let by_key = self.key_prefix.as_ref().is_none_or(|prefix| {
            event.kind != "key-changed"
                || event
                    .more
                    .get("key")
                    .and_then(Value::as_str)
                    .is_some_and(|key| key.starts_with(prefix.as_str()))
        });
        by_kind && by_key
    }
}

impl Server {
    /// Serves a subscription until it ends. Its last answer; nothing if the client is gone.
    pub(super) async fn subscribe(
        self: &Rc<Self>,
        id: u64,
        since: Since,
        kinds: Vec<String>,
        follow: bool,
        key_prefix: Option<String>,
        outgoing: &Outgoing,
    ) -> Option<Result<Answer, Failure>> {
        if matches!(self.feed.phase(), Phase::Joining | Phase::Left) {
            return Some(Err(Failure::new(FailureCode::NoDvm, "this kernel is not a member now")));
        }
        let _listening = follow.then(|| self.feed.listen());
        self.catch_up();
        // Branches that this kernel lost have no place in the history; who wants everything hears of them first.
        let lost: Vec<_> = match since {
            Since::All => self.lost.borrow().iter().cloned().collect(),
            _ => Vec::new(),
        };
        let mut reader = match self.reader(since) {
            Ok(reader) => reader,
            Err(failure) => return Some(Err(failure)),
        };
        let wanted = Wanted { kinds, key_prefix };
        for told in lost.into_iter().filter(|told| wanted.has(told)) {
            if outgoing.send(ToClient { id, answer: Ok(Answer::Event(Box::new(told))) }).await.is_err() {
                return None;
            }
        }
        let mut seen = self.version.subscribe();
        loop {
            seen.mark_unchanged();
            match self.pass_on(id, &mut reader, &wanted, outgoing).await {
                Err(ClientGone) => return None,
                Ok(true) => {}
                Ok(false) if !follow => return Some(Ok(Answer::End { why: "kept".into() })),
                Ok(false) if self.ended.get() => {
                    let why = if self.left.get() == Some(LeaveBy::Halt) { "halt" } else { "lost" };
                    return Some(Ok(Answer::End { why: why.into() }));
                }
                Ok(false) => self.wait_for_news(&mut seen).await,
            }
        }
    }

    fn reader(&self, since: Since) -> Result<Reader, Failure> {
        let mirror = self.mirror.borrow();
        Ok(match since {
            Since::Now => mirror.read_now(),
            Since::All => mirror.read_all(),
            Since::Index(index) => mirror.read_after(HistoryIndex(index)),
            Since::Cursor(cursor) => {
                let place = Place::parse(&cursor).ok_or_else(|| {
                    Failure::new(FailureCode::Usage, format!("`{cursor}` is no cursor of an event"))
                })?;
                mirror.read_from(place)
            }
        })
    }

    /// Passes on what comes next; whether there was anything.
    async fn pass_on(
        self: &Rc<Self>,
        id: u64,
        reader: &mut Reader,
        wanted: &Wanted,
        outgoing: &Outgoing,
    ) -> Result<bool, ClientGone> {
        let found = self.mirror.borrow().read(reader, BATCH);
        let event = |event: EventDoc| ToClient { id, answer: Ok(Answer::Event(Box::new(event))) };
        match found {
            Found::Nothing => return Ok(false),
            Found::Items(items) => {
                for item in items {
                    let document = match item {
                        Item::Event(event) => documents::event(&event, self.shared.dvm),
                        Item::Note(note) => (*note).clone(),
                    };
                    if wanted.has(&document) {
                        outgoing.send(event(document)).await?;
                    }
                }
            }
            Found::Overflow(low) => {
                let more = json!({"resume_from": low});
                if let Some(note) = self.note_now("overflow", more).await {
                    outgoing.send(event(note)).await?;
                }
            }
            Found::OtherBranch(resume) => {
                let last = self.lost.borrow().back().cloned();
                let note = match last {
                    Some(lost) => Some(lost),
                    // The branch had nothing of its own.
                    None => self.partition_lost(resume.0, 0).await,
                };
                if let Some(note) = note.filter(|note| wanted.has(note)) {
                    outgoing.send(event(note)).await?;
                }
            }
            // The DVM that was read is gone with all it had, and this one has begun anew.
            Found::OtherDvm(last) => {
                let note = self.partition_lost(0, last.0).await;
                if let Some(note) = note.filter(|note| wanted.has(note)) {
                    outgoing.send(event(note)).await?;
                }
            }
        }
        Ok(true)
    }

    /// Everything behind an index, so many entries, is lost to a reader, and no journal has it.
    async fn partition_lost(&self, fork: u64, discarded: u64) -> Option<EventDoc> {
        let more = json!({"fork_index": fork, "discarded": discarded, "journal": null, "resume_index": fork});
        self.note_now("partition-lost", more).await
    }

    async fn note_now(&self, kind: &str, more: Value) -> Option<EventDoc> {
        let state = self.copy_state().await?;
        Some(documents::note(&state, kind, more, wall_ms()))
    }
}
