//! What a library says of itself, in an ELF note, so that nothing of it must be run to read it.
//!
//! The note's owner is `DVM`, its type [`NOTE_TYPE`], its content a [`Manifest`] in JSON. [`read`] (feature `host`)
//! also finds what would make loading the library fail or kill the process that loads it.

use serde::{Deserialize, Serialize};

/// The note's owner.
pub const NOTE_OWNER: [u8; 4] = *b"DVM\0";
/// The note's type.
pub const NOTE_TYPE: u32 = 1;

/// What a plug-in's library says of itself. Unknown fields are for newer hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The plug-in's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the ABI it was built with, `MAJOR.MINOR`.
    pub abi: String,
    /// Format of its configuration, commands and replies: `msgpack`, `json` or `bytes`.
    pub payload: String,
    /// What it can do beyond the ABI's minimum: `snapshot`.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

impl Manifest {
    /// Whether it has a capability.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|has| has == capability)
    }
}

/// An ELF note with `N` bytes of content, as [`export_plugin!`](crate::export_plugin) places it. `dvm_plugin.h` writes the
/// same.
#[repr(C, align(4))]
#[derive(Debug)]
pub struct Note<const N: usize> {
    owner_size: u32,
    content_size: u32,
    kind: u32,
    owner: [u8; 4],
    content: [u8; N],
}

impl<const N: usize> Note<N> {
    /// A note with this content.
    ///
    /// # Panics
    /// At compile time, if `text` has not `N` bytes.
    #[must_use]
    pub const fn new(text: &str) -> Self {
        assert!(text.len() == N, "the note is as long as its text");
        let (bytes, mut content, mut at) = (text.as_bytes(), [0; N], 0);
        while at < N {
            content[at] = bytes[at];
            at += 1;
        }
        Self { owner_size: 4, content_size: N as u32, kind: NOTE_TYPE, owner: NOTE_OWNER, content }
    }
}

#[cfg(feature = "host")]
pub use reader::{ABORTS, CheckError, MANIFEST_MAX, catches_panics, needed, read};

#[cfg(feature = "host")]
mod reader {
    use super::{Manifest, NOTE_OWNER, NOTE_TYPE};
    use crate::abi::{C_SYMBOL, SYMBOL};
    use object::elf::{self, FileHeader64};
    use object::read::elf::{FileHeader, ProgramHeader, Sym};
    use object::{Endianness, FileKind};

    /// Why a library for which [`catches_panics`] does not hold is not loaded inside a kernel.
    pub const ABORTS: &str = "it was built with panic=abort, and a panic of its would end the kernel; build it with \
                              panic=unwind, or load it with --placement process";

    /// What raises a panic: imported by every library in Rust that was not built with `panic = "abort"`.
    const RAISE: &str = "_Unwind_RaiseException";

    /// Longest manifest, bytes.
    pub const MANIFEST_MAX: usize = 64 << 10;

    /// Why a file is no plug-in that this host can load. Nothing of it was run.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[non_exhaustive]
    pub enum CheckError {
        /// There is nothing in it.
        #[error("the file is empty")]
        Empty,
        /// Something else.
        #[error("it is no ELF file; a plug-in is a shared library (crate-type `cdylib`, or cc -shared)")]
        NotElf,
        /// Loading it would fail, or kill the process.
        #[error("the file is damaged or cut short: {what}")]
        Corrupt {
            /// How it shows.
            what: &'static str,
        },
        /// Built for another processor.
        #[error("it is built for {theirs}, this machine is {ours}")]
        WrongMachine {
            /// For which.
            theirs: String,
            /// Ours.
            ours: &'static str,
        },
        /// An object file, a program at a fixed address, a core.
        #[error("it is an ELF file, but no shared library (crate-type `cdylib`, or cc -shared)")]
        NotALibrary,
        /// Any other library or program.
        #[error("it is no DVM plug-in: it has no manifest (a plug-in says export_plugin!, in C DVM_PLUGIN)")]
        NoManifest,
        /// A note of ours that does not read.
        #[error("the plug-in's manifest does not read: {reason}")]
        BadManifest {
            /// Why.
            reason: String,
        },
        /// A manifest, and nothing behind it.
        #[error(
            "it has a plug-in's manifest, but exports neither {SYMBOL} nor {C_SYMBOL}; was it linked with a list of \
             symbols that leaves them out?"
        )]
        NoTable,
        /// Built with an API this host does not speak.
        #[error(
            "built with plug-in ABI {theirs}, this host speaks {ours}; build it against a matching dvm-plugin-api, or dvm_plugin.h"
        )]
        Abi {
            /// Its.
            theirs: String,
            /// Ours.
            ours: &'static str,
        },
    }

    impl CheckError {
        /// The code that transactions carry.
        #[must_use]
        pub fn code(&self) -> &'static str {
            match self {
                Self::Empty | Self::NotElf | Self::Corrupt { .. } => "corrupt",
                Self::WrongMachine { .. } => "wrong-machine",
                Self::NotALibrary
                | Self::NoManifest
                | Self::BadManifest { .. }
                | Self::NoTable
                | Self::Abi { .. } => "abi",
            }
        }
    }

    const MACHINE: (elf::Machine, &str) = if cfg!(target_arch = "x86_64") {
        (elf::EM_X86_64, "x86_64")
    } else if cfg!(target_arch = "aarch64") {
        (elf::EM_AARCH64, "aarch64")
    } else if cfg!(target_arch = "powerpc64") {
        (elf::EM_PPC64, "powerpc64")
    } else {
        (elf::EM_RISCV, "riscv")
    };

    /// Reads a library's manifest and checks everything that can be checked without running it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Manifest, CheckError> {
        let corrupt = |what| CheckError::Corrupt { what };
        match FileKind::parse(bytes) {
            _ if bytes.is_empty() => return Err(CheckError::Empty),
            Ok(FileKind::Elf64) => {}
            Ok(FileKind::Elf32) => return Err(other_machine("a 32-bit machine".into())),
            _ if bytes.starts_with(b"\x7fELF") => return Err(corrupt("the header does not read")),
            _ => return Err(CheckError::NotElf),
        }
        let header =
            FileHeader64::<Endianness>::parse(bytes).map_err(|_| corrupt("the header does not read"))?;
        let endian = header.endian().map_err(|_| corrupt("the header does not read"))?;
        let machine = header.e_machine(endian);
        let native = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
        if machine != MACHINE.0 || endian != native {
            return Err(other_machine(machine_name(machine)));
        }
        if header.e_type(endian) != elf::ET_DYN {
            return Err(CheckError::NotALibrary);
        }
        // Loading does without the section table; a file without its end is not whole all the same.
        header.section_headers(endian, bytes).map_err(|_| corrupt("its section table is not in it"))?;
        let segments =
            header.program_headers(endian, bytes).map_err(|_| corrupt("its segment table is not in it"))?;
        let mut note = None;
        for segment in segments {
            let end = segment.p_offset(endian).checked_add(segment.p_filesz(endian));
            let inside = end.is_some_and(|end| end <= bytes.len() as u64);
            if !inside && segment.p_type(endian) == elf::PT_LOAD {
                return Err(corrupt("a segment reaches past its end"));
            }
            let Ok(Some(mut notes)) = segment.notes(endian, bytes) else { continue };
            while let Ok(Some(found)) = notes.next() {
                if found.name_bytes() == NOTE_OWNER && found.n_type(endian).0 == NOTE_TYPE {
                    note = Some(found.desc());
                }
            }
        }
        let manifest = manifest(note.ok_or(CheckError::NoManifest)?)?;
        match exports(bytes, &[SYMBOL, C_SYMBOL]) {
            Ok(false) => Err(CheckError::NoTable),
            // Loading does without the tables of sections, which is where symbols are looked for here.
            Ok(true) | Err(_) => Ok(manifest),
        }
    }

    /// Whether a panic in a library that passed [`read`] stops at the boundary. One built with `panic = "abort"` ends
    /// the process instead, which must not be a kernel's: it lacks the function that every panic is raised with. C has
    /// no panics.
    #[must_use]
    pub fn catches_panics(bytes: &[u8]) -> bool {
        let has = |name, which: fn(bool) -> bool| {
            has_symbol(bytes, &[name], which).is_ok_and(|has| has == Some(true))
        };
        let exports = |name| has(name, |is_undefined| !is_undefined);
        has(RAISE, |is_undefined| is_undefined) || exports(C_SYMBOL) && !exports(SYMBOL)
    }

    /// Whether a library exports one of these symbols, as far as its tables read.
    fn exports(bytes: &[u8], names: &[&str]) -> object::read::Result<bool> {
        Ok(has_symbol(bytes, names, |is_undefined| !is_undefined)?.unwrap_or(true))
    }

    /// Whether one of these is among the dynamic symbols; none where there are none at all.
    fn has_symbol(
        bytes: &[u8],
        names: &[&str],
        which: impl Fn(bool) -> bool,
    ) -> object::read::Result<Option<bool>> {
        let header = FileHeader64::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        let symbols = header.sections(endian, bytes)?.symbols(endian, bytes, elf::SHT_DYNSYM)?;
        let found = symbols.iter().filter(|symbol| which(symbol.is_undefined(endian))).any(|symbol| {
            let name = symbol.name(endian, symbols.strings()).unwrap_or_default();
            names.iter().any(|wanted| wanted.as_bytes() == name)
        });
        Ok((!symbols.is_empty()).then_some(found))
    }

    /// Names of the libraries that a library needs, as far as its tables read.
    #[must_use]
    pub fn needed(bytes: &[u8]) -> Vec<String> {
        let tables = || {
            let header = FileHeader64::<Endianness>::parse(bytes)?;
            let endian = header.endian()?;
            let table = header.sections(endian, bytes)?.dynamic_table(endian, bytes)?;
            let needed = table.iter().filter(|entry| entry.tag == elf::DT_NEEDED);
            needed.map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned())).collect()
        };
        let tables: object::read::Result<Vec<String>> = tables();
        tables.unwrap_or_default()
    }

    fn manifest(note: &[u8]) -> Result<Manifest, CheckError> {
        let bad = |reason: String| CheckError::BadManifest { reason };
        // In C a text has a zero behind it.
        let note = note.strip_suffix(&[0]).unwrap_or(note);
        if note.len() > MANIFEST_MAX {
            return Err(bad(format!("it has {} bytes, at most {MANIFEST_MAX} are allowed", note.len())));
        }
        let manifest: Manifest = serde_json::from_slice(note).map_err(|error| bad(error.to_string()))?;
        let (ours, theirs) = (crate::abi::VERSION, &manifest.abi);
        if major(theirs) != major(ours) || major(theirs).is_none() {
            return Err(CheckError::Abi { theirs: theirs.clone(), ours });
        }
        if !["msgpack", "json", "bytes"].contains(&manifest.payload.as_str()) {
            return Err(bad(format!("payload `{}` is not known", manifest.payload)));
        }
        Ok(manifest)
    }

    fn major(version: &str) -> Option<u32> {
        version.split_once('.')?.0.parse().ok()
    }

    fn other_machine(theirs: String) -> CheckError {
        CheckError::WrongMachine { theirs, ours: MACHINE.1 }
    }

    fn machine_name(machine: elf::Machine) -> String {
        match machine {
            elf::EM_X86_64 => "x86_64".into(),
            elf::EM_AARCH64 => "aarch64".into(),
            elf::EM_PPC64 => "powerpc64".into(),
            elf::EM_RISCV => "riscv".into(),
            other => format!("machine {}", other.0),
        }
    }
}

#[cfg(all(test, feature = "host"))]
mod tests;
