//! The commands of a running DVM: what they change, what they print, how they fail.

use dvm_plugin_api::local::{Operation, Request};
use dvm_tests::cluster::{Cluster, wait_for};
use serde_json::{Value, json};
use std::io::Read;
use std::time::Duration;

#[test]
fn unknown_things_are_named_and_change_nothing() {
    let cluster = Cluster::up(2, &["--set", "chaos=true"]);
    let known = || {
        let status = cluster.status(None);
        ["view", "members", "plugins"].map(|part| match part {
            "members" => status[part].as_array().map(Vec::len).into(),
            _ => status[part].clone(),
        })
    };
    let before = known();
    for (line, code, exit) in [
        (&["--member", "k9", "status"][..], "not-found", 6),
        (&["remove", "k9"], "not-found", 6),
        (&["state", "get", "nothing"], "not-found", 6),
        (&["call", "nothing", "{}"], "not-found", 6),
        (&["plugin", "show", "nothing"], "not-found", 6),
        (&["plugin", "unload", "nothing"], "not-found", 6),
        (&["plugin", "configure", "nothing", "-c", "a=1"], "not-found", 6),
        (&["config", "get", "nothing"], "not-found", 6),
        (&["config", "set", "nothing=1"], "usage", 2),
        (&["config", "set", "silence_ms=soon"], "usage", 2),
        (&["state", "put", "dvm/reserved", "1"], "denied", 7),
        (&["history", "--from", "9", "--to", "3"], "usage", 2),
        (&["events", "--since", "nowhere"], "usage", 2),
        (&["events", "--kind", "nothing"], "usage", 2),
        (&["history", "--transaction", "t0.9"], "not-found", 6),
        (&["--timeout", "soon", "status"], "usage", 2),
        (&["wait", "patiently"], "usage", 2),
        (&["nonsense"], "usage", 2),
        (&["status", "--nonsense"], "usage", 2),
    ] {
        let _ = cluster.json(line).error(code, exit);
    }
    assert_eq!(known(), before);
    assert_eq!(cluster.ok(&["state", "list"])["entries"], json!([]));
    // As text the same goes to standard error, and nothing else to standard output.
    let text = cluster.run(&["state", "get", "nothing"]).exits(6);
    assert!(text.stderr.starts_with("error: ") && text.stdout.is_empty(), "{text}");
}

#[test]
fn keys_have_versions_and_conditions() {
    let cluster = Cluster::up(3, &[]);
    let put = cluster.ok(&["state", "put", "a", "{\"x\":[1,null,\"y\"]}"]);
    let version = put["version"].to_string();
    for field in ["version", "index", "lineage", "view", "epoch", "label", "cursor"] {
        assert!(!put[field].is_null(), "{field} in {put}");
    }
    let got = cluster.ok(&["--member", "k2", "state", "get", "a", "--fresh"]);
    assert_eq!((&got["key"], &got["value"]), (&json!("a"), &json!({"x": [1, null, "y"]})));
    assert_eq!(got["version"], put["version"]);
    let _ = cluster.json(&["state", "put", "a", "1", "--if-absent"]).error("rejected", 4);
    let _ = cluster.json(&["state", "put", "a", "1", "--if-version", "999999"]).error("rejected", 4);
    let _ = cluster.json(&["state", "delete", "a", "--if-version", "999999"]).error("rejected", 4);
    let _ = cluster.ok(&["state", "put", "a", "plain words", "--if-version", &version]);
    assert_eq!(cluster.ok(&["state", "get", "a", "--fresh"])["value"], "plain words");
    let _ = cluster.ok(&["state", "put", "b", "-7", "--if-absent"]);
    let list = cluster.ok(&["state", "list"]);
    let keys: Vec<_> =
        list["entries"].as_array().expect("entries").iter().map(|entry| entry["key"].clone()).collect();
    assert_eq!(keys, ["a", "b"]);
    let _ = cluster.ok(&["state", "delete", "a"]);
    // What was asked is so already; whoever must know that it was there says its version.
    let _ = cluster.ok(&["state", "delete", "a"]);
    let _ = cluster.json(&["state", "delete", "a", "--if-version", "3"]).error("rejected", 4);
    let _ = cluster.json(&["state", "get", "a", "--fresh"]).error("not-found", 6);
    cluster.verify();
}

#[test]
fn a_transaction_of_keys_takes_effect_whole() {
    let cluster = Cluster::up(3, &[]);
    let file = cluster.home().join("txn.json");
    let txn = |document: Value| {
        std::fs::write(&file, document.to_string()).expect("written");
        cluster.json(&["state", "txn", file.to_str().expect("text")])
    };
    let first = txn(json!({"if": [], "then": [{"put": "x", "value": 1}, {"put": "y", "value": 2}]})).exits(0);
    let version = first.json()["version"].clone();
    let held = json!({"if": [{"key": "x", "version": version}], "then": [{"delete": "y"}],
        "else": [{"put": "x", "value": 0}]});
    for key in ["x", "y"] {
        assert_eq!(cluster.ok(&["state", "get", key, "--fresh"])["version"], version, "{key}");
    }
    // Two keys are two events, and a receipt names the last one's index.
    let told = cluster.run(&["--json-lines", "events", "--kind", "key-changed", "--since", "all"]).exits(0);
    assert_eq!(told.lines().last().expect("an event")["index"], first.json()["index"]);
    assert_eq!(first.json()["index"].as_u64(), version.as_u64().map(|version| version + 1));
    assert_eq!(txn(held.clone()).exits(0).json()["held"], true);
    let _ = cluster.json(&["state", "get", "y", "--fresh"]).error("not-found", 6);
    let _ = cluster.ok(&["state", "put", "x", "5"]);
    let other = txn(held).exits(0).json();
    assert_eq!(other["held"], false);
    let x = cluster.ok(&["state", "get", "x", "--fresh"]);
    assert_eq!((&x["value"], &x["version"]), (&json!(0), &other["version"]));
    let _ = txn(json!({"if": [{"key": "x", "version": 1}], "then": [{"put": "x", "value": 9}]})).exits(4);
    for wrong in [json!([]), json!({"then": [{"put": 1}]}), json!({"when": []})] {
        let refused = txn(wrong);
        let _ = refused.error("usage", 2);
    }
    assert_eq!(cluster.ok(&["state", "get", "x", "--fresh"])["value"], 0);
    cluster.verify();
}

#[test]
fn a_repeat_with_the_same_id_takes_effect_once() {
    let cluster = Cluster::up(3, &[]);
    let first = cluster.ok(&["--id", "mine", "state", "put", "a", "1"]);
    let _ = cluster.ok(&["state", "put", "a", "2"]);
    let again = cluster.ok(&["--id", "mine", "--member", "k2", "state", "put", "a", "1"]);
    assert_eq!((&first["index"], &first["version"]), (&again["index"], &again["version"]));
    let two = cluster.home().join("two.json");
    std::fs::write(&two, r#"{"then":[{"put":"b","value":1},{"put":"c","value":1}]}"#).expect("written");
    let txn = || cluster.ok(&["--id", "two", "state", "txn", two.to_str().expect("text")]);
    let (first, again) = (txn(), txn());
    assert_eq!((&first["index"], &first["version"]), (&again["index"], &again["version"]));
    assert_eq!(cluster.ok(&["state", "get", "a", "--fresh"])["value"], 2);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let once = cluster.ok(&["--id", "count", "call", "counter", "{\"add\":5}"]);
    let twice = cluster.ok(&["--id", "count", "--member", "k1", "call", "counter", "{\"add\":5}"]);
    assert_eq!((&once["reply"], &once["index"]), (&twice["reply"], &twice["index"]));
    assert_eq!(cluster.ok(&["call", "counter", "{\"get\":true}"])["reply"]["value"], 5);
    cluster.verify();
}

#[test]
fn time_that_is_up_is_exit_5() {
    let cluster = Cluster::up(2, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "slow_ms=1500"]);
    let call = cluster.json(&["--timeout", "300ms", "call", "counter", "{\"add\":1}"]);
    let _ = call.error("unknown", 5);
    let wait = cluster.json(&["--timeout", "200ms", "wait", "members=7"]);
    let _ = wait.error("unknown", 5);
    // It took effect all the same.
    let got = cluster.ok(&["--timeout", "20s", "call", "counter", "{\"get\":true}"]);
    assert_eq!(got["reply"]["value"], 1);
}

#[test]
fn watch_tells_changes_of_its_prefix_and_ends_with_the_dvm() {
    let cluster = Cluster::up(2, &[]);
    let mut watch = cluster.start(&["--json-lines", "state", "watch", "app/", "--since", "all"]);
    let _ = cluster.ok(&["state", "put", "other", "1"]);
    let _ = cluster.ok(&["state", "put", "app/a", "1"]);
    let _ = cluster.ok(&["state", "delete", "app/a"]);
    let _ = cluster.ok(&["halt"]);
    let mut told = String::new();
    watch.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
    assert_eq!(watch.wait().expect("it ends").code(), Some(0), "{told}");
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let keys: Vec<_> = events.iter().map(|event| (&event["kind"], &event["key"])).collect();
    assert_eq!(keys, [(&json!("key-changed"), &json!("app/a")); 2], "{told}");
}

#[test]
fn events_resume_by_index_and_by_cursor() {
    let cluster = Cluster::up(3, &[]);
    let all = cluster.run(&["--json-lines", "events", "--since", "all"]).exits(0).lines();
    assert!(all.len() >= 3, "{all:?}");
    for field in ["schema", "view", "epoch", "label", "lineage", "cursor", "time", "kind"] {
        assert!(all.iter().all(|event| !event[field].is_null()), "{field}");
    }
    let second = &all[1];
    for since in [second["index"].to_string(), second["cursor"].as_str().expect("text").to_owned()] {
        let rest = cluster.run(&["--json-lines", "--member", "k2", "events", "--since", &since]);
        assert_eq!(rest.exits(0).lines(), all[2..], "since {since}");
    }
    let joined = cluster.run(&["--json-lines", "events", "--kind", "plugin-"]).exits(0);
    assert_eq!(joined.stdout, "");
}

#[test]
fn members_are_added_tagged_and_removed() {
    let cluster = Cluster::up(2, &["--tag", "rack=a"]);
    let added = cluster.ok(&["add", "--local", "2", "--tag", "rack=b"]);
    assert_eq!(added["failed"], json!([]));
    cluster.settle(&["k0", "k1", "k2", "k3"]);
    let _ = cluster.ok(&["--member", "k1", "config", "set", "role=spare"]);
    let tags = |member: &str| {
        let members = cluster.ok(&["members"])["members"].clone();
        let found = members.as_array().expect("members").iter().find(|m| m["name"] == member).cloned();
        found.map(|member| member["tags"].clone()).expect("a member")
    };
    assert_eq!(tags("k1"), json!({"rack": "a", "role": "spare"}));
    assert_eq!(tags("k3"), json!({"rack": "b"}));
    let _ = cluster.ok(&["remove", "rack=b"]);
    cluster.settle(&["k0", "k1"]);
    let left = cluster.run(&["--json-lines", "events", "--kind", "member-left"]).exits(0).lines();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|event| event["by"] == "remove"), "{left:?}");
    let _ = cluster.ok(&["remove", "k1", "--force"]);
    cluster.settle(&["k0"]);
    let _ = cluster.ok(&["state", "put", "alone", "1"]);
    cluster.verify();
}

/// Name, rank, and the first digits of an id are one to every command that takes a member.
#[test]
fn a_member_has_three_names() {
    let cluster = Cluster::up(3, &["--set", "chaos=true", "--set", "silence_ms=60000"]);
    // Those that join at once have ranks in any order.
    let last = cluster.ok(&["members"])["members"][2].clone();
    let name = last["name"].as_str().expect("a name");
    let id = last["id"].as_str().expect("an id")[..6].to_owned();
    let others: Vec<_> = cluster.members().into_iter().filter(|member| member != name).collect();
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    for member in [name, "rank:2", id.as_str()] {
        assert_eq!(cluster.ok(&["--member", member, "status"])["through"], name, "{member}");
        let _ = cluster.ok(&["--member", member, "config", "set", &format!("seen={}", member.len())]);
        let killed = cluster.ok(&["chaos", "kill", "--plugin", "counter", "--on", member]);
        assert_eq!(killed["killed"]["member"], name, "{member}");
        let _ = cluster.ok(&["wait", "plugin=counter:running", "--timeout", "30s"]);
        let paused = cluster.ok(&["chaos", "pause", member]);
        assert_eq!(paused["paused"][0]["member"], name, "{member}");
        let _ = cluster.ok(&["chaos", "resume", member]);
        let cut = cluster.ok(&["chaos", "cut", &format!("{}/{member}", others.join(","))]);
        assert_eq!(cut["cut"][1], json!([name]), "{member}");
        let _ = cluster.ok(&["chaos", "heal"]);
    }
    let tags = cluster.ok(&["--member", &id, "config", "get"]);
    assert_eq!(tags["tags"], json!({"seen": 6}), "{tags}");
    for nobody in ["k9", "rank:9", "fffffffffff"] {
        let _ = cluster.json(&["--member", nobody, "status"]).error("not-found", 6);
        let _ = cluster.json(&["remove", nobody]).error("not-found", 6);
    }
    let _ = cluster.ok(&["remove", &id]);
    cluster.settle(&others);
}

#[test]
fn settings_are_agreed() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=900"]);
    let silence = || cluster.ok(&["config", "get", "silence_ms"])["value"].clone();
    assert_eq!(silence(), 900);
    let _ = cluster.ok(&["config", "set", "silence_ms=700", "require=majority"]);
    wait_for("the setting", || (silence() == 700).then_some(()));
    // One that makes no sense takes the others of its command with it.
    let refused = cluster.json(&["config", "set", "silence_ms=800", "observers=none"]);
    let _ = refused.error("usage", 2);
    assert_eq!(silence(), 700);
    let told = cluster.run(&["--json-lines", "events", "--kind", "config-changed"]).exits(0).lines();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["keys"], &told[0]["member"]), (&json!(["silence_ms", "require"]), &json!("k0")));
    // The member is the one through which it was asked.
    let k1 = format!("{}/k1.sock", cluster.place().uri());
    let _ = cluster.ok(&["--dvm", &k1, "config", "set", "window=64"]);
    let told =
        cluster.run(&["--json-lines", "--member", "k1", "events", "--kind", "config-changed"]).exits(0);
    assert_eq!(told.lines().last().expect("an event")["member"], "k1");
    cluster.verify();
}

#[test]
fn logs_are_readable_while_it_lives_and_after() {
    let cluster = Cluster::up(2, &[]);
    let all = cluster.ok(&["members"])["members"].clone();
    let id = all[1]["id"].as_str().expect("an id")[..6].to_owned();
    for member in ["k1", "k[1-1]", "rank:1", id.as_str()] {
        let lines = cluster.run(&["--json", "logs", member]).exits(0).lines();
        assert!(!lines.is_empty() && lines.iter().all(|line| line["member"] == "k1"), "{member}: {lines:?}");
    }
    let none = cluster.json(&["logs", "k9"]).error("not-found", 6);
    assert!(none.contains("k0, k1"), "{none}");
    let _ = cluster.ok(&["halt"]);
    assert!(cluster.logs().join("k1.log").is_file());
    let _ = cluster.run(&["logs", "k1"]).exits(0);
    let _ = cluster.json(&["logs", "rank:1"]).error("not-found", 6);
    let _ = cluster.json(&["status"]).error("no-dvm", 3);
    let _ = cluster.json(&["halt"]).error("no-dvm", 3);
}

#[test]
fn history_tells_a_transaction_by_its_id() {
    let cluster = Cluster::up(2, &[]);
    let load = cluster.ok(&["plugin", "load", "counter"]);
    let id = load["transaction"].as_str().expect("an id");
    let entries = cluster.ok(&["--member", "k1", "history", "--transaction", id])["entries"].clone();
    let kinds: Vec<_> = entries.as_array().expect("entries").iter().map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["transaction", "outcome"], "{entries}");
    let index = load["index"].to_string();
    let one = cluster.ok(&["history", "--from", &index, "--to", &index])["entries"].clone();
    assert_eq!(one.as_array().map(Vec::len), Some(1), "{one}");
}

#[test]
fn a_value_that_is_too_large_is_refused() {
    let cluster = Cluster::up(2, &[]);
    let value = format!("\"{}\"", "x".repeat(100_000));
    let put = cluster.json(&["state", "put", "large", &value]);
    assert!(put.error("usage", 2).contains("inline_max"), "{put}");
    let _ = cluster.ok(&["state", "put", "small", "1"]);
    let _ = cluster.json(&["state", "get", "large", "--fresh"]).error("not-found", 6);
    cluster.settle(&["k0", "k1"]);
    cluster.verify();
}

/// More than one answer of a kernel holds.
#[test]
fn long_lists_are_whole() {
    let cluster = Cluster::up(2, &[]);
    let mut client = cluster.client("k0");
    for number in 0..200 {
        let (key, value) = (format!("long/{number:03}"), json!("x".repeat(30_000)));
        let then = vec![Operation::Put { key, value }];
        let put = Request::StateTransaction { conditions: vec![], then, otherwise: vec![] };
        let _ = client.request(put, None, Some(Duration::from_secs(30))).expect("acknowledged");
    }
    let _ = cluster.ok(&["state", "put", "other", "1"]);
    let keys = |list: &Value| {
        let entries = list["entries"].as_array().expect("entries").iter();
        entries.map(|entry| entry["key"].as_str().expect("a key").to_owned()).collect::<Vec<_>>()
    };
    let wanted: Vec<_> = (0..200).map(|number| format!("long/{number:03}")).collect();
    assert_eq!(keys(&cluster.ok(&["state", "list", "long/"])), wanted);
    assert_eq!(keys(&cluster.ok(&["state", "list"])).len(), 201);
    let history = cluster.ok(&["history", "--from", "1"]);
    let puts = history["entries"].as_array().expect("entries").iter();
    assert_eq!(puts.filter(|entry| entry["kind"] == "keys").count(), 201);
}
