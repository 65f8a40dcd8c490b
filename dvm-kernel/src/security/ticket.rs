//! Single-use tickets: how a kernel that holds nothing comes to hold the DVM's key.
//!
//! A ticket names the kernel that minted it, the authority that this kernel must show, and a secret that works once.
//! It is carried on a launcher's standard input, and is worth nothing after [`LIFETIME_MS`] or a first use.

use dvm_core::ids::{MemberId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zeroize::Zeroize;

/// How long a ticket can be used, milliseconds.
const LIFETIME_MS: u64 = 600_000;

/// Tickets that may be out at a time; beyond it the oldest ends.
const OUT_MAX: usize = 4_096;

/// Begins every ticket.
const HEAD: &str = "dvm1.";

/// What a ticket says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// Where the kernel that minted it listens.
    pub(crate) addresses: Vec<String>,
    /// Who that is.
    pub(crate) contact: MemberId,
    /// Fingerprint of the DVM's authority.
    pub(crate) authority: [u8; 32],
    /// The DVM.
    pub(crate) dvm: u128,
    /// What works once.
    pub(crate) secret: [u8; 32],
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// Not a ticket.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no ticket of a DVM; get one with `dvm ticket`")]
pub(crate) struct NoTicket;

impl Ticket {
    /// As it is carried.
    pub(crate) fn text(&self) -> String {
        let mut bytes = postcard::to_allocvec(self).expect("plain data");
        let text = format!("{HEAD}{}", hex(&bytes));
        bytes.zeroize();
        text
    }

    /// From what was carried.
    pub(crate) fn parse(text: &str) -> Result<Self, NoTicket> {
        let mut bytes = text.trim().strip_prefix(HEAD).and_then(unhex).ok_or(NoTicket)?;
        let ticket = postcard::from_bytes(&bytes).map_err(|_| NoTicket);
        bytes.zeroize();
        ticket
    }
}

/// The tickets that a kernel has minted and nobody has used.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    /// When each ends, by the hash of its secret.
    out: BTreeMap<[u8; 32], Time>,
}

/// Why a secret is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketRefused {
    /// It was used, or never minted here.
    #[error("the ticket was used before, or is not from this kernel")]
    Unknown,
    /// Its time is over.
    #[error("the ticket is too old")]
    Expired,
}

impl Tickets {
    /// Notes a ticket with this secret.
    pub(crate) fn mint(&mut self, secret: &[u8; 32], now: Time) {
        self.out.retain(|_, end| *end > now);
        if self.out.len() >= OUT_MAX
            && let Some(oldest) = self.out.iter().min_by_key(|(_, end)| **end).map(|(hash, _)| *hash)
        {
            self.out.remove(&oldest);
        }
        self.out.insert(hash(secret), now.plus_ms(LIFETIME_MS));
    }

    /// Uses a secret up.
    pub(crate) fn take(&mut self, secret: &[u8; 32], now: Time) -> Result<(), TicketRefused> {
        match self.out.remove(&hash(secret)) {
            None => Err(TicketRefused::Unknown),
            Some(end) if end <= now => Err(TicketRefused::Expired),
            Some(_) => Ok(()),
        }
    }
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    *blake3::hash(secret).as_bytes()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as bytes.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let addresses = vec!["127.0.0.1:4000".into()];
        Ticket { addresses, contact: MemberId(7), authority: [1; 32], dvm: 9, secret: [2; 32] }
    }

    #[test]
    fn a_ticket_is_what_was_written_and_nothing_else_is_one() {
        assert!(Ticket::parse(&ticket().text()).is_ok_and(|parsed| parsed == ticket()));
        for bad in ["", "dvm1.", "dvm1.zz", "dvm1.00", "dvm1.é0", "hello"] {
            assert!(Ticket::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ticket_works_once_and_in_time() {
        let mut tickets = Tickets::default();
        tickets.mint(&[1; 32], Time(0));
        assert_eq!(tickets.take(&[2; 32], Time(1)), Err(TicketRefused::Unknown));
        assert_eq!(tickets.take(&[1; 32], Time(1)), Ok(()));
        assert_eq!(tickets.take(&[1; 32], Time(1)), Err(TicketRefused::Unknown));
        tickets.mint(&[3; 32], Time(0));
        assert_eq!(tickets.take(&[3; 32], Time(0).plus_ms(LIFETIME_MS)), Err(TicketRefused::Expired));
    }
}
