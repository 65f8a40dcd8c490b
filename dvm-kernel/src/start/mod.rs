//! From a launcher's line to a running member, and to its end.
//!
//! Two processes: the first, [`front`], is the launcher's child. It starts the second, [`detached`], which becomes the
//! kernel, and ends when that one has said how it went. So the kernel is nobody's child, is in a process group of its own,
//! has no terminal and none of the launcher's descriptors; and should the launcher end the first process, the second ends
//! too.
//!
//! It stays in its launcher's session. A session only matters for its terminal, which the kernel gives up, and for the
//! system's scheduler, which shares processors out between sessions first: kernels of one launcher that were sessions of
//! their own would each have their ring wait for what their own libraries cost.

mod front;
mod guardian;
mod joining;
mod kernel;
mod places;
mod signals;

pub(crate) use front::front;

use dvm_plugin_api::local::{BOOTSTRAP_MAGIC, Bootstrap, Bootstrapped};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;

/// Largest line of a launcher, bytes.
const LINE_MAX: u64 = 1 << 20;

/// Why a kernel could not become a member.
#[derive(Debug)]
struct Failed {
    stage: &'static str,
    reason: String,
    hint: String,
}

impl Failed {
    fn new(stage: &'static str, reason: impl ToString, hint: impl Into<String>) -> Self {
        Self { stage, reason: reason.to_string(), hint: hint.into() }
    }
}

/// `TIOCNOTTY` of `ioctl_tty(2)`: gives up the terminal.
type GiveUpTerminal = rustix::ioctl::NoArg<0x5422>;

/// The second process: the kernel.
pub(crate) fn detached() -> ExitCode {
    // Until it is a member, the kernel ends with the first process. What fails here only takes that away.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: the number is right, and it takes no argument.
        let _ = unsafe { rustix::ioctl::ioctl(&terminal, GiveUpTerminal::new()) };
    }
    match read_bootstrap().and_then(kernel::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            tracing::error!(stage = failed.stage, reason = failed.reason, "not a member");
            let Failed { stage, reason, hint } = failed;
            // Nobody listens any more: the log has it.
            let _ = say(&Bootstrapped::Failed { stage: stage.into(), reason, hint });
            ExitCode::FAILURE
        }
    }
}

fn read_bootstrap() -> Result<Bootstrap, Failed> {
    let mut line = String::new();
    let read = io::stdin().lock().take(LINE_MAX).read_line(&mut line);
    let wrong = |reason: String| Failed::new("start", reason, "`dvm up` and `dvm add` start kernels");
    read.map_err(|error| wrong(format!("standard input cannot be read: {error}")))?;
    serde_json::from_str(&line)
        .map_err(|error| wrong(format!("standard input has no bootstrap line: {error}")))
}

/// Says how it went.
fn say(how: &Bootstrapped) -> io::Result<()> {
    let line = format!("{BOOTSTRAP_MAGIC}{}\n", serde_json::to_string(how).expect("plain data"));
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// Says that it is a member, and lets go of whoever started it.
fn say_and_let_go(how: &Bootstrapped) -> io::Result<()> {
    // The first process ends when it has the line.
    set_parent_process_death_signal(None)?;
    say(how)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // Where it was started may be unmounted.
    rustix::process::chdir("/")?;
    Ok(())
}
