//! Answering other kernels, and kernels with a ticket.

use super::{BLOB_MAX, FRAME_MAX, Question, Reply, SNAPSHOT_MAX, Through, transfer, write_bytes};
use crate::local::Server;
use crate::net::frame::{self, HELLO_MAX};
use crate::net::hello::{Admittance, Hello, Knock, Lane};
use crate::net::{self, Shared};
use crate::plugins::ToPlugins;
use crate::services::keeper::End;
use crate::services::processes::{Follow, News};
use dvm_core::ids::MemberId;
use dvm_core::{Input, Phase};
use std::io;
use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroize;

/// How long a peer may take to say what it wants.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(120);

/// How long nothing may be told of a process.
const QUIET: Duration = Duration::from_secs(2);

/// How long what is told of a process may wait for its reader.
const STUCK: Duration = Duration::from_secs(60);

/// Serves one connection.
pub(crate) async fn serve(server: Rc<Server>, lane: Lane, stream: StdStream) {
    let served = async {
        let stream = TcpStream::from_std(stream)?;
        match lane {
            Lane::Ticket => admit(&server, stream).await.map(|()| None),
            _ => answer(&server, stream).await,
        }
    };
    match timeout(ANSWER, served).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(told))) => {
            if let Err(error) = told.tell().await {
                tracing::debug!(%error, "nobody is told of a process any more");
            }
        }
        Ok(Err(error)) => tracing::info!(%error, "a bulk connection failed"),
        Err(_) => tracing::info!("a bulk connection took too long"),
    }
}

/// Gives the key to a kernel whose ticket is good.
async fn admit(server: &Server, stream: TcpStream) -> io::Result<()> {
    let tls = server.shared.vault.tls();
    let shake = async {
        let mut stream = tls.ticket_acceptor.accept(stream).await?;
        let knock: Knock = frame::read(&mut stream, HELLO_MAX).await?;
        Ok::<_, io::Error>((stream, knock))
    };
    let (mut stream, knock) = timeout(HANDSHAKE, shake).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut admittance = match server.use_ticket(knock.dvm, &knock.secret).await {
        Ok((contact, config)) => {
            let key = *server.shared.vault.key().bytes();
            Admittance::Welcome { name: server.dvm.clone(), key, contact: Box::new(contact), config }
        }
        Err(reason) => {
            tracing::warn!(reason, "a ticket was refused");
            Admittance::Refused { reason }
        }
    };
    let written = frame::write(&mut stream, &admittance).await;
    if let Admittance::Welcome { key, .. } = &mut admittance {
        key.zeroize();
    }
    written?;
    stream.shutdown().await
}

/// A connection on which a process is told of, for as long as it runs.
struct Told {
    stream: TlsStream<TcpStream>,
    follow: Result<Follow, String>,
}

impl Told {
    async fn tell(mut self) -> io::Result<()> {
        loop {
            let news = match &mut self.follow {
                Ok(follow) => timeout(QUIET, follow.next()).await.unwrap_or(News::Quiet),
                Err(why) => News::Ended(End::Failed(why.clone())),
            };
            timeout(STUCK, frame::write(&mut self.stream, &news))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if let News::Ended(_) = news {
                return self.stream.shutdown().await;
            }
        }
    }
}

/// Answers a question; what goes on for longer is returned.
async fn answer(server: &Rc<Server>, stream: TcpStream) -> io::Result<Option<Told>> {
    let shared = &server.shared;
    let shake = timeout(HANDSHAKE, introduce(shared, stream));
    let Some((mut stream, from)) = shake.await.map_err(|_| io::ErrorKind::TimedOut)?? else {
        return Ok(None);
    };
    let question = timeout(HANDSHAKE, frame::read(&mut stream, FRAME_MAX));
    match question.await.map_err(|_| io::ErrorKind::TimedOut)?? {
        Question::Process { plugin, key, order, progress } => {
            let follow = server.follow_own(&plugin, &key, order, progress).await;
            Ok(Some(Told { stream, follow }))
        }
        question => answer_once(server, stream, from, question).await.map(|()| None),
    }
}

async fn answer_once(
    server: &Rc<Server>,
    mut stream: TlsStream<TcpStream>,
    from: MemberId,
    question: Question,
) -> io::Result<()> {
    let reply = match question {
        Question::Snapshot { hash, size } => {
            return take_snapshot(server, from, &mut stream, hash, size).await;
        }
        Question::Blob { .. } => {
            return Err(io::Error::other("a library is asked for on another connection"));
        }
        Question::Hold { hash, size } => {
            server.peers.blobs().held_by(hash, from);
            Reply::Held(server.peers.hold(hash, size).await.map(drop).map_err(|missing| missing.reason))
        }
        Question::PluginSnapshot { plugin, since, at_least } => {
            let (answer, answered) = oneshot::channel();
            server.tell_plugins(ToPlugins::Snapshot { plugin, since, at_least, answer });
            return match answered.await.ok().flatten().filter(|bytes| bytes.len() as u64 <= BLOB_MAX) {
                Some(bytes) => {
                    send_bytes(&mut stream, &bytes).await?;
                    server.shared.tally.bulk_out.add(bytes.len());
                    Ok(())
                }
                None => frame::write(&mut stream, &Reply::None).await,
            };
        }
        Question::Executed(transaction) => {
            let (answer, answered) = oneshot::channel();
            server.tell_plugins(ToPlugins::Executed { transaction, answer });
            Reply::Executed(answered.await.ok().flatten())
        }
        Question::PluginReply { plugin, index } => {
            let reply = server.own_reply(plugin, index).await.ok();
            Reply::Plugin(reply.map(|reply| reply.map(|value| value.to_string())))
        }
        Question::Verify => {
            let Some(state) = server.copy_state().await else {
                return frame::write(&mut stream, &Reply::None).await;
            };
            frame::write(&mut stream, &Reply::Copied(state.index)).await?;
            let Through(index) = frame::read(&mut stream, HELLO_MAX).await?;
            Reply::Hashes(server.hashes_at(state, index).await)
        }
        Question::Message { plugin, message } => Reply::Taken(server.desks.message(&plugin, message.into())),
        Question::EndProcess { plugin, key } => {
            server.processes.terminate(&plugin, &key);
            Reply::Taken(Ok(()))
        }
        Question::Process { .. } => return Err(io::Error::other("it is told of elsewhere")),
        Question::Relay(message) => Reply::Relayed(server.answer_relayed(&message).await),
    };
    frame::write(&mut stream, &reply).await?;
    stream.shutdown().await
}

/// The handshake and who it is; nothing for one that a cut must not hear.
pub(super) async fn introduce(
    shared: &Shared,
    stream: TcpStream,
) -> io::Result<Option<(TlsStream<TcpStream>, MemberId)>> {
    let tls = shared.vault.tls();
    let mut stream = tls.acceptor.accept(stream).await?;
    let hello: Hello = frame::read(&mut stream, HELLO_MAX).await?;
    net::check(&hello, shared.dvm, tls.me, stream.get_ref().1.peer_certificates())?;
    if shared.cuts.stops_connecting(hello.from, &shared.book) {
        return Ok(None);
    }
    Ok(Some((stream, hello.from)))
}

async fn take_snapshot(
    server: &Server,
    from: MemberId,
    stream: &mut TlsStream<TcpStream>,
    hash: [u8; 32],
    size: u64,
) -> io::Result<()> {
    if server.feed.phase() == Phase::Normal {
        return Err(io::Error::other("a state copy came, and this kernel is a member"));
    }
    let blobs = server.peers.blobs();
    let received = transfer::receive(stream, blobs, hash, size, SNAPSHOT_MAX).await;
    let blob = received.map_err(|error| io::Error::other(error.to_string()))?;
    blobs.forget(&hash);
    server.shared.tally.bulk_in.add(size as usize);
    let snapshot = postcard::from_bytes(&blob.map()?).map_err(|error| io::Error::other(error.to_string()))?;
    tracing::info!(peer = %from, bytes = size, "state copy received");
    // The ring's task has ended: nobody needs the copy.
    let _ = server.ring.input(Input::Snapshot { from, snapshot: Box::new(snapshot) }).await;
    stream.shutdown().await
}

async fn send_bytes(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    frame::write(stream, &Reply::Bytes(bytes.len() as u64)).await?;
    write_bytes(stream, bytes).await?;
    stream.shutdown().await
}
