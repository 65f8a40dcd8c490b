//! A kernel's files on its host: its socket, its process file, its log.

use super::Failed;
use crate::log;
use dvm_plugin_api::local::{Bootstrap, BootstrapRole};
use dvm_plugin_api::place::{self, DvmPlace, PlaceError, RuntimeDir};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The files; they are removed with the value.
pub(super) struct Places {
    pub(super) place: DvmPlace,
    pub(super) logs: PathBuf,
    pub(super) log: PathBuf,
    pub(super) socket_path: PathBuf,
    member: String,
    /// Keep cleaners of temporary files away.
    _held: Vec<File>,
}

impl Places {
    /// Takes the member's name on this host. Its log is open from here on.
    pub(super) fn take(bootstrap: &Bootstrap) -> Result<(Self, UnixListener), Failed> {
        let Bootstrap { dvm, member, role, .. } = bootstrap;
        place::check_name(member)?;
        rustix::process::umask(rustix::fs::Mode::from_bits_retain(0o077));
        let runtime = match &bootstrap.runtime_dir {
            Some(path) => RuntimeDir::create_at(path)?,
            None => RuntimeDir::create()?,
        };
        let place = runtime.dvm(dvm)?;
        let socket_path = place.socket(member)?;
        place.create()?;
        let _held = vec![place::hold(runtime.path())?, place::hold(place.directory())?];
        let logs = bootstrap.log_dir.clone().unwrap_or_else(|| place::log_dir(dvm));
        place::log_dir_ready(&logs)?;
        let log = place::log_file(&logs, member);
        let hint = || format!("look at {}", log.display());
        log::start(&log, member).map_err(|error| Failed::new("start", format!("no log: {error}"), hint()))?;
        if matches!(role, BootstrapRole::Found { .. }) && place.is_live() {
            let reason = format!("a DVM `{dvm}` lives on this host");
            return Err(Failed::new("start", reason, "give another --name, or end it with `dvm halt`"));
        }
        if place.accepts(member) {
            let reason = format!("a kernel of {member} in DVM `{dvm}` lives on this host");
            return Err(Failed::new("start", reason, "give the member another name"));
        }
        let failed = |what: &str, path: &Path, error: io::Error| {
            Failed::new("start", format!("cannot {what} {}: {error}", path.display()), hint())
        };
        remove(&socket_path).map_err(|error| failed("remove", &socket_path, error))?;
        let socket = UnixListener::bind(&socket_path)
            .and_then(|socket| {
                fs::set_permissions(&socket_path, fs::Permissions::from_mode(0o600))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .map_err(|error| failed("listen at", &socket_path, error))?;
        let places = Self { place, logs, log: log.clone(), socket_path, member: member.clone(), _held };
        let pid_path = places.place.pid_file(member);
        write_pid(&pid_path).map_err(|error| failed("write", &pid_path, error))?;
        Ok((places, socket))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // The socket last: when it is gone, so is the kernel.
        let _ = fs::remove_file(self.place.pid_file(&self.member));
        let _ = fs::remove_file(&self.socket_path);
        // One that holds another kernel's files is kept.
        let _ = fs::remove_dir(self.place.directory());
    }
}

impl From<PlaceError> for Failed {
    fn from(error: PlaceError) -> Self {
        let hint = match &error {
            PlaceError::Io { error, .. } if error.raw_os_error() == Some(28) => "make room there",
            PlaceError::Name { .. } => "give another name",
            _ => "set DVM_RUNTIME_DIR to a directory that only you may enter",
        };
        Self::new("start", &error, hint)
    }
}

fn write_pid(path: &Path) -> io::Result<()> {
    use std::io::Write;
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    writeln!(file, "{}", std::process::id())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
