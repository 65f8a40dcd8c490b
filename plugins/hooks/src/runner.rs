//! Programs one after another, on a thread of their own: an event never waits for one.

use crate::Script;
use dvm_plugin_api::{Error, Event, Host, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Programs that may wait for their turn; what comes beyond is not run, and counted.
const WAITING: usize = 256;
/// Between two looks whether a program has ended.
const LOOK: Duration = Duration::from_millis(5);

/// What became of the programs of one instance.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counts {
    /// Ended with 0.
    ok: u64,
    /// Ended otherwise, or could not be started.
    failed: u64,
    /// Not run, for too many waited.
    dropped: u64,
    /// What went wrong last.
    last_error: Option<String>,
}

/// The thread, from outside.
pub(crate) struct Runner {
    waiting: SyncSender<(Script, Event)>,
    dropped: AtomicU64,
    counts: Arc<Mutex<Counts>>,
}

impl Runner {
    /// Starts it; it ends when the runner is dropped.
    pub(crate) fn start(host: Host) -> Result<Self> {
        let (waiting, next) = sync_channel(WAITING);
        let counts = Arc::<Mutex<Counts>>::default();
        let told = counts.clone();
        thread::Builder::new()
            .name("hooks".into())
            .spawn(move || run_all(&next, &host, &told))
            .map_err(|error| Error::new(format!("no thread for the programs: {error}")))?;
        Ok(Self { waiting, dropped: AtomicU64::new(0), counts })
    }

    /// Runs a program when its turn comes.
    pub(crate) fn run(&self, script: Script, event: Event) {
        if self.waiting.try_send((script, event)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Counts { dropped: self.dropped.load(Ordering::Relaxed), ..counts }
    }
}

fn run_all(next: &Receiver<(Script, Event)>, host: &Host, counts: &Mutex<Counts>) {
    while let Ok((script, event)) = next.recv() {
        let outcome = match run(&script, &event, &host.member()) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} for {} ended with {status}", script.run.display(), event.kind)),
            Err(error) => Err(format!("{} for {}: {error}", script.run.display(), event.kind)),
        };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => counts.ok += 1,
            Err(text) => {
                host.log(&text);
                counts.failed += 1;
                counts.last_error = Some(text);
            }
        }
    }
}

fn run(script: &Script, event: &Event, member: &str) -> io::Result<ExitStatus> {
    let mut command = Command::new(&script.run);
    command.args(&script.args).stdin(Stdio::piped()).process_group(0);
    command.env("DVM_MEMBER", member);
    command.env("DVM_EVENT_KIND", &event.kind).env("DVM_EVENT_INDEX", event.index.to_string());
    for (name, value) in &event.fields {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        command.env(format!("DVM_EVENT_{}", name.to_uppercase()), text);
    }
    let mut child = command.spawn()?;
    let mut told = event.fields.clone();
    told.insert("index".into(), event.index.into());
    told.insert("kind".into(), event.kind.clone().into());
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read is none the worse for it, and holds nobody up.
        thread::spawn(move || drop(writeln!(stdin, "{}", Value::Object(told))));
    }
    wait(&mut child, Duration::from_millis(script.timeout_ms))
}

/// Waits for a program's end, and brings it about when its time is over.
fn wait(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            // With what it has started itself.
            let group = Pid::from_child(child);
            kill_process_group(group, Signal::KILL)?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("killed after {limit:?}")));
        }
        thread::sleep(LOOK);
    }
}
