//! Who the members are, as far as plug-ins are told: names by rank.

use bytes::Bytes;
use dvm_core::ids::{MemberId, Name};
use dvm_core::state::State;
use dvm_core::wire::Proposal;
use dvm_plugin_api::Place;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// The members of the last view.
#[derive(Debug)]
pub(super) struct Roster {
    name: Name,
    me: MemberId,
    /// This member's, for others to look at.
    rank: Arc<AtomicU16>,
    /// By rank.
    members: Vec<MemberId>,
    names: BTreeMap<MemberId, Name>,
}

impl Roster {
    /// No members yet.
    pub(super) fn new(name: Name, rank: Arc<AtomicU16>) -> Self {
        Self { name, me: MemberId(0), rank, members: Vec::new(), names: BTreeMap::new() }
    }

    pub(super) fn restore(&mut self, me: MemberId, state: &State) {
        self.me = me;
        self.members.clone_from(&state.view.members);
        self.names = state.members.iter().map(|(id, record)| (*id, record.identity.name.clone())).collect();
        self.rank.store(self.own_rank(), Ordering::Relaxed);
    }

    /// A view is installed.
    pub(super) fn view(&mut self, proposal: &Proposal) {
        let joiners = proposal.joiners.iter();
        self.names.extend(joiners.map(|joiner| (joiner.id, joiner.name.clone())));
        self.members.clone_from(&proposal.view.members);
        self.names.retain(|id, _| proposal.view.members.contains(id));
        self.rank.store(self.own_rank(), Ordering::Relaxed);
    }

    pub(super) fn me(&self) -> MemberId {
        self.me
    }

    /// The others, by rank.
    pub(super) fn others(&self) -> Vec<MemberId> {
        self.members.iter().copied().filter(|member| *member != self.me).collect()
    }

    /// Before it is a member, it has the rank it will have.
    fn own_rank(&self) -> u16 {
        self.members.iter().position(|member| *member == self.me).unwrap_or(self.members.len()) as u16
    }

    /// This member's [`Place`], encoded.
    pub(super) fn place(&self) -> Bytes {
        let peers = self.members.iter().filter_map(|member| self.names.get(member)).cloned().collect();
        let place = Place { member: self.name.clone(), rank: self.own_rank(), peers };
        rmp_serde::to_vec_named(&place).expect("a place is plain data").into()
    }
}
