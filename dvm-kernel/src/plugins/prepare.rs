//! What a member does for a transaction before it is decided: as much as can be done without changing anything.

use super::Peers;
use super::history::{Base, Start};
use super::launch::{Trouble, Until, is_possible, launch};
use super::link::Link;
use super::manager::Shared;
use super::payload;
use bytes::Bytes;
use dvm_core::ids::{MemberId, TransactionId};
use dvm_core::state::{Payload, PluginSpec};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Starts an instance for a load; where none is to be, only makes sure that one could.
pub(super) async fn load<P: Peers>(
    shared: &Shared<P>,
    spec: &PluginSpec,
    place: &Bytes,
    placed: bool,
    deadline: Instant,
) -> Result<Option<Link>, Trouble> {
    let until = if placed { Until::Restored } else { Until::Valid };
    let link = launch(shared, spec, &fresh(spec)?, place, until, deadline).await?;
    Ok(placed.then_some(link))
}

/// Another library for a plug-in that is loaded.
pub(super) struct Upgrade {
    pub(super) transaction: TransactionId,
    /// The plug-in with the new library.
    pub(super) spec: PluginSpec,
    /// The payload format of the present one: commands under way are in it.
    pub(super) payload: Payload,
    /// Another member, whose word is waited for first.
    pub(super) canary: Option<MemberId>,
    /// The state of this member's instance, if it has one.
    pub(super) state: Option<oneshot::Receiver<Option<Bytes>>>,
}

impl Upgrade {
    /// Tries it: it must start with the present configuration, and take over the state that the instance here has now.
    /// Nothing is left of the try.
    pub(super) async fn try_out<P: Peers>(
        self,
        shared: &Shared<P>,
        place: &Bytes,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let Self { transaction, spec, payload, canary, state } = self;
        if spec.library.payload != payload {
            let reason = "the new version's payload format is another one";
            return Err(Trouble::new("check", "abi", reason));
        }
        if let Some(canary) = canary {
            let word = timeout_at(deadline, shared.peers.executed(canary, transaction)).await;
            if let Some(Err(reason)) = word.map_err(|_| Trouble::late("check"))? {
                return Err(Trouble::new("check", "canary", format!("the canary says: {reason}")));
            }
        }
        let base = fresh(&spec)?;
        drop(launch(shared, &spec, &base, place, Until::Valid, deadline).await?);
        let Some(state) = state else { return Ok(()) };
        let state = timeout_at(deadline, state).await.map_err(|_| Trouble::late("restore"))?;
        // An instance that only keeps a state, or does not run, has none to take over.
        let Some(state) = state.ok().flatten() else { return Ok(()) };
        let base = Base { state: Start::From(state), ..base };
        drop(launch(shared, &spec, &base, place, Until::Restored, deadline).await?);
        Ok(())
    }
}

/// The beginning of an instance whose state is what `start` makes.
fn fresh(spec: &PluginSpec) -> Result<Base, Trouble> {
    is_possible(spec)?;
    let config = payload::config(spec.library.payload, &spec.config)
        .map_err(|reason| Trouble::new("validate", "config", reason))?;
    Ok(Base { index: 0, config, state: Start::Fresh })
}
