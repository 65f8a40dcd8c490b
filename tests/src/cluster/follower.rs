//! Someone who follows events and tells them line by line: a program, or a thread of the test.

use super::wait_for;
use dvm_plugin_api::client::{End, Events, Families, Filter, Next, Target};
use dvm_plugin_api::local::Since;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A follower, and the lines told so far.
#[derive(Debug)]
pub struct Follower {
    name: &'static str,
    lines: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
    child: Option<Child>,
}

impl Follower {
    /// A program that prints.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn by(name: &'static str, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let told = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        Self { child: Some(child), ..Self::of(name, told) }
    }

    /// Whatever gives lines.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn of(name: &'static str, told: impl Iterator<Item = String> + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let push = Arc::clone(&lines);
        let thread = std::thread::spawn(move || told.for_each(|line| push.lock().expect("alone").push(line)));
        Self { name, lines, thread, child: None }
    }

    /// A thread of this test that is told everything, from the first event that is kept to the end of the DVM.
    ///
    /// # Panics
    /// When it cannot subscribe.
    #[must_use]
    pub fn in_rust(target: Target) -> Self {
        let mut events = Events::new(target).expect("descriptors");
        let filter = Filter { kinds: Families::ALL.kinds(), follow: true, key_prefix: None };
        events.subscribe(Since::All, filter).expect("subscribed");
        let told = std::iter::from_fn(move || match events.next(None).expect("no error") {
            Next::Event(event) => Some(serde_json::to_string(&event).expect("plain data")),
            Next::End(End::Halt) => None,
            other => panic!("{other:?}"),
        });
        Self::of("Rust", told)
    }

    /// How it is called in a failure.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it was told so far.
    ///
    /// # Panics
    /// When its thread did.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("alone").clone()
    }

    /// Waits until it was told a line that has this.
    ///
    /// # Panics
    /// When it is not.
    pub fn wait_for(&self, what: &str) {
        let told = || self.lines().iter().any(|line| line.contains(what)).then_some(());
        wait_for(&format!("{} is told of {what}", self.name), told);
    }

    /// Waits for its end; all that it was told.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn end(mut self) -> Vec<String> {
        self.thread.join().expect("it reads to the end");
        if let Some(child) = &mut self.child {
            assert!(child.wait().expect("it ends").success(), "{}", self.name);
        }
        Arc::into_inner(self.lines).and_then(|lines| lines.into_inner().ok()).expect("alone")
    }
}
