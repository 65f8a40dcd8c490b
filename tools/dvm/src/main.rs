//! `dvm`: everything a person types. It is a client like any other, over the local protocol of `dvm-plugin-api`.
//!
//! One file a group of commands; what they share is below the line.

mod bench;
mod call;
mod chaos;
mod demo;
mod events;
mod exec;
mod history;
mod leave;
mod logs;
mod plugin;
mod project;
mod promote;
mod settings;
mod show;
mod state;
mod trial;
mod up;
mod wait;

mod cli;
mod context;
mod dry_run;
mod exit;
mod fleet;
mod guardian;
mod keeper;
mod launch;
mod library;
mod output;
mod parse;
mod processes;
mod selector;
mod table;

use clap::Parser;
use cli::{Cli, Command};
use context::Context;
use dvm_plugin_api::local::{Failure, FailureCode};
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    cli.global.apply_color();
    let output = Output::new(&cli.global);
    let context = Context::new(cli.global, output);
    let code = run(&context, cli.command).unwrap_or_else(|failure| {
        output.failure(&failure);
        failure.code.exit()
    });
    ExitCode::from(code)
}

fn run(context: &Context, command: Command) -> exit::Result {
    match command {
        Command::Up(args) => up::up(context, args),
        Command::Add(args) => up::add(context, &args),
        Command::Remove(args) => leave::remove(context, &args),
        Command::Halt(args) => leave::halt(context, &args),
        Command::List => show::list(context),
        Command::Status => show::status_command(context),
        Command::Members => show::members(context),
        Command::Plugins => show::plugins(context),
        Command::Logs(args) => logs::logs(context, &args),
        Command::Plugin(command) => plugin::run(context, command),
        Command::Call(args) => call::call(context, args),
        Command::Exec(args) => exec::exec(context, args),
        Command::Config(command) => settings::run(context, command),
        Command::State(command) => state::run(context, command),
        Command::Events(args) => events::events(context, args),
        Command::History(args) => history::history(context, args),
        Command::Wait(args) => wait::wait(context, &args),
        Command::Promote(args) => promote::promote(context, &args),
        Command::Ticket => up::ticket(context),
        Command::Chaos(command) => chaos::run(context, command),
        Command::Bench(args) => bench::bench(context, &args),
        Command::Demo(args) => demo::demo(context, &args),
        Command::RawRingNode => bench::raw_ring_node(),
        Command::Keeper(args) => keeper::run(&args),
        Command::Guardian(args) => guardian::run(args),
    }
}

/// Tells what is wrong with the arguments, or the help that was asked for; the exit code.
fn usage(error: &clap::Error) -> u8 {
    let asked_for_json =
        std::env::args().take_while(|arg| arg != "--").any(|arg| arg == "--json" || arg == "--json-lines");
    if error.use_stderr() && asked_for_json {
        let text = error.render().to_string();
        let (message, cause) =
            text.trim().trim_start_matches("error: ").split_once("\n\n").unwrap_or((text.trim(), ""));
        let mut failure = Failure::new(FailureCode::Usage, message.trim()).hint("see `dvm --help`");
        failure.cause = Some(cause.trim().to_owned()).filter(|cause| !cause.is_empty());
        Output::json().failure(&failure);
        return FailureCode::Usage.exit();
    }
    // A closed standard output or error is all that can go wrong here, and then there is nobody to tell.
    let _ = error.print();
    if error.use_stderr() { FailureCode::Usage.exit() } else { exit::OK }
}
