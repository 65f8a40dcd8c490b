//! The raw ring: as many processes as members, blocking standard-library TCP, and nothing else. What a DVM's ring is
//! compared with.
//!
//! Each process is this program again. A round is a line on every process's standard input, answered by a line of the
//! first; it runs over connections of its own, whose end is the round's end, so that nothing has to be framed.

use super::sample::{figure, percentiles};
use crate::exit::{self, failed};
use dvm_plugin_api::local::Failure;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of one write of a stream.
const CHUNK: usize = 64 << 10;

/// Laps before those that count.
const WARM_UP: usize = 200;

/// Name in the certificate that all processes share for a round.
const NAME: &str = "localhost";

/// What the processes are to do next.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Round {
    /// One message after the other, each all around.
    Lap,
    /// One write a message, as many as go.
    Messages,
    /// Large writes.
    Stream,
    /// Large writes through TLS 1.3.
    Tls {
        /// The certificate, DER.
        certificate: Vec<u8>,
        /// Its key, PKCS #8.
        key: Vec<u8>,
    },
}

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    round: Round,
    /// It sends and measures.
    first: bool,
    /// Where the next process listens.
    next: SocketAddr,
    size: usize,
    millis: u64,
}

/// What the first process measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    /// Time of each lap, microseconds.
    laps_us: Vec<f64>,
    /// Bytes that came around.
    bytes: u64,
    /// In how many seconds.
    seconds: f64,
}

/// Figures of a raw ring.
pub(super) struct Raw {
    /// Median time of a lap, microseconds.
    pub(super) lap_p50: f64,
    /// Megabytes a second of large writes through TLS.
    pub(super) stream_mb_s: f64,
    /// The same without TLS.
    pub(super) plain_stream_mb_s: f64,
    /// As the document has them.
    pub(super) fields: Map<String, Value>,
}

/// A process of the ring.
struct Node {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends by itself when its input ends; one in the middle of a round does not read.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures a raw ring of so many processes.
pub(super) fn measure(members: usize, size: u64, each: Duration, streams: bool) -> Result<Raw, Failure> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    run(members, size, each, streams).map_err(|error| failed(format!("the raw ring failed: {error}")))
}

fn run(members: usize, size: usize, each: Duration, streams: bool) -> io::Result<Raw> {
    let mut nodes = (0..members).map(|_| Node::start()).collect::<io::Result<Vec<_>>>()?;
    let mut laps = round(&mut nodes, &Round::Lap, size, each)?.laps_us;
    let lap_us = percentiles(&mut laps);
    let lap_p50 = lap_us["p50"].as_f64().unwrap_or(0.0);
    let mut raw = Raw {
        lap_p50,
        stream_mb_s: 0.0,
        plain_stream_mb_s: 0.0,
        fields: super::object(json!({ "lap_us": lap_us })),
    };
    if streams {
        let per_second = |measured: &Measured| measured.bytes as f64 / measured.seconds.max(1e-9);
        let plain = round(&mut nodes, &Round::Stream, size, each)?;
        let tls = round(&mut nodes, &tls_round()?, size, each)?;
        let messages = round(&mut nodes, &Round::Messages, size, each)?;
        raw.plain_stream_mb_s = per_second(&plain) / 1e6;
        raw.stream_mb_s = per_second(&tls) / 1e6;
        raw.fields.extend(super::object(json!({
            "stream_mb_s": figure(raw.stream_mb_s),
            "plain_stream_mb_s": figure(raw.plain_stream_mb_s),
            "per_message_s": figure(per_second(&messages) / size as f64),
            "coalesced_s": figure(per_second(&plain) / size as f64),
        })));
    }
    Ok(raw)
}

fn round(nodes: &mut [Node], round: &Round, size: usize, each: Duration) -> io::Result<Measured> {
    let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        let order = Order {
            round: round.clone(),
            first: number == 0,
            next: addresses[(number + 1) % addresses.len()],
            size,
            millis: u64::try_from(each.as_millis()).unwrap_or(u64::MAX),
        };
        serde_json::to_writer(&mut node.stdin, &order)?;
        node.stdin.write_all(b"\n")?;
    }
    // All answer, so that a round is over everywhere before the next begins.
    let mut first = None;
    for node in nodes {
        let mut line = String::new();
        node.stdout.read_line(&mut line)?;
        let measured: Measured =
            serde_json::from_str(&line).map_err(|_| io::Error::other("a process of it ended"))?;
        first.get_or_insert(measured);
    }
    first.ok_or_else(|| io::Error::other("it has no process"))
}

impl Node {
    fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("raw-ring-node")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().parse().map_err(|_| io::Error::other("a process of it did not start"))?;
        Ok(Self { child, stdin, stdout, address })
    }
}

/// A process of the ring: does what it is told until its input ends.
pub(crate) fn node() -> exit::Result {
    let work = || -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        for line in io::stdin().lock().lines() {
            let order: Order = serde_json::from_str(&line?)?;
            let measured = obey(&listener, &order)?;
            writeln!(stdout, "{}", serde_json::to_string(&measured)?)?;
        }
        Ok(())
    };
    work().map_err(|error| failed(format!("raw ring: {error}")))?;
    Ok(exit::OK)
}

fn obey(listener: &TcpListener, order: &Order) -> io::Result<Measured> {
    let next = TcpStream::connect(order.next)?;
    let (previous, _) = listener.accept()?;
    for stream in [&next, &previous] {
        stream.set_nodelay(true)?;
    }
    let each = Duration::from_millis(order.millis);
    match (&order.round, order.first) {
        (Round::Lap, true) => measure_laps(next, previous, order.size, each),
        (Round::Lap | Round::Messages, false) => pass_messages(next, previous, order.size),
        (Round::Messages, true) => pour(next, previous, order.size, each),
        (Round::Stream, true) => pour(next, previous, CHUNK, each),
        (Round::Stream, false) => pass_bytes(next, previous),
        (Round::Tls { certificate, key }, first) => {
            let (next, previous) = tls_streams(next, previous, certificate, key)?;
            if first { pour(next, previous, CHUNK, each) } else { pass_bytes(next, previous) }
        }
    }
}

fn measure_laps(
    mut next: TcpStream,
    mut previous: TcpStream,
    size: usize,
    each: Duration,
) -> io::Result<Measured> {
    let mut message = vec![7; size];
    let mut lap = || {
        let begin = Instant::now();
        next.write_all(&message)?;
        previous.read_exact(&mut message)?;
        Ok::<_, io::Error>(begin.elapsed().as_secs_f64() * 1e6)
    };
    for _ in 0..WARM_UP {
        lap()?;
    }
    let end = Instant::now() + each;
    let mut laps_us = Vec::new();
    while Instant::now() < end {
        laps_us.push(lap()?);
    }
    next.shutdown(Shutdown::Write)?;
    // The end comes around.
    previous.read_to_end(&mut Vec::new())?;
    Ok(Measured { laps_us, ..Measured::default() })
}

/// Reads whole messages and writes each with one call.
fn pass_messages(mut next: TcpStream, mut previous: TcpStream, size: usize) -> io::Result<Measured> {
    let mut message = vec![0; size];
    loop {
        match previous.read_exact(&mut message) {
            Ok(()) => next.write_all(&message)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    next.shutdown(Shutdown::Write)?;
    Ok(Measured::default())
}

/// Passes on whatever came.
fn pass_bytes(mut next: impl Outlet, mut previous: impl Read) -> io::Result<Measured> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match previous.read(&mut chunk)? {
            0 => break,
            length => next.write_all(&chunk[..length])?,
        }
    }
    next.end()?;
    Ok(Measured::default())
}

/// Writes pieces of `size` bytes for so long, while a thread reads what comes around.
fn pour(
    mut next: impl Outlet,
    mut previous: impl Read + Send,
    size: usize,
    each: Duration,
) -> io::Result<Measured> {
    let piece = vec![7; size];
    let begin = Instant::now();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut chunk = vec![0; CHUNK];
            let mut bytes = 0;
            loop {
                match previous.read(&mut chunk)? {
                    0 => return Ok::<_, io::Error>((bytes, begin.elapsed().as_secs_f64())),
                    length => bytes += length as u64,
                }
            }
        });
        while begin.elapsed() < each {
            next.write_all(&piece)?;
        }
        next.end()?;
        let (bytes, seconds) = reader.join().expect("reading does not panic")?;
        Ok(Measured { bytes, seconds, ..Measured::default() })
    })
}

/// Something written to that can be ended so that its reader sees the end.
trait Outlet: Write {
    fn end(&mut self) -> io::Result<()>;
}

impl Outlet for TcpStream {
    fn end(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Outlet for StreamOwned<ClientConnection, TcpStream> {
    fn end(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.shutdown(Shutdown::Write)
    }
}

fn tls_round() -> io::Result<Round> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec![NAME.to_owned()]).map_err(io::Error::other)?;
    Ok(Round::Tls { certificate: cert.der().to_vec(), key: signing_key.serialize_der() })
}

type Tls = (StreamOwned<ClientConnection, TcpStream>, StreamOwned<ServerConnection, TcpStream>);

/// Both handshakes at once: each process is a client of the next while it serves the one before.
fn tls_streams(next: TcpStream, previous: TcpStream, certificate: &[u8], key: &[u8]) -> io::Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from(certificate.to_vec());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).map_err(io::Error::other)?;
    let only = &[&rustls::version::TLS13];
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(only)
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(only)
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(io::Error::other)?;
    // They would be written to a client that never reads.
    server.send_tls13_tickets = 0;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let client = ClientConnection::new(Arc::new(client), name).map_err(io::Error::other)?;
    let server = ServerConnection::new(Arc::new(server)).map_err(io::Error::other)?;
    let mut next = StreamOwned::new(client, next);
    let mut previous = StreamOwned::new(server, previous);
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            while previous.conn.is_handshaking() {
                previous.conn.complete_io(&mut previous.sock)?;
            }
            Ok::<_, io::Error>(())
        });
        while next.conn.is_handshaking() {
            next.conn.complete_io(&mut next.sock)?;
        }
        serving.join().expect("a handshake does not panic")
    })?;
    Ok((next, previous))
}
