//! Makes a failing run smaller: plays it again with ever fewer faults while it still fails in the same way.

use super::run::{Report, Run};
use std::collections::BTreeSet;

/// Most runs that one shrinking may take.
const TRIES_MAX: u32 = 400;

/// The smallest failing run found (delta debugging over the fault plan, after Zeller and Hildebrandt, 2002).
#[must_use]
pub fn shrink(report: Report) -> Report {
    let mut search = Search { best: report, tries: 0 };
    search.try_quiet();
    search.drop_chunks();
    search.best
}

struct Search {
    best: Report,
    tries: u32,
}

impl Search {
    fn try_quiet(&mut self) {
        let mut run = self.best.run.clone();
        run.quiet = true;
        self.attempt(run);
    }

    fn drop_chunks(&mut self) {
        let mut size = self.best.plan.numbers().len().max(1);
        loop {
            let mut dropped = false;
            let mut from = 0;
            while from < self.best.plan.numbers().len() {
                let kept = self.best.plan.numbers();
                let without = kept.iter().enumerate().filter(|(at, _)| !(from..from + size).contains(at));
                let only: BTreeSet<_> = without.map(|(_, number)| *number).collect();
                let run = Run { only: Some(only), ..self.best.run.clone() };
                if self.attempt(run) {
                    dropped = true;
                } else {
                    from += size;
                }
            }
            if self.tries >= TRIES_MAX || (size == 1 && !dropped) {
                return;
            }
            size = (size / 2).max(1);
        }
    }

    /// Plays a smaller run; it becomes the best one if it fails in the same way.
    fn attempt(&mut self, run: Run) -> bool {
        if self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        let report = run.play(None);
        let way = |report: &Report| report.failure.as_ref().map(|failure| (failure.class, failure.rule));
        let same = way(&report).is_some() && way(&report) == way(&self.best);
        if same {
            self.best = report;
        }
        same
    }
}
