//! Kernels of one process speak to each other over loopback, and to whoever else comes.

use super::hello::Lane;
use super::link::{Link, LinkError};
use super::{FromNet, Net, Shared, bind, listen};
use crate::security::DvmKey;
use crate::security::tls::Vault;
use bytes::Bytes;
use dvm_core::Side;
use dvm_core::ids::{Epoch, Lamport, LinkId, MemberId, Rank, ViewId};
use dvm_core::wire::{Control, Data, Identity, Ring};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

const DVM: u128 = 42;
const PATIENCE: Duration = Duration::from_secs(5);

/// A kernel as far as the network is concerned.
struct Kernel {
    net: Rc<Net>,
    heard: mpsc::Receiver<FromNet>,
    identity: Identity,
    /// Bulk connections and tickets.
    others: mpsc::Receiver<(Lane, StdStream)>,
    listening: JoinHandle<std::io::Result<()>>,
}

impl Kernel {
    fn start(key: &DvmKey, dvm: u128, id: u128) -> Self {
        let listener = bind("127.0.0.1", None).expect("a port");
        let identity = identity(id, &listener);
        let vault = Vault::new(key.clone(), identity.id).expect("a certificate");
        let (to_ring, heard) = mpsc::channel(64);
        let net = Net::new(Shared::new(vault, dvm, 1_000), to_ring);
        net.shared().book.know(identity.clone());
        let (to_others, others) = mpsc::channel(4);
        let listening = spawn_local(listen(net.clone(), listener, to_others));
        Self { net, heard, identity, others, listening }
    }

    fn knows(&self, other: &Kernel) {
        self.net.shared().book.know(other.identity.clone());
    }

    async fn hears(&mut self) -> FromNet {
        timeout(PATIENCE, self.heard.recv()).await.expect("in time").expect("it listens")
    }

    /// Has a spare connection to the other one.
    async fn spares(&self, other: &Kernel) {
        self.net.keep_spares(vec![other.identity.id]);
        let made = async {
            while !self.net.spares.has(other.identity.id) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, made).await.expect("a spare is made");
    }

    /// Takes no new connections any more.
    async fn stops_listening(&mut self) {
        self.listening.abort();
        assert!((&mut self.listening).await.is_err(), "it listened until now");
    }

    async fn link(&mut self, number: u64) -> Link {
        match self.hears().await {
            FromNet::Link { peer, stream, tls, .. } => Link::new(LinkId(number), peer, stream, *tls),
            _ => panic!("not a link"),
        }
    }
}

/// Two of one DVM, of which the first knows where the second is.
fn pair() -> (Kernel, Kernel) {
    let key = DvmKey::draw();
    let (a, b) = (Kernel::start(&key, DVM, 1), Kernel::start(&key, DVM, 2));
    a.knows(&b);
    (a, b)
}

fn identity(id: u128, listener: &TcpListener) -> Identity {
    Identity {
        id: MemberId(id),
        name: format!("k{id}"),
        host: "here".into(),
        addresses: vec![listener.local_addr().expect("it is bound").to_string()],
        pid: 0,
        log: String::new(),
        version: String::new(),
        tags: BTreeMap::new(),
    }
}

fn view() -> ViewId {
    ViewId { epoch: Epoch(3), proposer: MemberId(1), round: 1 }
}

/// Runs a test as the kernel's thread would run it.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

fn data(oseq: u64, length: usize) -> Ring {
    let body = Bytes::from(vec![oseq as u8; length]);
    Ring::Data(Data { origin: Rank(0), oseq, lnum: Lamport(oseq), hops: 1, body, digest: None })
}

#[test]
fn control_messages_pass_both_ways_over_one_connection() {
    run(async {
        let (mut a, mut b) = pair();
        let message = Control::JoinRefused { reason: "hello".into() };
        a.net.send(MemberId(2), message.clone());
        let FromNet::Control { from: MemberId(1), message: came } = b.hears().await else { panic!() };
        assert_eq!(came, message);
        // b was never told where a listens: the answer takes the way the question came.
        b.net.send(MemberId(1), message.clone());
        assert!(matches!(a.hears().await, FromNet::Control { from: MemberId(2), .. }));
        a.net.forget_incarnation();
        assert!(matches!(b.hears().await, FromNet::Reset { peer: MemberId(1) }));
    });
}

#[test]
fn a_ring_link_is_told_at_both_ends_and_carries_frames_in_order() {
    run(async {
        let (mut a, mut b) = pair();
        a.net.connect(MemberId(2), view());
        let FromNet::Link { peer, view: theirs, side, stream, tls, .. } = b.hears().await else { panic!() };
        assert_eq!((peer, theirs, side), (MemberId(1), view(), Side::Incoming));
        let mut to = Link::new(LinkId(1), peer, stream, *tls);
        let mut from = a.link(2).await;
        for oseq in 0..100 {
            from.place(&data(oseq, 100));
        }
        let came = pump(&mut [&mut from, &mut to], 100).await;
        assert!(came.iter().enumerate().all(|(at, (_, frame))| *frame == data(at as u64, 100)));
        assert_eq!(from.counts().frames, 100);
        drop(from);
        let error = poll_fn(|cx| match to.read(cx, &mut [0; 100], &mut VecDeque::new()) {
            Err(error) => Poll::Ready(error),
            Ok(_) => Poll::Pending,
        });
        assert!(matches!(timeout(PATIENCE, error).await, Ok(LinkError::Closed)));
    });
}

#[test]
fn a_spare_becomes_a_link_though_no_new_connection_could() {
    run(async {
        let (mut a, mut b) = pair();
        a.spares(&b).await;
        b.stops_listening().await;
        a.net.connect(MemberId(2), view());
        let (mut from, mut to) = (a.link(1).await, b.link(2).await);
        from.place(&data(1, 100));
        assert_eq!(pump(&mut [&mut from, &mut to], 1).await[0].1, data(1, 100));
        // There was one.
        a.net.connect(MemberId(2), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { to: MemberId(2), .. }));
    });
}

#[test]
fn a_spare_that_broke_is_dialled_and_told_to_nobody() {
    run(async {
        let (mut a, mut b) = pair();
        a.spares(&b).await;
        b.net.forget_incarnation();
        assert!(
            timeout(Duration::from_millis(50), a.heard.recv()).await.is_err(),
            "it is evidence of nothing"
        );
        a.net.connect(MemberId(2), view());
        let FromNet::Link { peer, view: theirs, .. } = b.hears().await else { panic!("no link") };
        assert_eq!((peer, theirs), (MemberId(1), view()));
        assert!(matches!(a.hears().await, FromNet::Link { peer: MemberId(2), .. }));
    });
}

#[test]
fn a_cut_holds_for_spares_and_they_outlast_it() {
    run(async {
        let (mut a, mut b) = pair();
        b.knows(&a);
        a.spares(&b).await;
        b.stops_listening().await;
        a.net.shared().cuts.cut(vec!["k2".into()], vec![]);
        a.net.connect(MemberId(2), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { .. }));
        a.net.shared().cuts.heal();
        // Cut at the far end: the link seems to stand, and nobody hears of it there.
        b.net.shared().cuts.cut(vec![], vec!["k1".into()]);
        a.net.connect(MemberId(2), view());
        assert!(matches!(a.hears().await, FromNet::Link { .. }));
        assert!(timeout(Duration::from_millis(50), b.heard.recv()).await.is_err(), "b heard it");
    });
}

#[test]
fn an_incarnation_that_is_over_takes_its_spares_along() {
    run(async {
        let (mut a, mut b) = pair();
        a.spares(&b).await;
        b.stops_listening().await;
        a.net.forget_incarnation();
        a.net.connect(MemberId(2), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { .. }));
    });
}

/// Moves frames between links until so many have come.
async fn pump(links: &mut [&mut Link], frames: usize) -> VecDeque<(LinkId, Ring)> {
    let mut came = VecDeque::new();
    let mut scratch = vec![0; 64 << 10];
    let moving = poll_fn(|cx| {
        for link in links.iter_mut() {
            while link.read(cx, &mut scratch, &mut came).expect("the link stands") {}
            link.write(cx).expect("the link stands");
        }
        if came.len() >= frames { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(Duration::from_secs(60), moving).await.expect("nothing waits for anything else");
    came
}

#[test]
fn full_windows_through_small_socket_buffers_do_not_deadlock() {
    run(async {
        let key = DvmKey::draw();
        let mut ring: Vec<_> = (1..=3).map(|id| Kernel::start(&key, DVM, id)).collect();
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            ring[from].knows(&ring[to]);
            ring[from].net.connect(ring[to].identity.id, view());
        }
        let mut links = Vec::new();
        for kernel in &mut ring {
            for side in 0..2 {
                let FromNet::Link { peer, stream, tls, .. } = kernel.hears().await else { panic!() };
                small_buffers(&stream);
                links.push(Link::new(LinkId(side), peer, stream, *tls));
            }
        }
        // Every end has far more to say than all buffers hold, in both directions at once.
        const FRAMES: u64 = 6;
        for link in &mut links {
            (0..FRAMES).for_each(|oseq| _ = link.place(&data(oseq, 32 << 10)));
        }
        let all = links.len() * FRAMES as usize;
        let mut links: Vec<_> = links.iter_mut().collect();
        assert_eq!(pump(&mut links, all).await.len(), all);
    });
}

fn small_buffers(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(4 << 10).expect("it can be set");
    socket.set_recv_buffer_size(4 << 10).expect("it can be set");
}

#[test]
fn what_has_left_is_told_by_its_cost() {
    run(async {
        let (mut a, mut b) = pair();
        a.net.connect(MemberId(2), view());
        let (mut from, _to) = (a.link(1).await, b.link(2).await);
        let frame = data(1, 8 << 10);
        (0..4_000).for_each(|_| _ = from.place(&frame));
        let left = poll_fn(|cx| Poll::Ready(from.write(cx))).await.expect("the link stands");
        assert!(left < 4_000 * frame.cost(), "the far end does not read, and buffers are finite");
        assert!(left.is_multiple_of(frame.cost()), "only whole frames have left");
        assert!(from.has_queued());
    });
}

#[test]
fn nobody_and_another_incarnation_are_refusals_and_silence_is_not() {
    run(async {
        let key = DvmKey::draw();
        let mut a = Kernel::start(&key, DVM, 1);
        // Nobody listens there any more.
        let gone = identity(7, &bind("127.0.0.1", None).expect("a port"));
        a.net.shared().book.know(gone);
        a.net.probe(MemberId(7));
        assert!(matches!(a.hears().await, FromNet::Refused { peer: MemberId(7), .. }));
        // Another incarnation answers.
        let b = Kernel::start(&key, DVM, 2);
        let old = Identity { id: MemberId(8), ..b.identity.clone() };
        a.net.shared().book.know(old);
        a.net.connect(MemberId(8), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { to: MemberId(8), .. }));
        let FromNet::Refused { peer: MemberId(8), by: Some(by) } = a.hears().await else {
            panic!("the member in its place is not told")
        };
        assert_eq!(*by, b.identity);
        // Somebody takes the connection and says nothing, like a stopped process.
        let silent = bind("127.0.0.1", None).expect("a port");
        a.net.shared().book.know(identity(9, &silent));
        a.net.connect(MemberId(9), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { to: MemberId(9), .. }));
        assert!(timeout(Duration::from_millis(50), a.heard.recv()).await.is_err(), "it may live");
    });
}

#[test]
fn another_key_and_another_dvm_are_turned_away() {
    run(async {
        let key = DvmKey::draw();
        let mut b = Kernel::start(&key, DVM, 2);
        for (key, dvm) in [(DvmKey::draw(), DVM), (key.clone(), DVM + 1)] {
            let a = Kernel::start(&key, dvm, 1);
            a.knows(&b);
            a.net.send(MemberId(2), Control::JoinRefused { reason: "let me in".into() });
            assert!(timeout(Duration::from_millis(300), b.heard.recv()).await.is_err(), "b heard it");
        }
    });
}

#[test]
fn garbage_at_the_port_harms_nobody() {
    run(async {
        let (a, mut b) = pair();
        let address = b.identity.addresses[0].clone();
        let strangers = tokio::task::spawn_blocking(move || {
            let mut seed = dvm_core::Prng::new(3);
            let preambles =
                [&b"GET / HTTP/1.1\r\n\r\n"[..], b"DVM\x02r", b"DVM\x01?", b"DVM\x01r", b"DVM\x01c"];
            for preamble in preambles {
                let mut stream = StdStream::connect(&address).expect("it listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
                let noise: Vec<u8> = (0..5_000).map(|_| seed.next_u64() as u8).collect();
                // It may have hung up before all was said.
                let _ = stream.write_all(&[preamble, &noise].concat());
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        timeout(PATIENCE, strangers).await.expect("it hangs up").expect("no panic");
        a.net.send(MemberId(2), Control::JoinRefused { reason: "still there".into() });
        assert!(matches!(b.hears().await, FromNet::Control { from: MemberId(1), .. }));
    });
}

#[test]
fn bulk_connections_go_to_the_other_thread() {
    run(async {
        let key = DvmKey::draw();
        let mut b = Kernel::start(&key, DVM, 2);
        let mut stream = StdStream::connect(&b.identity.addresses[0]).expect("it listens");
        stream.write_all(&Lane::Bulk.preamble()).expect("sent");
        let (lane, _) = timeout(PATIENCE, b.others.recv()).await.expect("in time").expect("it listens");
        assert_eq!(lane, Lane::Bulk);
    });
}

#[test]
fn a_cut_is_silent_and_heals() {
    run(async {
        let (mut a, mut b) = pair();
        b.knows(&a);
        a.net.shared().cuts.cut(vec!["k2".into()], vec!["k2".into()]);
        a.net.send(MemberId(2), Control::JoinRefused { reason: "lost".into() });
        b.net.send(MemberId(1), Control::JoinRefused { reason: "lost too".into() });
        a.net.probe(MemberId(2));
        a.net.connect(MemberId(2), view());
        assert!(matches!(a.hears().await, FromNet::LinkFailed { .. }), "no answer, and no refusal");
        assert!(timeout(Duration::from_millis(50), b.heard.recv()).await.is_err(), "nothing is told");
        a.net.shared().cuts.heal();
        a.net.send(MemberId(2), Control::JoinRefused { reason: "again".into() });
        assert!(matches!(b.hears().await, FromNet::Control { from: MemberId(1), .. }));
    });
}
