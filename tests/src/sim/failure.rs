//! What can be wrong with a run.

use std::fmt;

/// Class of a failure; the binary's exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Something happened that must never happen.
    Safety,
    /// Something that must happen did not, though all faults had ended.
    Liveness,
    /// The member's code panicked; its own assertions do so too.
    Panic,
}

impl Class {
    /// As it is printed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Safety => "safety",
            Self::Liveness => "liveness",
            Self::Panic => "panic",
        }
    }
}

/// Why a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its class.
    pub class: Class,
    /// The invariant that does not hold, `I1` to `I22`, or `R…` for a rule, or a word.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
    /// When, in simulated microseconds.
    pub at_us: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, rule, text) = (self.class.word(), self.rule, &self.text);
        write!(f, "{class} [{rule}] at {:.6} s: {text}", self.at_us as f64 / 1e6)
    }
}

/// What a checker objects to; the run adds class and time.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

/// A checker's word.
pub(crate) type Verdict<T = ()> = Result<T, Violation>;

/// Fails with `rule` and the text that `text` makes, unless `holds`.
pub(crate) fn ensure(holds: bool, rule: &'static str, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { rule, text: text() }) }
}
