//! What can be typed. Each group's arguments stand with its commands.

use crate::{
    bench, call, chaos, demo, events, exec, guardian, history, keeper, leave, logs, parse, plugin, promote,
    settings, state, up, wait,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// A distributed virtual machine: members that agree on everything, plug-ins that follow.
#[derive(Debug, Parser)]
#[command(name = "dvm", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The DVM: NAME or unix:PATH; default: your only one on this host
    #[arg(long, global = true, env = "DVM_URI", value_name = "NAME|URI", hide_env_values = true)]
    pub(crate) dvm: Option<String>,
    /// Act through this member: a name, rank:N, or the first 6 or more of an id
    #[arg(long, global = true, value_name = "M")]
    pub(crate) member: Option<String>,
    /// Print a JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print a JSON document a line
    #[arg(long, global = true)]
    pub(crate) json_lines: bool,
    /// Print results only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print more about what is done
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Give up after this long, like 10s or 500ms
    #[arg(long, global = true, value_name = "T", value_parser = parse::duration)]
    pub(crate) timeout: Option<Duration>,
    /// A repeat with the same key takes effect once and returns the first result
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) id: Option<String>,
    /// Colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: When,
    /// The kernel's program; default: beside dvm, then PATH
    #[arg(long, global = true, env = "DVM_KERNEL", value_name = "PATH", hide_env_values = true)]
    pub(crate) kernel: Option<PathBuf>,
}

impl Global {
    /// Makes the choice of colours that of all output.
    pub(crate) fn apply_color(&self) {
        match self.color {
            When::Auto => anstream::ColorChoice::Auto,
            When::Always => anstream::ColorChoice::Always,
            When::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// When colours are used.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a DVM
    Up(up::UpArgs),
    /// Add members
    Add(up::AddArgs),
    /// Let members leave
    Remove(leave::RemoveArgs),
    /// End the DVM
    Halt(leave::HaltArgs),
    /// Your DVMs on this host, live or dead
    List,
    /// Everything about the DVM
    Status,
    /// Its members
    Members,
    /// Its plug-ins
    Plugins,
    /// Its members' logs, readable when no kernel lives
    Logs(logs::LogsArgs),
    /// Load, unload, configure, check plug-ins
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Send a command to a plug-in
    Call(call::CallArgs),
    /// Run a command on members
    Exec(exec::ExecArgs),
    /// Settings of the DVM, tags of a member
    #[command(subcommand)]
    Config(settings::ConfigCommand),
    /// Replicated keys
    #[command(subcommand)]
    State(state::StateCommand),
    /// What happened, and what happens
    Events(events::EventsArgs),
    /// The entries of the history, and whether members agree on it
    History(history::HistoryArgs),
    /// Wait until something holds
    Wait(wait::WaitArgs),
    /// Make this side's history the confirmed one
    Promote(promote::PromoteArgs),
    /// Print a single-use join ticket
    Ticket,
    /// Faults, on a DVM started with --set chaos=true
    #[command(subcommand)]
    Chaos(chaos::ChaosCommand),
    /// Measure, beside a raw ring in the same run
    Bench(bench::BenchArgs),
    /// See it work: five kernels, a kill, nothing lost
    Demo(demo::DemoArgs),
    /// A process of the raw ring that `bench` compares with
    #[command(hide = true)]
    RawRingNode,
    /// Cleans up when its standard input ends
    #[command(hide = true)]
    Keeper(keeper::KeeperArgs),
    /// Starts dead kernels again
    #[command(hide = true)]
    Guardian(guardian::GuardianArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
