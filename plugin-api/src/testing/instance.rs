//! One instance in memory, what its host gives it, and the formats of what it is told.

use super::history::{Item, State, What};
use crate::abi::{HostCalls, HostCallsRef, Slice};
use crate::host::{CallError, Instance, Module};
use crate::{Place, Role};
use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines of instances that are kept.
const LINES_MAX: usize = 256;

/// The format of configurations, commands and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(feature = "host", test)), expect(dead_code, reason = "only libraries have other formats"))]
pub(super) enum Format {
    Msgpack,
    Json,
    Bytes,
}

impl Format {
    /// As a kernel does: for `bytes`, text is taken as it is.
    pub(super) fn encode(self, value: &Value) -> Vec<u8> {
        match (self, value) {
            (Self::Msgpack, value) => encode(value),
            (Self::Bytes, Value::String(text)) => text.clone().into(),
            (Self::Json | Self::Bytes, value) => value.to_string().into(),
        }
    }

    pub(super) fn decode(self, reply: &[u8]) -> Result<Value, String> {
        match self {
            _ if reply.is_empty() => Ok(Value::Null),
            Self::Msgpack => rmp_serde::from_slice(reply).map_err(|error| error.to_string()),
            Self::Json => serde_json::from_slice(reply).map_err(|error| error.to_string()),
            Self::Bytes => Ok(match std::str::from_utf8(reply) {
                Ok(text) => text.into(),
                Err(_) => reply.iter().copied().map(Value::from).collect(),
            }),
        }
    }
}

/// What host and plug-in tell each other, as the ABI wants it.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("it is plain data")
}

/// What instances did to the world outside.
#[derive(Default)]
pub(super) struct Outside {
    lines: Mutex<VecDeque<String>>,
    /// Who was given which token, in order, each once.
    tokens: Mutex<Vec<(String, u64)>>,
}

impl Outside {
    pub(super) fn lines(&self) -> Vec<String> {
        locked(&self.lines).iter().cloned().collect()
    }

    pub(super) fn tokens(&self) -> Vec<(String, u64)> {
        locked(&self.tokens).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an instance asks its host by. It lives for ever, since a plug-in may keep it.
struct Seat {
    member: String,
    /// The token it may act under; 0 if it may not.
    fence: AtomicU64,
    outside: Arc<Outside>,
}

/// The host's services in memory; each gets the [`Seat`] of the instance that asks.
fn calls(seat: &'static Seat) -> HostCallsRef {
    fn seat_of(ctx: *const ()) -> &'static Seat {
        // SAFETY: what `calls` put there, which lives for ever.
        unsafe { &*ctx.cast::<Seat>() }
    }
    extern "C" fn log(ctx: *const (), _: u8, text: Slice<'_>) {
        let seat = seat_of(ctx);
        let mut lines = locked(&seat.outside.lines);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(format!("{}: {}", seat.member, String::from_utf8_lossy(text.as_slice())));
    }
    extern "C" fn token(ctx: *const ()) -> u64 {
        let seat = seat_of(ctx);
        let fence = seat.fence.load(Ordering::Acquire);
        let mut tokens = locked(&seat.outside.tokens);
        if fence > 0 && tokens.last().is_none_or(|(_, last)| *last != fence) {
            tokens.push((seat.member.clone(), fence));
        }
        fence
    }
    let ask = crate::abi::no_services;
    HostCalls { ctx: (&raw const *seat).cast(), log, token, ask }.leak()
}

/// An instance that runs.
pub(super) struct Running {
    instance: Instance,
    seat: &'static Seat,
    /// How much of the history it was told.
    pub(super) at: usize,
    /// Whether it is told the history, or only stands by.
    pub(super) applies: bool,
    /// The configuration that it was started with.
    pub(super) config: Vec<u8>,
    /// Roles it is to be told, each behind so much of the history.
    pub(super) roles: VecDeque<(usize, Role)>,
}

impl Running {
    /// Whether a configuration would do at a place.
    pub(super) fn validate(module: Module, config: &[u8], place: &Place) -> Result<(), CallError> {
        module.validate(config, &encode(place), calls(seat(place, Arc::default())))
    }

    /// A fresh instance.
    pub(super) fn start(
        module: Module,
        config: Vec<u8>,
        place: &Place,
        outside: Arc<Outside>,
    ) -> Result<Self, CallError> {
        let seat = seat(place, outside);
        let instance = module.start(&config, &encode(place), calls(seat))?;
        Ok(Self { instance, seat, at: 0, applies: false, config, roles: VecDeque::new() })
    }

    /// It is told something; a command has a reply.
    pub(super) fn tell(&mut self, item: &Item) -> Result<Vec<u8>, CallError> {
        match &item.what {
            What::Command { bytes, meta, .. } => self.instance.apply(bytes, meta),
            What::Event { bytes, .. } => self.instance.on_event(bytes).map(|()| Vec::new()),
            What::Configure(config) => self.instance.configure(config).map(|()| Vec::new()),
            What::Members(names) => {
                let place = place(&self.seat.member, names);
                self.instance.on_place(&encode(&place)).map(|()| Vec::new())
            }
        }
    }

    /// It is told its role. A primary may act from here on.
    pub(super) fn role(&mut self, role: Role) -> Result<(), CallError> {
        if let Role::Primary { fence } = role {
            self.seat.fence.store(fence, Ordering::Release);
        }
        self.instance.on_role(role)
    }

    /// It may act no longer, whatever it was told of its role: as a lease ends by itself.
    pub(super) fn expire(&self) {
        self.seat.fence.store(0, Ordering::Release);
    }

    pub(super) fn query(&mut self, command: &[u8]) -> Result<Vec<u8>, CallError> {
        self.instance.query(command)
    }

    pub(super) fn snapshot(&mut self) -> Result<Vec<u8>, CallError> {
        self.instance.snapshot()
    }

    pub(super) fn state(&mut self) -> Result<State, CallError> {
        self.snapshot().map(|snapshot| State::of(&snapshot))
    }

    pub(super) fn restore(&mut self, snapshot: &[u8]) -> Result<(), CallError> {
        self.instance.restore(snapshot)
    }

    pub(super) fn stop(self) -> Result<(), CallError> {
        self.expire();
        self.instance.stop()
    }
}

fn seat(place: &Place, outside: Arc<Outside>) -> &'static Seat {
    Box::leak(Box::new(Seat { member: place.member.clone(), fence: AtomicU64::new(0), outside }))
}

/// Where a member is among the members of some time; one that was not there yet counts as the last.
pub(super) fn place(member: &str, names: &[String]) -> Place {
    let rank = names.iter().position(|name| name == member).unwrap_or(names.len());
    Place { member: member.into(), rank: rank as u16, peers: names.to_vec() }
}
