//! Connections between kernels. What is sent, to whom and when is the member's business.
//!
//! Of the four lanes of [`hello`], ring links and control connections belong to the ring's thread; bulk connections and
//! tickets are handed to the other thread as soon as their first bytes have come. Every connection is TLS 1.3 and knows
//! its peer's incarnation from its certificate. Control connections are opened on demand and used both ways; a message
//! may be lost with the connection it was queued for, as the protocol allows.

mod book;
mod control;
mod cut;
pub(crate) mod dial;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod link;
mod listen;
mod spare;
#[cfg(test)]
mod tests;

pub(crate) use book::Book;
pub(crate) use cut::Cuts;
pub(crate) use listen::{bind, check, listen};

use crate::security::tls::Vault;
use crate::tally::Tally;
use control::Controls;
use dial::DialError;
use dvm_core::Side;
use dvm_core::ids::{MemberId, ViewId};
use dvm_core::wire::{Control, Identity};
use hello::Lane;
use spare::Spares;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

/// What both threads need to speak to other kernels, and what they count.
pub(crate) struct Shared {
    /// Key and certificates.
    pub(crate) vault: Vault,
    /// Who can be reached where.
    pub(crate) book: Book,
    /// Faults on request.
    pub(crate) cuts: Cuts,
    /// The DVM.
    pub(crate) dvm: u128,
    /// What was counted.
    pub(crate) tally: Tally,
    silence_ms: AtomicU64,
}

impl Shared {
    /// For one kernel process.
    pub(crate) fn new(vault: Vault, dvm: u128, silence_ms: u64) -> Arc<Self> {
        let (book, cuts, tally) = (Book::default(), Cuts::default(), Tally::default());
        Arc::new(Self { vault, book, cuts, dvm, tally, silence_ms: AtomicU64::new(silence_ms) })
    }

    /// T, by the DVM's settings.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms.load(Ordering::Relaxed))
    }

    /// The settings have changed.
    pub(crate) fn set_silence_ms(&self, ms: u64) {
        self.silence_ms.store(ms, Ordering::Relaxed);
    }

    /// How long a connection may take to come about.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.silence() / 2
    }
}

/// From connections to the ring's task.
pub(crate) enum FromNet {
    /// A ring link stands.
    Link {
        /// Our incarnation that it was made for.
        me: MemberId,
        /// Who is at the far end.
        peer: MemberId,
        /// The view it belongs to.
        view: ViewId,
        /// Our end.
        side: Side,
        /// Its socket.
        stream: TcpStream,
        /// Its TLS.
        tls: Box<rustls::Connection>,
    },
    /// A ring link could not be opened.
    LinkFailed {
        /// To whom.
        to: MemberId,
        /// For which view.
        view: ViewId,
    },
    /// A control message came.
    Control {
        /// From whom.
        from: MemberId,
        /// It.
        message: Control,
    },
    /// A control connection is gone.
    Reset {
        /// Whose.
        peer: MemberId,
    },
    /// An incarnation is gone.
    Refused {
        /// Which.
        peer: MemberId,
        /// Who is there now, if it is a member of this DVM.
        by: Option<Box<Identity>>,
    },
}

/// The ring's thread's side of the network.
pub(crate) struct Net {
    shared: Arc<Shared>,
    to_ring: mpsc::Sender<FromNet>,
    controls: Controls,
    spares: Spares,
    /// Tasks that speak for the present incarnation.
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Net {
    /// What it hears goes to `to_ring`.
    pub(crate) fn new(shared: Arc<Shared>, to_ring: mpsc::Sender<FromNet>) -> Rc<Self> {
        let (controls, spares) = (Controls::default(), Spares::default());
        Rc::new(Self { shared, to_ring, controls, spares, tasks: RefCell::default() })
    }

    /// What both threads share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Opens a ring link; answered by [`FromNet::Link`] or [`FromNet::LinkFailed`].
    pub(crate) fn connect(self: &Rc<Self>, to: MemberId, view: ViewId) {
        let net = self.clone();
        self.spawn(async move {
            let me = net.shared.vault.tls().me;
            let opened = match net.spares.take(&net, to, view).await {
                Some(spare) => Ok(spare),
                None => dial::dial(&net.shared, to, Lane::Ring, Some(view)).await,
            };
            match opened {
                Ok(stream) => {
                    let (stream, tls) = stream.into_inner();
                    let (side, tls) = (Side::Outgoing, Box::new(tls.into()));
                    net.tell(FromNet::Link { me, peer: to, view, side, stream, tls }).await;
                }
                Err(error) => {
                    tracing::debug!(peer = %to, %error, "no ring link");
                    net.tell(FromNet::LinkFailed { to, view }).await;
                    if let DialError::Gone { by, .. } = error {
                        net.tell_refused(to, by).await;
                    }
                }
            }
        });
    }

    /// Keeps a connection ready to each of these, who may be the next successor.
    pub(crate) fn keep_spares(self: &Rc<Self>, peers: Vec<MemberId>) {
        self.spares.keep(self, peers);
    }

    /// Tries a new connection; answered by [`FromNet::Refused`] if the process is gone.
    pub(crate) fn probe(self: &Rc<Self>, peer: MemberId) {
        let net = self.clone();
        self.spawn(async move {
            if let Some(by) = dial::is_gone(&net.shared, peer).await {
                net.tell_refused(peer, by).await;
            }
        });
    }

    /// Tells that an incarnation is gone. Whoever is in its place has its name and addresses.
    async fn tell_refused(&self, peer: MemberId, by: Option<MemberId>) {
        let by = by.and_then(|id| Some(Box::new(Identity { id, ..self.shared.book.identity(peer)? })));
        self.tell(FromNet::Refused { peer, by }).await;
    }

    /// Sends a control message if the peer can be reached.
    pub(crate) fn send(self: &Rc<Self>, to: MemberId, message: Control) {
        if !self.shared.cuts.stops_to(to, &self.shared.book) {
            self.shared.tally.control_out.add(1);
            self.controls.send(self, to, message);
        }
    }

    /// Ends everything that spoke for the incarnation until now.
    pub(crate) fn forget_incarnation(&self) {
        for task in self.tasks.take() {
            task.abort();
        }
        self.controls.clear();
        self.spares.clear();
    }

    /// Runs a task that ends with the incarnation.
    fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let handle = spawn_local(task).abort_handle();
        let mut tasks = self.tasks.borrow_mut();
        if tasks.len() >= 64 && tasks.len().is_power_of_two() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle.clone());
        handle
    }

    async fn tell(&self, what: FromNet) {
        // The ring's task has ended: nobody is left to tell.
        let _ = self.to_ring.send(what).await;
    }
}
