//! What a plug-in author writes: the [`Plugin`] trait and the values its callbacks are given.
//!
//! How the callbacks travel between a plug-in and its host is the matter of [`abi`](crate::abi) and
//! [`export`](crate::export).

use crate::abi::{HostCallsRef, level, role};
use abi_stable::std_types::RSlice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// What a plug-in without queries says to one.
pub(crate) const NO_QUERIES: &str = "this plug-in answers no queries; send an ordered command";

/// What a callback returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a callback failed, in words for people.
///
/// It is made from any [`std::error::Error`] by `?`, and from text by [`Error::new`].
#[derive(Clone, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// A plug-in: a state machine that its instances on all members run in step.
///
/// All callbacks of an instance come from one thread at a time, in this order: `validate`, `start`, then, where state
/// is handed over, `restore`, then any of the others, last `stop`. Each has the deadline the plug-in was loaded with
/// (`start` and `validate` that of the load); an instance that exceeds it is killed, and one that panics is ended.
/// Every instance sees the same commands and events in the same order.
pub trait Plugin: Sized + Send + 'static {
    /// The configuration, as `-c KEY=VALUE` and `--config` give it.
    type Config: DeserializeOwned;
    /// What it is asked.
    type Command: DeserializeOwned;
    /// What it answers.
    type Reply: Serialize;

    /// Whether this configuration would do on this member. Called for a load before `start`, and for a `configure` at
    /// every running instance; what it says is this member's vote.
    ///
    /// # Errors
    /// Why not; the transaction is then rejected, or this member has no instance, as its rule says.
    fn validate(config: &Self::Config, host: &Host) -> Result<()> {
        let _ = (config, host);
        Ok(())
    }

    /// An instance with this configuration.
    ///
    /// # Errors
    /// Why there is none; as in [`validate`](Self::validate).
    fn start(config: Self::Config, host: Host) -> Result<Self>;

    /// An ordered command. It must depend on nothing but the state, the command and `meta`: every instance applies it,
    /// and all must come to the same state. Effects on the outside carry `(meta.fence, meta.index)`.
    ///
    /// # Errors
    /// Told to whoever sent the command. The instance lives on, with the state it has then.
    fn apply(&mut self, command: Self::Command, meta: &Meta) -> Result<Self::Reply>;

    /// A command that changes nothing, at this instance alone. By default there is none.
    ///
    /// # Errors
    /// Told to whoever asked.
    fn query(&self, command: Self::Command) -> Result<Self::Reply> {
        let _ = command;
        Err(Error::new(NO_QUERIES))
    }

    /// A new configuration, which every member has validated. By default it counts from the next start.
    ///
    /// # Errors
    /// The instance is then ended as failed, and started again with the new configuration.
    fn configure(&mut self, config: Self::Config) -> Result<()> {
        let _ = config;
        Ok(())
    }

    /// Something happened in the DVM.
    fn on_event(&mut self, event: &Event) {
        let _ = event;
    }

    /// The instance's role changed.
    fn on_role(&mut self, role: Role) {
        let _ = role;
    }

    /// The state as bytes, from which [`restore`](Self::restore) makes it again. By default there are none: such a
    /// plug-in is exported with `export_plugin!(Name, stateless)`.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over the state of another instance, right after `start`.
    ///
    /// # Errors
    /// Why it cannot; the instance is then ended as failed.
    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let _ = snapshot;
        Ok(())
    }

    /// The plug-in is unloaded; the process ends next. An instance whose kernel leaves or fails is not told. Inside a
    /// kernel, where no process ends, every instance is told that ends without a panic.
    fn stop(&mut self) {}
}

/// Where a command stands in the history; the same at every instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Meta {
    /// Its index. Grows with every command.
    pub index: u64,
    /// The primary's fencing token; 0 where no instance is a primary.
    #[serde(default)]
    pub fence: u64,
    /// The proposer's wall clock, milliseconds since 1970. The same everywhere; it may step.
    #[serde(default)]
    pub time: u64,
    /// A number drawn for this command: seed a generator with it where chance is wanted.
    #[serde(default)]
    pub seed: u64,
    /// The client's session, where it has one: within it the command takes effect once.
    #[serde(default)]
    pub session: Option<String>,
}

impl Meta {
    /// The place of a command at `index`, everything else unset.
    #[must_use]
    pub fn at(index: u64) -> Self {
        Self { index, ..Self::default() }
    }
}

/// Something that happened in the DVM; `docs/events.md` lists the kinds and their fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Its place in the history.
    pub index: u64,
    /// What, such as `member-failed`.
    pub kind: String,
    /// The fields of its kind.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

impl Event {
    /// An event.
    #[must_use]
    pub fn new(index: u64, kind: impl Into<String>, fields: Map<String, Value>) -> Self {
        Self { index, kind: kind.into(), fields }
    }
}

/// What an instance is among its plug-in's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// One of equals: every instance applies and answers.
    Active,
    /// The one that answers and acts on the outside.
    Primary {
        /// Its token; a resource refuses work under a lower one.
        fence: u64,
    },
    /// Ready to become the primary.
    Standby,
}

impl Role {
    /// The role that the ABI gives this number; none if it gives it to none.
    #[doc(hidden)]
    #[must_use]
    pub fn numbered(number: u32, fence: u64) -> Option<Self> {
        match number {
            role::ACTIVE => Some(Self::Active),
            role::PRIMARY => Some(Self::Primary { fence }),
            role::STANDBY => Some(Self::Standby),
            _ => None,
        }
    }
}

/// Where an instance runs, as its host tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name of the member.
    pub member: String,
    /// The member's rank, 0 the oldest.
    pub rank: u16,
    /// Names of all members, by rank.
    pub peers: Vec<String>,
}

/// The host of an instance: where it runs, and services for it. Cheap to clone; follows view changes.
///
/// What is here may be asked at any time, by any thread. The services that have an answer
/// ([`call`](Self::call) and what follows it) say when they may be asked, and `docs/host-services.md` has them in a table.
#[derive(Clone)]
pub struct Host {
    place: Arc<RwLock<Place>>,
    pub(crate) calls: Option<HostCallsRef>,
}

impl Host {
    /// A host in memory, for tests of a plug-in: what the instance logs goes to standard error.
    #[must_use]
    pub fn in_memory(place: Place) -> Self {
        Self { place: Arc::new(RwLock::new(place)), calls: None }
    }

    pub(crate) fn new(place: Place, calls: HostCallsRef) -> Self {
        Self { place: Arc::new(RwLock::new(place)), calls: Some(calls) }
    }

    pub(crate) fn moved(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }

    fn place<T>(&self, read: impl FnOnce(&Place) -> T) -> T {
        read(&self.place.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Name of the member.
    #[must_use]
    pub fn member(&self) -> String {
        self.place(|place| place.member.clone())
    }

    /// The member's rank, 0 the oldest.
    #[must_use]
    pub fn rank(&self) -> u16 {
        self.place(|place| place.rank)
    }

    /// How many members there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.place(|place| place.peers.len())
    }

    /// Names of all members, by rank.
    #[must_use]
    pub fn peers(&self) -> Vec<String> {
        self.place(|place| place.peers.clone())
    }

    /// The fencing token, while this instance is the primary and may act on the world: its promotion stands and its
    /// lease runs. Ask right before each effect, and let the effect carry the token: between this answer and the effect
    /// the process may be stopped, and then only a resource that refuses lower tokens protects itself.
    #[must_use]
    pub fn token(&self) -> Option<u64> {
        let calls = self.calls.as_ref()?;
        Some(calls.token()(calls.ctx())).filter(|token| *token > 0)
    }

    /// Writes a line to the kernel's log, with the plug-in's and the member's name. Standard output and error get
    /// there too.
    pub fn log(&self, text: impl fmt::Display) {
        let text = text.to_string();
        match &self.calls {
            Some(calls) => calls.log()(calls.ctx(), level::INFO, RSlice::from_slice(text.as_bytes())),
            None => eprintln!("{text}"),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place(|place| place.fmt(f))
    }
}
