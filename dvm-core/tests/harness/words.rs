//! How messages, entries, answers and states read.

use super::World;
use dvm_core::ids::{MemberId, OriginSeq, ViewId};
use dvm_core::state::{Applied, Change, Content, Entry, Submission};
use dvm_core::view::View;
use dvm_core::wire::{Accepted, Control, DepartureCause, ExecResult, Proposal, Ring, Verdict};
use dvm_core::{Answer, Phase};
use std::collections::BTreeMap;

impl World {
    pub(super) fn ring_kind(message: &Ring) -> &'static str {
        match message {
            Ring::Data(_) => "data",
            Ring::Stable(_) => "stable",
            Ring::Collect(_) => "collect",
            Ring::Resume { .. } => "resume",
        }
    }

    pub(super) fn ring_text(&self, message: &Ring) -> String {
        match message {
            Ring::Data(data) => {
                let (origin, hops) = (letter(data.origin.at()), data.hops);
                format!("data origin={origin} oseq={} lnum={} hops={hops}", data.oseq, data.lnum)
            }
            Ring::Stable(list) => {
                let list = list.iter().map(|(origin, upto)| format!("{}:{upto}", letter(origin.at())));
                format!("stable {}", list.collect::<Vec<_>>().join(" "))
            }
            Ring::Collect(collect) => {
                format!("collect hops={} {}", collect.hops, self.results_text(collect.results.iter()))
            }
            Ring::Resume { received, stable } => {
                format!("resume received={} stable={}", vector(received), vector(stable))
            }
        }
    }

    fn results_text<'r>(&self, results: impl Iterator<Item = (&'r MemberId, &'r ExecResult)>) -> String {
        let each = results.map(|(member, result)| format!("{}={}", self.name(*member), verdict(result)));
        format!("{{{}}}", each.collect::<Vec<_>>().join(" "))
    }

    pub(super) fn control_kind(message: &Control) -> &'static str {
        match message {
            Control::Heartbeat(_) => "heartbeat",
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

    pub(super) fn control_text(&self, message: &Control) -> String {
        let kind = Self::control_kind(message);
        let rest = match message {
            Control::Suspect { accused, .. } => {
                let each = accused.iter().map(|(who, how)| format!("{} {how:?}", self.name(*who)));
                each.collect::<Vec<_>>().join(", ").to_lowercase()
            }
            Control::FlushRequest { ballot, kind, responders, .. } => {
                let (round, kind) = (ballot.round, format!("{kind:?}").to_lowercase());
                format!("round={round} {kind} R={}", self.members_text(responders))
            }
            Control::FlushAck { ballot, received, slots, .. } => {
                let slots: String = slots.iter().map(|slot| self.slot_text(slot)).collect();
                format!("round={} received={}{slots}", ballot.round, vector(received))
            }
            Control::FlushNack { promised, .. } => {
                format!("promised round={} of {}", promised.round, letter(promised.rank.at()))
            }
            Control::Propose { ballot, proposal, .. } => {
                format!("round={} {}", ballot.round, self.proposal_text(proposal))
            }
            Control::Accept { ballot, .. } => format!("round={}", ballot.round),
            Control::Commit { id, .. } => self.id_text(*id),
            Control::Query { view } => self.id_text(*view),
            Control::Expelled { by } | Control::Taken { by, .. } => self.id_text(by.id),
            Control::Yielded { branch, .. } | Control::HealCancel { branch } => self.id_text(branch.id),
            Control::Bodies { bodies, .. } => format!("{}", bodies.len()),
            Control::Tail { entries, .. } => format!("entries={}", entries.len()),
            Control::JoinerFill { entries, bodies, .. } => {
                format!("entries={} bodies={}", entries.len(), bodies.len())
            }
            Control::Relay { from, to, message } => {
                let (from, to) = (self.name(*from), self.name(*to));
                format!("{from} -> {to}  {}", self.control_text(message))
            }
            _ => String::new(),
        };
        format!("{kind} {rest}").trim_end().into()
    }

    fn slot_text(&self, slot: &Accepted) -> String {
        format!(" accepted={}", self.id_text(slot.proposal.view.id))
    }

    fn proposal_text(&self, proposal: &Proposal) -> String {
        format!("{} upto={}", self.view_text(&proposal.view), vector(&proposal.upto))
    }

    pub(super) fn id_text(&self, id: ViewId) -> String {
        format!("{}.{}.{}", id.epoch, self.name(id.proposer), id.round)
    }

    fn members_text(&self, members: &[MemberId]) -> String {
        let names: Vec<_> = members.iter().map(|member| self.name(*member)).collect();
        format!("[{}]", names.join(" "))
    }

    fn view_text(&self, view: &View) -> String {
        let ring: Vec<_> = view.ring.iter().map(|rank| self.name(view.member(*rank))).collect();
        let members = self.members_text(&view.members);
        let ring = format!("[{}]", ring.join(" "));
        let order = if ring == members { String::new() } else { format!(" ring {ring}") };
        format!("{} {} {members}{order}", self.id_text(view.id), view.label.word())
    }

    pub(super) fn entry_text(&self, entry: &Entry) -> String {
        match &entry.content {
            Content::View(proposal) => self.change_of_view(proposal),
            Content::Change { body, .. } => {
                let submission: Submission = postcard::from_bytes(body).expect("bodies are submissions");
                self.change_text(&submission.change)
            }
        }
    }

    fn change_of_view(&self, proposal: &Proposal) -> String {
        let mut parts = Vec::new();
        for departure in &proposal.departures {
            let why = match &departure.why {
                DepartureCause::Left(_) => "left",
                DepartureCause::Failed { cause, .. } => cause.word(),
            };
            parts.push(format!("-{} {why}", self.name(departure.member)));
        }
        parts.extend(proposal.joiners.iter().map(|joiner| format!("+{}", self.name(joiner.id))));
        if parts.is_empty() {
            parts.push("same members".into());
        }
        format!("[{}: {}]", proposal.view.label.word(), parts.join(", "))
    }

    fn change_text(&self, change: &Change) -> String {
        match change {
            Change::Noop => "noop".into(),
            Change::Keys(keys) => {
                let each = keys.then.iter().map(|operation| match operation {
                    dvm_core::state::KeyOperation::Put { key, value } => {
                        format!("{key}={}", String::from_utf8_lossy(value))
                    }
                    dvm_core::state::KeyOperation::Delete { key } => format!("{key}-"),
                });
                each.collect::<Vec<_>>().join(",")
            }
            Change::Transaction(transaction) => {
                format!("{}({})", transaction.kind.word(), transaction.kind.plugin())
            }
            Change::Outcome(outcome) => {
                let word = if outcome.committed { "committed" } else { "rejected" };
                format!("{word}{}", self.results_text(outcome.results.iter()))
            }
            Change::Leave { member, .. } => format!("leave({})", self.name(*member)),
            Change::Halt { .. } => "halt".into(),
            Change::Yield { to, .. } => format!("yield(to {})", self.id_text(to.id)),
            Change::YieldCancel => "yield-cancel".into(),
            Change::Take(take) => format!("take(from {})", self.id_text(take.from.id)),
            Change::TakeCancel { .. } => "take-cancel".into(),
            Change::OpenSession => "session".into(),
            Change::Settings(list) => format!("set {list:?}"),
            Change::Tags { .. } => "tags".into(),
            Change::Command { .. } => "command".into(),
            Change::Instance(_) => "instance".into(),
        }
    }

    pub(super) fn answer_text(&self, answer: &Answer) -> String {
        match answer {
            Answer::Done { receipt, applied } => {
                format!("{}, {} at {}", applied_text(applied), receipt.view.label.word(), receipt.index)
            }
            Answer::Refused(refusal) => format!("refused, {refusal}"),
            Answer::Unknown { reason } => format!("unknown, {reason}"),
        }
    }

    /// A line for all processes that tell the same.
    pub(super) fn show(&self, what: &str) -> Vec<String> {
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for node in self.nodes.iter().filter(|node| node.is_alive || what == "histories") {
            let text = match what {
                "views" => {
                    let phase = match node.member.phase() {
                        Phase::Normal => String::new(),
                        phase => format!(", {phase:?}").to_lowercase(),
                    };
                    let view = node.member.view().map_or("no view".into(), |view| self.view_text(view));
                    format!("{view}{phase}")
                }
                "histories" => {
                    let each = node.delivered.iter().map(|entry| self.entry_text(entry));
                    each.collect::<Vec<_>>().join(" ")
                }
                "keys" => self.keys_text(node.member.state()),
                "plugins" => {
                    let plugins = node.member.state().map(|state| &state.plugins);
                    let each = plugins.into_iter().flat_map(|plugins| plugins.iter()).map(|(name, plugin)| {
                        let states: BTreeMap<_, _> = plugin
                            .instances
                            .iter()
                            .map(|(member, instance)| (self.name(*member), instance.state))
                            .collect();
                        format!("{name} {:?} {states:?}", plugin.state).to_lowercase()
                    });
                    each.collect::<Vec<_>>().join(", ")
                }
                "indices" => node.member.state().map_or(String::new(), |state| state.index.to_string()),
                "fences" => node.member.state().map_or(String::new(), |state| state.fence.to_string()),
                _ => panic!("nothing is shown as {what}"),
            };
            let text = if text.is_empty() { "nothing".into() } else { text };
            match groups.iter_mut().find(|(known, _)| *known == text) {
                Some((_, names)) => names.push(&node.name),
                None => groups.push((text, vec![&node.name])),
            }
        }
        groups.into_iter().map(|(text, names)| format!("{}: {text}", names.join(" "))).collect()
    }

    fn keys_text(&self, state: Option<&dvm_core::state::State>) -> String {
        let keys = state.into_iter().flat_map(|state| state.keys.iter());
        let each = keys.map(|(key, record)| format!("{key}={}", String::from_utf8_lossy(&record.value)));
        each.collect::<Vec<_>>().join(" ")
    }
}

fn applied_text(applied: &Applied) -> String {
    match applied {
        Applied::Ended { committed, results, dry_run, .. } => {
            let word = if *committed { "committed" } else { "rejected" };
            let dry = if *dry_run { " (dry run)" } else { "" };
            let none = |result: &Option<ExecResult>| result.as_ref().map_or("none", verdict);
            let each = results.iter().map(|(name, result)| format!("{name}={}", none(result)));
            format!("{word}{dry} {{{}}}", each.collect::<Vec<_>>().join(" "))
        }
        Applied::Refused { code, reason } => format!("{code} ({reason})"),
        Applied::Repeated { index, .. } => format!("repeated, first at {index}"),
        _ => "done".into(),
    }
}

fn verdict(result: &ExecResult) -> &'static str {
    match result.verdict {
        Verdict::Ok => "ok",
        Verdict::Failed => "failed",
        Verdict::Timeout => "timeout",
        Verdict::Abstain => "abstains",
    }
}

/// Ranks are told as letters: in the ring that a scenario begins with, rank 0 is a.
fn letter(rank: usize) -> char {
    char::from(b'a' + rank as u8)
}

fn vector(numbers: &[OriginSeq]) -> String {
    let each: Vec<_> = numbers.iter().map(u64::to_string).collect();
    format!("[{}]", each.join(" "))
}
