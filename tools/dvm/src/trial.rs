//! `plugin test`: a library in a small DVM in memory, which loses, pauses and promotes its instances under seeds.
//!
//! It runs in a child, which says on a socket, its standard input, what it is about to do. So this process can tell where
//! the library was when it ended the child or did nothing more. With `--here` there is no child, and a debugger finds it.

use crate::context::Context;
use crate::exit::{self, failed, usage};
use crate::library;
use crate::parse;
use crate::plugin::ConfigArgs;
use crate::table::count;
use clap::Args;
use dvm_plugin_api::host::Module;
use dvm_plugin_api::local::Failure;
use dvm_plugin_api::testing::{self, Chance, Commands, Mode, Report, Testbed};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// Set for the child.
const WATCHED: &str = "DVM_PLUGIN_TEST_WATCHED";

const MODES: [(&str, Mode); 4] =
    [("parallel", Mode::Parallel), ("hot", Mode::Hot), ("warm", Mode::Warm), ("single", Mode::Single)];

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The library
    #[arg(value_name = "FILE|NAME")]
    file: String,
    /// Commands, of which chance takes one each time
    #[arg(required = true, value_name = "JSON")]
    commands: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// In this mode; default: in each
    #[arg(long, value_parser = MODES.map(|(name, _)| name))]
    mode: Option<String>,
    /// How many runs in each mode
    #[arg(long, value_name = "N", default_value_t = 20)]
    seeds: u64,
    /// The first run's seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    first_seed: u64,
    /// Steps of a run
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u64,
    /// Longest a step, or the end of a run, may take
    #[arg(long, value_name = "T", default_value = "30s", value_parser = parse::duration)]
    step_limit: Duration,
    /// In this process, where a debugger finds it: what ends it ends the command
    #[arg(long)]
    here: bool,
}

/// What the child is about to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    mode: String,
    seed: u64,
    /// From 1; 0 before the first.
    step: u64,
    /// The one drawn for this step, which may be another thing than a command.
    command: Value,
    /// It is about to end.
    over: bool,
}

/// Where a child says so.
#[derive(Debug)]
struct Told(Option<UnixStream>);

impl Told {
    /// Where this process is a child to be watched.
    fn begin() -> io::Result<Self> {
        if std::env::var_os(WATCHED).is_none() {
            return Ok(Self(None));
        }
        // SAFETY: no other thread was started yet.
        unsafe { std::env::remove_var(WATCHED) };
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let stream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(Some(stream.into())))
    }

    fn tell(&mut self, position: &Position) {
        if let Some(stream) = &mut self.0 {
            // A watcher that is gone takes this process with it.
            let _ = writeln!(stream, "{}", serde_json::to_string(position).expect("plain data"));
        }
    }
}

/// The commands of a run, each told of before it is drawn.
struct Drawn<'a> {
    commands: &'a [Value],
    told: &'a mut Told,
    at: Position,
}

impl Commands for Drawn<'_> {
    fn next(&mut self, chance: &mut Chance) -> Value {
        let command = Commands::next(&mut self.commands, chance);
        self.at = Position { step: self.at.step + 1, command: command.clone(), ..self.at.clone() };
        self.told.tell(&self.at);
        command
    }
}

pub(crate) fn test(context: &Context, args: TestArgs) -> exit::Result {
    let here = |error: io::Error| failed("no process for the test").cause(error.to_string());
    let mut told = Told::begin().map_err(here)?;
    if !args.here && told.0.is_none() {
        let plugin = library::read(&library::find(&args.file)?)?.manifest.name;
        return watch(&plugin, args.step_limit).map_err(here)?;
    }
    let result = run(context, args, &mut told);
    told.tell(&Position { over: true, ..Position::default() });
    result
}

/// Runs this command in a child, and tells where it was if it does not come to its end.
fn watch(plugin: &str, limit: Duration) -> io::Result<exit::Result> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(WATCHED, "1").stdin(OwnedFd::from(theirs));
    let mut child = command.spawn()?;
    // The child's end is the child's alone.
    drop(command);
    ours.set_read_timeout(Some(limit))?;
    let (mut lines, mut line, mut at) = (BufReader::new(ours), String::new(), Position::default());
    let late = loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => break false,
            Ok(_) => match serde_json::from_str(&line)? {
                Position { over: true, .. } => at.over = true,
                told => at = told,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
            Err(error) => return Err(error),
        }
    };
    // What a library has forked may hold the socket open behind a child that has ended.
    let late = late && child.try_wait()?.is_none();
    if late {
        child.kill()?;
    }
    let status = child.wait()?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if at.over => Ok(Ok(code)),
        _ => Ok(Err(ended(plugin, &at, late.then_some(limit), status))),
    }
}

/// The failure of a plug-in that ended its process, or did not go on.
fn ended(plugin: &str, at: &Position, late: Option<Duration>, status: ExitStatus) -> Failure {
    let Position { mode, seed, step, command, over } = at;
    let how = match (late, status.code(), status.signal()) {
        (Some(limit), ..) => format!("nothing has happened for {:.1} s", limit.as_secs_f64()),
        (None, Some(code), _) => format!("it exited with code {code}"),
        (None, None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    };
    let what = if late.is_some() { "does not go on" } else { "ends its process" };
    if mode.is_empty() {
        return failed(format!("{plugin} {what} when it is loaded"))
            .cause(how)
            .hint("a debugger finds it with --here");
    }
    if *over {
        return failed(format!("{plugin} {what} when all is over, and nothing broke before")).cause(how);
    }
    failed(format!("{plugin} {what} in mode {mode}, under seed {seed}"))
        .cause(format!("{how}, in step {step}, for which {command} was drawn"))
        .hint(format!("again: add --mode {mode} --first-seed {seed} --seeds 1, and for a debugger --here"))
}

fn run(context: &Context, args: TestArgs, told: &mut Told) -> exit::Result {
    let path = library::find(&args.file)?;
    let manifest = library::read(&path)?.manifest;
    let commands = args.commands.iter().map(|text| {
        let error = |error: serde_json::Error| usage(format!("`{text}` is no JSON")).cause(error.to_string());
        serde_json::from_str(text).map_err(error)
    });
    let commands = commands.collect::<Result<Vec<Value>, Failure>>()?;
    let keys = args.config.read()?.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let config = Value::Object(keys.collect::<Map<_, _>>());
    let path = std::path::absolute(&path).unwrap_or(path);
    // SAFETY: the file passed the check of its manifest, and whoever tests it does not build it meanwhile.
    let module = unsafe { Module::load(&path) };
    let module = module.map_err(|error| {
        failed(format!("{} cannot be loaded", path.display())).cause(format!("{error} ({})", error.code()))
    })?;
    let mut all = Report::default();
    let modes = MODES.iter().filter(|(name, _)| args.mode.as_ref().is_none_or(|mode| mode == name));
    for (name, mode) in modes {
        for seed in (args.first_seed..).take(args.seeds as usize) {
            let at = Position { mode: (*name).into(), seed, ..Position::default() };
            told.tell(&at);
            let bed = Testbed::library(module, &manifest, seed).mode(*mode).config(config.clone());
            let report = bed.start().and_then(|mut dvm| {
                let report = dvm.run(args.steps, Drawn { commands: &commands, told, at })?;
                dvm.stop().map(|()| report)
            });
            all = all + report.map_err(|failure| broken(&manifest.name, name, seed, &failure))?;
        }
    }
    if all.replies == 0 {
        return Err(failed(format!("{} answers none of these commands", manifest.name))
            .cause(format!("all {} were answered with errors", all.errors))
            .hint("give commands that it knows"));
    }
    let document = json!({
        "plugin": manifest.name, "seeds": args.seeds, "steps": args.steps, "replies": all.replies,
        "errors": all.errors, "crashes": all.crashes, "failures": all.failures, "pauses": all.pauses,
        "promotions": all.promotions, "joins": all.joins,
    });
    context.out.tell(&document, || {
        format!(
            "{}: nothing broke in {} of {} a mode: {} commands, {} members lost, {} instances killed, {} paused, {} \
             promoted, {} members joined",
            manifest.name,
            count(args.seeds as usize, "run"),
            count(args.steps as usize, "step"),
            all.replies + all.errors + all.late,
            all.crashes,
            all.failures,
            all.pauses,
            all.promotions,
            all.joins,
        )
    });
    Ok(exit::OK)
}

fn broken(plugin: &str, mode: &str, seed: u64, failure: &testing::Failure) -> Failure {
    let again = format!("again: add --mode {mode} --first-seed {seed} --seeds 1");
    failed(format!("{plugin} breaks in mode {mode}, under seed {seed}"))
        .cause(failure.to_string())
        .hint(again)
}
