//! The far end that holds a plug-in: a process, `dvm-kernel plugin-host`, or a [thread](super::thread) of the kernel.
//!
//! It answers what comes by a socket, and ends when that does. As a process it has the socket as its standard input;
//! output and error go to the kernel's log. It dies with its kernel, leaves no core, and holds none of its parent's
//! descriptors.

use super::channel::Open;
use super::context::to_stderr;
use super::inside::Inside;
use dvm_core::ids::Name;
use dvm_plugin_api::client::Target;
use dvm_plugin_api::host::{Asker, Context, Hosted, Hosting, Module};
use dvm_plugin_api::place::DvmPlace;
use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::process::{Resource, Rlimit, Signal};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The process, from start to end.
pub(crate) fn main() -> ExitCode {
    let hosted = hosted(to_stderr(), None);
    match settle().and_then(|socket| Hosting::new(socket, hosted, Vec::new()).run(None)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plug-in host: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the process what it should be, and takes the socket out of the plug-in's way.
fn settle() -> io::Result<UnixStream> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    close_inherited()?;
    take_socket()
}

/// The socket on standard input, in whose place is nothing from here on. The far end is this process's parent.
pub(crate) fn take_socket() -> io::Result<UnixStream> {
    let stdin = rustix::stdio::stdin();
    let peer = rustix::net::sockopt::socket_peercred(stdin)?;
    if rustix::process::getppid() != Some(peer.pid) {
        return Err(io::Error::other("the kernel is gone"));
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket.into())
}

/// Closes what was open in its parent.
pub(crate) fn close_inherited() -> io::Result<()> {
    let open = fs::read_dir("/proc/self/fd")?;
    let open: Vec<i32> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: nothing in this process owns one yet. The one that the listing itself used is closed already, and a
        // descriptor is looked at before it is closed.
        unsafe {
            if rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(descriptor)).is_ok() {
                rustix::io::close(descriptor);
            }
        }
    }
    Ok(())
}

/// An instance whose library the kernel names; inside a kernel with where its images are, and the plug-in's name.
pub(super) fn hosted(context: &'static Context, inside: Option<(Arc<Inside>, Name)>) -> Hosted {
    let open = move |open: &[u8]| {
        let open: Open =
            rmp_serde::from_slice(open).map_err(|error| ("corrupt".to_owned(), error.to_string()))?;
        let module = match &inside {
            Some((inside, plugin)) => inside.open(open.hash, plugin, || load(&open.library)),
            None => load(&open.library),
        };
        let module = module.map_err(|(code, reason)| (code.to_owned(), reason))?;
        context.opened(asker(open));
        Ok(module)
    };
    Hosted::empty(Box::new(open), context)
}

/// What its instance asks for services with.
fn asker(open: Open) -> Result<Asker, String> {
    let (place, member) = DvmPlace::at(&open.socket).map_err(|error| error.to_string())?;
    let kernel = Target::new(place, format!("plug-in {}", open.plugin)).only(member.unwrap_or_default());
    Ok(Asker::new(kernel, open.desk, open.plugin, open.deadline_ms))
}

/// Loads the private copy: itself, or where files may not be executed there, a sealed copy in memory.
fn load(library: &Path) -> Result<Module, (&'static str, String)> {
    let executable = executable(library).map_err(|error| ("no-space", error.to_string()))?;
    // SAFETY: the file passed the check of its manifest, and is a private copy that nobody writes.
    unsafe { Module::load(&executable) }.map_err(|error| (error.code(), error.to_string()))
}

fn executable(library: &Path) -> io::Result<PathBuf> {
    if !rustix::fs::statvfs(library)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Ok(library.into());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Systems that forbid executable memory files unless asked want the flag, older ones do not know it.
    let memory: OwnedFd = rustix::fs::memfd_create("plugin", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("plugin", flags))?;
    let mut memory = File::from(memory);
    io::copy(&mut File::open(library)?, &mut memory)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    // The descriptor stays open for the process's life: debuggers find the image by it.
    std::mem::forget(memory);
    Ok(path.into())
}
