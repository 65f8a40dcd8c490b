//! The far end that holds a plug-in: a process, `dvm-kernel plugin-host`, or a [thread](super::thread) of the kernel.
//!
//! It answers what comes by a socket, and ends when that does. As a process it has the socket as its standard input;
//! output and error go to the kernel's log. It dies with its kernel, leaves no core, and holds none of its parent's
//! descriptors.

use super::channel::{self, Open};
use super::context::to_stderr;
use dvm_plugin_api::client::Target;
use dvm_plugin_api::host::{Asker, Context, Hosted, Hosting, LoadError, Module};
use dvm_plugin_api::place::DvmPlace;
use rustix::process::{Resource, Rlimit, Signal};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

/// The process, from start to end.
pub(crate) fn main() -> ExitCode {
    let host = || {
        let (socket, mut library) = settle()?;
        let library = move |_: &Open| load(library.take().expect("it is told once"));
        Hosting::new(socket, hosted(to_stderr(), library), Vec::new()).run(None)
    };
    match host() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plug-in host: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the process what it should be, and takes the socket out of the plug-in's way. The library is the first thing that
/// comes by it.
fn settle() -> io::Result<(UnixStream, Option<OwnedFd>)> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    close_inherited()?;
    let socket = take_socket()?;
    let library = channel::receive_descriptor(&socket)?;
    Ok((socket, Some(library)))
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

/// An instance whose library `load` loads.
pub(super) fn hosted(
    context: &'static Context,
    mut load: impl FnMut(&Open) -> Result<Module, (&'static str, String)> + Send + 'static,
) -> Hosted {
    let open = move |open: &[u8]| {
        let open: Open =
            rmp_serde::from_slice(open).map_err(|error| ("corrupt".to_owned(), error.to_string()))?;
        let module = load(&open).map_err(|(code, reason)| (code.to_owned(), reason))?;
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

/// Loads a library that cannot change any more.
pub(super) fn load(library: OwnedFd) -> Result<Module, (&'static str, String)> {
    // The loader takes what comes by the same path for the same library: the number of one that it has is never given away.
    let path = PathBuf::from(format!("/proc/self/fd/{}", library.as_raw_fd()));
    // SAFETY: the library passed the check of its manifest, and is sealed.
    let module = unsafe { Module::load(&path) };
    if !module.as_ref().is_err_and(LoadError::leaves_nothing) {
        std::mem::forget(library);
    }
    module.map_err(|error| (error.code(), error.to_string()))
}
