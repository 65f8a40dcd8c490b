use super::*;

/// The built example plug-in; it lies beside the tests' own executable.
fn counter() -> Vec<u8> {
    let tests = std::env::current_exe().expect("a test runs from a file");
    let directory = tests.parent().and_then(std::path::Path::parent).expect("target/PROFILE/deps");
    let path = directory.join("libcounter.so");
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo build -p dvm-plugin-counter` first", path.display())
    })
}

#[track_caller]
fn check(bytes: &[u8], code: &str, says: &str) {
    let error = read(bytes).expect_err("it is no plug-in");
    assert!(error.code() == code && error.to_string().contains(says), "{error:?}: {error}");
}

#[test]
fn the_example_says_what_it_is() {
    let manifest = read(&counter()).expect("a plug-in");
    assert_eq!((manifest.name.as_str(), manifest.payload.as_str()), ("counter", "msgpack"));
    assert_eq!(manifest.abi, crate::abi::VERSION);
    assert!(manifest.can("snapshot") && !manifest.can("flying"));
    assert!(needed(&counter()).iter().any(|name| name.starts_with("libc.so")));
}

#[test]
fn the_abi_is_versioned_like_the_package() {
    let package = format!("{}.{}", env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    assert_eq!(crate::abi::VERSION, package);
}

#[test]
fn what_is_no_plugin_is_told_apart() {
    check(b"", "corrupt", "empty");
    check(b"#!/bin/sh\n", "corrupt", "no ELF file");
    check(b"\x7fELF", "corrupt", "header");
    let program = std::fs::read("/proc/self/exe").expect("the test's own program");
    check(&program, "abi", "no manifest");
    let mut object = counter();
    object[16] = 1;
    check(&object, "abi", "no shared library");
    let mut other = counter();
    other[18] = 0x16;
    check(&other, "wrong-machine", "machine 22");
    other[4] = 1;
    check(&other, "wrong-machine", "32-bit");
}

#[test]
fn a_library_without_our_note_and_one_with_another_abi_are_told_apart() {
    let good = counter();
    let at = find(&good, b"\"abi\":\"1.");
    let mut other = good.clone();
    other[at + 7] = b'2';
    check(&other, "abi", "ABI 2.0, this host speaks 1.0");
    let mut newer = good.clone();
    newer[at + 9] = b'7';
    assert_eq!(read(&newer).map(|manifest| manifest.abi), Ok("1.7".into()), "a newer minor version loads");
    let mut broken = good.clone();
    broken[at] = b'!';
    check(&broken, "abi", "does not read");
    let mut foreign = good.clone();
    let owner = find(&good, b"DVM\0{\"name\"");
    foreign[owner] = b'X';
    check(&foreign, "abi", "no manifest");
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("it is in there")
}

#[test]
fn every_shortened_file_is_refused() {
    let good = counter();
    let lengths = (0..2_000).chain((2_000..good.len()).step_by(good.len() / 500));
    for length in lengths {
        assert!(read(&good[..length]).is_err(), "{length} of {} bytes pass", good.len());
    }
    assert!(read(&good[..good.len() - 1]).is_err());
}

#[test]
fn random_corruption_never_panics() {
    let good = counter();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..1_000 {
        let mut bad = good.clone();
        // Most of it where the headers and notes are.
        for _ in 0..=next(8) {
            let within = if next(4) > 0 { 2_048 } else { bad.len() };
            bad[next(within)] = next(256) as u8;
        }
        if next(4) == 0 {
            bad.truncate(next(good.len()));
        }
        let _ = (read(&bad), needed(&bad));
    }
}
