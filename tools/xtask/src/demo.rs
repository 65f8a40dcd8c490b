//! `cargo xtask demo`: from a fresh clone to the demo in one command.

use crate::cargo::{self, built, cargo};
use anyhow::Result;
use std::process::Command;

/// What the demo runs.
pub(crate) const PACKAGES: [&str; 3] = ["dvm", "dvm-kernel", "dvm-plugin-counter"];

pub(crate) fn run(args: &[String]) -> Result<()> {
    build(&PACKAGES)?;
    let dvm = built("release").join("dvm");
    let line =
        ["dvm", "demo"].into_iter().chain(args.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    // What the shell has chosen for another DVM is not for this one.
    let mut command = Command::new(dvm);
    command
        .arg("demo")
        .args(args)
        .env_remove("DVM_URI")
        .env_remove("DVM_KERNEL")
        .env_remove("DVM_PLUGIN_PATH");
    cargo::run(&mut command, &line)
}

/// Builds for release.
pub(crate) fn build(packages: &[&str]) -> Result<()> {
    let mut args = vec!["build", "--release"];
    args.extend(packages.iter().flat_map(|package| ["-p", package]));
    cargo(&args)
}
