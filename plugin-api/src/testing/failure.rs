//! What a test is told when something is not as it should be.

use serde_json::Value;
use std::fmt;

/// Why a step of a [`Dvm`](super::Dvm) has no result. `{:?}` prints the same text as `{}`, so that a test that returns it
/// is readable.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Failure {
    /// The plug-in's own error: what whoever sent the command or the configuration is told.
    Own(String),
    /// Nobody answers now: whoever would is paused. A command takes effect when it is resumed.
    Unanswered(String),
    /// The step cannot be done, and nothing was.
    Misuse(String),
    /// The plug-in broke what a DVM relies on.
    Broken(Box<Broken>),
}

/// How a plug-in broke what a DVM relies on, and where.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Broken {
    /// In which way.
    pub breach: Breach,
    /// The member whose instance it was.
    pub member: String,
    /// Index of the command or event; 0 before the first.
    pub index: u64,
    /// What it was, in words.
    pub what: String,
    /// The command, if it was one.
    pub command: Option<Value>,
    /// What differs, or what was said.
    pub detail: String,
    /// The seed, and the step that it broke at: the same steps under this seed lead to it again.
    pub seed: u64,
    /// As above; the first step is 1.
    pub step: u64,
    /// What the test did last, and what instances logged.
    pub before: Vec<String>,
}

/// In which way a plug-in broke what a DVM relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// Two instances that were told the same replied or are different.
    Parted,
    /// What `restore` made of a snapshot has another snapshot.
    HandedOver,
    /// `restore` refused a snapshot.
    Refused,
    /// A query changed the state.
    Queried,
    /// An event that came to one instance alone changed its state.
    Alone,
    /// It panicked.
    Panicked,
}

impl Breach {
    fn words(self) -> &'static str {
        match self {
            Self::Parted => "parted from the others",
            Self::HandedOver => "is not what the snapshot was taken of",
            Self::Refused => "refuses another instance's snapshot",
            Self::Queried => "was changed by a query",
            Self::Alone => "was changed by what came to it alone",
            Self::Panicked => "panicked",
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Parted => {
                "what an instance does may depend on its state, the command and `meta` alone: no clock, no chance, no \
                 order of a hash map, neither the member nor its role; and a snapshot must write a state in one way"
            }
            Self::HandedOver => {
                "`restore` must take over all that `snapshot` writes, and write it in the same way"
            }
            Self::Refused => "`restore` must take what `snapshot` writes",
            Self::Queried => "`query` must leave the state as it is: it happens at one instance alone",
            Self::Alone => {
                "messages, timers, watched keys and processes come to one instance: what is to become of the state is said \
                 to all, by `broadcast`"
            }
            Self::Panicked => {
                "return an error; where a panic is meant, `Testbed::may_panic` lets the run go on"
            }
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { breach, member, index, what, detail, seed, step, before, .. } = self;
        write!(f, "the instance on {member} {} at index {index}, {what}", breach.words())?;
        write!(f, "\n{detail}\nhint: {}\n", breach.hint())?;
        write!(f, "again: seed {seed}, the same steps; it is step {step}, and these are the last:")?;
        before.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(text) | Self::Unanswered(text) | Self::Misuse(text) => f.write_str(text),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}
