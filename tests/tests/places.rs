//! Directories, names and limits of the machine that do not do: a clear error, nothing changed, nobody left behind.

use dvm_tests::cluster::{Cluster, Ground, built, root_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Asserts that `up` fails for a reason that has these words, and leaves no process.
fn up_fails(ground: &Ground, words: &[&str]) {
    let up = ground.json(&["up", "--local", "2"]);
    assert!(matches!(up.exit, 1 | 7), "{up}");
    let text = up.error(if up.exit == 1 { "failure" } else { "denied" }, up.exit);
    assert!(words.iter().any(|word| text.contains(word)), "{words:?} in {text}");
    ground.assert_empty();
}

#[test]
fn a_runtime_directory_that_is_open_to_others_is_refused() {
    let ground = Ground::new();
    fs::create_dir(ground.runtime()).expect("created");
    fs::set_permissions(ground.runtime(), fs::Permissions::from_mode(0o755)).expect("changed");
    up_fails(&ground, &["chmod 700"]);
    assert_eq!(fs::read_dir(ground.runtime()).expect("there").count(), 0);
    // Every other command looks as closely.
    for command in [&["list"][..], &["status"], &["halt"]] {
        let refused = ground.json(command);
        assert!(matches!(refused.exit, 3 | 7), "{refused}");
    }
}

#[test]
fn a_runtime_directory_that_is_a_link_is_refused() {
    let ground = Ground::new();
    let real = ground.home().join("real");
    fs::create_dir(&real).expect("created");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).expect("changed");
    symlink(&real, ground.runtime()).expect("linked");
    up_fails(&ground, &["symbolic link"]);
}

#[test]
fn a_runtime_directory_that_is_a_file_is_refused() {
    let ground = Ground::new();
    fs::write(ground.runtime(), "").expect("written");
    up_fails(&ground, &["not a directory"]);
}

#[test]
fn a_runtime_directory_of_another_user_is_refused() {
    if !root_for("a directory of another user") {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.runtime()).expect("created");
    fs::set_permissions(ground.runtime(), fs::Permissions::from_mode(0o700)).expect("changed");
    chown(ground.runtime(), Some(65_534), None).expect("given away");
    up_fails(&ground, &["belongs to user 65534"]);
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_before_anything_starts() {
    let ground = Ground::new();
    let long = ground.home().join("x".repeat(90));
    let ground = ground.with(Some(long), None);
    up_fails(&ground, &["at most 107", "bytes"]);
}

#[test]
fn names_that_are_no_names_are_a_usage_error() {
    let ground = Ground::new();
    for name in ["", "-x", "1st", "a/b", "a b", "..", &"n".repeat(64)] {
        let up = ground.json(&["up", &format!("--name={name}")]);
        let _ = up.error("usage", 2);
    }
    ground.assert_empty();
}

#[test]
fn a_second_dvm_of_the_same_name_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::up(2, &["--name", "mine"]);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    let again = cluster.json(&["up", "--local", "2", "--name", "mine"]);
    let text = again.error("failure", 1);
    assert!(text.contains("mine"), "{text}");
    cluster.settle(&["k0", "k1"]);
    assert_eq!(cluster.ok(&["state", "get", "a"])["value"], 1);
}

#[test]
fn several_dvms_of_one_user_live_side_by_side() {
    let ground = Ground::new();
    for (name, kernels) in [("one", "2"), ("two", "3")] {
        let _ = ground.json(&["up", "--local", kernels, "--name", name]).exits(0);
        let _ = ground.json(&["--dvm", name, "state", "put", "name", name]).exits(0);
    }
    // Which one is meant must be said.
    let text = ground.json(&["status"]).error("usage", 2);
    assert!(text.contains("one") && text.contains("two"), "{text}");
    let list = ground.json(&["list"]).exits(0).json();
    assert_eq!(list["dvms"].as_array().map(Vec::len), Some(2), "{list}");
    for name in ["one", "two"] {
        let get = ground.json(&["--dvm", name, "state", "get", "name"]).exits(0).json();
        assert_eq!(get["value"], name);
        let uri = ground.json(&["--dvm", name, "status"]).exits(0).json()["dvm"]["uri"].clone();
        let by_uri = ground.json(&["--dvm", uri.as_str().expect("text"), "state", "get", "name"]);
        assert_eq!(by_uri.exits(0).json()["value"], name);
    }
    let _ = ground.json(&["--dvm", "one", "halt"]).exits(0);
    let two = ground.json(&["state", "get", "name"]).exits(0).json();
    assert_eq!(two["value"], "two", "the only one left is meant now");
    let _ = ground.json(&["halt"]).exits(0);
    ground.assert_empty();
    let _ = ground.json(&["status"]).error("no-dvm", 3);
}

/// A small file system, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str, flags: MountFlags) -> Self {
        fs::create_dir(at).expect("created");
        let options = std::ffi::CString::new(options).expect("text");
        mount("tmpfs", at, "tmpfs", flags, options.as_c_str()).expect("mounted");
        Self(at.into())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Whoever still holds it is about to end. While it was there, its ground could not be removed.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = self.0.parent().map(fs::remove_dir_all);
    }
}

#[test]
fn a_plugin_needs_no_room_and_no_leave_to_run_programs_in_the_runtime_directory() {
    if !root_for("a file system of its own") {
        return;
    }
    let ground = Ground::new();
    let runtime = ground.home().join("noexec");
    let _tmpfs = Tmpfs::mount(&runtime, "mode=0700,size=64k", MountFlags::NOEXEC);
    let cluster = Cluster::up_in(ground.with(Some(runtime), None), 3, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    assert_eq!(cluster.ok(&["call", "counter", "{\"add\":2}"])["reply"]["value"], 2);
    let _ = cluster.ok(&["add", "--local", "1"]);
    let _ = cluster.ok(&["--timeout", "30s", "wait", "plugin=counter:running"]);
    cluster.verify();
}

#[test]
fn without_room_for_a_log_no_kernel_starts() {
    if !root_for("a file system of its own") {
        return;
    }
    let ground = Ground::new();
    let logs = ground.home().join("full");
    let _tmpfs = Tmpfs::mount(&logs, "mode=0700,size=4k,nr_inodes=2", MountFlags::empty());
    // What else there is room for.
    let _ = fs::write(logs.join("filler"), vec![0; 8 << 10]);
    let ground = ground.with(None, Some(logs));
    up_fails(&ground, &["No space", "make room", "no log"]);
}

/// A library that finds no room at a member is refused, with the code that says so; the kernels live on.
#[test]
fn without_room_for_a_library_the_load_is_rejected() {
    let cluster = Cluster::up(2, &[]);
    // What a kernel keeps in memory is a file to the system, and so is its log.
    let script = format!("ulimit -f 64; exec {} --json add --local 1", built("dvm").display());
    let mut shell = cluster.program("/bin/sh");
    shell.args(["-c", &script]);
    let _ = cluster.finish(shell).exits(0);
    let load = cluster.json(&["plugin", "load", "counter"]).exits(4).json();
    let refused = &load["results"][2];
    assert_eq!(
        (&refused["member"], &refused["stage"], &refused["code"]),
        (&"k2".into(), &"fetch".into(), &"no-space".into())
    );
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("no room")), "{load}");
    // Nor can it be sent through that member.
    let through = cluster.json(&["--member", "k2", "plugin", "load", "counter"]);
    assert!(through.error("failure", 1).contains("no room"), "{through}");
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    assert_eq!(cluster.ok(&["plugins"])["plugins"], serde_json::json!([]));
    cluster.settle(&["k0", "k1", "k2"]);
    cluster.verify();
}

/// Logs that find no room any more must not stop a kernel.
#[test]
fn a_log_that_is_full_stops_nobody() {
    if !root_for("a file system of its own") {
        return;
    }
    let ground = Ground::new();
    let logs = ground.home().join("full");
    let _tmpfs = Tmpfs::mount(&logs, "mode=0700,size=64k", MountFlags::empty());
    let cluster = Cluster::up_in(ground.with(None, Some(logs.clone())), 3, &[]);
    let _ = fs::write(logs.join("filler"), vec![0; 256 << 10]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    cluster.kill("k1");
    cluster.settle(&["k0", "k2"]);
    let _ = cluster.ok(&["call", "counter", "{\"add\":2}"]);
    cluster.verify();
}

/// With few descriptors a kernel works, or says clearly why it does not even begin; it never hangs, and nothing stays.
#[test]
fn few_descriptors_are_enough_or_an_error() {
    for limit in [8, 16, 24, 40, 48, 64] {
        let ground = Ground::new();
        let dvm = dvm_tests::cluster::built("dvm");
        let script = format!("ulimit -n {limit}; exec {} --json up --local 3", dvm.display());
        let mut shell = ground.program("/bin/sh");
        shell.args(["-c", &script]);
        let up = ground.finish(shell);
        if limit < 48 {
            assert!(up.error("failure", 1).contains("ulimit -n"), "{limit}: {up}");
            ground.assert_empty();
            continue;
        }
        let _ = up.exits(0);
        // More clients than it has descriptors for: those wait or are turned away, the members go on.
        let socket = ground.runtime().join("dvm").join("k0.sock");
        let clients: Vec<_> = (0..100).map_while(|_| UnixStream::connect(&socket).ok()).collect();
        assert!(clients.len() > 10, "{}", clients.len());
        let _ = ground.json(&["--member", "k1", "state", "put", "a", "1"]).exits(0);
        drop(clients);
        let status = ground.json(&["--member", "k0", "status"]).exits(0).json();
        assert_eq!(status["view"]["size"], 3, "{limit}: {status}");
        let _ = ground.json(&["history", "verify"]).exits(0);
        let _ = ground.json(&["halt"]).exits(0);
        ground.assert_empty();
    }
}
