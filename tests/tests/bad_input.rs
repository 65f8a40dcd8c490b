//! Input that makes no sense: told clearly, nothing changed, nothing lost, all kernels alive.

use dvm_tests::cluster::{Cluster, Ground, built};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Files that are no plug-in, each with its name.
fn bad_libraries(ground: &Ground) -> Vec<(&'static str, PathBuf)> {
    let good = fs::read(built("libcounter.so")).expect("a library");
    let path = |name: &str| ground.home().join(name);
    let mut foreign = good.clone();
    // e_machine of the ELF header: AArch64.
    foreign[18..20].copy_from_slice(&[183, 0]);
    for (name, bytes) in [
        ("empty.so", &[][..]),
        ("truncated.so", &good[..good.len() / 2]),
        ("header.so", &good[..64]),
        ("text.so", b"#!/bin/sh\necho a script\n"),
        ("foreign.so", &foreign),
    ] {
        fs::write(path(name), bytes).expect("written");
    }
    fs::create_dir(path("directory.so")).expect("made");
    assert!(Command::new("mkfifo").arg(path("fifo.so")).status().is_ok_and(|status| status.success()));
    let dvm = built("dvm");
    let mut all: Vec<_> = ["missing", "empty", "truncated", "header", "text", "foreign", "directory", "fifo"]
        .into_iter()
        .map(|name| (name, path(&format!("{name}.so"))))
        .collect();
    // An ELF file that is no plug-in.
    all.push(("program", dvm));
    all
}

#[test]
fn a_bad_library_is_refused_by_check_and_by_load() {
    let cluster = Cluster::up(3, &[]);
    let before = cluster.status(None)["plugins"].clone();
    for (name, path) in bad_libraries(&cluster) {
        let path = path.to_str().expect("text");
        for line in [&["plugin", "check", path][..], &["plugin", "load", path, "--name", "bad"]] {
            let refused = cluster.json(line);
            assert!(matches!(refused.exit, 1 | 2 | 4 | 6), "{name}: {refused}");
            assert!(refused.json()["outcome"] != "committed", "{name}: {refused}");
        }
    }
    assert_eq!(cluster.status(None)["plugins"], before);
    assert!(!cluster.processes().iter().any(|process| process.is_plugin_host()));
    cluster.settle(&["k0", "k1", "k2"]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    cluster.verify();
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_all() {
    let cluster = Cluster::up(3, &[]);
    for wrong in ["nonsense=1", "step=\"x\"", "refuse_on=5"] {
        let load = cluster.json(&["plugin", "load", "counter", "-c", wrong]).exits(4).json();
        assert_eq!(load["outcome"], "rejected", "{load}");
        let results = load["results"].as_array().expect("results");
        assert_eq!(results.len(), 3, "{load}");
        assert!(results.iter().all(|result| result["stage"] == "validate"), "{load}");
        assert!(results.iter().all(|r| r["reason"].as_str().is_some_and(|r| !r.is_empty())), "{load}");
    }
    assert_eq!(cluster.ok(&["plugins"])["plugins"], Value::Array(vec![]));
    cluster.verify();
}

/// Where the kernel of a member listens for others.
fn address(cluster: &Cluster, member: &str) -> SocketAddr {
    let members = cluster.ok(&["members"])["members"].clone();
    let found = members.as_array().expect("members").iter().find(|found| found["name"] == member).cloned();
    found.expect("a member")["address"].as_str().expect("text").parse().expect("an address")
}

/// Bytes for the listeners, each of another kind of wrong.
fn garbage() -> Vec<Vec<u8>> {
    let noise = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // The first record of a TLS handshake that promises more than it brings.
    let torn = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01];
    vec![noise, vec![0xff; 1 << 16], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), torn, vec![0; 4]]
}

#[test]
fn garbage_at_the_ports_harms_nobody() {
    let cluster = Cluster::up(3, &[]);
    let id = cluster.status(None)["view"]["id"].clone();
    let mut half_open = Vec::new();
    for member in ["k0", "k1", "k2"] {
        let address = address(&cluster, member);
        for bytes in garbage() {
            let mut stream = TcpStream::connect(address).expect("connected");
            // The kernel may have closed it already.
            let _ = stream.write_all(&bytes);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
            let _ = stream.read(&mut [0; 256]);
        }
        half_open.extend((0..64).map(|_| TcpStream::connect(address).expect("connected")));
        let socket = cluster.place().socket(member).expect("a path");
        for bytes in garbage() {
            let mut stream = UnixStream::connect(&socket).expect("connected");
            let _ = stream.write_all(&bytes);
        }
    }
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    for member in ["k0", "k1", "k2"] {
        assert_eq!(cluster.status(Some(member))["view"]["id"], id, "nobody was excluded");
    }
    drop(half_open);
    let _ = cluster.ok(&["add", "--local", "1"]);
    cluster.verify();
}

#[test]
fn few_descriptors_are_told_and_kill_no_kernel() {
    let ground = Ground::new();
    let mut command = ground.program("bash");
    command
        .args(["-c", r#"ulimit -n 48; exec timeout 60 "$DVM" up --local 3 --json"#])
        .env("DVM", built("dvm"));
    let up = command.output().expect("it runs");
    let document: Value = serde_json::from_slice(&up.stdout).expect("JSON");
    if !up.status.success() {
        // Refused as a whole: with words, and nothing is left.
        assert!(document.get("error").is_some() || document["failed"] != Value::Array(vec![]), "{document}");
        ground.assert_empty();
        return;
    }
    // More clients than it has descriptors for: those wait or are turned away, the members go on.
    let socket = ground.runtime().join("dvm").join("k0.sock");
    let clients: Vec<_> = (0..80).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    let _ = ground.json(&["--member", "k1", "state", "put", "a", "1"]).exits(0);
    drop(clients);
    let status = ground.json(&["--member", "k0", "status"]).exits(0).json();
    assert_eq!(status["view"]["size"], 3, "{status}");
    let _ = ground.json(&["halt"]).exits(0);
    ground.assert_empty();
}

#[test]
fn a_value_that_is_too_large_is_refused() {
    let cluster = Cluster::up(2, &[]);
    let value = format!("\"{}\"", "x".repeat(100_000));
    let put = cluster.json(&["state", "put", "large", &value]);
    assert!(put.error("usage", 2).contains("inline_max"), "{put}");
    let _ = cluster.ok(&["state", "put", "small", "1"]);
    let _ = cluster.json(&["state", "get", "large", "--fresh"]).error("not-found", 6);
    cluster.settle(&["k0", "k1"]);
    cluster.verify();
}
