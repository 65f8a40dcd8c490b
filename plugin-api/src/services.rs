//! The services of a [`Host`] that have an answer: each method is one [`Ask`], and all go one way.
//!
//! None may be asked in `validate`, `apply`, `query`, `snapshot` or `restore`. In `start` only those that nobody else
//! notices: `get`, `query`, `watch`, `timer`. Any other callback and any thread of the plug-in's own may ask all. A
//! callback is given an answer, or the error that there is none, before its own deadline is over.

use crate::plugin::{Error, Host, Result};
use crate::service::{Ask, Undone};
use abi_stable::std_types::RSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What [`Host::in_memory`] says.
const NO_SERVICES: &str =
    "a host in memory has no services: run the plug-in in a `testing::Dvm`, or in a DVM of processes";

/// What [`Host::spawn`] starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Set beside what the member's kernel has in its environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts; `/` if not said.
    pub cwd: Option<String>,
}

impl Program {
    /// A program with its arguments.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Started in a directory.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }
}

impl Host {
    /// An ordered command to another plug-in; its reply. The command takes effect once; after an error that says so, it may
    /// or may not have.
    ///
    /// # Errors
    /// The other plug-in's own; or why there is no reply. A callback that calls its own plug-in would wait for itself and is
    /// refused at once.
    pub fn call<R: DeserializeOwned>(
        &self,
        plugin: &str,
        command: &impl Serialize,
        timeout: Duration,
    ) -> Result<R> {
        self.called(plugin, command, false, timeout)
    }

    /// A question to an instance of another plug-in that changes nothing.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn query<R: DeserializeOwned>(
        &self,
        plugin: &str,
        command: &impl Serialize,
        timeout: Duration,
    ) -> Result<R> {
        self.called(plugin, command, true, timeout)
    }

    fn called<R: DeserializeOwned>(
        &self,
        plugin: &str,
        command: &impl Serialize,
        query: bool,
        timeout: Duration,
    ) -> Result<R> {
        let (plugin, command, timeout_ms) = (plugin.into(), json(command)?, Some(milliseconds(timeout)));
        self.ask(&Ask::Call { plugin, command, query, timeout_ms })
    }

    /// An ordered command to all instances of this plug-in, this one among them: each gets it by `apply`, in the order that
    /// all have. Nobody waits for its reply. Returns its index, once it has one.
    ///
    /// # Errors
    /// Why it has no place in the history; where the error says that it may have, look before you repeat it.
    pub fn broadcast(&self, command: &impl Serialize) -> Result<u64> {
        let sent: Value = self.ask(&Ask::Broadcast { command: json(command)? })?;
        Ok(sent["index"].as_u64().unwrap_or_default())
    }

    /// A message to this plug-in's instance on a member. It comes there as an event `message` with `from` and `body`, at
    /// most once, and is in no history: an instance that is started again does not see it again.
    ///
    /// # Errors
    /// There is no such member, no instance that runs, or too much waits for it. After a lost connection it may have come.
    pub fn send(&self, member: &str, body: &impl Serialize) -> Result<()> {
        self.ask(&Ask::Send { member: member.into(), body: json(body)? })
    }

    /// A key's value and version, as this member has it.
    ///
    /// # Errors
    /// The value is no `R`, or the kernel does not answer.
    pub fn get<R: DeserializeOwned>(&self, key: &str) -> Result<Option<(R, u64)>> {
        let found: Option<Found<R>> = self.ask(&Ask::Get { key: key.into() })?;
        Ok(found.map(|found| (found.value, found.version)))
    }

    /// Sets a key; its version then. Keys that begin with `dvm/` are the DVM's own.
    ///
    /// # Errors
    /// Why it is not set.
    pub fn put(&self, key: &str, value: &impl Serialize) -> Result<u64> {
        let version = self.put_at(key, value, None)?;
        version.ok_or_else(|| Error::new("the key was not set"))
    }

    /// Sets a key if it has this version (0: if there is none); its version then, `None` if it has another.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_if(&self, key: &str, value: &impl Serialize, version: u64) -> Result<Option<u64>> {
        self.put_at(key, value, Some(version))
    }

    fn put_at(&self, key: &str, value: &impl Serialize, version: Option<u64>) -> Result<Option<u64>> {
        let put: Value = self.ask(&Ask::Put { key: key.into(), value: json(value)?, version })?;
        Ok(put["version"].as_u64())
    }

    /// Deletes a key, if it is there.
    ///
    /// # Errors
    /// Why it could not be.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ask(&Ask::Delete { key: key.into() })
    }

    /// From now on an event `key-changed` comes for each change of a key that begins with `prefix`, with `key` and
    /// `version`. Watch first, then [`get`](Self::get): so nothing is missed. If an instance does not keep up, one event
    /// `overflow` stands for what was left out.
    ///
    /// # Errors
    /// There are too many watches.
    pub fn watch(&self, prefix: &str) -> Result<()> {
        self.ask(&Ask::Watch { prefix: prefix.into() })
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn unwatch(&self, prefix: &str) -> Result<()> {
        self.ask(&Ask::Unwatch { prefix: prefix.into() })
    }

    /// An event `timer` with this `name`, once, or again and again; it takes the place of the timer of that name. A tick
    /// that finds the instance busy beyond bounds is left out.
    ///
    /// # Errors
    /// There are too many timers.
    pub fn timer(&self, name: &str, after: Duration, every: Option<Duration>) -> Result<()> {
        let (after_ms, every_ms) = (milliseconds(after), every.map(milliseconds));
        self.ask(&Ask::Timer { name: name.into(), after_ms, every_ms })
    }

    /// Ends a timer. A tick that waits already still comes.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn cancel_timer(&self, name: &str) -> Result<()> {
        self.ask(&Ask::CancelTimer { name: name.into() })
    }

    /// Starts a process under a member's kernel, or, if this plug-in has started one there under this `key` before, follows
    /// that one, whether it runs or has ended: so a new primary repeats what it believes runs, and nothing runs twice.
    ///
    /// Returns at once. Then come the events `process-started`, any number of `process-output`, and one `process-exit`,
    /// unless the member is lost, which its own event tells. The process has a group of its own, nothing on its standard
    /// input, and none of the kernel's descriptors. It ends with its kernel, with its member's being left out, and when the
    /// plug-in is unloaded.
    ///
    /// # Errors
    /// There is no such member, no program is named, or too many processes are followed.
    pub fn spawn(&self, member: &str, key: &str, program: &Program) -> Result<()> {
        let Program { argv, env, cwd } = program.clone();
        self.ask(&Ask::Spawn { member: member.into(), key: key.into(), argv, env, cwd })
    }

    /// Ends a process and all in its group: SIGTERM, and SIGKILL two seconds later. Returns at once; `process-exit` tells
    /// when it is over. One that does not run is left as it is.
    ///
    /// # Errors
    /// There is no such member.
    pub fn kill(&self, member: &str, key: &str) -> Result<()> {
        self.ask(&Ask::Kill { member: member.into(), key: key.into() })
    }

    /// The effects of all commands up to the one at `index` are done, and no later primary is to do them again. Returns at
    /// once; marks go into the history several at a time.
    ///
    /// # Errors
    /// This instance is not the primary.
    pub fn done(&self, index: u64) -> Result<()> {
        self.ask(&Ask::Done { index })
    }

    /// The commands that were delivered before this instance became the primary and whose effects nobody has marked as
    /// [`done`](Self::done): to be asked when told to be the primary.
    ///
    /// # Errors
    /// This instance is not the primary.
    pub fn undone(&self) -> Result<Undone> {
        self.ask(&Ask::Undone)
    }

    /// The one way of all services.
    pub(crate) fn ask<R: DeserializeOwned>(&self, ask: &Ask) -> Result<R> {
        let calls = self.calls.as_ref().ok_or_else(|| Error::new(NO_SERVICES))?;
        let Some(function) = calls.ask() else {
            return Err(Error::new("this kernel is older than host services; update it"));
        };
        let request = rmp_serde::to_vec_named(ask)?;
        let (status, bytes) =
            crate::abi::collect(|out| function(calls.ctx(), RSlice::from_slice(&request), out));
        if status != crate::abi::status::OK {
            return Err(Error::new(String::from_utf8_lossy(&bytes)));
        }
        let answer: Value = rmp_serde::from_slice(&bytes)?;
        serde_json::from_value(answer)
            .map_err(|error| Error::new(format!("the answer is not what was expected: {error}")))
    }
}

#[derive(serde::Deserialize)]
struct Found<R> {
    value: R,
    version: u64,
}

fn json(value: &impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(value)?)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
