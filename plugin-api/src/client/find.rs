//! Which DVM is meant: one that is named, or the only one that the user has on this host.

use super::Target;
use crate::local::{Failure, FailureCode};
use crate::place::{DvmPlace, PlaceError, RuntimeDir, check_name};

impl Target {
    /// The DVM of a URI as `dvm --dvm` takes it: a name, or `unix:PATH` with the path of its directory or of a member's
    /// socket, which is preferred then. Without one `$DVM_URI`, else the user's only DVM on this host.
    ///
    /// # Errors
    /// `Usage` for what is no URI, and where several are meant; `NoDvm` where none is; `Denied` for directories that
    /// are not the user's alone.
    pub fn find(uri: Option<&str>, client: impl Into<String>) -> Result<Self, Failure> {
        let environment = std::env::var("DVM_URI").ok();
        // An empty text is one that is not given.
        let uri = uri.filter(|uri| !uri.is_empty()).or(environment.as_deref()).filter(|uri| !uri.is_empty());
        let (place, prefer) = match uri {
            Some(uri) => named(uri)?,
            None => (only()?, None),
        };
        Ok(Self { prefer, ..Self::new(place, client) })
    }

    /// The URI that means this DVM, and prefers the same member, from any directory and whatever other DVMs there are.
    #[must_use]
    pub fn uri(&self) -> String {
        let socket = self.prefer.as_ref().map(|member| format!("/{member}.sock"));
        format!("{}{}", self.place.uri(), socket.unwrap_or_default())
    }
}

fn named(uri: &str) -> Result<(DvmPlace, Option<String>), Failure> {
    if uri.starts_with("ssh://") {
        let message = "reaching a DVM through ssh is not available in this version";
        return Err(Failure::new(FailureCode::Failure, message).hint("run it on a host of the DVM"));
    }
    if let Some(path) = uri.strip_prefix("unix:") {
        return Ok(DvmPlace::at(path.as_ref())?);
    }
    // A runtime directory that does not exist holds no DVM, and is not created by asking for one.
    match RuntimeDir::open()? {
        Some(runtime) => Ok(DvmPlace::from_uri(uri, &runtime)?),
        None if uri.contains([':', '/']) => Err(PlaceError::Uri { uri: uri.into() }.into()),
        None => {
            check_name(uri)?;
            Ok(DvmPlace::at(&RuntimeDir::default_path().join(uri))?)
        }
    }
}

fn only() -> Result<DvmPlace, Failure> {
    let none = || {
        Failure::new(FailureCode::NoDvm, "you have no DVM on this host")
            .cause(format!("none lives in {}", RuntimeDir::default_path().display()))
            .hint("start one with `dvm up`, or name another with --dvm or DVM_URI")
    };
    let runtime = RuntimeDir::open()?.ok_or_else(none)?;
    let mut live: Vec<_> = runtime.dvms()?.into_iter().filter(DvmPlace::is_live).collect();
    match live.len() {
        0 => Err(none()),
        1 => Ok(live.remove(0)),
        _ => {
            let names: Vec<_> = live.iter().map(DvmPlace::name).collect();
            Err(Failure::new(FailureCode::Usage, "you have several DVMs on this host")
                .cause(names.join(", "))
                .hint(format!("name one: --dvm {}, or export DVM_URI", names[0])))
        }
    }
}
