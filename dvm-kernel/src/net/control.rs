//! Control connections: one a pair, opened by whoever speaks first, used both ways.
//!
//! Each has a task and a bounded queue. A message that finds the queue full, or no way to the peer, is lost; after a
//! failed attempt the next one is made no sooner than a pause that doubles.

use super::dial::{self, DialError};
use super::frame::{CONTROL_FRAME_MAX, Received, encode};
use super::hello::Lane;
use super::{FromNet, Net};
use dvm_core::ids::MemberId;
use dvm_core::wire::Control;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;

/// Messages that wait for one peer.
const QUEUE: usize = 512;

/// Bytes in one write, about.
const WRITE: usize = 256 << 10;

/// First pause after a failed attempt; it doubles up to the connect time-out.
const PAUSE: Duration = Duration::from_millis(5);

/// The control connections of this incarnation.
#[derive(Default)]
pub(super) struct Controls {
    by_peer: RefCell<BTreeMap<MemberId, Peer>>,
}

/// What is known of the way to a peer.
struct Peer {
    /// Queue of the connection that is used for sending, standing or being opened.
    queue: Option<mpsc::Sender<Control>>,
    /// No attempt before.
    not_before: Instant,
    pause: Duration,
}

impl Peer {
    fn new() -> Self {
        Self { queue: None, not_before: Instant::now(), pause: PAUSE }
    }
}

impl Controls {
    /// Queues a message, and opens a connection if there is none.
    pub(super) fn send(&self, net: &Rc<Net>, to: MemberId, message: Control) {
        let mut peers = self.by_peer.borrow_mut();
        let peer = peers.entry(to).or_insert_with(Peer::new);
        if let Some(queue) = &peer.queue
            && !queue.is_closed()
        {
            // Full: the peer does not read, and this message is lost like one on a slow network.
            let _ = queue.try_send(message);
            return;
        }
        if Instant::now() < peer.not_before {
            return;
        }
        let (queue, messages) = mpsc::channel(QUEUE);
        let _ = queue.try_send(message);
        peer.queue = Some(queue.clone());
        let task_net = net.clone();
        net.spawn(async move { open(&task_net, to, queue, messages).await });
    }

    /// Uses a connection that a peer opened.
    pub(super) fn accepted<S>(&self, net: &Rc<Net>, peer: MemberId, stream: S)
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let (queue, messages) = mpsc::channel(QUEUE);
        let mut peers = self.by_peer.borrow_mut();
        let known = peers.entry(peer).or_insert_with(Peer::new);
        if known.queue.as_ref().is_none_or(mpsc::Sender::is_closed) {
            known.queue = Some(queue.clone());
        }
        known.pause = PAUSE;
        let task_net = net.clone();
        net.spawn(async move { run(&task_net, peer, stream, queue, messages).await });
    }

    /// Forgets all; their tasks are ended by the caller.
    pub(super) fn clear(&self) {
        self.by_peer.borrow_mut().clear();
    }

    /// A connection is gone, or did not come about.
    fn ended(&self, to: MemberId, queue: &mpsc::Sender<Control>, failed: Option<Duration>) {
        let mut peers = self.by_peer.borrow_mut();
        let Some(peer) = peers.get_mut(&to) else { return };
        if peer.queue.as_ref().is_some_and(|used| used.same_channel(queue)) {
            peer.queue = None;
        }
        if let Some(limit) = failed {
            peer.not_before = Instant::now() + peer.pause;
            peer.pause = (2 * peer.pause).min(limit);
        } else {
            peer.pause = PAUSE;
        }
    }
}

async fn open(net: &Rc<Net>, to: MemberId, queue: mpsc::Sender<Control>, messages: mpsc::Receiver<Control>) {
    match dial::dial(&net.shared, to, Lane::Control, None).await {
        Ok(stream) => run(net, to, stream, queue, messages).await,
        Err(error) => {
            tracing::debug!(peer = %to, %error, "no control connection");
            net.controls.ended(to, &queue, Some(net.shared.connect_timeout()));
            if let DialError::Gone { by, .. } = error {
                net.tell_refused(to, by).await;
            }
        }
    }
}

/// Serves a connection until it ends.
async fn run<S>(
    net: &Rc<Net>,
    peer: MemberId,
    stream: S,
    queue: mpsc::Sender<Control>,
    messages: mpsc::Receiver<Control>,
) where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = split(stream);
    let ended = tokio::select! {
        ended = receive(net, peer, reader) => ended,
        ended = transmit(messages, writer) => ended,
    };
    let why = ended.err().map_or_else(|| "closed by the far end".into(), |error| error.to_string());
    tracing::debug!(%peer, why, "control connection ended");
    net.controls.ended(peer, &queue, None);
    net.tell(FromNet::Reset { peer }).await;
}

async fn receive(net: &Net, peer: MemberId, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut received = Received::new(CONTROL_FRAME_MAX);
    loop {
        if reader.read_buf(received.tail()).await? == 0 {
            return Ok(());
        }
        while let Some(message) = received.take()? {
            if !net.shared.cuts.stops_from(peer, &net.shared.book) {
                net.tell(FromNet::Control { from: peer, message }).await;
            }
        }
    }
}

async fn transmit(
    mut messages: mpsc::Receiver<Control>,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(message) = messages.recv().await {
        encode(&message, &mut bytes);
        while bytes.len() < WRITE
            && let Ok(message) = messages.try_recv()
        {
            encode(&message, &mut bytes);
        }
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        bytes.clear();
    }
    Ok(())
}
