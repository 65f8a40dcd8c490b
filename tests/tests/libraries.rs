//! Large libraries: they reach every member, one from the other, whoever is lost on the way; and who joins later has them.

use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{Answer, Load, Request, TransactionDoc, TransactionKind};
use dvm_tests::cluster::{Cluster, built, wait_for};
use dvm_tests::soak::give_counter;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A plug-in of so many bytes: the counter with something behind it that loading does not read.
fn large(cluster: &Cluster, megabytes: usize) -> PathBuf {
    let mut bytes = fs::read(built("libcounter.so")).expect("a library");
    let mut noise = 7_u64;
    while bytes.len() < megabytes << 20 {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&noise.to_le_bytes());
    }
    let path = cluster.home().join("libcounter.so");
    fs::write(&path, bytes).expect("room");
    path
}

/// Kernels whose logs say that they handed a library on: when they had all of it, before that, or either.
fn handed_on(cluster: &Cluster, whole: Option<bool>) -> Vec<String> {
    let told = |member: &String| {
        let log = fs::read_to_string(cluster.logs().join(format!("{member}.log"))).unwrap_or_default();
        let mut lines = log.lines().filter(|line| line.contains("library handed on"));
        lines.any(|line| whole.is_none_or(|whole| line.contains(&format!("whole={whole}"))))
    };
    (0..9).map(|number| format!("k{number}")).filter(told).collect()
}

fn runs_at_all(cluster: &Cluster, members: usize) {
    wait_for("an instance at every member", || {
        let status = cluster.status(None);
        let instances = status["plugins"][0]["instances"].as_array()?;
        let running = instances.iter().filter(|instance| instance["state"] == "running").count();
        (running == members).then_some(())
    });
}

#[test]
fn a_library_goes_from_member_to_member_past_one_that_is_killed_and_to_one_that_joins_later() {
    let cluster = Cluster::up(5, &[]);
    let library = large(&cluster, 24);
    let library = library.to_str().expect("a path of letters");
    // By rank, which is the ring's order.
    let members = cluster.members();
    let [first, second, middle, ..] = &members[..] else { panic!("{members:?}") };
    let loading =
        cluster.start(&["--member", first, "--json", "plugin", "load", library, "--require", "majority"]);
    // The member in the middle has begun to hand on, and most likely is not through with it.
    wait_for("the middle hands the library on", || handed_on(&cluster, None).contains(middle).then_some(()));
    cluster.kill(middle);
    let loaded = loading.wait_with_output().expect("dvm ends");
    let text = String::from_utf8_lossy(&loaded.stdout);
    assert!(loaded.status.success(), "{text}\n{}", String::from_utf8_lossy(&loaded.stderr));
    let left: Vec<_> = members.iter().filter(|member| *member != middle).collect();
    cluster.settle(&left);
    runs_at_all(&cluster, 4);
    // Whoever is between had not all of it when it was asked: it went through it.
    assert!(handed_on(&cluster, Some(false)).contains(second));
    let _ = cluster.ok(&["add", "--local", "1"]);
    runs_at_all(&cluster, 5);
    assert_eq!(cluster.ok(&["call", "counter", r#"{"add":2}"#])["reply"]["value"], 2);
    cluster.verify();
    // No copy on disk outlives the load.
    let private = fs::read_dir(cluster.place().directory()).expect("the DVM's directory").flatten();
    let copies =
        private.filter_map(|entry| fs::read_dir(entry.path()).ok()).flat_map(|files| files.flatten());
    let copies: Vec<_> =
        copies.filter(|file| file.path().extension().is_some_and(|end| end == "so")).collect();
    assert!(copies.is_empty(), "{copies:?}");
}

fn load(client: &mut Client, load: &Load) -> TransactionDoc {
    let kind = TransactionKind::Load(Box::new(load.clone()));
    let transact = Request::Transact { kind, require: None, dry_run: false };
    match client.request(transact, None, Some(Duration::from_secs(60))) {
        Ok(Answer::Transaction(ended)) => *ended,
        other => panic!("{other:?}"),
    }
}

/// The kernel that alone has a library has no descriptor left, or a few, when the others ask it for that: it refuses, goes
/// on, and hands it on as soon as it can.
#[test]
fn a_kernel_out_of_descriptors_refuses_a_library_and_lives() {
    let cluster = Cluster::up(3, &["--set", "exec_limit_ms=1500"]);
    let mut clients = [cluster.client("k0")];
    let wanted = give_counter(&cluster, &mut clients);
    let [client] = &mut clients;
    let kernel = cluster.pid("k0");
    let most = |limit| prlimit(Pid::from_raw(kernel as i32), Resource::Nofile, limit).expect("it runs");
    let held = || fs::read_dir(format!("/proc/{kernel}/fd")).expect("it runs").count() as u64;
    let begin = held();
    let before = getrlimit(Resource::Nofile);
    let mut refused = 0;
    for more in [0, 3, 4, 5] {
        let _ = most(Rlimit { current: Some(begin + more), ..before });
        let ended = load(client, &wanted);
        let _ = most(before);
        assert_eq!((cluster.pid("k0"), cluster.members().len()), (kernel, 3), "{more}: {ended:?}");
        refused += usize::from(ended.outcome == "rejected");
        if ended.outcome == "committed" {
            let _ = cluster.ok(&["plugin", "unload", "counter"]);
        }
    }
    assert!(refused >= 2, "{refused}");
    assert_eq!(load(client, &wanted).outcome, "committed");
    runs_at_all(&cluster, 3);
    cluster.verify();
}
