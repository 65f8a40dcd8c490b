//! Where the DVMs of one user are found on a host: runtime directory, sockets, process files, logs.
//!
//! ```text
//! $DVM_RUNTIME_DIR, else /tmp/dvm-$UID     0700, ours, no symlink
//!   NAME/                                  a DVM
//!     MEMBER.sock                          its kernel answers local clients here
//!     MEMBER.pid                           the kernel's process
//! $DVM_LOG_DIR, else /var/tmp/dvm-$UID/NAME
//!   MEMBER.log                             readable when no kernel lives
//! ```
//! `XDG_RUNTIME_DIR` and `TMPDIR` are left alone on purpose: the first is removed at the last logout, under a live
//! kernel, and the second differs between a shell, ssh, cron and srun. Nothing here is keyed by a host's name.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, bytes: `sun_path` has 108, the last is a zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// Longest name of a DVM or a member, bytes.
pub const NAME_MAX: usize = 63;

/// Why a place cannot be used. Nothing was changed, except where a variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// Not a name of a DVM or a member.
    #[error(
        "`{name}` is not a name: it begins with a letter and has at most {NAME_MAX} of letters, digits, `-`, `_`, `.`"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Not a form of URI.
    #[error(
        "`{uri}` is neither the name of a DVM nor `unix:PATH` with the path of a DVM's directory or socket"
    )]
    Uri {
        /// What was given.
        uri: String,
    },
    /// Someone may have planted it.
    #[error("{} is a symbolic link; give the directory itself", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What it is about.
        path: PathBuf,
    },
    /// Its owner could read and answer in our place.
    #[error("{} belongs to user {owner}, not to user {ours}", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Us.
        ours: u32,
    },
    /// Others may enter it.
    #[error("{} is open to others (mode {mode:04o}); run: chmod 700 {}", path.display(), path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel of the operating system would refuse the socket.
    #[error("the socket's path {} has {length} bytes, at most {SOCKET_PATH_MAX} are possible; set DVM_RUNTIME_DIR to a shorter directory", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The operating system refused.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// At what.
        path: PathBuf,
        /// Its answer.
        #[source]
        error: io::Error,
    },
}

/// Whether `name` may name a DVM or a member.
///
/// # Errors
/// [`PlaceError::Name`].
pub fn check_name(name: &str) -> Result<(), PlaceError> {
    let good = name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if good { Ok(()) } else { Err(PlaceError::Name { name: name.into() }) }
}

/// Creates a directory that only we may enter, or checks one that is there.
///
/// # Errors
/// [`PlaceError`], each variant for one thing that would let others in.
pub fn private_dir(path: &Path) -> Result<(), PlaceError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(PlaceError::Io { what: "create", path: path.into(), error }),
    }
    check_private(path)
}

/// Checks that only we may enter a directory.
///
/// # Errors
/// As [`private_dir`].
pub fn check_private(path: &Path) -> Result<(), PlaceError> {
    let path_buf = || path.to_path_buf();
    let found = fs::symlink_metadata(path).map_err(|error| PlaceError::Io {
        what: "read",
        path: path_buf(),
        error,
    })?;
    if found.file_type().is_symlink() {
        return Err(PlaceError::Symlink { path: path_buf() });
    }
    if !found.is_dir() {
        return Err(PlaceError::NotADirectory { path: path_buf() });
    }
    let ours = user();
    if found.uid() != ours {
        return Err(PlaceError::NotOurs { path: path_buf(), owner: found.uid(), ours });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PlaceError::Open { path: path_buf(), mode });
    }
    Ok(())
}

/// Creates a directory for logs and what leads to it. What it creates is 0700; one that is there needs only be ours.
///
/// # Errors
/// [`PlaceError`]; leading directories may have been created.
pub fn log_dir_ready(path: &Path) -> Result<(), PlaceError> {
    if let Some(parent) = path.parent().filter(|parent| *parent == default_log_root()) {
        private_dir(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| PlaceError::Io {
        what: "create",
        path: path.into(),
        error,
    })?;
    let found =
        fs::metadata(path).map_err(|error| PlaceError::Io { what: "read", path: path.into(), error })?;
    if found.uid() == user() {
        Ok(())
    } else {
        Err(PlaceError::NotOurs { path: path.into(), owner: found.uid(), ours: user() })
    }
}

/// The directory of a DVM's logs: `$DVM_LOG_DIR`, else `/var/tmp/dvm-$UID/NAME`. It need not exist.
#[must_use]
pub fn log_dir(dvm: &str) -> PathBuf {
    given_log_dir().unwrap_or_else(|| default_log_root().join(dvm))
}

/// The DVMs whose logs are on this host, living or not, with the directory of each. None where `$DVM_LOG_DIR` puts all
/// logs in one directory: whose they are is not told there.
#[must_use]
pub fn logged() -> BTreeMap<String, PathBuf> {
    if given_log_dir().is_some() {
        return BTreeMap::new();
    }
    let entries = fs::read_dir(default_log_root()).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.path().is_dir());
    let named = directories.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    named.filter(|(name, _)| check_name(name).is_ok()).collect()
}

/// A member's log file in a log directory.
#[must_use]
pub fn log_file(log_dir: &Path, member: &str) -> PathBuf {
    log_dir.join(format!("{member}.log"))
}

fn given_log_dir() -> Option<PathBuf> {
    environment("DVM_LOG_DIR").map(|given| std::path::absolute(&given).unwrap_or(given))
}

/// Where logs go unless `$DVM_LOG_DIR` says otherwise; one directory below it for each DVM.
fn default_log_root() -> PathBuf {
    PathBuf::from(format!("/var/tmp/dvm-{}", user()))
}

/// The user's number.
#[must_use]
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A runtime directory that is ours alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
}

impl RuntimeDir {
    /// Its path: `$DVM_RUNTIME_DIR`, else `/tmp/dvm-$UID`.
    #[must_use]
    pub fn default_path() -> PathBuf {
        environment("DVM_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from(format!("/tmp/dvm-{}", user())))
    }

    /// The user's, created if it is missing.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn create() -> Result<Self, PlaceError> {
        Self::create_at(&Self::default_path())
    }

    /// One at this path, created if it is missing; its parent must exist.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn create_at(path: &Path) -> Result<Self, PlaceError> {
        let path = absolute(path)?;
        private_dir(&path)?;
        Ok(Self { path })
    }

    /// The user's if it exists.
    ///
    /// # Errors
    /// [`PlaceError`] if it exists and is not ours alone.
    pub fn open() -> Result<Option<Self>, PlaceError> {
        let path = absolute(&Self::default_path())?;
        match check_private(&path) {
            Ok(()) => Ok(Some(Self { path })),
            Err(PlaceError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A DVM's place in it; it need not exist.
    ///
    /// # Errors
    /// [`PlaceError::Name`].
    pub fn dvm(&self, name: &str) -> Result<DvmPlace, PlaceError> {
        check_name(name)?;
        Ok(DvmPlace { directory: self.path.join(name) })
    }

    /// The DVMs that have a directory here, live or dead, by name.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn dvms(&self) -> Result<Vec<DvmPlace>, PlaceError> {
        let mut found: Vec<_> = names_in(&self.path)?
            .into_iter()
            .filter(|name| check_name(name).is_ok())
            .map(|name| DvmPlace { directory: self.path.join(name) })
            .filter(|place| place.directory.is_dir())
            .collect();
        found.sort_by(|a, b| a.directory.cmp(&b.directory));
        Ok(found)
    }

    /// Waits for, and holds, the lock under which a name is taken. It ends with the value.
    ///
    /// # Errors
    /// [`PlaceError::Io`].
    pub fn lock(&self) -> Result<File, PlaceError> {
        let path = self.path.join(".lock");
        let failed = |error: io::Error| PlaceError::Io { what: "lock", path: path.clone(), error };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(file)
    }
}

/// Holds a shared lock on a directory, which keeps the cleaners of `/tmp` from it. It ends with the value.
///
/// # Errors
/// [`PlaceError::Io`].
pub fn hold(directory: &Path) -> Result<File, PlaceError> {
    let failed = |error: io::Error| PlaceError::Io { what: "lock", path: directory.into(), error };
    let file = File::open(directory).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockShared).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// The directory of one DVM on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DvmPlace {
    directory: PathBuf,
}

impl DvmPlace {
    /// From a path of a DVM's directory or of a member's socket; the member's name in the second case.
    ///
    /// # Errors
    /// [`PlaceError`] if the directory exists and is not ours alone.
    pub fn at(path: &Path) -> Result<(Self, Option<String>), PlaceError> {
        let path = absolute(path)?;
        let member =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".sock"));
        let (directory, member) = match (member, path.parent()) {
            (Some(member), Some(parent)) if !path.is_dir() => (parent.to_path_buf(), Some(member.to_owned())),
            _ => (path, None),
        };
        match check_private(&directory) {
            Ok(()) => {}
            Err(PlaceError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok((Self { directory }, member))
    }

    /// From what `--dvm` and `$DVM_URI` take: a name in `runtime`, or `unix:PATH`.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn from_uri(uri: &str, runtime: &RuntimeDir) -> Result<(Self, Option<String>), PlaceError> {
        if let Some(path) = uri.strip_prefix("unix:") {
            return Self::at(Path::new(path));
        }
        if uri.contains([':', '/']) {
            return Err(PlaceError::Uri { uri: uri.into() });
        }
        Ok((runtime.dvm(uri)?, None))
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The DVM's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// What `--dvm` takes from any directory.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("unix:{}", self.directory.display())
    }

    /// Creates the directory if it is missing, and checks it.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn create(&self) -> Result<(), PlaceError> {
        private_dir(&self.directory)
    }

    /// The path of a member's socket.
    ///
    /// # Errors
    /// [`PlaceError::Name`], [`PlaceError::TooLong`].
    pub fn socket(&self, member: &str) -> Result<PathBuf, PlaceError> {
        check_name(member)?;
        let path = self.directory.join(format!("{member}.sock"));
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX { Err(PlaceError::TooLong { path, length }) } else { Ok(path) }
    }

    /// The path of the file that holds a member's process number.
    #[must_use]
    pub fn pid_file(&self, member: &str) -> PathBuf {
        self.directory.join(format!("{member}.pid"))
    }

    /// The process number in a member's file.
    #[must_use]
    pub fn pid(&self, member: &str) -> Option<u32> {
        fs::read_to_string(self.pid_file(member)).ok()?.trim().parse().ok()
    }

    /// Names of the members that have a socket here, live or left behind, in the order of their numbers.
    ///
    /// # Errors
    /// [`PlaceError::Io`]; a missing directory has none.
    pub fn members(&self) -> Result<Vec<String>, PlaceError> {
        self.with_suffix(".sock")
    }

    /// Names of the members that have a process file here, live or left behind.
    ///
    /// # Errors
    /// [`PlaceError::Io`]; a missing directory has none.
    pub fn pids(&self) -> Result<Vec<String>, PlaceError> {
        self.with_suffix(".pid")
    }

    /// Names of the members whose socket accepts.
    #[must_use]
    pub fn live_members(&self) -> Vec<String> {
        let mut members = self.members().unwrap_or_default();
        members.retain(|member| self.accepts(member));
        members
    }

    /// Whether a member's socket accepts.
    #[must_use]
    pub fn accepts(&self, member: &str) -> bool {
        match self.dial(member) {
            Ok(_) => true,
            // Its queue is full: someone holds the other end.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Whether some socket accepts.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.members().unwrap_or_default().iter().any(|member| self.accepts(member))
    }

    /// Connects to a member's socket without waiting for room in its queue.
    ///
    /// # Errors
    /// `ConnectionRefused` or `NotFound` where no kernel is, `WouldBlock` where one is and does not accept.
    pub fn dial(&self, member: &str) -> io::Result<UnixStream> {
        let path = self.socket(member).map_err(io::Error::other)?;
        let address = SocketAddrUnix::new(&path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Removes what kernels that are gone left: sockets, process files. The caller holds
    /// [`RuntimeDir::lock`].
    ///
    /// # Errors
    /// [`PlaceError::Io`]; some files may be removed.
    pub fn sweep(&self) -> Result<(), PlaceError> {
        let gone = |path: PathBuf, removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PlaceError::Io { what: "remove", path, error })
            }
            _ => Ok(()),
        };
        for member in self.members()? {
            if !self.accepts(&member) {
                for path in [self.directory.join(format!("{member}.sock")), self.pid_file(&member)] {
                    let removed = fs::remove_file(&path);
                    gone(path, removed)?;
                }
            }
        }
        Ok(())
    }

    fn with_suffix(&self, suffix: &str) -> Result<Vec<String>, PlaceError> {
        let mut members: Vec<String> = names_in(&self.directory)?
            .iter()
            .filter_map(|name| name.strip_suffix(suffix))
            .filter(|name| check_name(name).is_ok())
            .map(str::to_owned)
            .collect();
        members.sort_by_key(|member| natural(member));
        Ok(members)
    }
}

/// A key under which `k10` comes after `k9`.
#[must_use]
pub fn natural(name: &str) -> (String, u64, String) {
    let head = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[head.len()..].parse().unwrap_or(u64::MAX);
    (head.to_owned(), number, name.to_owned())
}

fn names_in(directory: &Path) -> Result<Vec<String>, PlaceError> {
    let failed = |error| PlaceError::Io { what: "list", path: directory.into(), error };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

fn environment(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn absolute(path: &Path) -> Result<PathBuf, PlaceError> {
    let path = std::path::absolute(path).map_err(|error| PlaceError::Io {
        what: "resolve",
        path: path.into(),
        error,
    })?;
    // Without a slash at the end, which would make a symbolic link look like what it points to.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn runtime() -> (tempfile::TempDir, RuntimeDir) {
        let base = tempfile::tempdir().expect("a directory");
        let runtime = RuntimeDir::create_at(&base.path().join("run")).expect("created");
        (base, runtime)
    }

    #[test]
    fn names() {
        for good in ["k0", "a", "node1.2", "My-DVM_2", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "0k", "-a", ".", "..", "a/b", "a b", "é", "a\n", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_created_directory_is_private_and_what_is_open_is_refused() {
        let (_base, runtime) = runtime();
        let mode = fs::metadata(runtime.path()).expect("there").mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o750)).expect("changed");
        let refused = RuntimeDir::create_at(runtime.path());
        assert!(matches!(refused, Err(PlaceError::Open { mode: 0o750, .. })), "{refused:?}");
    }

    #[test]
    fn a_link_and_a_file_are_refused() {
        let (base, runtime) = runtime();
        let link = base.path().join("link");
        symlink(runtime.path(), &link).expect("linked");
        assert!(matches!(RuntimeDir::create_at(&link), Err(PlaceError::Symlink { .. })));
        let slash = PathBuf::from(format!("{}/", link.display()));
        assert!(matches!(RuntimeDir::create_at(&slash), Err(PlaceError::Symlink { .. })));
        let file = base.path().join("file");
        fs::write(&file, "").expect("written");
        assert!(matches!(RuntimeDir::create_at(&file), Err(PlaceError::NotADirectory { .. })));
    }

    #[test]
    fn a_long_socket_path_is_refused_before_bind() {
        let (base, _) = runtime();
        let long = RuntimeDir::create_at(&base.path().join("x".repeat(90))).expect("created");
        let refused = long.dvm("dvm").expect("a name").socket("k0");
        assert!(matches!(refused, Err(PlaceError::TooLong { .. })), "{refused:?}");
    }

    #[test]
    fn live_is_who_accepts() {
        let (_base, runtime) = runtime();
        let place = runtime.dvm("one").expect("a name");
        assert!(!place.is_live());
        place.create().expect("created");
        let listener = UnixListener::bind(place.socket("k10").expect("short")).expect("bound");
        let gone = UnixListener::bind(place.socket("k9").expect("short")).expect("bound");
        drop(gone);
        assert_eq!(place.members().expect("listed"), ["k9", "k10"]);
        assert_eq!(place.live_members(), ["k10"]);
        assert_eq!(runtime.dvms().expect("listed"), std::slice::from_ref(&place));
        place.sweep().expect("swept");
        assert_eq!(place.members().expect("listed"), ["k10"]);
        drop(listener);
        assert!(!place.is_live());
    }

    #[test]
    fn uris() {
        let (_base, runtime) = runtime();
        let place = runtime.dvm("one").expect("a name");
        place.create().expect("created");
        for (uri, member) in [
            ("one".into(), None),
            (place.uri(), None),
            (format!("{}/k1.sock", place.uri()), Some("k1".to_owned())),
        ] {
            assert_eq!(DvmPlace::from_uri(&uri, &runtime).expect("good"), (place.clone(), member), "{uri}");
        }
        assert!(matches!(DvmPlace::from_uri("tcp:one", &runtime), Err(PlaceError::Uri { .. })));
        assert!(matches!(DvmPlace::from_uri("../one", &runtime), Err(PlaceError::Uri { .. })));
    }
}
