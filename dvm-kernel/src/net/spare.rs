//! Spare connections: made while nothing hurries, so that the next view's ring stands without a handshake.
//!
//! Every view has links of its own, and opening them costs a TLS handshake at either end: where many kernels share a
//! machine that takes longer than agreeing on the view. So a member keeps a connection ready to its successor and to
//! the one after it; whichever member goes, every link of the next ring is there. A spare names no view until it becomes
//! a link. It is evidence of nothing: one that broke is dropped, and the link is dialled.

use super::hello::{Hello, Lane};
use super::{Net, dial, frame, listen};
use dvm_core::ids::{MemberId, ViewId};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{client, server};

/// After a new view the ring and whoever waited for it come first.
const SETTLED: Duration = Duration::from_millis(50);

/// How often spares are looked at, and made again where they broke.
const LOOK: Duration = Duration::from_secs(10);

/// Silence after which the operating system asks whether the far end is there; it gives up after T.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The spares of this incarnation.
#[derive(Default)]
pub(super) struct Spares {
    /// Ours, by who is at the far end.
    opened: RefCell<BTreeMap<MemberId, client::TlsStream<TcpStream>>>,
    /// Who makes them.
    making: RefCell<Option<AbortHandle>>,
    /// Those a peer opened, one each: who waits for the view.
    accepted: RefCell<BTreeMap<MemberId, AbortHandle>>,
}

impl Spares {
    /// From now on there is to be one to each of these, and to nobody else.
    pub(super) fn keep(&self, net: &Rc<Net>, peers: Vec<MemberId>) {
        self.opened.borrow_mut().retain(|peer, _| peers.contains(peer));
        let task_net = net.clone();
        let making = net.spawn(async move {
            sleep(SETTLED).await;
            loop {
                for peer in &peers {
                    task_net.spares.make(&task_net, *peer).await;
                }
                sleep(LOOK).await;
            }
        });
        if let Some(before) = self.making.replace(Some(making)) {
            before.abort();
        }
    }

    async fn make(&self, net: &Net, peer: MemberId) {
        if self.opened.borrow().get(&peer).is_some_and(stands) {
            return;
        }
        match dial::dial(&net.shared, peer, Lane::Ring, None).await {
            Ok(stream) => {
                keep_alive(stream.get_ref().0);
                self.opened.borrow_mut().insert(peer, stream);
            }
            Err(error) => tracing::debug!(%peer, %error, "no spare connection"),
        }
    }

    /// The spare to a peer, made a link of this view; nothing if there is none that works.
    pub(super) async fn take(
        &self,
        net: &Net,
        to: MemberId,
        view: ViewId,
    ) -> Option<client::TlsStream<TcpStream>> {
        if net.shared.cuts.stops_connecting(to, &net.shared.book) {
            return None;
        }
        let mut stream = self.opened.borrow_mut().remove(&to).filter(stands)?;
        let hello = Hello { dvm: net.shared.dvm, from: net.shared.vault.tls().me, to, view: Some(view) };
        let sent = timeout(net.shared.connect_timeout(), frame::write(&mut stream, &hello)).await;
        sent.is_ok_and(|sent| sent.is_ok()).then_some(stream)
    }

    /// Waits for the view of a spare that a peer opened, in place of the one it opened before.
    pub(super) fn accepted(&self, net: &Rc<Net>, peer: MemberId, mut stream: server::TlsStream<TcpStream>) {
        keep_alive(stream.get_ref().0);
        let task_net = net.clone();
        let waiting = net.spawn(async move {
            let Ok(hello) = frame::read(&mut stream, frame::HELLO_MAX).await else { return };
            match listen::enter(&task_net, Lane::Ring, hello, stream).await {
                Ok(Some(_cut)) => pending().await,
                Ok(None) => {}
                Err(error) => tracing::info!(%error, "a spare connection was refused"),
            }
        });
        let mut accepted = self.accepted.borrow_mut();
        accepted.retain(|_, waiting| !waiting.is_finished());
        if let Some(before) = accepted.insert(peer, waiting) {
            before.abort();
        }
    }

    #[cfg(test)]
    pub(super) fn has(&self, peer: MemberId) -> bool {
        self.opened.borrow().contains_key(&peer)
    }

    /// Forgets all; the tasks are ended by the caller.
    pub(super) fn clear(&self) {
        self.opened.borrow_mut().clear();
        self.making.take();
        self.accepted.borrow_mut().clear();
    }
}

/// Whether nothing has come, for nothing comes before the view is named: neither an end nor an error.
fn stands(stream: &client::TlsStream<TcpStream>) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream.get_ref().0, &mut [0_u8; 1], flags), Err(Errno::WOULDBLOCK))
}

/// Sets a socket up for a long wait. What fails here only makes a broken one known later.
fn keep_alive(stream: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE);
}
