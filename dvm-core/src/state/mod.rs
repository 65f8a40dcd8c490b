//! The replicated state: a pure function of the history.

mod change;
mod event;
mod lifecycle;
mod placement;
mod plugins;
mod sessions;
mod table;

pub use change::*;
pub use event::*;
pub use plugins::*;
pub use sessions::*;
pub use table::{Table, TableHash};

use crate::config::Config;
use crate::ids::{Epoch, Fence, HistoryIndex, MemberId, Name, OriginSeq, Rank, TransactionId, ViewId};
use crate::view::{Label, View};
use crate::wire::{DepartureCause, Identity, Key, Proposal, Summary};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Everything that all members of a branch agree on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The DVM's name.
    pub name: Name,
    /// The DVM's identity.
    pub id: u128,
    /// The settings.
    pub config: Config,
    /// The view the last entry was delivered in.
    pub view: View,
    /// Index of the last entry.
    pub index: HistoryIndex,
    /// Its key in the view's order.
    pub key: Key,
    /// Chain hash over all entries, labels left out.
    pub history_hash: [u8; 32],
    /// Epoch of the last confirmed view.
    pub last_confirmed: Epoch,
    /// The members' records.
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Members that are gone, the latest last, at most 64.
    pub departed: Vec<Departed>,
    /// Loaded plug-ins.
    pub plugins: Table<Name, Plugin>,
    /// Replicated keys.
    pub keys: Table<String, KeyRecord>,
    /// Open sessions.
    pub sessions: Table<String, Session>,
    /// The last answers of each session, by its name and sequence number, with the index of the entry that was told.
    pub answers: Table<(String, u64), (HistoryIndex, Applied)>,
    /// The same sessions by the entry that used each last.
    pub sessions_by_use: Table<(HistoryIndex, String), ()>,
    /// The last use of any session that was closed to make room: what was opened later is open still.
    pub sessions_closed: HistoryIndex,
    /// Transactions that were ordered and have no outcome yet.
    pub open: BTreeMap<TransactionId, Open>,
    /// The last fencing token given.
    pub fence: u64,
    /// Views of this branch and the index of each one's entry, the latest last, at most 1,024.
    pub ancestry: Vec<(ViewId, HistoryIndex)>,
    /// Epochs up to here are taken, here or on a branch that was taken in.
    pub epoch_floor: Epoch,
    /// Where this branch stands in healing.
    pub healing: Option<Healing>,
}

/// A member's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Who it is; tags are the present ones.
    pub identity: Identity,
    /// It has said that it leaves.
    pub leaving: Option<LeaveBy>,
    /// It was called silent, and lived.
    pub mistaken: Option<Mistaken>,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// JSON text.
    pub value: Bytes,
    /// Index of the entry that set it.
    pub version: HistoryIndex,
}

/// A transaction without an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// It.
    pub transaction: Transaction,
    /// Where it was ordered.
    pub index: HistoryIndex,
    /// Members of the view it was ordered in, in rank order.
    pub electorate: Vec<MemberId>,
    /// Of a load: the members whose instances start, in the order that makes the first one the primary.
    pub places: Vec<MemberId>,
}

/// Indices that a branch may still use after it yielded.
const YIELDED_MAX: u64 = 65_536;
/// How many departed members and views are remembered.
const DEPARTED_MAX: usize = 64;
/// How often T is doubled for a member at most: to the ceiling of widened time-outs.
const DOUBLINGS_MAX: u8 = 2;
/// After how many T a doubling is taken back.
const DOUBLING_SILENCES: u64 = 60;
const ANCESTRY_MAX: usize = 1_024;
/// A message's view, key, origin and number in bytes at most: variable-length integers, two of 128 bits, five of 64 or
/// less.
const PLACE_MAX: usize = 2 * 19 + 5 * 10;

/// What applying one entry yields.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The entry, with the indices it took.
    pub entry: Entry,
    /// Its events.
    pub events: Vec<Event>,
    /// What its proposer is told.
    pub applied: Applied,
    /// The transaction it ended.
    pub ended: Option<Ended>,
    /// Instances that it gave to members: of which plug-in, to whom, and whether they are to start.
    pub placed: Vec<Placed>,
}

impl State {
    /// The state of a DVM whose only member is its founder.
    #[must_use]
    pub fn genesis(genesis: Genesis, founder: Identity) -> Self {
        let view = View {
            id: ViewId { epoch: Epoch(1), proposer: founder.id, round: 1 },
            proposer_name: founder.name.clone(),
            lineage: genesis.lineage,
            label: Label::Confirmed,
            members: alloc::vec![founder.id],
            ring: alloc::vec![Rank(0)],
        };
        Self {
            name: genesis.name,
            id: genesis.id,
            config: genesis.config,
            index: HistoryIndex(1),
            key: Key::default(),
            history_hash: *blake3::hash(&genesis.id.to_le_bytes()).as_bytes(),
            last_confirmed: Epoch(1),
            members: [(founder.id, MemberRecord { identity: founder, leaving: None, mistaken: None })].into(),
            departed: Vec::new(),
            plugins: Table::default(),
            keys: Table::default(),
            sessions: Table::default(),
            answers: Table::default(),
            sessions_by_use: Table::default(),
            sessions_closed: HistoryIndex(0),
            open: BTreeMap::new(),
            fence: 0,
            ancestry: alloc::vec![(view.id, HistoryIndex(1))],
            epoch_floor: Epoch(1),
            healing: None,
            view,
        }
    }

    /// The event that tells of the founder: index 1.
    #[must_use]
    pub fn founding_event(&self, time_ms: u64) -> Event {
        let kind = EventKind::MemberJoined { member: self.brief(self.view.members[0], Rank(0)) };
        self.event(HistoryIndex(1), HistoryIndex(1), self.view.label, time_ms, kind)
    }

    /// Hash of everything that members of a branch agree on, at this index.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let small =
            (&self.id, &self.config, &self.view, self.index, self.key, &self.history_hash, &self.members);
        let sessions = (self.sessions.hash(), self.answers.hash(), self.sessions_closed);
        let tables = (self.plugins.hash(), self.keys.hash(), sessions, &self.open, self.fence);
        let rest = (self.last_confirmed, self.epoch_floor, &self.healing);
        let bytes = postcard::to_allocvec(&(small, tables, rest)).expect("the state is plain data");
        *blake3::hash(&bytes).as_bytes()
    }

    /// Name of a member, also of one that is gone.
    #[must_use]
    pub fn name_of(&self, member: MemberId) -> Name {
        if let Some(record) = self.members.get(&member) {
            return record.identity.name.clone();
        }
        let gone = self.departed.iter().rev().find(|d| d.identity.id == member);
        gone.map_or_else(|| alloc::format!("{member:?}"), |d| d.identity.name.clone())
    }

    /// The view's id as people see it: epoch, proposer's name, round.
    #[must_use]
    pub fn view_text(&self) -> String {
        alloc::format!("{}.{}.{}", self.view.id.epoch, self.view.proposer_name, self.view.id.round)
    }

    /// Whether a member that holds this state may take `other` in its place: nothing confirmed is lost, and what was told
    /// here is not told again.
    pub(crate) fn may_give_way_to(&self, other: &Self) -> bool {
        // A branch that came from this view has all of it, whatever became of it by the operator's word.
        let came_from_here = || other.ancestry.iter().any(|(view, _)| *view == self.view.id);
        (other.view.lineage == self.view.lineage || came_from_here())
            && other.last_confirmed >= self.last_confirmed
            && other.index >= self.index
            && other.fence >= self.fence
    }

    /// This branch, for healing and expulsion.
    #[must_use]
    pub fn summary(&self) -> Summary {
        summary(&self.view, self.last_confirmed, self.index)
    }

    /// Applies an entry that another member delivered.
    ///
    /// # Errors
    /// If it does not follow this state; nothing was changed.
    pub fn apply_entry(&mut self, entry: &Entry) -> Result<Effect, &'static str> {
        if entry.first != self.index.next() {
            return Err("the entry does not follow the state's index");
        }
        if matches!(&entry.content, Content::View(proposal) if proposal.parent != self.view.id) {
            return Err("the view does not follow the state's");
        }
        let mut next = self.clone();
        let effect = next.apply(entry.key, entry.label, entry.content.clone());
        if effect.entry != *entry {
            return Err("the entry takes other indices or another view here");
        }
        *self = next;
        Ok(effect)
    }

    /// Applies the next entry of the history. `label` is that of the view it is delivered in.
    pub fn apply(&mut self, key: Key, label: Label, content: Content) -> Effect {
        let first = self.index.next();
        let message = match &content {
            Content::Change { origin, oseq, .. } => Some((*origin, *oseq)),
            Content::View(_) => None,
        };
        let (kinds, placed, applied) = (Vec::new(), Vec::new(), Applied::Done);
        let mut step = Step { first, message, kinds, placed, applied, ended: None, time_ms: 0 };
        match &content {
            Content::View(proposal) => {
                step.time_ms = proposal.time_ms;
                self.apply_view(proposal, &mut step);
            }
            Content::Change { body, .. } => match postcard::from_bytes::<Submission<&[u8]>>(body) {
                Ok(submission) => {
                    step.time_ms = submission.time_ms;
                    self.apply_submission(submission, &mut step);
                }
                Err(_) => step.applied = refused("invalid", "the body does not decode"),
            },
        }
        // A `take` raises the index above the other branch's, so an entry may take more than its events need.
        let last = HistoryIndex(self.index.0.max(first.0 - 1) + (step.kinds.len() as u64).max(1));
        let start = last.0 + 1 - (step.kinds.len() as u64).max(1);
        self.index = last;
        self.key = key;
        self.chain(&content, first, key);
        let label = if matches!(content, Content::View(_)) { self.view.label } else { label };
        if let Content::View(_) = content {
            self.ancestry.push((self.view.id, last));
            if self.ancestry.len() > ANCESTRY_MAX {
                self.ancestry.remove(0);
            }
        }
        let events = step.kinds.into_iter().enumerate();
        let events = events
            .map(|(i, kind)| self.event(HistoryIndex(start + i as u64), last, label, step.time_ms, kind))
            .collect();
        let entry = Entry { index: last, first, view: self.view.id, label, key, content };
        Effect { entry, events, applied: step.applied, ended: step.ended, placed: step.placed }
    }

    fn chain(&mut self, content: &Content, first: HistoryIndex, key: Key) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.history_hash);
        hasher.update(&first.0.to_le_bytes());
        hasher.update(&self.index.0.to_le_bytes());
        match content {
            Content::Change { origin, oseq, body, digest } => {
                let place = (self.view.id, key, origin, oseq);
                let mut bytes = [0; PLACE_MAX];
                hasher.update(postcard::to_slice(&place, &mut bytes).expect("plain data of bounded size"));
                match digest {
                    Some(digest) => hasher.update(digest),
                    None => hasher.update(body),
                };
            }
            Content::View(proposal) => {
                // Labels are not in the history hash.
                let mut proposal = proposal.clone();
                proposal.view.label = Label::Confirmed;
                hasher.update(&postcard::to_allocvec(&proposal).expect("plain data"));
            }
        }
        self.history_hash = *hasher.finalize().as_bytes();
    }

    fn event(
        &self,
        index: HistoryIndex,
        entry: HistoryIndex,
        label: Label,
        time_ms: u64,
        kind: EventKind,
    ) -> Event {
        let (view, view_id, lineage) = (self.view_text(), self.view.id, self.view.lineage);
        Event { index, entry, view, view_id, label, lineage, time_ms, kind }
    }

    /// A member of the view, as events tell of it.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn brief(&self, member: MemberId, rank: Rank) -> MemberBrief {
        let identity = &self.members[&member].identity;
        MemberBrief {
            name: identity.name.clone(),
            id: member,
            host: identity.host.clone(),
            rank,
            tags: identity.tags.clone(),
            members: self.view.size() as u32,
        }
    }

    fn apply_view(&mut self, proposal: &Proposal, step: &mut Step) {
        let old = core::mem::replace(&mut self.view, proposal.view.clone());
        let mut failed_now = Vec::new();
        for in_order in [true, false] {
            for departure in &proposal.departures {
                if matches!(departure.why, DepartureCause::Left(_)) != in_order {
                    continue;
                }
                let Some(rank) = old.rank_of(departure.member) else { continue };
                let member = self.brief(departure.member, rank);
                let cause = match &departure.why {
                    DepartureCause::Left(by) => {
                        step.kinds.push(EventKind::MemberLeft { member, by: *by });
                        "left".into()
                    }
                    DepartureCause::Failed { cause, noticed_by, last_heard_ms } => {
                        let (noticed_by, last_heard_ms) = (self.name_of(*noticed_by), *last_heard_ms);
                        step.kinds.push(EventKind::MemberFailed {
                            member,
                            cause: *cause,
                            noticed_by,
                            last_heard_ms,
                        });
                        cause.word().into()
                    }
                };
                failed_now.push((departure.member, rank));
                let MemberRecord { identity, mistaken, .. } = self.members[&departure.member].clone();
                let (index, time_ms) = (step.first, step.time_ms);
                self.departed.push(Departed { identity, cause, in_order, index, time_ms, mistaken });
            }
        }
        let names: Vec<_> = failed_now.iter().map(|(member, _)| (*member, self.name_of(*member))).collect();
        for (member, _) in &failed_now {
            self.members.remove(member);
        }
        if self.departed.len() > DEPARTED_MAX {
            self.departed.drain(..self.departed.len() - DEPARTED_MAX);
        }
        for joiner in &proposal.joiners {
            let mistaken = self.mistaken_about(joiner, step.time_ms);
            self.members
                .insert(joiner.id, MemberRecord { identity: joiner.clone(), leaving: None, mistaken });
            let rank = self.view.rank_of(joiner.id).expect("a joiner is in its view");
            let member = self.brief(joiner.id, rank);
            step.kinds.push(EventKind::MemberJoined { member });
        }
        if old.label != self.view.label {
            step.kinds.push(EventKind::LabelChanged);
        }
        if self.view.label == Label::Confirmed {
            self.last_confirmed = self.view.id.epoch;
        }
        self.epoch_floor = self.epoch_floor.max(self.view.id.epoch);
        self.apply_view_to_plugins(&names, step);
    }

    fn apply_change<P>(&mut self, change: Change<P>, step: &mut Step) {
        match change {
            Change::Noop => {}
            Change::Keys(transaction) => self.apply_keys(&transaction, step),
            Change::Settings(list) => {
                let mut config = self.config.clone();
                for (key, value) in &list {
                    if let Err(error) = config.change(key, value) {
                        step.applied = refused("invalid", &alloc::format!("{error}"));
                        return;
                    }
                }
                self.config = config;
                let keys = list.into_iter().map(|(key, _)| key).collect();
                let member = step.message.map(|(origin, _)| self.name_of(origin));
                step.kinds.push(EventKind::ConfigChanged { keys, member });
            }
            Change::Tags { member, tags } => self.apply_tags(member, tags, step),
            Change::OpenSession => self.open_session(step),
            Change::Command { plugin, .. } => {
                step.applied = if self.plugins.get(&plugin).is_some() {
                    Applied::Command
                } else {
                    refused("not-found", &alloc::format!("no plug-in is called {plugin}"))
                };
            }
            Change::Transaction(transaction) => self.apply_transaction(*transaction, step),
            Change::Outcome(outcome) => self.apply_outcome(outcome, step),
            Change::Instance(report) => self.apply_instance(&report, step),
            Change::Leave { member, by } => match self.members.get_mut(&member) {
                Some(record) => {
                    record.leaving = Some(record.leaving.unwrap_or(by));
                    self.keep_plugins(false, step);
                }
                None => step.applied = refused("not-found", "no such member"),
            },
            Change::Halt { by } => {
                for record in self.members.values_mut() {
                    record.leaving = Some(LeaveBy::Halt);
                }
                step.kinds.push(EventKind::Halting { by });
            }
            Change::Yield { to, rank0, fork } => match self.healing {
                None if step.is_from(self.view.members[0]) => {
                    self.healing = Some(Healing::Yielding { to, rank0, fork });
                }
                _ => step.applied = refused("busy", "this side is already being healed"),
            },
            Change::YieldCancel => {
                if matches!(self.healing, Some(Healing::Yielding { .. })) {
                    self.healing = None;
                }
            }
            Change::Take(take) => self.apply_take(*take, step),
            Change::TakeCancel { from } => {
                if matches!(&self.healing, Some(Healing::Taking(take)) if take.from.id == from) {
                    self.healing = None;
                }
            }
        }
    }

    /// What a joiner's past says about its silences: it is the process that was called silent a while ago.
    fn mistaken_about(&self, joiner: &Identity, time_ms: u64) -> Option<Mistaken> {
        let of_branch = |take: &Take| take.members.iter().any(|m| m.name == joiner.name);
        if matches!(&self.healing, Some(Healing::Taking(take)) if of_branch(take)) {
            // It was cut off and not slow.
            return None;
        }
        let same = |d: &&Departed| {
            let identity = &d.identity;
            (&identity.name, &identity.host, identity.pid) == (&joiner.name, &joiner.host, joiner.pid)
        };
        let departed = self.departed.iter().rev().find(same)?;
        let before = departed.mistaken.map_or(0, |m| m.doublings_left(time_ms, self.config.silence_ms));
        let again = u8::from(departed.cause == FailureCause::Silent.word());
        let doublings = (before + again).min(DOUBLINGS_MAX);
        (doublings > 0).then_some(Mistaken { doublings, time_ms })
    }

    fn apply_take(&mut self, mut take: Take, step: &mut Step) {
        if matches!(self.healing, Some(Healing::Yielding { .. })) {
            step.applied = refused("busy", "this side yields");
            return;
        }
        self.fence = self.fence.max(take.fence) + 1;
        self.epoch_floor = self.epoch_floor.max(take.from.id.epoch);
        // The other branch may still deliver what was numbered before it yielded, and views.
        self.index = HistoryIndex(self.index.0.max(take.from.index.0 + YIELDED_MAX));
        self.adopt_sessions(core::mem::take(&mut take.sessions), step.first);
        self.healing = Some(Healing::Taking(Box::new(take)));
        // The other branch's primaries had tokens of their own.
        self.keep_plugins(true, step);
    }

    fn apply_tags(&mut self, member: MemberId, tags: BTreeMap<String, Option<String>>, step: &mut Step) {
        let Some(record) = self.members.get_mut(&member) else {
            step.applied = refused("not-found", "no such member");
            return;
        };
        for (key, value) in tags {
            match value {
                Some(value) => drop(record.identity.tags.insert(key, value)),
                None => drop(record.identity.tags.remove(&key)),
            }
        }
        let rank = self.view.rank_of(member).expect("members have a rank");
        step.kinds.push(EventKind::MemberChanged { member: self.brief(member, rank) });
        self.keep_plugins(false, step);
    }

    fn apply_keys(&mut self, transaction: &KeyTransaction, step: &mut Step) {
        let version_of = |key: &String| self.keys.get(key).map(|record| record.version);
        let failed = transaction.conditions.iter().find(|(key, condition)| match condition {
            KeyCondition::Version(version) => version_of(key) != Some(*version),
            KeyCondition::Absent => version_of(key).is_some(),
            KeyCondition::Present => version_of(key).is_none(),
        });
        let failed = failed.map(|(key, _)| (key.clone(), version_of(key).unwrap_or_default()));
        let operations = if failed.is_none() { &transaction.then } else { &transaction.otherwise };
        for operation in operations {
            match operation {
                KeyOperation::Put { key, value } => {
                    let record = KeyRecord { value: value.clone(), version: step.first };
                    self.keys.insert(key.clone(), record);
                    let (key, version) = (key.clone(), Some(step.first));
                    step.kinds.push(EventKind::KeyChanged { key, version });
                }
                KeyOperation::Delete { key } => {
                    if self.keys.remove(key) {
                        step.kinds.push(EventKind::KeyChanged { key: key.clone(), version: None });
                    }
                }
            }
        }
        step.applied = Applied::Keys { held: failed.is_none(), version: step.first, failed };
    }
}

/// One entry being applied.
struct Step {
    first: HistoryIndex,
    /// The message that the entry came as: its origin and number in its view.
    message: Option<(MemberId, OriginSeq)>,
    kinds: Vec<EventKind>,
    placed: Vec<Placed>,
    applied: Applied,
    ended: Option<Ended>,
    time_ms: u64,
}

impl Step {
    fn is_from(&self, member: MemberId) -> bool {
        self.message.is_some_and(|(origin, _)| origin == member)
    }
}

fn refused(code: &str, reason: &str) -> Applied {
    Applied::Refused { code: code.into(), reason: reason.into() }
}

impl Mistaken {
    /// How often T is doubled still.
    #[must_use]
    pub fn doublings_left(self, wall_ms: u64, silence_ms: u64) -> u8 {
        let over = wall_ms.saturating_sub(self.time_ms) / (DOUBLING_SILENCES * silence_ms);
        self.doublings.saturating_sub(u8::try_from(over).unwrap_or(u8::MAX))
    }
}

impl FailureCause {
    /// As users see it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::LinkReset => "link-reset",
            Self::Silent => "silent",
            Self::OneWay => "one-way",
            Self::NoProgress => "no-progress",
            Self::OtherView => "other-view",
            Self::Expelled => "expelled",
        }
    }
}

#[cfg(test)]
impl State {
    /// A state for tests, founded by member 1.
    pub(crate) fn example() -> Self {
        let founder = Identity {
            id: MemberId(1),
            name: "a".into(),
            host: "h".into(),
            addresses: Vec::new(),
            pid: 1,
            log: String::new(),
            version: "0".into(),
            tags: BTreeMap::new(),
        };
        let (lineage, config) = (crate::ids::Lineage(1), Config::default());
        Self::genesis(Genesis { name: "d".into(), id: 7, lineage, config }, founder)
    }
}
