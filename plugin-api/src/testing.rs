//! A small DVM in memory, for tests of a plug-in: it crashes, pauses and promotes instances under a seed.
//!
//! ```
//! # use dvm_plugin_api::{Error, Host, Meta, Plugin, Result};
//! # struct Counter(i64);
//! # #[derive(serde::Deserialize)] #[serde(rename_all = "lowercase")] enum Command { Add(i64) }
//! # impl Plugin for Counter {
//! #     type Config = serde_json::Value; type Command = Command; type Reply = i64;
//! #     fn start(_: serde_json::Value, _: Host) -> Result<Self> { Ok(Self(0)) }
//! #     fn apply(&mut self, Command::Add(count): Command, _: &Meta) -> Result<i64> {
//! #         self.0 = self.0.checked_add(count).ok_or_else(|| Error::new("too much"))?; Ok(self.0)
//! #     }
//! #     fn snapshot(&self) -> Vec<u8> { self.0.to_le_bytes().into() }
//! #     fn restore(&mut self, bytes: &[u8]) -> Result<()> { self.0 = i64::from_le_bytes(bytes.try_into()?); Ok(()) }
//! # }
//! use dvm_plugin_api::testing::{Failure, Mode, Testbed, json};
//!
//! # fn main() -> std::result::Result<(), Failure> {
//! let mut dvm = Testbed::of::<Counter>(7).mode(Mode::Hot).start()?;
//! assert_eq!(dvm.call(json!({"add": 3}))?, json!(3));
//! dvm.crash("k0")?;
//! assert_eq!(dvm.call(json!({"add": 1}))?, json!(4));
//! dvm.run(500, [json!({"add": 1}), json!({"add": -2})])?;
//! # Ok(())
//! # }
//! ```
//!
//! The callbacks go through the functions of the [ABI](crate::abi), so values are encoded and decoded and panics caught
//! as in a kernel. What a DVM promises is looked at after each callback:
//! - every instance that was told the history up to an index has the same state, and gave the same replies;
//! - a state that was handed over, with the history since, is the state that the whole history makes;
//! - one instance at a time gets a token, and tokens rise;
//! - what comes to one instance alone changes nothing of the state.
//!
//! Instances have all [services](crate::service) of a host: they call plug-ins that the test gives
//! ([`Testbed::plugin`], [`Testbed::stub`]), send, broadcast, keep and watch keys, set timers on a clock that stands still
//! but for [`Dvm::advance`], and start processes that follow a script of the test ([`Testbed::processes`]).
//!
//! Whatever depends on a clock, on chance, on the order of a hash map or on the member breaks the first of these, and the
//! [`Failure`] names the command at which instances parted. Chance is drawn from the seed alone: the same steps under
//! the same seed do the same again. A [`Worker`](crate::Worker) has its turns in that order, too; a thread that a plug-in
//! starts by itself does not, and what it asks is taken when it comes.
//!
//! What is simpler than in a DVM: an instance that fails is started again at once and however often; there are no
//! deadlines, limits of memory and processor time, and cuts; messages take no time; a plug-in has no answer from itself; a
//! member is lost for good when it crashes. An instance that is paused is behind, and no
//! view leaves it out.

mod asks;
mod chance;
mod desk;
mod dvm;
mod failure;
mod history;
mod instance;
mod placing;
mod process;
mod run;
mod seat;
mod stage;
mod world;

pub use chance::Chance;
pub use dvm::Dvm;
pub use failure::{Breach, Broken, Failure};
pub use process::{Script, Started};
pub use run::{Commands, Report};
#[doc(no_inline)]
pub use serde_json::{Value, json};
pub(crate) use stage::Stage;

use crate::Plugin;
use crate::host::Module;
#[cfg(feature = "host")]
use crate::manifest::Manifest;
use instance::Format;
use process::Scripts;
use std::sync::Arc;
use world::Stub;

/// Most members a DVM in memory has.
pub const MEMBERS_MAX: usize = 64;

/// Who runs the plug-in, and who applies its commands: as `dvm plugin load --mode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// An instance on every member, and every instance applies.
    #[default]
    Parallel,
    /// A primary and standbys; every instance applies.
    Hot,
    /// A primary applies; standbys keep its last snapshot and what came since.
    Warm,
    /// One instance; when it is lost another member starts one from its last snapshot and what came since.
    Single,
}

impl Mode {
    fn has_primary(self) -> bool {
        self != Self::Parallel
    }

    fn all_apply(self) -> bool {
        matches!(self, Self::Parallel | Self::Hot)
    }
}

/// What a DVM in memory begins with. Three members, mode `parallel`, an empty configuration unless said otherwise.
#[derive(Clone)]
pub struct Testbed {
    name: String,
    module: Module,
    format: Format,
    seed: u64,
    members: usize,
    mode: Mode,
    instances: usize,
    config: Value,
    stateless: bool,
    may_panic: bool,
    others: Vec<Testbed>,
    stubs: Vec<(String, Stub)>,
    scripts: Scripts,
}

impl Testbed {
    /// For a plug-in of this program.
    #[must_use]
    pub fn of<P: Plugin>(seed: u64) -> Self {
        Self::new(std::any::type_name::<P>().into(), Module::of::<P>(), Format::Msgpack, seed)
    }

    /// For a loaded library; the manifest is its own.
    #[cfg(feature = "host")]
    #[must_use]
    pub fn library(module: Module, manifest: &Manifest, seed: u64) -> Self {
        let format = match manifest.payload.as_str() {
            "msgpack" => Format::Msgpack,
            "json" => Format::Json,
            _ => Format::Bytes,
        };
        let bed = Self::new(manifest.name.clone(), module, format, seed);
        Self { stateless: !manifest.can("snapshot"), ..bed }
    }

    fn new(name: String, module: Module, format: Format, seed: u64) -> Self {
        let (mode, config) = (Mode::Parallel, json!({}));
        let (members, instances, stateless, may_panic) = (3, 2, false, false);
        let (others, stubs, scripts) = (Vec::new(), Vec::new(), None);
        Self {
            name,
            module,
            format,
            seed,
            members,
            mode,
            instances,
            config,
            stateless,
            may_panic,
            others,
            stubs,
            scripts,
        }
    }

    /// How many members there are at first.
    #[must_use]
    pub fn members(self, members: usize) -> Self {
        Self { members: members.clamp(1, MEMBERS_MAX), ..self }
    }

    /// The mode it is loaded in.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// How many instances there are in modes `hot` and `warm`, the primary included; 2 unless said otherwise.
    #[must_use]
    pub fn instances(self, instances: usize) -> Self {
        Self { instances: instances.max(1), ..self }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// It has no state: instances start fresh, and replies alone are compared.
    #[must_use]
    pub fn stateless(self) -> Self {
        Self { stateless: true, ..self }
    }

    /// [`Dvm::run`] goes on after a panic. A panic ends the instance in either case.
    #[must_use]
    pub fn may_panic(self) -> Self {
        Self { may_panic: true, ..self }
    }

    /// Under which name it is loaded; that of its type unless said otherwise.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Another plug-in on the same members, which instances may call by its name. It loses its members with this one; what
    /// else becomes of it is for [`Dvm::plugin`].
    #[must_use]
    pub fn plugin(mut self, other: Self) -> Self {
        self.others.push(other);
        self
    }

    /// A stub in the place of another plug-in: it answers calls and queries, with a reply or an error of its own.
    #[must_use]
    pub fn stub(
        mut self,
        name: &str,
        answer: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.stubs.push((name.into(), Arc::new(answer)));
        self
    }

    /// What processes do that instances spawn. Without it, each ends with the error that it cannot be run.
    #[must_use]
    pub fn processes(self, script: impl Fn(&Started) -> Script + Send + Sync + 'static) -> Self {
        Self { scripts: Some(Arc::new(script)), ..self }
    }

    /// Validates the configuration at every member, and starts the instances.
    ///
    /// # Errors
    /// [`Failure::Own`] with the plug-in's reason against it.
    pub fn start(self) -> Result<Dvm, Failure> {
        Dvm::start(self)
    }
}

#[cfg(test)]
mod tests;
