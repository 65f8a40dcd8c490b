//! Identities this kernel was told: where members can be reached, and what they are called.

use dvm_core::ids::{MemberId, Name};
use dvm_core::wire::Identity;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Identities kept; beyond it the one told first is forgotten.
const KEPT: usize = 4_096;

/// The identities.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    known: BTreeMap<MemberId, Identity>,
    order: VecDeque<MemberId>,
}

impl Book {
    /// Notes an identity; replaces what was known of that id.
    pub(crate) fn know(&self, identity: Identity) {
        let mut pages = self.lock();
        let id = identity.id;
        if pages.known.insert(id, identity).is_none() {
            pages.order.push_back(id);
            if pages.order.len() > KEPT
                && let Some(first) = pages.order.pop_front()
            {
                pages.known.remove(&first);
            }
        }
    }

    /// Where a member listens; nothing if it is not known.
    pub(crate) fn addresses(&self, member: MemberId) -> Vec<String> {
        self.lock().known.get(&member).map(|identity| identity.addresses.clone()).unwrap_or_default()
    }

    /// All that is known of a member.
    pub(crate) fn identity(&self, member: MemberId) -> Option<Identity> {
        self.lock().known.get(&member).cloned()
    }

    /// What it is called.
    pub(crate) fn name(&self, member: MemberId) -> Option<Name> {
        self.lock().known.get(&member).map(|identity| identity.name.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
