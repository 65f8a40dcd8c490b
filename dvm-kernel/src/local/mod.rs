//! The local server: what clients of this host ask, answered as the local protocol says.
//!
//! It has a thread of its own. It follows the history by the [`Feed`], keeps the tail that subscribers and `history`
//! read, hands entries to the plug-ins' manager, and asks the ring's task for everything else. A slow client holds its
//! own connection and nothing else: its queue is bounded, and a subscriber that falls behind is told so.

mod changes;
mod connections;
pub(crate) mod documents;
mod effects;
mod follow;
mod journal;
mod metrics;
mod mirror;
mod plugin_requests;
mod requests;
mod roles;
mod services;
mod subscribe;
mod verify;

use crate::clock::Clock;
use crate::feed::{Feed, Listening};
use crate::net::Shared;
use crate::net::hello::Lane;
use crate::peer::{self, Peers};
use crate::plugins::{FromPlugins, ToPlugins};
use crate::ring::RingHandle;
use crate::security::ticket::Tickets;
use crate::services::desk::Desks;
use crate::services::processes::Processes;
use dvm_core::Config;
use dvm_core::ids::{Time, TransactionId};
use dvm_core::state::LeaveBy;
use dvm_core::wire::Identity;
use dvm_plugin_api::local::EventDoc;
use dvm_plugin_api::place::DvmPlace;
use mirror::Mirror;
use roles::Roles;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::TcpStream as StdStream;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// How long answers may take to leave when the kernel ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long plug-ins may take to end when the kernel ends.
const PLUGINS_END: Duration = Duration::from_secs(5);

/// What the server is made of.
pub(crate) struct Parts {
    /// Name of the DVM.
    pub(crate) dvm: String,
    /// Its place on this host.
    pub(crate) place: DvmPlace,
    /// Who this kernel is.
    pub(crate) identity: Identity,
    /// Directory of the logs.
    pub(crate) logs: PathBuf,
    /// The clock of the process.
    pub(crate) clock: Clock,
    /// What both threads need to speak to other kernels.
    pub(crate) shared: Arc<Shared>,
    /// The ring's task.
    pub(crate) ring: RingHandle,
    /// What it tells.
    pub(crate) feed: Arc<Feed>,
    /// Other kernels.
    pub(crate) peers: Peers,
    /// Where clients come.
    pub(crate) socket: StdUnixListener,
    /// Connections for this thread that came to the kernel's port.
    pub(crate) others: mpsc::Receiver<(Lane, StdStream)>,
    /// The plug-ins' manager.
    pub(crate) plugins: mpsc::Sender<ToPlugins>,
    /// What it reports.
    pub(crate) reports: mpsc::Receiver<FromPlugins>,
    /// Of its instances.
    pub(crate) desks: Arc<Desks>,
    /// This program, for the processes that instances start.
    pub(crate) kernel: PathBuf,
}

/// The server's state.
pub(crate) struct Server {
    pub(crate) dvm: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ring: RingHandle,
    pub(crate) feed: Arc<Feed>,
    pub(crate) peers: Peers,
    place: DvmPlace,
    logs: PathBuf,
    clock: Clock,
    /// As its present incarnation.
    identity: RefCell<Identity>,
    mirror: RefCell<Mirror>,
    /// One more with each thing told; subscribers wait for it.
    version: watch::Sender<u64>,
    /// Entries and bytes of history to keep.
    kept: Cell<(u64, u64)>,
    /// To the plug-ins' manager, in order.
    outbox: RefCell<VecDeque<ToPlugins>>,
    outbox_added: Notify,
    /// Set once there are plug-ins: they want each entry at once.
    plugins_listen: RefCell<Option<Listening>>,
    tickets: RefCell<Tickets>,
    /// Of the last transaction proposed here.
    serial: Cell<u64>,
    /// When each open transaction was first seen.
    opened: RefCell<BTreeMap<TransactionId, Time>>,
    /// What a lost branch left, until the branch that stands takes its place.
    orphans: RefCell<Option<journal::Lost>>,
    /// What is told of the last lost branches, oldest first.
    lost: RefCell<VecDeque<EventDoc>>,
    /// Of the plug-in instances here.
    pub(crate) desks: Arc<Desks>,
    /// What plug-ins have started here.
    pub(crate) processes: Processes,
    /// Effects that are done.
    marks: RefCell<effects::Marks>,
    /// Who the primaries are, and whether this member's may act.
    roles: RefCell<Roles>,
    blocked: Cell<bool>,
    /// The DVM's end is in the history.
    halting: Cell<bool>,
    /// By whose wish the member left; `None` while it has not.
    left: Cell<Option<LeaveBy>>,
    /// The ring's task has ended in any way.
    ended: Cell<bool>,
    /// Requests being answered, and answers that were not written yet.
    unfinished: Cell<usize>,
    /// Clients that are here.
    clients: Cell<usize>,
    /// Subscriptions that are served.
    subscribers: Cell<usize>,
    /// How many events of each kind were told.
    told: RefCell<BTreeMap<&'static str, u64>>,
}

/// Runs the server on this thread until the member has left.
pub(crate) async fn run(parts: Parts) -> io::Result<()> {
    let socket = UnixListener::from_std(parts.socket)?;
    let defaults = Config::default();
    let env = [("DVM_URI", parts.place.uri()), ("DVM_MEMBER", parts.identity.name.clone())];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let server = Rc::new(Server {
        dvm: parts.dvm,
        mirror: RefCell::new(Mirror::new(parts.shared.dvm)),
        shared: parts.shared,
        ring: parts.ring,
        feed: parts.feed,
        peers: parts.peers,
        place: parts.place,
        logs: parts.logs,
        clock: parts.clock,
        identity: RefCell::new(parts.identity),
        version: watch::Sender::new(0),
        kept: Cell::new((defaults.history_entries, defaults.history_bytes)),
        outbox: RefCell::default(),
        outbox_added: Notify::new(),
        plugins_listen: RefCell::default(),
        tickets: RefCell::default(),
        serial: Cell::new(0),
        opened: RefCell::default(),
        orphans: RefCell::default(),
        lost: RefCell::default(),
        desks: parts.desks,
        processes: Processes::new(parts.kernel, env),
        marks: RefCell::default(),
        roles: RefCell::default(),
        blocked: Cell::new(false),
        halting: Cell::new(false),
        left: Cell::new(None),
        ended: Cell::new(false),
        unfinished: Cell::new(0),
        clients: Cell::new(0),
        subscribers: Cell::new(0),
        told: RefCell::default(),
    });
    spawn_local(forward(server.clone(), parts.plugins));
    spawn_local(server.clone().report(parts.reports));
    spawn_local(connections::accept(server.clone(), socket));
    spawn_local(serve_others(server.clone(), parts.others));
    server.clone().follow().await;
    server.farewell().await;
    Ok(())
}

impl Server {
    /// Sends something to the plug-ins' manager, behind all that was sent before.
    pub(crate) fn tell_plugins(&self, message: ToPlugins) {
        self.outbox.borrow_mut().push_back(message);
        self.outbox_added.notify_one();
    }

    /// Ends plug-ins, and lets answers leave.
    async fn farewell(&self) {
        let (done, fenced) = oneshot::channel();
        self.tell_plugins(ToPlugins::Fence { done });
        let answers = async {
            while self.unfinished.get() > 0 {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let processes = self.processes.end_all_but(|_| false);
        let (fenced, _, ()) =
            tokio::join!(timeout(PLUGINS_END, fenced), timeout(FAREWELL, answers), processes);
        if fenced.is_err() {
            tracing::warn!("plug-ins do not end; they are left to the operating system");
        }
    }
}

/// Hands messages to the plug-ins' manager as fast as it takes them.
async fn forward(server: Rc<Server>, plugins: mpsc::Sender<ToPlugins>) {
    loop {
        let next = server.outbox.borrow_mut().pop_front();
        match next {
            Some(message) => {
                if plugins.send(message).await.is_err() {
                    tracing::error!("the plug-ins' manager has ended");
                    return;
                }
            }
            None => server.outbox_added.notified().await,
        }
    }
}

async fn serve_others(server: Rc<Server>, mut others: mpsc::Receiver<(Lane, StdStream)>) {
    while let Some((lane, stream)) = others.recv().await {
        match lane {
            Lane::Library => server.peers.serve_library(stream),
            _ => drop(spawn_local(peer::serve(server.clone(), lane, stream))),
        }
    }
}
