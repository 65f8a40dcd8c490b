//! The project's own commands: `cargo xtask demo`, `test`, `simulate`, `soak`, `install`. They need nothing but cargo.

mod cargo;
mod demo;
mod install;
mod mutants;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build what the demo shows, and run it
    Demo {
        /// For `dvm demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format, lints, all tests, a short simulation: what must hold for every commit
    Test,
    /// Run the simulator: --seeds N [--first-seed S]
    Simulate {
        /// For the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Load and unload a plug-in thousands of times: [--cycles N] [--placement process|kernel]
    Soak {
        /// For the program that does it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build for release and put programs, plug-ins and the clients for C and Python in place
    Install(install::Args),
    /// Put deliberate mistakes into a copy of the protocol; the simulator must find each
    Mutants(mutants::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo { args } => demo::run(&args),
        Command::Test => test::run(),
        Command::Simulate { args } => test::simulate(&args),
        Command::Soak { args } => test::soak(&args),
        Command::Install(args) => install::run(&args),
        Command::Mutants(args) => mutants::run_all(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
