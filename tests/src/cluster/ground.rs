//! A runtime and a log directory of a test's own, and the DVMs in it.

use super::outcome::Outcome;
use super::processes::{self, Process, lives, signal};
use super::{PATIENCE, built, wait_for};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::place::RuntimeDir;
use rustix::process::Signal;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a command may take before it counts as hung. Longer than what any command allows itself.
const COMMAND: Duration = Duration::from_secs(60);

/// Directories of a test's own. Dropped, it ends every process that was started in it.
#[derive(Debug)]
pub struct Ground {
    home: TempDir,
    runtime: PathBuf,
    logs: PathBuf,
}

impl Ground {
    /// A new one, below `/tmp`, where paths are short.
    ///
    /// # Panics
    /// When there is no room.
    #[must_use]
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("dvmt").tempdir_in("/tmp").expect("a directory in /tmp");
        let (runtime, logs) = (home.path().join("run"), home.path().join("log"));
        Self { home, runtime, logs }
    }

    /// The same with directories elsewhere.
    #[must_use]
    pub fn with(mut self, runtime: Option<PathBuf>, logs: Option<PathBuf>) -> Self {
        if let Some(runtime) = runtime {
            self.runtime = runtime;
        }
        if let Some(logs) = logs {
            self.logs = logs;
        }
        self
    }

    /// The directory that holds all of it.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The runtime directory.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The directory of the logs.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Any program, with this ground in its environment and nothing else of `DVM_…`.
    #[must_use]
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DVM_")) {
            command.env_remove(name);
        }
        command.env("DVM_RUNTIME_DIR", &self.runtime).env("DVM_LOG_DIR", &self.logs);
        command.stdin(Stdio::null());
        command
    }

    /// `dvm` with arguments.
    #[must_use]
    pub fn dvm(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(built("dvm"));
        command.args(arguments);
        command
    }

    /// Runs `dvm` with arguments.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        run(self.dvm(arguments))
    }

    /// Runs `dvm --json` with arguments.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Outcome {
        run(self.dvm(&[&["--json"], arguments].concat()))
    }

    /// Runs a command that [`Ground::program`] or [`Ground::dvm`] began.
    #[must_use]
    pub fn finish(&self, command: Command) -> Outcome {
        run(command)
    }

    /// Starts `dvm` with arguments, its output in pipes. The caller waits for it or kills it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.dvm(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("dvm starts")
    }

    /// All processes of this ground.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes::of(&self.runtime)
    }

    /// Waits until no process of this ground is left.
    ///
    /// # Panics
    /// When one stays.
    pub fn assert_empty(&self) {
        let left = || self.processes();
        wait_for(&format!("no process left of {:?}", left()), || left().is_empty().then_some(()));
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.logs);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.processes();
            for process in &left {
                // It may have ended since.
                if lives(process.pid) {
                    signal(process.pid, Signal::KILL);
                }
            }
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A DVM of kernels on this machine in a ground of its own.
///
/// Dropped by a test that passed, it is halted by force, and no process may be left then.
#[derive(Debug)]
pub struct Cluster {
    ground: Ground,
    /// Its name.
    name: String,
}

impl Deref for Cluster {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Cluster {
    /// A new one with `kernels` members; `options` are those of `dvm up`.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn up(kernels: usize, options: &[&str]) -> Self {
        Self::up_in(Ground::new(), kernels, options)
    }

    /// The same in a given ground.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn up_in(ground: Ground, kernels: usize, options: &[&str]) -> Self {
        let count = kernels.to_string();
        let up = ground.json(&[&["up", "--local", &count], options].concat()).exits(0);
        let report = up.json();
        assert_eq!(report["members"].as_array().map(Vec::len), Some(kernels), "{up}");
        let name = report["dvm"].as_str().expect("a name").to_owned();
        Self { ground, name }
    }

    /// Runs `dvm --json` with arguments, which must succeed; its document.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, arguments: &[&str]) -> Value {
        self.json(arguments).exits(0).json()
    }

    /// `status`, told by this member, or by any.
    ///
    /// # Panics
    /// When nobody answers.
    #[must_use]
    pub fn status(&self, through: Option<&str>) -> Value {
        match through {
            Some(member) => self.ok(&["--member", member, "status"]),
            None => self.ok(&["status"]),
        }
    }

    /// Names of the members, by rank.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        names(&self.ok(&["members"])["members"])
    }

    /// The process of a member's kernel.
    ///
    /// # Panics
    /// When there is no such member.
    #[must_use]
    pub fn pid(&self, member: &str) -> u32 {
        let place = self.place();
        place
            .pid(member)
            .unwrap_or_else(|| panic!("no process file of {member} in {}", place.directory().display()))
    }

    /// Its sockets and process files.
    ///
    /// # Panics
    /// When the runtime directory is gone.
    #[must_use]
    pub fn place(&self) -> dvm_plugin_api::place::DvmPlace {
        let runtime = RuntimeDir::create_at(self.ground.runtime()).expect("the runtime directory");
        runtime.dvm(&self.name).expect("the name of a DVM")
    }

    /// The URI of a member's socket: its kernel is the one that is talked to first.
    ///
    /// # Panics
    /// When the path is too long.
    #[must_use]
    pub fn uri(&self, member: &str) -> String {
        format!("unix:{}", self.place().socket(member).expect("a path").display())
    }

    /// Kills a member's kernel, and waits until its process is gone.
    ///
    /// # Panics
    /// When it is gone before, or does not go.
    pub fn kill(&self, member: &str) {
        let pid = self.pid(member);
        signal(pid, Signal::KILL);
        wait_for("the killed kernel ends", || (!lives(pid)).then_some(()));
    }

    /// A client that talks to this member's kernel and to no other.
    ///
    /// # Panics
    /// When the kernel does not answer.
    #[must_use]
    pub fn client(&self, member: &str) -> Client {
        let target = Target::new(self.place(), "test").only(member);
        Client::connect(target).unwrap_or_else(|failure| panic!("no client of {member}: {failure:?}"))
    }

    /// Waits until all of `members`, asked one by one, say that the view is normal and made of them.
    ///
    /// # Panics
    /// When they do not.
    pub fn settle(&self, members: &[impl AsRef<str>]) {
        let mut wanted: Vec<&str> = members.iter().map(AsRef::as_ref).collect();
        wanted.sort_unstable();
        let in_view = |member: &str| {
            let answer = self.json(&["--member", member, "--timeout", "2s", "status"]);
            let status = (answer.exit == 0).then(|| answer.json())?;
            let mut found = names(&status["members"]);
            found.sort_unstable();
            (found == wanted && status["view"]["phase"] == "normal").then_some(())
        };
        for member in wanted.clone() {
            wait_for(&format!("{member} sees {wanted:?}"), || in_view(member));
        }
    }

    /// Asserts that all members hold one history.
    ///
    /// # Panics
    /// When they do not agree, or not all are asked.
    pub fn verify(&self) {
        let verify = self.ok(&["history", "verify"]);
        assert_eq!(verify["agree"], true, "{verify}");
        assert_eq!(verify["members"].as_array().map(Vec::len), Some(self.members().len()), "{verify}");
    }

    /// The events that every one of `members` tells from the first that `since` asks for: they must be the same, and are
    /// returned.
    ///
    /// # Panics
    /// When two tell different ones.
    pub fn equal_events(&self, members: &[impl AsRef<str>], since: &str) -> Vec<Value> {
        let index = self.ok(&["state", "put", "events/end", "1"])["index"].to_string();
        let told = |member: &str| {
            let _ = self.ok(&["--member", member, "wait", &format!("index={index}"), "--timeout", "30s"]);
            self.run(&["--json-lines", "--member", member, "events", "--since", since]).exits(0).lines()
        };
        let first = told(members[0].as_ref());
        for member in &members[1..] {
            assert_eq!(told(member.as_ref()), first, "{} and {}", member.as_ref(), members[0].as_ref());
        }
        let indices: Vec<_> = first.iter().filter_map(|event| event["index"].as_u64()).collect();
        assert!(indices.windows(2).all(|pair| pair[0] < pair[1]), "not ascending: {indices:?}");
        first
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let halt = self.ground.run(&["--dvm", &self.name, "halt", "--force"]);
        // 3: the test itself has ended it.
        assert!(matches!(halt.exit, 0 | 3), "{halt}");
        self.ground.assert_empty();
    }
}

/// Runs a command to its end; its output goes to files, so that nobody who inherits them can hold it up.
///
/// # Panics
/// When it hangs.
#[must_use]
pub(super) fn run(mut command: Command) -> Outcome {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line = format!("{line} {}", argument.to_string_lossy());
    }
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut stdout, mut stderr) = (file(), file());
    let clone = |file: &File| file.try_clone().expect("a descriptor");
    command.stdout(clone(&stdout)).stderr(clone(&stderr));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let deadline = Instant::now() + COMMAND;
    let text = |file: &mut File| {
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).expect("a readable file");
        String::from_utf8_lossy(&text).into_owned()
    };
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`{line}` hangs\n{}\n{}", text(&mut stdout), text(&mut stderr));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let exit = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Outcome { line, exit, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

fn names(members: &Value) -> Vec<String> {
    let members = members.as_array().expect("a list of members");
    members.iter().map(|member| member["name"].as_str().expect("a name").to_owned()).collect()
}

/// The ends of the kernels' logs, for whoever looks into a failure.
fn print_logs(directory: &Path) {
    const LINES: usize = 60;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- {}", entry.path().display());
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            eprintln!("{line}");
        }
    }
}
