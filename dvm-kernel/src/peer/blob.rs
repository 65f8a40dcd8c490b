//! One library or state copy, in parts: as it is put together here, as it arrives, and as it is handed on meanwhile.
//!
//! BLAKE3 is a tree. Its nodes at the height of a part are the blob's [`Outline`], which anybody can send: it proves
//! itself against the hash of the whole before the first byte comes, and then proves each part as it comes. So what is
//! kept here is right, up to where it goes, and may be handed on before the rest is here; and who sends a wrong byte is
//! known at once, by the one who asked it.

use super::PART;
use super::memory::{Mapped, Memory};
use crate::security::ticket::hex;
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Parts begin where subtrees do.
const _: () = assert!(PART.is_power_of_two() && PART >= blake3::CHUNK_LEN);

/// Why bytes are not taken. What came before them is kept, except where a variant says so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlobError {
    /// It is too large.
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
    /// All is here and the hash is another one. It is forgotten.
    #[error("the library's hash is {got}, not {expected}: it was changed on its way")]
    Hash {
        /// What it is.
        got: String,
        /// What was announced.
        expected: String,
    },
    /// The outline is not that of bytes with this hash.
    #[error("an outline came that does not fit the hash {expected}")]
    Outline {
        /// What was asked for.
        expected: String,
    },
    /// A part is not the one of the outline.
    #[error("part {at} came changed")]
    Part {
        /// Which, from 0.
        at: usize,
    },
    /// This kernel cannot keep it.
    #[error("there is no room for it in memory: {reason}")]
    NoRoom {
        /// What the system says.
        reason: String,
    },
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        Self::NoRoom { reason: error.to_string() }
    }
}

/// The nodes of a blob's tree, one a part; none for a blob of one part, which its hash proves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outline(Vec<ChainingValue>);

impl Outline {
    /// Whether it is that of a blob.
    fn proves(&self, hash: &[u8; 32], size: u64) -> bool {
        match parts(size) {
            0 | 1 => self.0.is_empty(),
            parts => self.0.len() == parts && root(&self.0) == *hash,
        }
    }
}

/// Bytes that prove themselves against a hash, from the first part up to wherever they are here.
#[derive(Debug)]
pub(crate) struct Blob {
    hash: [u8; 32],
    size: u64,
    /// It proves `hash`.
    outline: Outline,
    /// The first parts, in order. Each is proven, and all but the last of the blob have [`PART`] bytes. Sealed with the last.
    memory: Memory,
    /// How many parts there are.
    here: watch::Sender<usize>,
    /// Held while one is added.
    adding: Mutex<()>,
}

impl Blob {
    /// Nothing of it yet.
    ///
    /// # Errors
    /// The outline is not its, or there is no room for it.
    pub(super) fn begin(hash: [u8; 32], size: u64, outline: Outline) -> Result<Self, BlobError> {
        let empty = size > 0 || *blake3::hash(&[]).as_bytes() == hash;
        if !(empty && outline.proves(&hash, size)) {
            return Err(BlobError::Outline { expected: hex(&hash) });
        }
        let memory = Memory::new(&format!("dvm-{}", &hex(&hash)[..16]))?;
        if size == 0 {
            memory.seal()?;
        }
        Ok(Self { hash, size, outline, memory, here: watch::Sender::new(0), adding: Mutex::default() })
    }

    /// These bytes.
    ///
    /// # Errors
    /// There is no room for them.
    pub(crate) fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut upload = Upload::new(bytes.len() as u64)?;
        upload.add(bytes)?;
        upload.into_blob()
    }

    pub(super) fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn outline(&self) -> &Outline {
        &self.outline
    }

    /// How many parts are here.
    pub(super) fn here(&self) -> usize {
        *self.here.borrow()
    }

    /// How many parts it has.
    pub(super) fn count(&self) -> usize {
        parts(self.size)
    }

    /// Whether all of it is here.
    pub(super) fn is_whole(&self) -> bool {
        self.here() == self.count()
    }

    /// Bytes of a part.
    pub(super) fn part_size(&self, at: usize) -> usize {
        let left = self.size.saturating_sub((at * PART) as u64);
        PART.min(usize::try_from(left).unwrap_or(PART))
    }

    /// Takes a part, if it is the next one.
    ///
    /// # Errors
    /// It is not what it should be, or there is no room for it; nothing is changed.
    pub(super) fn push(&self, at: usize, part: &[u8]) -> Result<(), BlobError> {
        let fits = part.len() == self.part_size(at) && !part.is_empty();
        let proven = match self.outline.0.get(at) {
            Some(node) => fits && node_of(at, part) == *node,
            None => fits && *blake3::hash(part).as_bytes() == self.hash,
        };
        if !proven {
            return Err(BlobError::Part { at });
        }
        let _one_at_a_time = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if self.here() == at {
            self.memory.write(part, (at * PART) as u64)?;
            if at + 1 == self.count() {
                self.memory.seal()?;
            }
            self.here.send_replace(at + 1);
        }
        Ok(())
    }

    /// Waits until a part is here.
    pub(super) async fn arrives(&self, at: usize) -> io::Result<()> {
        let mut here = self.here.subscribe();
        // The sender lives as long as this does.
        here.wait_for(|here| *here > at).await.map(drop).map_err(io::Error::other)
    }

    /// Fills `bytes` from `offset`, with what is here.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.memory.read(bytes, offset)
    }

    /// All of it, which is here.
    ///
    /// # Errors
    /// There is no room in this process.
    ///
    /// # Panics
    /// If it is not whole.
    pub(crate) fn map(&self) -> io::Result<Mapped> {
        self.memory.map(usize::try_from(self.size).expect("it is here"))
    }
}

/// The file that it is in.
impl AsFd for Blob {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// Bytes that come without an outline, from a client: it is made on the way.
#[derive(Debug)]
pub(super) struct Upload {
    size: u64,
    memory: Memory,
    here: u64,
    nodes: Vec<ChainingValue>,
    /// Of the last part, which may be short still.
    last: Hasher,
}

impl Upload {
    /// Of so many bytes.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        Ok(Self { size, memory: Memory::new("dvm-upload")?, here: 0, nodes: Vec::new(), last: Hasher::new() })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many are here.
    pub(super) fn here(&self) -> u64 {
        self.here
    }

    /// Takes the next ones.
    ///
    /// # Errors
    /// There is no room for them; it takes no more then.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.write(bytes, self.here)?;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.in_last() == 0 && self.here > 0 {
                self.nodes.push(self.last.finalize_non_root());
                self.last = Hasher::new();
                self.last.set_input_offset(self.here);
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART - self.in_last()));
            self.last.update(now);
            self.here += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Bytes of the last part that are here; none if it is full.
    fn in_last(&self) -> usize {
        (self.here % PART as u64) as usize
    }

    /// The blob they make.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn into_blob(mut self) -> io::Result<Blob> {
        let hash = if self.nodes.is_empty() {
            *self.last.finalize().as_bytes()
        } else {
            self.nodes.push(self.last.finalize_non_root());
            root(&self.nodes)
        };
        self.memory.seal()?;
        let Self { memory, here: size, nodes, .. } = self;
        let here = watch::Sender::new(parts(size));
        Ok(Blob { hash, size, outline: Outline(nodes), memory, here, adding: Mutex::default() })
    }
}

/// How many parts so many bytes make.
fn parts(size: u64) -> usize {
    usize::try_from(size.div_ceil(PART as u64)).unwrap_or(usize::MAX)
}

/// The node over a part.
fn node_of(at: usize, part: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset((at * PART) as u64).update(part).finalize_non_root()
}

/// The hash over two or more nodes.
fn root(nodes: &[ChainingValue]) -> [u8; 32] {
    let (left, right) = halves(nodes);
    *merge_subtrees_root(&node_over(left), &node_over(right), Mode::Hash).as_bytes()
}

fn node_over(nodes: &[ChainingValue]) -> ChainingValue {
    if let [only] = nodes {
        return *only;
    }
    let (left, right) = halves(nodes);
    merge_subtrees_non_root(&node_over(left), &node_over(right), Mode::Hash)
}

/// The left half of a tree is full.
fn halves(nodes: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    nodes.split_at(nodes.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn blob(bytes: &[u8]) -> Blob {
        Blob::of(bytes).expect("there is room")
    }

    #[test]
    fn a_blob_has_the_hash_of_its_bytes_however_they_come() {
        for size in [0, 1, 1_024, PART - 1, PART, PART + 1, 2 * PART, 3 * PART - 5, 5 * PART, 8 * PART + 1] {
            let bytes = bytes(size);
            let blob = blob(&bytes);
            assert_eq!(blob.hash(), blake3::hash(&bytes).as_bytes(), "{size} bytes");
            assert!(blob.is_whole() && blob.size() == size as u64 && *blob.map().expect("room") == bytes);
            let mut upload = Upload::new(size as u64).expect("room");
            bytes.chunks(100_003).for_each(|part| upload.add(part).expect("room"));
            assert_eq!(upload.here(), size as u64);
            let uploaded = upload.into_blob().expect("room");
            assert_eq!((uploaded.hash(), uploaded.outline()), (blob.hash(), blob.outline()));
            assert!(blob.outline().proves(blob.hash(), size as u64), "{size} bytes");
        }
    }

    #[test]
    fn an_outline_that_is_not_the_blobs_is_refused_before_a_byte_comes() {
        let (whole, other) = (blob(&bytes(3 * PART)), blob(&vec![1; 3 * PART]));
        let begin = |size, outline: &Outline| Blob::begin(*whole.hash(), size, outline.clone());
        assert!(begin(whole.size(), whole.outline()).is_ok());
        assert!(begin(whole.size(), other.outline()).is_err());
        assert!(begin(whole.size() + 1, whole.outline()).is_err(), "a part more");
        let mut short = whole.outline().clone();
        short.0.pop();
        assert!(begin(whole.size() - PART as u64, &short).is_err(), "a part less");
        assert!(Blob::begin([3; 32], 0, Outline::default()).is_err(), "nothing has another hash");
    }

    #[test]
    fn each_part_is_proven_as_it_comes() {
        let bytes = bytes(2 * PART + 9);
        let whole = blob(&bytes);
        let begun = Blob::begin(*whole.hash(), whole.size(), whole.outline().clone()).expect("its outline");
        let part = |at: usize| bytes.chunks(PART).nth(at).expect("there are three");
        let mut wrong = part(0).to_vec();
        wrong[PART / 2] ^= 1;
        assert_eq!(begun.push(0, &wrong), Err(BlobError::Part { at: 0 }));
        assert_eq!(begun.push(0, part(1)), Err(BlobError::Part { at: 0 }), "another one's place");
        assert_eq!(begun.push(0, &part(0)[1..]), Err(BlobError::Part { at: 0 }), "too short");
        assert_eq!(begun.here(), 0);
        for at in 0..3 {
            assert!(!begun.is_whole());
            begun.push(at, part(at)).expect("it is right");
        }
        // A second one that comes by another way changes nothing.
        begun.push(1, part(1)).expect("it is right");
        begun.push(2, part(2)).expect("it is right");
        assert!(begun.is_whole() && *begun.map().expect("room") == bytes);
        let small = blob(b"small");
        let begun = Blob::begin(*small.hash(), 5, Outline::default()).expect("it needs none");
        assert_eq!(begun.push(0, b"smell"), Err(BlobError::Part { at: 0 }));
        begun.push(0, b"small").expect("it is right");
        assert_eq!(&*begun.map().expect("room"), b"small");
    }
}
