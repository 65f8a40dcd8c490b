use super::*;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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

/// Without the name of what raises a panic, a library is what one built with `panic = "abort"` is.
#[test]
fn a_library_whose_panics_end_the_process_is_told_apart() {
    let mut library = counter();
    assert!(catches_panics(&library));
    let name = b"\0_Unwind_RaiseException\0";
    let places: Vec<_> =
        (0..library.len() - name.len()).filter(|at| library[*at..].starts_with(name)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| library[at + 1] = b'X');
    assert!(!catches_panics(&library));
    assert!(!catches_panics(b"text"));
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
    check(&other, "abi", "ABI 2.1, this host speaks 1.1");
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
fn a_manifest_without_functions_is_refused() {
    let mut hidden = counter();
    while let Some(at) = hidden.windows(19).position(|window| window == b"dvm_plugin_header_1") {
        hidden[at] = b'D';
    }
    check(&hidden, "abi", "exports neither dvm_plugin_header_1 nor dvm_plugin_v1");
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
    let mut passed = 0;
    for _ in 0..1_000 {
        let mut bad = good.clone();
        // Most of it where the headers and notes are, and where the table of sections is.
        for _ in 0..=next(8) {
            let at = match next(8) {
                0..4 => next(2_048),
                4..6 => bad.len() - 1 - next(2_048),
                _ => next(bad.len()),
            };
            bad[at] = next(256) as u8;
        }
        if next(4) == 0 {
            bad.truncate(next(good.len()));
        }
        passed += usize::from(read(&bad).is_ok());
        let _ = needed(&bad);
    }
    assert!((1..1_000).contains(&passed), "{passed} of 1,000 pass: some hit what counts, some do not");
}

/// Everything that is installed here, for a minute at most.
#[test]
fn every_file_of_the_system_is_looked_at_and_none_panics() {
    let ends = Instant::now() + Duration::from_secs(60);
    let (mut left, mut looked, mut libraries) = (vec![PathBuf::from("/usr/lib")], 0, 0);
    while let Some(directory) = left.pop() {
        // What may not be listed or read is left out.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                left.push(entry.path());
            }
            let Some(file) = kind.is_file().then(|| File::open(entry.path()).ok()).flatten() else {
                continue;
            };
            let Some(mapped) = Mapped::of(&file) else { continue };
            looked += 1;
            libraries += usize::from(matches!(read(mapped.bytes()), Err(CheckError::NoManifest)));
            let _ = needed(mapped.bytes());
        }
        if Instant::now() > ends {
            eprintln!("not all was looked at within a minute");
            break;
        }
    }
    assert!(looked > 0 && libraries > 0, "{looked} files, {libraries} libraries");
}

/// A file's bytes, of which only those are read that are looked at.
struct Mapped(*mut std::ffi::c_void, usize);

impl Mapped {
    fn of(file: &File) -> Option<Self> {
        let size = usize::try_from(file.metadata().ok()?.len()).ok().filter(|size| *size > 0)?;
        // SAFETY: a place of the kernel's choice, which nothing else refers to.
        let at = unsafe { mmap(std::ptr::null_mut(), size, ProtFlags::READ, MapFlags::PRIVATE, file, 0) };
        Some(Self(at.ok()?, size))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped above for so many bytes; the system's files are not shortened while tests run.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped above, and no borrow is left.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}
