//! A file in memory, without a name: where a blob arrives, and what the loader maps.
//!
//! A library is loaded from the very pages that it arrived in. All its instances at this kernel share them, no directory
//! needs room for it or has to allow programs, and nothing is left behind, however the kernel ends. Sealed, it stays what
//! was proven.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

/// What nobody can do to it any more.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// The file.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    /// An empty one. Processes that map it are listed with `name`.
    ///
    /// # Errors
    /// There is no descriptor or no memory for it.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // It is mapped, never run as a program. Systems may want that to be said; older ones do not know the word.
        let file = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(name, flags),
            made => made,
        };
        Ok(Self(file?.into()))
    }

    /// Puts bytes at an offset.
    ///
    /// # Errors
    /// There is no memory for them, or it is sealed.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    /// Fills `bytes` from an offset.
    ///
    /// # Errors
    /// There are fewer.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    /// From here on it stays as it is.
    ///
    /// # Errors
    /// It was sealed before.
    pub(super) fn seal(&self) -> io::Result<()> {
        Ok(fcntl_add_seals(&self.0, SEALS)?)
    }

    /// The first `size` bytes of what is sealed.
    ///
    /// # Errors
    /// There is no room in this process.
    ///
    /// # Panics
    /// If it is not sealed, or shorter.
    pub(super) fn map(&self, size: usize) -> io::Result<Mapped> {
        let sealed = rustix::fs::fcntl_get_seals(&self.0)?;
        assert!(sealed.contains(SEALS), "a file that may change is mapped");
        assert!(self.0.metadata()?.len() >= size as u64, "more is mapped than is there");
        if size == 0 {
            return Ok(Mapped { at: NonNull::dangling(), size });
        }
        // SAFETY: a new mapping, of bytes that are there and, since they are sealed, stay.
        let at = unsafe { mmap(std::ptr::null_mut(), size, ProtFlags::READ, MapFlags::PRIVATE, &self.0, 0) }?;
        let at = NonNull::new(at.cast()).expect("nothing is mapped at zero");
        Ok(Mapped { at, size })
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Bytes of a file in memory, to be read where they are.
#[derive(Debug)]
pub(crate) struct Mapped {
    at: NonNull<u8>,
    size: usize,
}

// SAFETY: nobody writes to what it points to.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped there for as long as this lives, and are not written to.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.size) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: it is this value's mapping, and nothing borrows from it any more.
            let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.size) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let memory = Memory::new("test").expect("there is memory");
        memory.write(b"def", 3).expect("there is room");
        memory.write(b"abc", 0).expect("there is room");
        let mut read = [0; 2];
        memory.read(&mut read, 4).expect("it is there");
        assert_eq!(&read, b"ef");
        assert!(memory.read(&mut read, 5).is_err(), "only one byte is there");
        memory.seal().expect("once");
        let mapped = memory.map(6).expect("there is room");
        assert_eq!(&*mapped, b"abcdef");
        assert!(memory.write(b"x", 0).is_err() && memory.write(b"x", 6).is_err() && memory.seal().is_err());
        assert_eq!(&*mapped, b"abcdef");
        assert!(memory.map(0).expect("nothing is needed").is_empty());
    }
}
