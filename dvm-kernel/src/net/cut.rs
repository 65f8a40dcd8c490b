//! Cuts on request (`dvm chaos cut`): as if the network lost every frame between this kernel and some members.
//!
//! Control messages are lost, connections that stand stall, and new ones find no answer, so that silence is all that
//! the members learn. After the time that TCP would need to give up, a stalled ring link counts as broken; its socket
//! is kept until [`Cuts::heal`], because to close it would tell the other side.

use super::Book;
use dvm_core::ids::{MemberId, Name};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is cut.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// Whether anything is, so that the usual case costs nothing.
    any: AtomicBool,
    names: Mutex<Sides>,
}

#[derive(Debug, Default)]
struct Sides {
    to: BTreeSet<Name>,
    from: BTreeSet<Name>,
}

impl Cuts {
    /// From now on nothing passes to or from these members; adds to what is cut.
    pub(crate) fn cut(&self, to: Vec<Name>, from: Vec<Name>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.to.extend(to);
        names.from.extend(from);
        self.any.store(true, Ordering::Relaxed);
    }

    /// Everything passes.
    pub(crate) fn heal(&self) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Sides::default();
        self.any.store(false, Ordering::Relaxed);
    }

    /// Whether anything is cut.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether frames to a member are lost.
    pub(crate) fn stops_to(&self, member: MemberId, book: &Book) -> bool {
        self.any() && self.has(member, book, |sides| &sides.to)
    }

    /// Whether frames from a member are lost.
    pub(crate) fn stops_from(&self, member: MemberId, book: &Book) -> bool {
        self.any() && self.has(member, book, |sides| &sides.from)
    }

    /// Whether no connection can come about, which needs both ways.
    pub(crate) fn stops_connecting(&self, member: MemberId, book: &Book) -> bool {
        self.stops_to(member, book) || self.stops_from(member, book)
    }

    fn has(&self, member: MemberId, book: &Book, side: fn(&Sides) -> &BTreeSet<Name>) -> bool {
        let Some(name) = book.name(member) else { return false };
        side(&self.names.lock().unwrap_or_else(PoisonError::into_inner)).contains(&name)
    }
}
