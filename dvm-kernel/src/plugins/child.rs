//! The child that holds a plug-in: `dvm-kernel plugin-host`.
//!
//! Its standard input is a socket to the kernel; output and error go to the kernel's log. It dies with its kernel,
//! leaves no core, holds none of its parent's descriptors, and ends when the socket does.

use super::channel::{self, FromChild, ToChild};
use crate::services::asker::{Asker, during};
use bytes::BytesMut;
use dvm_plugin_api::Role;
use dvm_plugin_api::abi::{HostCalls, HostCallsRef, Out, Slice, status};
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
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Answers wait for company so long, and no longer.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// Answers wait for company up to so many bytes.
const FLUSH_BYTES: usize = 64 << 10;
/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 256 << 10;

/// The process, from start to end.
pub(crate) fn main() -> ExitCode {
    match settle().and_then(serve) {
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

fn serve(mut socket: UnixStream) -> io::Result<()> {
    let mut hosted = Hosted::default();
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

/// What the child holds.
#[derive(Default)]
struct Hosted {
    module: Option<Module>,
    instance: Option<Instance>,
}

impl Hosted {
    fn handle(&mut self, message: ToChild) -> FromChild {
        match message {
            ToChild::Open { library, access } => match load(&library) {
                Ok(module) => {
                    // A child holds one library.
                    let _ = ASKER.set(Asker::new(access));
                    self.module = Some(module);
                    done(Vec::new())
                }
                Err((code, reason)) => FromChild::NotLoaded { code: code.into(), reason },
            },
            ToChild::Validate { config, place } => match &self.module {
                Some(module) => {
                    let validate = || module.validate(&config, &place, calls());
                    answer(during(Moment::Validate, validate).map(|()| Vec::new()))
                }
                None => missing("library"),
            },
            ToChild::Start { config, place } => match &self.module {
                Some(module) => {
                    let started = during(Moment::Start, || module.start(&config, &place, calls()));
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
            other => match &mut self.instance {
                Some(instance) => answer(during(moment(&other), || call(instance, other))),
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
            acting::promoted(fence);
            instance.on_role(role_of(role, fence)).map(nothing)
        }
        ToChild::Lease { until_us } => {
            acting::leased(until_us);
            Ok(Vec::new())
        }
        ToChild::Restore(state) => instance.restore(&state).map(nothing),
        ToChild::Snapshot => instance.snapshot(),
        ToChild::Open { .. } | ToChild::Validate { .. } | ToChild::Start { .. } | ToChild::Stop => {
            unreachable!("answered without an instance")
        }
    }
}

fn role_of(role: u32, fence: u64) -> Role {
    match role {
        dvm_plugin_api::abi::role::PRIMARY => Role::Primary { fence },
        dvm_plugin_api::abi::role::STANDBY => Role::Standby,
        _ => Role::Active,
    }
}

/// Whether this process's instance may act on the world: it is the primary, and its lease runs. Its own clock tells, so
/// that it stops though its kernel is stopped.
mod acting {
    use std::sync::atomic::{AtomicU64, Ordering};

    static FENCE: AtomicU64 = AtomicU64::new(0);
    static UNTIL_US: AtomicU64 = AtomicU64::new(0);

    /// The token of the promotion; 0 when it is no primary.
    pub(super) fn promoted(fence: u64) {
        FENCE.store(fence, Ordering::Release);
    }

    pub(super) fn leased(until_us: u64) {
        UNTIL_US.store(until_us, Ordering::Release);
    }

    /// The token under which the instance may act now; 0 if it may not.
    pub(super) extern "C" fn token(_: *const ()) -> u64 {
        let leased = crate::clock::boot_us() < UNTIL_US.load(Ordering::Acquire);
        if leased { FENCE.load(Ordering::Acquire) } else { 0 }
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

/// The host's services. A logged line goes to standard error with its level before it, as `sd-daemon(3)` has it.
fn calls() -> HostCallsRef {
    static CALLS: OnceLock<HostCallsRef> = OnceLock::new();
    extern "C" fn log(_: *const (), level: u8, text: Slice<'_>) {
        let text = String::from_utf8_lossy(text.as_slice());
        let lines: String = text.lines().map(|line| format!("<{level}>{line}\n")).collect();
        // A log that cannot be written has nowhere to complain.
        let _ = io::stderr().write_all(lines.as_bytes());
    }
    extern "C" fn ask(_: *const (), request: Slice<'_>, out: Out) -> u32 {
        let told = match ASKER.get() {
            Some(asker) => asker.ask(request.as_slice()),
            None => Err("nothing can be asked while the library is loaded".into()),
        };
        let (status, bytes) = match told {
            Ok(answer) => (status::OK, answer),
            Err(text) => (status::ERROR, text.into_bytes()),
        };
        (out.write)(out.ctx, Slice::from_slice(&bytes));
        status
    }
    *CALLS.get_or_init(|| HostCalls { ctx: std::ptr::null(), log, token: acting::token, ask }.leak())
}

/// What the instance of this process asks with.
static ASKER: OnceLock<Asker> = OnceLock::new();
