//! The replies of one instance, kept for those who ask later or again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most replies kept.
const REPLIES_MAX: usize = 65_536;
/// Most bytes of replies kept.
const BYTES_MAX: usize = 16 << 20;
/// Most replies that go with a snapshot.
const TAIL_MAX: usize = 1_024;
/// Most bytes of replies that go with a snapshot.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// A plug-in's reply, or its own error.
pub(super) type Reply = Result<Bytes, String>;

/// Replies by the command's index, the newest of them.
#[derive(Debug, Default)]
pub(super) struct Replies {
    by_index: BTreeMap<u64, Reply>,
    bytes: usize,
}

/// The newest replies, as they go with a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail(Vec<(u64, Reply)>);

fn size(reply: &Reply) -> usize {
    reply.as_ref().map_or_else(String::len, Bytes::len)
}

impl Replies {
    pub(super) fn get(&self, index: u64) -> Option<&Reply> {
        self.by_index.get(&index)
    }

    /// Keeps a reply; the first one for an index counts.
    pub(super) fn keep(&mut self, index: u64, reply: Reply) {
        let size_of_it = size(&reply);
        if let std::collections::btree_map::Entry::Vacant(place) = self.by_index.entry(index) {
            place.insert(reply);
            self.bytes += size_of_it;
        }
        while self.by_index.len() > REPLIES_MAX || self.bytes > BYTES_MAX {
            let Some((_, dropped)) = self.by_index.pop_first() else { return };
            self.bytes -= size(&dropped);
        }
    }

    /// The newest up to `index`.
    pub(super) fn tail(&self, index: u64) -> Tail {
        let mut bytes = 0;
        let newest = self.by_index.range(..=index).rev().take(TAIL_MAX);
        let newest = newest.take_while(|(_, reply)| {
            bytes += size(reply);
            bytes <= TAIL_BYTES_MAX
        });
        Tail(newest.map(|(index, reply)| (*index, reply.clone())).collect())
    }

    /// Keeps what came with a snapshot.
    pub(super) fn extend(&mut self, tail: Tail) {
        tail.0.into_iter().for_each(|(index, reply)| self.keep(index, reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_within_both_bounds() {
        let mut replies = Replies::default();
        for index in 0..REPLIES_MAX as u64 + 10 {
            replies.keep(index, Ok(Bytes::from_static(b"x")));
        }
        assert_eq!(replies.by_index.len(), REPLIES_MAX);
        assert!(replies.get(9).is_none() && replies.get(10).is_some());
        replies.keep(1 << 40, Ok(vec![0; BYTES_MAX].into()));
        assert_eq!(replies.by_index.len(), 1);
        assert_eq!(replies.bytes, BYTES_MAX);
    }

    #[test]
    fn the_first_reply_counts_and_a_tail_ends_at_its_index() {
        let mut replies = Replies::default();
        replies.keep(3, Ok(Bytes::from_static(b"first")));
        replies.keep(3, Err("second".into()));
        replies.keep(5, Err("later".into()));
        let mut other = Replies::default();
        other.extend(replies.tail(4));
        assert_eq!(other.get(3), Some(&Ok(Bytes::from_static(b"first"))));
        assert_eq!(other.get(5), None);
    }
}
