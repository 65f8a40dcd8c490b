//! How kernels begin and end: places, tickets, descriptors, signals.

mod common;

use common::{Ground, ask, is_gone, put, signal, status, ticket, wait_until};
use dvm_plugin_api::local::{Answer, BootstrapRole, Request};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn a_founder_answers_and_leaves_nothing_when_it_ends() {
    let mut ground = Ground::new();
    let pid = ground.found("k0", &[]).pid();
    let mut client = ground.client("k0");
    let status = status(&mut client);
    assert_eq!((status.view.size, status.through.as_str(), status.view.phase.as_str()), (1, "k0", "normal"));
    assert_eq!(status.members[0].pid, pid);
    let socket = ground.socket("k0");
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o600);
    signal(pid, Signal::TERM);
    wait_until("the directory is gone", || is_gone(&ground.runtime().join("d")));
}

#[test]
fn a_kernel_holds_nothing_of_its_launcher() {
    let mut ground = Ground::new();
    let pid = ground.found("k0", &[]).pid();
    for standard in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{standard}")).expect("it is open");
        assert_eq!(link, Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<_> = stat.rsplit(") ").next().expect("a state").split(' ').collect();
    let (group, terminal) = (fields[2], fields[4]);
    assert_eq!((group, terminal), (pid.to_string().as_str(), "0"), "a process group of its own, no terminal");
    let secrets = ["cmdline", "environ"].map(|file| fs::read(format!("/proc/{pid}/{file}")).expect("ours"));
    assert!(!secrets.concat().windows(5).any(|window| window == b"dvm1."), "no ticket in sight");
}

#[test]
fn a_ticket_admits_one_kernel_once() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let first = ticket(&mut client);
    ground.join("k1", &first).pid();
    wait_until("two members", || status(&mut client).view.size == 2);
    let again = ground.join("k2", &first);
    let (stage, reason) = again.refused();
    assert_eq!(stage, "authenticate");
    assert!(reason.contains("used before"), "{reason}");
    // The joiner gives tickets too, and a write at one is read at the other.
    let mut other = ground.client("k1");
    ground.join("k2", &ticket(&mut other)).pid();
    put(&mut other, "app/x", 7).expect("it takes effect");
    match ask(&mut client, Request::StateGet { key: "app/x".into(), fresh: true }) {
        Ok(Answer::Key(found)) => assert_eq!(found.value, 7),
        other => panic!("{other:?}"),
    }
    assert!(!ground.log("k1").contains("dvm1."), "no ticket in the log");
}

#[test]
fn what_is_no_good_ticket_is_refused_with_its_reason() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let good = ticket(&mut client);
    let mut last = good.clone();
    let changed = if last.pop() == Some('0') { "1" } else { "0" };
    for bad in ["", "no ticket", &good[..40], &format!("{last}{changed}")] {
        let began = ground.join("k1", bad);
        let (stage, reason) = began.refused();
        assert_eq!(stage, "authenticate", "{bad}: {reason}");
    }
    let elsewhere = ground.bootstrap("other", "k1", BootstrapRole::Join { ticket: good });
    let began = ground.begin(&elsewhere);
    let (stage, reason) = began.refused();
    assert_eq!((stage, reason), ("authenticate", "the ticket is of DVM `d`, not of `other`"));
    assert_eq!(status(&mut client).view.size, 1);
}

#[test]
fn a_name_in_use_is_refused() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let second = ground.found("k0", &[]);
    assert_eq!(second.refused(), ("start", "a DVM `d` lives on this host"));
    let ticket = ticket(&mut ground.client("k0"));
    let namesake = ground.join("k0", &ticket);
    assert_eq!(namesake.refused(), ("start", "a kernel of k0 in DVM `d` lives on this host"));
    assert_eq!(status(&mut ground.client("k0")).view.size, 1);
}

#[test]
fn what_a_killed_kernel_left_is_no_hindrance() {
    let mut ground = Ground::new();
    let pid = ground.found("k0", &[]).pid();
    signal(pid, Signal::KILL);
    wait_until("it is gone", || !ground.target().place.accepts("k0"));
    assert!(ground.socket("k0").exists());
    ground.found("k0", &[]).pid();
    assert_eq!(status(&mut ground.client("k0")).view.size, 1);
}

#[test]
fn places_that_will_not_do_are_refused() {
    let mut ground = Ground::new();
    let refused = |ground: &mut Ground, runtime: &Path, name: &str, wanted: &str| {
        let mut bootstrap = ground.bootstrap(name, "k0", BootstrapRole::Found { settings: vec![] });
        bootstrap.runtime_dir = Some(runtime.into());
        let began = ground.begin(&bootstrap);
        let (stage, reason) = began.refused();
        assert_eq!(stage, "start");
        assert!(reason.contains(wanted), "{reason}");
    };
    let base = ground.directory.path().to_path_buf();
    let open = base.join("open");
    fs::create_dir(&open).expect("created");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("changed");
    refused(&mut ground, &open, "d", "chmod 700");
    let link = base.join("link");
    std::os::unix::fs::symlink(&open, &link).expect("created");
    refused(&mut ground, &link, "d", "symbolic link");
    let file = base.join("file");
    fs::write(&file, "").expect("written");
    refused(&mut ground, &file, "d", "not a directory");
    refused(&mut ground, &base.join("x".repeat(60)), &"d".repeat(60), "at most 107");
    refused(&mut ground, &base.join("run"), "1d", "is not a name");
}

#[test]
fn settings_and_lines_that_make_no_sense_are_refused() {
    let mut ground = Ground::new();
    let began = ground.found("k0", &[("silence_ms", "1")]);
    let (stage, reason) = began.refused();
    assert_eq!(stage, "start");
    assert!(reason.contains("a number from 50 to 60000"), "{reason}");
    for line in ["", "{}", "[1,2", "\u{0}"] {
        assert_eq!(ground.begin_with(line, |_| ()).refused().0, "start", "{line}");
    }
    // The names are free again.
    ground.found("k0", &[]).pid();
}

#[test]
fn few_descriptors_are_too_few_for_all_and_enough_for_some() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    use std::os::unix::process::CommandExt;
    let mut ground = Ground::new();
    let role = BootstrapRole::Found { settings: vec![] };
    let line = serde_json::to_string(&ground.bootstrap("d", "k0", role)).expect("plain data");
    let few = Rlimit { current: Some(48), maximum: Some(48) };
    let began = ground.begin_with(&line, |command| {
        // SAFETY: a system call and nothing else, which is allowed between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, few)?)) };
    });
    began.pid();
    let place = ground.target().place;
    let crowd: Vec<_> = (0..60).filter_map(|_| place.dial("k0").ok()).collect();
    std::thread::sleep(std::time::Duration::from_millis(100));
    drop(crowd);
    put(&mut ground.client("k0"), "after", "the crowd").expect("it lives, and goes on");
}

#[test]
fn a_rotated_log_is_opened_anew() {
    let mut ground = Ground::new();
    let pid = ground.found("k0", &[]).pid();
    let log = ground.directory.path().join("log/k0.log");
    fs::rename(&log, log.with_extension("old")).expect("moved");
    signal(pid, Signal::HUP);
    wait_until("a new log", || ground.log("k0").contains("opened anew"));
    signal(pid, Signal::USR1);
    wait_until("the state in the log", || ground.log("k0").contains("phase=\"normal\""));
}
