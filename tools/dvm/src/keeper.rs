//! Cleans up after a command however that command ends: a process of its own that waits for the end of its input.
//!
//! A command that must leave nothing behind cannot promise it alone: an interrupt or a SIGKILL would end it before it
//! has ended its kernels, which live in sessions of their own. The keeper's input ends when the command does.

use crate::exec::ask;
use crate::exit::{self, failed};
use crate::processes::{kernels, kill_all, wait_gone};
use clap::Args;
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Failure, Request};
use dvm_plugin_api::place::{DvmPlace, RuntimeDir, private_dir};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long an orderly end may take before kernels are killed.
const ORDERLY: Duration = Duration::from_secs(10);

/// Pause before it is looked again whether a cancelled job is over.
const LOOK: Duration = Duration::from_millis(50);

/// Name of the runtime directory in a scratch directory.
const RUNTIME: &str = "run";

/// How long killed kernels may take to be gone.
const KILLED: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct KeeperArgs {
    /// Halt the DVM of this directory
    #[arg(long)]
    halt: Option<PathBuf>,
    /// Kill all kernels of this scratch directory's runtime directory, then remove it
    #[arg(long)]
    wipe: Option<PathBuf>,
    /// Cancel the job of this DVM whose number is the input
    #[arg(long)]
    cancel: Option<PathBuf>,
}

/// What a keeper does in the end.
pub(crate) enum Duty {
    /// Halt the DVM of this directory.
    Halt(PathBuf),
    /// Kill all kernels of this scratch directory's runtime directory, then remove it.
    Wipe(PathBuf),
    /// Cancel the job that is [told](Keeper::tell), in the DVM of this directory, if it is not over.
    Cancel(PathBuf),
}

/// A keeper at work. When the value ends, it has done its duty.
pub(crate) struct Keeper {
    child: Child,
}

impl Keeper {
    pub(crate) fn start(duty: &Duty) -> Result<Self, Failure> {
        let (option, path) = match duty {
            Duty::Halt(path) => ("--halt", path),
            Duty::Wipe(path) => ("--wipe", path),
            Duty::Cancel(path) => ("--cancel", path),
        };
        let child = std::env::current_exe().and_then(|exe| {
            let mut command = Command::new(exe);
            command.arg("keeper").arg(option).arg(path);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            // An interrupt from the terminal ends the command and not its keeper.
            command.process_group(0).spawn()
        });
        child
            .map(|child| Self { child })
            .map_err(|error| failed(format!("cannot start the process that cleans up: {error}")))
    }

    /// Tells it what its duty is about.
    pub(crate) fn tell(&mut self, what: &str) -> Result<(), Failure> {
        let told = self.child.stdin.as_mut().map_or(Ok(()), |input| input.write_all(what.as_bytes()));
        told.map_err(|error| failed(format!("the process that cleans up is gone: {error}")))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself; there is nothing to do about one that cannot be waited for.
        let _ = self.child.wait();
    }
}

/// The keeper's own process.
pub(crate) fn run(args: &KeeperArgs) -> exit::Result {
    // Whatever ends the input, an error too, is the signal.
    let mut input = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut input);
    if let Some(directory) = &args.halt {
        halt(&DvmPlace::at(directory)?.0);
    }
    if let Some(base) = &args.wipe {
        wipe(base)?;
    }
    if let (Some(directory), Some(job)) = (&args.cancel, String::from_utf8_lossy(&input).trim().parse().ok())
    {
        cancel(&DvmPlace::at(directory)?.0, job)?;
    }
    Ok(exit::OK)
}

/// Ends a DVM: in order, and by force what does not end in order.
pub(crate) fn halt(place: &DvmPlace) {
    let pids: Vec<_> = kernels(place).into_iter().map(|(_, pid)| pid).collect();
    let deadline = Instant::now() + ORDERLY;
    if let Ok(mut client) = Client::connect(Target::new(place.clone(), "dvm keeper")) {
        // The kernel may be gone before it has answered.
        let _ = client.request(Request::Halt, None, Some(ORDERLY));
        wait_gone(place, &pids, deadline);
    }
    kill_all(place, Instant::now() + KILLED);
}

/// Cancels a job, waits until it is over, and forgets it.
fn cancel(place: &DvmPlace, job: u64) -> Result<(), Failure> {
    let mut client = Client::connect(Target::new(place.clone(), "dvm keeper"))?;
    let until = Instant::now() + ORDERLY;
    // One that is over is left as it is.
    ask(&mut client, json!({"cancel": job}), false, Some(ORDERLY))?.map_err(failed)?;
    while ask(&mut client, json!({"forget": job}), false, Some(ORDERLY))?.is_err() && Instant::now() < until {
        sleep(LOOK);
    }
    Ok(())
}

fn wipe(base: &Path) -> Result<(), Failure> {
    for place in RuntimeDir::create_at(&base.join(RUNTIME))?.dvms()? {
        kill_all(&place, Instant::now() + KILLED);
    }
    std::fs::remove_dir_all(base)
        .map_err(|error| failed(format!("cannot remove {}: {error}", base.display())))
}

/// A directory of its own for DVMs that nobody else sees. When the value ends, however the process ends, their
/// kernels are killed and the directory is removed.
pub(crate) struct Scratch {
    pub(crate) runtime: RuntimeDir,
    pub(crate) logs: PathBuf,
    _keeper: Keeper,
}

impl Scratch {
    /// Its path is short: sockets are below it.
    pub(crate) fn create(purpose: &str) -> Result<Self, Failure> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| failed(format!("no randomness: {error}")))?;
        let base = PathBuf::from(format!("/tmp/dvm-{purpose}-{:08x}", u32::from_le_bytes(random)));
        private_dir(&base)?;
        let runtime = RuntimeDir::create_at(&base.join(RUNTIME))?;
        let logs = base.join("log");
        private_dir(&logs)?;
        Ok(Self { runtime, logs, _keeper: Keeper::start(&Duty::Wipe(base))? })
    }
}
