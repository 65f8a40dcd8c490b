//! The queue: which jobs there are, where each task runs, how each ended. The state that every instance has.
//!
//! A task waits, is placed on a member, runs there, and ends; each try has a number. What ends a try counts once: the
//! second word on the same try is of the past.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most tasks of one job.
const TASKS_MAX: u32 = 1_024;
/// Most tries that are lost with their members before a task has failed.
const LOSSES_MAX: u32 = 16;

/// What is submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// Members it may run on; all, if none is named.
    #[serde(default)]
    pub(crate) on: Vec<String>,
    /// How many tasks; not said: one on each member of `on`, or one anywhere.
    #[serde(default)]
    pub(crate) count: Option<u32>,
    /// Set in its environment.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Where it starts.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// How often a task that fails is run again.
    #[serde(default)]
    pub(crate) retries: u32,
    /// A task whose member is lost has failed: nobody knows how far it came. Else it is run again elsewhere.
    #[serde(default)]
    pub(crate) once: bool,
}

/// All jobs.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// Number of the last job.
    last: u64,
    jobs: BTreeMap<u64, Job>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) order: Order,
    pub(crate) tasks: Vec<Task>,
    /// It was cancelled.
    pub(crate) cancelled: bool,
    /// When it was submitted, milliseconds since 1970.
    pub(crate) time: u64,
}

/// One process of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The one member that it may run on.
    pub(crate) pinned: Option<String>,
    pub(crate) stage: Stage,
    /// The number of the present try.
    pub(crate) attempt: u32,
    failures: u32,
    losses: u32,
    /// Where it runs or ran last.
    pub(crate) member: Option<String>,
    /// How its last try ended.
    pub(crate) end: Option<End>,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// For a place.
    #[default]
    Waiting,
    /// On its member.
    Running,
    /// With exit code 0.
    Done,
    /// In any other way, and it is not run again.
    Failed,
    /// By request.
    Cancelled,
}

/// How a process ended, with the last of its output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct End {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) stdout: Tail,
    pub(crate) stderr: Tail,
}

/// The last of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tail {
    pub(crate) text: String,
    /// Bytes before it that are not kept.
    pub(crate) before: u64,
}

/// One try of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Try {
    pub(crate) job: u64,
    pub(crate) task: usize,
    pub(crate) attempt: u32,
}

impl Try {
    /// The key of its process.
    pub(crate) fn key(self) -> String {
        format!("{}.{}.{}", self.job, self.task, self.attempt)
    }

    /// The try with this key.
    pub(crate) fn of(key: &str) -> Option<Self> {
        let mut parts = key.split('.');
        let (job, task, attempt) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { job: job.parse().ok()?, task: task.parse().ok()?, attempt: attempt.parse().ok()? })
    }
}

impl Stage {
    pub(crate) fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

impl Tail {
    /// Adds what stands at a place of the stream, and keeps the last `most` bytes.
    pub(crate) fn push(&mut self, at: u64, text: &str, most: usize) {
        if at > self.before + self.text.len() as u64 {
            // Something between is lost.
            (self.text, self.before) = (String::new(), at);
        }
        self.text.push_str(text);
        self.cut(most);
    }

    /// Keeps the last `most` bytes.
    pub(crate) fn cut(&mut self, most: usize) {
        let mut surplus = self.text.len().saturating_sub(most);
        while !self.text.is_char_boundary(surplus) {
            surplus += 1;
        }
        self.text.drain(..surplus);
        self.before += surplus as u64;
    }
}

impl Job {
    pub(crate) fn is_over(&self) -> bool {
        self.tasks.iter().all(|task| task.stage.is_over())
    }

    /// The highest exit code of its tasks, as a shell counts: 128 and more for a signal, 127 for what could not be run or was
    /// lost with its member.
    pub(crate) fn exit(&self) -> i32 {
        self.tasks.iter().map(Task::exit).max().unwrap_or_default()
    }
}

impl Task {
    pub(crate) fn exit(&self) -> i32 {
        match (self.stage, &self.end) {
            (Stage::Done, _) => 0,
            (_, Some(End { exit_code: Some(code), .. })) => *code,
            (_, Some(End { signal: Some(signal), .. })) => 128 + number(signal),
            (_, Some(End { error: Some(_), .. })) => 127,
            _ => 1,
        }
    }

    /// Its try is over without a result: it waits again.
    fn again(&mut self) {
        self.attempt += 1;
        self.stage = Stage::Waiting;
    }
}

/// The number of a signal, as far as it is known.
fn number(signal: &str) -> i32 {
    let known = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGQUIT", 3),
        ("SIGILL", 4),
        ("SIGABRT", 6),
        ("SIGBUS", 7),
        ("SIGFPE", 8),
        ("SIGKILL", 9),
        ("SIGSEGV", 11),
        ("SIGTERM", 15),
    ];
    known.iter().find(|(name, _)| *name == signal).map_or(0, |(_, number)| *number)
}

impl Queue {
    /// Adds a job; its number.
    pub(crate) fn submit(&mut self, order: Order, time: u64) -> Result<u64, String> {
        if order.argv.is_empty() {
            return Err("no program is named: argv is empty".into());
        }
        let pinned: Vec<Option<String>> = match order.count {
            None if order.on.is_empty() => vec![None],
            None => order.on.iter().cloned().map(Some).collect(),
            Some(count @ 1..=TASKS_MAX) => vec![None; count as usize],
            Some(count) => return Err(format!("a job has 1 to {TASKS_MAX} tasks, not {count}")),
        };
        self.last += 1;
        let tasks = pinned.into_iter().map(|pinned| Task { pinned, ..Task::default() }).collect();
        self.jobs.insert(self.last, Job { order, tasks, cancelled: false, time });
        Ok(self.last)
    }

    pub(crate) fn get(&self, job: u64) -> Option<&Job> {
        self.jobs.get(&job)
    }

    pub(crate) fn jobs(&self) -> impl Iterator<Item = (u64, &Job)> {
        self.jobs.iter().map(|(number, job)| (*number, job))
    }

    /// Jobs that are not over.
    pub(crate) fn open(&self) -> impl Iterator<Item = (u64, &Job)> {
        self.jobs().filter(|(_, job)| !job.is_over())
    }

    /// Keeps the last `most` jobs that are over.
    pub(crate) fn trim(&mut self, most: usize) {
        let over: Vec<u64> = self.jobs().filter(|(_, job)| job.is_over()).map(|(number, _)| number).collect();
        for number in &over[..over.len().saturating_sub(most)] {
            self.jobs.remove(number);
        }
    }

    /// Cancels a job: what waits is over, what runs is to be ended. False if there is none.
    pub(crate) fn cancel(&mut self, job: u64) -> bool {
        let Some(job) = self.jobs.get_mut(&job) else { return false };
        if !job.is_over() {
            job.cancelled = true;
        }
        for task in job.tasks.iter_mut().filter(|task| task.stage == Stage::Waiting) {
            task.stage = Stage::Cancelled;
        }
        true
    }

    /// Forgets a job that is over.
    pub(crate) fn forget(&mut self, job: u64) -> Result<(), String> {
        match self.jobs.get(&job) {
            None => Err(format!("no job {job}")),
            Some(found) if !found.is_over() => Err(format!("job {job} is not over; cancel it first")),
            Some(_) => {
                self.jobs.remove(&job);
                Ok(())
            }
        }
    }

    /// A try has a place; false if it is of the past.
    pub(crate) fn placed(&mut self, what: Try, member: String) -> bool {
        let Some(task) = self.task(what).filter(|task| task.stage == Stage::Waiting) else { return false };
        (task.stage, task.member) = (Stage::Running, Some(member));
        true
    }

    /// A try has ended; false if it is of the past.
    pub(crate) fn ended(&mut self, what: Try, end: End) -> bool {
        let Some(job) = self.jobs.get(&what.job) else { return false };
        let (cancelled, retries) = (job.cancelled, job.order.retries);
        let Some(task) = self.task(what).filter(|task| task.stage == Stage::Running) else { return false };
        let succeeded = end.exit_code == Some(0);
        task.end = Some(end);
        if succeeded {
            task.stage = Stage::Done;
        } else if cancelled {
            task.stage = Stage::Cancelled;
        } else if task.failures < retries {
            task.failures += 1;
            task.again();
        } else {
            task.stage = Stage::Failed;
        }
        true
    }

    /// The member of a try is gone, or was none when it was to run there.
    pub(crate) fn lost(&mut self, what: Try, member: &str) {
        let Some(job) = self.jobs.get(&what.job) else { return };
        let (cancelled, once) = (job.cancelled, job.order.once);
        let Some(task) = self.task(what).filter(|task| !task.stage.is_over()) else { return };
        task.losses += 1;
        if cancelled {
            task.stage = Stage::Cancelled;
        } else if once || task.pinned.is_some() || task.losses >= LOSSES_MAX {
            let why = match task.stage {
                Stage::Waiting => format!("{member} is no member"),
                _ => format!("{member} was lost while it ran there"),
            };
            task.end = Some(End { error: Some(why), ..End::default() });
            task.stage = Stage::Failed;
        } else {
            task.again();
        }
    }

    /// A member is gone.
    pub(crate) fn member_lost(&mut self, member: &str) {
        let there: Vec<Try> = self.running().filter(|(_, at)| *at == member).map(|(what, _)| what).collect();
        there.into_iter().for_each(|what| self.lost(what, member));
    }

    /// All that runs, and where.
    pub(crate) fn running(&self) -> impl Iterator<Item = (Try, &str)> {
        self.tries()
            .filter(|(_, task)| task.stage == Stage::Running)
            .filter_map(|(what, task)| Some((what, task.member.as_deref()?)))
    }

    /// The present tries of all jobs that are not over.
    pub(crate) fn tries(&self) -> impl Iterator<Item = (Try, &Task)> {
        self.open().flat_map(|(number, job)| {
            job.tasks
                .iter()
                .enumerate()
                .map(move |(task, found)| (Try { job: number, task, attempt: found.attempt }, found))
        })
    }

    /// Members that have failed a task's job are asked last: where it was before.
    pub(crate) fn last_member(&self, what: Try) -> Option<&str> {
        self.jobs.get(&what.job)?.tasks.get(what.task)?.member.as_deref()
    }

    /// Members that a job may run on; all, if none is named.
    pub(crate) fn eligible(&self, what: Try) -> BTreeSet<&str> {
        let named = self.jobs.get(&what.job).map(|job| job.order.on.iter().map(String::as_str).collect());
        named.unwrap_or_default()
    }

    fn task(&mut self, what: Try) -> Option<&mut Task> {
        let task = self.jobs.get_mut(&what.job)?.tasks.get_mut(what.task)?;
        Some(task).filter(|task| task.attempt == what.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(on: &[&str], retries: u32, once: bool) -> Order {
        let on = on.iter().map(|name| (*name).into()).collect();
        Order { argv: vec!["true".into()], on, count: None, env: BTreeMap::new(), cwd: None, retries, once }
    }

    fn exit(code: i32) -> End {
        End { exit_code: Some(code), ..End::default() }
    }

    fn only(queue: &Queue) -> (Try, Task) {
        let (what, task) = queue.tries().next().expect("one is open");
        (what, task.clone())
    }

    #[test]
    fn the_end_of_a_try_counts_once() {
        let mut queue = Queue::default();
        let job = queue.submit(order(&[], 1, false), 0).expect("taken");
        let (first, _) = only(&queue);
        assert!(!queue.ended(first, exit(0)), "it has no place yet");
        assert!(queue.placed(first, "k1".into()) && !queue.placed(first, "k2".into()));
        assert!(queue.ended(first, exit(3)), "it fails, and is run again");
        assert!(!queue.ended(first, exit(0)), "that try is over");
        let (second, task) = only(&queue);
        assert_eq!((second.attempt, task.stage, task.member.as_deref()), (1, Stage::Waiting, Some("k1")));
        assert!(queue.placed(second, "k2".into()) && queue.ended(second, exit(4)));
        let over = queue.get(job).expect("kept");
        assert_eq!((over.tasks[0].stage, over.exit()), (Stage::Failed, 4));
        assert!(over.is_over() && queue.forget(job).is_ok() && queue.forget(job).is_err());
    }

    #[test]
    fn what_a_lost_member_ran_is_run_again_unless_it_may_run_once() {
        for (once, stage) in [(false, Stage::Waiting), (true, Stage::Failed)] {
            let mut queue = Queue::default();
            let job = queue.submit(order(&[], 0, once), 0).expect("taken");
            let (first, _) = only(&queue);
            queue.placed(first, "k1".into());
            queue.member_lost("k2");
            assert_eq!(only(&queue).1.stage, Stage::Running);
            queue.member_lost("k1");
            assert_eq!(queue.get(job).expect("kept").tasks[0].stage, stage);
            assert!(!queue.ended(first, exit(0)), "it ended too late");
        }
        let mut queue = Queue::default();
        let job = queue.submit(order(&["k1", "k2"], 0, false), 0).expect("taken");
        queue.lost(Try { job, task: 0, attempt: 0 }, "k1");
        let tasks = &queue.get(job).expect("kept").tasks;
        assert_eq!(
            (tasks[0].stage, tasks[1].stage),
            (Stage::Failed, Stage::Waiting),
            "it has no other place"
        );
    }

    #[test]
    fn a_cancelled_job_is_over_when_what_runs_has_ended() {
        let mut queue = Queue::default();
        let job = queue.submit(Order { count: Some(2), ..order(&[], 5, false) }, 0).expect("taken");
        let (first, _) = only(&queue);
        queue.placed(first, "k0".into());
        assert!(queue.cancel(job) && !queue.cancel(job + 1));
        assert!(!queue.get(job).expect("kept").is_over() && queue.forget(job).is_err());
        queue.ended(first, End { signal: Some("SIGTERM".into()), ..End::default() });
        let over = queue.get(job).expect("kept");
        assert!(over.is_over() && over.tasks.iter().all(|task| task.stage == Stage::Cancelled), "{over:?}");
    }

    #[test]
    fn what_is_over_is_bounded_and_what_is_open_stays() {
        let mut queue = Queue::default();
        for _ in 0..5 {
            queue.submit(order(&[], 0, false), 0).expect("taken");
        }
        (2..=5).for_each(|job| assert!(queue.cancel(job)));
        queue.trim(2);
        assert_eq!(queue.jobs().map(|(job, _)| job).collect::<Vec<_>>(), [1, 4, 5]);
        assert!(queue.submit(Order { argv: Vec::new(), ..order(&[], 0, false) }, 0).is_err());
        assert!(queue.submit(Order { count: Some(0), ..order(&[], 0, false) }, 0).is_err());
    }

    #[test]
    fn a_tail_keeps_the_last_of_a_stream_and_counts_the_rest() {
        let mut tail = Tail::default();
        tail.push(0, "abc", 4);
        tail.push(3, "de", 4);
        assert_eq!((tail.text.as_str(), tail.before), ("bcde", 1));
        tail.push(100, "\u{e4}\u{e4}x", 4);
        assert_eq!((tail.text.as_str(), tail.before), ("\u{e4}x", 102));
    }
}
