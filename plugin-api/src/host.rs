//! The host's half: a plug-in's functions, called.
//!
//! A module is a plug-in of this program, or with the feature `host` a library that is loaded (`load`). In C there is
//! another table, which `c` turns into the same functions. Wherever an instance runs, `hosted` holds it and `hosting` is its
//! end of the socket to its kernel; what it asks of its host leads to its `context`, and for services on to its `asker`.

use crate::abi::{Handle, HostCallsRef, Out, PluginModuleRef, status};
use crate::plugin::{Meta, Role};
use std::fmt;

mod acting;
mod asker;
mod c;
mod context;
mod hosted;
mod hosting;
#[cfg(feature = "host")]
mod load;

pub use acting::Acting;
pub use asker::{Asker, during};
pub use context::Context;
pub use hosted::{Hosted, Opener, Said, Told};
pub use hosting::{FRAME_MAX, Hosting, Turn};
#[cfg(feature = "host")]
pub use load::LoadError;

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

/// A plug-in's functions.
#[derive(Clone, Copy)]
pub struct Module(Kind);

/// In what it is written.
#[derive(Clone, Copy)]
enum Kind {
    Rust(PluginModuleRef),
    C(c::Library),
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Rust(_) => "Module(Rust)",
            Kind::C(_) => "Module(C)",
        })
    }
}

// SAFETY: it is a table of functions that is never unmapped, and none of those it calls is bound to a thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A running instance. Calls come from one thread at a time.
pub struct Instance {
    module: PluginModuleRef,
    handle: Handle,
}

// SAFETY: a `Plugin` is `Send`, and `&mut self` keeps calls to one thread at a time.
unsafe impl Send for Instance {}

impl Module {
    /// A plug-in of this program, as if its library were loaded.
    #[must_use]
    pub fn of<P: crate::Plugin>() -> Self {
        Self(Kind::Rust(crate::export::table::<P>()))
    }

    /// A plug-in of this program in C: `table` is a `dvm_plugin_v1_t`, as `dvm_plugin.h` has it.
    ///
    /// # Safety
    /// There is a table of some version at `table`, and what it points to lives as long as the module is used.
    ///
    /// # Errors
    /// It is not one that this host knows; in words for people.
    pub unsafe fn in_c(table: *const std::ffi::c_void) -> Result<Self, String> {
        // SAFETY: the caller's.
        unsafe { c::Library::of(table.cast()) }.map(|library| Self(Kind::C(library)))
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

#[cfg(all(test, feature = "host"))]
mod tests;
