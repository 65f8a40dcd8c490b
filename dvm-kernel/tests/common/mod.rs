//! Kernels of a test: in a directory of their own, ended with it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{
    Answer, BOOTSTRAP_MAGIC, Bootstrap, BootstrapRole, Bootstrapped, Failure, Operation, Request, Status,
};
use dvm_plugin_api::place::RuntimeDir;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A place for DVMs that nobody else sees.
pub(crate) struct Ground {
    pub(crate) directory: tempfile::TempDir,
    pids: Vec<u32>,
}

/// What a kernel said when it was asked to become a member.
pub(crate) struct Began {
    pub(crate) answer: Bootstrapped,
    /// What it wrote to its standard error.
    pub(crate) complaint: String,
}

impl Began {
    /// It is a member: its process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.answer {
            Bootstrapped::Ready { pid, .. } => *pid,
            failed => panic!("not a member: {failed:?} {}", self.complaint),
        }
    }

    /// It is not: stage and reason.
    pub(crate) fn refused(&self) -> (&str, &str) {
        match &self.answer {
            Bootstrapped::Failed { stage, reason, .. } => (stage, reason),
            ready => panic!("it should not be a member: {ready:?}"),
        }
    }
}

impl Ground {
    pub(crate) fn new() -> Self {
        // Short, for paths of sockets are short.
        let directory = tempfile::Builder::new().prefix("dvm-t").tempdir_in("/tmp").expect("a directory");
        Self { directory, pids: Vec::new() }
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn bootstrap(&self, dvm: &str, member: &str, role: BootstrapRole) -> Bootstrap {
        Bootstrap {
            dvm: dvm.into(),
            member: member.into(),
            role,
            tags: BTreeMap::new(),
            runtime_dir: Some(self.runtime()),
            log_dir: Some(self.directory.path().join("log")),
            listen: "127.0.0.1".into(),
            respawn: None,
        }
    }

    /// Founds a DVM `d`.
    pub(crate) fn found(&mut self, member: &str, settings: &[(&str, &str)]) -> Began {
        let settings = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let bootstrap = self.bootstrap("d", member, BootstrapRole::Found { settings });
        self.begin(&bootstrap)
    }

    /// Joins it.
    pub(crate) fn join(&mut self, member: &str, ticket: &str) -> Began {
        let bootstrap = self.bootstrap("d", member, BootstrapRole::Join { ticket: ticket.into() });
        self.begin(&bootstrap)
    }

    pub(crate) fn begin(&mut self, bootstrap: &Bootstrap) -> Began {
        self.begin_with(&serde_json::to_string(bootstrap).expect("plain data"), |_| ())
    }

    /// With any line on its standard input.
    pub(crate) fn begin_with(&mut self, line: &str, prepare: impl FnOnce(&mut Command)) -> Began {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvm-kernel"));
        command.args(["--bootstrap", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("it runs");
        // One that is refused early may not read it.
        let _ = writeln!(child.stdin.take().expect("piped"), "{line}");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let said = stdout.lines().map_while(Result::ok).find_map(|line| {
            Some(serde_json::from_str(line.strip_prefix(BOOTSTRAP_MAGIC)?).expect("a document"))
        });
        // Both pipes end although the kernel lives: it holds none of them.
        let output = child.wait_with_output().expect("it ends");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = said.unwrap_or_else(|| panic!("it said nothing: {complaint}"));
        if let Bootstrapped::Ready { pid, .. } = &answer {
            self.pids.push(*pid);
        }
        Began { answer, complaint }
    }

    pub(crate) fn target(&self) -> Target {
        let runtime = RuntimeDir::create_at(&self.runtime()).expect("it is ours");
        Target::new(runtime.dvm("d").expect("a name"), "test")
    }

    pub(crate) fn client(&self, member: &str) -> Client {
        Client::connect(self.target().only(member)).expect("it answers")
    }

    pub(crate) fn socket(&self, member: &str) -> PathBuf {
        self.runtime().join("d").join(format!("{member}.sock"))
    }

    pub(crate) fn log(&self, member: &str) -> String {
        std::fs::read_to_string(self.directory.path().join("log").join(format!("{member}.log")))
            .unwrap_or_default()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for pid in &self.pids {
            if is_kernel(*pid) {
                signal(*pid, Signal::KILL);
            }
        }
        if std::thread::panicking() {
            for log in std::fs::read_dir(self.directory.path().join("log")).into_iter().flatten().flatten() {
                eprintln!(
                    "{}:\n{}",
                    log.path().display(),
                    std::fs::read_to_string(log.path()).unwrap_or_default()
                );
            }
        }
    }
}

fn is_kernel(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).split('\0').any(|word| word == "--bootstrap"))
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    // One that is gone is gone.
    let _ = kill_process(pid, signal);
}

pub(crate) fn ask(client: &mut Client, request: Request) -> Result<Answer, Failure> {
    client.request(request, None, Some(PATIENCE))
}

pub(crate) fn status(client: &mut Client) -> Status {
    match ask(client, Request::Status) {
        Ok(Answer::Status(status)) => *status,
        other => panic!("no status: {other:?}"),
    }
}

pub(crate) fn ticket(client: &mut Client) -> String {
    match ask(client, Request::Ticket) {
        Ok(Answer::Ticket(ticket)) => ticket,
        other => panic!("no ticket: {other:?}"),
    }
}

pub(crate) fn put(
    client: &mut Client,
    key: &str,
    value: impl Into<serde_json::Value>,
) -> Result<Answer, Failure> {
    let put = Operation::Put { key: key.into(), value: value.into() };
    ask(client, Request::StateTransaction { conditions: vec![], then: vec![put], otherwise: vec![] })
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_gone(path: &Path) -> bool {
    !path.exists()
}
