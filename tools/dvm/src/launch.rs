//! Starts kernels on this host: the same bootstrap that reaches other hosts, without a shell in between.
//!
//! A kernel reads one line on its standard input and answers with one on its standard output. It holds none of the
//! caller's descriptors, so that `x=$(dvm up --json)` returns.

use crate::exit::failed;
use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{
    Answer, BOOTSTRAP_MAGIC, Bootstrap, BootstrapRole, Bootstrapped, Failure, FailureCode, Request,
};
use dvm_plugin_api::place::{DvmPlace, RuntimeDir};
use rustix::io::{Errno, FdFlags};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Kernels started at once.
const AT_ONCE: usize = 8;

/// Bytes of a failed kernel's standard error that are kept.
const COMPLAINT_MAX: u64 = 16 << 10;

/// Where kernels of a DVM listen for each other on one host.
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// A kernel's arguments: all else comes on its standard input.
const BOOTSTRAP: [&str; 2] = ["--bootstrap", "-"];

/// What the kernels of one command have in common.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    /// The kernel's program.
    pub(crate) kernel: PathBuf,
    /// The DVM's place.
    pub(crate) place: DvmPlace,
    /// The directory of its logs.
    pub(crate) logs: PathBuf,
    /// Address that they listen at.
    pub(crate) listen: String,
    /// Tags of the members.
    pub(crate) tags: BTreeMap<String, String>,
    /// At most so many restarts in so many milliseconds.
    pub(crate) respawn: Option<(u32, u64)>,
    /// How long a kernel may take to become a member.
    pub(crate) timeout: Option<Duration>,
}

/// A kernel that became a member.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) member: String,
    pub(crate) id: String,
    pub(crate) pid: u32,
}

/// A kernel that did not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Refused {
    #[serde(skip)]
    pub(crate) member: String,
    pub(crate) host: String,
    pub(crate) stage: String,
    pub(crate) reason: String,
    pub(crate) hint: String,
}

impl Refused {
    /// As the failure of a command that depended on it.
    pub(crate) fn failure(&self) -> Failure {
        let message = format!("kernel {} did not become a member ({})", self.member, self.stage);
        let failure = Failure::new(FailureCode::Failure, message).cause(self.reason.clone());
        if self.hint.is_empty() { failure } else { failure.hint(self.hint.clone()) }
    }
}

impl Launcher {
    /// Starts a kernel and waits until it is a member.
    pub(crate) fn start(&self, member: &str, role: BootstrapRole) -> Result<Started, Refused> {
        let refuse = |stage: &str, reason: String, hint: &str| Refused {
            member: member.into(),
            host: host_name(),
            stage: stage.into(),
            reason,
            hint: hint.into(),
        };
        // Checked here because the kernel would only fail later, and less clearly.
        self.place.socket(member).map_err(|error| {
            refuse("start", error.to_string(), "set DVM_RUNTIME_DIR to a shorter directory")
        })?;
        let mut child = self.spawn().map_err(|error| {
            let reason = format!("cannot run {}: {error}", self.kernel.display());
            let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files: ulimit -n 1024",
                _ => "give the kernel's program with --kernel or DVM_KERNEL",
            };
            refuse("start", reason, hint)
        })?;
        let bootstrap = serde_json::to_string(&self.bootstrap(member, role)).expect("plain data");
        // A kernel that does not read says why on its standard error.
        let mut stdin = child.stdin.take().expect("piped");
        let _ = writeln!(stdin, "{bootstrap}");
        drop(stdin);
        let mut stderr = child.stderr.take().expect("piped");
        let complaint = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.by_ref().take(COMPLAINT_MAX).read_to_string(&mut text);
            text
        });
        match answer(&mut child, self.timeout) {
            Ok(Bootstrapped::Ready { member, id, pid, .. }) => {
                // It is nobody's child for long; until this process ends it is waited for here.
                thread::spawn(move || child.wait());
                Ok(Started { member, id, pid })
            }
            Ok(Bootstrapped::Failed { stage, reason, hint }) => {
                let _ = child.wait();
                Err(refuse(&stage, reason, &hint))
            }
            Err(Silence::TimedOut) => {
                let _ = child.kill();
                let _ = child.wait();
                let reason =
                    format!("not a member after {:.1} s", self.timeout.unwrap_or_default().as_secs_f64());
                Err(refuse("join", reason, "give it longer with --timeout"))
            }
            Err(Silence::Ended) => {
                let _ = child.kill();
                let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                let complaint = complaint.join().unwrap_or_default();
                let complaint = complaint.trim();
                let reason = if complaint.is_empty() { status } else { format!("{complaint} ({status})") };
                let log = dvm_plugin_api::place::log_file(&self.logs, member);
                Err(refuse("start", reason, &format!("see {}", log.display())))
            }
        }
    }

    /// Starts kernels that join, several at once; each gets a ticket of its own. `each` is called after each one.
    pub(crate) fn join(
        &self,
        client: Client,
        names: &[String],
        each: &(dyn Fn() + Sync),
    ) -> (Vec<Started>, Vec<Refused>) {
        let client = Mutex::new(client);
        let next = AtomicUsize::new(0);
        let results = Mutex::new((Vec::new(), Vec::new()));
        thread::scope(|scope| {
            for _ in 0..names.len().min(AT_ONCE) {
                scope.spawn(|| {
                    while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.join_one(&client, name);
                        let mut results = results.lock().expect("no thread panics");
                        match result {
                            Ok(started) => results.0.push(started),
                            Err(refused) => results.1.push(refused),
                        }
                        drop(results);
                        each();
                    }
                });
            }
        });
        results.into_inner().expect("no thread panics")
    }

    fn join_one(&self, client: &Mutex<Client>, name: &str) -> Result<Started, Refused> {
        let ticket = client.lock().expect("no thread panics").request(Request::Ticket, None, self.timeout);
        let refuse = |reason: String, hint: String| Refused {
            member: name.into(),
            host: host_name(),
            stage: "authenticate".into(),
            reason,
            hint,
        };
        match ticket {
            Ok(Answer::Ticket(ticket)) => self.start(name, BootstrapRole::Join { ticket }),
            Ok(other) => Err(refuse(crate::context::unexpected(&other).message, String::new())),
            Err(failure) => {
                Err(refuse(format!("no join ticket: {}", failure.message), failure.hint.unwrap_or_default()))
            }
        }
    }

    /// The command line of every kernel, as people read it.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.kernel.display(), BOOTSTRAP.join(" "))
    }

    /// What a kernel reads on its standard input.
    pub(crate) fn bootstrap(&self, member: &str, role: BootstrapRole) -> Bootstrap {
        Bootstrap {
            dvm: self.place.name(),
            member: member.into(),
            role,
            tags: self.tags.clone(),
            runtime_dir: self.place.directory().parent().map(Path::to_path_buf),
            log_dir: Some(self.logs.clone()),
            listen: self.listen.clone(),
            respawn: self.respawn,
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.kernel);
        command.args(BOOTSTRAP);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let inherited = inherited_descriptors();
        // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe, on memory made before.
        unsafe {
            command.pre_exec(move || {
                for &descriptor in &inherited {
                    // One that was closed meanwhile is what we want.
                    let _ = rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(descriptor), FdFlags::CLOEXEC);
                }
                Ok(())
            });
        }
        command.spawn()
    }
}

/// Why a kernel said nothing.
enum Silence {
    Ended,
    TimedOut,
}

/// The kernel's line; what a noisy loader prints before it is passed over.
fn answer(child: &mut Child, timeout: Option<Duration>) -> Result<Bootstrapped, Silence> {
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (tell, told) = channel();
    thread::spawn(move || {
        let answer = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| serde_json::from_str(line.strip_prefix(BOOTSTRAP_MAGIC)?).ok());
        // Nobody listens any more after a timeout.
        let _ = tell.send(answer);
    });
    let answer = match timeout {
        Some(timeout) => told.recv_timeout(timeout),
        None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    match answer {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) | Err(RecvTimeoutError::Disconnected) => Err(Silence::Ended),
        Err(RecvTimeoutError::Timeout) => Err(Silence::TimedOut),
    }
}

/// Descriptors beyond the standard three that this process got from its own caller or opened.
fn inherited_descriptors() -> Vec<RawFd> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor: &RawFd| *descriptor > 2)
        .collect()
}

/// The kernel's program: as given, else beside this program, else in `PATH`.
pub(crate) fn find_kernel(given: Option<&Path>) -> Result<PathBuf, Failure> {
    const NAME: &str = "dvm-kernel";
    if let Some(given) = given {
        return fs::canonicalize(given).map_err(|error| {
            failed(format!("no kernel at {}: {error}", given.display()))
                .hint("--kernel and DVM_KERNEL take the path of `dvm-kernel`")
        });
    }
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(NAME));
    let in_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|directory| directory.join(NAME)).collect::<Vec<_>>())
        .unwrap_or_default();
    beside.into_iter().chain(in_path).find(|path| path.is_file()).ok_or_else(|| {
        failed("`dvm-kernel` is neither beside `dvm` nor in PATH")
            .hint("give its path with --kernel or DVM_KERNEL")
    })
}

/// This machine's name.
pub(crate) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".into(), |name| name.trim().into())
}

/// The runtime directory that a DVM's place is in.
pub(crate) fn runtime_of(place: &DvmPlace) -> Result<RuntimeDir, Failure> {
    let parent = place.directory().parent().unwrap_or(Path::new("/"));
    Ok(RuntimeDir::create_at(parent)?)
}
