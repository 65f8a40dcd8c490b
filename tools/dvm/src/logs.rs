//! `logs`: the members' log files, merged by time. It reads files and needs no kernel.

use crate::context::{Context, status};
use crate::exit::{self, usage};
use crate::parse;
use crate::selector::{names, select};
use crate::up::logs_of;
use clap::{Args, ValueEnum};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Failure, FailureCode, Status};
use dvm_plugin_api::place::{self, DvmPlace, natural};
use jiff::Timestamp;
use serde::Serialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Pause between two looks for new lines.
const LOOK: Duration = Duration::from_millis(100);

/// How long a kernel is asked where the logs are.
const BRIEF: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Only of this member, or of those that a list, a range or a tag means; default: of all
    #[arg(value_name = "M")]
    member: Option<String>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Since a time, or for so long: 2026-01-02T03:04:05Z, 5m
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Only about this plug-in
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// At least this grave
    #[arg(long)]
    level: Option<Level>,
}

/// How grave a line is, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// A line: `time level member epoch index target: text key=value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    time: Option<String>,
    level: Option<String>,
    member: String,
    line: String,
}

pub(crate) fn logs(context: &Context, args: &LogsArgs) -> exit::Result {
    let (directory, status) = look(context)?;
    let wanted = args.member.as_deref().map(|member| who(member, &directory, status.as_ref())).transpose()?;
    let mut files = files(&directory, wanted.as_deref())?;
    loop {
        let mut lines = Vec::new();
        for file in &mut files {
            lines.extend(file.read());
        }
        // Stable, and lines that go on from the one before have its time.
        lines.sort_by_key(|(time, _)| *time);
        for (time, line) in lines {
            if args.wants(time, &line) {
                context.out.tell(&line, || line.line.clone());
            }
        }
        if !args.follow {
            return Ok(exit::OK);
        }
        sleep(LOOK);
        for new in self::files(&directory, wanted.as_deref())? {
            if !files.iter().any(|file| file.path == new.path) {
                files.push(new);
            }
        }
    }
}

impl LogsArgs {
    fn wants(&self, time: Option<Timestamp>, line: &Line) -> bool {
        let recent = self.since.is_none_or(|since| time.is_some_and(|time| time >= since));
        let grave = self.level.is_none_or(|least| {
            let level = line.level.as_deref().and_then(|level| Level::from_str(level, true).ok());
            level.is_some_and(|level| level <= least)
        });
        let about = self.plugin.as_ref().is_none_or(|plugin| {
            let wanted = [format!("plugin={plugin}"), format!("plugin=\"{plugin}\"")];
            line.line.split_whitespace().any(|word| wanted.iter().any(|wanted| wanted == word))
        });
        recent && grave && about
    }
}

/// A log file, read up to some place.
struct LogFile {
    path: PathBuf,
    member: String,
    offset: u64,
    /// Time and level of the last line that had them.
    last: (Option<Timestamp>, Option<String>, Option<String>),
}

impl LogFile {
    /// The whole lines that came since the last call. A file that was replaced is read from its beginning.
    fn read(&mut self) -> Vec<(Option<Timestamp>, Line)> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        if file.metadata().is_ok_and(|found| found.len() < self.offset) {
            self.offset = 0;
        }
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return Vec::new();
        }
        let mut reader = BufReader::new(file);
        let mut lines = Vec::new();
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) && bytes.ends_with(b"\n") {
            self.offset += bytes.len() as u64;
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            let mut words = text.split_whitespace();
            let time = words.next().unwrap_or_default();
            if let Ok(stamp) = time.parse::<Timestamp>() {
                self.last = (Some(stamp), Some(time.to_owned()), words.next().map(str::to_lowercase));
            }
            let (stamp, time, level) = self.last.clone();
            lines.push((stamp, Line { time, level, member: self.member.clone(), line: text }));
        }
        lines
    }
}

/// The directory of the logs.
pub(crate) fn directory(context: &Context) -> Result<PathBuf, Failure> {
    Ok(look(context)?.0)
}

/// The directory of the logs, which a live kernel knows, else it is the user's; and what that kernel tells.
fn look(context: &Context) -> Result<(PathBuf, Option<Status>), Failure> {
    let place = match context.place() {
        Ok(found) => found,
        // The only DVM on this host may be dead.
        Err(failure) if failure.code == FailureCode::NoDvm && context.global.dvm.is_none() => {
            return Ok((only_dead(failure)?, None));
        }
        Err(failure) => return Err(failure),
    };
    let told = Client::connect(Target { reach: BRIEF, ..Target::new(place.clone(), "dvm logs") })
        .and_then(|mut client| status(&mut client, Some(BRIEF)))
        .ok();
    let directory = told.as_ref().map_or_else(|| dead_logs(&place), |status| logs_of(status, &place));
    Ok((directory, told))
}

fn dead_logs(place: &DvmPlace) -> PathBuf {
    place::log_dir(&place.name())
}

fn only_dead(none: Failure) -> Result<PathBuf, Failure> {
    if std::env::var_os("DVM_LOG_DIR").is_some_and(|value| !value.is_empty()) {
        return Ok(place::log_dir(""));
    }
    let mut left = place::logged();
    match left.len() {
        0 => Err(none),
        1 => Ok(left.pop_first().expect("one").1),
        _ => {
            let names: Vec<_> = left.into_keys().collect();
            Err(usage("several DVMs left logs on this host")
                .cause(names.join(", "))
                .hint(format!("name one: --dvm {}", names[0])))
        }
    }
}

/// Names of the members that are meant. Those that are spelled out need only have a log; what a rank, an id or a tag
/// means is known while a kernel lives.
fn who(member: &str, directory: &Path, status: Option<&Status>) -> Result<Vec<String>, Failure> {
    let selectors = [member.to_owned()];
    let mut spelled = names(&selectors)?;
    spelled.retain(|name| place::log_file(directory, name).is_file());
    if !spelled.is_empty() {
        return Ok(spelled);
    }
    let here: Vec<_> = files(directory, None)?.into_iter().map(|file| file.member).collect();
    let none =
        Failure::new(FailureCode::NotFound, format!("no log of `{member}` in {}", directory.display())).hint(
            format!("there are logs of {}; `dvm list` shows where those of other DVMs are", here.join(", ")),
        );
    match status {
        Some(status) => select(&selectors, &status.members).map_err(|failure| match failure.code {
            FailureCode::NotFound => none,
            _ => failure,
        }),
        None => Err(none.cause("no kernel lives that could tell whose rank, id or tag it is")),
    }
}

fn files(directory: &Path, members: Option<&[String]>) -> Result<Vec<LogFile>, Failure> {
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".log")?.to_owned();
            Some(LogFile { path, member: name, offset: 0, last: (None, None, None) })
        })
        .filter(|file| members.is_none_or(|members| members.contains(&file.member)))
        .collect();
    if found.is_empty() {
        let what = members
            .map_or_else(|| "no logs".to_owned(), |members| format!("no log of {}", members.join(", ")));
        return Err(Failure::new(FailureCode::NotFound, format!("{what} in {}", directory.display()))
            .hint("`dvm list` shows where the logs of your DVMs are"));
    }
    found.sort_by_key(|file| natural(&file.member));
    Ok(found)
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago =
        parse::duration(text).map_err(|error| format!("{error}, or a time like 2026-01-02T03:04:05Z"))?;
    Timestamp::now().checked_sub(ago).map_err(|error| error.to_string())
}
