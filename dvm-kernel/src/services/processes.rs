//! Processes that plug-ins have started on this member: each once for its plug-in and key, with the end of its output and how
//! it ended, so that whoever follows it later still learns both.
//!
//! Each has a keeper, a process that ends it when this kernel is gone. Reading its output never waits for a follower: what is
//! not read in time is left out, and the place of what follows shows it.

use super::keeper::{self, End, FromKeeper, Order, ToKeeper};
use crate::plugins::channel;
use bytes::BytesMut;
use dvm_core::ids::Name;
use dvm_plugin_api::service::{CHUNK_MAX, ENDED_MAX, PROCESSES_MAX, Tail, too_many_processes};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// How long output may still come when its process has ended: somebody else holds the pipe then.
const DRAIN: Duration = Duration::from_millis(500);

/// How long a keeper may take to end with everything it keeps.
const ENDING: Duration = Duration::from_secs(5);

/// Names of the two streams.
pub(crate) const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// All processes of this kernel's plug-ins.
#[derive(Debug)]
pub(crate) struct Processes {
    /// The executable to run as `process-host`.
    kernel: PathBuf,
    /// Set for each process.
    env: Vec<(String, String)>,
    runs: RefCell<BTreeMap<(Name, String), Rc<Run>>>,
    /// How many have ended so far.
    ended: Rc<Cell<u64>>,
}

/// One process.
#[derive(Debug)]
struct Run {
    pid: Cell<Option<u32>>,
    output: [RefCell<Tail>; 2],
    end: RefCell<Option<End>>,
    /// The how manieth of all that ended it is.
    ended: Cell<u64>,
    terminate: Notify,
    /// Everything of it is to end at once.
    over: Notify,
    /// This kernel ends it on its own account: its end says nothing of it, and nobody is told. They hear that the member
    /// is gone, or the plug-in.
    abandoned: Cell<bool>,
    /// One more with each change.
    version: watch::Sender<u64>,
}

/// What a follower is told, in this order: one `Started`, any number of `Output`, one `Ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// It runs.
    Started(u32),
    /// It has written something.
    Output {
        /// Of [`STREAMS`].
        stream: u8,
        /// Where in the stream it begins, bytes.
        at: u64,
        /// Where it ends.
        to: u64,
        /// What is no UTF-8 is replaced.
        text: String,
    },
    /// It is over.
    Ended(End),
    /// Nothing happened for a while.
    Quiet,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    started: bool,
    /// In each stream.
    at: [u64; 2],
}

impl Progress {
    /// A follower has taken this.
    pub(crate) fn note(&mut self, news: &News) {
        match news {
            News::Started(_) => self.started = true,
            News::Output { stream, to, .. } => self.at[usize::from(*stream).min(1)] = *to,
            News::Ended(_) | News::Quiet => {}
        }
    }
}

/// Someone who follows a process.
#[derive(Debug)]
pub(crate) struct Follow {
    run: Rc<Run>,
    version: watch::Receiver<u64>,
    progress: Progress,
}

impl Processes {
    pub(crate) fn new(kernel: PathBuf, env: Vec<(String, String)>) -> Self {
        Self { kernel, env, runs: RefCell::default(), ended: Rc::default() }
    }

    /// Follows the process of a plug-in with this key, which is started if there never was one.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn follow(
        &self,
        plugin: &Name,
        key: &str,
        mut order: Order,
        progress: Progress,
    ) -> Result<Follow, String> {
        let found = self.runs.borrow().get(&(plugin.clone(), key.to_owned())).cloned();
        let run = match found {
            Some(run) => run,
            None => {
                self.make_room(plugin)?;
                for (name, value) in &self.env {
                    order.env.entry(name.clone()).or_insert_with(|| value.clone());
                }
                let run = Rc::new(Run::default());
                self.runs.borrow_mut().insert((plugin.clone(), key.into()), run.clone());
                tracing::info!(plugin, key, program = order.argv.first(), "a process is started");
                spawn_local(run.clone().keep(self.kernel.clone(), key.into(), order, self.ended.clone()));
                run
            }
        };
        let version = run.version.subscribe();
        Ok(Follow { run, version, progress })
    }

    /// Forgets the first that ended, if there are many; refuses if too many run.
    fn make_room(&self, plugin: &Name) -> Result<(), String> {
        let mut runs = self.runs.borrow_mut();
        let mine = || runs.iter().filter(|((of, _), _)| of == plugin);
        let over = |run: &Run| run.end.borrow().is_some();
        if mine().filter(|(_, run)| !over(run)).count() >= PROCESSES_MAX {
            return Err(too_many_processes(plugin));
        }
        let ended = || mine().filter(|(_, run)| over(run));
        if ended().count() >= ENDED_MAX {
            let first = ended().min_by_key(|(_, run)| run.ended.get()).map(|(at, _)| at.clone());
            first.map(|first| runs.remove(&first));
        }
        Ok(())
    }

    /// Ends a process: first by SIGTERM.
    pub(crate) fn terminate(&self, plugin: &Name, key: &str) {
        if let Some(run) = self.runs.borrow().get(&(plugin.clone(), key.to_owned())) {
            run.terminate.notify_one();
        }
    }

    /// Ends and forgets the processes of all plug-ins but those that `stay`; returns when the last one is gone.
    pub(crate) async fn end_all_but(&self, stay: impl Fn(&Name) -> bool) {
        let mut ending = Vec::new();
        self.runs.borrow_mut().retain(|(plugin, _), run| {
            let stays = stay(plugin);
            if !stays {
                run.abandoned.set(true);
                run.kill();
                ending.push(run.clone());
            }
            stays
        });
        for run in ending {
            let mut version = run.version.subscribe();
            let gone = version.wait_for(|_| run.end.borrow().is_some());
            if timeout(ENDING, gone).await.is_err() {
                tracing::error!(
                    pid = run.pid.get(),
                    "a process does not end; it is left to the operating system"
                );
            }
        }
    }
}

impl Default for Run {
    fn default() -> Self {
        Self {
            pid: Cell::default(),
            output: Default::default(),
            end: RefCell::default(),
            ended: Cell::default(),
            terminate: Notify::new(),
            over: Notify::new(),
            abandoned: Cell::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Run {
    /// From its start to its end.
    async fn keep(self: Rc<Self>, kernel: PathBuf, key: String, order: Order, ended: Rc<Cell<u64>>) {
        let end = match keeper::start(&kernel, &key) {
            Err(error) => End::Failed(format!("no process to keep it: {error}")),
            Ok((mut keeper, socket)) => {
                let streams = (keeper.stdout.take(), keeper.stderr.take());
                let (out, err) = (
                    spawn_local(self.clone().read(0, streams.0)),
                    spawn_local(self.clone().read(1, streams.1)),
                );
                let end = self.converse(socket, order).await;
                let end = end.unwrap_or_else(|error| End::Failed(format!("its keeper was lost: {error}")));
                // Nobody else knows of what its keeper has left.
                self.kill();
                let _ = timeout(ENDING, keeper.wait()).await;
                for reading in [out, err] {
                    let abort = reading.abort_handle();
                    if timeout(DRAIN, reading).await.is_err() {
                        abort.abort();
                    }
                }
                end
            }
        };
        tracing::debug!(key, ?end, "a process has ended");
        ended.set(ended.get() + 1);
        self.ended.set(ended.get());
        *self.end.borrow_mut() = Some(end);
        self.changed();
    }

    async fn converse(&self, socket: std::os::unix::net::UnixStream, order: Order) -> io::Result<End> {
        let mut socket = UnixStream::from_std(socket)?;
        socket.write_all(&channel::frame(&ToKeeper::Start(order))).await?;
        let mut received = BytesMut::new();
        loop {
            while let Some(said) = channel::take::<FromKeeper>(&mut received)? {
                match said {
                    FromKeeper::Started(pid) => {
                        self.pid.set(Some(pid));
                        self.changed();
                    }
                    FromKeeper::Ended(end) => {
                        // The number is somebody else's from here on.
                        self.pid.set(None);
                        return Ok(end);
                    }
                }
            }
            tokio::select! {
                count = socket.read_buf(&mut received) => {
                    if count? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                () = self.terminate.notified() => {
                    socket.write_all(&channel::frame(&ToKeeper::Terminate)).await?;
                }
                // The keeper does the rest when its socket is closed.
                () = self.over.notified() => return Ok(End::Signal(Signal::KILL.as_raw())),
            }
        }
    }

    async fn read(self: Rc<Self>, stream: usize, from: Option<impl tokio::io::AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut chunk = vec![0; CHUNK_MAX];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            self.output[stream].borrow_mut().push(&chunk[..count]);
            self.changed();
        }
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn kill(&self) {
        if let Some(pid) = self.pid.get().and_then(|pid| Pid::from_raw(pid as i32)) {
            // It may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        self.over.notify_one();
    }
}

impl Follow {
    /// What it is told next; after the end, nothing more ever. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.ready() {
                self.progress.note(&news);
                return news;
            }
            // The sender is in the run that this one holds.
            let _ = self.version.changed().await;
        }
    }

    fn ready(&mut self) -> Option<News> {
        self.version.borrow_and_update();
        let Run { pid, output, end, .. } = &*self.run;
        if let (false, Some(pid)) = (self.progress.started, pid.get()) {
            return Some(News::Started(pid));
        }
        let over = end.borrow().clone();
        for (stream, at) in (0..).zip(self.progress.at) {
            if let Some((at, to, text)) = output[usize::from(stream)].borrow().text(at, over.is_some()) {
                return Some(News::Output { stream, at, to, text });
            }
        }
        over.filter(|_| !self.run.abandoned.get()).map(News::Ended)
    }
}
