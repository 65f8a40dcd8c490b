//! Loads a library as a host of ABI 1.0 does, and drives it: `old-host LIBRARY CONFIG COMMAND...`, all in JSON. It
//! tells each reply, one a line, then that a second instance has taken the first one's state over.

use abi_stable::std_types::RSlice;
use dvm_plugin_api::abi::{HostCalls, HostCallsRef};
use dvm_plugin_api::host::{CallError, Instance, Module, encode_meta};
use dvm_plugin_api::{Event, Meta, Place, Role, manifest};
use serde_json::{Map, Value, json};
use std::path::Path;

extern "C" fn log(_: *const (), _: u8, text: RSlice<'_, u8>) {
    eprintln!("{}", String::from_utf8_lossy(text.as_slice()));
}

extern "C" fn token(_: *const ()) -> u64 {
    7
}

fn calls() -> HostCallsRef {
    HostCalls { ctx: std::ptr::null(), log, token }.leak()
}

fn encode(value: &Value, format: &str) -> Vec<u8> {
    match format {
        "json" => value.to_string().into_bytes(),
        _ => rmp_serde::to_vec_named(value).expect("JSON"),
    }
}

fn decode(bytes: &[u8], format: &str) -> Value {
    match format {
        "json" => serde_json::from_slice(bytes).expect("JSON"),
        _ => rmp_serde::from_slice(bytes).expect("MessagePack"),
    }
}

fn told(reply: Result<Vec<u8>, CallError>, format: &str) -> Value {
    match reply {
        Ok(bytes) => decode(&bytes, format),
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let library = arguments.next().expect("a library");
    let bytes = std::fs::read(&library).expect("it is there");
    let format = manifest::read(&bytes).unwrap_or_else(|error| panic!("{error}")).payload;
    let mut given = arguments.map(|text| serde_json::from_str::<Value>(&text).expect("JSON"));
    let config = encode(&given.next().expect("a configuration"), &format);
    let place = Place { member: "k0".into(), rank: 0, peers: vec!["k0".into(), "k1".into()] };
    let place = rmp_serde::to_vec_named(&place).expect("plain data");
    // SAFETY: the test keeps the file as it is.
    let module = unsafe { Module::load(Path::new(&library)) }.unwrap_or_else(|error| panic!("{error}"));
    module.validate(&config, &place, calls()).unwrap_or_else(|error| panic!("{error}"));
    let start =
        || -> Instance { module.start(&config, &place, calls()).unwrap_or_else(|error| panic!("{error}")) };
    let mut first = start();
    first.on_role(Role::Primary { fence: 7 }).expect("a role");
    let event = Event::new(3, "member-failed", Map::from_iter([("member".into(), json!("k1"))]));
    first.on_event(&rmp_serde::to_vec_named(&event).expect("plain data")).expect("an event");
    first.on_place(&place).expect("a place");
    for (at, command) in given.enumerate() {
        let meta = encode_meta(&Meta::at(10 + at as u64));
        println!("{}", told(first.apply(&encode(&command, &format), &meta), &format));
    }
    let state = first.snapshot().expect("a state");
    let mut second = start();
    second.on_role(Role::Standby).expect("a role");
    second.restore(&state).expect("it is taken over");
    assert_eq!(second.snapshot().expect("a state"), state, "a state taken over is the state");
    first.stop().expect("an end");
    second.configure(&config).expect("a configuration");
    second.stop().expect("an end");
    println!("{}", json!({"taken_over": true}));
}
