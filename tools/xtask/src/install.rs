//! `cargo xtask install`: what it puts in place below PREFIX.
//!
//! ```text
//! bin/dvm, bin/dvm-kernel           programs
//! include/dvm.h                     the client for C
//! include/dvm_plugin.h              plug-ins in C
//! lib/libdvm.so.1, .so, .a
//! lib/pkgconfig/dvm.pc
//! lib/dvm/plugins/                  plug-ins
//! lib/dvm/plugin-api/               what plug-ins in Rust are built against, as a package of its own
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
const PLUGINS: [&str; 4] = ["libcounter.so", "libhooks.so", "libjobs.so", "libmetrics.so"];

/// Packages beyond those of the demo: the client for C, and the plug-ins.
const MORE: [&str; 4] = ["dvm-capi", "dvm-plugin-hooks", "dvm-plugin-jobs", "dvm-plugin-metrics"];

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
    api(&prefix.join("lib/dvm/plugin-api"))?;
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

/// The sources of `dvm-plugin-api`, which projects of `dvm plugin new` name by their path.
fn api(into: &Path) -> Result<()> {
    let from = root().join("plugin-api");
    let read =
        |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    let manifest = alone(&read(from.join("Cargo.toml"))?, &read(root().join("Cargo.toml"))?);
    // What an older version had and this one has not would be compiled, or at least read.
    let sources = into.join("src");
    if sources.exists() {
        fs::remove_dir_all(&sources).with_context(|| format!("cannot remove {}", sources.display()))?;
    }
    let mut left = vec![from.join("src")];
    while let Some(directory) = left.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                let to = into.join(path.strip_prefix(&from).context("it is below its directory")?);
                fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
                copy(&path, &to)?;
            }
        }
    }
    put(&root().join("Cargo.lock"), into)?;
    place(&into.join("Cargo.toml"), |new| fs::write(new, manifest).context("cannot write"))
}

/// A package's manifest with what it inherits from its workspace: it becomes one of its own. The workspace's other members,
/// and how they are compiled, stay behind.
fn alone(package: &str, workspace: &str) -> String {
    let (mut inherited, mut kept) = (String::new(), false);
    for line in workspace.lines() {
        if line.starts_with('[') {
            kept = line.starts_with("[workspace.");
        }
        let member = line.starts_with("dvm-") && line.contains("path =");
        if kept && !member && !line.starts_with('#') && !line.is_empty() {
            inherited.push_str(line);
            inherited.push('\n');
        }
    }
    format!("{package}\n{inherited}")
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_api_is_installed_as_a_package_of_its_own() {
        let prefix = std::env::temp_dir().join(format!("dvm-install-{}", std::process::id()));
        let into = prefix.join("lib/dvm/plugin-api");
        // Twice: what is there gives way.
        for _ in 0..2 {
            api(&into).expect("installed");
            fs::write(into.join("src/stale.rs"), "").expect("written");
        }
        api(&into).expect("installed");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["tree", "--offline", "--edges", "normal", "--manifest-path"]);
        let output = cargo.arg(into.join("Cargo.toml")).output().expect("cargo runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let stale = into.join("src/stale.rs").exists();
        fs::remove_dir_all(&prefix).expect("removed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(told.contains("dvm-plugin-api") && !told.contains("dvm-core"), "{told}");
        assert!(!stale, "what another version had is gone");
    }
}
