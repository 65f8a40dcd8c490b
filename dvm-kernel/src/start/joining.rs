//! What a kernel begins with: drawn, where it founds a DVM; got for a ticket, where it joins one.

use super::Failed;
use crate::net::frame;
use crate::net::hello::{Admittance, Knock, Lane};
use crate::security::ticket::Ticket;
use crate::security::tls::{server_name, somebody_else, ticket_connector};
use crate::security::{DvmKey, draw_id};
use dvm_core::Config;
use dvm_core::ids::Lineage;
use dvm_core::state::Genesis;
use dvm_core::wire::Identity;
use dvm_plugin_api::local::{Bootstrap, BootstrapRole};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How long the kernel that minted a ticket may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Largest answer to a ticket, bytes.
const ANSWER_MAX: usize = 64 << 10;

/// What a kernel begins with.
pub(super) struct Beginning {
    pub(super) key: DvmKey,
    pub(super) dvm: u128,
    pub(super) how: How,
    /// Our address as the contact sees it.
    pub(super) seen_as: Option<IpAddr>,
}

/// How it becomes a member.
pub(super) enum How {
    /// As the first.
    Found(Genesis),
    /// Through a member.
    Join(Box<Identity>, Config),
}

impl Beginning {
    /// By the launcher's word.
    pub(super) async fn of(bootstrap: &Bootstrap) -> Result<Self, Failed> {
        match &bootstrap.role {
            BootstrapRole::Found { settings } => found(&bootstrap.dvm, settings),
            BootstrapRole::Join { ticket } => join(&bootstrap.dvm, ticket).await,
        }
    }

    /// The settings that hold at first.
    pub(super) fn config(&self) -> &Config {
        match &self.how {
            How::Found(genesis) => &genesis.config,
            How::Join(_, config) => config,
        }
    }
}

fn found(name: &str, settings: &[(String, String)]) -> Result<Beginning, Failed> {
    let mut config = Config::default();
    for (key, value) in settings {
        config
            .set(key, value)
            .map_err(|error| Failed::new("start", error, "correct it in --set KEY=VALUE"))?;
    }
    let (dvm, lineage) = (draw_id(), Lineage(draw_id()));
    let genesis = Genesis { name: name.into(), id: dvm, lineage, config };
    Ok(Beginning { key: DvmKey::draw(), dvm, how: How::Found(genesis), seen_as: None })
}

async fn join(name: &str, ticket: &str) -> Result<Beginning, Failed> {
    const ANOTHER: &str = "get another ticket with `dvm ticket`";
    let refused = |reason: String| Failed::new("authenticate", reason, ANOTHER);
    let ticket = Ticket::parse(ticket).map_err(|error| refused(error.to_string()))?;
    let mut last = Failed::new("connect", "the ticket names no address", ANOTHER);
    for address in &ticket.addresses {
        let knocked = timeout(LIMIT, knock(&ticket, address)).await;
        let (admittance, seen_as) = match knocked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(knocked) => knocked,
            Err(error) if somebody_else(&error).is_some() => {
                last = refused(format!("{address} is not the kernel that gave the ticket: {error}"));
                continue;
            }
            Err(error) => {
                let reason = format!("no connection to {address}: {error}");
                last = Failed::new("connect", reason, "does the kernel that gave the ticket live?");
                continue;
            }
        };
        return match admittance {
            Admittance::Refused { reason } => Err(refused(reason)),
            Admittance::Welcome { name: theirs, .. } if theirs != name => {
                Err(refused(format!("the ticket is of DVM `{theirs}`, not of `{name}`")))
            }
            Admittance::Welcome { key, contact, config, .. } => {
                let (key, dvm) = (DvmKey::from_bytes(Zeroizing::new(key)), ticket.dvm);
                Ok(Beginning { key, dvm, how: How::Join(contact, config), seen_as: Some(seen_as) })
            }
        };
    }
    Err(last)
}

/// Shows the ticket at an address.
async fn knock(ticket: &Ticket, address: &str) -> io::Result<(Admittance, IpAddr)> {
    let mut stream = TcpStream::connect(address).await?;
    let seen_as = stream.local_addr()?.ip();
    stream.set_nodelay(true)?;
    stream.write_all(&Lane::Ticket.preamble()).await?;
    let connector = ticket_connector(ticket.authority).map_err(io::Error::other)?;
    let mut stream = connector.connect(server_name(ticket.contact), stream).await?;
    frame::write(&mut stream, &Knock { dvm: ticket.dvm, secret: ticket.secret }).await?;
    Ok((frame::read(&mut stream, ANSWER_MAX).await?, seen_as))
}
