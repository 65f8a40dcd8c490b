//! Processes in memory: what a test has them do, and what whoever follows one is told.

use super::desk::own_event;
use crate::Program;
use crate::service::{ENDED_MAX, KILL_AFTER_MS, PROCESSES_MAX, Tail, too_many_processes};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The first process's number.
const PID_FIRST: u32 = 1_000;

/// A process that a plug-in starts, as a test is asked for its [`Script`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Started {
    /// The plug-in's name.
    pub plugin: String,
    /// Where.
    pub member: String,
    /// The plug-in's own name for it.
    pub key: String,
    /// What.
    pub program: Program,
}

/// What a process does, step by step, on the clock of the DVM in memory. One that is not said to end runs until it is
/// killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    steps: VecDeque<(u64, Step)>,
    /// So far, milliseconds.
    at_ms: u64,
    stubborn: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// To the stream of this number.
    Writes(usize, Vec<u8>),
    Ends(End),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Exit(i32),
    Signal(String),
    Failed(String),
}

impl Script {
    /// It starts, and does nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What follows happens so much later.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.at_ms = self.at_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// It writes to its standard output.
    #[must_use]
    pub fn stdout(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Writes(0, bytes.as_ref().into()))
    }

    /// It writes to its standard error.
    #[must_use]
    pub fn stderr(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Writes(1, bytes.as_ref().into()))
    }

    /// It exits with a code.
    #[must_use]
    pub fn exit(self, code: i32) -> Self {
        self.step(Step::Ends(End::Exit(code)))
    }

    /// A signal ends it, such as `SIGSEGV`.
    #[must_use]
    pub fn signal(self, name: &str) -> Self {
        self.step(Step::Ends(End::Signal(name.into())))
    }

    /// It cannot be run. To be said alone.
    #[must_use]
    pub fn fails(self, why: &str) -> Self {
        self.step(Step::Ends(End::Failed(why.into())))
    }

    /// It does not heed SIGTERM: SIGKILL ends it two seconds later.
    #[must_use]
    pub fn stubborn(mut self) -> Self {
        self.stubborn = true;
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push_back((self.at_ms, step));
        self
    }
}

/// What makes scripts; without one, nothing can be run.
pub(super) type Scripts = Option<std::sync::Arc<dyn Fn(&Started) -> Script + Send + Sync>>;

/// All processes of a DVM in memory, by member, plug-in and key.
#[derive(Default)]
pub(super) struct Processes {
    runs: BTreeMap<(String, String, String), Run>,
    started: u32,
    ended: u64,
}

struct Run {
    /// With the time of each on the DVM's clock.
    steps: VecDeque<(u64, Step)>,
    stubborn: bool,
    /// None if it cannot be run.
    pid: Option<u32>,
    output: [Tail; 2],
    end: Option<End>,
    /// The how manieth of all that ended it is.
    ended: u64,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    started: bool,
    /// In each stream.
    at: [u64; 2],
    over: bool,
}

impl Progress {
    pub(super) fn is_over(self) -> bool {
        self.over
    }
}

impl Processes {
    pub(super) fn has(&self, member: &str, plugin: &str, key: &str) -> bool {
        self.runs.contains_key(&(member.into(), plugin.into(), key.into()))
    }

    /// Starts what was never started there under this key.
    ///
    /// # Errors
    /// There are too many: what whoever asked is told as its end.
    pub(super) fn start(&mut self, what: &Started, script: Script, now_ms: u64) -> Result<(), String> {
        let Started { plugin, member, key, .. } = what;
        self.make_room(member, plugin)?;
        let fails = matches!(script.steps.front(), Some((0, Step::Ends(End::Failed(_)))));
        self.started += 1;
        let run = Run {
            steps: script.steps.into_iter().map(|(at, step)| (now_ms.saturating_add(at), step)).collect(),
            stubborn: script.stubborn,
            pid: (!fails).then_some(PID_FIRST + self.started),
            output: Default::default(),
            end: None,
            ended: 0,
        };
        self.runs.insert((member.clone(), plugin.clone(), key.clone()), run);
        Ok(())
    }

    fn make_room(&mut self, member: &str, plugin: &str) -> Result<(), String> {
        let mine = || self.runs.iter().filter(|((at, of, _), _)| at == member && of == plugin);
        if mine().filter(|(_, run)| run.end.is_none()).count() >= PROCESSES_MAX {
            return Err(too_many_processes(plugin));
        }
        let ended = || mine().filter(|(_, run)| run.end.is_some());
        if ended().count() >= ENDED_MAX {
            let first = ended().min_by_key(|(_, run)| run.ended).map(|(at, _)| at.clone());
            first.map(|first| self.runs.remove(&first));
        }
        Ok(())
    }

    pub(super) fn kill(&mut self, member: &str, plugin: &str, key: &str, now_ms: u64) {
        let run = self.runs.get_mut(&(member.into(), plugin.into(), key.into()));
        let Some(run) = run.filter(|run| run.end.is_none()) else { return };
        let (at, name) = match run.stubborn {
            true => (now_ms.saturating_add(KILL_AFTER_MS), "SIGKILL"),
            false => (now_ms, "SIGTERM"),
        };
        run.steps.retain(|(due, _)| *due <= at);
        run.steps.push_back((at, Step::Ends(End::Signal(name.into()))));
    }

    /// A member is gone, with all that runs there.
    pub(super) fn lose(&mut self, member: &str) {
        self.runs.retain(|(at, ..), _| at != member);
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now_ms: u64) {
        for run in self.runs.values_mut() {
            while run.end.is_none() && run.steps.front().is_some_and(|(due, _)| *due <= now_ms) {
                match run.steps.pop_front().expect("there is one").1 {
                    Step::Writes(stream, bytes) => run.output[stream].push(&bytes),
                    Step::Ends(end) => {
                        run.end = Some(end);
                        self.ended += 1;
                        run.ended = self.ended;
                    }
                }
            }
        }
    }

    /// When something is to happen next.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let live = self.runs.values().filter(|run| run.end.is_none());
        live.filter_map(|run| run.steps.front().map(|(due, _)| *due)).min()
    }

    /// What a follower is told next: one `process-started`, any number of `process-output`, one `process-exit`.
    pub(super) fn news(
        &self,
        member: &str,
        plugin: &str,
        key: &str,
        progress: &mut Progress,
    ) -> Option<Vec<u8>> {
        let run = self.runs.get(&(member.into(), plugin.into(), key.into()))?;
        let told = |kind: &str, more: Value| {
            let mut fields = json!({"member": member, "key": key});
            let all = fields.as_object_mut().expect("it is an object");
            all.extend(more.as_object().cloned().unwrap_or_default());
            Some(own_event(kind, fields))
        };
        if let (false, Some(pid)) = (progress.started, run.pid) {
            progress.started = true;
            return told("process-started", json!({"pid": pid}));
        }
        for (stream, name) in ["stdout", "stderr"].into_iter().enumerate() {
            if let Some((at, to, text)) = run.output[stream].text(progress.at[stream], run.end.is_some()) {
                progress.at[stream] = to;
                return told("process-output", json!({"stream": name, "at": at, "text": text}));
            }
        }
        let end = run.end.as_ref().filter(|_| !progress.over)?;
        progress.over = true;
        told("process-exit", fields_of(end))
    }
}

/// The fields of a `process-exit` without a process.
pub(super) fn not_run(member: &str, key: &str, why: &str) -> Vec<u8> {
    own_event("process-exit", json!({"member": member, "key": key, "error": why}))
}

fn fields_of(end: &End) -> Value {
    match end {
        End::Exit(code) => json!({"exit_code": code}),
        End::Signal(name) => json!({"signal": name}),
        End::Failed(why) => json!({"error": why}),
    }
}
