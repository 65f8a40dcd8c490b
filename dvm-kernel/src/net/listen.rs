//! The one port of a kernel: who comes, and which thread serves it.

use super::frame::{self, HELLO_MAX};
use super::hello::{Hello, Lane};
use super::{FromNet, Net, dial};
use crate::security::tls::is_of;
use dvm_core::Side;
use std::future::pending;
use std::io;
use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

/// How long a peer may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections that may be saying it at a time; further ones wait in the operating system's queue.
const HANDSHAKES: usize = 256;

/// Pause after the operating system had no descriptor for a connection.
const SHORTAGE: Duration = Duration::from_millis(20);

/// A listener on `address` (no port): any port, or the first free one of `range`.
pub(crate) fn bind(address: &str, range: Option<(u16, u16)>) -> io::Result<StdListener> {
    let (low, high) = range.unwrap_or((0, 0));
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the port range is empty");
    for port in low..=high {
        match StdListener::bind((address, port)) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes connections for ever. Those off the ring go to `others`, unserved.
pub(crate) async fn listen(
    net: Rc<Net>,
    listener: StdListener,
    others: mpsc::Sender<(Lane, StdStream)>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptors, or a peer that was gone before it was served.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(SHORTAGE).await;
                continue;
            }
        };
        let (serving, others) = (net.clone(), others.clone());
        net.spawn(async move {
            match timeout(HANDSHAKE, serve(&serving, stream, &others)).await {
                Ok(Ok(Some(cut))) => {
                    drop(place);
                    // It stalls as if the network lost everything: closing it would tell.
                    let _cut = cut;
                    pending::<()>().await;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::info!(%error, "a connection was refused"),
                Err(_) => tracing::info!("a connection was refused: it did not say who it is"),
            }
        });
    }
}

/// Finds out who comes for what. A connection that a cut must stall is given back.
async fn serve(
    net: &Rc<Net>,
    mut stream: TcpStream,
    others: &mpsc::Sender<(Lane, StdStream)>,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    dial::prepare(&stream, net.shared.silence());
    let lane = Lane::read(&mut stream).await?;
    if matches!(lane, Lane::Bulk | Lane::Library | Lane::Ticket) {
        let busy = |_| io::Error::other("too many wait to be served");
        others.try_send((lane, stream.into_std()?)).map_err(busy)?;
        return Ok(None);
    }
    let mut stream = net.shared.vault.tls().acceptor.accept(stream).await?;
    // A probe ends here, having seen who answers.
    let hello: Hello = match frame::read(&mut stream, HELLO_MAX).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        hello => hello?,
    };
    enter(net, lane, hello, stream).await
}

/// Lets in who has said hello. A connection that a cut must stall is given back.
pub(super) async fn enter(
    net: &Rc<Net>,
    lane: Lane,
    hello: Hello,
    stream: TlsStream<TcpStream>,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let me = net.shared.vault.tls().me;
    check(&hello, net.shared.dvm, me, stream.get_ref().1.peer_certificates())?;
    if net.shared.cuts.stops_connecting(hello.from, &net.shared.book) {
        return Ok(Some(stream));
    }
    match (lane, hello.view) {
        (Lane::Ring, Some(view)) => {
            let (stream, session) = stream.into_inner();
            let (peer, side, tls) = (hello.from, Side::Incoming, Box::new(session.into()));
            net.tell(FromNet::Link { me, peer, view, side, stream, tls }).await;
        }
        (Lane::Ring, None) => net.spares.accepted(net, hello.from, stream),
        (Lane::Control, None) => net.controls.accepted(net, hello.from, stream),
        _ => return Err(refused("its first frame does not fit its lane")),
    }
    Ok(None)
}

/// Whether a first frame is for us and from whom it says.
pub(crate) fn check(
    hello: &Hello,
    dvm: u128,
    me: dvm_core::ids::MemberId,
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
) -> io::Result<()> {
    if hello.dvm != dvm {
        return Err(refused("it is of another DVM"));
    }
    if hello.to != me {
        return Err(refused("it is for another incarnation"));
    }
    if !is_of(certificates, hello.from) {
        return Err(refused("its certificate names another member"));
    }
    Ok(())
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}
