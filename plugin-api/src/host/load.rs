//! Libraries become modules.
//!
//! Loading runs the library's initializers, so [`manifest::read`](crate::manifest::read) comes first. A library is
//! never unloaded: its process ends. `abi_stable`'s own loading functions and global layout caches are left alone, since
//! they keep pointers into libraries; the layout check here runs both ways, each with caches of its own, and accepts if
//! either holds: so old plug-ins run on new hosts and new ones on old hosts.

use super::{Kind, Module};
use crate::abi::{C_SYMBOL, PluginModuleRef, SYMBOL};
use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::library::AbiHeaderRef;
use abi_stable::type_layout::{TLFieldOrFunction, TypeLayout};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::path::Path;

/// Why a library that passed the check of its file could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It needs a library that is not on this machine.
    #[error("a library it needs is missing: {reason}")]
    MissingLibrary {
        /// In the loader's words.
        reason: String,
    },
    /// It uses a function or variable that is nowhere.
    #[error(
        "it needs the symbol `{symbol}`, which nothing that {holder} links to defines; link it with the library that \
         does (-lNAME)"
    )]
    MissingSymbol {
        /// As the linker has it; of C++ this is the mangled name.
        symbol: String,
        /// `it`, or the library below it whose symbol this is.
        holder: String,
    },
    /// It was built on a newer system.
    #[error("this machine's C library is too old for it: {reason}")]
    Glibc {
        /// In the loader's words.
        reason: String,
    },
    /// The loader refused it.
    #[error("the loader refuses it: {reason}")]
    Refused {
        /// In the loader's words.
        reason: String,
    },
    /// Its functions are not those this host knows.
    #[error("its ABI does not fit this host's: {reason}")]
    Abi {
        /// The first differences, at most four lines.
        reason: String,
    },
}

impl LoadError {
    /// Whether the loader has given the library up, so that no part of it is mapped.
    #[must_use]
    pub fn leaves_nothing(&self) -> bool {
        !matches!(self, Self::Abi { .. })
    }

    /// The code that transactions carry.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingLibrary { .. } | Self::MissingSymbol { .. } => "missing-library",
            Self::Glibc { .. } => "glibc",
            Self::Refused { .. } => "corrupt",
            Self::Abi { .. } => "abi",
        }
    }
}

impl Module {
    /// Loads a library for the rest of the process's life.
    ///
    /// # Safety
    /// Loading runs the library's initializers. The file must not change while the process lives: load a private copy.
    ///
    /// # Errors
    /// Why it cannot be loaded; parts of it may stay mapped.
    pub unsafe fn load(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller's.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| loader_error(path, &error))?;
        // SAFETY: the manifest says that the library is ours, and then the symbol is an `abi_stable` header.
        let header = unsafe { library.get::<AbiHeaderRef>(SYMBOL).map(|symbol| *symbol) };
        // SAFETY: the manifest says that the library is ours, and then the symbol is a table as dvm_plugin.h has it.
        let table = unsafe { library.get::<*const std::ffi::c_void>(C_SYMBOL).map(|symbol| *symbol) };
        std::mem::forget(library);
        let abi = |reason: String| LoadError::Abi { reason };
        let header = match (header, table) {
            (Ok(header), _) => header,
            // SAFETY: as above.
            (Err(_), Ok(table)) => {
                return unsafe { Self::in_c(table) }.map_err(abi);
            }
            (Err(_), Err(_)) => return Err(abi(format!("it exports neither {SYMBOL} nor {}", C_SYMBOL))),
        };
        let header = header.upgrade().map_err(|error| abi(brief(&error.to_string())))?;
        let theirs = header.layout().ok_or_else(|| abi("it does not tell its layout".into()))?;
        check_layouts(PluginModuleRef::LAYOUT, theirs).map_err(|reason| LoadError::Abi { reason })?;
        // SAFETY: the layout was checked just now.
        let module = unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() };
        module.map(|module| Self(Kind::Rust(module))).map_err(|error| abi(brief(&error.to_string())))
    }
}

fn loader_error(path: &Path, error: &libloading::Error) -> LoadError {
    let reason = match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    };
    sort(path, &reason)
}

/// What the loader's words mean. A kernel loads from a descriptor: what that is called here says nothing to anybody.
pub(super) fn sort(path: &Path, reason: &str) -> LoadError {
    let path = path.display().to_string();
    let own = reason.strip_prefix(&format!("{path}: "));
    let reason = own.unwrap_or(reason).replace(&path, "it");
    // As in `LIBRARY: undefined symbol: NAME` and `…: NAME, version VERSION`.
    if let Some((before, symbol)) = reason.split_once("undefined symbol: ") {
        let symbol = symbol.split([',', ' ']).next().unwrap_or_default().to_owned();
        let holder = before.trim_end().trim_end_matches(':');
        let holder = if holder.is_empty() { "it" } else { holder }.to_owned();
        return LoadError::MissingSymbol { symbol, holder };
    }
    if reason.contains("GLIBC_") {
        LoadError::Glibc { reason }
    } else if reason.contains("cannot open shared object file") {
        LoadError::MissingLibrary { reason }
    } else {
        LoadError::Refused { reason }
    }
}

/// Accepts if either side finds in the other all that it knows itself.
pub(super) fn check_layouts(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<(), String> {
    let check = |one, other| check_layout_compatibility_with_globals(one, other, &CheckingGlobals::new());
    match (check(ours, theirs), check(theirs, ours)) {
        (Err(errors), Err(_)) => Err(explain(&errors)),
        _ => Ok(()),
    }
}

/// The first differences, one a line, such as `apply.fn: expected Handle, found u64`.
fn explain(errors: &AbiInstabilityErrors) -> String {
    let lines = errors.errors.iter().flat_map(|error| {
        let steps = error.stack_trace.iter().filter_map(|step| match &step.expected {
            // The outermost is the reference to the table; a parameter comes with the names of all of them.
            TLFieldOrFunction::Field(field) => {
                Some(field.name()).filter(|name| *name != "0" && !name.contains(','))
            }
            TLFieldOrFunction::Function(_) => Some("fn"),
        });
        let path = steps.collect::<Vec<_>>().join(".");
        let types = error.stack_trace.last();
        let types = types.map(|step| (kind(&step.expected), kind(&step.found)));
        error.errs.iter().map(move |what| format!("{path}: {}", difference(what, types)))
    });
    lines.take(4).collect::<Vec<_>>().join("\n")
}

fn difference(what: &AbiInstability, types: Option<(&str, &str)>) -> String {
    match (what, types) {
        (AbiInstability::UnexpectedField(names), _) => {
            format!("expected `{}`, found `{}`", names.expected.name(), names.found.name())
        }
        (AbiInstability::FieldCountMismatch(counts), _) => {
            format!("expected {} fields, found {}", counts.expected, counts.found)
        }
        (AbiInstability::PackageVersion(versions), _) => {
            format!("expected version {}, found {}", versions.expected, versions.found)
        }
        (_, Some((expected, found))) if expected != found => format!("expected {expected}, found {found}"),
        (other, _) => brief(&format!("{other:?}")).split('(').next().unwrap_or_default().to_owned(),
    }
}

fn kind(step: &TLFieldOrFunction) -> &'static str {
    match step {
        TLFieldOrFunction::Field(field) => field.layout().name(),
        TLFieldOrFunction::Function(_) => "a function",
    }
}

/// The beginning of a long text, on one line.
fn brief(text: &str) -> String {
    let line: Vec<_> = text.split_whitespace().collect();
    line.join(" ").chars().take(240).collect()
}
