//! How frames, entries and members are written. One line each, names instead of identities.

use super::world::{Kernel, World};
use dvm_core::ids::{MemberId, OriginSeq, Rank, ViewId};
use dvm_core::state::{Applied, Change, Content, Entry, Event, EventKind, Healing, KeyOperation, Submission};
use dvm_core::view::View;
use dvm_core::wire::{Collect, Control, DepartureCause, ExecResult, Proposal, Ring, Verdict};
use dvm_core::{Answer, Output, Phase, Standing};
use std::collections::BTreeMap;

impl World {
    pub fn shown(&self, member: MemberId) -> String {
        self.names.get(&member).cloned().unwrap_or_else(|| format!("{member:?}"))
    }

    /// Text with identities in it, with names in their place.
    pub fn named(&self, text: &str) -> String {
        let ids = self.names.iter();
        ids.fold(text.to_owned(), |text, (id, name)| text.replace(&format!("{id:?}"), name))
    }

    fn shown_all(&self, members: &[MemberId]) -> String {
        let names: Vec<_> = members.iter().map(|member| self.shown(*member)).collect();
        format!("[{}]", names.join(" "))
    }

    /// A view's identity: epoch, proposer, round.
    pub fn view_id(&self, id: ViewId) -> String {
        format!("{}.{}.{}", id.epoch, self.shown(id.proposer), id.round)
    }

    fn view(&self, view: &View) -> String {
        let lineage =
            if view.lineage.0 == 1 { String::new() } else { format!(" lineage {}", view.lineage.0) };
        let ring: Vec<_> = view.ring.iter().map(|rank| self.shown(view.member(*rank))).collect();
        let ranks: Vec<_> = view.members.iter().map(|member| self.shown(*member)).collect();
        let ring = if ring == ranks { String::new() } else { format!(" ring {}", ring.join("-")) };
        let (id, members) = (self.view_id(view.id), self.shown_all(&view.members));
        format!("{id} {} {members}{ring}{lineage}", view.label.word())
    }

    /// The word for an output in `trace`; none for what only the shell sees.
    pub(super) fn kind(output: &Output) -> Option<&'static str> {
        Some(match output {
            Output::Ring { message, .. } => match message {
                Ring::Data(_) => "data",
                Ring::Stable(_) => "stable",
                Ring::Collect(_) => "collect",
                Ring::Resume { .. } => "resume",
            },
            Output::Control { message, .. } => Self::control_kind(message),
            Output::Snapshot { .. } => "snapshot",
            Output::Answer { .. } => "answer",
            Output::Deliver(_) => "deliver",
            Output::Execute { .. } => "execute",
            Output::Primary { .. } => "primary",
            Output::Lease { .. } => "lease",
            Output::Standing(_) => "standing",
            Output::Suspected { .. } => "suspected",
            Output::Orphans { .. } => "orphans",
            Output::Connect { .. } => "connect",
            Output::Know(_) | Output::Close { .. } | Output::Probe { .. } | Output::Restored { .. } => {
                return None;
            }
        })
    }

    pub(super) fn control_kind(message: &Control) -> &'static str {
        match message {
            Control::Heartbeat(_) => "heartbeat",
            Control::LeaseEcho { .. } => "lease-echo",
            Control::Suspect { .. } => "suspect",
            Control::FlushRequest { .. } => "flush-request",
            Control::FlushAck { .. } => "flush-ack",
            Control::FlushNack { .. } => "flush-nack",
            Control::Fetch { .. } => "fetch",
            Control::Bodies { .. } => "bodies",
            Control::Propose { .. } => "propose",
            Control::Accept { .. } => "accept",
            Control::Commit { .. } => "commit",
            Control::Query { .. } => "query",
            Control::Expelled { .. } => "expelled",
            Control::Join { .. } => "join",
            Control::JoinRefused { .. } => "join-refused",
            Control::JoinRedirect { .. } => "join-redirect",
            Control::TailRequest { .. } => "tail-request",
            Control::Tail { .. } => "tail",
            Control::Lagging { .. } => "lagging",
            Control::Ready { .. } => "ready",
            Control::JoinerFetch { .. } => "joiner-fetch",
            Control::JoinerFill { .. } => "joiner-fill",
            Control::Probe { .. } => "probe",
            Control::ProbeReply { .. } => "probe-reply",
            Control::Yielded { .. } => "yielded",
            Control::Taken { .. } => "taken",
            Control::HealCancel { .. } => "heal-cancel",
            Control::Relay { .. } => "relay",
        }
    }

    /// An output as `trace` tells it.
    pub(super) fn line(&self, at: usize, output: &Output) -> String {
        let kernel = &self.kernels[at];
        let me = self.shown(kernel.member.id());
        match output {
            Output::Ring { link, message } => {
                let far = kernel.links.get(link).map(|(no, end)| self.far_end(*no, *end));
                let to = far.map_or_else(|| "?".into(), |member| self.shown(member));
                format!("{me} -> {to}  {}", self.frame_text(kernel, message))
            }
            Output::Control { to, message } => {
                format!("{me} => {}  {}", self.shown(*to), self.control_text(kernel, message))
            }
            Output::Snapshot { to, snapshot } => {
                format!("{me} => {}  snapshot at {}", self.shown(*to), snapshot.state.index)
            }
            Output::Answer { request, answer } => {
                format!("{me} answers {}: {}", kernel.asked[request], self.answer(answer))
            }
            Output::Deliver(delivery) => format!("{me} delivers {}", self.entry(&delivery.entry)),
            Output::Execute { transaction, .. } => format!("{me} executes {}", transaction.kind.word()),
            Output::Primary { plugin, fence, from } => {
                let waits = if from.0 > self.now_us { ", when the old lease is over" } else { "" };
                format!("{me} is the primary of {plugin} with token {fence}{waits}")
            }
            Output::Lease { until } => format!("{me} has a lease until {until:?}"),
            Output::Standing(standing) => format!("{me} is {}", self.standing(standing)),
            Output::Orphans { fork, entries, .. } => {
                let entries: Vec<_> = entries.iter().map(|entry| self.entry(entry)).collect();
                format!("{me} orphans after {fork}: {}", entries.join("; "))
            }
            Output::Connect { to, .. } => format!("{me} connects to {}", self.shown(*to)),
            _ => String::new(),
        }
    }

    fn frame_text(&self, kernel: &Kernel, message: &Ring) -> String {
        let view = kernel.member.view();
        let rank = |rank: Rank| view.map_or_else(|| rank.0.to_string(), |v| self.shown(v.member(rank)));
        let vector = |numbers: &[OriginSeq]| self.vector(kernel, numbers);
        match message {
            Ring::Data(data) => {
                let (origin, body) = (rank(data.origin), self.body(&data.body));
                let (oseq, lnum, hops) = (data.oseq, data.lnum, data.hops);
                format!("data origin={origin} oseq={oseq} lnum={lnum} hops={hops}  {body}")
            }
            Ring::Stable(list) => {
                let list: Vec<_> = list.iter().map(|(o, upto)| format!("{}:{upto}", rank(*o))).collect();
                format!("stable {}", list.join(" "))
            }
            Ring::Collect(collect) => self.collect(collect),
            Ring::Resume { received, stable } => {
                format!("resume received={} stable={}", vector(received), vector(stable))
            }
        }
    }

    fn collect(&self, collect: &Collect) -> String {
        let results: Vec<_> = collect
            .results
            .iter()
            .map(|(member, result)| format!("{}:{}", self.shown(*member), verdict(result)))
            .collect();
        format!("collect {{{}}} hops={}", results.join(" "), collect.hops)
    }

    /// What is above zero, by name.
    fn vector(&self, kernel: &Kernel, numbers: &[OriginSeq]) -> String {
        let Some(view) = kernel.member.view() else { return format!("{numbers:?}") };
        let members = view.members.iter().zip(numbers).filter(|(_, number)| **number > 0);
        let list: Vec<_> =
            members.map(|(member, number)| format!("{}:{number}", self.shown(*member))).collect();
        format!("{{{}}}", list.join(" "))
    }

    fn control_text(&self, kernel: &Kernel, message: &Control) -> String {
        let kind = Self::control_kind(message);
        let ballot = |ballot: &dvm_core::wire::Ballot| {
            let coordinator = kernel.member.view().and_then(|view| view.members.get(ballot.rank.at()));
            format!(
                "{}.{}",
                ballot.round,
                coordinator.map_or_else(|| "-".into(), |member| self.shown(*member))
            )
        };
        let rest = match message {
            Control::Heartbeat(heartbeat) => self.view_id(heartbeat.view.id),
            Control::Suspect { accused, .. } => {
                let list = accused.iter().map(|(m, evidence)| format!("{}:{evidence:?}", self.shown(*m)));
                list.collect::<Vec<_>>().join(" ")
            }
            Control::FlushRequest { ballot: b, kind, responders, .. } => {
                format!("{} {kind:?} R={}", ballot(b), self.shown_all(responders))
            }
            Control::FlushAck { ballot: b, received, delivered, slots, .. } => {
                let slots: Vec<_> = slots
                    .iter()
                    .map(|s| {
                        format!("{:?} {} {}", s.kind, ballot(&s.ballot), self.view_id(s.proposal.view.id))
                    })
                    .collect();
                let received = self.vector(kernel, received);
                format!(
                    "{} received={received} delivered={delivered} accepted=[{}]",
                    ballot(b),
                    slots.join(", ")
                )
            }
            Control::FlushNack { promised, .. } => format!("promised {}", ballot(promised)),
            Control::Propose { ballot: b, proposal, .. } => {
                let upto = self.vector(kernel, &proposal.upto);
                format!("{} {} upto={upto} d={}", ballot(b), self.proposal(proposal), proposal.delivered)
            }
            Control::Accept { ballot: b, .. } => ballot(b),
            Control::Commit { id, .. } => self.view_id(*id),
            Control::Query { view } => self.view_id(*view),
            Control::Expelled { by } => format!("by {} {}", self.view_id(by.id), by.label.word()),
            Control::Fetch { above, upto, .. } => {
                format!("above={} upto={}", self.vector(kernel, above), self.vector(kernel, upto))
            }
            Control::Bodies { bodies, .. } | Control::JoinerFill { bodies, .. } => {
                let bodies: Vec<_> = bodies.iter().map(|data| self.body(&data.body)).collect();
                format!("[{}]", bodies.join(", "))
            }
            Control::JoinRefused { reason } => reason.clone(),
            Control::Probe { branch, .. } | Control::ProbeReply { branch, .. } => {
                format!("{} {}", self.view_id(branch.id), branch.label.word())
            }
            Control::Yielded { to, .. } => format!("to {}", self.view_id(*to)),
            Control::Taken { from, .. } => format!("from {}", self.view_id(*from)),
            _ => String::new(),
        };
        format!("{kind} {rest}").trim_end().to_owned()
    }

    fn proposal(&self, proposal: &Proposal) -> String {
        let mut text = format!("view {}", self.view(&proposal.view));
        for departure in &proposal.departures {
            let why = match &departure.why {
                DepartureCause::Left(by) => format!("left {by:?}").to_lowercase(),
                DepartureCause::Failed { cause, .. } => cause.word().into(),
            };
            text += &format!(" -{}({why})", self.shown(departure.member));
        }
        for joiner in &proposal.joiners {
            text += &format!(" +{}", self.shown(joiner.id));
        }
        text
    }

    /// A message's body.
    pub fn body(&self, body: &[u8]) -> String {
        match postcard::from_bytes::<Submission>(body) {
            Ok(submission) => self.change(&submission.change),
            Err(_) => "?".into(),
        }
    }

    fn change(&self, change: &Change) -> String {
        match change {
            Change::Noop => "noop".into(),
            Change::Keys(keys) => {
                let operations = keys.then.iter().map(|operation| match operation {
                    KeyOperation::Put { key, value } => format!("{key}={}", shown_value(value)),
                    KeyOperation::Delete { key } => format!("delete {key}"),
                });
                operations.collect::<Vec<_>>().join(" ")
            }
            Change::Transaction(t) => format!("{} {}", t.kind.word(), t.kind.plugin()),
            Change::Outcome(o) => format!("outcome {}", if o.committed { "committed" } else { "rejected" }),
            Change::Leave { member, .. } => format!("leave {}", self.shown(*member)),
            Change::Halt { .. } => "halt".into(),
            Change::Yield { to, .. } => format!("yield to {}", self.view_id(to.id)),
            Change::YieldCancel => "yield-cancel".into(),
            Change::Take(take) => format!("take {}", self.view_id(take.from.id)),
            Change::TakeCancel { .. } => "take-cancel".into(),
            other => self.named(&format!("{other:?}")),
        }
    }

    pub fn entry(&self, entry: &Entry) -> String {
        let label = entry.label.word();
        match &entry.content {
            Content::Change { origin, body, .. } => {
                format!("{} {label} {}: {}", entry.index, self.shown(*origin), self.body(body))
            }
            Content::View(proposal) => format!("{} {}", entry.index, self.proposal(proposal)),
        }
    }

    pub fn answer(&self, answer: &Answer) -> String {
        match answer {
            Answer::Done { receipt, applied } => {
                format!("{} at {} {}", self.applied(applied), receipt.index, receipt.view.label.word())
            }
            Answer::Refused(refusal) => format!("refused, {refusal}"),
            Answer::Unknown { reason } => format!("unknown, {reason}"),
        }
    }

    fn applied(&self, applied: &Applied) -> String {
        match applied {
            Applied::Ended { committed, dry_run, results, .. } => {
                let results = results.iter().map(|(name, result)| {
                    format!("{name}:{}", result.as_ref().map_or("absent".into(), verdict))
                });
                let end = if *committed { "committed" } else { "rejected" };
                let dry = if *dry_run { " dry run," } else { "" };
                format!("{end},{dry} {}", results.collect::<Vec<_>>().join(" "))
            }
            Applied::Keys { held: true, .. } | Applied::Done => "done".into(),
            Applied::Keys { held: false, .. } => "condition not met".into(),
            Applied::Session(name) => format!("session {name}"),
            Applied::Refused { code, .. } => format!("refused: {code}"),
            Applied::Repeated { index, first } => format!("repeated: {} at {index}", self.applied(first)),
            Applied::Command => "ordered".into(),
            Applied::Ordered(_) => "open".into(),
        }
    }

    fn standing(&self, standing: &Standing) -> String {
        match standing {
            Standing::Excluded { by } => format!("excluded by {}", self.view_id(*by)),
            Standing::Left { by } => format!("left ({by:?})").to_lowercase(),
            Standing::Refused { reason } => format!("refused: {reason}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    /// Where a kernel stands: phase, view, index.
    pub fn status(&self, kernel: &Kernel) -> String {
        let me = self.shown(kernel.member.id());
        if !kernel.alive {
            let last = kernel
                .standings
                .last()
                .filter(|s| matches!(s, Standing::Left { .. } | Standing::Refused { .. }));
            return format!(
                "{me}: {}",
                last.map_or_else(|| "dead".into(), |standing| self.standing(standing))
            );
        }
        let phase = match kernel.member.phase() {
            Phase::Joining => "joining",
            Phase::Normal => "normal",
            Phase::Flushing => "flushing",
            Phase::Blocked => "blocked",
            Phase::Excluded => "excluded",
            Phase::Left => "left",
        };
        let paused = if kernel.paused { " (paused)" } else { "" };
        let view = kernel.member.view().map_or_else(String::new, |view| format!(" in {}", self.view(view)));
        let state = kernel.member.state();
        let index = state.map_or_else(String::new, |state| format!(" at {}", state.index));
        let healing = match state.and_then(|state| state.healing.as_ref()) {
            Some(Healing::Yielding { .. }) => " yielding",
            Some(Healing::Taking(_)) => " taking",
            None => "",
        };
        format!("{me}: {phase}{paused}{view}{index}{healing}")
    }

    /// The kept history, an entry a line.
    pub fn history(&self, kernel: &Kernel) -> Vec<String> {
        kernel.member.history().map(|entry| self.entry(entry)).collect()
    }

    pub fn keys(&self, kernel: &Kernel) -> String {
        let Some(state) = kernel.member.state() else { return "-".into() };
        let keys = state.keys.iter().map(|(key, record)| {
            format!("{key}={} (version {})", shown_value(&record.value), record.version)
        });
        keys.collect::<Vec<_>>().join(" ")
    }

    pub fn plugins(&self, kernel: &Kernel) -> String {
        let Some(state) = kernel.member.state() else { return "-".into() };
        let plugins = state.plugins.iter().map(|(name, plugin)| {
            let instances: BTreeMap<_, _> =
                plugin.instances.iter().map(|(m, i)| (self.shown(*m), i.state)).collect();
            let instances: Vec<_> =
                instances.iter().map(|(name, state)| format!("{name}:{state:?}")).collect();
            let primary = plugin.primary.zip(plugin.fence);
            let primary = primary.map(|(m, fence)| format!(", primary {} with token {fence}", self.shown(m)));
            let (state, instances) = (plugin.state, instances.join(" "));
            format!("{name} {state:?} [{instances}]{}", primary.unwrap_or_default()).to_lowercase()
        });
        let plugins: Vec<_> = plugins.collect();
        if plugins.is_empty() { "none".into() } else { plugins.join("; ") }
    }

    pub fn event(&self, event: &Event) -> String {
        let more = match &event.kind {
            EventKind::MemberFailed { member, cause, noticed_by, last_heard_ms } => {
                let heard = last_heard_ms.map_or_else(|| "never".into(), |ms| format!("{ms} ms ago"));
                format!(" {} {} noticed by {noticed_by}, heard {heard}", member.name, cause.word())
            }
            EventKind::MemberJoined { member } => format!(" {}", member.name),
            EventKind::MemberLeft { member, by } => format!(" {} by {by:?}", member.name).to_lowercase(),
            _ => String::new(),
        };
        format!("{} {}{more}", event.index, event.kind.word())
    }

    /// The members whose answer to `ask` is the same, with it.
    pub fn alike(&self, ask: impl Fn(&Kernel) -> Vec<String>) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for kernel in self.kernels.iter().filter(|kernel| kernel.alive) {
            let (name, says) = (self.shown(kernel.member.id()), ask(kernel));
            match groups.iter_mut().find(|(_, said)| *said == says) {
                Some((names, _)) => names.push(name),
                None => groups.push((vec![name], says)),
            }
        }
        groups.into_iter().map(|(names, says)| (names.join(" "), says)).collect()
    }
}

fn verdict(result: &ExecResult) -> String {
    match result.verdict {
        Verdict::Failed => format!("failed({})", result.stage),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A key's value; of a long one its length.
pub fn shown_value(value: &[u8]) -> String {
    if value.len() > 64 {
        format!("({} bytes)", value.len())
    } else {
        String::from_utf8_lossy(value).into_owned()
    }
}
