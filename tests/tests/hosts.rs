//! One kernel a host: namespaces are the hosts. What is told there while that kernel dies and is started again.

use dvm_plugin_api::client::Target;
use dvm_plugin_api::local::Request;
use dvm_tests::book::root;
use dvm_tests::cluster::{Follower, Host, Hosts, has, lives, settle, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DVM: &str = "wide";

/// Restarts that are allowed: more than any test here needs.
const RESPAWN: Option<(u32, u64)> = Some((20, 600_000));

/// A follower in Rust, C, Python and asyncio on one host.
fn followers(host: &Host) -> Vec<Follower> {
    let program = |name: &str| root().join("tests/programs").join(name);
    let uri = host.place(DVM).uri();
    let mut all = vec![Follower::in_rust(Target::new(host.place(DVM), "test"))];
    if has(&["cc"], "a follower in C") {
        let mut c = host.program(host.compile(&program("follow.c"), &["-ldvm"]));
        c.args([uri.as_str(), "all"]);
        all.push(Follower::by("C", host.here(&c)));
    }
    if has(&["python3"], "a follower in Python") {
        for (name, how) in [("Python", "for"), ("asyncio", "async")] {
            let python = host.python(&program("follow.py"), &[&uri, "all", how]);
            all.push(Follower::by(name, host.here(&python)));
        }
    }
    for follower in &all {
        follower.wait_for("member-joined");
    }
    all
}

/// Changes a tag again and again, each time an event, until it is told to stop; how often.
fn tell(host: &Host, member: &str, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut client, member, stop) = (host.client(DVM), member.to_owned(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut told = 0;
        while !stop.load(Ordering::Relaxed) {
            told += 1;
            let changes = vec![("round".to_owned(), told.to_string())];
            let request = Request::Configure { changes, member: Some(member.clone()) };
            client.request(request, None, None).expect("its kernel lives");
            std::thread::sleep(Duration::from_millis(5));
        }
        told
    })
}

/// Waits until each was told so many lines that have this.
fn all_told(followers: &[Follower], what: &str, times: usize) {
    for follower in followers {
        let told = || follower.lines().iter().filter(|line| line.contains(what)).count();
        wait_for(&format!("{} is told {what} for time {times}", follower.name()), || {
            (told() >= times).then_some(())
        });
    }
}

/// The only kernel of a host is killed several times under subscribers in C, Python and Rust, and comes back each time
/// with nobody's help. All are told the same, nothing twice and nothing left out, and each time that they were detached.
#[test]
fn subscribers_outlive_the_only_kernel_of_their_host() {
    const KILLS: usize = 3;
    let Some(hosts) = Hosts::new(3, "hosts in network namespaces") else { return };
    let _ = hosts[0].found(DVM, "one", RESPAWN).exits(0);
    let _ = hosts[1].join(&hosts[0], DVM, "two", RESPAWN).exits(0);
    let _ = hosts[2].join(&hosts[0], DVM, "three", RESPAWN).exits(0);
    settle(&hosts, 3);
    let here = &hosts[2];
    let followers = followers(here);
    let stop = Arc::new(AtomicBool::new(false));
    let tellers = [tell(&hosts[0], "one", &stop), tell(&hosts[1], "two", &stop)];
    let place = here.place(DVM);
    for kill in 1..=KILLS {
        let pid = place.pid("three").expect("a process");
        signal(pid, Signal::KILL);
        all_told(&followers, "\"kind\":\"detached\"", kill);
        wait_for("it is started again", || place.pid("three").filter(|new| *new != pid && lives(*new)));
        settle(&hosts, 3);
        // They are at the new one, and hear what they missed.
        all_told(&followers, "\"kind\":\"member-failed\"", kill);
    }
    stop.store(true, Ordering::Relaxed);
    for teller in tellers {
        assert!(teller.join().expect("no panic") > 20);
    }
    let verify = hosts[0].json(&["history", "verify"]).exits(0).json();
    assert_eq!(
        (&verify["agree"], verify["members"].as_array().map(Vec::len)),
        (&true.into(), Some(3)),
        "{verify}"
    );
    let listed = hosts[0].run(&["--json-lines", "events", "--since", "all"]).exits(0);
    let wanted: Vec<&str> = listed.stdout.lines().collect();
    let failures = wanted.iter().filter(|line| line.contains("\"member-failed\"")).count();
    assert_eq!(failures, KILLS, "{listed}");
    let _ = hosts[0].json(&["halt"]).exits(0);
    for follower in followers {
        let name = follower.name();
        let told: Vec<Value> =
            follower.end().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let (placed, beside): (Vec<_>, Vec<_>) = told.iter().partition(|event| event["index"].is_u64());
        let indices: Vec<_> = placed.iter().filter_map(|event| event["index"].as_u64()).collect();
        assert!(indices.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {indices:?}");
        let wanted: Vec<Value> =
            wanted.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(placed.len() >= wanted.len(), "{name} was told {} of {}", placed.len(), wanted.len());
        for (told, wanted) in placed.iter().zip(&wanted) {
            assert_eq!(*told, wanted, "{name}");
        }
        let rest = placed[wanted.len()..].iter().map(|event| &event["kind"]);
        rest.for_each(|kind| assert!(kind == "halting" || kind == "member-left", "{name}: {kind}"));
        assert_eq!(beside.len(), KILLS, "{name}: {beside:?}");
        assert!(beside.iter().all(|event| event["kind"] == "detached"), "{name}: {beside:?}");
    }
    hosts.iter().for_each(|host| host.assert_empty());
}

/// Who ends a kernel in order, or all of a host by force, wants it to stay away.
#[test]
fn what_was_ended_on_purpose_does_not_come_back() {
    let Some(hosts) = Hosts::new(2, "hosts in network namespaces") else { return };
    let _ = hosts[0].found(DVM, "one", None).exits(0);
    let _ = hosts[1].join(&hosts[0], DVM, "two", RESPAWN).exits(0);
    settle(&hosts, 2);
    let here = &hosts[1];
    let guardian = || here.processes().iter().any(|one| one.arguments.iter().any(|word| word == "guardian"));
    wait_for("its guardian is at work", || guardian().then_some(()));
    let _ = here.json(&["halt", "--force"]).exits(0);
    here.assert_empty();
    settle(&hosts[..1], 1);
}
