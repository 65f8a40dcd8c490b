//! A run: steps that chance draws, and the look at the whole at its end.

use super::chance::Chance;
use super::dvm::{Dvm, Member};
use super::failure::Failure;
use serde_json::{Map, Value, json};
use std::ops::Add;
use std::time::Duration;

/// Most members that a run makes; [`Testbed::members`](super::Testbed::members) may begin with more.
const GROWS_TO: usize = 6;

/// Longest time between two steps, where something happens by itself, milliseconds.
const PAUSE_MAX_MS: i64 = 200;

/// What a message calls the instance that is told all again.
const AGAIN: &str = "k0, told all from the beginning,";

/// Where a run's commands come from: a list of which chance takes one each time, or a function that is given chance.
pub trait Commands {
    /// The next one.
    fn next(&mut self, chance: &mut Chance) -> Value;
}

impl<F: FnMut(&mut Chance) -> Value> Commands for F {
    fn next(&mut self, chance: &mut Chance) -> Value {
        self(chance)
    }
}

impl<const N: usize> Commands for [Value; N] {
    fn next(&mut self, chance: &mut Chance) -> Value {
        chance.one_of(&*self).clone()
    }
}

impl Commands for &[Value] {
    fn next(&mut self, chance: &mut Chance) -> Value {
        chance.one_of(self).clone()
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Commands that the plug-in answered with a reply.
    pub replies: u64,
    /// Commands that it answered with an error of its own.
    pub errors: u64,
    /// Commands whose reply came later, since the primary was paused.
    pub late: u64,
    /// Members lost.
    pub crashes: u64,
    /// Instances that were killed.
    pub failures: u64,
    /// Instances that panicked.
    pub panics: u64,
    /// Times that an instance was paused.
    pub pauses: u64,
    /// Standbys that became the primary though the one before was there.
    pub promotions: u64,
    /// Members that joined.
    pub joins: u64,
}

impl Add for Report {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            replies: self.replies + other.replies,
            errors: self.errors + other.errors,
            late: self.late + other.late,
            crashes: self.crashes + other.crashes,
            failures: self.failures + other.failures,
            panics: self.panics + other.panics,
            pauses: self.pauses + other.pauses,
            promotions: self.promotions + other.promotions,
            joins: self.joins + other.joins,
        }
    }
}

impl Dvm {
    /// Takes so many steps that chance draws: commands mostly, and between them queries, crashes, failures, pauses,
    /// promotions, joins, snapshots; where timers or processes run, time goes on between two. At the end all are resumed, and one more instance is told the whole history from its
    /// beginning: it must be like the others.
    ///
    /// # Errors
    /// [`Failure::Broken`] if the plug-in breaks what a DVM relies on. Its own errors do not end a run.
    pub fn run(&mut self, steps: u64, mut commands: impl Commands) -> Result<Report, Failure> {
        let (mut report, panics) = (Report::default(), self.panics);
        self.panic = None;
        for _ in 0..steps {
            self.drawn(&mut commands, &mut report)?;
            if let Some(panic) = self.panic.take().filter(|_| !self.bed.may_panic) {
                return Err(panic);
            }
        }
        for name in self.names() {
            self.resume(&name)?;
        }
        report.panics = self.panics - panics;
        self.tell_all_again()?;
        Ok(report)
    }

    fn drawn(&mut self, commands: &mut impl Commands, report: &mut Report) -> Result<(), Failure> {
        if self.next_ms().is_some() {
            let time = self.chance.within(0..PAUSE_MAX_MS);
            self.advance(Duration::from_millis(time as u64))?;
        }
        let names = self.names();
        let mut chance = self.chance.clone();
        let (draw, member) = (chance.within(0..100), chance.one_of(&names).clone());
        let command = commands.next(&mut chance);
        self.chance = chance;
        let many = self.members.len() > 1;
        let counted = |count: &mut u64, result: Result<(), Failure>| match result {
            Ok(()) => {
                *count += 1;
                Ok(())
            }
            // Not every step can be taken at every time.
            Err(Failure::Misuse(_)) => Ok(()),
            Err(failure) => Err(failure),
        };
        match draw {
            0..=2 if many => counted(&mut report.crashes, self.crash(&member)),
            3..=5 => counted(&mut report.failures, self.fail(&member)),
            6..=9 if many => counted(&mut report.pauses, self.pause(&member)),
            10..=17 => self.resume(&member),
            18..=20 => counted(&mut report.promotions, self.promote()),
            21..=24 if self.members.len() < GROWS_TO => counted(&mut report.joins, self.join().map(drop)),
            25..=28 => counted(&mut 0, self.keep_snapshot()),
            29..=30 => self.event("config-changed", something_changed()),
            31 => self.configure(self.bed.config.clone()),
            32..=35 => match self.query(command) {
                Err(failure @ Failure::Broken(_)) => Err(failure),
                _ => Ok(()),
            },
            _ => {
                match self.call(command) {
                    Ok(_) => report.replies += 1,
                    Err(Failure::Own(_)) => report.errors += 1,
                    Err(Failure::Unanswered(_)) => report.late += 1,
                    Err(failure) => return Err(failure),
                }
                Ok(())
            }
        }
    }

    /// One more member's instance is told the whole history, and leaves again.
    fn tell_all_again(&mut self) -> Result<(), Failure> {
        self.step("tell an instance the whole history".into());
        if self.bed.stateless {
            return Ok(());
        }
        let at = self.members.len();
        self.members.push(Member { name: AGAIN.into(), paused: false, instance: None });
        let told = self.replay(at);
        self.members.truncate(at);
        told
    }
}

fn something_changed() -> Map<String, Value> {
    let fields = json!({"keys": ["silence_ms"], "member": null});
    fields.as_object().cloned().unwrap_or_default()
}
