//! Comparing all members: every one copies its state, then one entry is ordered, and each brings its copy to that
//! entry by the history it holds. The hashes are of exactly the same place, however busy the ring is.

use super::Server;
use super::requests::Ask;
use crate::security::ticket::hex;
use dvm_core::ids::{HistoryIndex, MemberId, Name};
use dvm_core::state::{Change, State};
use dvm_plugin_api::local::{Answer, Failure, VerifyMember};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a member may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Entries applied before others have their turn.
const TURN: usize = 64;

/// Hashes of history and state.
type Hashes = Option<([u8; 32], [u8; 32])>;

impl Server {
    pub(super) async fn verify(self: &Rc<Self>, ask: &Ask) -> Result<Answer, Failure> {
        let own = self.in_state(State::clone).await?;
        let me = self.identity.borrow().id;
        let members: Vec<(MemberId, Name)> =
            own.view.members.iter().map(|member| (*member, own.name_of(*member))).collect();
        let mut copying = JoinSet::new();
        for (member, _) in members.iter().filter(|(member, _)| *member != me).cloned() {
            let peers = self.peers.clone();
            copying.spawn_local(async move { (member, peers.copy_state(member).await) });
        }
        let mut copies = Vec::new();
        while let Some(Ok((member, copied))) = copying.join_next().await {
            match copied {
                Ok(copied) => copies.push((member, copied)),
                Err(error) => tracing::info!(peer = %member, %error, "it did not copy its state"),
            }
        }
        let unstamped = Ask { stamp: None, ..*ask };
        let (receipt, _) = self.change(&unstamped, Change::Noop).await?;
        let index = HistoryIndex(receipt.index);
        let limit = ask.left(PATIENCE);
        let mut comparing = JoinSet::new();
        for (member, copied) in copies {
            comparing.spawn_local(async move {
                let hashes = copied.hashes(index, limit).await;
                let report = |error| tracing::info!(peer = %member, %error, "it did not tell its hashes");
                (member, hashes.map_err(report).ok().flatten())
            });
        }
        let mut all: Vec<(MemberId, Hashes)> = vec![(me, self.hashes_at(own, index).await)];
        while let Some(Ok(one)) = comparing.join_next().await {
            all.push(one);
        }
        let document = |(id, member): (MemberId, Name)| {
            let hashes = all.iter().find(|(one, _)| *one == id).and_then(|(_, hashes)| *hashes);
            let text = |hash: Option<[u8; 32]>| hash.map(|hash| hex(&hash)).unwrap_or_default();
            VerifyMember {
                member,
                index: if hashes.is_some() { index.0 } else { 0 },
                history_hash: text(hashes.map(|(history, _)| history)),
                state_hash: text(hashes.map(|(_, state)| state)),
            }
        };
        Ok(Answer::Verify { through_index: index.0, members: members.into_iter().map(document).collect() })
    }

    /// Brings a copy of this member's state to `index` and hashes it.
    pub(crate) async fn hashes_at(self: &Rc<Self>, mut state: State, index: HistoryIndex) -> Hashes {
        let generation = self.mirror.borrow().generation();
        let until = self.clock.now().plus_ms(PATIENCE.as_millis() as u64);
        if index < state.index || !self.wait_through(index, until).await {
            return None;
        }
        if self.mirror.borrow().generation() != generation {
            return None;
        }
        let span = self.mirror.borrow().span(state.index, index)?;
        for (number, entry) in span.iter().enumerate() {
            if let Err(error) = state.apply_entry(entry) {
                tracing::error!(index = entry.index.0, error, "the history does not apply again");
                return None;
            }
            if number % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        (state.index == index).then(|| (state.history_hash, state.hash()))
    }
}
