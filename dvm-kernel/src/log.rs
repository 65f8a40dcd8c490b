//! The kernel's log: one file, lines of `time level member epoch index target: text key=value`.
//!
//! Secrets are never logged. `DVM_LOG` filters as `RUST_LOG` does elsewhere; the default is `info`.

use crate::clock::{rfc3339, wall_ms};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log to `path` on behalf of `member`.
pub(crate) fn start(path: &Path, member: &str) -> io::Result<()> {
    let file = open(path)?;
    let log = Log { path: path.into(), file: Mutex::new(file) };
    LOG.set(log).map_err(|_| io::Error::other("the log was started before"))?;
    let filter = EnvFilter::try_from_env("DVM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| LogWriter)
        .event_format(Lines { member: member.into() })
        .try_init()
        .map_err(io::Error::other)
}

/// Opens the file anew: whoever rotates logs has moved it away.
pub(crate) fn reopen() {
    let Some(log) = LOG.get() else { return };
    match open(&log.path) {
        Ok(file) => *log.file.lock().unwrap_or_else(PoisonError::into_inner) = file,
        Err(error) => tracing::error!(%error, "the log cannot be opened anew"),
    }
}

/// Where in the history the member is; every line tells it.
pub(crate) fn at(epoch: u64, index: u64) {
    EPOCH.store(epoch, Ordering::Relaxed);
    INDEX.store(index, Ordering::Relaxed);
}

struct Log {
    path: PathBuf,
    file: Mutex<File>,
}

static LOG: OnceLock<Log> = OnceLock::new();
static EPOCH: AtomicU64 = AtomicU64::new(0);
static INDEX: AtomicU64 = AtomicU64::new(0);

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}

struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LOG.get() {
            Some(log) => log.file.lock().unwrap_or_else(PoisonError::into_inner).write(line),
            None => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Lines {
    member: String,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (epoch, index) = (EPOCH.load(Ordering::Relaxed), INDEX.load(Ordering::Relaxed));
        let target = metadata.target().strip_prefix("dvm_kernel::").unwrap_or(metadata.target());
        write!(writer, "{} {} {} ", rfc3339(wall_ms()), metadata.level(), self.member)?;
        write!(writer, "{epoch} {index} {target}: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
