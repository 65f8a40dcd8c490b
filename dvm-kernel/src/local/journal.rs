//! The orphan journal: what a lost branch did, one entry a line, readable when no kernel lives.
//!
//! `MEMBER.orphans-FORK-TIME.jsonl` in the directory of the logs. The first line says which branch it is of.

use super::{Server, documents};
use crate::clock::{rfc3339, wall_ms};
use dvm_core::ids::HistoryIndex;
use dvm_core::state::{Entry, State};
use dvm_plugin_api::local::EventDoc;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// A lost branch.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Last index it shares with the branch that stands.
    pub(super) fork: HistoryIndex,
    /// Entries only it had.
    pub(super) discarded: usize,
    /// Where they are written.
    pub(super) path: PathBuf,
}

impl Lost {
    /// As subscribers are told, once the branch that stands is this kernel's.
    pub(super) fn told(&self, standing: &State) -> EventDoc {
        let more = json!({
            "fork_index": self.fork, "discarded": self.discarded, "journal": self.path,
            "resume_index": standing.index,
        });
        documents::note(standing, "partition-lost", more, wall_ms())
    }
}

impl Server {
    pub(super) fn journal_path(&self, fork: HistoryIndex) -> PathBuf {
        self.logs.join(format!("{}.orphans-{fork}-{}.jsonl", self.identity.borrow().name, wall_ms()))
    }

    pub(super) async fn write_journal(self: Rc<Self>, lost: Lost, entries: Vec<Arc<Entry>>, truncated: bool) {
        let Some(state) = self.copy_state().await else { return };
        let head = json!({
            "schema": 1, "dvm": state.name, "member": self.identity.borrow().name, "fork_index": lost.fork,
            "entries": entries.len(), "truncated": truncated, "time": rfc3339(wall_ms()),
        });
        let lines = entries.iter().map(|entry| json!(documents::entry(entry, &state)));
        let lines: String = std::iter::once(head).chain(lines).map(|line| format!("{line}\n")).collect();
        match write(&lost.path, &lines) {
            Ok(()) => {
                let (entries, journal) = (entries.len(), lost.path.display());
                tracing::warn!(fork = lost.fork.0, entries, %journal, "a branch was lost");
            }
            Err(error) => tracing::error!(%error, journal = %lost.path.display(), "the orphan journal"),
        }
    }
}

fn write(path: &Path, lines: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(lines.as_bytes())?;
    file.sync_all()
}
