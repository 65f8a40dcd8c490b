//! How DVMs begin and end on a host: descriptors, names, places, users.

use dvm_tests::cluster::{Cluster, Ground, Outcome, built, root_for};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a line of shell in a ground, in which `$DVM` is `dvm`, for at most half a minute.
fn shell(ground: &Ground, line: &str) -> Outcome {
    let mut command = ground.program("timeout");
    command.args(["30", "bash", "-c", line]).env("DVM", built("dvm"));
    outcome(line, &mut command)
}

fn outcome(line: &str, command: &mut Command) -> Outcome {
    let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        line: line.into(),
        exit: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[test]
fn kernels_hold_none_of_the_callers_descriptors() {
    let ground = Ground::new();
    let line = r#"x=$("$DVM" up --local 4 --json) && echo "$x" | head -c 13"#;
    assert_eq!(shell(&ground, line).exits(0).stdout, "{\"schema\":1,\"");
    let _ = shell(&ground, r#""$DVM" up --local 2 --name second | tee "$DVM_RUNTIME_DIR/f""#).exits(0);
    let _ = shell(&ground, r#""$DVM" --dvm second add --local 1 2>&1 | cat"#).exits(0);
    let _ = shell(&ground, r#""$DVM" --dvm second halt | cat"#).exits(0);
    let _ = shell(&ground, r#""$DVM" halt 2>&1 | cat"#).exits(0);
    ground.assert_empty();
}

#[test]
fn a_command_runs_inside_a_dvm_of_its_own() {
    let ground = Ground::new();
    let inside = shell(&ground, r#""$DVM" up --local 3 -- bash -c '"$DVM" state put a 1 -q; exit 7'"#);
    let _ = inside.exits(7);
    ground.assert_empty();
}

#[test]
fn a_halt_returns_where_nobody_reaps() {
    if !root_for("a process namespace") {
        return;
    }
    let ground = Ground::new();
    // The first process of the namespace is a shell that only waits for its own children, as many containers' are.
    let line =
        r#"unshare -pf --mount-proc sh -c '"$DVM" up --local 3 -q && "$DVM" halt; echo "halt: $?"; :'"#;
    let halted = shell(&ground, line).exits(0);
    assert!(halted.stdout.contains("halt: 0"), "{halted}");
    ground.assert_empty();
}

#[test]
fn several_dvms_live_side_by_side() {
    let first = Cluster::up(2, &["--name", "one"]);
    let two = first.json(&["up", "--local", "2", "--name", "two"]).exits(0).json();
    let uri = two["uri"].as_str().expect("a uri").to_owned();
    // A choice is wanted, by name or by uri.
    let _ = first.json(&["status"]).error("usage", 2);
    let _ = first.ok(&["--dvm", "one", "state", "put", "a", "1"]);
    let _ = first.ok(&["--dvm", &uri, "state", "put", "a", "2"]);
    assert_eq!(first.ok(&["--dvm", "one", "state", "get", "a"])["value"], 1);
    assert_eq!(first.ok(&["--dvm", "two", "state", "get", "a"])["value"], 2);
    let again = first.json(&["up", "--local", "1", "--name", "one"]);
    let _ = again.error("failure", 1);
    assert_eq!(first.ok(&["--dvm", "one", "status"])["view"]["size"], 2);
    assert_eq!(first.ok(&["list"])["dvms"].as_array().map(Vec::len), Some(2));
    let _ = first.ok(&["--dvm", "two", "halt"]);
    assert_eq!(first.ok(&["state", "get", "a"])["value"], 1);
}

/// `up` in a place that will not do: refused with exit 1 or 7 and words about it, and nothing runs.
fn refused(ground: &Ground, word: &str) {
    let up = ground.json(&["up", "--local", "2"]);
    let error = up.json()["error"].clone();
    assert!(matches!(up.exit, 1 | 7), "{up}");
    assert!(error.to_string().contains(word), "no `{word}`: {up}");
    ground.assert_empty();
}

#[test]
fn a_runtime_directory_that_others_could_use_is_refused() {
    let ground = Ground::new();
    let mode = |mode| fs::set_permissions(ground.runtime(), fs::Permissions::from_mode(mode)).expect("set");
    fs::create_dir(ground.runtime()).expect("made");
    mode(0o755);
    refused(&ground, "chmod 700");
    mode(0o700);
    let elsewhere = ground.home().join("elsewhere");
    fs::rename(ground.runtime(), &elsewhere).expect("moved");
    symlink(&elsewhere, ground.runtime()).expect("linked");
    refused(&ground, "link");
    if root_for("a directory of somebody else") {
        fs::remove_file(ground.runtime()).expect("removed");
        fs::create_dir(ground.runtime()).expect("made");
        mode(0o700);
        chown(ground.runtime(), Some(65534), None).expect("given away");
        refused(&ground, "65534");
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let ground = Ground::new();
    let long = ground.home().join("d".repeat(100));
    refused(&ground.with(Some(long), None), "at most 107");
}

/// A small file system of its own below a path, for as long as the value lives.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(path: &'a Path, options: &str) -> Self {
        fs::create_dir_all(path).expect("made");
        let options = format!("mode=0700,{options}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(path).status();
        assert!(done.is_ok_and(|status| status.success()), "cannot mount at {}", path.display());
        Self(path)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_plugin_loads_where_nothing_may_be_executed() {
    if !root_for("a mount") {
        return;
    }
    let home = tempfile::Builder::new().prefix("dvmt").tempdir_in("/tmp").expect("a directory");
    let runtime = home.path().join("run");
    let _mount = Mount::new(&runtime, "noexec");
    let cluster = Cluster::up_in(Ground::new().with(Some(runtime.clone()), None), 3, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    assert_eq!(cluster.ok(&["call", "counter", "{\"add\":1}"])["reply"]["value"], 1);
}

#[test]
fn no_space_left_is_told_and_loses_nothing() {
    if !root_for("a mount") {
        return;
    }
    let home = tempfile::Builder::new().prefix("dvmt").tempdir_in("/tmp").expect("a directory");
    let runtime = home.path().join("run");
    // Room for sockets and process files, none for a library of some megabytes.
    let _mount = Mount::new(&runtime, "size=1m");
    let cluster = Cluster::up_in(Ground::new().with(Some(runtime.clone()), None), 2, &[]);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    let load = cluster.json(&["plugin", "load", "counter"]);
    // Where the copy is kept in memory there is room; where it is not, the members say why.
    assert!(load.exit == 0 || (load.exit == 4 && load.stdout.contains("no-space")), "{load}");
    assert_eq!(cluster.ok(&["state", "get", "a"])["value"], 1);
    let _ = cluster.ok(&["state", "put", "b", "1"]);
    cluster.verify();
}

#[test]
fn full_logs_stop_nobody() {
    if !root_for("a mount") {
        return;
    }
    let home = tempfile::Builder::new().prefix("dvmt").tempdir_in("/tmp").expect("a directory");
    let logs = home.path().join("log");
    let _mount = Mount::new(&logs, "size=16k");
    let cluster = Cluster::up_in(Ground::new().with(None, Some(logs.clone())), 3, &[]);
    let filler = logs.join("filler");
    // Fails when nothing is left, which is its purpose.
    let _ = fs::write(&filler, vec![0; 64 << 10]);
    cluster.kill("k1");
    cluster.settle(&["k0", "k2"]);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    cluster.verify();
}

/// Copies of the programs where every user may run them, below a ground's home.
fn public_programs(ground: &Ground) -> PathBuf {
    let bin = ground.home().join("bin");
    fs::create_dir(&bin).expect("made");
    for name in ["dvm", "dvm-kernel", "libcounter.so"] {
        fs::copy(built(name), bin.join(name)).expect("copied");
    }
    for path in [ground.home(), &bin] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("opened");
    }
    bin
}

/// A program in a ground as the user `nobody`.
fn as_nobody(ground: &Ground, program: &Path, arguments: &[&str]) -> Outcome {
    let mut command = ground.program("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "timeout", "100"]);
    command.arg(program).args(arguments).current_dir("/");
    outcome(&format!("{} {arguments:?} as nobody", program.display()), &mut command)
}

#[test]
fn another_user_is_denied() {
    if !root_for("acting as another user") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    let dvm = public_programs(&cluster).join("dvm");
    for line in [&["--json", "status"][..], &["--json", "halt", "--force"], &["--json", "up"]] {
        let _ = as_nobody(&cluster, &dvm, line).error("denied", 7);
    }
    assert_eq!(cluster.status(None)["view"]["size"], 1);
}

#[test]
fn the_demo_runs_without_a_terminal_and_leaves_no_process() {
    let ground = Ground::new();
    let demo = outcome("dvm demo", ground.program("timeout").arg("100").arg(built("dvm")).arg("demo"));
    let demo = demo.exits(0);
    assert!(!demo.stdout.contains('\u{1b}'), "colours without a terminal: {demo}");
    ground.assert_empty();
}

#[test]
fn the_demo_runs_as_a_user_who_is_not_root() {
    if !root_for("acting as another user") {
        return;
    }
    let ground = Ground::new();
    let dvm = public_programs(&ground).join("dvm");
    for path in [ground.runtime(), ground.logs()] {
        fs::create_dir(path).expect("made");
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("closed");
        chown(path, Some(65534), Some(65534)).expect("given away");
    }
    let _ = as_nobody(&ground, &dvm, &["demo"]).exits(0);
    ground.assert_empty();
}
