//! The plug-in `hooks`: programs run when something happens.

use dvm_tests::cluster::{Cluster, lives, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A program that writes down what it was told, in a file for each member and event.
fn script(directory: &Path) -> PathBuf {
    let path = directory.join("note.sh");
    let text = format!(
        "#!/bin/sh\ncat > {0}/part.$$\nmv {0}/part.$$ {0}/$DVM_MEMBER.$DVM_EVENT_KIND.$DVM_EVENT_MEMBER\n",
        directory.display()
    );
    fs::write(&path, text).expect("there is room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

fn noted(directory: &Path, name: &str) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(directory.join(name)).ok()?).ok()
}

fn scripts(run: &Path, on: &str) -> String {
    format!("scripts={}", json!([{"on": on, "run": run}]))
}

#[test]
fn every_member_runs_a_program_for_an_event_and_a_primary_alone() {
    members_and_a_primary_alone("process");
}

/// The same on threads of the kernels, each with a token of its own.
#[test]
fn inside_the_kernels_every_member_runs_a_program_too_and_a_primary_alone() {
    members_and_a_primary_alone("kernel");
}

fn members_and_a_primary_alone(placement: &str) {
    let load = ["plugin", "load", "hooks", "--placement", placement];
    let cluster = Cluster::up(4, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let run = script(directory.path());
    let _ = cluster.ok(&[&load[..], &["-c", &scripts(&run, "member-")]].concat());
    cluster.kill("k3");
    for member in ["k0", "k1", "k2"] {
        let told =
            wait_for("the program ran", || noted(directory.path(), &format!("{member}.member-failed.k3")));
        assert_eq!(
            (&told["kind"], &told["cause"]),
            (&json!("member-failed"), &json!("link-reset")),
            "{told}"
        );
        assert!(told["index"].is_u64(), "{told}");
    }
    let status = cluster.ok(&["--member", "k1", "call", "hooks", r#"{"status":true}"#, "--query"]);
    assert_eq!((&status["reply"]["ok"], &status["reply"]["failed"]), (&json!(1), &json!(0)), "{status}");

    let _ = cluster.ok(&["plugin", "unload", "hooks"]);
    let _ = cluster.ok(&[&load[..], &["--mode", "hot", "-c", &scripts(&run, "member-")]].concat());
    let primary = cluster.ok(&["plugin", "show", "hooks"])["primary"].as_str().expect("one").to_owned();
    let spare = cluster.ok(&["add", "--local", "1"]);
    let spare = spare["members"][0]["name"].as_str().expect("a name").to_owned();
    let _ = wait_for("the primary's program ran", || {
        noted(directory.path(), &format!("{primary}.member-joined.{spare}"))
    });
    let names = fs::read_dir(directory.path()).expect("a directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    let joined: Vec<_> = names.filter(|name| name.contains(&format!("joined.{spare}"))).collect();
    assert_eq!(joined.len(), 1, "{joined:?}");
}

#[test]
fn a_program_that_is_missing_or_fails_is_told() {
    let cluster = Cluster::up(2, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let missing = scripts(&directory.path().join("missing"), "member-");
    let refused = cluster.json(&["plugin", "load", "hooks", "-c", &missing]).exits(4).json();
    let reason = refused["results"][0]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("missing: No such file"), "{reason}");
    // One that fails, and one that neither reads nor ends, nor what it started.
    let slow = directory.path().join("slow.sh");
    let text = format!("#!/bin/sh\nsleep 1000 &\necho $! > {}/pid\nwait\n", directory.path().display());
    fs::write(&slow, text).expect("there is room");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let run = json!([{"on": "member-failed", "run": "/bin/false"},
                     {"on": "member-failed", "run": slow, "timeout_ms": 300}]);
    let _ = cluster.ok(&["plugin", "load", "hooks", "-c", &format!("scripts={run}")]);
    cluster.kill("k1");
    wait_for("both are counted", || {
        let status = cluster.ok(&["call", "hooks", r#"{"status":true}"#, "--query"])["reply"].clone();
        (status["failed"] == 2)
            .then(|| assert!(status["last_error"].to_string().contains("killed after 300ms")))
    });
    let pid = fs::read_to_string(directory.path().join("pid")).expect("it ran");
    let pid: u32 = pid.trim().parse().expect("a process id");
    wait_for("what it started is ended, too", || (!lives(pid)).then_some(()));
}
