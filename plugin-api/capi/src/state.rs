//! Keys, settings, status: what a handle asks beside commands to plug-ins, and the texts that C is given.

use crate::handle::Dvm;
use crate::trouble::{Trouble, c_text};
use dvm_plugin_api::local::{Answer, Condition, Failure, FailureCode, KeyDoc, Operation, Request};
use serde_json::{Map, Value, json};
use std::ffi::CString;
use std::time::{Duration, Instant};

/// `DVM_ANY`: whatever version the key has.
const ANY: u64 = u64::MAX;

/// `DVM_ABSENT`: the key does not exist.
const ABSENT: u64 = 0;

impl Dvm {
    /// A key's value and version.
    pub(crate) fn get(
        &self,
        key: &str,
        fresh: bool,
        timeout: Option<Duration>,
    ) -> Result<(CString, u64), Trouble> {
        match self.ask(Request::StateGet { key: key.into(), fresh }, timeout)? {
            Answer::Key(found) => Ok((c_text(&found.value.to_string()), found.version)),
            _ => Err(Trouble::unexpected()),
        }
    }

    /// Sets a key; its version.
    pub(crate) fn put(
        &self,
        key: &str,
        json: &str,
        if_version: u64,
        timeout: Option<Duration>,
    ) -> Result<u64, Trouble> {
        let value = serde_json::from_str(json).map_err(|error| {
            Failure::new(FailureCode::Usage, format!("the value of `{key}` is not JSON"))
                .cause(error.to_string())
                .hint("a string is JSON with its quotes: \"\\\"text\\\"\"")
        })?;
        let version = self.change(key, if_version, Operation::Put { key: key.into(), value }, timeout)?;
        version.ok_or_else(Trouble::unexpected)
    }

    /// Deletes a key, if it is there.
    pub(crate) fn delete(
        &self,
        key: &str,
        if_version: u64,
        timeout: Option<Duration>,
    ) -> Result<(), Trouble> {
        self.change(key, if_version, Operation::Delete { key: key.into() }, timeout).map(drop)
    }

    fn change(
        &self,
        key: &str,
        if_version: u64,
        operation: Operation,
        timeout: Option<Duration>,
    ) -> Result<Option<u64>, Trouble> {
        let condition = match if_version {
            ANY => None,
            ABSENT => Some(Condition::Absent),
            version => Some(Condition::Version(version)),
        };
        let conditions = condition.map(|condition| (key.to_owned(), condition)).into_iter().collect();
        let request = Request::StateTransaction { conditions, then: vec![operation], otherwise: Vec::new() };
        match self.ask(request, timeout)? {
            Answer::Done { version, .. } => Ok(version),
            _ => Err(Trouble::unexpected()),
        }
    }

    /// Keys that begin with `prefix`, as `dvm state list --json` has its entries.
    pub(crate) fn list(&self, prefix: &str, timeout: Option<Duration>) -> Result<CString, Trouble> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut keys: Vec<KeyDoc> = Vec::new();
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let after = keys.last().map(|last| last.key.clone());
            match self.ask(Request::StateList { prefix: prefix.into(), after }, left)? {
                Answer::Keys(more) if more.is_empty() => break,
                Answer::Keys(more) => keys.extend(more),
                _ => return Err(Trouble::unexpected()),
            }
        }
        let entry =
            |KeyDoc { key, value, version, .. }| json!({"key": key, "value": value, "version": version});
        Ok(c_text(&Value::Array(keys.into_iter().map(entry).collect()).to_string()))
    }

    /// The status, as `dvm status --json` prints it.
    pub(crate) fn status(&self, timeout: Option<Duration>) -> Result<CString, Trouble> {
        let Answer::Status(status) = self.ask(Request::Status, timeout)? else {
            return Err(Trouble::unexpected());
        };
        let mut text = serde_json::to_value(status).expect("a status is plain data");
        text["schema"] = 1.into();
        Ok(c_text(&text.to_string()))
    }

    /// All settings, as `dvm config get --json` has them.
    pub(crate) fn config(&self, timeout: Option<Duration>) -> Result<CString, Trouble> {
        let Answer::Settings(all) = self.ask(Request::Settings, timeout)? else {
            return Err(Trouble::unexpected());
        };
        let typed = |text: String| match serde_json::from_str(&text) {
            Ok(found @ (Value::Number(_) | Value::Bool(_))) => found,
            _ => Value::String(text),
        };
        let all: Map<String, Value> = all.into_iter().map(|(key, value)| (key, typed(value))).collect();
        Ok(c_text(&Value::Object(all).to_string()))
    }

    /// Changes a setting, or a tag of a member.
    pub(crate) fn config_set(
        &self,
        member: Option<&str>,
        key: &str,
        value: &str,
        timeout: Option<Duration>,
    ) -> Result<(), Trouble> {
        let changes = vec![(key.to_owned(), value.to_owned())];
        match self.ask(Request::Configure { changes, member: member.map(str::to_owned) }, timeout)? {
            Answer::Done { .. } => Ok(()),
            _ => Err(Trouble::unexpected()),
        }
    }
}
