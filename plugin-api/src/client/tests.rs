//! The client against kernels that are threads of this test and behave as told.

use super::*;
use crate::local::{EventDoc, Receipt, ToClient, ToKernel, read_frame, write_frame};
use crate::place::RuntimeDir;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// What a kernel of this test does with a request.
enum Act {
    Answer(Result<Answer, Failure>),
    Events(Vec<u64>),
    Die,
}

struct Kernel {
    heard: Receiver<ToKernel>,
}

/// A kernel that answers hello by itself, and one connection's other requests in turn; then it is gone.
fn kernel(place: &DvmPlace, member: &'static str, acts: Vec<Act>) -> Kernel {
    let listener = UnixListener::bind(place.socket(member).expect("short")).expect("bound");
    let (tell, heard) = channel();
    thread::spawn(move || serve(&listener, member, acts, &tell));
    Kernel { heard }
}

fn serve(listener: &UnixListener, member: &str, acts: Vec<Act>, tell: &Sender<ToKernel>) {
    let (mut stream, _) = listener.accept().expect("accepted");
    let hello: ToKernel = read_frame(&mut stream).expect("read").expect("hello");
    let welcome = Answer::Hello { version: 1, member: member.into(), dvm: "one".into() };
    write_frame(&mut stream, &ToClient { id: hello.id, answer: Ok(welcome) }).expect("written");
    for act in acts {
        let Ok(Some(asked)) = read_frame::<ToKernel>(&mut stream) else { return };
        let id = asked.id;
        tell.send(asked).expect("heard");
        match act {
            Act::Answer(answer) => write_frame(&mut stream, &ToClient { id, answer }).expect("written"),
            Act::Events(indices) => {
                for index in indices {
                    let answer = Ok(Answer::Event(Box::new(event(index))));
                    write_frame(&mut stream, &ToClient { id, answer }).expect("written");
                }
            }
            Act::Die => return,
        }
    }
}

/// A kernel `k0` that says hello and no more, for as long as what is returned lives.
fn polite(place: &DvmPlace) -> Sender<()> {
    let (tell, held) = channel::<()>();
    let listener = UnixListener::bind(place.socket("k0").expect("short")).expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let hello: ToKernel = read_frame(&mut stream).expect("read").expect("hello");
        let welcome = Answer::Hello { version: 1, member: "k0".into(), dvm: "one".into() };
        write_frame(&mut stream, &ToClient { id: hello.id, answer: Ok(welcome) }).expect("written");
        let _ = held.recv();
    });
    tell
}

fn event(index: u64) -> EventDoc {
    EventDoc {
        schema: 1,
        index: Some(index),
        view: "1.k0.0".into(),
        epoch: 1,
        label: "confirmed".into(),
        lineage: "a".into(),
        cursor: format!("c{index}"),
        time: "2026-01-02T03:04:05.678Z".into(),
        kind: "member-joined".into(),
        more: serde_json::Map::new(),
    }
}

fn place() -> (tempfile::TempDir, DvmPlace) {
    let base = tempfile::tempdir().expect("a directory");
    let runtime = RuntimeDir::create_at(&base.path().join("run")).expect("created");
    let place = runtime.dvm("one").expect("a name");
    place.create().expect("created");
    (base, place)
}

fn done() -> Act {
    Act::Answer(Ok(Answer::Done { receipt: None, held: None, version: None }))
}

fn subscribe(target: Target, since: Since, filter: Filter) -> Events {
    let mut events = Events::new(target).expect("descriptors");
    events.subscribe(since, filter).expect("subscribed");
    events
}

fn indices(events: &mut Events, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| match events.next(Some(Duration::from_secs(5))) {
            Ok(Next::Event(event)) => event.index.expect("an index"),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_change_moves_to_another_kernel_with_the_same_stamp() {
    let (_base, place) = place();
    let k0 = kernel(&place, "k0", vec![Act::Die]);
    let k1 = kernel(&place, "k1", vec![done()]);
    let mut client = Client::connect(Target::new(place, "test")).expect("connected");
    assert_eq!(client.through(), Some("k0"));
    client.request(Request::Promote, None, Some(REACH)).expect("done at k1");
    assert_eq!(client.through(), Some("k1"));
    let stamps = (k0.heard.recv().expect("heard").stamp, k1.heard.recv().expect("heard").stamp);
    assert_eq!(stamps.0, stamps.1);
    assert_eq!(stamps.0.expect("a stamp").seq, 1);
}

#[test]
fn what_was_told_last_goes_with_the_next_request_until_it_is_lost() {
    let (_base, place) = place();
    let receipt = Receipt { cursor: "3-a-1-7".into(), ..Receipt::default() };
    let told = Answer::Done { receipt: Some(receipt), held: None, version: None };
    let lost = Failure::new(FailureCode::PartitionLost, "another branch stands");
    let k0 = kernel(&place, "k0", vec![Act::Answer(Ok(told)), Act::Answer(Err(lost)), done()]);
    let mut client = Client::connect(Target::new(place, "test")).expect("connected");
    let mut ask = || client.request(Request::Promote, None, Some(REACH));
    assert!(ask().is_ok());
    assert_eq!(ask().expect_err("lost").code, FailureCode::PartitionLost);
    assert!(ask().is_ok(), "it is told once");
    let seen: Vec<_> = k0.heard.iter().map(|asked| asked.seen).collect();
    assert_eq!(seen, [None, Some("3-a-1-7".into()), None]);
}

#[test]
fn without_another_kernel_a_change_is_unknown_and_a_read_finds_no_dvm() {
    let (_base, place) = place();
    for (request, code) in [(Request::Halt, FailureCode::Unknown), (Request::Status, FailureCode::NoDvm)] {
        let _k0 = kernel(&place, "k0", vec![Act::Die]);
        let mut client = Client::connect(Target::new(place.clone(), "test")).expect("connected");
        let failure = client.request(request, None, Some(REACH)).expect_err("no kernel is left");
        assert_eq!(failure.code, code, "{failure:?}");
        place.sweep().expect("swept");
    }
}

#[test]
fn what_is_about_one_kernel_does_not_move() {
    let (_base, place) = place();
    let _k0 = kernel(&place, "k0", vec![Act::Die]);
    let k1 = kernel(&place, "k1", vec![done()]);
    let mut client = Client::connect(Target::new(place, "test")).expect("connected");
    let failure = client.request(Request::Chaos(crate::local::Chaos::Heal), None, None).expect_err("lost");
    assert_eq!(failure.code, FailureCode::Unknown);
    assert!(k1.heard.try_recv().is_err());
}

#[test]
fn a_kernel_that_left_the_dvm_is_passed_over() {
    let (_base, place) = place();
    let _k0 = kernel(&place, "k0", vec![Act::Answer(Err(Failure::new(FailureCode::NoDvm, "fenced")))]);
    let _k1 = kernel(&place, "k1", vec![done()]);
    let mut client = Client::connect(Target::new(place, "test")).expect("connected");
    client.request(Request::Promote, None, Some(REACH)).expect("done at k1");
}

#[test]
fn a_kernel_that_is_not_a_member_yet_is_waited_for_where_no_other_will_do() {
    let (_base, place) = place();
    let listener = UnixListener::bind(place.socket("k0").expect("short")).expect("bound");
    let joins = thread::spawn(move || {
        for answer in [Err(Failure::new(FailureCode::NoDvm, "joining")), Ok(())] {
            let (mut stream, _) = listener.accept().expect("accepted");
            let hello: ToKernel = read_frame(&mut stream).expect("read").expect("hello");
            let welcome = Answer::Hello { version: 1, member: "k0".into(), dvm: "one".into() };
            let answer = answer.map(|()| welcome);
            write_frame(&mut stream, &ToClient { id: hello.id, answer }).expect("written");
        }
    });
    let client = Client::connect(Target::new(place.clone(), "test").only("k0")).expect("connected");
    assert_eq!(client.through(), Some("k0"));
    joins.join().expect("it was asked twice");
}

#[test]
fn a_silent_kernel_is_passed_over() {
    let (_base, place) = place();
    let _mute = UnixListener::bind(place.socket("k0").expect("short")).expect("bound");
    let _k1 = kernel(&place, "k1", vec![]);
    let client = Client::connect(Target::new(place, "test")).expect("connected");
    assert_eq!(client.through(), Some("k1"));
}

#[test]
fn time_is_up() {
    let (_base, place) = place();
    let _k0 = polite(&place);
    let mut client = Client::connect(Target::new(place, "test")).expect("connected");
    let failure = client.request(Request::Status, None, Some(Duration::from_millis(1))).expect_err("late");
    assert_eq!(failure.code, FailureCode::Unknown);
}

#[test]
fn events_go_on_at_another_kernel_after_the_last_one_told() {
    let (_base, place) = place();
    let _k0 = kernel(&place, "k0", vec![Act::Events(vec![4, 5])]);
    let k1 = kernel(&place, "k1", vec![Act::Events(vec![5, 6])]);
    let target = Target::new(place, "test");
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = subscribe(target, Since::Index(3), filter);
    assert_eq!(indices(&mut events, 3), [4, 5, 6]);
    match k1.heard.recv().expect("heard").request {
        Request::Subscribe { since, .. } => assert_eq!(since, Since::Cursor("c5".into())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_kernel_a_stream_is_detached_once_and_then_quiet() {
    let (_base, place) = place();
    let _k0 = kernel(&place, "k0", vec![Act::Events(vec![4])]);
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = subscribe(Target::new(place, "test"), Since::All, filter);
    assert_eq!(indices(&mut events, 1), [4]);
    match events.next(None).expect("no error") {
        Next::Event(event) => assert_eq!((event.kind.as_str(), event.index), ("detached", None)),
        other => panic!("{other:?}"),
    }
    assert_eq!(events.next(Some(Duration::from_millis(1))), Ok(Next::Quiet));
}

/// Whether the descriptor says within a second that it is worth to ask.
fn rings(events: &Events) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(events, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).expect("polled") == 1
}

/// What a loop is told that asks once each time its descriptor is readable: kinds, or indices.
fn told(events: &mut Events, count: usize) -> Vec<String> {
    let mut told = Vec::new();
    for _ in 0..1000 {
        if told.len() == count || !rings(events) {
            break;
        }
        match events.try_next().expect("no error") {
            Next::Event(event) => told.push(event.index.map_or(event.kind, |index| index.to_string())),
            Next::Quiet => {}
            Next::End(end) => panic!("{end:?}"),
        }
    }
    told
}

#[test]
fn a_loop_is_woken_for_each_event_and_across_kernels_by_one_descriptor() {
    let (_base, place) = place();
    let filter = Filter { follow: true, ..Filter::default() };
    let _k0 = kernel(&place, "k0", vec![Act::Events(vec![4, 5, 6])]);
    let mut events = subscribe(Target::new(place.clone(), "test"), Since::All, filter);
    // Three that came at once, one each time; then nobody is there.
    assert_eq!(told(&mut events, 4), ["4", "5", "6", "detached"]);
    assert_eq!(events.through(), None);
    place.sweep().expect("swept");
    let _k1 = kernel(&place, "k1", vec![Act::Events(vec![6, 7])]);
    assert_eq!(told(&mut events, 1), ["7"]);
}

#[test]
fn a_quiet_stream_wakes_nobody() {
    let (_base, place) = place();
    let _k0 = polite(&place);
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = subscribe(Target::new(place, "test"), Since::All, filter);
    assert_eq!(events.try_next(), Ok(Next::Quiet));
    assert!(!rings(&events));
}

#[test]
fn a_subscription_that_ended_says_so_again_and_can_be_made_anew() {
    let (_base, place) = place();
    let refused = Failure::new(FailureCode::Usage, "no cursor");
    let _k0 = kernel(&place, "k0", vec![Act::Answer(Err(refused.clone()))]);
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = subscribe(Target::new(place.clone(), "test"), Since::All, filter.clone());
    for _ in 0..2 {
        assert_eq!(events.next(Some(Duration::from_secs(5))), Err(refused.clone()));
    }
    assert!(!rings(&events), "a loop that looks at nothing else sleeps");
    place.sweep().expect("swept");
    let _k1 = kernel(&place, "k1", vec![Act::Events(vec![7])]);
    events.subscribe(Since::Index(6), filter).expect("subscribed");
    assert_eq!(indices(&mut events, 1), [7]);
}

/// The kernel that told dies, the next one accepts and says nothing, the one after it tells the rest.
#[test]
fn a_loop_is_not_held_up_by_a_silent_kernel() {
    let (_base, place) = place();
    let _k0 = kernel(&place, "k0", vec![Act::Events(vec![4])]);
    let filter = Filter { follow: true, ..Filter::default() };
    let mut events = subscribe(Target::new(place.clone(), "test"), Since::All, filter);
    assert_eq!(indices(&mut events, 1), [4]);
    let _mute = UnixListener::bind(place.socket("k1").expect("short")).expect("bound");
    let _k2 = kernel(&place, "k2", vec![Act::Events(vec![5])]);
    let begin = Instant::now();
    let mut asked = 0;
    while begin.elapsed() < HELLO {
        let before = Instant::now();
        match events.try_next().expect("no error") {
            Next::Event(event) => {
                assert_eq!(event.index, Some(5));
                // Once is enough: the next one may answer, and tell, before it is looked at again.
                assert!(asked > 0, "it was looked at while nobody had answered");
                return;
            }
            other => assert_eq!(other, Next::Quiet),
        }
        assert!(before.elapsed() < Duration::from_millis(200), "{:?}", before.elapsed());
        asked += 1;
        assert!(rings(&events), "it is woken when the silent one is given up");
    }
    panic!("k2 was not found");
}

/// Longer than a silent kernel is waited for.
const HELLO: Duration = Duration::from_secs(5);
