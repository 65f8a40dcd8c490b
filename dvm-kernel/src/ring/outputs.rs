//! Carrying out what the member wants, and taking in what others ask.

use super::{Depths, Ended, Ring, ToRing, Waiter, bench};
use crate::clock::wall_ms;
use crate::feed::Told;
use crate::log;
use crate::net::FromNet;
use crate::net::link::Link;
use dvm_core::ids::{LinkId, RequestId};
use dvm_core::state::{Change, Content, Entry, Stamp, Submission};
use dvm_core::wire::{ExecResult, Ring as Frame};
use dvm_core::{Answer, Input, Output, Standing};

impl Ring {
    pub(super) fn on_net(&mut self, from_net: FromNet) {
        match from_net {
            FromNet::Link { me, peer, view, side, stream, tls } => {
                if me != self.member.id() {
                    return;
                }
                self.last_link += 1;
                let link = LinkId(self.last_link);
                tracing::debug!(link = link.0, %peer, ?view, ?side, "ring link");
                self.net.shared().tally.links.add(1);
                self.links.insert(link, Link::new(link, peer, stream, *tls));
                self.inputs.push_back(Input::LinkUp { link, peer, view, side });
            }
            FromNet::LinkFailed { to, view } => self.inputs.push_back(Input::LinkFailed { to, view }),
            FromNet::Control { from, message } => {
                self.net.shared().tally.control_in.add(1);
                self.inputs.push_back(Input::Control { from, message });
            }
            FromNet::Reset { peer } => self.inputs.push_back(Input::Reset { peer }),
            FromNet::Refused { peer, by: None } => self.inputs.push_back(Input::Refused { peer }),
            FromNet::Refused { peer, by: Some(by) } => {
                self.net.shared().book.know((*by).clone());
                self.inputs.push_back(Input::Replaced { peer, by });
            }
        }
    }

    pub(super) fn on_asked(&mut self, asked: ToRing) {
        match asked {
            ToRing::Submit { stamp, change, answer } => self.submit(stamp, change, Waiter::Local(answer)),
            ToRing::Promote { lineage, answer } => {
                let request = self.new_request(Waiter::Local(answer));
                self.inputs.push_back(Input::Promote { request, lineage });
            }
            ToRing::Input(input) => {
                if let Input::Fenced { .. } = &input {
                    self.forget_incarnation();
                }
                self.inputs.push_back(input);
            }
            ToRing::Look(look) => {
                // What was asked before is done first, so that a client reads what it wrote.
                self.handle_all();
                look(&self.member, self.clock.now());
            }
            ToRing::Bench { agree, size, duration_ms, in_flight, answer } => {
                self.bench_start(agree, size, duration_ms, in_flight, answer);
            }
            ToRing::Depths { answer } => {
                let depths = Depths {
                    links: self.links.len(),
                    waiting: self.waiting.len(),
                    queued_bytes: self.links.values().map(Link::queued_bytes).sum(),
                };
                // Whoever asked may have given up.
                let _ = answer.send(depths);
            }
            ToRing::Watch { times } => self.watch_start(times),
            ToRing::Watched { answer } => {
                // Whoever asked may have given up.
                let _ = answer.send(self.watch_end());
            }
        }
    }

    /// Proposes a change.
    pub(super) fn submit(&mut self, stamp: Option<Stamp>, change: Change, waiter: Waiter) {
        let request = self.new_request(waiter);
        let submission = Submission { stamp, time_ms: wall_ms(), change };
        self.inputs.push_back(Input::Submit { request, submission });
    }

    fn new_request(&mut self, waiter: Waiter) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.waiting.insert(request, waiter);
        request
    }

    /// Nothing of the old incarnation is left: its links, connections and measurements.
    fn forget_incarnation(&mut self) {
        self.net.forget_incarnation();
        for link in std::mem::take(&mut self.links).into_keys() {
            self.inputs.push_back(Input::LinkDown { link });
        }
        for (link, gives_up) in std::mem::take(&mut self.stalled) {
            if gives_up.is_some() {
                self.inputs.push_back(Input::LinkDown { link: link.id });
            }
        }
    }

    pub(super) fn carry_out(&mut self, output: Output) {
        match output {
            Output::Ring { link, message } => {
                // One that is cut holds what is placed, as TCP does: it may be healed before it counts as broken.
                let mut stalled = self.stalled.iter_mut().filter(|(_, gives_up)| gives_up.is_some());
                let cut = || stalled.find(|(one, _)| one.id == link).map(|(one, _)| one);
                if let Some(link) = self.links.get_mut(&link).or_else(cut) {
                    let bytes = link.place(&message);
                    self.net.shared().tally.ring_out.add(bytes);
                }
                if let Frame::Data(data) = &message
                    && data.hops == 1
                {
                    self.under_way.begins(data.oseq, self.clock.now().0);
                }
            }
            Output::Deliver(delivery) => {
                let entry = &delivery.entry;
                log::at(entry.view.epoch.0, entry.index.0);
                self.count_entry(entry);
                if let Content::View(proposal) = &entry.content {
                    let (members, label) = (proposal.view.members.len(), proposal.view.label.word());
                    tracing::info!(view = ?proposal.view.id, members, label, "view installed");
                    for joiner in &proposal.joiners {
                        self.net.shared().book.know(joiner.clone());
                    }
                    self.keep_spares();
                }
                let index = entry.index;
                if index > self.restored {
                    self.told.push(Told::Delivered(delivery));
                }
                if self.watch.is_some() {
                    self.watch_delivery(index);
                }
            }
            Output::Answer { request, answer } => self.answered(request, answer),
            Output::Know(identity) => self.net.shared().book.know(*identity),
            Output::Connect { to, view } => self.net.connect(to, view),
            Output::Close { link } => drop(self.links.remove(&link)),
            Output::Control { to, message } => self.net.send(to, message),
            Output::Probe { peer } => self.net.probe(peer),
            Output::Snapshot { to, snapshot } => self.told.push(Told::Snapshot { to, snapshot }),
            Output::Execute { transaction, placed } => {
                if bench::is_empty(&transaction) {
                    let (transaction, result) = (transaction.id, ExecResult::ok());
                    self.inputs.push_back(Input::Executed { transaction, result });
                    return;
                }
                let limit_ms = self.member.state().map_or(30_000, |state| state.config.exec_limit_ms);
                self.told.push(Told::Execute { transaction, placed, limit_ms });
            }
            Output::Primary { plugin, fence, from } => {
                tracing::info!(plugin, fence = fence.0, "this member's instance is the primary");
                self.told.push(Told::Primary { plugin, fence, from });
            }
            Output::Lease { until } => self.told.push(Told::Lease { until }),
            Output::Standing(standing) => self.standing(standing),
            Output::Suspected { member } => {
                tracing::info!(%member, "a member is suspected");
                self.net.shared().tally.suspicions.add(1);
                self.told.push(Told::Suspected(member));
            }
            Output::Orphans { fork, entries, truncated } => {
                self.told.push(Told::Orphans { fork, entries, truncated });
            }
            Output::Restored { index } => {
                tracing::info!(index = index.0, "the state was taken over");
                self.tell_restored();
                self.keep_spares();
            }
        }
    }

    /// Has connections ready to the two members behind this one: should either go, the other is the successor.
    fn keep_spares(&self) {
        let Some(view) = self.member.view() else { return };
        let me = self.member.id();
        let Some(rank) = view.rank_of(me) else { return };
        let next = view.successor(rank);
        let mut peers = vec![view.member(next), view.member(view.successor(next))];
        peers.retain(|peer| *peer != me);
        self.net.keep_spares(peers);
    }

    fn count_entry(&mut self, entry: &Entry) {
        let tally = &self.net.shared().tally;
        tally.entries.add(1);
        match &entry.content {
            Content::View(_) => {
                tally.views.add(1);
                self.under_way.forget();
            }
            Content::Change { origin, oseq, .. } if *origin == self.member.id() => {
                self.under_way.ends(*oseq, self.clock.now().0, &tally.laps);
            }
            Content::Change { .. } => {}
        }
    }

    fn answered(&mut self, request: RequestId, answer: Answer) {
        let tally = &self.net.shared().tally;
        match &answer {
            Answer::Done { .. } => tally.done.add(1),
            Answer::Refused(_) => tally.refused.add(1),
            Answer::Unknown { .. } => tally.unknown.add(1),
        }
        match self.waiting.remove(&request) {
            Some(Waiter::Local(waiter)) => self.answers.push((waiter, answer)),
            Some(Waiter::Bench(since)) => self.bench_step(since, &answer),
            None => tracing::error!(request = request.0, "an answer to no request"),
        }
    }

    fn standing(&mut self, standing: Standing) {
        tracing::info!(?standing, "standing");
        if let Some(state) = self.member.state() {
            self.net.shared().set_silence_ms(state.config.silence_ms);
        }
        match &standing {
            Standing::Left { by } => self.ended = Some(Ended::Left(*by)),
            Standing::Refused { reason } => {
                if let Some(admitted) = self.admitted.take() {
                    admitted(Err(reason.clone()));
                }
                self.ended = Some(Ended::Refused(reason.clone()));
            }
            _ => {}
        }
        self.told.push(Told::Standing(standing));
    }
}
