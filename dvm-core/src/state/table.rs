//! A persistent ordered map that keeps a hash of its content as it changes.
//!
//! The hash is a sum of one digest per row (a multiset hash, after Bellare and Micciancio's AdHash), so a change
//! costs two digests and a copy of the table costs nothing.

use alloc::vec::Vec;
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Sum of row digests; equal for equal contents whatever the order of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableHash([u64; 4]);

/// A replicated table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table<K: Ord, V> {
    rows: RedBlackTreeMapSync<K, V>,
    /// Invariant: the sum of `digest(k, v)` over all rows.
    hash: TableHash,
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: RedBlackTreeMapSync::new_sync(), hash: TableHash::default() }
    }
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Table<K, V> {
    /// The row of `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: core::borrow::Borrow<Q>,
    {
        self.rows.get(key)
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.size()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    /// Rows from `from` on, in key order.
    pub fn range_from<Q: Ord + ?Sized>(&self, from: &Q) -> impl Iterator<Item = (&K, &V)>
    where
        K: core::borrow::Borrow<Q>,
    {
        self.rows.range((core::ops::Bound::Included(from), core::ops::Bound::Unbounded))
    }

    /// Sets a row.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        self.hash.add(&digest(&key, &value));
        self.rows.insert_mut(key, value);
    }

    /// Removes a row; false if there was none.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: core::borrow::Borrow<Q>,
    {
        let Some((key, value)) = self.rows.get_key_value(key) else { return false };
        self.hash.subtract(&digest(key, value));
        let key = key.clone();
        self.rows.remove_mut::<K>(&key)
    }

    /// Changes a row in place, if there is one.
    pub fn update<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let mut value = self.rows.get(key)?.clone();
        let result = change(&mut value);
        self.insert(key.clone(), value);
        Some(result)
    }

    /// Hash of the content.
    #[must_use]
    pub fn hash(&self) -> TableHash {
        self.hash
    }
}

impl TableHash {
    fn add(&mut self, digest: &[u64; 4]) {
        for (sum, part) in self.0.iter_mut().zip(digest) {
            *sum = sum.wrapping_add(*part);
        }
    }

    fn subtract(&mut self, digest: &[u64; 4]) {
        for (sum, part) in self.0.iter_mut().zip(digest) {
            *sum = sum.wrapping_sub(*part);
        }
    }
}

fn digest<K: Serialize, V: Serialize>(key: &K, value: &V) -> [u64; 4] {
    let bytes = postcard::to_allocvec(&(key, value)).expect("rows are plain data");
    let hash = blake3::hash(&bytes);
    let bytes = hash.as_bytes();
    core::array::from_fn(|i| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("eight bytes")))
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de, K, V> Deserialize<'de> for Table<K, V>
where
    K: Ord + Clone + Serialize + Deserialize<'de>,
    V: Clone + Serialize + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rows = Vec::<(K, V)>::deserialize(deserializer)?;
        let mut table = Self::default();
        for (key, value) in rows {
            table.insert(key, value);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_plain_map_and_hashes_its_content_only(
            changes in proptest::collection::vec((0u8..12, proptest::option::of(0u16..4)), 0..60),
        ) {
            let mut table = Table::<u8, u16>::default();
            let mut twin = BTreeMap::new();
            for (key, value) in changes {
                match value {
                    Some(value) => {
                        table.insert(key, value);
                        twin.insert(key, value);
                    }
                    None => prop_assert_eq!(table.remove(&key), twin.remove(&key).is_some()),
                }
            }
            let mut again = Table::default();
            for (key, value) in twin.iter().rev() {
                again.insert(*key, *value);
            }
            prop_assert!(table.iter().eq(twin.iter()));
            prop_assert_eq!(table.hash(), again.hash());
        }
    }
}
