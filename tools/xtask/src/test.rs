//! `cargo xtask test`: the README's test command, and what CI runs.
//!
//! A tool that is not installed makes its step a skip, which is told and counted at the end. Where `CI` is `true` a skip
//! is a failure: there nobody reads it.

use crate::cargo::{cargo, has};
use crate::demo::{PACKAGES, build};
use anyhow::{Result, bail};
use std::env;

/// Packages whose libraries tests load.
const LIBRARIES: [&str; 7] = [
    "dvm-capi",
    "dvm-plugin-counter",
    "dvm-plugin-hooks",
    "dvm-plugin-jobs",
    "dvm-plugin-ledger",
    "dvm-plugin-metrics",
    "dvm-plugin-services",
];

pub(crate) fn run() -> Result<()> {
    let mut skipped = Vec::new();
    if has("fmt") {
        cargo(&["fmt", "--all", "--check"])?;
    } else {
        skipped.push("format: rustfmt is not installed; rustup component add rustfmt");
    }
    if has("clippy") {
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    } else {
        skipped.push("lints: clippy is not installed; rustup component add clippy");
    }
    // Tests of real processes run these, and cargo does not build other packages' binaries for them.
    cargo(&["build", "--workspace", "--bins"])?;
    let libraries = LIBRARIES.iter().flat_map(|library| ["-p", library]);
    cargo(&["build"].into_iter().chain(libraries).collect::<Vec<_>>())?;
    simulate(&["--seeds", SEEDS])?;
    if has("nextest") {
        cargo(&["nextest", "run", "--workspace"])?;
        // nextest leaves out the examples in the documentation.
        cargo(&["test", "--workspace", "--doc", "--quiet"])?;
    } else {
        cargo(&["test", "--workspace"])?;
    }
    for skip in &skipped {
        eprintln!("skipped {skip}");
    }
    if !skipped.is_empty() && env::var("CI").is_ok_and(|ci| ci == "true") {
        bail!("{} steps skipped, and CI=true wants all of them", skipped.len());
    }
    eprintln!("all passed, {} skipped", skipped.len());
    Ok(())
}

/// Runs the simulator, compiled for release.
pub(crate) fn simulate<S: AsRef<str>>(args: &[S]) -> Result<()> {
    let mut all = vec!["run", "--release", "--quiet", "-p", "dvm-tests", "--bin", "simulate", "--"];
    all.extend(args.iter().map(AsRef::as_ref));
    cargo(&all)
}

/// Loads and unloads a plug-in many times in a DVM of real kernels, all compiled for release.
pub(crate) fn soak(args: &[String]) -> Result<()> {
    build(&PACKAGES)?;
    let mut all = vec!["run", "--release", "--quiet", "-p", "dvm-tests", "--bin", "soak", "--"];
    all.extend(args.iter().map(String::as_str));
    cargo(&all)
}

/// Seeds of the simulator that every change must pass.
const SEEDS: &str = "3000";
