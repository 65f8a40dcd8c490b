//! `up --respawn N/WINDOW`: a process of its own that starts dead kernels of this host again, under their names.
//!
//! It is an application like any other: it learns of a death as an event, asks a live kernel for a ticket, and starts a
//! kernel that joins. It holds no key, so where no kernel of the DVM lives on this host it can do nothing and says so.
//! A kernel that only paused comes back by itself; the guardian waits until the process is really gone.

use crate::context::status;
use crate::exit::{self, failed};
use crate::launch::Launcher;
use crate::processes::is_kernel;
use clap::Args;
use dvm_plugin_api::client::{Client, Filter, Next, Target};
use dvm_plugin_api::local::{EventDoc, Failure, Since};
use dvm_plugin_api::place::DvmPlace;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a dead member's process may take to be gone from the process table.
const DYING: Duration = Duration::from_secs(2);

/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(10);

/// How long without a kernel of this host until the DVM counts as lost here.
const LOST: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct GuardianArgs {
    /// The DVM's directory
    #[arg(long)]
    place: PathBuf,
    /// The kernel's program
    #[arg(long)]
    program: PathBuf,
    /// The directory of the logs
    #[arg(long)]
    logs: PathBuf,
    /// At most so many restarts of one member in a window
    #[arg(long, value_parser = crate::parse::window)]
    respawn: (u32, u64),
}

/// Starts the guardian of a DVM on this host; it ends with the DVM.
pub(crate) fn start(launcher: &Launcher) -> Result<(), Failure> {
    let Some((times, window_ms)) = launcher.respawn else { return Ok(()) };
    let cannot = |error: std::io::Error| failed(format!("cannot start the process that respawns: {error}"));
    let log =
        File::options().append(true).create(true).open(launcher.logs.join("guardian.log")).map_err(cannot)?;
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command.arg("guardian").arg("--place").arg(launcher.place.directory());
    command.arg("--program").arg(&launcher.kernel).arg("--logs").arg(&launcher.logs);
    command.arg("--respawn").arg(format!("{times}/{window_ms}ms"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    // SAFETY: `setsid` is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().map(drop).map_err(cannot)
}

/// The guardian's own process.
pub(crate) fn run(args: GuardianArgs) -> exit::Result {
    let place = DvmPlace::at(&args.place)?.0;
    let client = Client::connect(Target::new(place.clone(), "dvm guardian"))?;
    let kinds = vec!["member-failed".to_owned(), "halting".to_owned()];
    let filter = Filter { kinds, follow: true, ..Filter::default() };
    // It starts with its DVM, so this is from the first event on: who dies before it listens is brought back, too.
    let mut events = client.events(Since::All, filter)?;
    drop(client);
    let launcher = Launcher {
        kernel: args.program,
        place: place.clone(),
        logs: args.logs,
        tags: Default::default(),
        respawn: None,
        timeout: Some(Duration::from_secs(30)),
    };
    let mut budget =
        Budget { times: args.respawn.0 as usize, window_ms: args.respawn.1, used: VecDeque::new() };
    let mut lost_since = None;
    loop {
        match events.next(Some(Duration::from_secs(1)))? {
            Next::Event(event) if event.kind == "member-failed" => {
                lost_since = None;
                respawn(&launcher, &mut budget, &event);
            }
            Next::Event(event) if event.kind == "detached" => {
                eprintln!("no kernel of this host lives: without one there is nobody to join through");
                lost_since = Some(Instant::now());
            }
            Next::Event(_) => lost_since = None,
            Next::End(_) => return Ok(exit::OK),
            // Ended by force, which leaves nobody to tell it.
            Next::Quiet if lost_since.is_some() && !place.directory().exists() => return Ok(exit::OK),
            Next::Quiet if lost_since.is_some_and(|since: Instant| since.elapsed() > LOST) => {
                return Ok(exit::NO_DVM);
            }
            Next::Quiet => {}
        }
    }
}

/// Starts a dead member of this host again.
fn respawn(launcher: &Launcher, budget: &mut Budget, event: &EventDoc) {
    let Some(member) = event.more.get("member").and_then(|name| name.as_str()) else { return };
    let Some(pid) = launcher.place.pid(member) else {
        // It was on another host, where another guardian is.
        return;
    };
    let until = Instant::now() + DYING;
    while is_kernel(pid) {
        if Instant::now() >= until {
            eprintln!("{member} was left out and lives (process {pid}): it comes back by itself");
            return;
        }
        std::thread::sleep(LOOK);
    }
    if !budget.take(member) {
        eprintln!("{member} died too often; start it again with `dvm add`");
        return;
    }
    match bring_back(launcher, member) {
        Ok(()) => eprintln!("{member} was started again"),
        Err(failure) => eprintln!("{member} was not started again: {failure}"),
    }
}

fn bring_back(launcher: &Launcher, member: &str) -> Result<(), Failure> {
    let mut client = Client::connect(Target::new(launcher.place.clone(), "dvm guardian"))?;
    let now = status(&mut client, launcher.timeout)?;
    if now.members.iter().any(|present| present.name == member) {
        // Somebody else was faster.
        return Ok(());
    }
    clear(launcher.place.directory(), member);
    let (_, refused) = launcher.join(client, &[member.to_owned()], &|| {});
    refused.first().map_or(Ok(()), |refused| Err(refused.failure()))
}

/// Removes what a dead kernel left, so that its successor finds its name free.
fn clear(directory: &Path, member: &str) {
    for suffix in ["sock", "pid"] {
        // One that is gone is what we want.
        let _ = std::fs::remove_file(directory.join(format!("{member}.{suffix}")));
    }
}

/// Restarts of each member, at most so many in a window.
struct Budget {
    times: usize,
    window_ms: u64,
    used: VecDeque<(String, Instant)>,
}

impl Budget {
    fn take(&mut self, member: &str) -> bool {
        let window = Duration::from_millis(self.window_ms);
        self.used.retain(|(_, at)| at.elapsed() < window);
        if self.used.iter().filter(|(name, _)| name == member).count() >= self.times {
            return false;
        }
        self.used.push_back((member.to_owned(), Instant::now()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_started_again_only_so_often() {
        let mut budget = Budget { times: 2, window_ms: 60_000, used: VecDeque::new() };
        assert!(budget.take("k1") && budget.take("k1") && budget.take("k2"));
        assert!(!budget.take("k1"));
        budget.window_ms = 0;
        assert!(budget.take("k1"), "the window has passed");
    }
}
