//! The search for a kernel that answers, a step at a time: nothing here waits.
//!
//! All that answer at once come first, then with patience those that accept and stay silent. Who waits between two steps,
//! and how, is the caller's business: [`Target::connect`] sleeps, a subscription leaves it to its program's loop.

use super::connection::{Connection, Refusal};
use super::{Target, wake};
use crate::local::{Failure, FailureCode};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How long a kernel may take to say hello while another one may be there.
const HELLO_FIRST: Duration = Duration::from_millis(300);

/// How long in the rounds after the first.
const HELLO_LATER: Duration = Duration::from_secs(2);

/// Pause between two rounds: one that has just joined may be known as a member before it is one itself.
const ROUND: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Search {
    /// Members that are passed over.
    shunned: Vec<String>,
    /// When it is given up.
    deadline: Instant,
    /// When the next round begins, between two.
    pause: Option<Instant>,
    /// Those of this round who were not asked yet.
    candidates: VecDeque<String>,
    /// The one whose hello is waited for, and until when.
    asked: Option<(Connection, Instant)>,
    /// Those of this round who accepted and said nothing.
    silent: Vec<String>,
    /// The one that will do and no other, if it was no member in this round.
    outside: Vec<String>,
    patience: Duration,
}

/// What a step came to.
pub(super) enum Step {
    Found(Connection),
    /// Nothing more to do before this moment, or before the descriptor of [`Search::fd`] has something to read.
    Wait(Instant),
}

impl Search {
    pub(super) fn new(shunned: &[String], deadline: Instant) -> Self {
        Self {
            shunned: shunned.to_vec(),
            deadline,
            pause: Some(Instant::now()),
            candidates: VecDeque::new(),
            asked: None,
            silent: Vec::new(),
            outside: Vec::new(),
            patience: HELLO_FIRST,
        }
    }

    /// Goes as far as it can without waiting. Connections that came to nothing go to `gone`, still open.
    ///
    /// # Errors
    /// `NoDvm` if no kernel answers or is a member, `NotFound` if others do but not the one wanted.
    pub(super) fn step(&mut self, target: &Target, gone: &mut Vec<Connection>) -> Result<Step, Failure> {
        loop {
            let now = Instant::now();
            if let Some(pause) = self.pause {
                if now < pause {
                    return Ok(Step::Wait(pause));
                }
                self.pause = None;
                self.candidates = candidates(target, &self.shunned)?;
                self.silent.clear();
                self.outside.clear();
            }
            if let Some((mut connection, until)) = self.asked.take() {
                match connection.greeted(target.outside) {
                    Ok(true) => return Ok(Step::Found(connection)),
                    Ok(false) if now < until => {
                        self.asked = Some((connection, until));
                        return Ok(Step::Wait(until));
                    }
                    Ok(false) => self.silent.push(connection.member.clone()),
                    Err(refusal) => {
                        let member = connection.member.clone();
                        gone.push(connection);
                        self.refused(target, member, refusal)?;
                        continue;
                    }
                }
                gone.push(connection);
            } else if let Some(member) = self.candidates.pop_front() {
                match Connection::begin(target, &member) {
                    Ok(connection) => self.asked = Some((connection, self.deadline.min(now + self.patience))),
                    Err(refusal) => self.refused(target, member, refusal)?,
                }
            } else if self.silent.is_empty() && self.outside.is_empty() || now >= self.deadline {
                return Err(unreachable(target, &self.silent, &self.outside));
            } else {
                self.pause = Some(now + ROUND);
                self.patience = HELLO_LATER;
            }
        }
    }

    /// The connection that was begun last, if nothing has come of it yet.
    pub(super) fn into_connection(self) -> Option<Connection> {
        self.asked.map(|(connection, _)| connection)
    }

    /// What [`Step::Wait`] is also ended by.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.asked.as_ref().map(|(connection, _)| connection.fd())
    }

    /// The end of [`Step::Wait`].
    pub(super) fn until(&self) -> Instant {
        self.asked.as_ref().map(|(_, until)| *until).or(self.pause).unwrap_or(self.deadline)
    }

    fn refused(&mut self, target: &Target, member: String, refusal: Refusal) -> Result<(), Failure> {
        match refusal {
            Refusal::Gone => {}
            Refusal::Silent => self.silent.push(member),
            // Where any kernel will do, this one is none.
            Refusal::Outside => self.outside.extend(target.only.clone()),
            Refusal::Failed(failure) => return Err(failure),
        }
        Ok(())
    }
}

impl Target {
    /// Connects to a kernel that is not among `shunned`, and waits for one until `deadline` at the latest.
    ///
    /// # Errors
    /// As [`Search::step`].
    pub(super) fn connect(&self, shunned: &[String], deadline: Instant) -> Result<Connection, Failure> {
        let mut search = Search::new(shunned, deadline);
        loop {
            match search.step(self, &mut Vec::new())? {
                Step::Found(connection) => return Ok(connection),
                Step::Wait(until) => wake::wait(search.fd(), Some(until)),
            }
        }
    }
}

fn candidates(target: &Target, shunned: &[String]) -> Result<VecDeque<String>, Failure> {
    let mut members = match &target.only {
        Some(only) => vec![only.clone()],
        None => target.place.members()?,
    };
    if let Some(first) = target.prefer.as_ref().and_then(|prefer| members.iter().position(|m| m == prefer)) {
        members[..=first].rotate_right(1);
    }
    members.retain(|member| !shunned.contains(member));
    Ok(members.into())
}

/// What lets kernels go on that accept and stay silent, and what ends them and nobody else, where others live to do so.
fn bring_back(target: &Target, silent: &[String]) -> String {
    let place = &target.place;
    let pids: Vec<_> =
        silent.iter().filter_map(|member| place.pid(member)).map(|pid| pid.to_string()).collect();
    let go_on = match pids.as_slice() {
        [] => String::new(),
        pids => format!("what is stopped goes on with `kill -CONT {}`; ", pids.join(" ")),
    };
    let end = match place.live_members().iter().any(|member| !silent.contains(member)) {
        true => format!("dvm remove {} --force", silent.join(",")),
        false => "dvm halt --force".into(),
    };
    format!("{go_on}`{end}` ends it")
}

fn unreachable(target: &Target, silent: &[String], outside: &[String]) -> Failure {
    let dvm = target.place.name();
    if !silent.is_empty() {
        return Failure::new(FailureCode::NoDvm, format!("no kernel of DVM `{dvm}` answers"))
            .cause(format!("{} accepted and stayed silent: stopped, or overloaded", silent.join(", ")))
            .hint(bring_back(target, silent));
    }
    if !outside.is_empty() {
        let member = outside.join(", ");
        return Failure::new(FailureCode::NoDvm, format!("{member} is no member of DVM `{dvm}` now"))
            .cause("its kernel lives, and is on its way in or out")
            .hint(format!("ask another member; `dvm logs {member}` tells what it does"));
    }
    if let Some(only) = &target.only {
        let live = target.place.live_members();
        if !live.is_empty() {
            let message = format!("no kernel `{only}` of DVM `{dvm}` on this host");
            return Failure::new(FailureCode::NotFound, message)
                .hint(format!("these are here: {}", live.join(", ")));
        }
    }
    Failure::new(FailureCode::NoDvm, format!("no kernel of DVM `{dvm}` lives on this host"))
        .cause(format!("nothing accepts in {}", target.place.directory().display()))
        .hint("see `dvm list`; start one with `dvm up`")
}
