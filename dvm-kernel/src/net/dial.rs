//! Opening a connection to a member, and what a failure says about it.

use super::hello::{Hello, Lane};
use super::{Shared, frame};
use crate::security::tls::{server_name, somebody_else};
use dvm_core::ids::{MemberId, ViewId};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

/// First pause before an address is tried again whose process cut the attempt short; it doubles.
const AGAIN: Duration = Duration::from_millis(1);

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The incarnation is gone: nobody listens at its address, or another process does.
    #[error("{text}")]
    Gone {
        /// What was seen.
        text: String,
        /// The member that is there instead.
        by: Option<MemberId>,
    },
    /// It may live.
    #[error("{0}")]
    Failed(String),
    /// It went away in the middle: it is dying, or was too busy. Another attempt will tell.
    #[error("{0}")]
    CutShort(String),
}

impl DialError {
    fn new(address: &str, error: &io::Error) -> Self {
        let text = format!("{address}: {error}");
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Gone { text, by: None },
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::CutShort(text)
            }
            _ => match somebody_else(error) {
                Some(by) => Self::Gone { text, by },
                None => Self::Failed(text),
            },
        }
    }
}

/// Connects to a member and says hello.
pub(crate) async fn dial(
    shared: &Shared,
    to: MemberId,
    lane: Lane,
    view: Option<ViewId>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let tls = shared.vault.tls();
    let limit = shared.connect_timeout();
    if shared.cuts.stops_connecting(to, &shared.book) {
        tokio::time::sleep(limit).await;
        return Err(DialError::Failed("no answer".into()));
    }
    let hello = Hello { dvm: shared.dvm, from: tls.me, to, view };
    let attempt = async {
        let mut stream = handshake(shared, to, lane).await?;
        let failed = |error: io::Error| DialError::Failed(error.to_string());
        frame::write(&mut stream, &hello).await.map_err(failed)?;
        Ok(stream)
    };
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(DialError::Failed("no answer".into())))
}

/// Finds out by a new connection whether a member's process is certainly gone; if so, who is there instead.
pub(crate) async fn is_gone(shared: &Shared, peer: MemberId) -> Option<Option<MemberId>> {
    if shared.cuts.stops_connecting(peer, &shared.book) {
        return None;
    }
    let attempt = timeout(shared.connect_timeout(), handshake(shared, peer, Lane::Control));
    match attempt.await {
        Ok(Err(DialError::Gone { by, .. })) => Some(by),
        _ => None,
    }
}

/// Connects and proves who is there: gone only if all its addresses say so.
async fn handshake(shared: &Shared, to: MemberId, lane: Lane) -> Result<TlsStream<TcpStream>, DialError> {
    let addresses = shared.book.addresses(to);
    let mut pause = AGAIN;
    loop {
        let mut last = DialError::Failed("its address is not known".into());
        for address in &addresses {
            match connect(shared, address, to, lane).await {
                Ok(stream) => return Ok(stream),
                Err(error @ DialError::Failed(_)) => return Err(error),
                Err(error) => last = error,
            }
        }
        let DialError::CutShort(_) = last else { return Err(last) };
        // The caller's time-out ends this.
        sleep(pause).await;
        pause *= 2;
    }
}

async fn connect(
    shared: &Shared,
    address: &str,
    to: MemberId,
    lane: Lane,
) -> Result<TlsStream<TcpStream>, DialError> {
    let failed = |error: io::Error| DialError::new(address, &error);
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    // A port that nobody listens at may be given to the very socket that asks for it (TCP simultaneous open).
    if let (Ok(ours), Ok(theirs)) = (stream.local_addr(), stream.peer_addr())
        && ours == theirs
    {
        return Err(DialError::Gone { text: format!("{address}: nobody listens"), by: None });
    }
    prepare(&stream, shared.silence());
    stream.write_all(&lane.preamble()).await.map_err(failed)?;
    let tls = shared.vault.tls();
    tls.connector.connect(server_name(to), stream).await.map_err(failed)
}

/// Sets a socket up. What fails here only makes it slower.
pub(crate) fn prepare(stream: &TcpStream, silence: Duration) {
    let _ = stream.set_nodelay(true);
    let ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, ms);
}
