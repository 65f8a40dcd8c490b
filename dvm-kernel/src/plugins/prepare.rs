//! What a member does for a transaction before it is decided: as much as can be done without changing anything.

use super::Peers;
use super::channel::ToChild;
use super::history::{Base, Start};
use super::launch::{Trouble, Until, ask, begin, hand_over, is_possible, launch};
use super::link::Link;
use super::manager::Shared;
use super::payload;
use bytes::Bytes;
use dvm_core::ids::{MemberId, TransactionId};
use dvm_core::state::{Payload, Placement, PluginSpec};
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
    let base = fresh(spec)?;
    if spec.placement == Placement::Application {
        // Whoever brings its code is asked when it comes.
        return Ok(None);
    }
    let link = launch(shared, spec, &base, place, until, deadline).await?;
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
    /// The state that this member's instance has, or keeps, if it has one.
    pub(super) state: Option<oneshot::Receiver<Option<Bytes>>>,
    /// There is a child here, which another one is to replace.
    pub(super) runs: bool,
}

/// Children of the new version, from before an upgrade is decided.
#[derive(Debug)]
pub(super) struct Successor {
    /// Was begun, and waits for the state as it is then.
    link: Link,
    /// Has taken this state, told it again, and has a role. It goes on as it is if nothing has changed the state: then
    /// nothing is done that could still fail.
    tried: Option<(Bytes, Link)>,
    /// What they were begun with.
    config: Bytes,
    place: Bytes,
}

impl Successor {
    /// The one that goes on, with state and role; none if they were begun with another configuration, or cannot go on.
    pub(super) async fn take_over(
        self,
        spec: &PluginSpec,
        base: &Base,
        place: &Bytes,
        until: Until,
        deadline: Instant,
    ) -> Option<Link> {
        let Self { mut link, tried, config, place: begun_at } = self;
        if config != base.config {
            return None;
        }
        let moved = (begun_at != *place).then(|| ToChild::Place(place.clone()));
        if let Some((state, mut tried)) = tried
            && until == Until::Restored
            && base.state == Start::From(state)
        {
            // It may have ended meanwhile; this changes nothing, and is answered by whoever lives.
            let lives = ToChild::Lease { until_us: 0 };
            match ask(&mut tried, "restore", moved.as_ref().unwrap_or(&lives), deadline).await {
                Ok(()) => return Some(tried),
                Err(trouble) => {
                    tracing::warn!(plugin = spec.name, reason = trouble.reason, "a tried instance has ended");
                }
            }
        }
        let given = async {
            if let Some(moved) = moved {
                ask(&mut link, "start", &moved, deadline).await?;
            }
            hand_over(&mut link, spec, base, until, deadline).await
        };
        match given.await {
            Ok(()) => Some(link),
            Err(trouble) => {
                let Trouble { stage, reason, .. } = trouble;
                tracing::warn!(plugin = spec.name, stage, reason, "a prepared instance is begun anew");
                None
            }
        }
    }
}

impl Upgrade {
    /// Tries it: it must start with the present configuration, take over the state that the instance here has now, and
    /// tell it again. What fails of that fails here, where it is one member's word, and the present version runs
    /// on everywhere. What is left is this child and one that is begun, to go on with once the upgrade is decided.
    pub(super) async fn try_out<P: Peers>(
        self,
        shared: &Shared<P>,
        place: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Successor>, Trouble> {
        let Self { transaction, spec, payload, canary, state, runs } = self;
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
        let until = if runs { Until::Started } else { Until::Valid };
        let handed = async {
            let Some(state) = state else { return Ok(None) };
            let state = timeout_at(deadline, state).await.map_err(|_| Trouble::late("restore"))?;
            // An instance that does not run may have none to take over.
            let Some(state) = state.ok().flatten() else { return Ok(None) };
            let base = Base { state: Start::From(state.clone()), ..base.clone() };
            let mut tried = launch(shared, &spec, &base, place, Until::Restored, deadline).await?;
            ask(&mut tried, "restore", &ToChild::Snapshot, deadline).await?;
            Ok(Some((state, tried)))
        };
        let (link, tried) = tokio::try_join!(begin(shared, &spec, &base, place, until, deadline), handed)?;
        let successor = Successor { link, tried, config: base.config, place: place.clone() };
        Ok(runs.then_some(successor))
    }
}

/// The beginning of an instance whose state is what `start` makes.
fn fresh(spec: &PluginSpec) -> Result<Base, Trouble> {
    is_possible(spec)?;
    let config = payload::config(spec.library.payload, &spec.config)
        .map_err(|reason| Trouble::new("validate", "config", reason))?;
    Ok(Base { index: 0, config, state: Start::Fresh })
}
