//! One instance in memory, and the formats of what it is told.

use super::history::{Item, State, What};
use super::seat::{Seat, Settings};
use super::stage::during;
use crate::host::{CallError, Instance, Module};
use crate::service::Moment;
use crate::{Place, Role};
use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;

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

/// An instance that runs.
pub(super) struct Running {
    instance: Option<Instance>,
    pub(super) seat: &'static Seat,
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
    pub(super) fn validate(
        module: Module,
        config: &[u8],
        place: &Place,
        settings: Settings,
    ) -> Result<(), CallError> {
        let seat = Seat::new(settings);
        let valid = during(seat, Moment::Validate, || module.validate(config, &encode(place), seat.calls()));
        seat.close();
        valid
    }

    /// A fresh instance.
    pub(super) fn start(
        module: Module,
        config: Vec<u8>,
        place: &Place,
        settings: Settings,
    ) -> Result<Self, CallError> {
        let seat = Seat::new(settings);
        let started = during(seat, Moment::Start, || module.start(&config, &encode(place), seat.calls()));
        let instance = Some(started.inspect_err(|_| seat.close())?);
        Ok(Self { instance, seat, at: 0, applies: false, config, roles: VecDeque::new() })
    }

    /// It is told something; a command has a reply.
    pub(super) fn tell(&mut self, item: &Item) -> Result<Vec<u8>, CallError> {
        let nothing = |()| Vec::new();
        match &item.what {
            What::Command { bytes, meta, .. } => self.fixed("apply", |instance| instance.apply(bytes, meta)),
            What::Event { bytes, .. } => self.alone(bytes).map(nothing),
            What::Configure(config) => {
                self.with(Moment::Callback, |instance| instance.configure(config)).map(nothing)
            }
            What::Members(names) => {
                let place = encode(&place(&self.seat.member, names));
                self.with(Moment::Callback, |instance| instance.on_place(&place)).map(nothing)
            }
        }
    }

    /// It is told an event.
    pub(super) fn alone(&mut self, event: &[u8]) -> Result<(), CallError> {
        self.with(Moment::Callback, |instance| instance.on_event(event))
    }

    /// It is told its role, behind everything up to an index. A primary may act from here on.
    pub(super) fn role(&mut self, role: Role, through: u64) -> Result<(), CallError> {
        if let Role::Primary { fence } = role {
            self.seat.promoted(fence, through);
        }
        self.with(Moment::Callback, |instance| instance.on_role(role))?;
        if self.applies {
            self.seat.serve();
        }
        Ok(())
    }

    /// It may act no longer, whatever it was told of its role: as a lease ends by itself.
    pub(super) fn expire(&self) {
        self.seat.expire();
    }

    pub(super) fn query(&mut self, command: &[u8]) -> Result<Vec<u8>, CallError> {
        self.fixed("query", |instance| instance.query(command))
    }

    pub(super) fn snapshot(&mut self) -> Result<Vec<u8>, CallError> {
        self.fixed("snapshot", Instance::snapshot)
    }

    pub(super) fn state(&mut self) -> Result<State, CallError> {
        self.snapshot().map(|snapshot| State::of(&snapshot))
    }

    pub(super) fn restore(&mut self, snapshot: &[u8]) -> Result<(), CallError> {
        self.fixed("restore", |instance| instance.restore(snapshot))
    }

    pub(super) fn stop(mut self) -> Result<(), CallError> {
        self.expire();
        let instance = self.instance.take().expect("it runs until it is stopped");
        during(self.seat, Moment::Callback, || instance.stop())
    }

    fn fixed<T>(
        &mut self,
        callback: &'static str,
        call: impl FnOnce(&mut Instance) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.with(Moment::Fixed(callback), call)
    }

    fn with<T>(
        &mut self,
        moment: Moment,
        call: impl FnOnce(&mut Instance) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let instance = self.instance.as_mut().expect("it runs until it is stopped");
        during(self.seat, moment, || call(instance))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its memory would be gone with its process; here it is left alone.
        self.seat.close();
    }
}

/// Where a member is among the members of some time; one that was not there yet counts as the last.
pub(super) fn place(member: &str, names: &[String]) -> Place {
    let rank = names.iter().position(|name| name == member).unwrap_or(names.len());
    Place { member: member.into(), rank: rank as u16, peers: names.to_vec() }
}
