//! The first bytes of a connection: before TLS what it is for, inside TLS who speaks to whom.

use dvm_core::ids::{MemberId, ViewId};
use dvm_core::wire::Identity;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Begins every connection. Its last byte is the version of all that follows; kernels speak one version only.
const MAGIC: [u8; 4] = *b"DVM\x01";

/// What a connection is for, said in the clear so that each is served by its own thread. It is no secret and no claim:
/// the handshake and the first frame decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A ring link, to the successor.
    Ring,
    /// Control messages, both ways.
    Control,
    /// Snapshots, questions between kernels: served off the ring's thread.
    Bulk,
    /// A library, served on the thread for bytes in bulk.
    Library,
    /// A kernel with a ticket.
    Ticket,
}

impl Lane {
    /// As it is sent.
    pub(crate) fn preamble(self) -> [u8; 5] {
        let lane = match self {
            Self::Ring => b'r',
            Self::Control => b'c',
            Self::Bulk => b'b',
            Self::Library => b'l',
            Self::Ticket => b't',
        };
        let [a, b, c, d] = MAGIC;
        [a, b, c, d, lane]
    }

    /// Reads it.
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = [0; 5];
        from.read_exact(&mut bytes).await?;
        let all = [Self::Ring, Self::Control, Self::Bulk, Self::Library, Self::Ticket];
        all.into_iter().find(|lane| lane.preamble() == bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "not a kernel of this version of the protocol")
        })
    }
}

/// First frame of every connection between members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The DVM.
    pub(crate) dvm: u128,
    /// Who speaks; the certificate must name it.
    pub(crate) from: MemberId,
    /// Who is meant.
    pub(crate) to: MemberId,
    /// For a ring link: the view it belongs to; nothing for a spare, which says hello again.
    pub(crate) view: Option<ViewId>,
}

/// From a kernel with a ticket.
#[derive(Serialize, Deserialize)]
pub(crate) struct Knock {
    /// The DVM it names.
    pub(crate) dvm: u128,
    /// The secret that works once.
    pub(crate) secret: [u8; 32],
}

/// To a kernel with a ticket.
#[derive(Serialize, Deserialize)]
pub(crate) enum Admittance {
    /// It may join.
    Welcome {
        /// The DVM's name.
        name: String,
        /// Its key.
        key: [u8; 32],
        /// Whom to join through.
        contact: Box<Identity>,
        /// The settings until the snapshot brings them.
        config: dvm_core::Config,
    },
    /// It may not.
    Refused {
        /// Why, for people.
        reason: String,
    },
}
