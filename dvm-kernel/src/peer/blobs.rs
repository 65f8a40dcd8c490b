//! Libraries by content hash: put together from parts, verified, kept in memory for plug-ins and other members.

use crate::security::ticket::hex;
use dvm_core::ids::MemberId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes kept in all; the least recently used go first.
const KEPT_MAX: u64 = 1 << 30;

/// Libraries that are being put together at a time.
const PARTIAL_MAX: usize = 8;

/// The libraries of this kernel.
#[derive(Debug, Default)]
pub(crate) struct Blobs {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    whole: BTreeMap<[u8; 32], (u64, Arc<Vec<u8>>)>,
    partial: BTreeMap<[u8; 32], (u64, Vec<u8>)>,
    /// Who proposed the load of a library, and so has it.
    holders: BTreeMap<[u8; 32], MemberId>,
    /// Counts uses.
    clock: u64,
}

/// Why a part is not taken. What came before is kept, except where a variant says so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlobError {
    /// The library is too large.
    #[error("a library of {size} bytes, where at most {max} are allowed")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A part is missing before this one. It begins anew with offset 0.
    #[error("the part at {got} does not follow the last one, which ends at {expected}")]
    Gap {
        /// Where it begins.
        got: u64,
        /// Where it should.
        expected: u64,
    },
    /// All parts are here and the hash is another one. They are forgotten.
    #[error("the library's hash is {got}, not {expected}: it was changed on its way")]
    Hash {
        /// What it is.
        got: String,
        /// What was announced.
        expected: String,
    },
}

impl Blobs {
    /// What has arrived of these bytes on connections that broke; it is no longer kept here.
    pub(super) fn take_begun(&self, hash: &[u8; 32]) -> Vec<u8> {
        self.lock().partial.remove(hash).map(|(_, bytes)| bytes).unwrap_or_default()
    }

    /// Keeps what has arrived, for a transfer that goes on.
    pub(super) fn keep_begun(&self, hash: [u8; 32], bytes: Vec<u8>) {
        self.lock().begin(hash, bytes);
    }

    /// Adds a part. True: the library is whole.
    pub(crate) fn put(&self, hash: [u8; 32], size: u64, offset: u64, part: &[u8]) -> Result<bool, BlobError> {
        let max = super::BLOB_MAX;
        if size > max {
            return Err(BlobError::TooLarge { size, max });
        }
        let mut inner = self.lock();
        if inner.whole.contains_key(&hash) {
            inner.touch(&hash);
            return Ok(true);
        }
        if offset == 0 {
            inner.begin(hash, Vec::new());
        }
        inner.clock += 1;
        let clock = inner.clock;
        let expected = inner.partial.get(&hash).map_or(0, |(_, bytes)| bytes.len() as u64);
        let fits = offset == expected && offset + part.len() as u64 <= size;
        let Some((used, bytes)) = inner.partial.get_mut(&hash).filter(|_| fits) else {
            return Err(BlobError::Gap { got: offset, expected });
        };
        *used = clock;
        bytes.extend_from_slice(part);
        if (bytes.len() as u64) < size {
            return Ok(false);
        }
        let bytes = inner.partial.remove(&hash).map(|(_, bytes)| bytes).unwrap_or_default();
        drop(inner);
        self.keep(hash, bytes).map(|_| true)
    }

    /// Keeps a whole library, if its hash is right.
    pub(crate) fn keep(&self, hash: [u8; 32], bytes: Vec<u8>) -> Result<Arc<Vec<u8>>, BlobError> {
        let got = *blake3::hash(&bytes).as_bytes();
        if got != hash {
            return Err(BlobError::Hash { got: hex(&got), expected: hex(&hash) });
        }
        let bytes = Arc::new(bytes);
        let mut inner = self.lock();
        inner.clock += 1;
        let clock = inner.clock;
        inner.whole.insert(hash, (clock, bytes.clone()));
        while inner.whole.len() > 1
            && inner.whole.values().map(|(_, b)| b.len() as u64).sum::<u64>() > KEPT_MAX
        {
            let oldest = inner.whole.iter().min_by_key(|(_, (used, _))| *used).map(|(hash, _)| *hash);
            inner.whole.remove(&oldest.expect("there are some"));
        }
        Ok(bytes)
    }

    /// A library, if it is here.
    pub(crate) fn get(&self, hash: &[u8; 32]) -> Option<Arc<Vec<u8>>> {
        let mut inner = self.lock();
        inner.touch(hash);
        inner.whole.get(hash).map(|(_, bytes)| bytes.clone())
    }

    /// Notes who has a library for certain.
    pub(crate) fn held_by(&self, hash: [u8; 32], member: MemberId) {
        self.lock().holders.insert(hash, member);
    }

    /// Who has it, if that was noted.
    pub(crate) fn holder(&self, hash: &[u8; 32]) -> Option<MemberId> {
        self.lock().holders.get(hash).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Begins to put something together, or goes on; the longest unused one gives way.
    fn begin(&mut self, hash: [u8; 32], bytes: Vec<u8>) {
        self.clock += 1;
        while self.partial.len() >= PARTIAL_MAX {
            let oldest = self.partial.iter().min_by_key(|(_, (used, _))| *used).map(|(hash, _)| *hash);
            self.partial.remove(&oldest.expect("there are some"));
        }
        self.partial.insert(hash, (self.clock, bytes));
    }

    fn touch(&mut self, hash: &[u8; 32]) {
        self.clock += 1;
        let clock = self.clock;
        if let Some((used, _)) = self.whole.get_mut(hash) {
            *used = clock;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_whole_when_its_hash_is_right() {
        let blobs = Blobs::default();
        let bytes = vec![5; 1_000];
        let hash = *blake3::hash(&bytes).as_bytes();
        assert_eq!(blobs.put(hash, 1_000, 400, &bytes[400..]), Err(BlobError::Gap { got: 400, expected: 0 }));
        assert_eq!(blobs.put(hash, 1_000, 0, &bytes[..400]), Ok(false));
        assert_eq!(blobs.put(hash, 1_000, 400, &bytes[400..]), Ok(true));
        assert_eq!(blobs.get(&hash).as_deref(), Some(&bytes));
        let wrong = blobs.put([0; 32], 3, 0, b"abc");
        assert!(matches!(wrong, Err(BlobError::Hash { .. })), "{wrong:?}");
        assert!(blobs.get(&[0; 32]).is_none());
        assert!(matches!(blobs.put(hash, u64::MAX, 0, b""), Err(BlobError::TooLarge { .. })));
    }
}
