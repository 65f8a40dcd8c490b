//! Addresses: how they are written, whether they are free, and a listener at each.

use rustix::net::{SocketFlags, accept_with};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// The first free one of these ports.
    Ports { ip: IpAddr, low: u16, high: u16 },
    /// A Unix socket.
    Socket(PathBuf),
}

/// What this process listens at: a new configuration may name it again.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Address {
    /// From `IP:PORT`, `IP:LOW-HIGH` or `unix:/PATH`; `{member}` stands for the member's name.
    pub(crate) fn parse(text: &str, member: &str) -> Result<Self, String> {
        let text = text.replace("{member}", member);
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Socket(path))
            } else {
                Err(format!("{} is no absolute path", path.display()))
            };
        }
        let parsed = text.rsplit_once(':').and_then(|(ip, ports)| {
            let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
            let ip = ip.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
            Some((ip, low.parse().ok()?, high.parse().ok()?))
        });
        match parsed {
            Some((ip, low, high)) if 0 < low && low <= high => Ok(Self::Ports { ip, low, high }),
            _ => Err(format!("`{text}` is no address: write IP:PORT, IP:LOW-HIGH or unix:/PATH")),
        }
    }

    /// Whether one could listen there.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mine = match self {
            Self::Ports { ip, low, high } => (*low..=*high).any(|port| held().contains(&at(*ip, port))),
            Self::Socket(path) => held().contains(&of(path)),
        };
        if mine { Ok(()) } else { self.listen().map(drop) }
    }

    /// Listens there.
    pub(crate) fn listen(&self) -> Result<Listener, String> {
        match self {
            Self::Ports { ip, low, high } => ports(*ip, *low, *high),
            Self::Socket(path) => socket(path),
        }
    }
}

fn at(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::from((ip, port)).to_string()
}

fn of(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn ports(ip: IpAddr, low: u16, high: u16) -> Result<Listener, String> {
    for port in low..=high {
        let name = at(ip, port);
        match TcpListener::bind((ip, port)) {
            Ok(listener) => return Listener::new(listener.into(), name, None),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(format!("cannot listen at {name}: {error}")),
        }
    }
    Err(if low == high {
        let next = low.saturating_add(15);
        format!(
            "{} is in use on this host; give a range, as {ip}:{low}-{next}, of which each kernel takes one",
            at(ip, low)
        )
    } else {
        format!("all ports from {low} to {high} of {ip} are in use on this host; give more")
    })
}

fn socket(path: &Path) -> Result<Listener, String> {
    let name = of(path);
    let listener = UnixListener::bind(path).or_else(|error| match error.kind() {
        // One that nobody listens at any more is what a killed process leaves.
        io::ErrorKind::AddrInUse if UnixStream::connect(path).is_err() => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        _ => Err(error),
    });
    let listener = listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{name} is in use: with several kernels on a host its name needs `{{member}}`, as in unix:/run/dvm-{{member}}"
        ),
        _ => format!("cannot listen at {name}: {error}"),
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| format!("{name}: {error}"))?;
    Listener::new(listener.into(), name, Some(path.into()))
}

/// A listening socket. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    name: String,
    path: Option<PathBuf>,
}

impl Listener {
    fn new(fd: OwnedFd, name: String, path: Option<PathBuf>) -> Result<Self, String> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(|error| format!("{name}: {error}"))?;
        held().insert(name.clone());
        Ok(Self { fd, name, path })
    }

    /// Where it is, as scrapers write it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whoever waits there.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = fs::remove_file(path);
        }
        held().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text| Address::parse(text, "k1");
        let ports =
            |ip: &str, low, high| Ok(Address::Ports { ip: ip.parse().expect("an address"), low, high });
        assert_eq!(parse("127.0.0.1:9464"), ports("127.0.0.1", 9464, 9464));
        assert_eq!(parse("0.0.0.0:1-65535"), ports("0.0.0.0", 1, 65535));
        assert_eq!(parse("[::1]:80-90"), ports("::1", 80, 90));
        assert_eq!(parse("unix:/run/{member}.metrics"), Ok(Address::Socket("/run/k1.metrics".into())));
        for text in
            ["", "9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:9-8", "localhost:80", "unix:here", "::1:1-"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_in_use_is_told_and_a_range_has_another() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = taken.local_addr().expect("bound").port();
        let ip = IpAddr::from([127, 0, 0, 1]);
        let one = Address::Ports { ip, low: port, high: port };
        assert!(one.check().expect_err("in use").contains(&format!("{port} is in use on this host")));
        let range = Address::Ports { ip, low: port, high: port.saturating_add(50).max(port) };
        let listener = range.listen().expect("one is free");
        assert_ne!(listener.name(), at(ip, port));
        // What this process listens at itself will do for the next configuration.
        let own: u16 = listener.name().rsplit_once(':').expect("a port").1.parse().expect("a number");
        let own = Address::Ports { ip, low: own, high: own };
        assert_eq!(own.check(), Ok(()));
        drop(listener);
        assert!(own.listen().is_ok());
    }
}
