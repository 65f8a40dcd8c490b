//! Kernels that are killed: the others go on, nothing acknowledged is lost, everybody is told the same.

use dvm_tests::cluster::{Cluster, Writer, key_changes, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Writes some keys through each member; what `lost` reads back later.
fn write_through(cluster: &Cluster, members: &[String], round: &str) -> Vec<String> {
    let key = |member: &String| format!("{round}/{member}");
    for member in members {
        let put = cluster.json(&["--member", member, "state", "put", &key(member), &format!("\"{member}\"")]);
        let _ = put.exits(0);
    }
    members.iter().map(key).collect()
}

/// The keys of `written` that `member` does not hold.
fn lost(cluster: &Cluster, member: &str, written: &[String]) -> Vec<String> {
    let list = cluster.ok(&["--member", member, "state", "list"]);
    let entries = list["entries"].as_array().expect("entries").iter();
    let held: BTreeSet<_> = entries.map(|entry| entry["key"].as_str().expect("a key")).collect();
    written.iter().filter(|key| !held.contains(key.as_str())).cloned().collect()
}

/// Eight kernels of which `victims` are killed at once: what must be seen at the survivors.
fn kill_at_once(victims: &[&str]) {
    let cluster = Cluster::up(8, &[]);
    let members = cluster.members();
    let mut written = write_through(&cluster, &members, "before");
    for victim in victims {
        signal(cluster.pid(victim), Signal::KILL);
    }
    let survivors: Vec<String> =
        members.iter().filter(|member| !victims.contains(&member.as_str())).cloned().collect();
    cluster.settle(&survivors);
    written.extend(write_through(&cluster, &survivors, "after"));
    let events = cluster.equal_events(&survivors, "all");
    let mut failed: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "member-failed")
        .map(|event| event["member"].as_str().expect("a name"))
        .collect();
    failed.sort_unstable();
    assert_eq!(failed, victims);
    for member in &survivors {
        assert_eq!(lost(&cluster, member, &written), [""; 0], "at {member}");
    }
    cluster.verify();
}

#[test]
fn one_of_eight_is_killed() {
    for victim in ["k0", "k5"] {
        kill_at_once(&[victim]);
    }
}

#[test]
fn three_of_eight_are_killed_at_once() {
    kill_at_once(&["k0", "k3", "k4"]);
}

#[test]
fn all_but_one_of_eight_are_killed_at_once() {
    kill_at_once(&["k0", "k1", "k2", "k3", "k4", "k5", "k7"]);
}

/// Writers on several members while kernels are killed and added. `DVM_LONG=1` makes it a minute.
#[test]
fn writers_lose_nothing_while_kernels_come_and_go() {
    let seconds = if std::env::var_os("DVM_LONG").is_some() { 60 } else { 15 };
    let cluster = Cluster::up(5, &[]);
    let writers: Vec<_> =
        ["k0", "k1", "k2", "k3"].map(|member| Writer::start(&cluster, member, member)).into_iter().collect();
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        // The oldest, the newest, one in between, by turns; never k2, which is to tell the whole history.
        let members: Vec<_> = cluster.members().into_iter().filter(|member| member != "k2").collect();
        let victim = members[[0, members.len() - 1, members.len() / 2][rounds % 3]].clone();
        cluster.kill(&victim);
        let mut survivors: Vec<_> = members.into_iter().filter(|member| *member != victim).collect();
        survivors.push("k2".into());
        cluster.settle(&survivors);
        let added = cluster.ok(&["add", "--local", "1"]);
        assert_eq!(added["failed"], Value::Array(vec![]), "{added}");
        rounds += 1;
    }
    let acknowledged: Vec<String> = writers.into_iter().flat_map(Writer::stop).collect();
    assert!(acknowledged.len() > 100, "{} writes in {rounds} rounds", acknowledged.len());
    let members = cluster.members();
    cluster.settle(&members);
    let _ = cluster.ok(&["state", "put", "end", "1"]);
    for member in &members {
        assert_eq!(lost(&cluster, member, &acknowledged), [""; 0], "at {member}, {rounds} rounds");
    }
    let writes = key_changes(&cluster, "k2", "writer/");
    let doubled: Vec<_> = writes.iter().filter(|(_, times)| **times > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    cluster.verify();
    eprintln!("{} writes acknowledged in {rounds} rounds of kill and add", acknowledged.len());
}

/// Cuts, pauses and kills in turn under writers: what was acknowledged as confirmed stands in the one history that is
/// left. `DVM_LONG=1` makes it a minute.
#[test]
fn confirmed_writes_outlive_cuts_pauses_and_kills() {
    let seconds = if std::env::var_os("DVM_LONG").is_some() { 60 } else { 12 };
    let cluster = Cluster::up(5, &["--set", "chaos=true", "--set", "silence_ms=300"]);
    let writers = ["k0", "k2", "k4"].map(|member| Writer::start(&cluster, member, member));
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let mut members = cluster.members();
        let (a, b) = (members[rounds % 5].clone(), members[(rounds + 2) % 5].clone());
        let rest: Vec<_> = members.iter().filter(|member| **member != a && **member != b).cloned().collect();
        match rounds % 4 {
            0 => {
                let _ = cluster.ok(&["chaos", "cut", &format!("{a},{b}/{}", rest.join(","))]);
                wait_for("both sides go on", || {
                    let sizes = [&a, &rest[0]].map(|member| {
                        let view = cluster.status(Some(member))["view"].clone();
                        (view["phase"] == "normal").then(|| view["size"].as_u64()).flatten()
                    });
                    (sizes == [Some(2), Some(3)]).then_some(())
                });
                let _ = cluster.ok(&["chaos", "heal"]);
            }
            1 => {
                signal(cluster.pid(&a), Signal::STOP);
                let others: Vec<_> = members.iter().filter(|member| **member != a).collect();
                cluster.settle(&others);
                signal(cluster.pid(&a), Signal::CONT);
            }
            2 => {
                let _ = cluster.ok(&["chaos", "cut", &format!("{a}/{b},{}", rest.join(",")), "--one-way"]);
                wait_for("it is left out", || (cluster.status(Some(&b))["view"]["size"] == 4).then_some(()));
                let _ = cluster.ok(&["chaos", "heal"]);
            }
            _ => {
                cluster.kill(&a);
                let others: Vec<_> = members.iter().filter(|member| **member != a).collect();
                cluster.settle(&others);
                let added = cluster.ok(&["add", "--local", "1"])["members"][0]["name"].clone();
                members.retain(|member| *member != a);
                members.push(added.as_str().expect("a name").to_owned());
            }
        }
        cluster.settle(&members);
        rounds += 1;
    }
    let acknowledged: Vec<String> = writers.into_iter().flat_map(Writer::stop).collect();
    assert!(acknowledged.len() > 100, "{} writes in {rounds} rounds", acknowledged.len());
    let _ = cluster.ok(&["state", "put", "end", "1"]);
    for member in cluster.members() {
        assert_eq!(lost(&cluster, &member, &acknowledged), [""; 0], "at {member}, {rounds} rounds");
    }
    cluster.verify();
    eprintln!("{} confirmed writes in {rounds} rounds of cuts, pauses and kills", acknowledged.len());
}

#[test]
fn a_kernel_that_is_respawned_comes_back_under_its_name() {
    let cluster = Cluster::up(3, &["--respawn", "3/60s"]);
    let _ = cluster.ok(&["state", "put", "a", "1"]);
    let id = |cluster: &Cluster| {
        let members = cluster.ok(&["members"]);
        let members = members["members"].as_array().expect("members").clone();
        members.into_iter().find(|member| member["name"] == "k1").map(|member| member["id"].clone())
    };
    let before = id(&cluster).expect("a member");
    cluster.kill("k1");
    let after = wait_for("k1 is back", || id(&cluster).filter(|id| *id != before));
    assert_ne!(before, after);
    cluster.settle(&["k0", "k1", "k2"]);
    assert_eq!(cluster.ok(&["--member", "k1", "state", "get", "a"])["value"], 1);
    cluster.verify();
}
