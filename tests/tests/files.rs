//! Files that are no plug-in: refused before anything of them is run, with the reason, and nothing changed.

use dvm_tests::book::root;
use dvm_tests::cluster::{Cluster, Ground, built, has};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that nobody can load, each with words of the reason.
fn bad_files(directory: &Path) -> Vec<(PathBuf, &'static [&'static str])> {
    let good = fs::read(built("libcounter.so")).expect("the example plug-in");
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).expect("written");
        path
    };
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    // In the ELF header: the type at 16, the machine at 18. 2 is a program, 8 is MIPS.
    let other_machine = changed(18, &8_u16.to_le_bytes());
    let program = changed(16, &2_u16.to_le_bytes());
    let abi = good.windows(9).position(|bytes| bytes == b"\"abi\":\"1.").expect("a manifest");
    let other_abi = changed(abi, b"\"abi\":\"9.");
    let manifest = good[..abi].iter().rposition(|byte| *byte == b'{').expect("a manifest");
    let bad_manifest = changed(manifest, b"?");
    let fifo = directory.join("fifo.so");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    vec![
        (write("empty.so", b""), &["empty"]),
        (write("text.so", b"#!/bin/sh\necho hello\n"), &["no ELF"]),
        (write("truncated.so", &good[..good.len() / 2]), &["damaged", "cut short"]),
        (write("header.so", &good[..40]), &["damaged", "no ELF"]),
        (write("machine.so", &other_machine), &["MIPS", "machine"]),
        (write("program.so", &program), &["no shared library"]),
        (write("abi.so", &other_abi), &["ABI 9."]),
        (write("manifest.so", &bad_manifest), &["manifest"]),
        (other_library(), &["no DVM plug-in"]),
        (directory.to_path_buf(), &["no library"]),
        (fifo, &["no library"]),
        (directory.join("missing.so"), &["No such file"]),
    ]
}

/// A library of this machine that is no plug-in: what this test itself runs with.
fn other_library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    files.find(|file| file.contains("libc.so") || file.contains("libgcc_s")).expect("a C library").into()
}

#[test]
fn check_tells_what_is_wrong_with_a_file_without_a_dvm() {
    let ground = Ground::new();
    for (path, words) in bad_files(ground.home()) {
        let check = ground.json(&["plugin", "check", path.to_str().expect("text")]);
        assert!(matches!(check.exit, 1 | 2 | 6), "{check}");
        let code = ["", "failure", "usage", "", "", "", "not-found"][check.exit as usize];
        let text = check.error(code, check.exit);
        assert!(words.iter().any(|word| text.contains(word)), "{words:?} in {text}");
    }
    let missing = ground.json(&["plugin", "check", "./missing.so"]);
    let _ = missing.error("not-found", 6);
    let good = ground.json(&["plugin", "check", "counter"]).exits(0).json();
    assert_eq!((&good["name"], &good["ok"]), (&"counter".into(), &true.into()), "{good}");
    assert!(good["needed"].as_array().is_some_and(|needed| !needed.is_empty()), "{good}");
    assert!(!ground.runtime().exists(), "it needs no DVM");
}

/// Flipped bytes and missing ends: it is said what is wrong, or nothing is; never does the command itself fail.
#[test]
fn check_survives_what_is_damaged_at_random() {
    if !has(&["cc"], "a small plug-in to damage") {
        return;
    }
    let ground = Ground::new();
    let library = ground.plugin(&root().join("plugins/counter-c/counter.c"), "counter", &[]);
    let good = fs::read(&library).expect("a plug-in");
    let (file, mut random) = (ground.home().join("damaged.so"), 1_u64);
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for round in 0..100 {
        let mut bad = good.clone();
        for _ in 0..=next(16) {
            let at = next(bad.len());
            bad[at] ^= 1 << next(8);
        }
        if round % 2 == 0 {
            bad.truncate(next(good.len()));
        }
        fs::write(&file, &bad).expect("written");
        let check = ground.json(&["plugin", "check", file.to_str().expect("text")]);
        assert!(matches!(check.exit, 0 | 1), "round {round}: {check}");
        let told = check.stderr.lines().chain(check.stdout.lines()).count();
        assert!((1..=4).contains(&told), "round {round}: {check}");
    }
}

#[test]
fn load_refuses_the_same_files_and_changes_nothing() {
    let cluster = Cluster::up(2, &[]);
    let index = cluster.status(None)["index"].clone();
    for (path, words) in bad_files(cluster.home()) {
        let load = cluster.json(&["plugin", "load", path.to_str().expect("text")]);
        assert!(matches!(load.exit, 1 | 2 | 6), "{load}");
        assert!(words.iter().any(|word| load.stdout.contains(word)), "{words:?} in {load}");
    }
    let _ = cluster.json(&["plugin", "load", "nonesuch"]).error("not-found", 6);
    assert_eq!(cluster.status(None)["index"], index, "nothing was ordered");
    assert_eq!(cluster.ok(&["plugins"])["plugins"], serde_json::json!([]));
    assert!(!cluster.processes().iter().any(dvm_tests::cluster::Process::is_plugin_host));
}

/// Whoever loads a file may do with it what he likes afterwards: the kernels hold copies of their own.
#[test]
fn the_file_may_be_overwritten_or_removed_after_the_load() {
    let cluster = Cluster::up(3, &[]);
    let path = cluster.home().join("libmine.so");
    fs::copy(built("libcounter.so"), &path).expect("copied");
    let file = path.to_str().expect("text");
    let _ = cluster.ok(&["plugin", "load", file]);
    fs::write(&path, b"something else").expect("overwritten");
    assert_eq!(cluster.ok(&["call", "counter", "{\"add\":2}"])["reply"]["value"], 2);
    fs::remove_file(&path).expect("removed");
    let _ = cluster.ok(&["add", "--local", "1"]);
    let answer = || {
        let call = cluster.json(&["--member", "k3", "call", "counter", "{\"add\":2}"]);
        (call.exit == 0).then(|| call.json()["reply"]["value"].clone())
    };
    let value = dvm_tests::cluster::wait_for("the newcomer's instance answers", answer);
    assert_eq!(value, 4, "the newcomer got the library from a member");
    cluster.verify();
}
