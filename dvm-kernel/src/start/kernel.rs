//! A kernel's threads, put together and run until the member has left.

use super::joining::{Beginning, How};
use super::places::Places;
use super::{Failed, guardian, say_and_let_go, signals};
use crate::clock::Clock;
use crate::feed::Feed;
use crate::local::{self, Parts};
use crate::net::{self, Net, Shared};
use crate::peer::{Blobs, Peers};
use crate::plugins;
use crate::ring::{Ended, Ends, Ring, RingHandle};
use crate::security::draw_id;
use crate::security::tls::Vault;
use crate::services::desk::Desks;
use dvm_core::Member;
use dvm_core::ids::MemberId;
use dvm_core::state::LeaveBy;
use dvm_core::wire::Identity;
use dvm_plugin_api::local::{Bootstrap, Bootstrapped};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

/// Requests and news that may wait for the ring's task.
const INBOX: usize = 1_024;

/// Connections that may wait for the other thread.
const OTHERS: usize = 64;

/// How long the other thread may take to end.
const END: Duration = Duration::from_secs(8);

/// Where to look when nothing else is to be said.
const SEE_LOG: &str = "look at the kernel's log";

/// Open files below which a kernel does not start: a few members, clients and plug-ins. With less it would start, and
/// then turn others away.
const FILES_MIN: u64 = 48;

/// This program, to be run again for plug-ins and what they start.
const KERNEL: &str = "/proc/self/exe";

/// What to do about too few.
const MORE_FILES: &str = "raise the limit of open files: ulimit -n 1024";

/// Becomes a member, and returns when it has left.
pub(super) fn run(bootstrap: Bootstrap) -> Result<(), Failed> {
    let clock = Clock::start();
    let (places, socket) = Places::take(&bootstrap)?;
    // Its plug-ins, and what they start, are clients of this kernel without being told where it is.
    let uri = format!("{}/{}.sock", places.place.uri(), bootstrap.member);
    // SAFETY: the process has no other thread yet.
    unsafe { std::env::set_var("DVM_URI", uri) };
    on_panic();
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, pid = std::process::id(), dvm = bootstrap.dvm, "kernel starts");
    raise_descriptors()?;
    let runtime = runtime().map_err(|error| Failed::new("start", error, MORE_FILES))?;
    let local = LocalSet::new();
    let ended = local.block_on(&runtime, become_member(&bootstrap, clock, &places, socket))?;
    match ended {
        Ended::Left(by) => {
            tracing::info!(?by, "kernel ends");
            Ok(())
        }
        Ended::Refused(reason) => Err(Failed::new("join", reason, SEE_LOG)),
    }
}

async fn become_member(
    bootstrap: &Bootstrap,
    clock: Clock,
    places: &Places,
    socket: UnixListener,
) -> Result<Ended, Failed> {
    let start = |error: &dyn std::error::Error| Failed::new("start", error, SEE_LOG);
    let beginning = Beginning::of(bootstrap).await?;
    let range = port_range()?;
    let listener = net::bind(&bootstrap.listen, range).map_err(|error| {
        let reason = format!("cannot listen at {}: {error}", bootstrap.listen);
        Failed::new("start", reason, "see DVM_PORT_RANGE")
    })?;
    let address = address(&listener, beginning.seen_as).map_err(|error| start(&error))?;
    let identity = identity(bootstrap, places, address);
    let config = beginning.config().clone();
    let vault = Vault::new(beginning.key.clone(), identity.id).map_err(|error| start(&error))?;
    let shared = Shared::new(vault, beginning.dvm, config.silence_ms);
    shared.book.know(identity.clone());
    let seed = draw_id() as u64;
    let member = match beginning.how {
        How::Found(genesis) => Member::found(identity.clone(), genesis, seed, clock.now()),
        How::Join(contact, config) => {
            shared.book.know((*contact).clone());
            Member::join(identity.clone(), *contact, config, seed, clock.now())
        }
    };
    let (to_ring, inbox) = mpsc::channel(INBOX);
    let (to_ring_net, from_net) = mpsc::channel(INBOX);
    let (to_others, others) = mpsc::channel(OTHERS);
    let (feed, ring) = (Arc::new(Feed::default()), RingHandle::new(to_ring));
    let net = Net::new(shared.clone(), to_ring_net);
    let peers = Peers::new(shared.clone(), Arc::new(Blobs::default()));
    let (reports_in, reports) = mpsc::channel(INBOX);
    let desks: Arc<Desks> = Arc::default();
    let options = plugins::Options {
        name: bootstrap.member.clone(),
        kernel: KERNEL.into(),
        reports: reports_in,
        socket: places.socket_path.clone(),
        desks: desks.clone(),
    };
    let parts = Parts {
        dvm: bootstrap.dvm.clone(),
        place: places.place.clone(),
        identity: identity.clone(),
        logs: places.logs.clone(),
        clock,
        shared,
        ring: ring.clone(),
        feed: feed.clone(),
        peers: peers.clone(),
        socket,
        others,
        plugins: plugins::start(Arc::new(peers), options),
        reports,
        desks,
        kernel: KERNEL.into(),
    };
    let other_thread = spawn_other_thread(parts).map_err(|error| start(&error))?;
    let (socket_path, pid_path) = (places.socket_path.clone(), places.place.pid_file(&bootstrap.member));
    let give_up = move || {
        let _ = std::fs::remove_file(pid_path);
        let _ = std::fs::remove_file(socket_path);
        std::process::exit(1);
    };
    spawn_local(signals::serve(ring.clone(), give_up).map_err(|error| start(&error))?);
    let (refused_in, mut refused) = oneshot::channel();
    let admitted = admitted(bootstrap, places, ring, refused_in);
    let ends = Ends { net: net.clone(), from_net, inbox, feed, admitted };
    let ring = Ring::new(member, clock, ends).map_err(|error| start(&error))?;
    spawn_local(async move {
        if let Err(error) = net::listen(net, listener, to_others).await {
            tracing::error!(%error, "the listener ended");
        }
    });
    let ended = ring.run().await.map_err(|error| start(&error))?;
    if timeout(END, other_thread).await.is_err() {
        tracing::warn!("the local server does not end; it is left behind");
    }
    match refused.try_recv() {
        Ok(reason) => Err(Failed::new("join", reason, SEE_LOG)),
        Err(_) => Ok(ended),
    }
}

/// What happens when it is known whether the kernel is a member.
fn admitted(
    bootstrap: &Bootstrap,
    places: &Places,
    ring: RingHandle,
    refused: oneshot::Sender<String>,
) -> crate::ring::Admitted {
    let (member, socket) = (bootstrap.member.clone(), places.socket_path.clone());
    let guardian = bootstrap.respawn.map(|respawn| guardian::command(bootstrap, places, respawn));
    Box::new(move |admitted: Result<MemberId, String>| match admitted {
        Ok(id) => {
            let ready = Bootstrapped::Ready { member, id: id.to_string(), pid: std::process::id(), socket };
            if let Err(error) = say_and_let_go(&ready) {
                tracing::error!(%error, "whoever started the kernel is gone");
                spawn_local(async move {
                    let by = LeaveBy::Term;
                    let _ = ring.input(dvm_core::Input::Leave { by }).await;
                });
            } else if let Some(guardian) = guardian {
                guardian::start(guardian);
            }
        }
        // Told when everything else has ended.
        Err(reason) => drop(refused.send(reason)),
    })
}

/// The thread of the local server; the receiver hears when it has ended.
fn spawn_other_thread(parts: Parts) -> io::Result<oneshot::Receiver<()>> {
    let (done, ended) = oneshot::channel();
    let runtime = runtime()?;
    let run = move || {
        let guard = AbortOnPanic;
        let local = LocalSet::new();
        if let Err(error) = local.block_on(&runtime, local::run(parts)) {
            tracing::error!(%error, "the local server cannot run");
            std::process::abort();
        }
        std::mem::forget(guard);
        let _ = done.send(());
    };
    std::thread::Builder::new().name("local".into()).spawn(run)?;
    Ok(ended)
}

/// A member without its local server would be deaf; it is better dead, and the ring goes on without it.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Panics are logged; one on the ring's thread is a broken invariant, and ends the process: a member that lost its
/// state must not vote.
fn on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(thread = thread.name(), %panic, %backtrace, "panic");
        if thread.name() == Some("main") {
            std::process::abort();
        }
    }));
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn identity(bootstrap: &Bootstrap, places: &Places, address: String) -> Identity {
    Identity {
        id: MemberId(draw_id()),
        name: bootstrap.member.clone(),
        host: std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|_| "localhost".into(), |name| name.trim().into()),
        addresses: vec![address],
        pid: std::process::id(),
        log: places.log.display().to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        tags: bootstrap.tags.clone(),
    }
}

/// Where others reach the listener: its own address, or where it listens everywhere, the one the contact saw.
fn address(listener: &TcpListener, seen_as: Option<IpAddr>) -> io::Result<String> {
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified()
        && let Some(ip) = seen_as
    {
        address.set_ip(ip);
    }
    Ok(address.to_string())
}

/// `DVM_PORT_RANGE`, `LO-HI`.
fn port_range() -> Result<Option<(u16, u16)>, Failed> {
    let Some(text) = std::env::var("DVM_PORT_RANGE").ok().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let range = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    range.map(Some).ok_or_else(|| {
        Failed::new("start", format!("DVM_PORT_RANGE is `{text}`"), "it looks like 40000-40100")
    })
}

/// As many open files as the user may have; refuses to go on with too few.
fn raise_descriptors() -> Result<(), Failed> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    match if raised.is_ok() { maximum } else { current } {
        Some(limit) if limit < FILES_MIN => {
            let reason = format!("it may open {limit} files, and at least {FILES_MIN} are needed");
            Err(Failed::new("start", reason, MORE_FILES))
        }
        _ => Ok(()),
    }
}
