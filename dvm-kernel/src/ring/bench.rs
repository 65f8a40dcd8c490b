//! Measurements inside the kernel, so that a client's path is not in the figures.
//!
//! A broadcast carries its payload as a key that is put only if a condition does not hold, and has no condition: it takes
//! its place in the history and changes nothing. An agreement is a dry run whose execution is empty at every member.

use super::{Ring, Waiter};
use bytes::Bytes;
use dvm_core::Answer;
use dvm_core::ids::{Time, TransactionId};
use dvm_core::state::{
    Applied, Change, KeyOperation, KeyTransaction, Library, Payload, PluginSpec, Require, Transaction,
    TransactionKind,
};
use dvm_plugin_api::local::Answer as LocalAnswer;
use tokio::sync::oneshot;

/// Times told in an answer.
const TIMES_MAX: usize = 100_000;

/// Operations of which it is told when they began.
const BEGUN_MAX: usize = 50_000;

/// No plug-in can have this name, and no client can propose it.
const NAME: &str = "#bench";

/// A measurement that runs.
pub(super) struct Bench {
    agree: bool,
    payload: Bytes,
    start: Time,
    end: Time,
    in_flight: u64,
    /// Serial numbers of its transactions; they are above all others of this kernel.
    serial: u64,
    times_us: Vec<f64>,
    begun: Vec<(u64, Time)>,
    operations: u64,
    answer: oneshot::Sender<LocalAnswer>,
}

/// Whether executing a transaction means nothing.
pub(super) fn is_empty(transaction: &Transaction) -> bool {
    transaction.dry_run && transaction.kind.plugin().starts_with(NAME)
}

impl Ring {
    pub(super) fn bench_start(
        &mut self,
        agree: bool,
        size: usize,
        duration_ms: u64,
        in_flight: u64,
        answer: oneshot::Sender<LocalAnswer>,
    ) {
        let start = self.clock.now();
        let end = start.plus_ms(duration_ms);
        let payload = Bytes::from(vec![0; size]);
        self.bench = Some(Bench {
            agree,
            payload,
            start,
            end,
            in_flight: 0,
            serial: u64::MAX / 2 + start.0,
            times_us: Vec::new(),
            begun: Vec::new(),
            operations: 0,
            answer,
        });
        for _ in 0..in_flight {
            self.bench_one();
        }
    }

    /// One of its operations has ended.
    pub(super) fn bench_step(&mut self, since: Time, answer: &Answer) {
        let now = self.clock.now();
        let Some(bench) = &mut self.bench else { return };
        bench.in_flight -= 1;
        if let Answer::Done { receipt, applied } = answer {
            bench.operations += 1;
            if bench.begun.len() < BEGUN_MAX {
                let key = match applied {
                    Applied::Ended { transaction, .. } => transaction.serial,
                    _ => receipt.index.0,
                };
                bench.begun.push((key, since));
            }
            if bench.times_us.len() < TIMES_MAX {
                bench.times_us.push((now.0 - since.0) as f64);
            }
        }
        if now < bench.end {
            self.bench_one();
        } else if bench.in_flight == 0 {
            self.bench_answer();
        }
    }

    /// Answers a measurement whose operations do not end any more.
    pub(super) fn bench_end(&mut self) {
        let over = self.bench.as_ref().is_some_and(|bench| self.clock.now() > bench.end.plus_ms(5_000));
        if over {
            self.bench_answer();
        }
    }

    fn bench_one(&mut self) {
        let (originator, now) = (self.member.id(), self.clock.now());
        let Some(bench) = &mut self.bench else { return };
        bench.in_flight += 1;
        bench.serial += 1;
        let change = if bench.agree {
            let id = TransactionId { originator, serial: bench.serial };
            Change::Transaction(Box::new(empty(id)))
        } else {
            let put = KeyOperation::Put { key: String::new(), value: bench.payload.clone() };
            let (conditions, then, otherwise) = (Vec::new(), Vec::new(), vec![put]);
            Change::Keys(KeyTransaction { conditions, then, otherwise })
        };
        self.submit(None, change, Waiter::Bench(now));
    }

    fn bench_answer(&mut self) {
        let (clock, now) = (self.clock, self.clock.now());
        let Some(mut bench) = self.bench.take() else { return };
        bench.times_us.sort_by(f64::total_cmp);
        let answer = LocalAnswer::Bench {
            times_us: bench.times_us,
            begun: bench.begun.into_iter().map(|(key, since)| (key, clock.boot_us(since))).collect(),
            operations: bench.operations,
            elapsed_us: now.0 - bench.start.0,
        };
        let _ = bench.answer.send(answer);
    }
}

fn empty(id: TransactionId) -> Transaction {
    let library = Library { version: String::new(), hash: [0; 32], size: 0, payload: Payload::Bytes };
    let spec = PluginSpec::of(format!("{NAME}{}", id.serial), library);
    Transaction { id, kind: TransactionKind::Load(Box::new(spec)), require: Require::All, dry_run: true }
}
