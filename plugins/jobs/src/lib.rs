//! A queue of jobs: programs that run on members, and survive the loss of any.
//!
//! ```text
//! dvm plugin load jobs --mode hot --instances 3
//! dvm call jobs '{"submit":{"argv":["make","-C","/src"],"count":1,"retries":2}}'
//! dvm call jobs '{"show":1}' --query
//! ```
//! Every instance has the queue. The primary decides where a task runs and says so in the history, then starts its process
//! under a key of its own; how it ended goes into the history, too. A primary that is lost leaves nothing but what the
//! next one reads there: that starts again under the same keys, which a process that runs or has run answers to.

mod queue;
mod worker;

use dvm_plugin_api::{Error, Event, Host, Meta, Plugin, Program, Result, Role, export_plugin};
use queue::{End, Job, Order, Queue, Stage, Task, Try};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use worker::{Action, Worker};

/// Most bytes of output kept of each stream of a task: two of them fit into a command of the default size.
const OUTPUT_MAX: usize = 12 << 10;
/// Most tasks that run at a time: as many processes as an instance may follow.
const RUNNING_MAX: usize = 256;

/// What `-c KEY=VALUE` sets.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Jobs that are not over.
    queue: usize,
    /// Jobs that are over and still shown.
    history: usize,
    /// Tasks that run on one member at a time.
    slots: usize,
    /// Tasks that run at a time.
    running: usize,
    /// Bytes of output kept of each stream of a task.
    output: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { queue: 1_024, history: 256, slots: 16, running: RUNNING_MAX, output: 8 << 10 }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let limits = [
            ("queue", self.queue, 1 << 16),
            ("history", self.history, 1 << 16),
            ("slots", self.slots, RUNNING_MAX),
            ("running", self.running, RUNNING_MAX),
            ("output", self.output, OUTPUT_MAX),
        ];
        match limits.iter().find(|(_, value, most)| *value == 0 || value > most) {
            Some((name, value, most)) => Err(Error::new(format!("{name} is 1 to {most}, not {value}"))),
            None => Ok(()),
        }
    }
}

/// What it is asked. The last three are the primary's own, and count only under its token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Command {
    /// `{"submit":{"argv":["true"]}}`: a new job; the reply is its number.
    Submit(Order),
    /// `{"list":true}`: all jobs, without output.
    List(bool),
    /// `{"show":7}`: one job with its output.
    Show(u64),
    /// `{"cancel":7}`: end it.
    Cancel(u64),
    /// `{"forget":7}`: one that is over.
    Forget(u64),
    /// A try has a place.
    Placed { what: Try, member: String, fence: u64 },
    /// A try has ended.
    Ended { what: Try, end: Box<End>, fence: u64 },
    /// The member of a try is gone.
    Lost { what: Try, member: String, fence: u64 },
}

impl Command {
    /// With half of the output.
    fn shorten(&mut self) {
        if let Self::Ended { end, .. } = self {
            let half = |text: &str| text.len() / 2;
            let (stdout, stderr) = (half(&end.stdout.text), half(&end.stderr.text));
            end.stdout.cut(stdout);
            end.stderr.cut(stderr);
        }
    }
}

/// What a primary has set going and not read in the history yet.
#[derive(Debug, Default)]
struct Acting {
    fence: u64,
    placing: BTreeMap<Try, String>,
    /// Tries whose processes are followed, with their output so far.
    followed: BTreeMap<Try, End>,
    killed: BTreeSet<Try>,
}

struct Jobs {
    config: Config,
    host: Host,
    worker: Worker,
    queue: Queue,
    /// While this instance is the primary.
    acting: Option<Acting>,
    /// It was loaded in a mode without a primary.
    is_parallel: bool,
}

impl Jobs {
    fn change(&mut self, command: Command, meta: &Meta) -> Result<Value> {
        let current = |fence: u64| match fence == meta.fence {
            true => Ok(()),
            false => Err(Error::new("this is the word of a primary of the past")),
        };
        match command {
            Command::Submit(_) if self.is_parallel => {
                Err(Error::new("jobs needs a primary: load it with --mode hot"))
            }
            Command::Submit(_) if self.queue.open().count() >= self.config.queue => {
                Err(Error::new(format!("{} jobs wait or run already; try again later", self.config.queue)))
            }
            Command::Submit(order) => {
                let job = self.queue.submit(order, meta.time).map_err(Error::new)?;
                Ok(json!({"job": job}))
            }
            Command::Cancel(job) if self.queue.cancel(job) => Ok(json!({"job": job})),
            Command::Cancel(job) => Err(unknown(job)),
            Command::Forget(job) => {
                self.queue.forget(job).map_err(Error::new)?;
                Ok(json!({"job": job}))
            }
            Command::Placed { what, member, fence } => {
                current(fence)?;
                Ok(self.queue.placed(what, member).into())
            }
            Command::Ended { what, end, fence } => {
                current(fence)?;
                Ok(self.queue.ended(what, *end).into())
            }
            Command::Lost { what, member, fence } => {
                current(fence)?;
                self.queue.lost(what, &member);
                Ok(Value::Null)
            }
            read => self.read(read),
        }
    }

    fn read(&self, command: Command) -> Result<Value> {
        match command {
            Command::List(_) => Ok(
                json!({"jobs": self.queue.jobs().map(|(job, found)| shown(job, found, false)).collect::<Vec<_>>()}),
            ),
            Command::Show(job) => {
                let found = self.queue.get(job).ok_or_else(|| unknown(job))?;
                Ok(shown(job, found, true))
            }
            _ => Err(Error::new("a query changes nothing; use {\"list\":true} or {\"show\":JOB}")),
        }
    }

    /// As the primary, sets going what the queue wants and is not going yet. What the worker has no room for is set going
    /// when something happens next.
    fn drive(&mut self) {
        let Some(acting) = &mut self.acting else { return };
        let fence = acting.fence;
        acting.forget(&self.queue);
        let peers = self.host.peers();
        let mut load: BTreeMap<String, usize> = peers.iter().map(|peer| (peer.clone(), 0)).collect();
        let placing = acting.placing.values().map(String::as_str);
        let taken: Vec<String> =
            self.queue.running().map(|(_, member)| member).chain(placing).map(Into::into).collect();
        let mut running = taken.len();
        taken.into_iter().for_each(|member| *load.entry(member).or_default() += 1);
        for (what, task) in self.queue.tries() {
            match (task.stage, &task.member) {
                (Stage::Waiting, _) if acting.placing.contains_key(&what) => {}
                (Stage::Waiting, _) => {
                    if let Some(member) = task.pinned.as_ref().filter(|member| !peers.contains(member)) {
                        let lost = Command::Lost { what, member: member.clone(), fence };
                        if self.worker.does(Action::Tell(lost)) {
                            acting.placing.insert(what, member.clone());
                        }
                    } else if running < self.config.running
                        && let Some(member) = self.queue.place(what, task, &peers, &load, self.config.slots)
                    {
                        let placed = Command::Placed { what, member: member.clone(), fence };
                        if self.worker.does(Action::Tell(placed)) {
                            running += 1;
                            *load.entry(member.clone()).or_default() += 1;
                            acting.placing.insert(what, member);
                        }
                    }
                }
                (Stage::Running, Some(member)) => {
                    let Some(job) = self.queue.get(what.job) else { continue };
                    let start = || {
                        let (member, program) = (member.clone(), program(what, &job.order));
                        self.worker.does(Action::Start { what, member, program })
                    };
                    if !acting.followed.contains_key(&what) && start() {
                        acting.followed.insert(what, End::default());
                    }
                    let kill = || self.worker.does(Action::Kill { what, member: member.clone() });
                    if job.cancelled && !acting.killed.contains(&what) && kill() {
                        acting.killed.insert(what);
                    }
                }
                _ => {}
            }
        }
    }

    /// Something of a process that the primary follows.
    fn process(&mut self, event: &Event) {
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str).map(str::to_owned);
        let (Some(acting), Some(what)) = (&mut self.acting, text("key").as_deref().and_then(Try::of)) else {
            return;
        };
        let Some(end) = acting.followed.get_mut(&what) else { return };
        match event.kind.as_str() {
            "process-output" => {
                let at = event.fields.get("at").and_then(Value::as_u64).unwrap_or_default();
                let tail = if text("stream").as_deref() == Some("stderr") {
                    &mut end.stderr
                } else {
                    &mut end.stdout
                };
                tail.push(at, &text("text").unwrap_or_default(), self.config.output);
            }
            "process-exit" => {
                let mut end = std::mem::take(end);
                end.exit_code = event.fields.get("exit_code").and_then(Value::as_i64).map(|code| code as i32);
                (end.signal, end.error) = (text("signal"), text("error"));
                let (end, fence) = (Box::new(end), acting.fence);
                if !self.worker.does(Action::Tell(Command::Ended { what, end, fence })) {
                    // Whoever follows it again is told its end again.
                    acting.followed.remove(&what);
                }
            }
            _ => {}
        }
    }
}

impl Acting {
    /// Drops what is of the past.
    fn forget(&mut self, queue: &Queue) {
        let present: BTreeMap<Try, Stage> = queue.tries().map(|(what, task)| (what, task.stage)).collect();
        self.placing.retain(|what, _| present.get(what) == Some(&Stage::Waiting));
        self.followed.retain(|what, _| present.get(what) == Some(&Stage::Running));
        self.killed.retain(|what| present.contains_key(what));
    }
}

impl Queue {
    /// The member for a try: of those it may run on the one with the least to do, the last one again only if it must be.
    fn place(
        &self,
        what: Try,
        task: &Task,
        peers: &[String],
        load: &BTreeMap<String, usize>,
        slots: usize,
    ) -> Option<String> {
        let (named, before) = (self.eligible(what), self.last_member(what));
        let load = |member: &String| load.get(member).copied().unwrap_or_default();
        let may = |member: &&String| match &task.pinned {
            Some(pinned) => pinned == *member,
            None => named.is_empty() || named.contains(member.as_str()),
        };
        let fit = peers.iter().filter(may).filter(|member| load(member) < slots);
        fit.min_by_key(|member| (before == Some(member.as_str()), load(member))).cloned()
    }
}

fn program(what: Try, order: &Order) -> Program {
    let mut program = Program::new(&order.argv);
    program.env.clone_from(&order.env);
    program.cwd.clone_from(&order.cwd);
    let Try { job, task, attempt } = what;
    program
        .env("DVM_JOB", job.to_string())
        .env("DVM_TASK", task.to_string())
        .env("DVM_TRY", attempt.to_string())
}

fn unknown(job: u64) -> Error {
    Error::new(format!("no job {job}"))
}

/// A job as people and programs read it.
fn shown(number: u64, job: &Job, output: bool) -> Value {
    let tasks = job.tasks.iter().map(|task| {
        let mut told = json!({"state": task.stage, "member": task.member.as_ref().or(task.pinned.as_ref()),
            "attempt": task.attempt});
        if task.stage.is_over() {
            told["exit"] = task.exit().into();
        }
        for (name, value) in task.end.as_ref().map(ended).unwrap_or_default() {
            if output || !matches!(name, "stdout" | "stderr") {
                told[name] = value;
            }
        }
        told
    });
    let mut told = json!({"job": number, "argv": job.order.argv, "time": job.time, "cancelled": job.cancelled,
        "tasks": tasks.collect::<Vec<_>>()});
    if job.is_over() {
        told["exit"] = job.exit().into();
    }
    told
}

/// What is known of an end.
fn ended(end: &End) -> Vec<(&'static str, Value)> {
    let End { exit_code, signal, error, stdout, stderr } = end;
    let mut fields = vec![("stdout", json!(stdout)), ("stderr", json!(stderr))];
    fields.extend(exit_code.map(|code| ("exit_code", code.into())));
    fields.extend(signal.clone().map(|signal| ("signal", signal.into())));
    fields.extend(error.clone().map(|error| ("error", error.into())));
    fields
}

impl Plugin for Jobs {
    type Config = Config;
    type Command = Command;
    type Reply = Value;

    fn validate(config: &Config, _: &Host) -> Result<()> {
        config.check()
    }

    fn start(config: Config, host: Host) -> Result<Self> {
        let worker = Worker::start(&host)?;
        Ok(Self { config, host, worker, queue: Queue::default(), acting: None, is_parallel: false })
    }

    fn apply(&mut self, command: Command, meta: &Meta) -> Result<Value> {
        let reply = self.change(command, meta)?;
        self.queue.trim(self.config.history);
        self.drive();
        Ok(reply)
    }

    fn query(&self, command: Command) -> Result<Value> {
        self.read(command)
    }

    fn configure(&mut self, config: Config) -> Result<()> {
        self.config = config;
        self.queue.trim(self.config.history);
        self.drive();
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        if event.kind.starts_with("process-") {
            return self.process(event);
        }
        // These have their place in the history, the same for every instance.
        if let ("member-failed" | "member-left", Some(member)) =
            (event.kind.as_str(), event.fields.get("member").and_then(Value::as_str))
        {
            self.queue.member_lost(member);
        }
        if event.kind.starts_with("member-") {
            self.drive();
        }
    }

    fn on_role(&mut self, role: Role) {
        self.is_parallel = role == Role::Active;
        self.acting = match role {
            Role::Primary { fence } => Some(Acting { fence, ..Acting::default() }),
            _ => None,
        };
        self.worker.promoted(self.acting.as_ref().map_or(0, |acting| acting.fence));
        self.drive();
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.queue).unwrap_or_default()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.queue = serde_json::from_slice(snapshot)?;
        Ok(())
    }
}

export_plugin!(Jobs);

#[cfg(test)]
mod tests;
