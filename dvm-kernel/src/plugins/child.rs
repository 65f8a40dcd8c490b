//! The far end that holds a plug-in: a process, `dvm-kernel plugin-host`, or a [thread](super::thread) of the kernel.
//!
//! It answers what comes by a socket, and ends when that does. As a process it has the socket as its standard input;
//! output and error go to the kernel's log. It dies with its kernel, leaves no core, and holds none of its parent's
//! descriptors.

use super::channel::{self, FromChild, ToChild};
use super::context::{Context, Log};
use super::inside::Inside;
use crate::services::asker::{Access, during};
use bytes::BytesMut;
use dvm_core::ids::Name;
use dvm_plugin_api::Role;
use dvm_plugin_api::abi::HostCallsRef;
use dvm_plugin_api::host::{CallError, Instance, Module};
use dvm_plugin_api::service::Moment;
use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::process::{Resource, Rlimit, Signal};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers wait for company so long, and no longer.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// Answers wait for company up to so many bytes.
const FLUSH_BYTES: usize = 64 << 10;
/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 256 << 10;

/// The process, from start to end.
pub(crate) fn main() -> ExitCode {
    let mut hosted = Hosted::new(Context::new(Log::Stderr), None);
    match settle().and_then(|socket| serve(socket, &mut hosted)) {
        Ok(()) => ExitCode::SUCCESS,
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

/// Answers what comes, until the plug-in is to stop or the socket ends.
///
/// # Errors
/// The socket's, and frames that do not read.
pub(super) fn serve(mut socket: UnixStream, hosted: &mut Hosted) -> io::Result<()> {
    let (mut received, mut answers) = (BytesMut::new(), Vec::new());
    let mut chunk = vec![0; READ_BYTES];
    let mut flushed = Instant::now();
    loop {
        while let Some(message) = channel::take::<ToChild>(&mut received)? {
            let ends = matches!(message, ToChild::Stop);
            channel::put(&hosted.handle(message), &mut answers);
            if ends || answers.len() >= FLUSH_BYTES || flushed.elapsed() >= FLUSH_AFTER {
                socket.write_all(&answers)?;
                answers.clear();
                flushed = Instant::now();
            }
            if ends {
                return Ok(());
            }
        }
        socket.write_all(&answers)?;
        answers.clear();
        let count = socket.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        received.extend_from_slice(&chunk[..count]);
        flushed = Instant::now();
    }
}

/// What the far end holds.
pub(super) struct Hosted {
    context: &'static Context,
    calls: HostCallsRef,
    /// Inside a kernel: where its images are, and the plug-in's name.
    inside: Option<(Arc<Inside>, Name)>,
    module: Option<Module>,
    instance: Option<Instance>,
}

impl Hosted {
    pub(super) fn new(context: &'static Context, inside: Option<(Arc<Inside>, Name)>) -> Self {
        Self { context, calls: context.calls(), inside, module: None, instance: None }
    }

    /// Ends an instance that was not told to stop: no process ends with it.
    pub(super) fn end(&mut self) {
        if let Some(instance) = self.instance.take() {
            // Nobody hears of it any more.
            let _ = during(Moment::Callback, || instance.stop());
        }
    }

    fn open(&mut self, library: &Path, hash: [u8; 32], access: Access) -> FromChild {
        let module = match &self.inside {
            Some((inside, plugin)) => inside.open(hash, plugin, || load(library)),
            None => load(library),
        };
        match module {
            Ok(module) => {
                self.context.opened(access);
                self.module = Some(module);
                done(Vec::new())
            }
            Err((code, reason)) => FromChild::NotLoaded { code: code.into(), reason },
        }
    }

    fn handle(&mut self, message: ToChild) -> FromChild {
        let calls = self.calls;
        match message {
            ToChild::Open { library, hash, access } => self.open(&library, hash, access),
            ToChild::Validate { config, place } => match &self.module {
                Some(module) => {
                    let validate = || module.validate(&config, &place, calls);
                    answer(during(Moment::Validate, validate).map(|()| Vec::new()))
                }
                None => missing("library"),
            },
            ToChild::Start { config, place } => match &self.module {
                Some(module) => {
                    let started = during(Moment::Start, || module.start(&config, &place, calls));
                    answer(started.map(|instance| {
                        self.instance = Some(instance);
                        Vec::new()
                    }))
                }
                None => missing("library"),
            },
            ToChild::Stop => match self.instance.take() {
                Some(instance) => answer(during(Moment::Callback, || instance.stop()).map(|()| Vec::new())),
                None => done(Vec::new()),
            },
            ToChild::Lease { until_us } => {
                self.context.leased(until_us);
                done(Vec::new())
            }
            other => match &mut self.instance {
                Some(instance) => {
                    if let ToChild::Role { fence, .. } = &other {
                        self.context.promoted(*fence);
                    }
                    answer(during(moment(&other), || call(instance, other)))
                }
                None => missing("instance"),
            },
        }
    }
}

/// Whether a callback must come to the same at every instance.
fn moment(message: &ToChild) -> Moment {
    match message {
        ToChild::Apply { .. } => Moment::Fixed("apply"),
        ToChild::Query(_) => Moment::Fixed("query"),
        ToChild::Snapshot => Moment::Fixed("snapshot"),
        ToChild::Restore(_) => Moment::Fixed("restore"),
        _ => Moment::Callback,
    }
}

fn call(instance: &mut Instance, message: ToChild) -> Result<Vec<u8>, CallError> {
    let nothing = |()| Vec::new();
    match message {
        ToChild::Apply { meta, command } => instance.apply(&command, &meta),
        ToChild::Query(command) => instance.query(&command),
        ToChild::Configure(config) => instance.configure(&config).map(nothing),
        ToChild::Event(event) => instance.on_event(&event).map(nothing),
        ToChild::Place(place) => instance.on_place(&place).map(nothing),
        ToChild::Role { role, fence } => {
            instance.on_role(Role::numbered(role, fence).unwrap_or(Role::Active)).map(nothing)
        }
        ToChild::Restore(state) => instance.restore(&state).map(nothing),
        ToChild::Snapshot => instance.snapshot(),
        ToChild::Open { .. }
        | ToChild::Validate { .. }
        | ToChild::Start { .. }
        | ToChild::Lease { .. }
        | ToChild::Stop => {
            unreachable!("answered without an instance")
        }
    }
}

fn done(bytes: Vec<u8>) -> FromChild {
    FromChild::Done(bytes.into())
}

fn missing(what: &str) -> FromChild {
    FromChild::Own(format!("the child holds no {what}"))
}

fn answer(result: Result<Vec<u8>, CallError>) -> FromChild {
    match result {
        Ok(bytes) => done(bytes),
        Err(CallError::Own(text)) => FromChild::Own(text),
        Err(CallError::Panic(text)) => FromChild::Panic(text),
        Err(error @ CallError::Poisoned) => FromChild::Panic(error.to_string()),
    }
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
