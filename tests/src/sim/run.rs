//! One seed from beginning to end, whatever happens in it.

use super::end::End;
use super::failure::{Class, Failure};
use super::faults::Plan;
use super::figures::Figures;
use super::mutant::Mutant;
use super::options::{Level, Noise, Options};
use super::trace::Tracer;
use super::world::World;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Run {
    /// The seed; all else follows from it and the level.
    pub seed: u64,
    /// How much goes wrong.
    pub level: Level,
    /// A deliberate mistake.
    pub mutant: Option<Mutant>,
    /// Faults to keep, by number; `None`: all.
    pub only: Option<BTreeSet<usize>>,
    /// A good network and good clocks, whatever the seed says.
    pub quiet: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What was played.
    pub run: Run,
    /// What the seed decided.
    pub options: Options,
    /// What went wrong on purpose.
    pub plan: Plan,
    /// What went wrong otherwise.
    pub failure: Option<Failure>,
    /// How it ended, if it did not fail.
    pub end: Option<End>,
    /// What was counted.
    pub figures: Figures,
}

impl Run {
    /// A seed as it comes.
    #[must_use]
    pub fn new(seed: u64, level: Level) -> Self {
        Self { seed, level, mutant: None, only: None, quiet: false }
    }

    /// Plays it; a panic of the member's code is a failure like others.
    #[must_use]
    pub fn play(&self, tracer: Option<Tracer>) -> Report {
        let mut options = Options::draw(self.seed, self.level, self.mutant);
        let plan = Plan::draw(&options, self.only.as_ref());
        if self.quiet {
            options.noise = Noise::quiet();
        }
        let mut world = None;
        let panic = catch(|| {
            let world = world.insert(World::new(options.clone(), plan.clone(), tracer));
            world.play();
        });
        let (mut failure, mut end, mut figures) = (None, None, Figures::default());
        let mut at_us = 0;
        if let Some(mut world) = world {
            (failure, end, at_us) = (world.failure.take(), world.end, world.now());
            figures = world.count();
            // A member that panicked is not asked to clean up.
            if panic.is_some() {
                std::mem::forget(world);
            }
        }
        if let Some(text) = panic {
            failure = Some(Failure { class: Class::Panic, rule: "panic", text, at_us });
        }
        figures.seeds = 1;
        if let Some(failure) = &failure {
            let word = format!("{} {}", failure.class.word(), failure.rule);
            figures.failures.insert(word, 1);
        }
        if let Some(end) = end {
            figures.ends.insert(end.word(), 1);
        }
        Report { run: self.clone(), options, plan, failure, end, figures }
    }

    /// The line that plays it again.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("cargo xtask simulate --seeds 1 --first-seed {}", self.seed);
        if self.level != Level::Everything {
            line += &format!(" --level {}", self.level.number());
        }
        if let Some(mutant) = self.mutant {
            line += &format!(" --mutant {}", mutant.word());
        }
        if self.quiet {
            line += " --quiet";
        }
        if let Some(only) = &self.only {
            let list: Vec<_> = only.iter().map(ToString::to_string).collect();
            line += &format!(" --only {}", if list.is_empty() { "none".into() } else { list.join(",") });
        }
        line
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(failure) = &self.failure else {
            return write!(f, "seed {} ended well: {:?}", self.run.seed, self.end);
        };
        writeln!(f, "seed {} failed: {failure}", self.run.seed)?;
        writeln!(f, "{}", self.options)?;
        write!(f, "{}", self.plan)?;
        write!(f, "play it again:  {} --trace", self.run.line())
    }
}

impl World {
    /// What was counted, the checkers' counts included.
    fn count(&mut self) -> Figures {
        let mut figures = std::mem::take(&mut self.figures);
        figures.views = self.checker.ballots.installed();
        figures.deliveries = self.checker.deliveries;
        figures.joins = self.checker.joins;
        (figures.promotions, figures.waits) = (self.actors.promotions, self.actors.waits);
        figures.heals = self.checker.requests.takes;
        figures.transactions = self.checker.requests.ended();
        figures.simulated_us = self.now();
        figures
    }
}

thread_local! {
    /// The message of a panic on this thread, while a run is played on it.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static PLAYING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Calls `body`; the answer is the message of its panic.
fn catch(body: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if PLAYING.get() {
                PANIC.set(Some(info.to_string()));
            } else {
                usual(info);
            }
        }));
    });
    PLAYING.set(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    PLAYING.set(false);
    result.err().map(|_| PANIC.take().unwrap_or_else(|| "a panic without a message".into()))
}
