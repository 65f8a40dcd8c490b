//! The host's half: a library becomes functions that can be called. Feature `host`.
//!
//! Loading runs the library's initializers, so [`manifest::read`](crate::manifest::read) comes first. A library is
//! never unloaded: its process ends. `abi_stable`'s own loading functions and global layout caches are left alone, since
//! they keep pointers into libraries; the layout check here runs both ways, each with caches of its own, and accepts if
//! either holds: so old plug-ins run on new hosts and new ones on old hosts. A library in C exports another table, which
//! [`c`] turns into the same functions.

use crate::abi::{C_SYMBOL, Handle, HostCallsRef, Out, PluginModuleRef, SYMBOL, status};
use crate::plugin::{Meta, Role};
use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::library::AbiHeaderRef;
use abi_stable::type_layout::{TLFieldOrFunction, TypeLayout};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::path::Path;

mod c;

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
    /// The code that transactions carry.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingLibrary { .. } => "missing-library",
            Self::Glibc { .. } => "glibc",
            Self::Refused { .. } => "corrupt",
            Self::Abi { .. } => "abi",
        }
    }
}

/// What went wrong in a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The plug-in's own error, or an argument it does not understand. The instance lives on.
    #[error("{0}")]
    Own(String),
    /// It panicked; the instance is good for nothing any more.
    #[error("panicked: {0}")]
    Panic(String),
    /// An earlier call panicked, and nothing was done.
    #[error("an earlier call panicked")]
    Poisoned,
}

/// A loaded library.
#[derive(Clone, Copy)]
pub struct Module(Kind);

/// In what it is written.
#[derive(Clone, Copy)]
enum Kind {
    Rust(PluginModuleRef),
    C(c::Library),
}

/// A running instance. Calls come from one thread at a time.
pub struct Instance {
    module: PluginModuleRef,
    handle: Handle,
}

// SAFETY: a `Plugin` is `Send`, and `&mut self` keeps calls to one thread at a time.
unsafe impl Send for Instance {}

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
        let library = library.map_err(|error| loader_error(&error))?;
        // SAFETY: the manifest says that the library is ours, and then the symbol is an `abi_stable` header.
        let header = unsafe { library.get::<AbiHeaderRef>(SYMBOL).map(|symbol| *symbol) };
        // SAFETY: the manifest says that the library is ours, and then the symbol is a table as dvm_plugin.h has it.
        let table = unsafe { library.get::<*const c::Table>(C_SYMBOL).map(|symbol| *symbol) };
        std::mem::forget(library);
        let abi = |reason: String| LoadError::Abi { reason };
        let header = match (header, table) {
            (Ok(header), _) => header,
            // SAFETY: as above.
            (Err(_), Ok(table)) => {
                return unsafe { c::Library::of(table) }.map(|library| Self(Kind::C(library)));
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

    /// Whether the configuration would do.
    ///
    /// # Errors
    /// The plug-in's reason, or its panic.
    pub fn validate(&self, config: &[u8], place: &[u8], calls: HostCallsRef) -> Result<(), CallError> {
        let validated = match self.0 {
            Kind::Rust(module) => call(|out| module.validate()(config.into(), place.into(), calls, out)),
            Kind::C(library) => call(|out| library.validate(config, place, calls, out)),
        };
        validated.map(drop)
    }

    /// Starts an instance.
    ///
    /// # Errors
    /// The plug-in's reason, or its panic.
    pub fn start(&self, config: &[u8], place: &[u8], calls: HostCallsRef) -> Result<Instance, CallError> {
        let mut handle = Handle::from_raw(std::ptr::null_mut());
        let module = match self.0 {
            Kind::Rust(module) => {
                call(|out| module.start()(config.into(), place.into(), calls, &mut handle, out))?;
                module
            }
            Kind::C(library) => {
                call(|out| library.start(config, place, calls, &mut handle, out))?;
                c::functions()
            }
        };
        Ok(Instance { module, handle })
    }
}

impl Instance {
    /// Applies a command; `meta` is encoded by [`encode_meta`].
    ///
    /// # Errors
    /// The plug-in's own, or its panic.
    pub fn apply(&mut self, command: &[u8], meta: &[u8]) -> Result<Vec<u8>, CallError> {
        let apply = self.module.apply();
        call(|out| apply(self.handle, command.into(), meta.into(), out))
    }

    /// Answers a query.
    ///
    /// # Errors
    /// The plug-in's own, or its panic.
    pub fn query(&mut self, command: &[u8]) -> Result<Vec<u8>, CallError> {
        let query = self.module.query();
        call(|out| query(self.handle, command.into(), out))
    }

    /// Takes a new configuration.
    ///
    /// # Errors
    /// The plug-in's own, or its panic.
    pub fn configure(&mut self, config: &[u8]) -> Result<(), CallError> {
        let configure = self.module.configure();
        call(|out| configure(self.handle, config.into(), out)).map(drop)
    }

    /// Tells of an [`Event`](crate::Event), encoded.
    ///
    /// # Errors
    /// Its panic.
    pub fn on_event(&mut self, event: &[u8]) -> Result<(), CallError> {
        let on_event = self.module.on_event();
        call(|out| on_event(self.handle, event.into(), out)).map(drop)
    }

    /// Tells of a role.
    ///
    /// # Errors
    /// Its panic.
    pub fn on_role(&mut self, role: Role) -> Result<(), CallError> {
        let (role, fence) = match role {
            Role::Active => (crate::abi::role::ACTIVE, 0),
            Role::Primary { fence } => (crate::abi::role::PRIMARY, fence),
            Role::Standby => (crate::abi::role::STANDBY, 0),
        };
        let on_role = self.module.on_role();
        call(|out| on_role(self.handle, role, fence, out)).map(drop)
    }

    /// Tells of a new [`Place`](crate::Place), encoded.
    ///
    /// # Errors
    /// Its panic.
    pub fn on_place(&mut self, place: &[u8]) -> Result<(), CallError> {
        let on_place = self.module.on_place();
        call(|out| on_place(self.handle, place.into(), out)).map(drop)
    }

    /// Its state.
    ///
    /// # Errors
    /// Its panic.
    pub fn snapshot(&mut self) -> Result<Vec<u8>, CallError> {
        let snapshot = self.module.snapshot();
        call(|out| snapshot(self.handle, out))
    }

    /// Takes a state over.
    ///
    /// # Errors
    /// The plug-in's own, or its panic.
    pub fn restore(&mut self, snapshot: &[u8]) -> Result<(), CallError> {
        let restore = self.module.restore();
        call(|out| restore(self.handle, snapshot.into(), out)).map(drop)
    }

    /// Ends it.
    ///
    /// # Errors
    /// Its panic.
    pub fn stop(self) -> Result<(), CallError> {
        let stop = self.module.stop();
        call(|out| stop(self.handle, out)).map(drop)
    }
}

/// A [`Meta`] as [`Instance::apply`] wants it.
///
/// # Panics
/// Never: it is plain data.
#[must_use]
pub fn encode_meta(meta: &Meta) -> Vec<u8> {
    rmp_serde::to_vec_named(meta).expect("meta is plain data")
}

fn call(function: impl FnOnce(Out) -> u32) -> Result<Vec<u8>, CallError> {
    let (status, sink) = crate::abi::collect(function);
    let text = |sink: &[u8]| String::from_utf8_lossy(sink).into_owned();
    match status {
        status::OK => Ok(sink),
        status::PANIC => Err(CallError::Panic(text(&sink))),
        status::POISONED => Err(CallError::Poisoned),
        _ => Err(CallError::Own(text(&sink))),
    }
}

fn loader_error(error: &libloading::Error) -> LoadError {
    let reason = match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    };
    if reason.contains("GLIBC_") {
        LoadError::Glibc { reason }
    } else if reason.contains("cannot open shared object file") || reason.contains("undefined symbol") {
        LoadError::MissingLibrary { reason }
    } else {
        LoadError::Refused { reason }
    }
}

/// Accepts if either side finds in the other all that it knows itself.
fn check_layouts(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<(), String> {
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

#[cfg(test)]
mod tests;
