//! A client of the kernels on this host: no runtime, no thread, no signal handler. Requests block; events can be waited
//! for, or be one more descriptor in a loop.
//!
//! It decides which kernel to talk to and what to do when that kernel dies. A read is asked again of another kernel of
//! the DVM. A change is sent again with the same [`Stamp`], so that it takes effect once however often it was sent. A
//! stream of events goes on at another kernel right after the last event. What belongs to one kernel (a fault, a
//! measurement) is never moved. Meaning and order of what is said are the kernel's business.

mod connection;
mod events;
mod families;
mod find;
mod search;
mod time;
mod wake;

pub(crate) use wake::{Alarm, Wake};

pub use events::{End, Events, Filter, Next};
pub use families::{Families, KINDS};

use crate::local::{Answer, Failure, FailureCode, Request, Since, Stamp};
use crate::place::{DvmPlace, PlaceError};
use connection::{Connection, With};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a kernel is tried to be reached unless told otherwise.
pub const REACH: Duration = Duration::from_secs(10);

/// How much longer than the kernel the client waits, so that the kernel's own word on a timeout arrives.
const GRACE: Duration = Duration::from_millis(500);

/// Whom to talk to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The DVM.
    pub place: DvmPlace,
    /// This member's kernel first.
    pub prefer: Option<String>,
    /// This member's kernel and no other.
    pub only: Option<String>,
    /// How the client calls itself in the kernel's log.
    pub client: String,
    /// How long to try to reach a kernel.
    pub reach: Duration,
    /// A kernel that is not a member now will do: for the few requests that it serves.
    pub outside: bool,
}

impl Target {
    /// Any kernel of a DVM.
    #[must_use]
    pub fn new(place: DvmPlace, client: impl Into<String>) -> Self {
        Self { place, prefer: None, only: None, client: client.into(), reach: REACH, outside: false }
    }

    /// This member's kernel and no other.
    #[must_use]
    pub fn only(mut self, member: impl Into<String>) -> Self {
        self.only = Some(member.into());
        self
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        let code = match &error {
            PlaceError::Name { .. } | PlaceError::Uri { .. } => FailureCode::Usage,
            PlaceError::Symlink { .. } | PlaceError::NotOurs { .. } | PlaceError::Open { .. } => {
                FailureCode::Denied
            }
            _ => FailureCode::Failure,
        };
        Self::new(code, error.to_string())
    }
}

/// A client's session with a DVM.
#[derive(Debug)]
pub struct Client {
    target: Target,
    connection: Option<Connection>,
    /// Members whose kernel said that it is no longer part of the DVM.
    shunned: Vec<String>,
    session: String,
    /// The caller chose the session; else it was drawn here, and is drawn anew after a failure.
    named: bool,
    /// Of the last stamp drawn.
    seq: u64,
    /// Cursor of the last receipt: what this client was told must not be gone behind its back.
    seen: Option<String>,
}

/// What an instance in this process has of its kernel.
pub(crate) struct Seat {
    pub(crate) stream: UnixStream,
    /// What came by it already.
    pub(crate) received: Vec<u8>,
    /// The kernel, for questions.
    pub(crate) kernel: Target,
    /// Where to ask for services, and how long a callback may take, milliseconds; an older kernel has none.
    pub(crate) desk: Option<(u64, u64)>,
}

/// What may be done with a request whose kernel was lost before it answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ask another.
    Read,
    /// Send it to another with the same stamp.
    Change,
    /// It was about that kernel.
    Local,
}

impl Client {
    /// Connects, with a session drawn at random.
    ///
    /// # Errors
    /// `NoDvm` if no kernel answers.
    pub fn connect(target: Target) -> Result<Self, Failure> {
        let session = random_session().map_err(|error| {
            Failure::new(FailureCode::Failure, format!("cannot read /dev/urandom: {error}"))
        })?;
        let mut client = Self::with_session(target, session)?;
        client.named = false;
        Ok(client)
    }

    /// Connects with a session of the caller's choice: its changes are numbered from 1, and one with a number that the
    /// DVM knows is answered as it was the first time.
    ///
    /// # Errors
    /// `NoDvm` if no kernel answers.
    pub fn with_session(target: Target, session: impl Into<String>) -> Result<Self, Failure> {
        let connection = Some(target.connect(&[], Instant::now() + target.reach)?);
        Ok(Self {
            target,
            connection,
            shunned: Vec::new(),
            session: session.into(),
            named: true,
            seq: 0,
            seen: None,
        })
    }

    /// The member talked to; none right after its kernel was lost.
    #[must_use]
    pub fn through(&self) -> Option<&str> {
        self.connection.as_ref().map(|connection| connection.member.as_str())
    }

    /// Whom it talks to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A connection of its own to the kernel talked to, as that of a plug-in's instance.
    pub(crate) fn attach(&self, plugin: &str) -> Result<Seat, Failure> {
        let deadline = Instant::now() + self.target.reach;
        let target = match self.through() {
            Some(member) => self.target.clone().only(member),
            None => self.target.clone(),
        };
        let mut connection = target.connect(&[], deadline)?;
        let version = crate::ATTACH_VERSION;
        let request = Request::Attach { plugin: plugin.into(), version, services: true };
        let lost = |error: io::Error| {
            Failure::new(FailureCode::NoDvm, "the kernel was lost before it answered")
                .cause(error.to_string())
        };
        connection.send(&request, With::default(), None, Some(deadline)).map_err(lost)?;
        let desk = match connection.receive(Some(deadline), false).map_err(lost)?.answer? {
            Answer::Attached => None,
            Answer::AttachedAt { desk, deadline_ms } => Some((desk, deadline_ms)),
            _ => return Err(Failure::new(FailureCode::Failure, "the kernel answered something else")),
        };
        let mut kernel = target.only(&connection.member);
        kernel.client = format!("plug-in {plugin}");
        let (stream, received) = connection.into_parts();
        Ok(Seat { stream, received, kernel, desk })
    }

    /// The next stamp of this session.
    pub fn stamp(&mut self) -> Stamp {
        self.seq += 1;
        Stamp { session: self.session.clone(), seq: self.seq }
    }

    /// Asks, and waits for the answer. A change without a stamp gets this session's next.
    ///
    /// # Errors
    /// What the kernel says; `Unknown` when time is up, or when the kernel was lost, no other one is here, and the
    /// change may or may not take effect; `PartitionLost`, once, when what this client was told last is not in the
    /// history that stands: nothing was done, and what was read before is to be read anew.
    pub fn request(
        &mut self,
        request: Request,
        stamp: Option<Stamp>,
        timeout: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let stamps = kind(&request) == Kind::Change && stamp.is_none();
        let answer = self.ask(&request, stamp, timeout);
        let Err(failure) = &answer else { return answer };
        if !stamps || self.named {
            return answer;
        }
        // A change that was refused before it was ordered has used up a number that the DVM has never seen, and all
        // later ones of the session would be refused.
        let Ok(session) = random_session() else { return answer };
        (self.session, self.seq) = (session, 0);
        if failure.code == FailureCode::SessionLost {
            // The branch that knew the session was lost, and with it whatever this change did there. Here it did
            // nothing, and under its old number never will.
            return self.ask(&request, None, timeout);
        }
        answer
    }

    fn ask(
        &mut self,
        request: &Request,
        stamp: Option<Stamp>,
        timeout: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let kind = kind(request);
        let stamp = match (stamp, kind) {
            (None, Kind::Change) => Some(self.stamp()),
            (stamp, _) => stamp,
        };
        let can_move = kind != Kind::Local && self.target.only.is_none();
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut lost_at: Option<String> = None;
        // Those that were out may be back.
        self.shunned.clear();
        loop {
            if self.connection.is_none() {
                let reach = Instant::now() + self.target.reach;
                let until = deadline.map_or(reach, |deadline| reach.min(deadline + GRACE));
                match self.target.connect(&self.shunned, until) {
                    Ok(connection) => self.connection = Some(connection),
                    Err(failure) => return Err(lost(kind, lost_at, failure)),
                }
            }
            let connection = self.connection.as_mut().expect("connected above");
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let seen = self.seen.as_deref().filter(|_| kind != Kind::Local);
            // A promotion has no number by which a repeat would be known.
            let watched = can_move && !matches!(request, Request::Promote);
            match exchange(connection, request, With { stamp: stamp.as_ref(), seen }, left, watched) {
                Ok(Ok(answer)) => {
                    if let Some(receipt) = answer.receipt() {
                        self.seen = Some(receipt.cursor.clone());
                    }
                    return Ok(answer);
                }
                Ok(Err(failure)) if failure.code == FailureCode::PartitionLost => {
                    self.seen = None;
                    return Err(failure);
                }
                Ok(Err(failure)) if failure.code == FailureCode::NoDvm && can_move => {
                    self.shun();
                }
                Ok(Err(failure)) => return Err(failure),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let member = &connection.member;
                    return Err(Failure::new(
                        FailureCode::Unknown,
                        format!(
                            "no answer from {member} within {:.1} s",
                            timeout.unwrap_or_default().as_secs_f64()
                        ),
                    )
                    .hint(
                        "`dvm status` shows what the DVM waits for; a longer limit (--timeout) gives it time",
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.connection = None;
                    return Err(Failure::new(FailureCode::Failure, "the kernel's answer makes no sense")
                        .cause(error.to_string())
                        .hint("are `dvm` and `dvm-kernel` of one version?"));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Err(Failure::new(FailureCode::Usage, error.to_string()));
                }
                Err(_) => {
                    let member = connection.member.clone();
                    self.connection = None;
                    if kind == Kind::Local {
                        let message = format!("the kernel of {member} was lost before it answered");
                        return Err(Failure::new(FailureCode::Unknown, message));
                    }
                    lost_at = Some(member);
                }
            }
        }
    }

    /// Subscribes at a connection of its own.
    ///
    /// # Errors
    /// `NoDvm` if no kernel answers.
    pub fn events(&self, since: Since, filter: Filter) -> Result<Events, Failure> {
        let mut events = Events::new(self.target.clone())?;
        events.subscribe(since, filter)?;
        Ok(events)
    }

    fn shun(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.shunned.push(connection.member);
        }
    }
}

fn exchange(
    connection: &mut Connection,
    request: &Request,
    with: With<'_>,
    left: Option<Duration>,
    watched: bool,
) -> io::Result<Result<Answer, Failure>> {
    let deadline = left.map(|left| Instant::now() + left + GRACE);
    let id = connection.send(request, with, left, deadline)?;
    loop {
        let message = connection.receive(deadline, watched)?;
        // Others are late answers to requests that were given up.
        if message.id == id {
            return Ok(message.answer);
        }
    }
}

/// The failure when no kernel can be reached, given what was going on.
fn lost(kind: Kind, lost_at: Option<String>, failure: Failure) -> Failure {
    match lost_at {
        Some(member) if kind == Kind::Change => Failure::new(
            FailureCode::Unknown,
            format!("the kernel of {member} was lost before it answered, and no other one is here"),
        )
        .cause(failure.message)
        .hint("the change may have taken effect; repeat it with the same --id once a kernel is back"),
        _ => failure,
    }
}

fn kind(request: &Request) -> Kind {
    match request {
        Request::Hello { .. }
        | Request::Status
        | Request::StateGet { .. }
        | Request::StateList { .. }
        | Request::Settings
        | Request::Subscribe { .. }
        | Request::History { .. }
        | Request::Verify
        | Request::PutBlob { .. }
        | Request::Ticket
        | Request::TicketOf { .. }
        | Request::Call { query: true, .. } => Kind::Read,
        Request::StateTransaction { .. }
        | Request::Configure { .. }
        | Request::Call { .. }
        | Request::Transact { .. }
        | Request::Remove { .. }
        | Request::Halt
        | Request::Promote => Kind::Change,
        Request::Service { .. }
        | Request::Chaos(_)
        | Request::Bench { .. }
        | Request::Watch { .. }
        | Request::Watched
        | Request::Metrics
        | Request::Attach { .. } => Kind::Local,
    }
}

fn random_session() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
