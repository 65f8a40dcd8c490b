//! `up --respawn N/WINDOW`: a process of its own that starts dead kernels of this host again, under their names.
//!
//! It is an application like any other: it learns of a death as an event, asks a live kernel for a ticket, and starts a
//! kernel that joins. It holds no key. Where no kernel of the DVM is left on this host there is nobody to ask, so while one
//! lives it keeps spare tickets of members on other hosts; without those it can do nothing and says so. A kernel that
//! only paused comes back by itself; the guardian waits until the process is really gone.
//!
//! There is one for a DVM and host: whoever launches kernels starts it, and so does each kernel that is to be started
//! again; the first has the lock on its log, and the others end at once.

use crate::context::{status, unexpected};
use crate::exit::{self, failed};
use crate::launch::Launcher;
use crate::parse;
use crate::processes::is_kernel;
use clap::Args;
use dvm_plugin_api::client::{Client, Filter, Next, Target};
use dvm_plugin_api::local::{Answer, BootstrapRole, EventDoc, Failure, FailureCode, Request, Since};
use dvm_plugin_api::place::DvmPlace;
use rustix::fs::{FlockOperation, flock};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a dead member's process may take to be gone from the process table.
const DYING: Duration = Duration::from_secs(2);

/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(10);

/// How long without a kernel of this host until the DVM counts as lost here.
const LOST: Duration = Duration::from_secs(30);

/// Pause before the last kernel of this host is started again: the others have left it out by then, and who ended it by force
/// has taken its files away.
const SETTLE: Duration = Duration::from_millis(300);

/// Members on other hosts that spare tickets are kept of, and how many of each: a ticket works once.
const SPARE_OF: usize = 2;
const SPARE_EACH: usize = 4;

/// Age of a spare ticket at which another takes its place: well before it ends.
const SPARE_AGE: Duration = Duration::from_secs(120);

/// Pause between two rounds of tickets, however often members come and go.
const SPARE_PAUSE: Duration = Duration::from_secs(1);

/// How long the kernel of this host may take to get one.
const ASK: Duration = Duration::from_secs(2);

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
    /// Address that kernels listen at
    #[arg(long)]
    listen: String,
    /// A tag of the kernels; repeat
    #[arg(long = "tag", value_parser = parse::pair)]
    tags: Vec<(String, String)>,
    /// At most so many restarts of one member in a window
    #[arg(long, value_parser = parse::window)]
    respawn: (u32, u64),
}

/// Starts the guardian of a DVM on this host; it ends with the DVM.
pub(crate) fn start(launcher: &Launcher) -> Result<(), Failure> {
    let Some((times, window_ms)) = launcher.respawn else { return Ok(()) };
    let cannot = |error: std::io::Error| failed(format!("cannot start the process that respawns: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command.arg("guardian").arg("--place").arg(launcher.place.directory());
    command.arg("--program").arg(&launcher.kernel).arg("--logs").arg(&launcher.logs);
    command.arg("--listen").arg(&launcher.listen).arg("--respawn").arg(format!("{times}/{window_ms}ms"));
    for (key, value) in &launcher.tags {
        command.arg("--tag").arg(format!("{key}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command.spawn().map(drop).map_err(cannot)
}

/// The guardian's own process.
pub(crate) fn run(args: GuardianArgs) -> exit::Result {
    let Some(_lock) = begin(&args.logs).map_err(|error| failed(format!("no log: {error}")))? else {
        return Ok(exit::OK);
    };
    let place = DvmPlace::at(&args.place)?.0;
    let client = Client::connect(Target::new(place.clone(), "dvm guardian"))?;
    let kinds = ["member-failed", "member-joined", "member-left", "halting"].map(str::to_owned).to_vec();
    let filter = Filter { kinds, follow: true, ..Filter::default() };
    // It starts with its DVM, so this is from the first event on: who dies before it listens is brought back, too.
    let mut events = client.events(Since::All, filter)?;
    drop(client);
    let launcher = Launcher {
        kernel: args.program,
        place: place.clone(),
        logs: args.logs,
        listen: args.listen,
        tags: args.tags.into_iter().collect(),
        respawn: Some(args.respawn),
        timeout: Some(Duration::from_secs(30)),
    };
    let (times, window_ms) = args.respawn;
    let budget = Budget { times: times as usize, window_ms, used: VecDeque::new() };
    let mut guardian =
        Guardian { launcher, budget, spare: Vec::new(), renewed: None, renew_at: Instant::now() };
    let mut lost_since = None;
    loop {
        match events.next(Some(Duration::from_secs(1)))? {
            Next::Event(event) if event.kind == "member-failed" => {
                lost_since = None;
                guardian.respawn(&event);
                guardian.renew_soon();
            }
            Next::Event(event) if event.kind == "detached" => {
                lost_since = Some(Instant::now());
                guardian.revive();
            }
            Next::Event(_) => {
                lost_since = None;
                guardian.renew_soon();
            }
            Next::End(_) => return Ok(exit::OK),
            // Ended by force, which leaves nobody to tell it.
            Next::Quiet if lost_since.is_some() && !place.directory().exists() => return Ok(exit::OK),
            Next::Quiet if lost_since.is_some_and(|since: Instant| since.elapsed() > LOST) => {
                return Ok(exit::NO_DVM);
            }
            Next::Quiet => {}
        }
        if lost_since.is_none() && Instant::now() >= guardian.renew_at {
            guardian.renew();
        }
    }
}

/// Makes the process what it should be: in a session of its own, its words in the log. Nothing where another has the lock.
fn begin(logs: &Path) -> std::io::Result<Option<File>> {
    // What started it may have its own session already: a leader of one stays it.
    let _ = rustix::process::setsid();
    let log = File::options().append(true).create(true).open(logs.join("guardian.log"))?;
    if flock(&log, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    rustix::stdio::dup2_stderr(&log)?;
    Ok(Some(log))
}

/// What it has.
struct Guardian {
    launcher: Launcher,
    budget: Budget,
    /// Tickets of members on other hosts.
    spare: Vec<String>,
    /// When they were got, and when others take their place.
    renewed: Option<Instant>,
    renew_at: Instant,
}

impl Guardian {
    /// Starts a dead member of this host again.
    fn respawn(&mut self, event: &EventDoc) {
        let Some(member) = event.more.get("member").and_then(|name| name.as_str()) else { return };
        let Some(pid) = self.launcher.place.pid(member) else {
            // It was on another host, where another guardian is.
            return;
        };
        match self.is_present(member) {
            // Somebody else was faster, or this is told late.
            Ok(true) => return,
            Ok(false) => {}
            Err(failure) => eprintln!("{member} failed, and the others cannot be asked: {failure}"),
        }
        if !gone(pid) {
            eprintln!("{member} was left out and lives (process {pid}): it comes back by itself");
        } else if !self.budget.take(member) {
            eprintln!("{member} died too often; start it again with `dvm add`");
        } else {
            match self.bring_back(member) {
                Ok(()) => eprintln!("{member} was started again"),
                Err(failure) => eprintln!("{member} was not started again: {failure}"),
            }
        }
    }

    fn client(&self) -> Result<Client, Failure> {
        Client::connect(Target { reach: ASK, ..Target::new(self.launcher.place.clone(), "dvm guardian") })
    }

    fn is_present(&self, member: &str) -> Result<bool, Failure> {
        let now = status(&mut self.client()?, self.launcher.timeout)?;
        Ok(now.members.iter().any(|present| present.name == member))
    }

    fn bring_back(&self, member: &str) -> Result<(), Failure> {
        clear(self.launcher.place.directory(), member);
        let (_, refused) = self.launcher.join(self.client()?, &[member.to_owned()], &|| {});
        refused.first().map_or(Ok(()), |refused| Err(refused.failure()))
    }

    /// No kernel is left on this host: one is started again with a spare ticket, and the others once it is there.
    fn revive(&mut self) {
        sleep(SETTLE);
        let dead = self.launcher.place.pids().unwrap_or_default().into_iter().find(|member| {
            // Who left in order has no file.
            self.launcher.place.pid(member).is_some_and(gone)
        });
        let Some(member) = dead else {
            eprintln!("no kernel of this host answers; none has died");
            return;
        };
        if self.spare.is_empty() {
            eprintln!(
                "no kernel of this host lives, and no other host has one: nobody is there to join through"
            );
            return;
        }
        if !self.budget.take(&member) {
            eprintln!("{member} died too often; start it again from another host");
            return;
        }
        while let Some(ticket) = self.spare.pop() {
            clear(self.launcher.place.directory(), &member);
            match self.launcher.start(&member, BootstrapRole::Join { ticket }) {
                Ok(_) => {
                    eprintln!("{member} was started again, through another host");
                    return;
                }
                Err(refused) => {
                    let failure = refused.failure();
                    let cause = failure.cause.unwrap_or_default();
                    eprintln!("{}: {cause}", failure.message);
                    sleep(SETTLE);
                }
            }
        }
        eprintln!("{member} was not started again: no spare ticket is left");
    }

    /// Members have changed.
    fn renew_soon(&mut self) {
        let now = Instant::now();
        let soon = self.renewed.map_or(now, |renewed| now.max(renewed + SPARE_PAUSE));
        self.renew_at = self.renew_at.min(soon);
    }

    /// Spare tickets take the place of those that are there.
    fn renew(&mut self) {
        self.renewed = Some(Instant::now());
        self.renew_at = Instant::now() + SPARE_AGE;
        match self.tickets() {
            Ok(tickets) => self.spare = tickets,
            // Those that are there are good for a while; without a kernel an event tells so.
            Err(failure) => eprintln!("no spare tickets: {failure}"),
        }
    }

    fn tickets(&self) -> Result<Vec<String>, Failure> {
        let mut client = self.client()?;
        let now = status(&mut client, Some(ASK))?;
        let elsewhere = now.members.iter().filter(|one| self.launcher.place.pid(&one.name).is_none());
        let (mut tickets, mut members) = (Vec::new(), 0);
        for member in elsewhere {
            let request = Request::TicketOf { member: member.name.clone() };
            for _ in 0..SPARE_EACH {
                match client.request(request.clone(), None, Some(ASK)) {
                    Ok(Answer::Ticket(ticket)) => tickets.push(ticket),
                    Ok(other) => return Err(unexpected(&other)),
                    Err(failure) if failure.code == FailureCode::NoDvm => return Err(failure),
                    // It may be on its way out: another has some.
                    Err(_) => break,
                }
            }
            members += 1;
            if members == SPARE_OF {
                break;
            }
        }
        Ok(tickets)
    }
}

/// Whether a process is gone, or goes within a moment.
fn gone(pid: u32) -> bool {
    let until = Instant::now() + DYING;
    while is_kernel(pid) {
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK);
    }
    true
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
