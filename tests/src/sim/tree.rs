//! All histories of a run as one tree: members that agree share a path.
//!
//! Under `quorum` the tree must be a path. Under `survive` it may branch, but only where no member had delivered
//! anything in normal operation: a flush may drop only what nobody delivered. What is labelled confirmed lies on
//! one path under both. Labels are no part of a node: two branches may deliver one entry under different labels.

use super::failure::{Verdict, Violation, ensure};
use dvm_core::Delivery;
use dvm_core::ids::{HistoryIndex, ViewId};
use dvm_core::state::{Applied, Content, Ended, Entry, Event, Placed, State};
use dvm_core::view::Label;
use dvm_core::wire::Key;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A place in the tree.
pub(crate) type NodeNo = usize;

/// One entry at its place.
pub(crate) struct Node {
    pub(crate) parent: Option<NodeNo>,
    depth: usize,
    /// `None` for the founding of the DVM.
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) index: HistoryIndex,
    /// The view in which the next entry will stand.
    pub(crate) view: ViewId,
    key: Key,
    /// Events, by the label under which they were told.
    told: [Option<Vec<Event>>; 2],
    pub(crate) applied: Applied,
    pub(crate) ended: Option<Box<Ended>>,
    /// Instances that it gave to members.
    placed: Vec<Placed>,
    /// A member delivered it in normal operation, not in a flush.
    normal: bool,
    confirmed: bool,
    history_hash: Option<[u8; 32]>,
    state_hash: Option<[u8; 32]>,
    children: Vec<NodeNo>,
}

/// All histories of a run.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Only one path may exist.
    quorum: bool,
    /// The deepest confirmed entry. Invariant: all confirmed ones lie on its path.
    confirmed_tip: NodeNo,
    by_hash: BTreeMap<(HistoryIndex, [u8; 32]), NodeNo>,
}

impl Tree {
    pub(crate) fn new(founded: &State, quorum: bool) -> Self {
        let root = Node {
            parent: None,
            depth: 0,
            entry: None,
            index: founded.index,
            view: founded.view.id,
            key: founded.key,
            told: [None, None],
            applied: Applied::Done,
            ended: None,
            placed: Vec::new(),
            normal: true,
            confirmed: true,
            history_hash: None,
            state_hash: None,
            children: Vec::new(),
        };
        Self { nodes: vec![root], quorum, confirmed_tip: 0, by_hash: BTreeMap::new() }
    }

    pub(crate) fn node(&self, no: NodeNo) -> &Node {
        &self.nodes[no]
    }

    /// A member at `at` delivers; where it is then, and whether nobody was there before.
    pub(crate) fn deliver(
        &mut self,
        at: NodeNo,
        delivery: Delivery,
        normal: bool,
    ) -> Verdict<(NodeNo, bool)> {
        let label = delivery.entry.label;
        let known = self.nodes[at].children.iter().copied();
        let known =
            known.into_iter().find(|child| is_same(self.nodes[*child].entry.as_deref(), &delivery.entry));
        let (no, is_new) = match known {
            Some(no) => (self.compare(no, delivery)?, false),
            None => (self.grow(at, delivery)?, true),
        };
        self.nodes[no].normal |= normal;
        self.check_branches(at)?;
        if label == Label::Confirmed {
            self.confirm(no)?;
        }
        Ok((no, is_new))
    }

    /// Another member delivered this entry before: it must have done the same to it.
    fn compare(&mut self, no: NodeNo, delivery: Delivery) -> Verdict<NodeNo> {
        let node = &mut self.nodes[no];
        let index = node.index;
        ensure(node.applied == delivery.applied, "I3", || {
            format!(
                "entry {index} did {:?} at one member and {:?} at another",
                node.applied, delivery.applied
            )
        })?;
        ensure(node.ended == delivery.ended, "I13", || {
            format!("entry {index} ended {:?} at one member and {:?} at another", node.ended, delivery.ended)
        })?;
        ensure(node.placed == delivery.placed, "placement", || {
            format!(
                "entry {index} placed {:?} at one member and {:?} at another",
                node.placed, delivery.placed
            )
        })?;
        let told = &mut node.told[delivery.entry.label as usize];
        match told {
            Some(told) => ensure(*told == delivery.events, "events", || {
                format!("entry {index} told {told:?} at one member and {:?} at another", delivery.events)
            })?,
            None => *told = Some(delivery.events),
        }
        Ok(no)
    }

    fn grow(&mut self, at: NodeNo, delivery: Delivery) -> Verdict<NodeNo> {
        let Delivery { entry, events, applied, ended, placed } = delivery;
        let parent = &self.nodes[at];
        ensure(entry.first == parent.index.next() && entry.index >= entry.first, "history", || {
            format!("entry {}..{} does not follow index {}", entry.first, entry.index, parent.index)
        })?;
        if matches!(entry.content, Content::Change { .. }) {
            ensure(entry.view == parent.view, "I11", || {
                format!(
                    "entry {} of view {:?} was delivered in view {:?}",
                    entry.index, entry.view, parent.view
                )
            })?;
            ensure(entry.key > parent.key, "I5", || {
                format!("entry {} has key {:?}, after key {:?}", entry.index, entry.key, parent.key)
            })?;
        }
        check_events(&entry, &events)?;
        let mut told = [None, None];
        told[entry.label as usize] = Some(events);
        let node = Node {
            parent: Some(at),
            depth: parent.depth + 1,
            index: entry.index,
            view: entry.view,
            key: entry.key,
            entry: Some(entry),
            told,
            applied,
            ended,
            placed,
            normal: false,
            confirmed: false,
            history_hash: None,
            state_hash: None,
            children: Vec::new(),
        };
        self.nodes.push(node);
        let no = self.nodes.len() - 1;
        self.nodes[at].children.push(no);
        Ok(no)
    }

    fn check_branches(&self, at: NodeNo) -> Verdict {
        let children = &self.nodes[at].children;
        if children.len() < 2 || !(self.quorum || children.iter().any(|child| self.nodes[*child].normal)) {
            return Ok(());
        }
        let told = children.iter().map(|child| {
            let node = &self.nodes[*child];
            let how = if node.normal { "normal" } else { "flush" };
            format!("{how}: {:?}", node.entry)
        });
        let told: Vec<_> = told.collect();
        let text = format!("histories part after index {}:\n  {}", self.nodes[at].index, told.join("\n  "));
        Err(Violation { rule: "I3", text })
    }

    fn confirm(&mut self, no: NodeNo) -> Verdict {
        if self.nodes[no].confirmed {
            return Ok(());
        }
        let tip = self.confirmed_tip;
        ensure(self.is_ancestor(tip, no) || self.is_ancestor(no, tip), "I9", || {
            format!("two confirmed branches: {:?}\n  and {:?}", self.nodes[no].entry, self.nodes[tip].entry)
        })?;
        self.nodes[no].confirmed = true;
        if self.nodes[no].depth > self.nodes[tip].depth {
            self.confirmed_tip = no;
        }
        Ok(())
    }

    /// A member at `no` has this history hash.
    pub(crate) fn note_history_hash(&mut self, no: NodeNo, hash: [u8; 32]) -> Verdict {
        let node = &mut self.nodes[no];
        match node.history_hash {
            Some(known) => {
                ensure(known == hash, "I6", || format!("two history hashes at index {}", node.index))?;
            }
            None => {
                node.history_hash = Some(hash);
                self.by_hash.insert((node.index, hash), no);
            }
        }
        Ok(())
    }

    /// A member at `no` has this hash of its whole state.
    pub(crate) fn note_state_hash(&mut self, no: NodeNo, hash: [u8; 32]) -> Verdict {
        let node = &mut self.nodes[no];
        let known = *node.state_hash.get_or_insert(hash);
        ensure(known == hash, "I14", || format!("two state hashes at index {}", node.index))
    }

    /// The place with this index and history hash, if a member with a known hash was there.
    pub(crate) fn find(&self, index: HistoryIndex, hash: [u8; 32]) -> Option<NodeNo> {
        self.by_hash.get(&(index, hash)).copied()
    }

    /// Whether `above` is `below` or on the way to it.
    pub(crate) fn is_ancestor(&self, above: NodeNo, below: NodeNo) -> bool {
        let mut at = below;
        while self.nodes[at].depth > self.nodes[above].depth {
            at = self.nodes[at].parent.expect("only the root has depth 0");
        }
        at == above
    }

    /// The place on the way to `from` whose entry ends at `index`.
    pub(crate) fn at_index(&self, from: NodeNo, index: HistoryIndex) -> Option<NodeNo> {
        let mut at = from;
        while self.nodes[at].index > index {
            at = self.nodes[at].parent?;
        }
        (self.nodes[at].index == index).then_some(at)
    }

    /// Places below `from` (or it) with this index.
    pub(crate) fn below_at_index(&self, from: NodeNo, index: HistoryIndex) -> Vec<NodeNo> {
        let mut found = Vec::new();
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            match self.nodes[at].index.cmp(&index) {
                std::cmp::Ordering::Less => open.extend(&self.nodes[at].children),
                std::cmp::Ordering::Equal => found.push(at),
                std::cmp::Ordering::Greater => {}
            }
        }
        found
    }

    /// The last place that both share.
    pub(crate) fn fork(&self, a: NodeNo, b: NodeNo) -> NodeNo {
        let mut at = a;
        while !self.is_ancestor(at, b) {
            at = self.nodes[at].parent.expect("the root is an ancestor of all");
        }
        at
    }

    /// From `no` up to the founding.
    pub(crate) fn upward(&self, no: NodeNo) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(&self.nodes[no]), |node| node.parent.map(|parent| &self.nodes[parent]))
    }
}

fn is_same(known: Option<&Entry>, entry: &Entry) -> bool {
    known.is_some_and(|known| {
        (known.index, known.first, known.view, known.key) == (entry.index, entry.first, entry.view, entry.key)
            && known.content == entry.content
    })
}

/// An entry takes as many indices as it yields events, at least one, and the last ones are theirs.
fn check_events(entry: &Entry, events: &[Event]) -> Verdict {
    let count = events.len() as u64;
    ensure(entry.index.0 + 1 >= entry.first.0 + count.max(1), "events", || {
        format!("entry {}..{} yields {count} events", entry.first, entry.index)
    })?;
    for (at, event) in events.iter().enumerate() {
        let expected = entry.index.0 + 1 - count + at as u64;
        ensure(event.index.0 == expected && event.entry == entry.index, "events", || {
            format!("event {at} of entry {} has index {} of entry {}", entry.index, event.index, event.entry)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::world::new_identity;
    use bytes::Bytes;
    use dvm_core::ids::{Lamport, Lineage, Rank};
    use dvm_core::state::Genesis;
    use dvm_core::{Config, Prng};

    /// A member's state, which delivers bodies as its origin's next ones.
    struct Teller {
        state: State,
        oseq: u64,
    }

    impl Teller {
        fn new() -> Self {
            let founder = new_identity(&mut Prng::new(1), 0, 1);
            let (name, config) = ("sim".to_owned(), Config::default());
            let state = State::genesis(Genesis { name, id: 1, lineage: Lineage(1), config }, founder);
            Self { state, oseq: 0 }
        }

        fn tell(&mut self, body: &'static str, label: Label) -> Delivery {
            self.oseq += 1;
            let key = Key { lnum: Lamport(self.oseq), origin: Rank(0) };
            let (origin, body) = (self.state.view.members[0], Bytes::from_static(body.as_bytes()));
            let content = Content::Change { origin, oseq: self.oseq, body, digest: None };
            let effect = self.state.apply(key, label, content);
            Delivery {
                entry: Arc::new(effect.entry),
                events: effect.events,
                applied: effect.applied,
                ended: effect.ended.map(Box::new),
                placed: effect.placed,
            }
        }
    }

    /// Two members share "a"; then one goes on with "b", the other with "c". Which rule objects to the second?
    fn check(quorum: bool, normal: bool, labels: [Label; 2], objects: Option<&str>) {
        let (mut one, mut other) = (Teller::new(), Teller::new());
        let mut tree = Tree::new(&one.state, quorum);
        let (a, _) = tree.deliver(0, one.tell("a", Label::Confirmed), true).expect("the first");
        let again = tree.deliver(0, other.tell("a", Label::Confirmed), true).expect("the same");
        assert_eq!(again, (a, false));
        tree.deliver(a, one.tell("b", labels[0]), normal).expect("the first here");
        let verdict = tree.deliver(a, other.tell("c", labels[1]), false);
        assert_eq!(verdict.err().map(|violation| violation.rule), objects);
    }

    #[test]
    fn histories_may_part_only_where_nobody_delivered_and_only_one_branch_is_confirmed() {
        use Label::{Confirmed, Provisional};
        check(false, false, [Confirmed, Provisional], None);
        check(false, false, [Provisional, Provisional], None);
        check(false, false, [Confirmed, Confirmed], Some("I9"));
        check(false, true, [Confirmed, Provisional], Some("I3"));
        check(true, false, [Confirmed, Provisional], Some("I3"));
    }

    #[test]
    fn a_gap_a_wrong_hash_and_a_wrong_answer_are_seen() {
        let mut teller = Teller::new();
        let mut tree = Tree::new(&teller.state, true);
        let first = teller.tell("a", Label::Confirmed);
        let second = teller.tell("b", Label::Confirmed);
        assert!(tree.deliver(0, second, true).is_err(), "it does not follow");
        let mut other = first.clone();
        other.applied = Applied::Command;
        let (no, _) = tree.deliver(0, first, true).expect("it follows");
        assert!(tree.deliver(0, other, true).is_err(), "it did something else");
        tree.note_history_hash(no, [1; 32]).expect("the first hash");
        assert!(tree.note_history_hash(no, [2; 32]).is_err(), "another hash");
        assert_eq!(tree.find(HistoryIndex(2), [1; 32]), Some(no));
    }
}
