//! Identities and counters, each a type of its own so that none is taken for another.

use alloc::string::String;
use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter!(
    /// Number that grows with every new view; a lower one is stale.
    Epoch
);
counter!(
    /// Place in the one history. The first entry has index 1; 0 is before everything.
    HistoryIndex
);
counter!(
    /// Lamport number of a message inside its view; 0 at install.
    Lamport
);
counter!(
    /// A stream between two kernels, numbered by the shell that opened or accepted it, never used twice.
    LinkId
);
counter!(
    /// A local client's request, numbered by the shell, never used twice by one kernel process.
    RequestId
);
counter!(
    /// A promotion's number; a resource refuses work that carries a lower one.
    Fence
);

/// Sequence number of a message of one origin in one view, from 1.
pub type OriginSeq = u64;

/// Microseconds since the member's process started. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// This time and `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1_000)
    }

    /// This time and `us` microseconds.
    #[must_use]
    pub fn plus_us(self, us: u64) -> Self {
        Self(self.0 + us)
    }

    /// Milliseconds from `earlier` to this time; 0 if `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

/// Position of a member in its view, 0 the oldest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(pub u16);

impl Rank {
    /// The rank as an index into per-member vectors.
    #[must_use]
    pub fn at(self) -> usize {
        usize::from(self.0)
    }
}

/// One incarnation of a kernel: drawn at random when its process starts and again when it was excluded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u128);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// A line of descent of views; changes only by `promote`. All guarantees hold within one lineage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(pub u128);

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", (self.0 >> 64) as u64)
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A view's identity. Two sides of a partition cannot share one, nor two ballots of one proposer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ViewId {
    /// The parent's epoch + 1.
    pub epoch: Epoch,
    /// The coordinator that first proposed it.
    pub proposer: MemberId,
    /// The ballot round in which it was first proposed.
    pub round: u64,
}

impl fmt::Debug for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:?}.{}", self.epoch, self.proposer, self.round)
    }
}

/// A proposed change that every member executes: its originator and that originator's serial number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransactionId {
    /// The member that proposed it.
    pub originator: MemberId,
    /// From 1 per originator.
    pub serial: u64,
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{:012x}.{}", self.originator.0 >> 80, self.serial)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a member is called by people. Begins with a letter; at most 63 bytes of letters, digits, `-`, `_`, `.`.
pub type Name = String;

/// Whether `name` may name a member, a plug-in or a DVM.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
