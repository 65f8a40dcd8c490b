//! What docs/being-told-of-failures.md shows, compiled and run as it stands: each program tells of a killed kernel. And
//! what docs/clients.md shows in Python.

use dvm_tests::book::{block, marked, page};
use dvm_tests::cluster::{Cluster, Follower, built, has, signal, wait_for};
use rustix::process::Signal;
use std::fs;
use std::process::Command;

// The example of docs/being-told-of-failures.md, from here …
use dvm_plugin_api::client::{Events, Families, Filter, Next, Target};
use dvm_plugin_api::local::{Failure, Since};

/// Tells who failed, until the DVM is halted.
fn watch(uri: Option<&str>, tell: impl Fn(String)) -> Result<(), Failure> {
    let target = Target::find(uri, "watch")?;
    let uri = target.uri();
    let mut events = Events::new(target)?;
    let kinds = Families::MEMBER.kinds();
    events.subscribe(Since::Now, Filter { kinds, follow: true, key_prefix: None })?;
    tell(format!("watching {uri}"));

    while let Next::Event(event) = events.next(None)? {
        if event.kind == "member-failed" {
            let field = |name: &str| event.more[name].as_str().unwrap_or_default().to_owned();
            let (member, cause, by) = (field("member"), field("cause"), field("noticed_by"));
            tell(format!("{member} failed: {cause}, noticed by {by}"));
        }
    }
    Ok(())
}
// … to here.

const PAGE: &str = "docs/being-told-of-failures.md";

/// The block of this language below a heading of the page.
fn shown(heading: &str, language: &str) -> String {
    block(&page(PAGE), heading, language)
}

/// Kills a kernel under a program that watches, which must tell of it; then halts the DVM, and it must end.
fn tells(cluster: &Cluster, watcher: Follower) {
    watcher.wait_for("watching");
    cluster.kill("k2");
    watcher.wait_for("k2 failed: link-reset, noticed by k");
    let _ = cluster.ok(&["halt"]);
    assert_eq!(watcher.end().len(), 2);
}

fn python(heading: &str) {
    if !has(&["python3"], "an example in Python") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let script = cluster.home().join("watch.py");
    fs::write(&script, shown(heading, "python")).expect("written");
    tells(&cluster, Follower::by("Python", cluster.python(&script, &[])));
}

#[test]
fn the_example_in_c() {
    if !has(&["cc", "pkg-config"], "the example in C") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    fs::write(cluster.home().join("watch.c"), shown("## In C", "c") + "\n").expect("written");
    let mut compile = cluster.program("sh");
    compile.args(["-ec", &shown("## In C", "sh").replace("cc ", "cc -Wall -Wextra -Wpedantic -Werror ")]);
    compile.env("PKG_CONFIG_PATH", cluster.prefix().join("lib/pkgconfig"));
    let _ = cluster.finish(at_home(&cluster, compile)).exits(0);
    tells(&cluster, Follower::by("C", cluster.program(cluster.home().join("watch"))));
}

#[test]
fn the_example_in_python() {
    python("## In Python");
}

#[test]
fn the_example_in_asyncio() {
    python("### With asyncio");
}

#[test]
fn the_example_in_rust() {
    let mine = marked(include_str!("told.rs"));
    assert_eq!(shown("## In Rust", "rust"), mine, "{PAGE} shows another program than this test runs");
    let cluster = Cluster::up(3, &[]);
    let uri = cluster.place().uri();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || watch(Some(&uri), |line| tell.send(line).expect("heard")).expect("no error"));
    tells(&cluster, Follower::of("Rust", told.into_iter()));
}

/// It is stopped, and told the rest when it runs again.
#[test]
fn the_example_in_a_shell() {
    let cluster = Cluster::up(4, &[]);
    let script = shown("## In a shell", "sh");
    let shell = || {
        let mut shell = cluster.program("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = built("dvm").parent().expect("a directory").display().to_string();
        shell.args(["-ec", &script]).env("PATH", format!("{programs}:{path}"));
        Follower::by("sh", at_home(&cluster, shell))
    };
    cluster.kill("k2");
    let first = shell();
    first.wait_for("k2 failed: link-reset, noticed by k");
    let cursor = || fs::read_to_string(cluster.home().join("last")).ok().filter(|text| text.ends_with('\n'));
    wait_for("it remembers the place", cursor);
    for process in
        cluster.processes().iter().filter(|process| process.arguments.iter().any(|a| a == "--follow"))
    {
        signal(process.pid, Signal::TERM);
    }
    assert_eq!(first.end().len(), 1);
    cluster.kill("k3");
    let again = shell();
    again.wait_for("k3 failed: link-reset, noticed by k");
    let _ = cluster.ok(&["halt"]);
    assert_eq!(again.end().len(), 1, "what was told before is not told again");
}

#[test]
fn the_call_of_the_page_about_clients() {
    if !has(&["python3"], "an example in Python") {
        return;
    }
    let cluster = Cluster::up(1, &[]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let script = cluster.home().join("call.py");
    let text = block(&page("docs/clients.md"), "## In C and Python", "python");
    fs::write(&script, text).expect("written");
    assert_eq!(cluster.finish(cluster.python(&script, &[])).exits(0).stdout, "1\n2 ['app/state']\n");
}

/// A command in the ground's own directory.
fn at_home(cluster: &Cluster, mut command: Command) -> Command {
    command.current_dir(cluster.home());
    command
}
