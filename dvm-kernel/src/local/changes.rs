//! Changes: proposed, waited for, and told with their receipt.

use super::Server;
use super::documents::{self, Place};
use super::requests::Ask;
use crate::clock::wall_ms;
use crate::security::draw_id;
use dvm_core::ids::MemberId;
use dvm_core::state::{Applied, Change, KeyCondition, KeyOperation, KeyTransaction, LeaveBy, Stamp, State};
use dvm_core::view::Label;
use dvm_core::{Answer as CoreAnswer, Merge, Receipt as CoreReceipt, Refusal};
use dvm_plugin_api::local::{Answer, Condition, Failure, FailureCode, Operation, Receipt};
use dvm_plugin_api::service::key_refusal;
use rustix::process::{Pid, Signal, kill_process};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// First pause before a proposal that found no room is made again; it doubles.
const PAUSE: Duration = Duration::from_millis(1);

/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a member may take to leave before it is ended by force, where that was asked for.
const LEAVE: Duration = Duration::from_secs(2);

impl Server {
    /// Proposes a change and waits for it. A repeat answers what the first one did.
    pub(super) async fn change(&self, ask: &Ask, change: Change) -> Result<(Receipt, Applied), Failure> {
        let stamp = ask.stamp.as_ref().map(|stamp| Stamp { session: stamp.session.clone(), seq: stamp.seq });
        let mut pause = PAUSE;
        loop {
            match self.ring.submit(stamp.clone(), change.clone()).await? {
                CoreAnswer::Done { receipt, applied } => return self.done(receipt, applied).await,
                CoreAnswer::Refused(Refusal::Busy | Refusal::Yielding) => {
                    sleep(pause).await;
                    pause = (2 * pause).min(PAUSE_MAX);
                }
                CoreAnswer::Refused(refusal) => return Err(refused(refusal)),
                CoreAnswer::Unknown { reason } => {
                    return Err(Failure::new(
                        FailureCode::Unknown,
                        "whether it took effect cannot be known here",
                    )
                    .cause(reason)
                    .hint("repeat it with the same --id, or look at `dvm history`"));
                }
            }
        }
    }

    pub(super) async fn state_transaction(
        &self,
        ask: &Ask,
        conditions: Vec<(String, Condition)>,
        then: Vec<Operation>,
        otherwise: Vec<Operation>,
    ) -> Result<Answer, Failure> {
        let fails_without = otherwise.is_empty();
        let transaction = KeyTransaction {
            conditions: conditions.into_iter().map(condition).collect::<Result<_, _>>()?,
            then: then.into_iter().map(operation).collect::<Result<_, _>>()?,
            otherwise: otherwise.into_iter().map(operation).collect::<Result<_, _>>()?,
        };
        let (receipt, applied) = self.change(ask, Change::Keys(transaction)).await?;
        let Applied::Keys { held, version, failed } = applied else { return Err(strange(&applied)) };
        if let Some((key, present)) = failed.filter(|_| fails_without) {
            let cause = match present.0 {
                0 => format!("`{key}` does not exist"),
                present => format!("`{key}` has version {present}"),
            };
            return Err(Failure::new(
                FailureCode::Rejected,
                "a condition does not hold; nothing was changed",
            )
            .cause(cause));
        }
        Ok(Answer::Done { receipt: Some(receipt), held: Some(held), version: Some(version.0) })
    }

    pub(super) async fn configure(
        &self,
        ask: &Ask,
        changes: Vec<(String, String)>,
        member: Option<String>,
    ) -> Result<Answer, Failure> {
        let change = match member {
            None => {
                let mut config = self.in_state(|state| state.config.clone()).await?;
                for (key, value) in &changes {
                    config
                        .change(key, value)
                        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
                }
                Change::Settings(changes)
            }
            Some(member) => {
                let member = self.find_member(&member).await?;
                let tags =
                    changes.into_iter().map(|(key, value)| (key, Some(value).filter(|v| !v.is_empty())));
                Change::Tags { member, tags: tags.collect() }
            }
        };
        let (receipt, _) = self.change(ask, change).await?;
        Ok(accepted(Some(receipt)))
    }

    /// The member that a name, `rank:N` or a prefix of an id means.
    pub(super) async fn find_member(&self, wanted: &str) -> Result<MemberId, Failure> {
        let text = wanted.to_owned();
        let found = self.in_state(move |state| find(state, &text)).await?;
        found.ok_or_else(|| {
            Failure::new(FailureCode::NotFound, format!("no member `{wanted}`")).hint("see `dvm members`")
        })
    }

    pub(super) async fn remove(
        self: &Rc<Self>,
        ask: &Ask,
        member: &str,
        force: bool,
    ) -> Result<Answer, Failure> {
        let id = self.find_member(member).await?;
        let _listening = self.feed.listen();
        let mut seen = self.version.subscribe();
        let mut kill_at = force.then(|| Instant::now() + LEAVE);
        let ordered = self.change(ask, Change::Leave { member: id, by: LeaveBy::Remove });
        tokio::pin!(ordered);
        // A member that is stopped holds up the ring, and with it the order to leave.
        let ordered = loop {
            match kill_at {
                None => break ordered.await,
                Some(at) => match timeout_at(at, &mut ordered).await {
                    Ok(ordered) => break ordered,
                    Err(_) => {
                        kill_at = None;
                        self.kill(id).await?;
                    }
                },
            }
        };
        let receipt = match ordered {
            Ok((receipt, _)) => Some(receipt),
            // It was out before the order came.
            Err(failure) if force && failure.code == FailureCode::NotFound => None,
            Err(failure) => return Err(failure),
        };
        loop {
            let mine = id == self.identity.borrow().id;
            if (mine && self.ended.get()) || !self.in_state(move |s| s.members.contains_key(&id)).await? {
                return Ok(accepted(receipt));
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                kill_at = None;
                self.kill(id).await?;
            }
            self.wait_for_news(&mut seen).await;
        }
    }

    /// Ends another member's process, if it is certainly the one behind its socket on this host.
    async fn kill(&self, member: MemberId) -> Result<(), Failure> {
        let identity =
            self.in_state(move |state| state.members.get(&member).map(|r| r.identity.clone())).await?;
        let Some(identity) = identity else { return Ok(()) };
        let peer =
            self.place.dial(&identity.name).and_then(|s| Ok(rustix::net::sockopt::socket_peercred(&s)?));
        let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
        match (peer, pid) {
            (Ok(peer), Some(pid)) if peer.pid == pid => {
                tracing::warn!(member = identity.name, pid = identity.pid, "killed by request");
                kill_process(pid, Signal::KILL).map_err(|error| {
                    Failure::new(FailureCode::Failure, format!("{} cannot be killed", identity.name))
                        .cause(error.to_string())
                })
            }
            _ => {
                let text = format!("{} does not leave, and its process is not on this host", identity.name);
                Err(Failure::new(FailureCode::Failure, text).hint("end its kernel on its own host"))
            }
        }
    }

    pub(super) async fn halt(&self, ask: &Ask) -> Result<Answer, Failure> {
        let by = self.identity.borrow().name.clone();
        let (receipt, _) = self.change(ask, Change::Halt { by }).await?;
        Ok(accepted(Some(receipt)))
    }

    pub(super) async fn promote(&self, ask: &Ask) -> Result<Answer, Failure> {
        if self.in_state(|state| state.view.label).await? == Label::Confirmed && !self.blocked.get() {
            return Ok(accepted(None));
        }
        let _ = ask;
        match self.ring.promote(draw_id()).await? {
            CoreAnswer::Done { receipt, applied } => {
                tracing::warn!(
                    index = receipt.index.0,
                    time_ms = wall_ms(),
                    "promoted by the operator's word"
                );
                let (receipt, _) = self.done(receipt, applied).await?;
                Ok(accepted(Some(receipt)))
            }
            CoreAnswer::Refused(refusal) => Err(refused(refusal)),
            CoreAnswer::Unknown { reason } => {
                Err(Failure::new(FailureCode::Unknown, "the promotion's end is not known here").cause(reason))
            }
        }
    }

    /// A receipt and what was done; failures are told as such.
    async fn done(&self, receipt: CoreReceipt, applied: Applied) -> Result<(Receipt, Applied), Failure> {
        let mut document = documents::receipt(&receipt, self.shared.dvm);
        let applied = match applied {
            Applied::Repeated { index, first } => {
                let place = self.mirror.borrow().place(index);
                document.index = index.0;
                document.cursor =
                    place.unwrap_or(Place::new(self.shared.dvm, receipt.view.id, index)).cursor();
                *first
            }
            applied => applied,
        };
        match applied {
            Applied::Refused { code, .. } if code == "sequence" && self.resubmits().await? => {
                let text =
                    "what the session did before was on a branch that was lost, and is being done again";
                Err(Failure::new(FailureCode::Unknown, text)
                    .hint("look whether it took effect before you repeat it"))
            }
            Applied::Refused { code, reason } => Err(failed(&code, reason)),
            applied => Ok((document, applied)),
        }
    }

    /// Whether changes of a lost branch may be ordered yet.
    async fn resubmits(&self) -> Result<bool, Failure> {
        self.in_state(|state| state.config.merge == Merge::Resubmit).await
    }
}

/// For what has nothing to say but that it is done, and where.
pub(super) fn accepted(receipt: Option<Receipt>) -> Answer {
    Answer::Done { receipt, held: None, version: None }
}

fn failed(code: &str, reason: String) -> Failure {
    let code = match code {
        "not-found" => FailureCode::NotFound,
        "invalid" => FailureCode::Usage,
        "busy" => FailureCode::Rejected,
        "sequence" => FailureCode::SessionLost,
        "denied" => FailureCode::Denied,
        _ => FailureCode::Failure,
    };
    Failure::new(code, reason)
}

fn refused(refusal: Refusal) -> Failure {
    let text = refusal.to_string();
    match refusal {
        Refusal::NoQuorum => Failure::new(FailureCode::NoQuorum, text)
            .hint("wait until members are back, or see `dvm promote --help`"),
        Refusal::NotMember => Failure::new(FailureCode::NoDvm, text),
        Refusal::TooLarge => Failure::new(FailureCode::Usage, text).hint("`dvm config get inline_max`"),
        Refusal::Busy | Refusal::Yielding => Failure::new(FailureCode::Failure, text).hint("try again"),
    }
}

/// For what a change of this kind cannot have done.
pub(super) fn strange(applied: &Applied) -> Failure {
    Failure::new(FailureCode::Failure, format!("the DVM answered {applied:?}, which fits no such request"))
}

fn find(state: &State, wanted: &str) -> Option<MemberId> {
    if let Some((id, _)) = state.members.iter().find(|(_, record)| record.identity.name == wanted) {
        return Some(*id);
    }
    if let Some(rank) = wanted.strip_prefix("rank:") {
        return state.view.members.get(rank.parse::<usize>().ok()?).copied();
    }
    let mut with_prefix = state.view.members.iter().filter(|id| id.to_string().starts_with(wanted));
    let first = with_prefix.next().filter(|_| wanted.len() >= 6)?;
    with_prefix.next().is_none().then_some(*first)
}

fn check_key(key: &str) -> Result<(), Failure> {
    key_refusal(key, false).map_or(Ok(()), |why| Err(Failure::new(FailureCode::Usage, why)))
}

fn check_writable(key: &str) -> Result<(), Failure> {
    check_key(key)?;
    match key_refusal(key, true) {
        Some(why) => Err(Failure::new(FailureCode::Denied, why).hint("give it another name, like app/x")),
        None => Ok(()),
    }
}

fn condition((key, condition): (String, Condition)) -> Result<(String, KeyCondition), Failure> {
    check_key(&key)?;
    let condition = match condition {
        Condition::Version(version) => KeyCondition::Version(dvm_core::ids::HistoryIndex(version)),
        Condition::Absent => KeyCondition::Absent,
        Condition::Present => KeyCondition::Present,
    };
    Ok((key, condition))
}

fn operation(operation: Operation) -> Result<KeyOperation, Failure> {
    match operation {
        Operation::Put { key, value } => {
            check_writable(&key)?;
            Ok(KeyOperation::Put { key, value: value.to_string().into() })
        }
        Operation::Delete { key } => {
            check_writable(&key)?;
            Ok(KeyOperation::Delete { key })
        }
    }
}
