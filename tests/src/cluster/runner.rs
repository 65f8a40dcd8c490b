//! A program whose process is the place of a plug-in's instance.

use super::{Cluster, signal, wait_for};
use rustix::process::Signal;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A program that runs an instance, and what it has printed.
#[derive(Debug)]
pub struct Runner {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Runner {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let (stdin, told) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let push = lines.clone();
        let reader = std::thread::spawn(move || {
            let told = BufReader::new(told).lines().map_while(Result::ok);
            told.for_each(|line| push.lock().expect("no panic holds it").push(line));
        });
        Self { child, stdin, lines, reader }
    }

    /// Starts it, and waits until it runs the instance of a plug-in on a member.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn attached(cluster: &Cluster, command: Command, member: &str, plugin: &str) -> Self {
        let runner = Self::start(command);
        wait_for(&format!("the instance on {member} runs"), || {
            let shown = cluster.ok(&["plugin", "show", plugin]);
            let instances = shown["instances"].as_array()?.clone();
            let mine = instances.into_iter().find(|instance| instance["member"] == json!(member))?;
            (mine["state"] == json!("running") && mine["pid"] == json!(runner.child.id())).then_some(())
        });
        runner
    }

    /// The book's tally, in whatever language, on three members with a step of 2: `start` starts one for a member. A member
    /// is lost, and then the program that is the primary; the one that took over is returned.
    ///
    /// # Panics
    /// When it does not go as the book says.
    #[must_use]
    pub fn tally(cluster: &Cluster, start: impl Fn(&str) -> Self) -> Self {
        let add = |count: i64| {
            cluster.ok(&["call", "tally", &json!({"add": count}).to_string()])["reply"]["value"].clone()
        };
        let first = start("k0");
        first.told("primary at 0");
        assert_eq!(add(3), json!(6));
        // Whichever joined first has the other instance.
        let shown = cluster.ok(&["plugin", "show", "tally"]);
        let instances = shown["instances"].as_array().expect("instances");
        let is_at = |member: &str| instances.iter().any(|instance| instance["member"] == json!(member));
        let (standby, other) = if is_at("k1") { ("k1", "k2") } else { ("k2", "k1") };
        let second = start(standby);
        second.told("standby at 6");
        cluster.kill(other);
        let failed = format!("{other} failed");
        first.told(&failed);
        second.told(&failed);
        assert_eq!(add(1), json!(8));
        first.kill();
        second.told("primary at 8");
        assert_eq!(add(1), json!(10));
        second
    }

    /// Waits until it has printed a line that has this.
    ///
    /// # Panics
    /// When it does not, or says that something is wrong.
    pub fn told(&self, what: &str) {
        wait_for(&format!("{what} is printed"), || {
            let lines = self.lines.lock().expect("no panic holds it").clone();
            assert!(!lines.iter().any(|line| line.starts_with("wrong: ")), "{lines:?}");
            lines.iter().any(|line| line.contains(what)).then_some(())
        });
    }

    /// A line for its standard input.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("piped"), "{line}").expect("it reads");
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Panics
    /// Never: it is ours.
    pub fn kill(mut self) {
        signal(self.child.id(), Signal::KILL);
        self.child.wait().expect("it is gone");
    }

    /// Waits until it has ended by itself; all that it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ends(self) -> Vec<String> {
        let (status, lines) = self.left();
        assert!(status.success(), "{status}: {lines:?}");
        lines
    }

    /// Sends it a signal, which is its end; all that it printed.
    ///
    /// # Panics
    /// When it ends as if nothing had been.
    #[must_use]
    pub fn ends_by(self, by: Signal) -> Vec<String> {
        signal(self.child.id(), by);
        let (status, lines) = self.left();
        assert!(!status.success(), "{lines:?}");
        lines
    }

    fn left(mut self) -> (std::process::ExitStatus, Vec<String>) {
        drop(self.stdin.take());
        let status = self.child.wait().expect("it ends");
        self.reader.join().expect("it reads to the end");
        let lines = self.lines.lock().expect("no panic holds it").clone();
        (status, lines)
    }
}
