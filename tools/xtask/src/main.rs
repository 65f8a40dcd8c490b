//! The project's own commands: `cargo xtask test` and `cargo xtask simulate`.
#![expect(clippy::print_stdout, reason = "a tool for people: it says what it runs")]

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::process::Command;

#[derive(Parser)]
#[command(about = "The project's own commands")]
enum Task {
    /// Every check that decides whether a change lands.
    Test,
    /// The protocol under faults: many members, one seed a run.
    Simulate {
        /// Arguments of the simulator, such as `--seeds N --first-seed S`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Test => test(),
        Task::Simulate { arguments } => {
            let mut all = vec!["run", "--release", "--package", "dvm-tests", "--bin", "simulate", "--"];
            all.extend(arguments.iter().map(String::as_str));
            cargo(&all)
        }
    }
}

fn test() -> Result<()> {
    let nextest = Command::new("cargo").args(["nextest", "--version"]).output();
    if nextest.is_ok_and(|output| output.status.success()) {
        cargo(&["nextest", "run", "--workspace"])
    } else {
        cargo(&["test", "--workspace"])
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    println!("cargo {}", arguments.join(" "));
    let status = Command::new("cargo").args(arguments).status().context("cargo does not start")?;
    if !status.success() {
        bail!("`cargo {}` failed: {status}", arguments.join(" "));
    }
    Ok(())
}
