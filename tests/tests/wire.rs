//! What a kernel's sockets may be sent by anybody, and clients that do not behave: the kernel lives and answers.

use dvm_plugin_api::client::{Filter, Next};
use dvm_plugin_api::local::{Answer, Operation, Request, Since};
use dvm_tests::cluster::{Cluster, lives};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// The address of a member's one port.
fn address(cluster: &Cluster, member: &str) -> String {
    let members = cluster.ok(&["members"]);
    let members = members["members"].as_array().expect("members");
    let found = members.iter().find(|found| found["name"] == member).expect("a member");
    found["address"].as_str().expect("an address").to_owned()
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// Asserts that the DVM works as before, with the same kernels in the same view.
fn unharmed(cluster: &Cluster, members: usize, epoch: &Value) {
    let status = cluster.status(Some("k0"));
    assert_eq!(status["view"]["size"], members, "{status}");
    assert_eq!(status["view"]["phase"], "normal", "{status}");
    assert_eq!(&status["view"]["epoch"], epoch, "nobody was taken for dead: {status}");
    let _ = cluster.ok(&["state", "put", "unharmed", "1"]);
    cluster.verify();
}

fn epoch(cluster: &Cluster) -> Value {
    cluster.status(Some("k0"))["view"]["epoch"].clone()
}

#[test]
fn garbage_on_the_port_is_refused() {
    let cluster = Cluster::up(3, &[]);
    let (address, epoch) = (address(&cluster, "k0"), epoch(&cluster));
    let random: Vec<u8> = (0_u32..100_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tls_hello = [&b"DVM\x01r\x16\x03\x01\xff\xff"[..], &random].concat();
    let plain = [&b"DVM\x01c"[..], &[0xff; 4], &random].concat();
    let bulk = [&b"DVM\x01b"[..], &random].concat();
    let ticket = [&b"DVM\x01t"[..], &random].concat();
    let wrong_version = b"DVM\x09r".to_vec();
    for bytes in
        [random.clone(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), tls_hello, plain, bulk, ticket, wrong_version]
    {
        let mut stream = connect(&address);
        // It may close in the middle of it.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is not closed"),
        }
        assert!(answer.len() < 4_096, "{} bytes for garbage", answer.len());
    }
    unharmed(&cluster, 3, &epoch);
}

#[test]
fn half_open_connections_keep_nobody_out() {
    let cluster = Cluster::up(2, &[]);
    let (address, epoch) = (address(&cluster, "k0"), epoch(&cluster));
    // Silent ones, ones that said half of something, and ones that closed one direction.
    let held: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = connect(&address);
            match number % 4 {
                0 => {}
                1 => stream.write_all(b"DV").expect("written"),
                2 => stream.write_all(b"DVM\x01r\x16\x03\x01").expect("written"),
                _ => stream.shutdown(Shutdown::Write).expect("closed"),
            }
            stream
        })
        .collect();
    unharmed(&cluster, 2, &epoch);
    let added = cluster.ok(&["add", "--local", "1"]);
    assert_eq!(added["failed"], json!([]), "{added}");
    cluster.settle(&["k0", "k1", "k2"]);
    drop(held);
    cluster.verify();
}

/// Somebody who speaks TLS 1.3 perfectly, with a certificate of another authority, or none.
#[test]
fn a_certificate_of_another_dvm_is_refused() {
    let cluster = Cluster::up(2, &[]);
    let (address, epoch) = (address(&cluster, "k0"), epoch(&cluster));
    for with_certificate in [true, false] {
        for lane in [b'r', b'c', b'b'] {
            let mut stream = connect(&address);
            stream.write_all(&[b'D', b'V', b'M', 1, lane]).expect("written");
            let error = speak_tls(&mut stream, with_certificate).expect_err("nobody answers a stranger");
            assert!(!matches!(error.kind(), std::io::ErrorKind::WouldBlock), "it is not closed: {error}");
        }
    }
    unharmed(&cluster, 2, &epoch);
}

/// Does a handshake that believes any server, says something, and waits for an answer.
fn speak_tls(stream: &mut TcpStream, with_certificate: bool) -> std::io::Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let config = if with_certificate {
        let own = rcgen::generate_simple_self_signed(vec!["k1.dvm".into()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        builder.with_client_auth_cert(vec![own.cert.der().clone()], key).expect("a matching key")
    } else {
        builder.with_no_client_auth()
    };
    let name = rustls::pki_types::ServerName::try_from("anybody.dvm").expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let mut tls = rustls::Stream::new(&mut tls, stream);
    tls.write_all(&[4, 0, 0, 0, 1, 2, 3, 4])?;
    tls.flush()?;
    match tls.read(&mut [0; 16])? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Believes anything.
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A ticket, as `dvm-kernel` carries it.
#[derive(Serialize, Deserialize)]
struct Ticket {
    addresses: Vec<String>,
    contact: u128,
    authority: [u8; 32],
    dvm: u128,
    secret: [u8; 32],
}

impl Ticket {
    fn of(cluster: &Cluster) -> Self {
        let ticket = cluster.ok(&["ticket"]);
        let text =
            ticket["ticket"].as_str().expect("a ticket").strip_prefix("dvm1.").expect("its head").to_owned();
        let digits = (0..text.len()).step_by(2);
        let bytes: Vec<u8> =
            digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("digits")).collect();
        postcard::from_bytes(&bytes).expect("a ticket")
    }

    fn text(&self) -> String {
        let bytes = postcard::to_allocvec(self).expect("plain data");
        format!("dvm1.{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

#[test]
fn a_ticket_of_another_dvm_or_used_or_forged_lets_nobody_in() {
    let (cluster, other) = (Cluster::up(2, &[]), Cluster::up(1, &[]));
    let epoch = epoch(&cluster);
    let good = Ticket::of(&cluster);
    let foreign = Ticket { addresses: good.addresses.clone(), ..Ticket::of(&other) };
    let forged = Ticket { secret: [7; 32], ..Ticket::of(&cluster) };
    let other_dvm = Ticket { dvm: good.dvm ^ 1, ..Ticket::of(&cluster) };
    for (ticket, what) in [
        (foreign.text(), "foreign"),
        (forged.text(), "forged"),
        (other_dvm.text(), "of another DVM"),
        ("dvm1.00".into(), "no ticket"),
        ("hello".into(), "no ticket"),
    ] {
        let joined = cluster.join_with("dvm", "k7", &ticket);
        assert_eq!(joined.exit, 1, "{what}: {joined}");
        assert!(
            joined.stdout.contains("authenticate") || joined.stdout.contains("connect"),
            "{what}: {joined}"
        );
    }
    unharmed(&cluster, 2, &epoch);
    // The good one works, and works once.
    let _ = cluster.join_with("dvm", "k7", &good.text()).exits(0);
    cluster.settle(&["k0", "k1", "k7"]);
    let again = cluster.join_with("dvm", "k8", &good.text());
    assert!(again.exit == 1 && again.stdout.contains("used before"), "{again}");
    cluster.settle(&["k0", "k1", "k7"]);
}

#[test]
fn garbage_on_the_local_socket_is_refused() {
    let cluster = Cluster::up(2, &[]);
    let epoch = epoch(&cluster);
    let path = cluster.place().socket("k0").expect("a path");
    let huge = [&u32::MAX.to_le_bytes()[..], b"x"].concat();
    let nonsense = [&8_u32.to_le_bytes()[..], b"nonsense"].concat();
    let empty = 0_u32.to_le_bytes().to_vec();
    for bytes in [huge, nonsense, empty, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut stream = UnixStream::connect(&path).expect("the socket is open");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{bytes:?} is not closed")
            }
        }
    }
    // Many that say nothing at all.
    let held: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).expect("the socket is open")).collect();
    unharmed(&cluster, 2, &epoch);
    drop(held);
}

/// A subscriber that does not read while far more happens than is kept: the kernel neither waits for it nor grows, and
/// when it reads again it is told where to go on.
#[test]
fn a_client_that_stops_reading_is_told_that_it_fell_behind() {
    const WRITES: u64 = 50_000;
    let cluster = Cluster::up(2, &["--set", "history_entries=2000"]);
    let client = cluster.client("k0");
    let filter =
        Filter { kinds: vec!["key-changed".into(), "overflow".into()], follow: true, key_prefix: None };
    let mut events = client.events(Since::Now, filter).expect("subscribed");
    let before = memory_kib(cluster.pid("k0"));
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.client(if writer % 2 == 0 { "k0" } else { "k1" });
                for number in 0..WRITES / 8 / 10 {
                    let put = |part: u64| Operation::Put {
                        key: format!("slow/{writer}/{part}"),
                        value: json!(number),
                    };
                    let then = (0..10).map(put).collect();
                    let request = Request::StateTransaction { conditions: vec![], then, otherwise: vec![] };
                    let done = client.request(request, None, Some(Duration::from_secs(60)));
                    assert!(matches!(done, Ok(Answer::Done { .. })), "{done:?}");
                }
            });
        }
    });
    assert!(lives(cluster.pid("k0")));
    let grown = memory_kib(cluster.pid("k0")).saturating_sub(before);
    assert!(grown < 64 << 10, "the kernel grew by {grown} KiB");
    let last = cluster.status(Some("k0"))["index"].as_u64().expect("an index");
    let (mut overflow, mut index) = (None, 0);
    while index < last {
        match events.next(Some(Duration::from_secs(20))).expect("a stream") {
            Next::Event(event) if event.kind == "overflow" => {
                let from = event.more["resume_from"].as_u64().expect("an index");
                assert!(from >= index, "it goes on after what was told");
                overflow = Some(from);
            }
            Next::Event(event) => {
                let now = event.index.expect("an index");
                assert!(now > index, "{now} after {index}");
                index = now;
            }
            other => panic!("{other:?} at {index} of {last}"),
        }
    }
    assert!(overflow.is_some(), "50,000 events do not fit where 2,000 are kept");
    cluster.verify();
}

fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
