use super::load::{check_layouts, sort};
use super::*;
use crate::abi::HostCalls;
use crate::{Event, Place};
use abi_stable::StableAbi;
use abi_stable::std_types::RSlice;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn counter() -> PathBuf {
    let tests = std::env::current_exe().expect("a test runs from a file");
    let directory = tests.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = directory.join("libcounter.so");
    assert!(path.is_file(), "{} is missing; run `cargo build -p dvm-plugin-counter` first", path.display());
    path
}

extern "C" fn silent(_: *const (), _: u8, _: RSlice<'_, u8>) {}

extern "C" fn none(_: *const ()) -> u64 {
    0
}

extern "C" fn nothing(_: *const (), _: RSlice<'_, u8>, _: Out) -> u32 {
    status::ERROR
}

fn calls() -> HostCallsRef {
    HostCalls { ctx: std::ptr::null(), log: silent, token: none, ask: nothing }.leak()
}

fn pack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("JSON fits")
}

fn place() -> Vec<u8> {
    let place = Place { member: "k1".into(), rank: 1, peers: vec!["k0".into(), "k1".into()] };
    rmp_serde::to_vec_named(&place).expect("plain data")
}

fn module() -> Module {
    // SAFETY: the example plug-in, which nobody writes while the tests run.
    unsafe { Module::load(&counter()) }.expect("it loads")
}

fn apply(instance: &mut Instance, command: &Value) -> Result<Value, CallError> {
    let reply = instance.apply(&pack(command), &encode_meta(&Meta::at(7)))?;
    Ok(rmp_serde::from_slice(&reply).expect("a reply"))
}

#[test]
fn an_instance_goes_through_its_life() {
    let module = module();
    let config = pack(&json!({"start": 10, "step": 2}));
    module.validate(&config, &place(), calls()).expect("it would do");
    let mut instance = module.start(&config, &place(), calls()).expect("it starts");
    instance.on_role(Role::Active).expect("a role");
    instance.on_place(&place()).expect("a place");
    let event = Event::new(3, "member-failed", Map::new());
    instance.on_event(&rmp_serde::to_vec_named(&event).expect("plain data")).expect("an event");
    assert_eq!(apply(&mut instance, &json!({"add": 3})), Ok(json!({"value": 16})));
    let state = instance.snapshot().expect("a snapshot");
    let mut other = module.start(&pack(&json!({})), &place(), calls()).expect("a second one");
    other.restore(&state).expect("it takes the state");
    assert_eq!(apply(&mut other, &json!({"get": true})), Ok(json!({"value": 16})));
    other.configure(&config).expect("it takes the configuration");
    assert_eq!(apply(&mut other, &json!({"add": 1})), Ok(json!({"value": 18})));
    let reply = other.query(&pack(&json!({"get": true}))).expect("a reply");
    assert_eq!(rmp_serde::from_slice::<Value>(&reply).expect("a reply"), json!({"value": 18}));
    instance.stop().expect("it stops");
    other.stop().expect("it stops");
}

#[test]
fn errors_and_bytes_that_do_not_decode_leave_the_instance_as_it_was() {
    let module = module();
    let refused = module.validate(&pack(&json!({"refuse_on": ["k1"]})), &place(), calls());
    assert_eq!(refused, Err(CallError::Own("refuse_on names k1".into())));
    let unknown = module.validate(&pack(&json!({"nonsense": 1})), &place(), calls()).expect_err("unknown");
    assert!(unknown.to_string().contains("unknown field `nonsense`"), "{unknown}");
    let wrong = module.validate(&pack(&json!({"step": "two"})), &place(), calls()).expect_err("a wrong type");
    let told = "configuration: `step`: invalid type: string \"two\", expected i64";
    assert_eq!(wrong, CallError::Own(told.into()));
    let mut instance = module.start(&pack(&json!({})), &place(), calls()).expect("it starts");
    assert!(matches!(apply(&mut instance, &json!({"jump": 1})), Err(CallError::Own(_))));
    assert!(matches!(instance.apply(b"\xc1", b"\xc1"), Err(CallError::Own(_))));
    assert!(matches!(instance.restore(b"short"), Err(CallError::Own(_))));
    assert_eq!(apply(&mut instance, &json!({"add": 1})), Ok(json!({"value": 1})));
}

#[test]
fn a_panic_stops_at_the_boundary_and_poisons_the_instance_alone() {
    let module = module();
    let config = pack(&json!({"faults": true}));
    let mut bad = module.start(&config, &place(), calls()).expect("it starts");
    let mut good = module.start(&config, &place(), calls()).expect("it starts");
    assert_eq!(
        apply(&mut bad, &json!({"fail": "panic"})),
        Err(CallError::Panic("a panic was asked for".into()))
    );
    assert_eq!(apply(&mut bad, &json!({"get": true})), Err(CallError::Poisoned));
    assert_eq!(bad.stop(), Err(CallError::Poisoned));
    assert_eq!(apply(&mut good, &json!({"fail": "panic", "on": "k0"})), Ok(json!({"value": 0})));
}

#[test]
fn a_library_that_is_not_there_and_one_of_another_kind_are_told_apart() {
    // SAFETY: there is nothing to load.
    let missing = unsafe { Module::load(Path::new("/nowhere/libnothing.so")) };
    assert!(matches!(missing, Err(LoadError::MissingLibrary { .. })));
}

#[test]
fn the_loaders_words_are_told_without_the_descriptor_that_was_loaded() {
    let check = |reason: &str, code: &str, text: &str| {
        let error = sort(Path::new("/proc/self/fd/4"), reason);
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    };
    check(
        "/proc/self/fd/4: undefined symbol: mpi_thing",
        "missing-library",
        "it needs the symbol `mpi_thing`, which nothing that it links to defines; link it with the library that does \
         (-lNAME)",
    );
    check(
        "/usr/lib/libmpi.so.40: undefined symbol: opal_init, version OPAL_4",
        "missing-library",
        "it needs the symbol `opal_init`, which nothing that /usr/lib/libmpi.so.40 links to defines; link it with the \
         library that does (-lNAME)",
    );
    check(
        "libx.so.1: cannot open shared object file: No such file or directory",
        "missing-library",
        "a library it needs is missing: libx.so.1: cannot open shared object file: No such file or directory",
    );
    check(
        "/lib/libc.so.6: version `GLIBC_2.99' not found (required by /proc/self/fd/4)",
        "glibc",
        "this machine's C library is too old for it: /lib/libc.so.6: version `GLIBC_2.99' not found (required by it)",
    );
    check("/proc/self/fd/4: file too short", "corrupt", "the loader refuses it: file too short");
}

/// The tables of another version: a function's argument, functions that only it has, those of the host that only it has.
macro_rules! other_version {
    ($name:ident, apply($handle:ty), token($token:ty), host { $($host:tt)* } $(, plug-in has $more:ident)?) => {
        #[allow(dead_code, reason = "only its layout is looked at")]
        mod $name {
            use super::*;

            #[repr(C)]
            #[derive(StableAbi)]
            #[sabi(kind(Prefix(prefix_ref = HostCallsRef)))]
            #[sabi(missing_field(option))]
            pub(super) struct HostCalls {
                pub(super) ctx: *const (),
                pub(super) log: extern "C" fn(ctx: *const (), level: u8, text: RSlice<'_, u8>),
                #[sabi(last_prefix_field)]
                pub(super) token: extern "C" fn(ctx: *const ()) -> $token,
                $($host)*
            }

            #[repr(C)]
            #[derive(StableAbi)]
            #[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
            #[sabi(missing_field(option))]
            pub(super) struct PluginModule {
                validate: extern "C" fn(
                    config: RSlice<'_, u8>,
                    place: RSlice<'_, u8>,
                    calls: HostCallsRef,
                    out: Out,
                ) -> u32,
                start: extern "C" fn(
                    config: RSlice<'_, u8>,
                    place: RSlice<'_, u8>,
                    calls: HostCallsRef,
                    instance: &mut Handle,
                    out: Out,
                ) -> u32,
                apply:
                    extern "C" fn(instance: $handle, command: RSlice<'_, u8>, meta: RSlice<'_, u8>, out: Out) -> u32,
                query: extern "C" fn(instance: Handle, command: RSlice<'_, u8>, out: Out) -> u32,
                configure: extern "C" fn(instance: Handle, config: RSlice<'_, u8>, out: Out) -> u32,
                on_event: extern "C" fn(instance: Handle, event: RSlice<'_, u8>, out: Out) -> u32,
                on_role: extern "C" fn(instance: Handle, role: u32, fence: u64, out: Out) -> u32,
                on_place: extern "C" fn(instance: Handle, place: RSlice<'_, u8>, out: Out) -> u32,
                snapshot: extern "C" fn(instance: Handle, out: Out) -> u32,
                restore: extern "C" fn(instance: Handle, snapshot: RSlice<'_, u8>, out: Out) -> u32,
                #[sabi(last_prefix_field)]
                stop: extern "C" fn(instance: Handle, out: Out) -> u32,
                $($more: extern "C" fn(instance: Handle) -> u32,)?
            }
        }
    };
}

other_version!(first, apply(Handle), token(u64), host {});
other_version!(newer, apply(Handle), token(u64), host {
    ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
}, plug-in has health);
other_version!(offers_more, apply(Handle), token(u64), host {
    ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
    pub(super) clock: extern "C" fn(ctx: *const ()),
});
other_version!(newest, apply(Handle), token(u64), host {
    ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
    pub(super) clock: extern "C" fn(ctx: *const ()),
}, plug-in has health);
other_version!(changed, apply(u64), token(u64), host {
    ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
});
other_version!(other_host, apply(Handle), token(u32), host {
    ask: extern "C" fn(ctx: *const (), request: RSlice<'_, u8>, out: Out) -> u32,
});

#[test]
fn modules_that_have_grown_fit_both_ways_and_changed_ones_do_not() {
    let (ours, changed) = (PluginModuleRef::LAYOUT, changed::PluginModuleRef::LAYOUT);
    assert_eq!(check_layouts(ours, ours), Ok(()));
    for (grown, layout) in [
        ("the plug-in's table", newer::PluginModuleRef::LAYOUT),
        ("the host's", offers_more::PluginModuleRef::LAYOUT),
        ("both", newest::PluginModuleRef::LAYOUT),
        ("neither: it is of version 1.0", first::PluginModuleRef::LAYOUT),
    ] {
        assert_eq!(check_layouts(ours, layout), Ok(()), "a new plug-in on this host: {grown}");
        assert_eq!(check_layouts(layout, ours), Ok(()), "this plug-in on a new host: {grown}");
    }
    let reason = check_layouts(ours, changed).expect_err("the handle became a number");
    assert_eq!(reason, "apply.fn: expected Handle, found u64");
    let reason = check_layouts(ours, other_host::PluginModuleRef::LAYOUT).expect_err("the token is another");
    assert!(reason.contains("expected u64, found u32"), "{reason}");
}

/// What a plug-in of a newer version asks of this host, and this version of an older one.
#[test]
fn what_the_other_side_lacks_is_none() {
    // SAFETY: the two tables begin alike, which the test above checks; this is what loading does.
    let seen: newest::HostCallsRef = unsafe { std::mem::transmute(calls()) };
    assert!(seen.clock().is_none(), "this host has no such function");
    assert_eq!(seen.token()(seen.ctx()), 0);
}
