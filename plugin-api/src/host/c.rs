//! Plug-ins in C: the table that `dvm_plugin.h` describes, as the functions that every plug-in has.
//!
//! A handle points to a [`Running`]; the functions below take it, give C what it wants, and tell what came of it as a
//! plug-in in Rust does. What C is given is described in the header, with who owns it and for how long; the structures
//! here are the header's, and grow with it at their ends.

use crate::abi::{C_SYMBOL as SYMBOL, Handle, HostCallsRef, Out, PluginModule, PluginModuleRef, status};
use crate::export::{Stopped, decode};
use crate::plugin::{Event, Meta, Place};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RSlice;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

/// The major version of the ABI, in the upper half of a table's.
const MAJOR: u32 = 1;

/// It has no state to hand over.
const STATELESS: u32 = 1;

/// `dvm_plugin_v1_t`. Its first two fields are where they are in every version.
#[repr(C)]
pub(super) struct Table {
    struct_size: u32,
    abi: u32,
    functions_size: u32,
    flags: u32,
    functions: *const Functions,
    get_extension: Option<unsafe extern "C" fn(*const c_char) -> *const c_void>,
}

type Start = unsafe extern "C" fn(
    *const c_char,
    usize,
    *const CPlace,
    *const CHost,
    *mut *mut c_void,
    *const COut,
) -> c_int;
type Told = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const COut) -> c_int;

/// `dvm_functions_t`, all of which version 1.0 has.
#[repr(C)]
#[derive(Clone, Copy)]
struct Functions {
    validate:
        Option<unsafe extern "C" fn(*const c_char, usize, *const CPlace, *const CHost, *const COut) -> c_int>,
    start: Option<Start>,
    apply:
        Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const CMeta, *const COut) -> c_int>,
    query: Option<Told>,
    configure: Option<Told>,
    on_event: Option<unsafe extern "C" fn(*mut c_void, *const CEvent)>,
    on_role: Option<unsafe extern "C" fn(*mut c_void, c_int, u64)>,
    on_place: Option<unsafe extern "C" fn(*mut c_void, *const CPlace)>,
    snapshot: Option<unsafe extern "C" fn(*mut c_void, *const COut) -> c_int>,
    restore: Option<unsafe extern "C" fn(*mut c_void, *const c_void, usize, *const COut) -> c_int>,
    stop: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// `dvm_out_t`.
#[repr(C)]
struct COut {
    struct_size: usize,
    ctx: *const Sink,
    write: unsafe extern "C" fn(*const Sink, *const u8, usize),
}

/// `dvm_host_t`.
#[repr(C)]
struct CHost {
    struct_size: usize,
    ctx: *const c_void,
    log: unsafe extern "C" fn(*const c_void, c_int, *const c_char),
    token: extern "C" fn(*const c_void) -> u64,
    /// Since 1.1.
    ask: unsafe extern "C" fn(*const c_void, *const c_char, usize, *const CTaken) -> c_int,
}

/// `dvm_out_t` as a plug-in makes one.
#[repr(C)]
struct CTaken {
    struct_size: usize,
    ctx: *mut c_void,
    write: unsafe extern "C" fn(*mut c_void, *const c_void, usize),
}

/// `dvm_place_t`.
#[repr(C)]
struct CPlace {
    struct_size: usize,
    member: *const c_char,
    rank: u32,
    size: u32,
    peers: *const *const c_char,
}

/// `dvm_meta_t`.
#[repr(C)]
struct CMeta {
    struct_size: usize,
    index: u64,
    fence: u64,
    time: u64,
    seed: u64,
    session: *const c_char,
}

/// `dvm_told_t`.
#[repr(C)]
struct CEvent {
    struct_size: usize,
    index: u64,
    kind: *const c_char,
    json: *const c_char,
    json_size: usize,
}

/// The functions of a library in C, after their table was looked at.
#[derive(Clone, Copy)]
pub(super) struct Library(Functions);

/// What a handle points to.
struct Running {
    functions: Functions,
    /// The plug-in's own.
    instance: *mut c_void,
    /// What `start` was given: it stays where it is until `stop` has returned.
    _host: Box<Host>,
}

/// A host as C is given it, and what its functions are asked with.
struct Host {
    c: CHost,
    calls: HostCallsRef,
}

impl Host {
    fn new(calls: HostCallsRef) -> Box<Self> {
        let c = CHost { struct_size: size_of::<CHost>(), ctx: ptr::null(), log, token, ask };
        let mut host = Box::new(Self { c, calls });
        host.c.ctx = (&raw const host.calls).cast();
        host
    }
}

/// # Safety
/// `text` ends with a zero; `ctx` is a [`Host`]'s.
unsafe extern "C" fn log(ctx: *const c_void, level: c_int, text: *const c_char) {
    // SAFETY: the caller's.
    let (calls, text) = unsafe { (*ctx.cast::<HostCallsRef>(), CStr::from_ptr(text)) };
    let level = u8::try_from(level).unwrap_or(crate::abi::level::INFO);
    calls.log()(calls.ctx(), level, RSlice::from_slice(text.to_bytes()));
}

extern "C" fn token(ctx: *const c_void) -> u64 {
    // SAFETY: `ctx` is a `Host`'s.
    let calls = unsafe { *ctx.cast::<HostCallsRef>() };
    calls.token()(calls.ctx())
}

/// A service: what is asked is a JSON text, and so is what is answered.
///
/// # Safety
/// `ctx` is a [`Host`]'s, `size` bytes can be read at `json`, and `out` is the plug-in's own.
unsafe extern "C" fn ask(ctx: *const c_void, json: *const c_char, size: usize, out: *const CTaken) -> c_int {
    // SAFETY: the caller's.
    let (calls, json) =
        unsafe { (*ctx.cast::<HostCallsRef>(), std::slice::from_raw_parts(json.cast::<u8>(), size)) };
    let (status, told) = match asked(calls, json) {
        Ok(answer) => (0, answer),
        Err(text) => (1, text),
    };
    // SAFETY: the plug-in's own function, with its own context; it copies.
    unsafe { ((*out).write)((*out).ctx, told.as_ptr().cast(), told.len()) };
    status
}

fn asked(calls: HostCallsRef, json: &[u8]) -> Result<String, String> {
    let ask: crate::service::Ask = serde_json::from_slice(json)
        .map_err(|error| format!("this host does not know what is asked: {error}"))?;
    let request = rmp_serde::to_vec_named(&ask).map_err(|error| error.to_string())?;
    let ask = calls.ask().ok_or("this kernel is older than host services; update it")?;
    let (status, told) = crate::abi::collect(|out| ask(calls.ctx(), RSlice::from_slice(&request), out));
    if status != crate::abi::status::OK {
        return Err(String::from_utf8_lossy(&told).into_owned());
    }
    let answer: serde_json::Value = rmp_serde::from_slice(&told).map_err(|error| error.to_string())?;
    Ok(answer.to_string())
}

/// Where C writes to.
struct Sink {
    out: Out,
    written: Cell<bool>,
}

/// # Safety
/// `ctx` is that of the call that is under way, and `size` bytes can be read.
unsafe extern "C" fn write(ctx: *const Sink, bytes: *const u8, size: usize) {
    if size == 0 {
        return;
    }
    // SAFETY: the caller's.
    let (sink, bytes) = unsafe { (&*ctx, std::slice::from_raw_parts(bytes, size)) };
    sink.written.set(true);
    // These functions are the host's own, and so is the sink behind them, which appends.
    (sink.out.write)(sink.out.ctx, RSlice::from_slice(bytes));
}

impl Library {
    /// Looks at what a library exports under [`C_SYMBOL`](crate::abi::C_SYMBOL).
    ///
    /// # Safety
    /// There is a table of some version.
    ///
    /// # Errors
    /// It is not one that this host knows.
    pub(super) unsafe fn of(table: *const Table) -> Result<Self, String> {
        // SAFETY: tables of all versions begin with these two.
        let (size, abi) =
            unsafe { ((&raw const (*table).struct_size).read(), (&raw const (*table).abi).read()) };
        let advice = "compile it against a matching dvm_plugin.h";
        if abi >> 16 != MAJOR {
            let (major, minor) = (abi >> 16, abi & 0xffff);
            let ours = crate::abi::VERSION;
            return Err(format!("{SYMBOL} is of ABI {major}.{minor}, this host speaks {ours}; {advice}"));
        }
        if (size as usize) < size_of::<Table>() {
            let least = size_of::<Table>();
            return Err(format!("{SYMBOL} has a struct_size of {size}, the least is {least}; {advice}"));
        }
        // SAFETY: it is as large as ours at least.
        let Table { functions_size: size, flags, functions, .. } = unsafe { table.read() };
        if (size as usize) < size_of::<Functions>() || functions.is_null() {
            let least = size_of::<Functions>();
            return Err(format!("{SYMBOL} has a functions_size of {size}, the least is {least}; {advice}"));
        }
        // SAFETY: it is as large as ours at least.
        let functions = unsafe { functions.read() };
        for (name, missing) in [("start", functions.start.is_none()), ("apply", functions.apply.is_none())] {
            if missing {
                return Err(format!("its functions have no `{name}`; every plug-in has one"));
            }
        }
        let state = (functions.snapshot.is_some(), functions.restore.is_some());
        match (state, flags & STATELESS != 0) {
            ((true, true), _) | ((false, false), true) => Ok(Self(functions)),
            ((false, false), false) => Err(
                "its functions have neither `snapshot` nor `restore`; a plug-in without state says DVM_PLUGIN_STATELESS".into(),
            ),
            _ => Err("its functions have one of `snapshot` and `restore`; it takes both or none".into()),
        }
    }

    /// Whether the configuration would do.
    pub(super) fn validate(&self, config: &[u8], place: &[u8], calls: HostCallsRef, out: Out) -> u32 {
        let Some(validate) = self.0.validate else { return status::OK };
        answer(out, |out| {
            let (config, place, host) = (Text::of(config), Named::decode(place)?, Host::new(calls));
            // SAFETY: as the header has it; all of it lives until the end of the call.
            Ok(unsafe { validate(config.at(), config.size(), &raw const place.c, &raw const host.c, out) })
        })
    }

    /// Starts an instance.
    pub(super) fn start(
        &self,
        config: &[u8],
        place: &[u8],
        calls: HostCallsRef,
        handle: &mut Handle,
        out: Out,
    ) -> u32 {
        let start = self.0.start.expect("looked at when it was loaded");
        answer(out, |out| {
            let (config, place, host) = (Text::of(config), Named::decode(place)?, Host::new(calls));
            let mut instance = ptr::null_mut();
            let (place, given) = (&raw const place.c, &raw const host.c);
            // SAFETY: as the header has it; the host is kept for the instance.
            let ended = unsafe { start(config.at(), config.size(), place, given, &raw mut instance, out) };
            if ended == 0 {
                let running = Box::new(Running { functions: self.0, instance, _host: host });
                *handle = Handle::from_raw(Box::into_raw(running).cast());
            }
            Ok(ended)
        })
    }
}

/// The functions of an instance that [`Library::start`] made.
pub(super) fn functions() -> PluginModuleRef {
    static FUNCTIONS: OnceLock<PluginModuleRef> = OnceLock::new();
    *FUNCTIONS.get_or_init(|| {
        let functions = PluginModule {
            validate: unbound_validate,
            start: unbound_start,
            apply,
            query,
            configure,
            on_event,
            on_role,
            on_place,
            snapshot,
            restore,
            stop,
        };
        functions.leak_into_prefix()
    })
}

/// Runs a callback; what it returns becomes a status.
fn answer(out: Out, call: impl FnOnce(*const COut) -> Result<c_int, Stopped>) -> u32 {
    let sink = Sink { out, written: Cell::new(false) };
    let given = COut { struct_size: size_of::<COut>(), ctx: &raw const sink, write };
    let tell = |text: &str| (out.write)(out.ctx, RSlice::from_slice(text.as_bytes()));
    match call(&raw const given) {
        Ok(0) => status::OK,
        Ok(code) => {
            if !sink.written.get() {
                tell(&format!("it returned {code} and gave no reason"));
            }
            status::ERROR
        }
        Err((status, text)) => {
            tell(&text);
            status
        }
    }
}

/// What a handle stands for.
fn running<'a>(handle: Handle) -> &'a Running {
    // SAFETY: the host passes a handle that `start` made and `stop` did not take.
    unsafe { &*handle.as_raw().cast::<Running>() }
}

/// One of the callbacks that take a text; where there is none, what then.
fn with_text(
    handle: Handle,
    text: &[u8],
    out: Out,
    which: fn(&Functions) -> Option<Told>,
    none: fn() -> Result<c_int, Stopped>,
) -> u32 {
    let running = running(handle);
    answer(out, |out| {
        let Some(callback) = which(&running.functions) else { return none() };
        let text = Text::of(text);
        // SAFETY: as the header has it; the text lives until the end of the call.
        Ok(unsafe { callback(running.instance, text.at(), text.size(), out) })
    })
}

extern "C" fn unbound_validate(_: RSlice<'_, u8>, _: RSlice<'_, u8>, _: HostCallsRef, _: Out) -> u32 {
    status::MALFORMED
}

extern "C" fn unbound_start(
    _: RSlice<'_, u8>,
    _: RSlice<'_, u8>,
    _: HostCallsRef,
    _: &mut Handle,
    _: Out,
) -> u32 {
    status::MALFORMED
}

extern "C" fn apply(instance: Handle, command: RSlice<'_, u8>, meta: RSlice<'_, u8>, out: Out) -> u32 {
    let running = running(instance);
    let apply = running.functions.apply.expect("looked at when it was loaded");
    answer(out, |out| {
        let Meta { index, fence, time, seed, session } = decode("meta", meta)?;
        let session = session.map(text);
        let meta = CMeta {
            struct_size: size_of::<CMeta>(),
            index,
            fence,
            time,
            seed,
            session: session.as_ref().map_or(ptr::null(), |session| session.as_ptr()),
        };
        let command = Text::of(command.as_slice());
        // SAFETY: as the header has it; all of it lives until the end of the call.
        Ok(unsafe { apply(running.instance, command.at(), command.size(), &raw const meta, out) })
    })
}

extern "C" fn query(instance: Handle, command: RSlice<'_, u8>, out: Out) -> u32 {
    with_text(
        instance,
        command.as_slice(),
        out,
        |functions| functions.query,
        || Err((status::ERROR, crate::plugin::NO_QUERIES.into())),
    )
}

extern "C" fn configure(instance: Handle, config: RSlice<'_, u8>, out: Out) -> u32 {
    with_text(instance, config.as_slice(), out, |functions| functions.configure, || Ok(0))
}

extern "C" fn on_event(instance: Handle, event: RSlice<'_, u8>, out: Out) -> u32 {
    let running = running(instance);
    let Some(on_event) = running.functions.on_event else { return status::OK };
    answer(out, |_| {
        let Event { index, kind, fields } = decode("event", event)?;
        let (kind, json) = (text(kind), text(serde_json::Value::Object(fields).to_string()));
        let event = CEvent {
            struct_size: size_of::<CEvent>(),
            index,
            kind: kind.as_ptr(),
            json: json.as_ptr(),
            json_size: json.as_bytes().len(),
        };
        // SAFETY: as the header has it; all of it lives until the end of the call.
        unsafe { on_event(running.instance, &raw const event) };
        Ok(0)
    })
}

extern "C" fn on_role(instance: Handle, role: u32, fence: u64, _: Out) -> u32 {
    let running = running(instance);
    if let (Some(on_role), Ok(role)) = (running.functions.on_role, c_int::try_from(role)) {
        // SAFETY: as the header has it. The numbers of roles are the same there.
        unsafe { on_role(running.instance, role, fence) };
    }
    status::OK
}

extern "C" fn on_place(instance: Handle, place: RSlice<'_, u8>, out: Out) -> u32 {
    let running = running(instance);
    let Some(on_place) = running.functions.on_place else { return status::OK };
    answer(out, |_| {
        let place = Named::decode(place.as_slice())?;
        // SAFETY: as the header has it; the place lives until the end of the call.
        unsafe { on_place(running.instance, &raw const place.c) };
        Ok(0)
    })
}

extern "C" fn snapshot(instance: Handle, out: Out) -> u32 {
    let running = running(instance);
    let Some(snapshot) = running.functions.snapshot else { return status::OK };
    // SAFETY: as the header has it.
    answer(out, |out| Ok(unsafe { snapshot(running.instance, out) }))
}

extern "C" fn restore(instance: Handle, state: RSlice<'_, u8>, out: Out) -> u32 {
    let running = running(instance);
    let Some(restore) = running.functions.restore else { return status::OK };
    // SAFETY: as the header has it; the state is the caller's and lives until the end of the call.
    answer(out, |out| Ok(unsafe { restore(running.instance, state.as_ptr().cast(), state.len(), out) }))
}

extern "C" fn stop(instance: Handle, _: Out) -> u32 {
    // SAFETY: `start` made it, and the host gives a handle to `stop` once.
    let running = unsafe { Box::from_raw(instance.as_raw().cast::<Running>()) };
    if let Some(stop) = running.functions.stop {
        // SAFETY: as the header has it; the host of `start` lives until it has returned.
        unsafe { stop(running.instance) };
    }
    status::OK
}

/// Bytes with a zero behind them, so that C can take them for a string.
struct Text(Vec<u8>);

impl Text {
    fn of(bytes: &[u8]) -> Self {
        let mut text = Vec::with_capacity(bytes.len() + 1);
        text.extend_from_slice(bytes);
        text.push(0);
        Self(text)
    }

    fn at(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    fn size(&self) -> usize {
        self.0.len() - 1
    }
}

/// A string for C, which ends at the first zero.
fn text(text: String) -> CString {
    let bytes: Vec<u8> = text.into_bytes().into_iter().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).expect("there is no zero in it")
}

/// A place with the names that it points to.
struct Named {
    c: CPlace,
    _names: Vec<CString>,
    _peers: Vec<*const c_char>,
}

impl Named {
    fn decode(place: &[u8]) -> Result<Self, Stopped> {
        let Place { member, rank, peers } = decode("place", RSlice::from_slice(place))?;
        let names: Vec<CString> = peers.into_iter().chain([member]).map(text).collect();
        let (member, peers) = names.split_last().expect("the member is one");
        let peers: Vec<*const c_char> = peers.iter().map(|name| name.as_ptr()).collect();
        let c = CPlace {
            struct_size: size_of::<CPlace>(),
            member: member.as_ptr(),
            rank: rank.into(),
            size: u32::try_from(peers.len()).expect("a DVM has thousands of members at most"),
            peers: peers.as_ptr(),
        };
        Ok(Self { c, _names: names, _peers: peers })
    }
}
