//! What holds an instance, wherever it runs: one thing that its kernel tells, one answer.
//!
//! A process of a plug-in and a thread inside the kernel begin without code, and are told which to load. An application
//! brings its own.

use super::{CallError, Context, Instance, Module, during};
use crate::abi::HostCallsRef;
use crate::local::bytes;
use crate::plugin::Role;
use crate::service::Moment;
use serde::{Deserialize, Serialize};

/// From the kernel. Payloads are in the plug-in's format; places, events and `meta` as [`abi`](crate::abi) has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Load the library: which, in the kernel's own words. No application is told so.
    Open(#[serde(with = "bytes")] Vec<u8>),
    /// Would this configuration do?
    Validate {
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        config: Vec<u8>,
        /// Where.
        #[serde(with = "bytes")]
        place: Vec<u8>,
    },
    /// Start the instance.
    Start {
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        config: Vec<u8>,
        /// Where.
        #[serde(with = "bytes")]
        place: Vec<u8>,
    },
    /// Take this state over.
    Restore(#[serde(with = "bytes")] Vec<u8>),
    /// Its role, with its token.
    Role {
        /// As the ABI numbers it.
        role: u32,
        /// The token.
        fence: u64,
    },
    /// A primary may act until then.
    Lease {
        /// By `CLOCK_BOOTTIME`, microseconds.
        until_us: u64,
    },
    /// Apply a command.
    Apply {
        /// Where it stands.
        #[serde(with = "bytes")]
        meta: Vec<u8>,
        /// In the plug-in's format.
        #[serde(with = "bytes")]
        command: Vec<u8>,
    },
    /// Answer a query.
    Query(#[serde(with = "bytes")] Vec<u8>),
    /// Take a new configuration.
    Configure(#[serde(with = "bytes")] Vec<u8>),
    /// Something happened.
    Event(#[serde(with = "bytes")] Vec<u8>),
    /// Members or ranks changed.
    Place(#[serde(with = "bytes")] Vec<u8>),
    /// Tell the state.
    Snapshot,
    /// End the instance.
    Stop,
}

/// To the kernel: the answer to each of the above, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// Done; with the reply or the state, if there is one.
    Done(#[serde(with = "bytes")] Vec<u8>),
    /// The plug-in's own error.
    Own(String),
    /// It panicked, now or before.
    Panic(String),
    /// The library cannot be loaded.
    NotLoaded {
        /// As transactions carry it.
        code: String,
        /// In words for people.
        reason: String,
    },
}

/// Loads what [`Told::Open`] names; or why not, as a code with its reason.
pub type Opener = Box<dyn FnMut(&[u8]) -> Result<Module, (String, String)> + Send>;

/// An instance, from before its code is known until its end.
pub struct Hosted {
    context: &'static Context,
    calls: HostCallsRef,
    code: Code,
    instance: Option<Instance>,
    panic: Option<String>,
}

/// Where the code comes from.
enum Code {
    Here(Module),
    ToOpen(Opener),
}

impl Hosted {
    /// One whose code is here.
    #[must_use]
    pub fn of(module: Module, context: &'static Context) -> Self {
        Self::with(Code::Here(module), context)
    }

    /// One that will be told what to load.
    #[must_use]
    pub fn empty(opener: Opener, context: &'static Context) -> Self {
        Self::with(Code::ToOpen(opener), context)
    }

    fn with(code: Code, context: &'static Context) -> Self {
        Self { context, calls: context.calls(), code, instance: None, panic: None }
    }

    /// The message of its first panic.
    #[must_use]
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Ends an instance that was not told to stop, where no process ends with it. It may not act any more, and asks for
    /// nothing.
    pub fn end(&mut self) {
        self.context.close();
        if let Some(instance) = self.instance.take() {
            // Nobody hears of it any more.
            let _ = during(Moment::Callback, || instance.stop());
        }
    }

    /// Does what it is told.
    pub fn handle(&mut self, told: Told) -> Said {
        match self.answer(told) {
            Ok(bytes) => Said::Done(bytes),
            Err(Refused::NotLoaded { code, reason }) => Said::NotLoaded { code, reason },
            Err(Refused::Call(CallError::Own(text))) => Said::Own(text),
            Err(Refused::Call(CallError::Panic(text))) => {
                self.panic.get_or_insert_with(|| text.clone());
                Said::Panic(text)
            }
            Err(Refused::Call(error @ CallError::Poisoned)) => Said::Panic(error.to_string()),
        }
    }

    fn answer(&mut self, told: Told) -> Result<Vec<u8>, Refused> {
        let calls = self.calls;
        match told {
            Told::Open(which) => {
                let Code::ToOpen(open) = &mut self.code else {
                    return Err(missing("place for a library: the code is here already"));
                };
                let opened = open(&which).map_err(|(code, reason)| Refused::NotLoaded { code, reason })?;
                self.code = Code::Here(opened);
            }
            Told::Validate { config, place } => {
                let module = self.module()?;
                during(Moment::Validate, || module.validate(&config, &place, calls))?;
            }
            Told::Start { config, place } => {
                let module = self.module()?;
                let started = during(Moment::Start, || module.start(&config, &place, calls));
                self.instance = Some(started?);
            }
            Told::Lease { until_us } => self.context.leased(until_us),
            Told::Stop => {
                if let Some(instance) = self.instance.take() {
                    during(Moment::Callback, || instance.stop())?;
                }
            }
            other => {
                let instance = self.instance.as_mut().ok_or_else(|| missing("instance"))?;
                if let Told::Role { fence, .. } = &other {
                    self.context.promoted(*fence);
                }
                return Ok(during(moment(&other), || call(instance, other))?);
            }
        }
        Ok(Vec::new())
    }

    fn module(&self) -> Result<Module, Refused> {
        match &self.code {
            Code::Here(module) => Ok(*module),
            Code::ToOpen(_) => Err(missing("library")),
        }
    }
}

/// Why there is nothing to answer with.
enum Refused {
    Call(CallError),
    NotLoaded { code: String, reason: String },
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

fn missing(what: &str) -> Refused {
    Refused::Call(CallError::Own(format!("there is no {what} here")))
}

/// Whether a callback must come to the same at every instance.
fn moment(told: &Told) -> Moment {
    match told {
        Told::Apply { .. } => Moment::Fixed("apply"),
        Told::Query(_) => Moment::Fixed("query"),
        Told::Snapshot => Moment::Fixed("snapshot"),
        Told::Restore(_) => Moment::Fixed("restore"),
        _ => Moment::Callback,
    }
}

fn call(instance: &mut Instance, told: Told) -> Result<Vec<u8>, CallError> {
    let nothing = |()| Vec::new();
    match told {
        Told::Apply { meta, command } => instance.apply(&command, &meta),
        Told::Query(command) => instance.query(&command),
        Told::Configure(config) => instance.configure(&config).map(nothing),
        Told::Event(event) => instance.on_event(&event).map(nothing),
        Told::Place(place) => instance.on_place(&place).map(nothing),
        Told::Role { role, fence } => {
            instance.on_role(Role::numbered(role, fence).unwrap_or(Role::Active)).map(nothing)
        }
        Told::Restore(state) => instance.restore(&state).map(nothing),
        Told::Snapshot => instance.snapshot(),
        Told::Open(_) | Told::Validate { .. } | Told::Start { .. } | Told::Lease { .. } | Told::Stop => {
            unreachable!("answered without an instance")
        }
    }
}
