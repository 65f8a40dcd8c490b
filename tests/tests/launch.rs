//! How a DVM begins and ends for whoever types it: descriptors, pipes, containers, users, the demo.

use dvm_tests::cluster::{Cluster, Ground, built, has, root_for, wait_for};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Runs a shell script with `$dvm` set, which must end by itself.
fn shell(ground: &Ground, script: &str) -> dvm_tests::cluster::Outcome {
    let mut shell = ground.program("timeout");
    shell.args(["-k", "1", "40", "bash", "-c", script]).env("dvm", built("dvm"));
    ground.finish(shell)
}

#[test]
fn command_substitution_and_pipes_return() {
    let ground = Ground::new();
    let script = "x=$($dvm up --local 4 --json) || exit 9; echo \"$x\"";
    let up = shell(&ground, script).exits(0);
    assert_eq!(up.json()["members"].as_array().map(Vec::len), Some(4));
    let added = shell(&ground, "x=$($dvm add --local 1 --json) || exit 9; echo \"$x\"").exits(0);
    assert_eq!(added.json()["failed"], serde_json::json!([]), "{added}");
    let _ = shell(&ground, "$dvm halt 2>&1 | cat").exits(0);
    ground.assert_empty();
    let tee = shell(&ground, "cd $DVM_RUNTIME_DIR/..; $dvm up --local 2 | tee f && test -s f").exits(0);
    assert!(tee.stdout.contains("k1"), "{tee}");
    // Nor do they hold anything else of the caller's: a further descriptor, a lock, the directory.
    let held = shell(
        &ground,
        "exec 7>$DVM_RUNTIME_DIR/../lock; flock 7; $dvm add --local 1; exec 7>&-; flock -n $DVM_RUNTIME_DIR/../lock true",
    );
    let _ = held.exits(0);
    for process in ground.processes() {
        let directory = std::fs::read_link(format!("/proc/{}/cwd", process.pid)).expect("a directory");
        assert_eq!(directory, std::path::Path::new("/"), "{process:?}");
    }
    let _ = ground.json(&["halt"]).exits(0);
}

#[test]
fn a_command_runs_inside_and_its_exit_status_is_that_of_up() {
    let ground = Ground::new();
    let run = ground.run(&[
        "up",
        "--local",
        "2",
        "--",
        "sh",
        "-c",
        "$0 state put a 5 >&2 && $0 state get a; exit 7",
        &built("dvm").display().to_string(),
    ]);
    assert_eq!(run.exit, 7, "{run}");
    assert!(run.stdout.lines().any(|line| line == "5"), "{run}");
    ground.assert_empty();
    let missing = ground.run(&["up", "--local", "1", "--", "/nonexistent/program"]);
    assert_eq!(missing.exit, 1, "{missing}");
    ground.assert_empty();
}

/// `up --foreground` whose terminal goes away, or that is killed: the DVM ends with it.
#[test]
fn a_dvm_in_the_foreground_ends_with_its_command() {
    let ground = Ground::new();
    for kill in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let mut up = ground.start(&["up", "--local", "2", "--foreground"]);
        let mut told = BufReader::new(up.stdout.take().expect("piped")).lines();
        assert!(told.any(|line| line.expect("text").starts_with("DVM_URI=")), "it is up");
        dvm_tests::cluster::signal(up.id(), kill);
        let _ = up.wait().expect("it ends");
        ground.assert_empty();
    }
}

/// The terminal that a DVM was started from closes, and the kernels are none the wiser. They share a session, by which the
/// system shares processors out.
#[test]
fn kernels_outlive_their_terminal() {
    if !has(&["script"], "a terminal") {
        return;
    }
    let ground = Ground::new();
    let mut terminal = ground.program("script");
    let seen = "cat $(sed 's:.*:/proc/&/stat:' $DVM_RUNTIME_DIR/*/*.pid)";
    let up = format!("test -t 0 && {} up --local 2 && {seen}", built("dvm").display());
    terminal.args(["-qec", &up, "/dev/null"]);
    let seen = ground.finish(terminal).exits(0);
    let kernels: Vec<_> = seen.stdout.lines().filter(|line| line.contains("(dvm-kernel) ")).collect();
    assert_eq!(kernels.len(), 2, "{seen}");
    let sessions: BTreeSet<_> = kernels
        .into_iter()
        .map(|stat| {
            let fields: Vec<_> = stat.split(' ').collect();
            let (pid, group, session, terminal) = (fields[0], fields[4], fields[5], fields[6]);
            assert_eq!((group, terminal), (pid, "0"), "a group of its own, and no terminal: {stat}");
            session.to_owned()
        })
        .collect();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(ground.json(&["status"]).exits(0).json()["members"].as_array().map(Vec::len), Some(2));
    let _ = ground.json(&["halt"]).exits(0);
    ground.assert_empty();
}

/// In a container whose first process does not wait for others, the kernels that end stay as zombies.
#[test]
fn halt_returns_where_nobody_reaps() {
    if !root_for("a process namespace") {
        return;
    }
    let ground = Ground::new();
    // The first process is `timeout`, which waits for the one that it runs and for nobody else.
    let script = "$dvm up --local 3 --json >/dev/null && $dvm halt --json && \
                  $dvm up --local 2 --json >/dev/null && $dvm halt --force --json";
    let mut unshare = ground.program("unshare");
    unshare.args(["-pf", "--mount-proc", "timeout", "-k", "1", "40", "sh", "-c", script]);
    unshare.env("dvm", built("dvm"));
    let done = ground.finish(unshare).exits(0);
    assert_eq!(done.stdout.matches("\"halted\":true").count(), 2, "{done}");
}

#[test]
fn the_demo_without_a_terminal() {
    let ground = Ground::new();
    let demo = ground.run(&["demo"]).exits(0);
    for word in ["start", "write", "Kill", "knows after", "acknowledged writes, all there", "Done in"] {
        assert!(demo.stdout.to_lowercase().contains(&word.to_lowercase()), "{word} in {demo}");
    }
    assert!(!demo.stdout.contains('\u{1b}'), "no colours without a terminal: {demo}");
    ground.assert_empty();
    let json = ground.json(&["demo"]).exits(0).json();
    assert_eq!(json["demo"], "ok");
    ground.assert_empty();
}

/// The demo as a user who is not root and owns nothing but a temporary directory.
#[test]
fn the_demo_as_nobody() {
    if !root_for("another user") {
        return;
    }
    let ground = Ground::new();
    let home = ground.home().join("bin");
    std::fs::create_dir(&home).expect("created");
    for file in ["dvm", "dvm-kernel", "libcounter.so"] {
        std::fs::copy(built(file), home.join(file)).expect("copied");
    }
    for open in [ground.home(), &home] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755)).expect("changed");
    }
    let mut demo = Command::new("setpriv");
    demo.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "timeout", "-k", "1", "50"]);
    demo.arg(home.join("dvm")).arg("demo").current_dir("/").stdin(Stdio::null());
    let demo = ground.finish(demo).exits(0);
    assert!(demo.stdout.contains("all there"), "{demo}");
    let theirs = |pid: &u32| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.starts_with(&home)
    };
    let pids = || {
        std::fs::read_dir("/proc")
            .expect("proc")
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
    };
    wait_for("no process of the demo is left", || (!pids().any(|pid: u32| theirs(&pid))).then_some(()));
}

#[test]
fn leave_in_order_by_term() {
    let cluster = Cluster::up(4, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    dvm_tests::cluster::signal(cluster.pid("k1"), rustix::process::Signal::TERM);
    cluster.settle(&["k0", "k2", "k3"]);
    let events = cluster.equal_events(&["k0", "k2", "k3"], "all");
    let left: Vec<_> = events.iter().filter(|event| event["kind"] == "member-left").collect();
    assert_eq!(left.len(), 1, "{events:?}");
    assert_eq!((&left[0]["member"], &left[0]["by"]), (&"k1".into(), &"term".into()));
    assert!(!events.iter().any(|event| event["kind"] == "member-failed"), "{events:?}");
    wait_for("its process ends", || (cluster.processes().len() == 6).then_some(()));
    // Its name is free again.
    let _ = cluster.ok(&["add", "--local", "1"]);
    cluster.verify();
}

#[test]
fn sixteen_kernels_come_up_and_sixteen_more_are_added() {
    let cluster = Cluster::up(16, &[]);
    let added = cluster.ok(&["add", "--local", "8"]);
    assert_eq!(added["failed"], serde_json::json!([]), "{added}");
    assert_eq!(cluster.members().len(), 24);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    cluster.verify();
    let _ = cluster.ok(&["halt"]);
    cluster.assert_empty();
}
