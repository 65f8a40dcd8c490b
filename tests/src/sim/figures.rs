//! What was counted over one run, or many.

use std::collections::BTreeMap;
use std::fmt;

/// Counts; those of several runs add up.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Runs.
    pub seeds: u64,
    /// Views installed, each counted once.
    pub views: u64,
    /// Entries delivered, counted at each member.
    pub deliveries: u64,
    /// Inputs handed to members.
    pub inputs: u64,
    /// Inputs that members refused as stale or malformed.
    pub rejects: u64,
    /// Members admitted.
    pub joins: u64,
    /// Primaries promoted, each counted at its member.
    pub promotions: u64,
    /// Of them, those that waited for another's lease to end.
    pub waits: u64,
    /// Branches taken in after a cut.
    pub heals: u64,
    /// Requests that ended with a receipt.
    pub done: u64,
    /// Requests that were refused, or whose end stayed unknown.
    pub undone: u64,
    /// Acknowledged, provisional entries that a healed cut took back.
    pub lost: u64,
    /// Transactions that ended.
    pub transactions: u64,
    /// Simulated time, microseconds.
    pub simulated_us: u64,
    /// Faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How runs ended.
    pub ends: BTreeMap<&'static str, u64>,
    /// Failures, by class and rule.
    pub failures: BTreeMap<String, u64>,
}

impl Figures {
    /// Counts one fault.
    pub(crate) fn fault(&mut self, word: &'static str) {
        *self.faults.entry(word).or_default() += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.views += other.views;
        self.deliveries += other.deliveries;
        self.inputs += other.inputs;
        self.rejects += other.rejects;
        self.joins += other.joins;
        self.promotions += other.promotions;
        self.waits += other.waits;
        self.heals += other.heals;
        self.done += other.done;
        self.undone += other.undone;
        self.lost += other.lost;
        self.transactions += other.transactions;
        self.simulated_us += other.simulated_us;
        for (mine, others) in [(&mut self.faults, &other.faults), (&mut self.ends, &other.ends)] {
            for (word, count) in others {
                *mine.entry(word).or_default() += count;
            }
        }
        for (word, count) in &other.failures {
            *self.failures.entry(word.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<K: fmt::Display>(map: &BTreeMap<K, u64>) -> String {
            let words: Vec<_> = map.iter().map(|(word, count)| format!("{word} {count}")).collect();
            if words.is_empty() { "none".into() } else { words.join(", ") }
        }
        write!(
            f,
            "seeds {}, views {}, deliveries {}, inputs {} ({} rejected), joins {}, promotions {} ({} after a lease), heals {}, requests {} done {} not, \
             {} partition-lost, transactions {}, simulated {} s; faults: {}; ends: {}; failures: {}",
            self.seeds,
            self.views,
            self.deliveries,
            self.inputs,
            self.rejects,
            self.joins,
            self.promotions,
            self.waits,
            self.heals,
            self.done,
            self.undone,
            self.lost,
            self.transactions,
            self.simulated_us / 1_000_000,
            list(&self.faults),
            list(&self.ends),
            list(&self.failures),
        )
    }
}
