//! `cargo xtask install`: what it puts in place below PREFIX.
//!
//! ```text
//! bin/dvm, bin/dvm-kernel           programs
//! include/dvm.h                     the client for C
//! include/dvm_plugin.h              plug-ins in C
//! lib/libdvm.so.1, .so, .a
//! lib/pkgconfig/dvm.pc
//! lib/dvm/plugins/                  plug-ins
//! lib/dvm/python/dvm.py             the client for Python
//! ```

use crate::cargo::{built, root};
use crate::demo::{PACKAGES, build};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Programs.
const BINARIES: [&str; 2] = ["dvm", "dvm-kernel"];

/// Plug-ins.
const PLUGINS: [&str; 2] = ["libcounter.so", "libhooks.so"];

/// Packages beyond those of the demo: the client for C, and the plug-ins.
const MORE: [&str; 2] = ["dvm-capi", "dvm-plugin-hooks"];

/// Under which name the client for C is looked for at run time.
const SONAME: &str = "libdvm.so.1";

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
    build(&[&PACKAGES[..], &MORE].concat())?;
    for binary in BINARIES {
        put(&built("release").join(binary), &prefix.join("bin"))?;
    }
    for plugin in PLUGINS {
        put(&built("release").join(plugin), &prefix.join("lib/dvm/plugins"))?;
    }
    client(&prefix)?;
    let bin = prefix.join("bin");
    let in_path =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir == bin));
    if !in_path {
        eprintln!("hint: {} is not in PATH", bin.display());
    }
    Ok(())
}

/// The client for C and for Python.
fn client(prefix: &Path) -> Result<()> {
    let (sources, lib) = (root().join("plugin-api"), prefix.join("lib"));
    for header in ["dvm.h", "dvm_plugin.h"] {
        put(&sources.join("capi/include").join(header), &prefix.join("include"))?;
    }
    put(&built("release").join("libdvm.a"), &lib)?;
    place(&lib.join(SONAME), |new| copy(&built("release").join("libdvm.so"), new))?;
    place(&lib.join("libdvm.so"), |new| symlink(SONAME, new).context("cannot link"))?;
    let template = sources.join("capi/dvm.pc.in");
    let text =
        fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
    let text = text.replace("@prefix@", &prefix.display().to_string());
    place(&lib.join("pkgconfig/dvm.pc"), |new| fs::write(new, text).context("cannot write"))?;
    let python = lib.join("dvm/python");
    put(&sources.join("python/dvm.py"), &python)?;
    eprintln!("hint: for Python, export PYTHONPATH={}", python.display());
    Ok(())
}

/// Puts a file into a directory under its own name.
fn put(from: &Path, into: &Path) -> Result<()> {
    place(&into.join(from.file_name().context("a file has a name")?), |new| copy(from, new))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
}

/// Makes a file beside its place and renames it, so that a running program keeps the one it has.
fn place(to: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let into = to.parent().context("a file is in a directory")?;
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let new = into.join(format!(".{}.new", to.file_name().context("a file has a name")?.to_string_lossy()));
    // One that was interrupted may have left it.
    let _ = fs::remove_file(&new);
    make(&new).with_context(|| format!("cannot make {}", to.display()))?;
    fs::rename(&new, to).with_context(|| format!("cannot rename {} to {}", new.display(), to.display()))?;
    eprintln!("installed {}", to.display());
    Ok(())
}
