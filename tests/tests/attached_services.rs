//! Services of the host for instances in applications: the same as in any other place.

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{LOCAL_VERSION, read_frame, write_frame};
use dvm_plugin_api::{Attached, Error, Event, Host, Meta, Plugin, Program, Result, attach};
use dvm_tests::cluster::{Cluster, wait_for};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The hosts of the instances in this process, in the order in which they started, and what each was told.
static HOSTS: Mutex<Vec<Host>> = Mutex::new(Vec::new());
static TOLD: Mutex<Vec<(String, Value)>> = Mutex::new(Vec::new());

/// Asks whatever the test asks.
struct Asker {
    host: Host,
    notes: Vec<Value>,
}

impl Asker {
    fn tell(&self, what: Value) {
        TOLD.lock().expect("no panic holds it").push((self.host.member(), what));
    }
}

impl Plugin for Asker {
    type Config = Value;
    type Command = Value;
    type Reply = Value;

    fn validate(_: &Value, host: &Host) -> Result<()> {
        match host.get::<Value>("any") {
            Err(error) if error.to_string().contains("validate only looks") => Ok(()),
            other => Err(Error::new(format!("validate was answered {other:?}"))),
        }
    }

    fn start(_: Value, host: Host) -> Result<Self> {
        let early = host.broadcast(&json!("early")).expect_err("its load may still be rejected");
        assert!(early.to_string().contains("not its member's yet"), "{early}");
        host.timer("begun", Duration::ZERO, None)?;
        HOSTS.lock().expect("no panic holds it").push(host.clone());
        Ok(Self { host, notes: Vec::new() })
    }

    fn apply(&mut self, command: Value, _: &Meta) -> Result<Value> {
        let refused = self.host.get::<Value>("any").expect_err("apply asks nothing");
        assert!(refused.to_string().contains("apply must come to the same"), "{refused}");
        self.notes.push(command);
        Ok(self.notes.clone().into())
    }

    fn on_event(&mut self, event: &Event) {
        if ["message", "timer", "key-changed", "process-output", "process-exit"]
            .contains(&event.kind.as_str())
        {
            self.tell(json!({"kind": event.kind, "fields": event.fields}));
        }
        if event.fields.get("name") == Some(&json!("inside")) {
            let own =
                self.host.call::<Value>("asker", &json!(1), PATIENCE).expect_err("it would wait for itself");
            self.tell(json!({"refused": own.to_string()}));
            let other = self.host.call::<Value>("counter", &json!({"add": 1}), PATIENCE);
            self.tell(json!({"called": other.map_err(|error| error.to_string())}));
        }
    }
}

fn load(cluster: &Cluster, more: &[&str]) {
    let load = ["plugin", "load", "--placement", "application", "--name", "asker"];
    let loaded = cluster.ok(&[&load[..], more].concat());
    assert_eq!(loaded["outcome"], json!("committed"), "{loaded}");
}

/// An instance of this process at a member, and its host.
fn attached(cluster: &Cluster, member: &str) -> (Attached, Host) {
    let target = Target::new(cluster.place(), "an application").only(member);
    let client = Client::connect(target).expect("a kernel");
    let attached = attach::<Asker>(&client, "asker").expect("it attaches");
    let found = || {
        let hosts = HOSTS.lock().expect("no panic holds it");
        hosts.iter().rfind(|host| host.member() == member).cloned()
    };
    let host = wait_for("it starts", found);
    // From here on it may ask for everything.
    told(member, |what| what["fields"]["name"] == json!("begun"));
    (attached, host)
}

/// Waits until the instance at a member was told this.
fn told(member: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("{member} is told"), || {
        let told = TOLD.lock().expect("no panic holds it");
        told.iter().find(|(at, what)| at == member && is(what)).map(|(_, what)| what.clone())
    })
}

/// One test, since instances of one process share what is static.
#[test]
fn an_instance_in_an_application_asks_its_host_for_each_service() {
    let cluster = Cluster::up(3, &["--set", "silence_ms=60000"]);
    let _ = cluster.ok(&["plugin", "load", "counter", "-c", "start=10"]);
    load(&cluster, &["--on", "k0,k1", "--mode", "hot", "--instances", "2", "--deadline", "2s"]);
    let (one, k0) = attached(&cluster, "k0");
    let (two, k1) = attached(&cluster, "k1");
    let of = |kind: &'static str| move |what: &Value| what["kind"] == json!(kind);

    // Another plug-in; one that is not there; its own, by a thread of its own.
    assert_eq!(
        k0.call::<Value>("counter", &json!({"add": 3}), PATIENCE).expect("a reply"),
        json!({"value": 13})
    );
    assert_eq!(
        k1.query::<Value>("counter", &json!({"get": true}), PATIENCE).expect("a reply"),
        json!({"value": 13})
    );
    let nobody = k0.call::<Value>("nobody", &json!(1), PATIENCE).expect_err("there is none");
    assert!(nobody.to_string().contains("no plug-in `nobody` is loaded"), "{nobody}");
    assert_eq!(
        k0.call::<Value>("asker", &json!("by a thread"), PATIENCE).expect("a reply"),
        json!(["by a thread"])
    );

    // All instances; one of them; one that is not there.
    let index = k1.broadcast(&json!("to all")).expect("it is ordered");
    assert!(index > 0);
    let notes = k0.call::<Value>("asker", &json!("last"), PATIENCE).expect("a reply");
    assert_eq!(notes, json!(["by a thread", "to all", "last"]));
    k0.send("k1", &json!({"hello": 1})).expect("it waits there");
    assert_eq!(told("k1", of("message"))["fields"], json!({"from": "k0", "body": {"hello": 1}}));
    let missing = k0.send("k2", &json!(1)).expect_err("there is none");
    assert!(missing.to_string().contains("k2 has no instance of `asker` that runs"), "{missing}");

    // A key, and its changes.
    k1.watch("app/").expect("it watches");
    let version = k0.put("app/x", &json!({"n": 1})).expect("it is set");
    assert_eq!(k0.put_if("app/x", &json!(2), 0).expect("it is looked at"), None);
    assert_eq!(told("k1", of("key-changed"))["fields"]["key"], json!("app/x"));
    assert_eq!(k1.get::<Value>("app/x").expect("it is read"), Some((json!({"n": 1}), version)));
    k1.unwatch("app/").expect("it watches no more");
    k0.delete("app/x").expect("it is deleted");

    // A timer, and what a callback may ask by it.
    k0.timer("inside", Duration::from_millis(5), None).expect("it is set");
    let refused = told("k0", |what| what["refused"].is_string());
    assert!(
        refused["refused"].as_str().is_some_and(|text| text.contains("would wait for itself")),
        "{refused}"
    );
    assert_eq!(told("k0", |what| what.get("called").is_some())["called"]["Ok"], json!({"value": 14}));

    // A process on a member without an instance.
    k0.spawn("k2", "p", &Program::new(["sh", "-c", "echo $DVM_MEMBER; exit 3"])).expect("it is asked for");
    assert_eq!(told("k0", of("process-output"))["fields"]["text"], json!("k2\n"));
    assert_eq!(told("k0", of("process-exit"))["fields"]["exit_code"], json!(3));

    // Effects: of the primary alone, which hears what its predecessor left.
    let primary =
        wait_for("a primary", || [&k0, &k1].into_iter().find(|host| host.token().is_some()).cloned());
    assert_eq!(primary.member(), "k0");
    let undone = primary.undone().expect("it is the primary");
    assert!(undone.commands.is_empty(), "nothing came before it was the primary: {undone:?}");
    let refused = k1.done(index).expect_err("it is a standby");
    assert!(refused.to_string().contains("not told to be the primary"), "{refused}");

    // Who gives its instance up asks nothing any more, and its place in the DVM is another's.
    one.detach();
    let over = k0.put("app/y", &json!(1)).expect_err("it is over");
    assert_eq!(over.to_string(), "this instance is over");
    wait_for("the standby acts", || k1.token());
    let undone = k1.undone().expect("it is the primary");
    let commands: Vec<_> = undone.commands.iter().map(|one| one.command.clone()).collect();
    assert_eq!(commands, [json!("by a thread"), json!("to all"), json!("last")]);
    let _ = cluster.ok(&["plugin", "unload", "asker"]);
    two.wait().expect("it was unloaded");
    cluster.verify();
}

/// What an application says that was built before there were services in applications, byte for byte but for the order of
/// fields: it attaches as it always did, and is told nothing that it does not know.
#[test]
fn an_application_that_knows_of_no_services_attaches() {
    let cluster = Cluster::up(1, &[]);
    load(&cluster, &["--payload", "json"]);
    let mut kernel = UnixStream::connect(cluster.place().socket("k0").expect("a path")).expect("a kernel");
    let mut ask = |id: u64, request: Value| {
        write_frame(
            &mut kernel,
            &json!({"id": id, "stamp": null, "timeout_ms": null, "seen": null, "request": request}),
        )
        .expect("sent");
        read_frame::<Value>(&mut kernel).expect("an answer").expect("an answer")
    };
    let hello = ask(1, json!({"hello": {"version": LOCAL_VERSION, "client": "old"}}));
    assert!(hello["answer"]["Ok"]["hello"].is_object(), "{hello}");
    let answer = ask(2, json!({"attach": {"plugin": "asker", "version": 1}}));
    assert_eq!(answer, json!({"id": 2, "answer": {"Ok": "attached"}}));
    // The first that it is told: the words of version 1.
    let mut first = [0; 4 + 10];
    std::io::Read::read_exact(&mut kernel, &mut first).expect("it is told");
    assert_eq!(&first[4..], b"\x81\xa8Validate", "{first:?}");
}
