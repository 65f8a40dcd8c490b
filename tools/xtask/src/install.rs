//! `cargo xtask install`: binaries into PREFIX/bin, plug-ins into PREFIX/lib/dvm/plugins.

use crate::cargo::built;
use crate::demo::build;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Programs.
const BINARIES: [&str; 2] = ["dvm", "dvm-kernel"];

/// Plug-ins.
const PLUGINS: [&str; 1] = ["libcounter.so"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to; default: ~/.local
    #[arg(long)]
    prefix: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let prefix = match &args.prefix {
        Some(prefix) => std::path::absolute(prefix)?,
        None => match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => PathBuf::from(home).join(".local"),
            None => bail!("HOME is not set; say where to with --prefix"),
        },
    };
    build()?;
    for binary in BINARIES {
        put(&built("release").join(binary), &prefix.join("bin"))?;
    }
    for plugin in PLUGINS {
        put(&built("release").join(plugin), &prefix.join("lib/dvm/plugins"))?;
    }
    let bin = prefix.join("bin");
    let in_path =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir == bin));
    if !in_path {
        eprintln!("hint: {} is not in PATH", bin.display());
    }
    Ok(())
}

/// Copies beside the target and renames, so that a running program keeps its file.
fn put(from: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let name = from.file_name().context("a file has a name")?;
    let to = into.join(name);
    let new = into.join(format!(".{}.new", name.to_string_lossy()));
    fs::copy(from, &new).with_context(|| format!("cannot copy {} to {}", from.display(), new.display()))?;
    fs::rename(&new, &to).with_context(|| format!("cannot rename {} to {}", new.display(), to.display()))?;
    eprintln!("installed {}", to.display());
    Ok(())
}
