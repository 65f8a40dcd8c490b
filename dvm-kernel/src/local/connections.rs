//! Clients' connections: who may come, frames in, answers out.
//!
//! A connection has a reader that starts a task for each request, and a writer behind a bounded queue. A client that
//! stops reading fills its queue, then its requests wait, then it is read no more: it costs nobody else anything.

use super::Server;
use crate::plugins::{Attach, ToPlugins};
use dvm_plugin_api::ATTACH_VERSION;
use dvm_plugin_api::local::{
    FRAME_MAX, Failure, FailureCode, LOCAL_VERSION, Request, ToClient, ToKernel, decode, encode,
};
use dvm_plugin_api::place;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::sleep;

/// Answers that wait for a client.
const QUEUE: usize = 64;

/// Requests of one client that are answered at a time.
const REQUESTS: usize = 64;

/// Clients at a time; further ones wait in the operating system's queue.
const CLIENTS: usize = 512;

/// Pause after the operating system had no descriptor for a client.
const SHORTAGE: Duration = Duration::from_millis(20);

/// Where a client's answers go.
#[derive(Clone)]
pub(super) struct Outgoing {
    server: Rc<Server>,
    queue: mpsc::Sender<ToClient>,
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct ClientGone;

impl Outgoing {
    /// Queues an answer, with patience.
    pub(super) async fn send(&self, message: ToClient) -> Result<(), ClientGone> {
        let place = self.queue.reserve().await.map_err(|_| ClientGone)?;
        self.server.unfinished.update(|count| count + 1);
        place.send(message);
        Ok(())
    }
}

/// Takes clients for ever.
pub(super) async fn accept(server: Rc<Server>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                spawn_local(async move {
                    server.shared.tally.clients.add(1);
                    server.clients.update(|count| count + 1);
                    serve(server.clone(), stream).await;
                    server.clients.update(|count| count - 1);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                sleep(SHORTAGE).await;
            }
        }
    }
}

async fn serve(server: Rc<Server>, stream: UnixStream) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == place::user() => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "a client of another user was turned away");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "a client does not say who it is");
            return;
        }
    }
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
    let (mut reader, writer) = stream.into_split();
    let (queue, answers) = mpsc::channel(QUEUE);
    let outgoing = Outgoing { server: server.clone(), queue };
    let writing = spawn_local(write(server.clone(), writer, answers));
    let wish = read(server.clone(), &mut reader, outgoing).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a client's connection failed");
        None
    });
    // What is queued still leaves, as long as the client reads.
    let Ok(writer) = writing.await else { return };
    if let Some(Wish { id, plugin, services }) = wish
        && let Ok(stream) = reader.reunite(writer).map_err(io::Error::other).and_then(UnixStream::into_std)
    {
        let attach = Attach { id, pid: pid.cast_unsigned(), stream, services };
        server.tell_plugins(ToPlugins::Attach { plugin, attach });
    }
}

/// A client that wants its connection to become an instance's.
struct Wish {
    id: u64,
    plugin: String,
    services: bool,
}

async fn read(
    server: Rc<Server>,
    reader: &mut OwnedReadHalf,
    outgoing: Outgoing,
) -> io::Result<Option<Wish>> {
    let places = Arc::new(Semaphore::new(REQUESTS));
    // Requests of a client that is gone are given up with it.
    let mut requests = JoinSet::new();
    let mut greeted = false;
    while let Some(body) = read_frame(reader).await? {
        while requests.try_join_next().is_some() {}
        let message: ToKernel = match decode(&body) {
            Ok(message) => message,
            Err(error) => {
                let failure =
                    Failure::new(FailureCode::Usage, "the request does not decode").cause(error.to_string());
                let _ = outgoing.send(ToClient { id: 0, answer: Err(failure) }).await;
                return Ok(None);
            }
        };
        if let Request::Hello { version, client } = &message.request {
            tracing::debug!(client, version, "a client");
            if *version != LOCAL_VERSION {
                let text =
                    format!("this kernel speaks version {LOCAL_VERSION} of the protocol, not {version}");
                let failure = Failure::new(FailureCode::Usage, text).hint("update the older of the two");
                let _ = outgoing.send(ToClient { id: message.id, answer: Err(failure) }).await;
                return Ok(None);
            }
            greeted = true;
        } else if let (true, Request::Attach { plugin, version, services }) = (greeted, &message.request) {
            // What was asked before is answered first; then the connection has another purpose.
            while requests.join_next().await.is_some() {}
            if *version == ATTACH_VERSION {
                let (id, plugin, services) = (message.id, plugin.clone(), *services);
                return Ok(Some(Wish { id, plugin, services }));
            }
            let text =
                format!("this kernel attaches applications in version {ATTACH_VERSION}, not {version}");
            let failure = Failure::new(FailureCode::Usage, text).hint("update the older of the two");
            let _ = outgoing.send(ToClient { id: message.id, answer: Err(failure) }).await;
            return Ok(None);
        } else if !greeted {
            let failure = Failure::new(FailureCode::Usage, "the first request must be hello");
            let _ = outgoing.send(ToClient { id: message.id, answer: Err(failure) }).await;
            return Ok(None);
        }
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let (server, outgoing) = (server.clone(), outgoing.clone());
        requests.spawn_local(async move {
            server.serve_request(message, &outgoing).await;
            drop(place);
        });
    }
    Ok(None)
}

async fn read_frame(reader: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let length = match reader.read_u32_le().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame above the largest"));
    }
    let mut body = Vec::new();
    reader.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(body)) }
}

async fn write(
    server: Rc<Server>,
    mut writer: OwnedWriteHalf,
    mut answers: mpsc::Receiver<ToClient>,
) -> OwnedWriteHalf {
    let mut failed = false;
    while let Some(answer) = answers.recv().await {
        let mut messages = 1;
        let mut bytes = framed(&answer);
        while bytes.len() < FRAME_MAX
            && let Ok(answer) = answers.try_recv()
        {
            bytes.extend(framed(&answer));
            messages += 1;
        }
        failed |= writer.write_all(&bytes).await.is_err();
        server.unfinished.update(|count| count - messages);
        if failed {
            // Whoever waits to send learns that the client is gone.
            answers.close();
        }
    }
    writer
}

fn framed(message: &ToClient) -> Vec<u8> {
    let mut body = encode(message);
    if body.len() > FRAME_MAX {
        let failure = Failure::new(FailureCode::Failure, "the answer is too large for one frame")
            .hint("ask for less at a time");
        body = encode(&ToClient { id: message.id, answer: Err(failure) });
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}
