//! The binary boundary between a host and a plug-in: ABI 1.1.
//!
//! A plug-in exports one symbol, [`SYMBOL`], which leads to a [`PluginModule`], a table of functions. The rules:
//! - Nothing allocated on one side is kept or freed on the other. Arguments are borrowed for the call; results are
//!   written to the caller's [`Out`], at most once a call.
//! - Nothing unwinds across: each function catches panics and returns [`status::PANIC`], the message in `Out`.
//! - Payloads (configuration, command, reply) are in the format the manifest names. What host and plug-in tell each
//!   other ([`Meta`](crate::Meta), [`Event`](crate::Event), [`Place`](crate::Place)) is MessagePack with named fields,
//!   so that either side may know fields the other does not.
//! - Both tables, [`PluginModule`] and [`HostCalls`], grow below `last_prefix_field` and are passed by reference; a
//!   function that an older side lacks is `None` to a newer one. Everything above it stays as it is, down to the names
//!   of parameters: the layout check compares them.
//!
//! When a function may be called is said by a tag: `[any]` before `start`, `[instance]` with a handle from `start` that
//! was not given to `stop`. A host calls functions of one instance from one thread at a time.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::RSlice;

/// What a plug-in's library exports: an `abi_stable` library header.
pub const SYMBOL: &str = "dvm_plugin_header_1";

/// What a plug-in's library in C exports: the table that `dvm_plugin.h` describes.
pub const C_SYMBOL: &str = "dvm_plugin_v1";

/// The ABI's version, `MAJOR.MINOR`, as manifests name it. One major version loads another minor's plug-ins.
pub const VERSION: &str = crate::__abi_version!();

#[doc(hidden)]
#[macro_export]
macro_rules! __abi_version {
    () => {
        "1.1"
    };
}

/// Borrowed bytes, as they cross the boundary.
pub type Slice<'a> = RSlice<'a, u8>;

/// What a function returns.
pub mod status {
    /// Done; `Out` has the result, if there is one.
    pub const OK: u32 = 0;
    /// The plug-in's own error; `Out` has its text.
    pub const ERROR: u32 = 1;
    /// The plug-in panicked; `Out` has the message. The instance answers [`POISONED`] from now on.
    pub const PANIC: u32 = 2;
    /// An earlier call panicked; nothing was done.
    pub const POISONED: u32 = 3;
    /// An argument is not what it should be; `Out` says what. Nothing was done.
    pub const MALFORMED: u32 = 4;
}

/// Severities of the log, those of syslog.
pub mod level {
    /// Something is wrong.
    pub const ERROR: u8 = 3;
    /// Something may be.
    pub const WARNING: u8 = 4;
    /// For information.
    pub const INFO: u8 = 6;
}

/// What an instance's role is called.
pub mod role {
    /// One of equals.
    pub const ACTIVE: u32 = 0;
    /// The primary.
    pub const PRIMARY: u32 = 1;
    /// A standby.
    pub const STANDBY: u32 = 2;
}

/// A plug-in's instance: its own business.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Handle(*mut ());

impl Handle {
    pub(crate) fn from_raw(pointer: *mut ()) -> Self {
        Self(pointer)
    }

    pub(crate) fn as_raw(self) -> *mut () {
        self.0
    }
}

/// Where a call's result goes: the caller's.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Out {
    /// Given to `write`.
    pub ctx: *mut (),
    /// Takes the result; called at most once a call.
    pub write: extern "C" fn(ctx: *mut (), bytes: RSlice<'_, u8>),
}

/// Runs a function with somewhere for its result to go; the status, and what was written.
pub(crate) fn collect(function: impl FnOnce(Out) -> u32) -> (u32, Vec<u8>) {
    extern "C" fn write(ctx: *mut (), bytes: RSlice<'_, u8>) {
        // SAFETY: `ctx` is the vector below, which outlives the call.
        let sink = unsafe { &mut *ctx.cast::<Vec<u8>>() };
        sink.extend_from_slice(bytes.as_slice());
    }
    let mut sink: Vec<u8> = Vec::new();
    let status = function(Out { ctx: (&raw mut sink).cast(), write });
    (status, sink)
}

/// Hands an answer, or the text of an error, to whoever asked; the status.
pub(crate) fn hand_out(answer: Result<Vec<u8>, String>, out: Out) -> u32 {
    let (status, bytes) = match answer {
        Ok(bytes) => (status::OK, bytes),
        Err(text) => (status::ERROR, text.into_bytes()),
    };
    (out.write)(out.ctx, RSlice::from_slice(&bytes));
    status
}

/// What a plug-in may ask of its host, from any thread, for as long as the process lives.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostCallsRef)))]
#[sabi(missing_field(option))]
pub struct HostCalls {
    /// Given to the functions.
    pub ctx: *const (),
    /// Writes a line of text to the log, at a [`level`].
    pub log: extern "C" fn(ctx: *const (), level: u8, text: RSlice<'_, u8>),
    /// The token under which the instance may act on the world at this moment; 0 if it may not.
    #[sabi(last_prefix_field)]
    pub token: extern "C" fn(ctx: *const ()) -> u64,
    /// Asks for a [service](crate::service): `request` is an [`Ask`](crate::service::Ask) in MessagePack with named
    /// fields. With [`status::OK`] `Out` gets the answer, a JSON value in MessagePack; else the text of the error. Since
    /// 1.1.
    pub ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
}

impl HostCalls {
    /// The table as it is passed: for ever, since a plug-in may keep it.
    #[must_use]
    pub fn leak(self) -> HostCallsRef {
        self.leak_into_prefix()
    }
}

// SAFETY: whoever makes one promises that its functions may be called from any thread.
unsafe impl Send for HostCallsRef {}
// SAFETY: as above.
unsafe impl Sync for HostCallsRef {}

/// A plug-in's functions.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
#[sabi(missing_field(option))]
pub struct PluginModule {
    /// Whether a configuration would do at this place. `[any]`
    pub validate:
        extern "C" fn(config: RSlice<'_, u8>, place: RSlice<'_, u8>, calls: HostCallsRef, out: Out) -> u32,
    /// Makes an instance; the handle is written only with [`status::OK`]. `[any]`
    pub start: extern "C" fn(
        config: RSlice<'_, u8>,
        place: RSlice<'_, u8>,
        calls: HostCallsRef,
        instance: &mut Handle,
        out: Out,
    ) -> u32,
    /// Applies a command; `Out` gets the reply. `[instance]`
    pub apply:
        extern "C" fn(instance: Handle, command: RSlice<'_, u8>, meta: RSlice<'_, u8>, out: Out) -> u32,
    /// Answers a command that changes nothing. `[instance]`
    pub query: extern "C" fn(instance: Handle, command: RSlice<'_, u8>, out: Out) -> u32,
    /// Takes a new configuration. `[instance]`
    pub configure: extern "C" fn(instance: Handle, config: RSlice<'_, u8>, out: Out) -> u32,
    /// Tells of an event. `[instance]`
    pub on_event: extern "C" fn(instance: Handle, event: RSlice<'_, u8>, out: Out) -> u32,
    /// Tells of a [`role`]; `fence` counts with [`role::PRIMARY`]. `[instance]`
    pub on_role: extern "C" fn(instance: Handle, role: u32, fence: u64, out: Out) -> u32,
    /// Tells that the members or their ranks changed. `[instance]`
    pub on_place: extern "C" fn(instance: Handle, place: RSlice<'_, u8>, out: Out) -> u32,
    /// Writes the state to `Out`. `[instance]`
    pub snapshot: extern "C" fn(instance: Handle, out: Out) -> u32,
    /// Takes a state over. `[instance]`
    pub restore: extern "C" fn(instance: Handle, snapshot: RSlice<'_, u8>, out: Out) -> u32,
    /// Ends the instance; the handle means nothing afterwards, whatever is returned. `[instance]`
    #[sabi(last_prefix_field)]
    pub stop: extern "C" fn(instance: Handle, out: Out) -> u32,
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}
    const BASE_NAME: &'static str = "dvm_plugin";
    const NAME: &'static str = "dvm_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.1.0");
}
