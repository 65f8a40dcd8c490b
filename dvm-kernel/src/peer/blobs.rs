//! Blobs by content hash: what this kernel has whole, what is on its way, and what is collected.
//!
//! What a loaded plug-in of the state needs is kept, and so is what somebody holds at this moment: a launch, a transfer, a
//! load that is about to be proposed. Of the rest a few recent ones stay, since what was unloaded is often loaded again.

use super::BLOB_MAX;
use super::blob::{Blob, BlobError, Outline, Upload};
use crate::security::ticket::hex;
use dvm_core::ids::MemberId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Bytes kept of what nobody needs; the least recently used go first. One stays however large it is.
const SPARE_MAX: u64 = 64 << 20;

/// How many are kept at most of what nobody needs: each is a descriptor.
const SPARE_COUNT: usize = 64;

/// Blobs kept that are not whole and that nobody works on, and uploads of clients at a time.
const PARTIAL_MAX: usize = 8;

/// Blobs of which it is remembered who has them for certain.
const HOLDERS_MAX: usize = 64;

/// The blobs of this kernel.
#[derive(Debug, Default)]
pub(crate) struct Blobs {
    inner: Mutex<Inner>,
    /// One more with each blob that begins or is whole at once.
    appeared: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: BTreeMap<[u8; 32], Used<Arc<Blob>>>,
    uploads: BTreeMap<[u8; 32], Used<Upload>>,
    /// What the loaded plug-ins of the state need.
    needed: BTreeSet<[u8; 32]>,
    /// Who proposed the load of a library, and so has it; the oldest first.
    holders: VecDeque<([u8; 32], MemberId)>,
    /// Counts uses.
    clock: u64,
}

/// With the count of its last use.
type Used<T> = (u64, T);

impl Blobs {
    /// Adds what a client sends of a library. True: it is whole.
    pub(crate) fn put(&self, hash: [u8; 32], size: u64, offset: u64, part: &[u8]) -> Result<bool, BlobError> {
        let max = BLOB_MAX;
        if size > max {
            return Err(BlobError::TooLarge { size, max });
        }
        if self.whole(&hash).is_some() {
            return Ok(true);
        }
        let mut inner = self.lock();
        let now = inner.tick();
        if offset == 0 {
            make_room(&mut inner.uploads);
            inner.uploads.insert(hash, (now, Upload::new(size)?));
        }
        let expected = inner.uploads.get(&hash).map_or(0, |(_, upload)| upload.here());
        let fits = |upload: &Upload| {
            upload.size() == size && offset == expected && offset + part.len() as u64 <= size
        };
        let Some((used, upload)) = inner.uploads.get_mut(&hash).filter(|(_, upload)| fits(upload)) else {
            return Err(BlobError::Gap { got: offset, expected });
        };
        *used = now;
        let added = upload.add(part);
        if added.is_ok() && upload.here() < size {
            return Ok(false);
        }
        let (_, upload) = inner.uploads.remove(&hash).expect("it was there a moment ago");
        drop(inner);
        added?;
        let blob = upload.into_blob()?;
        if *blob.hash() != hash {
            return Err(BlobError::Hash { got: hex(blob.hash()), expected: hex(&hash) });
        }
        self.insert(blob);
        Ok(true)
    }

    /// A blob of which nothing is here yet, or the one that has begun.
    ///
    /// # Errors
    /// If the outline is not its.
    pub(super) fn begin(&self, hash: [u8; 32], size: u64, outline: Outline) -> Result<Arc<Blob>, BlobError> {
        let new = Blob::begin(hash, size, outline)?;
        Ok(self.get(&hash).unwrap_or_else(|| self.insert(new)))
    }

    fn insert(&self, blob: Blob) -> Arc<Blob> {
        let blob = Arc::new(blob);
        let mut inner = self.lock();
        let now = inner.tick();
        inner.blobs.insert(*blob.hash(), (now, blob.clone()));
        inner.collect();
        drop(inner);
        self.appeared.send_modify(|count| *count += 1);
        blob
    }

    /// A blob, as far as it is here.
    pub(super) fn get(&self, hash: &[u8; 32]) -> Option<Arc<Blob>> {
        let mut inner = self.lock();
        let now = inner.tick();
        let (used, blob) = inner.blobs.get_mut(hash)?;
        *used = now;
        Some(blob.clone())
    }

    /// A blob, if all of it is here.
    pub(crate) fn whole(&self, hash: &[u8; 32]) -> Option<Arc<Blob>> {
        self.get(hash).filter(|blob| blob.is_whole())
    }

    /// A blob, as soon as any of it is here.
    pub(super) async fn appears(&self, hash: &[u8; 32]) -> Arc<Blob> {
        let mut appeared = self.appeared.subscribe();
        loop {
            if let Some(blob) = self.get(hash) {
                return blob;
            }
            // The sender is here.
            let _ = appeared.changed().await;
        }
    }

    /// Forgets a blob that was not for keeping.
    pub(super) fn forget(&self, hash: &[u8; 32]) {
        self.lock().blobs.remove(hash);
    }

    /// These the state needs, and others no more.
    pub(crate) fn need(&self, needed: BTreeSet<[u8; 32]>) {
        let mut inner = self.lock();
        inner.needed = needed;
        inner.collect();
    }

    /// Notes who has a library for certain.
    pub(crate) fn held_by(&self, hash: [u8; 32], member: MemberId) {
        let mut inner = self.lock();
        inner.holders.retain(|(held, _)| *held != hash);
        if inner.holders.len() == HOLDERS_MAX {
            inner.holders.pop_front();
        }
        inner.holders.push_back((hash, member));
    }

    /// Who has it, if that was noted.
    pub(super) fn holder(&self, hash: &[u8; 32]) -> Option<MemberId> {
        self.lock().holders.iter().find(|(held, _)| held == hash).map(|(_, member)| *member)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Lets go of what nobody needs. The map holds one reference to each blob; whoever uses it holds another.
    fn collect(&mut self) {
        let idle = self.blobs.iter().filter(|(hash, (_, blob))| {
            Arc::strong_count(blob) == 1 && !(blob.is_whole() && self.needed.contains(*hash))
        });
        let mut idle: Vec<_> =
            idle.map(|(hash, (used, blob))| (*used, *hash, blob.size(), blob.is_whole())).collect();
        idle.sort_unstable();
        let (mut bytes, mut whole, mut partial) = (0, 0, 0);
        for (_, hash, size, is_whole) in idle.into_iter().rev() {
            let keep = if is_whole {
                (bytes, whole) = (bytes + size, whole + 1);
                whole == 1 || bytes <= SPARE_MAX && whole <= SPARE_COUNT
            } else {
                partial += 1;
                partial <= PARTIAL_MAX
            };
            if !keep {
                self.blobs.remove(&hash);
            }
        }
    }
}

/// Makes room for one more upload: the longest unused one gives way.
fn make_room(uploads: &mut BTreeMap<[u8; 32], Used<Upload>>) {
    while uploads.len() >= PARTIAL_MAX {
        let oldest = uploads.iter().min_by_key(|(_, (used, _))| *used).map(|(hash, _)| *hash);
        uploads.remove(&oldest.expect("there are some"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(blobs: &Blobs, bytes: &[u8]) -> [u8; 32] {
        let hash = *blake3::hash(bytes).as_bytes();
        assert_eq!(blobs.put(hash, bytes.len() as u64, 0, bytes), Ok(true));
        hash
    }

    #[test]
    fn a_library_is_whole_when_its_hash_is_right() {
        let blobs = Blobs::default();
        let bytes = vec![5; 1_000];
        let hash = *blake3::hash(&bytes).as_bytes();
        assert_eq!(blobs.put(hash, 1_000, 400, &bytes[400..]), Err(BlobError::Gap { got: 400, expected: 0 }));
        assert_eq!(blobs.put(hash, 1_000, 0, &bytes[..400]), Ok(false));
        assert!(blobs.whole(&hash).is_none());
        assert_eq!(blobs.put(hash, 1_000, 400, &bytes[400..]), Ok(true));
        assert_eq!(blobs.whole(&hash).expect("it is whole").map().expect("room").to_vec(), bytes);
        let wrong = blobs.put([0; 32], 3, 0, b"abc");
        assert!(matches!(wrong, Err(BlobError::Hash { .. })), "{wrong:?}");
        assert!(blobs.whole(&[0; 32]).is_none());
        assert!(matches!(blobs.put(hash, u64::MAX, 0, b""), Err(BlobError::TooLarge { .. })));
    }

    #[test]
    fn what_no_plug_in_needs_and_nobody_holds_is_collected() {
        let blobs = Blobs::default();
        let half = SPARE_MAX as usize / 2;
        let library = |fill: u8| put(&blobs, &vec![fill; half]);
        let (needed, held, old) = (library(1), library(2), library(3));
        let holding = blobs.whole(&held);
        blobs.need([needed].into());
        let (first, second) = (library(4), library(5));
        // Now nobody holds the last one any more either.
        blobs.need([needed].into());
        let kept = |hash: &[u8; 32]| blobs.lock().blobs.contains_key(hash);
        assert!(kept(&needed) && kept(&held) && kept(&first) && kept(&second));
        assert!(!kept(&old), "the longest unused one goes");
        // It is used again, and so the other one is the oldest.
        assert!(blobs.whole(&first).is_some());
        drop(holding);
        blobs.need(BTreeSet::new());
        assert!(kept(&first) && kept(&second));
        assert!(!kept(&needed) && !kept(&held));
        for number in 0..2 * SPARE_COUNT {
            put(&blobs, &number.to_le_bytes());
        }
        blobs.need(BTreeSet::new());
        assert_eq!(blobs.lock().blobs.len(), SPARE_COUNT, "small ones are descriptors, too");
        let large = put(&blobs, &vec![6; SPARE_MAX as usize + 1]);
        blobs.need(BTreeSet::new());
        assert!(kept(&large) && !kept(&first) && !kept(&second), "one stays however large it is");
    }

    #[test]
    fn what_has_only_begun_is_bounded_too() {
        let blobs = Blobs::default();
        for fill in 0..=PARTIAL_MAX as u8 + 1 {
            let blob = Blob::of(&[fill; 1_000]).expect("room");
            let begun = blobs.begin(*blob.hash(), 1_000, blob.outline().clone());
            assert_eq!(begun.map(|begun| begun.here()), Ok(0));
        }
        // The last one was held when it came.
        assert_eq!(blobs.lock().blobs.len(), PARTIAL_MAX + 1);
        let holders = 2 * HOLDERS_MAX as u8;
        (0..holders).for_each(|at| blobs.held_by([at; 32], MemberId(at.into())));
        assert_eq!(blobs.lock().holders.len(), HOLDERS_MAX);
        assert_eq!(blobs.holder(&[holders - 1; 32]), Some(MemberId(u128::from(holders - 1))));
    }
}
