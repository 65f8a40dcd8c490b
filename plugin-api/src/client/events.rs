//! A stream of events that outlives the kernel it comes from.
//!
//! It goes on at another kernel of the DVM on this host, right after the last event, when its own is lost or says nothing
//! to a question. Where there is none it tells `detached` once and tries again whenever its caller asks for events. No
//! event is told twice, none is missed: what no kernel keeps any more is told as `overflow` by the kernel.

use super::connection::{Connection, With};
use super::search::{Search, Step};
use super::time::rfc3339;
use super::wake::{self, Alarm, Wake};
use super::{GRACE, Target};
use crate::local::{Answer, EventDoc, Failure, FailureCode, Request, Since, ToClient};
use serde_json::Map;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

/// Pause before a kernel is looked for again; it grows.
const RETRY: Duration = Duration::from_millis(50);

/// The longest it grows to.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only kinds that begin with one of these; empty: all but `key-changed` and `member-suspected`.
    pub kinds: Vec<String>,
    /// Go on with new ones.
    pub follow: bool,
    /// Only `key-changed` of keys that begin with this.
    pub key_prefix: Option<String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// An event; `detached` is one too.
    Event(Box<EventDoc>),
    /// Nothing within the time asked for.
    Quiet,
    /// The stream's end.
    End(End),
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The DVM ended in order.
    Halt,
    /// All that is kept was told, and new ones were not asked for.
    Kept,
}

/// A subscription. Its descriptor is readable when an event is there or may be, so that it can be one more in a loop; it
/// stays the same whichever kernel tells the events, and while none does.
#[derive(Debug)]
pub struct Events {
    target: Target,
    filter: Filter,
    /// Where to begin again: after the last event told.
    since: Since,
    link: Link,
    wake: Wake,
    /// Connections that came to nothing: open until `wake` no longer watches them.
    gone: Vec<Connection>,
    /// The last event with an index, of which a repeat after a reattachment is dropped.
    last: Option<EventDoc>,
    /// Searches in vain since a kernel was last there; after the first `detached` was told.
    vain: u32,
    /// `halting` was told: a lost kernel means the end now.
    halting: bool,
    /// How it ended; what comes next for ever.
    over: Option<Result<End, Failure>>,
}

/// Who is talked to.
#[derive(Debug)]
enum Link {
    /// Nobody until then.
    Apart { again: Instant },
    /// Whoever is found.
    Search(Box<Search>),
    /// A kernel that is asked how far the history is: from there on the place is known, whichever kernel tells the rest.
    Placing { connection: Connection, id: u64, until: Instant },
    /// A kernel that tells the events, and the number of the subscription there.
    Attached { connection: Connection, id: u64 },
}

impl Link {
    /// What it goes on after: something to read, or a moment.
    fn waits_for(&self) -> (Option<BorrowedFd<'_>>, Option<Instant>) {
        match self {
            Self::Apart { again } => (None, Some(*again)),
            Self::Search(search) => (search.fd(), Some(search.until())),
            Self::Placing { connection, until, .. } => (Some(connection.fd()), Some(*until)),
            Self::Attached { connection, .. } => (Some(connection.fd()), Some(connection.looks_at())),
        }
    }
}

impl Events {
    /// One without a subscription yet: its descriptor is there, and nothing is told before [`subscribe`](Self::subscribe).
    ///
    /// # Errors
    /// `Failure` when the operating system has no descriptors left.
    pub fn new(target: Target) -> Result<Self, Failure> {
        let none = Failure::new(FailureCode::Usage, "nothing is subscribed").hint("subscribe first");
        Ok(Self {
            target,
            filter: Filter::default(),
            since: Since::Now,
            link: Link::Apart { again: Instant::now() },
            wake: Wake::new().map_err(no_descriptor)?,
            gone: Vec::new(),
            last: None,
            vain: 0,
            halting: false,
            over: Some(Err(none)),
        })
    }

    /// Subscribes, in place of what was subscribed before, and waits until a kernel has taken it.
    ///
    /// # Errors
    /// `NoDvm` if no kernel answers; what was subscribed before has ended then.
    pub fn subscribe(&mut self, since: Since, filter: Filter) -> Result<(), Failure> {
        (self.since, self.filter, self.last) = (since, filter, None);
        (self.vain, self.halting, self.over) = (0, false, None);
        self.search();
        let subscribed = loop {
            match self.attach() {
                Ok(true) => break Ok(()),
                Ok(false) => {
                    let (fd, until) = self.link.waits_for();
                    wake::wait(fd, until);
                }
                Err(failure) => break Err(failure),
            }
        };
        if let Err(failure) = &subscribed {
            self.end(Err(failure.clone()));
        }
        self.rearm()?;
        subscribed
    }

    /// The member whose kernel tells them; none while detached.
    #[must_use]
    pub fn through(&self) -> Option<&str> {
        match &self.link {
            Link::Attached { connection, .. } => Some(&connection.member),
            _ => None,
        }
    }

    /// Where another subscription would have to begin to go on from here.
    #[must_use]
    pub fn position(&self) -> &Since {
        &self.since
    }

    /// The next event; with a limit of time, [`Next::Quiet`] when it is up.
    ///
    /// # Errors
    /// What the kernel refuses the subscription with; it has ended then. A lost kernel is no error.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Next, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let next = self.try_next()?;
            if next != Next::Quiet || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(next);
            }
            wake::wait(Some(self.wake.as_fd()), deadline);
        }
    }

    /// The next event if one is here, else [`Next::Quiet`]; never waits. After it, the descriptor is readable when it is
    /// worth to ask again.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Next, Failure> {
        if self.over.is_none() {
            match self.step() {
                Ok(Next::End(end)) => self.end(Ok(end)),
                Ok(next) => {
                    self.rearm()?;
                    return Ok(next);
                }
                Err(failure) => self.end(Err(failure)),
            }
            self.rearm()?;
        }
        self.over.clone().expect("ended above, or before").map(Next::End)
    }

    /// Goes on as far as it can without waiting.
    fn step(&mut self) -> Result<Next, Failure> {
        loop {
            match self.attach() {
                Ok(true) => {}
                Ok(false) => return Ok(Next::Quiet),
                Err(failure) if failure.code != FailureCode::NoDvm => return Err(failure),
                Err(_) if self.halting => return Ok(Next::End(End::Halt)),
                Err(_) => {
                    self.link = Link::Apart { again: Instant::now() + pause(self.vain) };
                    self.vain += 1;
                    if self.vain == 1 {
                        return Ok(Next::Event(Box::new(self.detached_event())));
                    }
                    return Ok(Next::Quiet);
                }
            }
            if let Some(next) = self.receive()? {
                return Ok(next);
            }
        }
    }

    /// What the kernel attached to has told; nothing when it was lost meanwhile.
    fn receive(&mut self) -> Result<Option<Next>, Failure> {
        let Link::Attached { connection, id } = &mut self.link else { return Ok(None) };
        let id = *id;
        loop {
            match connection.try_receive() {
                Ok(None) if connection.look().is_ok() => return Ok(Some(Next::Quiet)),
                Ok(None) => break,
                Ok(Some(message)) if message.id != id => {}
                Ok(Some(message)) => match message.answer {
                    Ok(Answer::Event(event)) => {
                        if note(&mut self.since, &mut self.last, &event) {
                            self.halting |= event.kind == "halting";
                            return Ok(Some(Next::Event(event)));
                        }
                    }
                    Ok(Answer::End { why }) if why == "halt" => return Ok(Some(Next::End(End::Halt))),
                    Ok(Answer::End { why }) if why == "kept" => return Ok(Some(Next::End(End::Kept))),
                    Err(failure) if failure.code != FailureCode::NoDvm => return Err(failure),
                    _ => break,
                },
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(nonsense(&error)),
                Err(_) => break,
            }
        }
        self.search();
        Ok(None)
    }

    /// Goes on until a kernel has been asked for the events, as far as that is possible without waiting; whether it is.
    fn attach(&mut self) -> Result<bool, Failure> {
        loop {
            let now = Instant::now();
            let connection = match &mut self.link {
                Link::Attached { .. } => return Ok(true),
                Link::Apart { again } if now < *again => return Ok(false),
                Link::Apart { .. } => {
                    self.search();
                    continue;
                }
                Link::Search(search) => match search.step(&self.target, &mut self.gone)? {
                    Step::Wait(_) => return Ok(false),
                    Step::Found(connection) => connection,
                },
                Link::Placing { connection, id, until } => match connection.try_receive() {
                    Ok(None) if now < *until => return Ok(false),
                    Ok(Some(message)) if message.id != *id => continue,
                    Ok(Some(ToClient { answer: Ok(Answer::Status(status)), .. })) => {
                        // A DVM that is founded later under this name has such an index, too.
                        self.since = match status.cursor.is_empty() {
                            false => Since::Cursor(status.cursor.clone()),
                            // An older kernel.
                            true => Since::Index(status.index),
                        };
                        let Link::Placing { connection, .. } = self.replace_link(now) else {
                            unreachable!("it was placed above")
                        };
                        connection
                    }
                    Ok(Some(ToClient { answer: Err(failure), .. })) if failure.code != FailureCode::NoDvm => {
                        return Err(failure);
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(nonsense(&error)),
                    _ => {
                        self.search();
                        continue;
                    }
                },
            };
            self.ask(connection, now);
        }
    }

    /// Asks a kernel that was found for the events, or first for their place.
    fn ask(&mut self, mut connection: Connection, now: Instant) {
        let until = now + self.target.reach + GRACE;
        let placing = self.filter.follow && self.since == Since::Now;
        let request = if placing {
            Request::Status
        } else {
            Request::Subscribe {
                since: self.since.clone(),
                kinds: self.filter.kinds.clone(),
                follow: self.filter.follow,
                key_prefix: self.filter.key_prefix.clone(),
            }
        };
        match connection.send(&request, With::default(), None, Some(until)) {
            Ok(id) if placing => self.link = Link::Placing { connection, id, until },
            Ok(id) => {
                self.link = Link::Attached { connection, id };
                self.vain = 0;
            }
            Err(_) => {
                self.gone.push(connection);
                self.search();
            }
        }
    }

    /// Begins to look for a kernel.
    fn search(&mut self) {
        let now = Instant::now();
        let search = Search::new(&[], now + self.target.reach);
        self.leave(now);
        self.link = Link::Search(Box::new(search));
    }

    fn end(&mut self, how: Result<End, Failure>) {
        self.leave(Instant::now());
        self.over = Some(how);
    }

    /// Talks to nobody any more.
    fn leave(&mut self, now: Instant) {
        let connection = match self.replace_link(now) {
            Link::Attached { connection, .. } | Link::Placing { connection, .. } => Some(connection),
            Link::Search(search) => search.into_connection(),
            Link::Apart { .. } => None,
        };
        self.gone.extend(connection);
    }

    fn replace_link(&mut self, now: Instant) -> Link {
        std::mem::replace(&mut self.link, Link::Apart { again: now })
    }

    /// Makes the descriptor tell when it is worth to ask again, and closes what it need not watch any more.
    fn rearm(&mut self) -> Result<(), Failure> {
        let (fd, alarm) = match &self.link {
            _ if self.over.is_some() => (None, Alarm::Never),
            Link::Attached { connection, .. } if connection.holds_message() => {
                (Some(connection.fd()), Alarm::Now)
            }
            _ => {
                let (fd, until) = self.link.waits_for();
                (fd, until.map_or(Alarm::Never, Alarm::At))
            }
        };
        self.wake.watch(fd, alarm).map_err(no_descriptor)?;
        self.gone.clear();
        Ok(())
    }

    fn detached_event(&self) -> EventDoc {
        let last = self.last.as_ref();
        let text = |field: fn(&EventDoc) -> &String| last.map(field).cloned().unwrap_or_default();
        EventDoc {
            schema: 1,
            index: None,
            view: text(|last| &last.view),
            epoch: last.map(|last| last.epoch).unwrap_or_default(),
            label: text(|last| &last.label),
            lineage: text(|last| &last.lineage),
            cursor: text(|last| &last.cursor),
            time: rfc3339(SystemTime::now()),
            kind: "detached".into(),
            more: Map::new(),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Remembers an event's place; whether it is new.
fn note(since: &mut Since, last: &mut Option<EventDoc>, event: &EventDoc) -> bool {
    let Some(index) = event.index else { return true };
    if last.as_ref().is_some_and(|last| last.lineage == event.lineage && last.index >= Some(index)) {
        return false;
    }
    *since = Since::Cursor(event.cursor.clone());
    *last = Some(event.clone());
    true
}

/// How long nobody is looked for after so many searches in vain.
fn pause(vain: u32) -> Duration {
    RETRY.saturating_mul(1 << vain.min(8)).min(RETRY_MAX)
}

fn no_descriptor(error: io::Error) -> Failure {
    Failure::new(FailureCode::Failure, "no descriptor for a subscription").cause(error.to_string())
}

fn nonsense(error: &io::Error) -> Failure {
    Failure::new(FailureCode::Failure, "an event of the kernel makes no sense").cause(error.to_string())
}
