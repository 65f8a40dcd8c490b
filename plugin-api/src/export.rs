//! From a [`Plugin`] to the functions of the [ABI](crate::abi): what [`export_plugin!`](crate::export_plugin) is made
//! of.

mod mismatch;

use self::mismatch::explain;
use crate::abi::{Handle, HostCallsRef, Out, PluginModule, PluginModuleRef, status};
use crate::plugin::{Event, Host, Meta, Place, Plugin, Role};
use abi_stable::library::RootModuleResult;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[doc(hidden)]
pub use abi_stable::library::{CheckTypeLayout, LibHeader};

/// Makes the crate's library a plug-in.
///
/// It goes into a crate with `crate-type = ["cdylib"]`, once. The plug-in's name is the library's, its version the
/// package's. A plug-in that keeps no state, and so needs no snapshot, says so: `export_plugin!(Name, stateless)`.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        $crate::export_plugin!(@export $plugin, "\"snapshot\"");
    };
    ($plugin:ty, stateless) => {
        $crate::export_plugin!(@export $plugin, "");
    };
    (@export $plugin:ty, $capabilities:literal) => {
        const _: () = {
            const MANIFEST: &str = concat!(
                "{\"name\":\"", env!("CARGO_CRATE_NAME"),
                "\",\"version\":\"", env!("CARGO_PKG_VERSION"),
                "\",\"abi\":\"", $crate::__abi_version!(),
                "\",\"payload\":\"msgpack\",\"capabilities\":[", $capabilities, "]}"
            );

            #[used]
            #[unsafe(link_section = ".note.dvm")]
            static NOTE: $crate::manifest::Note<{ MANIFEST.len() }> = $crate::manifest::Note::new(MANIFEST);

            // SAFETY: the constructor returns a `PluginModuleRef`.
            #[unsafe(export_name = "dvm_plugin_header_1")]
            static HEADER: $crate::export::LibHeader = unsafe {
                $crate::export::LibHeader::from_constructor::<$crate::abi::PluginModuleRef>(
                    $crate::export::module::<$plugin>,
                    $crate::export::CheckTypeLayout::Yes,
                )
            };
        };
    };
}

/// The plug-in's table of functions, made once.
pub extern "C" fn module<P: Plugin>() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(table::<P>)
}

pub(crate) fn table<P: Plugin>() -> PluginModuleRef {
    PluginModule {
        validate: validate::<P>,
        start: start::<P>,
        apply: apply::<P>,
        query: query::<P>,
        configure: configure::<P>,
        on_event: on_event::<P>,
        on_role: on_role::<P>,
        on_place: on_place::<P>,
        snapshot: snapshot::<P>,
        restore: restore::<P>,
        stop: stop::<P>,
    }
    .leak_into_prefix()
}

/// What a handle points to.
struct Instance<P> {
    plugin: P,
    host: Host,
    /// A callback panicked half-way: the state may be anything.
    poisoned: bool,
}

/// Why a call has no result: a status and its text.
pub(crate) type Stopped = (u32, String);

pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: RSlice<'_, u8>) -> Result<T, Stopped> {
    let decoded = rmp_serde::from_slice(bytes.as_slice());
    decoded.map_err(|error| (status::MALFORMED, format!("{what}: {}", explain::<T>(bytes.as_slice(), error))))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Stopped> {
    rmp_serde::to_vec_named(value)
        .map_err(|error| (status::ERROR, format!("the reply cannot be encoded: {error}")))
}

fn own(error: crate::Error) -> Stopped {
    (status::ERROR, error.to_string())
}

/// Runs a callback, lets no panic out, and writes what it yields.
fn guard(out: Out, call: impl FnOnce() -> Result<Vec<u8>, Stopped>) -> u32 {
    let (status, bytes) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(bytes)) => (status::OK, bytes),
        Ok(Err((status, text))) => (status, text.into_bytes()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            // A payload whose drop panics must not get its chance.
            std::mem::forget(panic);
            (status::PANIC, text.unwrap_or_else(|| "panicked".into()).into_bytes())
        }
    };
    if !bytes.is_empty() {
        (out.write)(out.ctx, RSlice::from_slice(&bytes));
    }
    status
}

/// Runs a callback of an instance; a panic poisons it.
fn with<P: Plugin>(
    handle: Handle,
    out: Out,
    call: impl FnOnce(&mut Instance<P>) -> Result<Vec<u8>, Stopped>,
) -> u32 {
    let instance = handle.as_raw().cast::<Instance<P>>();
    // SAFETY: the host passes a handle that `start::<P>` made and `stop` did not take, from one thread at a time.
    let instance = unsafe { &mut *instance };
    if instance.poisoned {
        return status::POISONED;
    }
    let status = guard(out, || call(instance));
    instance.poisoned = status == status::PANIC;
    status
}

extern "C" fn validate<P: Plugin>(
    config: RSlice<'_, u8>,
    place: RSlice<'_, u8>,
    calls: HostCallsRef,
    out: Out,
) -> u32 {
    guard(out, || {
        let host = Host::new(decode::<Place>("place", place)?, calls);
        P::validate(&decode("configuration", config)?, &host).map_err(own)?;
        Ok(Vec::new())
    })
}

extern "C" fn start<P: Plugin>(
    config: RSlice<'_, u8>,
    place: RSlice<'_, u8>,
    calls: HostCallsRef,
    instance: &mut Handle,
    out: Out,
) -> u32 {
    guard(out, || {
        let host = Host::new(decode::<Place>("place", place)?, calls);
        let plugin = P::start(decode("configuration", config)?, host.clone()).map_err(own)?;
        let made = Box::new(Instance { plugin, host, poisoned: false });
        *instance = Handle::from_raw(Box::into_raw(made).cast());
        Ok(Vec::new())
    })
}

extern "C" fn apply<P: Plugin>(
    instance: Handle,
    command: RSlice<'_, u8>,
    meta: RSlice<'_, u8>,
    out: Out,
) -> u32 {
    with::<P>(instance, out, |instance| {
        let meta: Meta = decode("meta", meta)?;
        encode(&instance.plugin.apply(decode("command", command)?, &meta).map_err(own)?)
    })
}

extern "C" fn query<P: Plugin>(instance: Handle, command: RSlice<'_, u8>, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        encode(&instance.plugin.query(decode("command", command)?).map_err(own)?)
    })
}

extern "C" fn configure<P: Plugin>(instance: Handle, config: RSlice<'_, u8>, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        instance.plugin.configure(decode("configuration", config)?).map_err(own)?;
        Ok(Vec::new())
    })
}

extern "C" fn on_event<P: Plugin>(instance: Handle, event: RSlice<'_, u8>, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        instance.plugin.on_event(&decode::<Event>("event", event)?);
        Ok(Vec::new())
    })
}

extern "C" fn on_role<P: Plugin>(instance: Handle, role: u32, fence: u64, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        let known = Role::numbered(role, fence);
        let known = known.ok_or_else(|| (status::MALFORMED, format!("role {role} is not known")))?;
        instance.plugin.on_role(known);
        Ok(Vec::new())
    })
}

extern "C" fn on_place<P: Plugin>(instance: Handle, place: RSlice<'_, u8>, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        instance.host.moved(decode("place", place)?);
        Ok(Vec::new())
    })
}

extern "C" fn snapshot<P: Plugin>(instance: Handle, out: Out) -> u32 {
    with::<P>(instance, out, |instance| Ok(instance.plugin.snapshot()))
}

extern "C" fn restore<P: Plugin>(instance: Handle, snapshot: RSlice<'_, u8>, out: Out) -> u32 {
    with::<P>(instance, out, |instance| {
        instance.plugin.restore(snapshot.as_slice()).map_err(own)?;
        Ok(Vec::new())
    })
}

extern "C" fn stop<P: Plugin>(instance: Handle, out: Out) -> u32 {
    let status = with::<P>(instance, out, |instance| {
        instance.plugin.stop();
        Ok(Vec::new())
    });
    if status == status::OK {
        // SAFETY: made by `start::<P>`, and the host gives a handle to `stop` once. A poisoned instance is left alone.
        let instance = unsafe { Box::from_raw(instance.as_raw().cast::<Instance<P>>()) };
        return guard(out, || {
            drop(instance);
            Ok(Vec::new())
        });
    }
    status
}
