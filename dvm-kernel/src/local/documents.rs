//! The core's values as the documents that scripts parse.

use crate::clock::rfc3339;
use crate::plugins::Figures;
use crate::security::ticket::hex;
use dvm_core::ids::{Epoch, HistoryIndex, MemberId, Name, TransactionId, ViewId};
use dvm_core::state::{
    Change, Content, Entry, Event, EventKind, InstanceState, KeyCondition, KeyOperation, LeaveBy,
    MemberBrief, Mode, Placement, Plugin, PluginState, State, Submission,
};
use dvm_core::view::View;
use dvm_core::wire::{ExecResult, Verdict};
use dvm_core::{MemberStatus, Partition, Phase, Receipt};
use dvm_plugin_api::local::{
    DepartedDoc, DvmDoc, EventDoc, HistoryEntry, InstanceDoc, MemberDoc, OpenDoc, PluginDoc, QuarantinedDoc,
    Receipt as ReceiptDoc, ResidentDoc, ResultDoc, Stamp, Status, ViewDoc,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A place in the history of a branch: what a cursor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The DVM: another one may have its name later. Enough of its number to tell them apart.
    pub(crate) dvm: u32,
    /// The view.
    pub(crate) view: ViewId,
    /// The last index of an entry in it.
    pub(crate) index: HistoryIndex,
}

impl Place {
    /// In the DVM with this number.
    pub(crate) fn new(dvm: u128, view: ViewId, index: HistoryIndex) -> Self {
        Self { dvm: dvm as u32, view, index }
    }

    /// As clients keep it.
    pub(crate) fn cursor(self) -> String {
        let ViewId { epoch, proposer, round } = self.view;
        format!("{epoch}-{proposer}-{round}-{}-{:08x}", self.index, self.dvm)
    }

    /// From what a client kept.
    pub(crate) fn parse(cursor: &str) -> Option<Self> {
        let mut parts = cursor.split('-');
        let epoch = Epoch(parts.next()?.parse().ok()?);
        let proposer = MemberId(u128::from_str_radix(parts.next()?, 16).ok()?);
        let round = parts.next()?.parse().ok()?;
        let index = HistoryIndex(parts.next()?.parse().ok()?);
        let dvm = u32::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(Self { dvm, view: ViewId { epoch, proposer, round }, index })
    }
}

/// A receipt.
pub(crate) fn receipt(receipt: &Receipt, dvm: u128) -> ReceiptDoc {
    let Receipt { index, view } = receipt;
    ReceiptDoc {
        index: index.0,
        lineage: view.lineage.to_string(),
        view: view_text(view),
        epoch: view.id.epoch.0,
        label: view.label.word().into(),
        cursor: Place::new(dvm, view.id, *index).cursor(),
    }
}

fn view_text(view: &View) -> String {
    format!("{}.{}.{}", view.id.epoch, view.proposer_name, view.id.round)
}

/// An event of the DVM with this number.
pub(crate) fn event(event: &Event, dvm: u128) -> EventDoc {
    EventDoc {
        schema: 1,
        index: Some(event.index.0),
        view: event.view.clone(),
        epoch: event.view_id.epoch.0,
        label: event.label.word().into(),
        lineage: event.lineage.to_string(),
        cursor: Place::new(dvm, event.view_id, event.index).cursor(),
        time: rfc3339(event.time_ms),
        kind: event.kind.word().into(),
        more: fields(&event.kind),
    }
}

/// Something told that has no place in the history.
pub(crate) fn note(state: &State, kind: &str, more: Value, time_ms: u64) -> EventDoc {
    let Value::Object(more) = more else { unreachable!("fields are an object") };
    EventDoc {
        schema: 1,
        index: None,
        view: state.view_text(),
        epoch: state.view.id.epoch.0,
        label: state.view.label.word().into(),
        lineage: state.view.lineage.to_string(),
        cursor: Place::new(state.id, state.view.id, state.index).cursor(),
        time: rfc3339(time_ms),
        kind: kind.into(),
        more,
    }
}

/// Fields of `member-suspected`. Nothing but the accuser's name where the member is gone already.
pub(crate) fn suspected(state: &State, member: MemberId, noticed_by: &str) -> Value {
    let about = state.view.rank_of(member).map_or(json!({}), |rank| brief(&state.brief(member, rank)));
    with(about, json!({"noticed_by": noticed_by}))
}

/// Fields of an event's kind.
pub(crate) fn fields(kind: &EventKind) -> Map<String, Value> {
    let value = match kind {
        EventKind::MemberJoined { member } | EventKind::MemberChanged { member } => brief(member),
        EventKind::MemberLeft { member, by } => with(brief(member), json!({"by": leave_by(*by)})),
        EventKind::MemberFailed { member, cause, noticed_by, last_heard_ms } => with(
            brief(member),
            json!({"cause": cause.word(), "noticed_by": noticed_by, "last_heard_ms": last_heard_ms}),
        ),
        EventKind::PluginLoaded { plugin, results: r }
        | EventKind::PluginUnloaded { plugin, results: r }
        | EventKind::PluginConfigured { plugin, results: r }
        | EventKind::PluginRejected { plugin, results: r } => {
            json!({"plugin": plugin, "results": results(r)})
        }
        EventKind::PluginUpgraded { plugin, version, results: r } => {
            json!({"plugin": plugin, "version": version, "results": results(r)})
        }
        EventKind::PluginChanged { plugin, state, from } => {
            json!({"plugin": plugin, "state": plugin_state(*state), "from": plugin_state(*from)})
        }
        EventKind::InstanceStarted { plugin, member, rank }
        | EventKind::InstanceRestarted { plugin, member, rank }
        | EventKind::InstanceDemoted { plugin, member, rank } => {
            json!({"plugin": plugin, "member": member, "rank": rank})
        }
        EventKind::InstanceFailed { plugin, member, rank, failure } => json!({
            "plugin": plugin, "member": member, "rank": rank, "cause": failure.cause,
            "exit_code": failure.exit_code, "signal": failure.signal, "detail": failure.detail,
        }),
        EventKind::InstancePromoted { plugin, member, rank, fence, from } => {
            json!({"plugin": plugin, "member": member, "rank": rank, "fence": fence, "from": from})
        }
        EventKind::ConfigChanged { keys, member } => json!({"keys": keys, "member": member}),
        EventKind::KeyChanged { key, version } => json!({"key": key, "version": version}),
        EventKind::LabelChanged => json!({}),
        EventKind::Halting { by } => json!({"by": by}),
    };
    let Value::Object(more) = value else { unreachable!("each is an object") };
    more
}

fn brief(member: &MemberBrief) -> Value {
    let MemberBrief { name, id, host, rank, tags, members } = member;
    json!({
        "member": name, "member_id": id.to_string(), "host": host, "rank": rank, "tags": tags,
        "members": members,
    })
}

fn with(mut value: Value, further: Value) -> Value {
    if let (Value::Object(value), Value::Object(further)) = (&mut value, further) {
        value.extend(further);
    }
    value
}

/// Each member's result.
pub(crate) fn results(results: &[(Name, Option<ExecResult>)]) -> Vec<ResultDoc> {
    let one = |(member, result): &(Name, Option<ExecResult>)| {
        let Some(result) = result else {
            let (member, result) = (member.clone(), "absent".into());
            let (stage, code, reason) = Default::default();
            return ResultDoc { member, result, stage, code, reason };
        };
        let ExecResult { verdict, stage, code, reason, pid: _ } = result.clone();
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Failed => "failed",
            Verdict::Timeout => "timeout",
            Verdict::Abstain => "abstain",
        };
        ResultDoc { member: member.clone(), result: verdict.into(), stage, code, reason }
    };
    results.iter().map(one).collect()
}

fn leave_by(by: LeaveBy) -> &'static str {
    match by {
        LeaveBy::Remove => "remove",
        LeaveBy::Term => "term",
        LeaveBy::Halt => "halt",
    }
}

fn plugin_state(state: PluginState) -> &'static str {
    match state {
        PluginState::Running => "running",
        PluginState::Degraded => "degraded",
        PluginState::Failed => "failed",
    }
}

/// What a status is made of, looked up in the member at one moment.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) me: MemberId,
    pub(crate) state: State,
    pub(crate) phase: Phase,
    pub(crate) waiting_for: Vec<MemberId>,
    pub(crate) members: Vec<MemberStatus>,
    /// Members that have not contributed to an open transaction.
    pub(crate) open: BTreeMap<TransactionId, Vec<MemberId>>,
}

/// What the member does not know for a status.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) uri: String,
    /// How long each open transaction has been open here, milliseconds.
    pub(crate) since_ms: BTreeMap<TransactionId, u64>,
    /// Of this kernel's plug-ins.
    pub(crate) figures: Figures,
}

/// The status.
pub(crate) fn status(seen: &Seen, beside: &Beside) -> Status {
    let state = &seen.state;
    let names = |ids: &[MemberId]| ids.iter().map(|id| state.name_of(*id)).collect::<Vec<_>>();
    let members = state.view.members.iter().enumerate().map(|(rank, id)| member(seen, rank, *id)).collect();
    let departed = state.departed.iter().map(|gone| DepartedDoc {
        member: gone.identity.name.clone(),
        id: gone.identity.id.to_string(),
        host: gone.identity.host.clone(),
        cause: gone.cause.clone(),
        index: gone.index.0,
        time: rfc3339(gone.time_ms),
    });
    let transactions = state.open.iter().map(|(id, open)| {
        let waiting = seen.open.get(id).map(Vec::as_slice).unwrap_or_default();
        OpenDoc {
            id: id.to_string(),
            kind: open.transaction.kind.word().into(),
            plugin: open.transaction.kind.plugin().clone(),
            phase: if waiting.is_empty() { "deciding" } else { "executing" }.into(),
            since_ms: beside.since_ms.get(id).copied().unwrap_or_default(),
            waiting_for: names(waiting),
        }
    });
    let resident = beside.figures.resident.iter().map(|image| ResidentDoc {
        plugin: image.plugin.clone(),
        hash: hex(&image.hash),
        opened: image.opened,
    });
    let quarantined = beside
        .figures
        .quarantined
        .iter()
        .map(|thread| QuarantinedDoc { plugin: thread.plugin.clone(), since_ms: thread.since_ms });
    let partition = if state.config.partition == Partition::Survive { "survive" } else { "quorum" };
    Status {
        dvm: DvmDoc {
            name: state.name.clone(),
            id: format!("{:032x}", state.id),
            uri: beside.uri.clone(),
            lineage: state.view.lineage.to_string(),
            partition: partition.into(),
        },
        view: ViewDoc {
            id: state.view_text(),
            epoch: state.view.id.epoch.0,
            label: state.view.label.word().into(),
            size: state.view.size(),
            phase: phase(seen.phase).into(),
            waiting_for: names(&seen.waiting_for),
        },
        index: state.index.0,
        cursor: Place::new(state.id, state.view.id, state.index).cursor(),
        state_hash: hex(&state.hash()),
        through: state.name_of(seen.me),
        members,
        departed: departed.collect(),
        plugins: plugins(seen, beside),
        transactions: transactions.collect(),
        resident: resident.collect(),
        quarantined: quarantined.collect(),
    }
}

/// A phase, as users see it.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Joining => "joining",
        Phase::Normal => "normal",
        Phase::Flushing => "flushing",
        Phase::Blocked => "blocked",
        Phase::Excluded | Phase::Left => "fenced",
    }
}

fn member(seen: &Seen, rank: usize, id: MemberId) -> MemberDoc {
    let record = &seen.state.members[&id];
    let known = seen.members.iter().find(|status| status.id == id);
    let mine = id == seen.me;
    let suspected = known.is_some_and(|status| status.suspected);
    let state = match record.leaving {
        Some(_) => "leaving",
        None if mine && matches!(seen.phase, Phase::Excluded | Phase::Left) => "fenced",
        None if suspected => "suspected",
        None => "normal",
    };
    let identity = &record.identity;
    MemberDoc {
        id: id.to_string(),
        name: identity.name.clone(),
        rank,
        host: identity.host.clone(),
        address: identity.addresses.first().cloned().unwrap_or_default(),
        pid: identity.pid,
        state: state.into(),
        tags: identity.tags.clone(),
        index: if mine { seen.state.index.0 } else { known.map_or(0, |status| status.index.0) },
        log: identity.log.clone(),
        last_heard_ms: known.and_then(|status| status.last_heard_ms).filter(|_| !mine),
        version: identity.version.clone(),
    }
}

/// Loaded plug-ins, and those that are being loaded.
fn plugins(seen: &Seen, beside: &Beside) -> Vec<PluginDoc> {
    let state = &seen.state;
    let loaded = state.plugins.iter().map(|(_, plugin)| self::plugin(seen, beside, plugin));
    let loading = state.open.values().filter_map(|open| match &open.transaction.kind {
        dvm_core::state::TransactionKind::Load(spec) if !open.transaction.dry_run => Some(PluginDoc {
            name: spec.name.clone(),
            version: spec.library.version.clone(),
            hash: hex(&spec.library.hash),
            mode: mode(spec.mode).into(),
            state: "loading".into(),
            config: config(&spec.config),
            wanted: open.places.len(),
            restarts: 0,
            failures: 0,
            primary: None,
            fence: None,
            instances: Vec::new(),
        }),
        _ => None,
    });
    loaded.chain(loading).collect()
}

fn plugin(seen: &Seen, beside: &Beside, plugin: &Plugin) -> PluginDoc {
    let mut instances: Vec<_> = plugin
        .instances
        .iter()
        // A member that keeps a state runs nothing.
        .filter(|(_, instance)| instance.state != InstanceState::Keeping)
        .map(|(id, instance)| {
            let own = beside.figures.instances.get(&plugin.spec.name).filter(|_| *id == seen.me);
            let state = match instance.state {
                InstanceState::Keeping | InstanceState::Starting => "starting",
                InstanceState::Running => "running",
                InstanceState::Failed => "failed",
            };
            let role = match plugin.spec.mode.has_primary() {
                false => "active",
                true if plugin.primary == Some(*id) => "primary",
                true => "standby",
            };
            let placement = match plugin.spec.placement {
                Placement::Process => "process",
                Placement::Kernel => "kernel",
                Placement::Application => "application",
            };
            InstanceDoc {
                member: seen.state.name_of(*id),
                rank: instance.rank.0,
                role: role.into(),
                state: state.into(),
                placement: placement.into(),
                pid: own.map_or(instance.pid, |own| own.pid),
                applied: own.map(|own| own.applied),
            }
        })
        .collect();
    instances.sort_by_key(|instance| instance.rank);
    PluginDoc {
        name: plugin.spec.name.clone(),
        version: plugin.spec.library.version.clone(),
        hash: hex(&plugin.spec.library.hash),
        mode: mode(plugin.spec.mode).into(),
        state: plugin_state(plugin.state).into(),
        config: config(&plugin.spec.config),
        wanted: match plugin.spec.mode.has_primary() {
            true => usize::from(plugin.spec.instances),
            false => instances.len(),
        },
        restarts: plugin.restarts,
        failures: plugin.failures,
        primary: plugin.primary.map(|member| seen.state.name_of(member)),
        fence: plugin.fence.map(|fence| fence.0),
        instances,
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Parallel => "parallel",
        Mode::Hot => "hot",
        Mode::Warm => "warm",
        Mode::Single => "single",
    }
}

fn config(config: &BTreeMap<String, String>) -> Map<String, Value> {
    let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
    config.iter().map(|(key, text)| (key.clone(), value(text))).collect()
}

/// An entry of the history; `state` knows the names.
pub(crate) fn entry(entry: &Entry, state: &State) -> HistoryEntry {
    let mut stamp = None;
    let (origin, kind, time_ms, transaction, detail) = match &entry.content {
        Content::View(proposal) => {
            let view = &proposal.view;
            let names: Vec<_> = view.members.iter().map(|member| state.name_of(*member)).collect();
            let joined: Vec<_> = proposal.joiners.iter().map(|joiner| &joiner.name).collect();
            let gone: Vec<_> = proposal.departures.iter().map(|gone| state.name_of(gone.member)).collect();
            let detail = json!({"members": names, "joined": joined, "gone": gone});
            (view.proposer_name.clone(), "view", proposal.time_ms, None, detail)
        }
        Content::Change { origin, body, .. } => {
            let origin = state.name_of(*origin);
            match postcard::from_bytes::<Submission>(body) {
                Ok(submission) => {
                    let (kind, transaction, detail) = change(&submission.change, state);
                    stamp = submission.stamp.map(|core| Stamp { session: core.session, seq: core.seq });
                    (origin, kind, submission.time_ms, transaction, detail)
                }
                Err(_) => (origin, "unknown", 0, None, json!({"bytes": body.len()})),
            }
        }
    };
    HistoryEntry {
        index: entry.index.0,
        first: entry.first.0,
        view: format!("{}.{}.{}", entry.view.epoch, state.name_of(entry.view.proposer), entry.view.round),
        label: entry.label.word().into(),
        origin,
        kind: kind.into(),
        time: rfc3339(time_ms),
        transaction: transaction.map(|id| id.to_string()),
        stamp,
        detail,
    }
}

fn change(change: &Change, state: &State) -> (&'static str, Option<TransactionId>, Value) {
    let text = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Value::Null);
    match change {
        Change::Noop => ("noop", None, json!({})),
        Change::Keys(keys) => {
            let operation = |operation: &KeyOperation| match operation {
                KeyOperation::Put { key, value } => json!({"put": key, "value": text(value)}),
                KeyOperation::Delete { key } => json!({"delete": key}),
            };
            let condition = |(key, condition): &(String, KeyCondition)| match condition {
                KeyCondition::Version(version) => json!({"key": key, "version": version}),
                KeyCondition::Absent => json!({"key": key, "absent": true}),
                KeyCondition::Present => json!({"key": key, "present": true}),
            };
            let conditions: Vec<_> = keys.conditions.iter().map(condition).collect();
            let then: Vec<_> = keys.then.iter().map(operation).collect();
            let otherwise: Vec<_> = keys.otherwise.iter().map(operation).collect();
            ("keys", None, json!({"if": conditions, "then": then, "else": otherwise}))
        }
        Change::Settings(list) => ("settings", None, json!(list.iter().cloned().collect::<BTreeMap<_, _>>())),
        Change::Tags { member, tags } => {
            ("tags", None, json!({"member": state.name_of(*member), "tags": tags}))
        }
        Change::OpenSession => ("session", None, json!({})),
        Change::Command { plugin, payload } => {
            ("command", None, json!({"plugin": plugin, "bytes": payload.len()}))
        }
        Change::Transaction(transaction) => {
            let (kind, plugin) = (transaction.kind.word(), transaction.kind.plugin());
            let detail = json!({"kind": kind, "plugin": plugin, "dry_run": transaction.dry_run});
            ("transaction", Some(transaction.id), detail)
        }
        Change::Outcome(outcome) => {
            let results =
                outcome.results.iter().map(|(member, result)| (state.name_of(*member), Some(result.clone())));
            let results = self::results(&results.collect::<Vec<_>>());
            let detail = json!({"committed": outcome.committed, "results": results});
            ("outcome", Some(outcome.transaction), detail)
        }
        Change::Instance(report) => {
            let what = match &report.what {
                dvm_core::state::InstanceChange::Started { .. } => "started",
                dvm_core::state::InstanceChange::Restarted { .. } => "restarted",
                dvm_core::state::InstanceChange::Failed { .. } => "failed",
                dvm_core::state::InstanceChange::Moved { .. } => "moved",
            };
            let member = state.name_of(report.member);
            ("instance", None, json!({"plugin": report.plugin, "member": member, "what": what}))
        }
        Change::Leave { member, by } => {
            ("leave", None, json!({"member": state.name_of(*member), "by": leave_by(*by)}))
        }
        Change::Halt { by } => ("halt", None, json!({"by": by})),
        Change::Yield { .. } => ("yield", None, json!({})),
        Change::YieldCancel => ("yield-cancel", None, json!({})),
        Change::Take(_) => ("take", None, json!({})),
        Change::TakeCancel { .. } => ("take-cancel", None, json!({})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_says_where_it_stands() {
        let view = ViewId { epoch: Epoch(7), proposer: MemberId(0xab << 100), round: 2 };
        let place = Place::new(0x1234_abcd, view, HistoryIndex(45));
        assert_eq!(Place::parse(&place.cursor()), Some(place));
        for bad in ["", "45", "7-ab-2-45", "7-xx-2-45-1", "7-ab-2-45-xx", "7-ab-2-45-1-9", "now"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }
}
