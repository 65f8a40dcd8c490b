//! Runs cargo in the workspace, and says so.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace's directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tools/xtask is two below the workspace").to_path_buf()
}

/// Where a profile's binaries and libraries are, as cargo has it.
pub(crate) fn built(profile: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target).join(profile)
}

/// Runs cargo with these arguments; an exit status other than 0 is an error.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    run(cargo_command().args(args), &format!("cargo {}", args.join(" ")))
}

/// Runs a command, shown as `line`.
pub(crate) fn run(command: &mut Command, line: &str) -> Result<()> {
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Whether cargo has this subcommand.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut command = cargo_command();
    command.args([subcommand, "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn cargo_command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
