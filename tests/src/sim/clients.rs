//! Clients: what they ask for, and how they ask again when no answer comes.

use super::dice::{between, one_of, permille, pick, stream};
use super::options::{Options, Work};
use bytes::Bytes;
use dvm_core::ids::{HistoryIndex, MemberId, RequestId, TransactionId};
use dvm_core::state::{
    Applied, Change, ConfigEdit, InstanceChange, InstanceReport, KeyCondition, KeyOperation, KeyTransaction,
    Library, Mode, Payload, PluginSpec, Require, RestartPolicy, Stamp, State, Submission, Transaction,
    TransactionKind,
};
use dvm_core::{Answer, Prng};
use std::collections::BTreeMap;

/// All clients of a run.
pub(crate) struct Clients {
    prng: Prng,
    work: Work,
    clients: Vec<Client>,
    /// Makes every submission unlike all others: their wall clock is never the same.
    serial: u64,
    sessions: u64,
    /// No new work; what was begun is still finished.
    pub(crate) closing: bool,
    patience_us: u64,
}

/// One client: a session, and at most one request of it under way.
struct Client {
    session: String,
    seq: u64,
    pending: Option<Pending>,
}

struct Pending {
    wish: Wish,
    stamped: bool,
    /// The process that was asked last, and its number for the request; `None` if it was refused.
    asked: Option<(usize, RequestId)>,
    since_us: u64,
}

/// What a client wants, whomever it asks.
#[derive(Clone, Debug)]
enum Wish {
    Noop,
    OpenSession,
    Keys(KeyTransaction),
    Settings(Vec<(String, String)>),
    Tags(BTreeMap<String, Option<String>>),
    Command(String, Bytes),
    Transaction(TransactionKind, Require, bool),
    Report(String, HistoryIndex, InstanceChange),
}

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const PLUGINS: [&str; 2] = ["p0", "p1"];
/// 2026-01-01, milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_767_225_600_000;

impl Clients {
    pub(crate) fn new(options: &Options) -> Self {
        let mut clients = Self {
            prng: stream(options.seed, 4),
            work: options.work.clone(),
            clients: Vec::new(),
            serial: 0,
            sessions: 0,
            closing: false,
            patience_us: options.config.silence_ms * 3_000,
        };
        for _ in 0..options.work.clients {
            let session = clients.new_session();
            clients.clients.push(Client { session, seq: 1, pending: None });
        }
        clients
    }

    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    /// When a client does something again, microseconds from now; never, once it is done for good.
    pub(crate) fn pause_us(&mut self, client: usize) -> Option<u64> {
        if self.closing && self.clients[client].pending.is_none() {
            return None;
        }
        Some(between(&mut self.prng, 50, self.work.think_us))
    }

    /// Whether a client has something to ask for now.
    pub(crate) fn wants(&mut self, client: usize, now_us: u64, state: Option<&State>) -> bool {
        match &mut self.clients[client].pending {
            Some(pending) => match pending.asked {
                None => true,
                Some(_) if now_us < pending.since_us + self.patience_us => false,
                // No answer: with a stamp another member may be asked, without one it must not.
                Some(_) if pending.stamped => true,
                Some(_) => {
                    self.clients[client].pending = None;
                    false
                }
            },
            None if self.closing => false,
            None => {
                let wish = self.wish(state);
                let stamped = self.prng.chance(2, 3);
                let pending = Pending { wish, stamped, asked: None, since_us: now_us };
                self.clients[client].pending = Some(pending);
                true
            }
        }
    }

    /// The submission with which a client asks a member; `serial` numbers transactions of its process.
    pub(crate) fn ask(
        &mut self,
        client: usize,
        asked: (usize, RequestId),
        member: MemberId,
        serial: u64,
        now_us: u64,
    ) -> Submission {
        self.serial += 1;
        let time_ms = EPOCH_MS + 1_000 * self.serial + now_us % 1_000;
        let client = &mut self.clients[client];
        let stamp = Stamp { session: client.session.clone(), seq: client.seq };
        let pending = client.pending.as_mut().expect("only a client with a wish asks");
        (pending.asked, pending.since_us) = (Some(asked), now_us);
        let stamp = pending.stamped.then_some(stamp);
        let change = pending.wish.clone().change(member, serial);
        Submission { stamp, time_ms, change }
    }

    /// A request without a client: does nothing, and its answer shows that the member orders changes.
    pub(crate) fn canary(&mut self) -> Submission {
        self.serial += 1;
        Submission { stamp: None, time_ms: EPOCH_MS + 1_000 * self.serial, change: Change::Noop }
    }

    /// A process answers a request; it may be one that its client no longer waits for.
    pub(crate) fn answered(&mut self, asked: (usize, RequestId), answer: &Answer) {
        let waits = |client: &Client| client.pending.as_ref().is_some_and(|p| p.asked == Some(asked));
        let Some(at) = self.clients.iter().position(waits) else { return };
        let is_stamped = self.clients[at].pending.as_ref().is_some_and(|pending| pending.stamped);
        match answer {
            Answer::Done { applied, .. } => {
                self.clients[at].pending = None;
                if is_stamped {
                    self.clients[at].seq += 1;
                }
                if matches!(applied, Applied::Refused { code, .. } if code == "sequence") {
                    // The branch that knew the session is gone.
                    (self.clients[at].session, self.clients[at].seq) = (self.new_session(), 1);
                }
            }
            Answer::Unknown { .. } if !is_stamped => self.clients[at].pending = None,
            Answer::Unknown { .. } | Answer::Refused(_) => {
                let pending = self.clients[at].pending.as_mut().expect("it waits");
                pending.asked = None;
                // While the run ends, a refusal is an end too: the member may have no quorum for ever.
                if self.closing {
                    self.clients[at].pending = None;
                }
            }
        }
    }

    fn new_session(&mut self) -> String {
        self.sessions += 1;
        format!("s{}", self.sessions)
    }

    fn wish(&mut self, state: Option<&State>) -> Wish {
        let prng = &mut self.prng;
        if permille(prng, self.work.transactions) {
            return transaction(prng);
        }
        match prng.below(20) {
            0..=1 => Wish::Noop,
            2 => Wish::OpenSession,
            3 => settings(prng),
            4 => {
                let key = one_of(prng, &["zone", "rack"]).to_owned();
                let value = prng.chance(2, 3).then(|| format!("z{}", prng.below(3)));
                Wish::Tags([(key, value)].into())
            }
            5..=6 => Wish::Command(one_of(prng, &PLUGINS).into(), Bytes::from_static(b"add 1")),
            7 => report(prng, state).unwrap_or(Wish::Noop),
            _ => {
                let large = permille(prng, self.work.large);
                keys(prng, large, state)
            }
        }
    }
}

impl Wish {
    fn change(self, member: MemberId, serial: u64) -> Change {
        match self {
            Self::Noop => Change::Noop,
            Self::OpenSession => Change::OpenSession,
            Self::Keys(transaction) => Change::Keys(transaction),
            Self::Settings(list) => Change::Settings(list),
            Self::Tags(tags) => Change::Tags { member, tags },
            Self::Command(plugin, payload) => Change::Command { plugin, payload },
            Self::Transaction(kind, require, dry_run) => {
                let id = TransactionId { originator: member, serial };
                Change::Transaction(Box::new(Transaction { id, kind, require, dry_run }))
            }
            Self::Report(plugin, since, what) => {
                Change::Instance(InstanceReport { plugin, since, member, what })
            }
        }
    }
}

fn keys(prng: &mut Prng, large: bool, state: Option<&State>) -> Wish {
    let mut transaction = KeyTransaction::default();
    let key = one_of(prng, &KEYS).to_owned();
    let known = state.and_then(|state| state.keys.get(&key)).map(|record| record.version);
    if prng.chance(1, 3) {
        let version = KeyCondition::Version(known.unwrap_or_default());
        let condition = one_of(prng, &[version, version, KeyCondition::Absent, KeyCondition::Present]);
        transaction.conditions.push((key.clone(), condition));
    }
    let size = if large { between(prng, 1_000, 30_000) as usize } else { 8 };
    let value = Bytes::from(format!("{:0size$}", prng.next_u64()));
    if prng.chance(1, 8) {
        transaction.then.push(KeyOperation::Delete { key });
    } else {
        transaction.then.push(KeyOperation::Put { key, value });
    }
    if prng.chance(1, 4) {
        let key = one_of(prng, &KEYS).to_owned();
        transaction.otherwise.push(KeyOperation::Delete { key });
    }
    Wish::Keys(transaction)
}

fn settings(prng: &mut Prng) -> Wish {
    let list: [(&str, u64); 4] = [
        ("window", between(prng, 1, 32)),
        ("cut_silent_ms", between(prng, 0, 60)),
        ("join_batch_ms", between(prng, 0, 30)),
        ("window", 0),
    ];
    let (key, value) = one_of(prng, &list);
    Wish::Settings(vec![(key.into(), value.to_string())])
}

fn transaction(prng: &mut Prng) -> Wish {
    let name = one_of(prng, &PLUGINS).to_owned();
    let kind = match prng.below(4) {
        0..=1 => TransactionKind::Load(Box::new(plugin(prng, name))),
        2 => TransactionKind::Unload { plugin: name },
        _ => {
            let keys = [("depth".to_owned(), Some(prng.below(100).to_string()))].into();
            TransactionKind::Configure { plugin: name, edit: ConfigEdit { replace: false, keys } }
        }
    };
    let rules = [Require::All, Require::All, Require::Majority, Require::AtLeast(2), Require::Any];
    Wish::Transaction(kind, one_of(prng, &rules), prng.chance(1, 6))
}

fn plugin(prng: &mut Prng, name: String) -> PluginSpec {
    let (version, hash, size, payload) = ("1.0.0".into(), [7; 32], 4_096, Payload::Json);
    PluginSpec {
        mode: one_of(prng, &[Mode::Parallel, Mode::Hot, Mode::Hot, Mode::Warm, Mode::Single]),
        instances: between(prng, 1, 3) as u16,
        restart: RestartPolicy { times: 1, window_ms: 1_000 },
        only_confirmed: prng.chance(1, 3),
        stateless: prng.chance(1, 2),
        ..PluginSpec::of(name, Library { version, hash, size, payload })
    }
}

/// A kernel's word on an instance of a loaded plug-in.
fn report(prng: &mut Prng, state: Option<&State>) -> Option<Wish> {
    let loaded: Vec<_> = state?.plugins.iter().map(|(name, plugin)| (name.clone(), plugin.since)).collect();
    let at = pick(prng, &(0..loaded.len()).collect::<Vec<_>>())?;
    let (name, since) = loaded[at].clone();
    let what = match prng.below(6) {
        0..=3 => InstanceChange::Started { pid: 7 },
        4 => InstanceChange::Restarted { pid: 8 },
        _ => InstanceChange::Failed {
            failure: dvm_core::state::InstanceFailure {
                cause: "exit".into(),
                exit_code: Some(1),
                signal: None,
                detail: "on purpose".into(),
            },
            again: prng.chance(1, 2),
        },
    };
    Some(Wish::Report(name, since, what))
}
