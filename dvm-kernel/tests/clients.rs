//! What clients of one host may do to a kernel, and what they may not.

mod common;

use common::{Ground, PATIENCE, ask, put, signal, status, ticket, wait_until};
use dvm_plugin_api::client::{Filter, Next};
use dvm_plugin_api::local::{
    Answer, Chaos, Condition, FRAME_MAX, FailureCode, LOCAL_VERSION, Operation, Request, Since, Stamp,
    ToClient, ToKernel, TransactionKind, read_frame, write_frame,
};
use rustix::process::Signal;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn hello() -> ToKernel {
    let request = Request::Hello { version: LOCAL_VERSION, client: "test".into() };
    ToKernel { id: 1, stamp: None, timeout_ms: None, seen: None, request }
}

/// A connection that has said hello, frame by frame.
fn raw(ground: &Ground) -> UnixStream {
    let mut stream = UnixStream::connect(ground.socket("k0")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    write_frame(&mut stream, &hello()).expect("sent");
    let answer: ToClient = read_frame(&mut stream).expect("a frame").expect("an answer");
    assert!(matches!(answer.answer, Ok(Answer::Hello { .. })));
    stream
}

#[test]
fn a_request_with_a_stamp_takes_effect_once() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let stamp = Stamp { session: "s".into(), seq: 1 };
    let put = Operation::Put { key: "app/n".into(), value: json!(1) };
    let request = Request::StateTransaction {
        conditions: vec![("app/n".into(), Condition::Absent)],
        then: vec![put],
        otherwise: vec![],
    };
    let mut twice =
        || client.request(request.clone(), Some(stamp.clone()), Some(PATIENCE)).expect("it is done");
    let (first, second) = (twice(), twice());
    let index = |answer| match answer {
        Answer::Done { receipt: Some(receipt), held: Some(true), .. } => receipt.index,
        other => panic!("{other:?}"),
    };
    assert_eq!(index(first), index(second));
    let failure = ask(&mut client, request).expect_err("the key exists now");
    assert_eq!(failure.code, FailureCode::Rejected);
    assert_eq!(failure.cause.as_deref(), Some("`app/n` has version 2"));
}

#[test]
fn what_does_not_exist_or_is_not_allowed_has_its_code() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let cases = [
        (Request::StateGet { key: "nothing".into(), fresh: true }, FailureCode::NotFound),
        (Request::Configure { changes: vec![("no".into(), "1".into())], member: None }, FailureCode::Usage),
        (Request::Configure { changes: vec![], member: Some("k9".into()) }, FailureCode::NotFound),
        (Request::Remove { member: "k9".into(), force: false }, FailureCode::NotFound),
        (Request::Chaos(Chaos::Heal), FailureCode::Denied),
        (
            Request::Call { plugin: "none".into(), command: json!(1), query: false, fresh: false },
            FailureCode::NotFound,
        ),
        (
            Request::Transact {
                kind: TransactionKind::Unload { plugin: "none".into() },
                require: None,
                dry_run: false,
            },
            FailureCode::NotFound,
        ),
        (
            Request::Transact {
                kind: TransactionKind::Unload { plugin: "none".into() },
                require: Some("most".into()),
                dry_run: false,
            },
            FailureCode::Usage,
        ),
        (Request::PutBlob { hash: "zz".into(), size: 1, offset: 0, data: vec![1] }, FailureCode::Usage),
        (Request::PutBlob { hash: "00".repeat(32), size: 1, offset: 0, data: vec![1] }, FailureCode::Failure),
    ];
    let before = status(&mut client).state_hash;
    for (request, code) in cases {
        // Each with a session of its own: a refusal that was not ordered leaves a gap in its session.
        let mut client = ground.client("k0");
        let failure = ask(&mut client, request.clone()).expect_err("it cannot be");
        assert_eq!(failure.code, code, "{request:?}: {failure:?}");
    }
    let reserved = put(&mut ground.client("k0"), "dvm/x", 1).expect_err("it is reserved");
    assert_eq!(reserved.code, FailureCode::Denied);
    let large = put(&mut ground.client("k0"), "large", "x".repeat(40 << 10)).expect_err("above inline_max");
    assert_eq!(large.code, FailureCode::Usage);
    // Ordered refusals take an index and change nothing else.
    assert_ne!(before, "");
    assert_eq!(status(&mut client).plugins, []);
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes(), body].concat();
    let too_long = [&(FRAME_MAX as u32 + 1).to_le_bytes()[..], b"x"].concat();
    for bytes in [frame(b"not a message"), too_long, frame(&[0xc1; 100]), vec![1, 0]] {
        let mut stream = raw(&ground);
        stream.write_all(&bytes).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        while let Ok(Some(answer)) = read_frame::<ToClient>(&mut stream) {
            assert_eq!(answer.answer.expect_err("it makes no sense").code, FailureCode::Usage);
        }
    }
    // Before hello, and with another version.
    for request in [Request::Status, Request::Hello { version: 99, client: "test".into() }] {
        let mut stream = UnixStream::connect(ground.socket("k0")).expect("it listens");
        write_frame(&mut stream, &ToKernel { request, ..hello() }).expect("sent");
        let answer: ToClient = read_frame(&mut stream).expect("a frame").expect("an answer");
        assert_eq!(answer.answer.expect_err("refused").code, FailureCode::Usage);
        assert_eq!(read_frame::<ToClient>(&mut stream).expect("closed"), None);
    }
    put(&mut ground.client("k0"), "app/x", 1).expect("the kernel lives");
}

#[test]
fn a_subscriber_that_does_not_read_is_told_what_it_missed() {
    let mut ground = Ground::new();
    ground.found("k0", &[("history_entries", "64")]);
    let mut lazy = raw(&ground);
    let request = Request::Subscribe {
        since: Since::Now,
        kinds: vec!["key-changed".into()],
        follow: true,
        key_prefix: None,
    };
    write_frame(&mut lazy, &ToKernel { id: 2, request, ..hello() }).expect("sent");
    let mut client = ground.client("k0");
    // Long names fill the socket and the queue, and then the history goes on without the subscriber.
    for number in 0..3_000 {
        put(&mut client, &format!("{number:0900}"), number).expect("others are served");
    }
    let mut last = None;
    let mut overflows = 0;
    while last != Some(2_999) {
        let answer: ToClient = read_frame(&mut lazy).expect("a frame").expect("it goes on");
        let Ok(Answer::Event(event)) = answer.answer else { panic!("{answer:?}") };
        match event.kind.as_str() {
            "overflow" => {
                assert!(event.more["resume_from"].as_u64() > last);
                overflows += 1;
            }
            _ => last = event.more["key"].as_str().and_then(|key| key.parse::<u64>().ok()),
        }
    }
    assert!(overflows > 0);
}

#[test]
fn events_are_the_same_everywhere_and_resume_where_they_stopped() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let ticket = ticket(&mut client);
    ground.join("k1", &ticket).pid();
    let filter = || Filter { kinds: vec!["key".into(), "member".into()], ..Filter::default() };
    for number in 0..10 {
        put(&mut client, "app/n", number).expect("it is done");
    }
    let all = |member: &str, since: Since| {
        let client = ground.client(member);
        let mut events = client.events(since, filter()).expect("a stream");
        let mut told = Vec::new();
        while let Next::Event(event) = events.next(Some(PATIENCE)).expect("an event") {
            told.push(*event);
        }
        told
    };
    let told = all("k0", Since::All);
    assert_eq!(told.len(), 12);
    wait_until("the other one tells the same", || all("k1", Since::All) == told);
    for at in 0..told.len() {
        assert_eq!(all("k1", Since::Cursor(told[at].cursor.clone())), told[at + 1..]);
    }
    let last = told[11].index.expect("it has one");
    assert_eq!(all("k0", Since::Index(last - 1)), told[11..]);
}

/// A DVM that is founded under the name of one that is gone has indices of its own.
#[test]
fn a_stream_takes_a_new_dvm_of_the_same_name_for_what_it_is() {
    let mut ground = Ground::new();
    let filter = |follow| Filter { follow, ..Filter::default() };
    let old = ground.found("k0", &[]).pid();
    let mut client = ground.client("k0");
    for number in 0..20 {
        put(&mut client, "app/n", number).expect("it is done");
    }
    let any = dvm_plugin_api::client::Client::connect(ground.target()).expect("it answers");
    // One that has been told nothing yet, and one that has.
    let mut streams =
        [Since::Now, Since::All].map(|since| any.events(since, filter(true)).expect("a stream"));
    let told = |events: &mut dvm_plugin_api::client::Events| match events.next(Some(PATIENCE)) {
        Ok(Next::Event(event)) => *event,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&mut streams[1]).kind, "member-joined");
    put(&mut client, "app/last", 1).expect("it is done");
    let Since::Cursor(cursor) = streams[1].position().clone() else { panic!("it has told something") };
    signal(old, Signal::KILL);
    for events in &mut streams {
        assert_eq!(told(events).kind, "detached");
    }
    ground.found("k0", &[]).pid();
    for events in &mut streams {
        let lost = told(events);
        assert_eq!((lost.kind.as_str(), &lost.more["resume_index"]), ("partition-lost", &0.into()));
        let first = told(events);
        assert_eq!((first.kind.as_str(), first.index), ("member-joined", Some(1)), "all of the new one");
    }
    // And whoever kept a cursor.
    let mut kept = ground.client("k0").events(Since::Cursor(cursor), filter(false)).expect("a stream");
    assert_eq!([told(&mut kept).kind, told(&mut kept).kind], ["partition-lost", "member-joined"]);
}

/// A kernel that is stopped holds its connections, and those who have one are told by another.
#[test]
fn clients_of_a_stopped_kernel_go_on_at_another() {
    let mut ground = Ground::new();
    let stopped = ground.found("k0", &[("silence_ms", "1000")]).pid();
    let mut client = ground.client("k0");
    for member in ["k1", "k2"] {
        let ticket = ticket(&mut client);
        ground.join(member, &ticket).pid();
    }
    wait_until("three members", || status(&mut client).view.size == 3);
    let target = || dvm_plugin_api::client::Target { prefer: Some("k0".into()), ..ground.target() };
    let mut client = dvm_plugin_api::client::Client::connect(target()).expect("it answers");
    let filter = Filter { kinds: vec!["member-failed".into()], follow: true, key_prefix: None };
    let mut events = client.events(Since::Now, filter).expect("a stream");
    assert_eq!((client.through(), events.through()), (Some("k0"), Some("k0")));
    signal(stopped, Signal::STOP);
    put(&mut client, "app/n", 1).expect("another one does it");
    let next = events.next(Some(PATIENCE)).expect("an event");
    let Next::Event(event) = next else { panic!("{next:?}") };
    assert_eq!((event.kind.as_str(), &event.more["member"]), ("member-failed", &"k0".into()));
    signal(stopped, Signal::CONT);
}

#[test]
fn all_members_verify_while_they_write() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    for member in ["k1", "k2"] {
        let ticket = ticket(&mut client);
        ground.join(member, &ticket).pid();
    }
    std::thread::scope(|scope| {
        let writing = ["k0", "k1", "k2"].map(|member| {
            let mut client = ground.client(member);
            scope.spawn(move || {
                for number in 0..300 {
                    put(&mut client, &format!("app/{member}"), number).expect("it is done");
                }
            })
        });
        for _ in 0..5 {
            match ask(&mut client, Request::Verify) {
                Ok(Answer::Verify { through_index, members }) => {
                    assert_eq!(members.len(), 3);
                    for member in &members {
                        assert_eq!(member.index, through_index);
                        let hashes = (&member.history_hash, &member.state_hash);
                        assert_eq!(hashes, (&members[0].history_hash, &members[0].state_hash));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        for thread in writing {
            thread.join().expect("it wrote");
        }
    });
}

#[test]
fn a_kernel_that_was_stopped_comes_back_as_a_new_incarnation() {
    let mut ground = Ground::new();
    ground.found("k0", &[("silence_ms", "200")]);
    let mut client = ground.client("k0");
    let mut pids = Vec::new();
    for member in ["k1", "k2"] {
        let ticket = ticket(&mut client);
        pids.push(ground.join(member, &ticket).pid());
    }
    wait_until("three members", || status(&mut client).view.size == 3);
    let id_of = |status: &dvm_plugin_api::local::Status| {
        status.members.iter().find(|member| member.name == "k2").map(|member| member.id.clone())
    };
    let before = id_of(&status(&mut client)).expect("it is a member");
    signal(pids[1], Signal::STOP);
    wait_until("it is out", || status(&mut client).view.size == 2);
    put(&mut client, "app/meanwhile", true).expect("the others go on");
    signal(pids[1], Signal::CONT);
    wait_until("it is back", || id_of(&status(&mut client)).is_some_and(|id| id != before));
    let request = Request::StateGet { key: "app/meanwhile".into(), fresh: true };
    assert!(matches!(ask(&mut ground.client("k2"), request), Ok(Answer::Key(_))));
}

#[test]
fn a_halt_ends_all_and_their_subscribers_know() {
    let mut ground = Ground::new();
    ground.found("k0", &[]);
    let mut client = ground.client("k0");
    let ticket = ticket(&mut client);
    ground.join("k1", &ticket).pid();
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = ["k0", "k1"]
        .map(|member| ground.client(member).events(Since::Now, filter.clone()).expect("a stream"));
    ask(&mut client, Request::Halt).expect("it is ordered");
    for events in &mut events {
        let mut kinds = Vec::new();
        let end = loop {
            match events.next(Some(PATIENCE)).expect("an event") {
                Next::Event(event) => kinds.push(event.kind),
                end => break end,
            }
        };
        assert_eq!(kinds, ["halting"]);
        assert_eq!(end, Next::End(dvm_plugin_api::client::End::Halt));
    }
    wait_until("nothing is left", || common::is_gone(&ground.runtime().join("d")));
}

#[test]
fn a_time_that_is_up_is_told_in_time() {
    let mut ground = Ground::new();
    ground.found("k0", &[("partition", "quorum"), ("silence_ms", "100"), ("chaos", "true")]);
    let mut client = ground.client("k0");
    let ticket = ticket(&mut client);
    ground.join("k1", &ticket).pid();
    wait_until("two members", || status(&mut client).view.size == 2);
    // k1 is rank 1 of two: without k0 it has no quorum.
    let cut = Request::Chaos(Chaos::Cut { to: vec!["k0".into()], from: vec!["k0".into()] });
    let mut alone = ground.client("k1");
    ask(&mut alone, cut).expect("allowed");
    wait_until("it is blocked", || status(&mut alone).view.phase == "blocked");
    let failure = put(&mut alone, "app/x", 1).expect_err("no quorum");
    assert_eq!(failure.code, FailureCode::NoQuorum);
    let read = Request::StateList { prefix: String::new(), after: None };
    assert!(ask(&mut alone, read).is_ok(), "reads go on");
    put(&mut client, "app/x", 2).expect("the other side has one");
    std::thread::sleep(Duration::from_millis(10));
    ask(&mut alone, Request::Chaos(Chaos::Heal)).expect("allowed");
    // On its way back it is no member for a moment, and says so.
    let mut is_back =
        || matches!(ask(&mut alone, Request::Status), Ok(Answer::Status(status)) if status.view.size == 2);
    wait_until("both again", || status(&mut client).view.size == 2 && is_back());
}
