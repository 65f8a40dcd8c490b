//! A plug-in's library as a file: where it is, what its manifest says. Nothing of it is run.

use crate::exit::usage;
use crate::table::count;
use dvm_plugin_api::local::{Failure, FailureCode};
use dvm_plugin_api::manifest::{self, Manifest};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Largest library, bytes.
const LIBRARY_MAX: u64 = 1 << 30;

/// A library that passed all checks that can be made without running it.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// BLAKE3, hexadecimal.
    pub(crate) hash: String,
    pub(crate) manifest: Manifest,
    pub(crate) warnings: Vec<String>,
}

impl Library {
    /// As `plugin check --json` prints it.
    pub(crate) fn report(&self) -> Value {
        let Manifest { name, version, abi, payload, capabilities } = &self.manifest;
        json!({
            "ok": true,
            "file": self.path,
            "name": name,
            "version": version,
            "abi": abi,
            "payload": payload,
            "capabilities": capabilities,
            "hash": self.hash,
            "size": self.bytes.len(),
            "needed": manifest::needed(&self.bytes),
            "warnings": self.warnings,
        })
    }

    pub(crate) fn text(&self) -> String {
        let Manifest { name, version, abi, payload, .. } = &self.manifest;
        let mut text = format!(
            "{name} {version}, ABI {abi}, payload {payload}\n{} ({} bytes)\nhash {}",
            self.path.display(),
            self.bytes.len(),
            self.hash
        );
        let needed = manifest::needed(&self.bytes);
        let needed = if needed.is_empty() { "no library".into() } else { needed.join(", ") };
        text.push_str(&format!("\nneeds {needed}"));
        text.push_str(match self.manifest.can("snapshot") {
            true => "\nits state is handed over",
            false => "\nit has no state: an instance of a member that joins later starts fresh",
        });
        for warning in &self.warnings {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        let verdict = match self.warnings.len() {
            0 => "nothing seen against it".into(),
            warnings => count(warnings, "warning"),
        };
        text.push_str(&format!(
            "\n{verdict}; it was not run: `dvm plugin test {}` does",
            self.path.display()
        ));
        text
    }
}

/// The file that is meant: a path as it is, a name as `libNAME.so` in `DVM_PLUGIN_PATH`, `PREFIX/lib/dvm/plugins`, or
/// beside this program.
pub(crate) fn find(given: &str) -> Result<PathBuf, Failure> {
    if given.contains('/') {
        return Ok(given.into());
    }
    let file = if given.ends_with(".so") { given.to_owned() } else { format!("lib{given}.so") };
    let directories = directories();
    directories.iter().map(|directory| directory.join(&file)).find(|path| path.is_file()).ok_or_else(|| {
        let searched: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        Failure::new(FailureCode::NotFound, format!("no plug-in `{given}`"))
            .cause(format!("{file} is not in {}", searched.join(", ")))
            .hint("give a path with a `/`, or set DVM_PLUGIN_PATH")
    })
}

fn directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = std::env::var_os("DVM_PLUGIN_PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    directories.retain(|directory| !directory.as_os_str().is_empty());
    if let Some(beside) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        directories.extend(beside.parent().map(|prefix| prefix.join("lib/dvm/plugins")));
        directories.push(beside.into());
    }
    directories
}

/// Reads a library and checks what can be checked without running it.
pub(crate) fn read(path: &Path) -> Result<Library, Failure> {
    let unreadable = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => FailureCode::NotFound,
            _ => FailureCode::Failure,
        };
        Failure::new(code, format!("cannot read {}: {error}", path.display()))
    };
    let found = fs::metadata(path).map_err(unreadable)?;
    if !found.is_file() || found.len() > LIBRARY_MAX {
        let why = match found.is_file() {
            true => format!("it has {} bytes, at most {LIBRARY_MAX} are allowed", found.len()),
            false => "it is no regular file".into(),
        };
        return Err(usage(format!("{} is no library", path.display())).cause(why));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let manifest = manifest::read(&bytes).map_err(|error| {
        let text = format!("{} is no plug-in that loads here", path.display());
        let failure = Failure::new(FailureCode::Failure, text).cause(format!("{} ({})", error, error.code()));
        match error.code() {
            "corrupt" => failure.hint("build it again, or copy the whole file"),
            "wrong-machine" => failure.hint("build it on a machine like this one"),
            _ => failure.hint("`dvm plugin new` makes a plug-in to compare with"),
        }
    })?;
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let mut warnings = Vec::new();
    if !manifest::catches_panics(&bytes) {
        warnings.push(format!("with --placement kernel it is refused: {}", manifest::ABORTS));
    }
    Ok(Library { path: path.into(), bytes, hash, manifest, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_says_that_nothing_was_run_and_whether_there_is_a_state() {
        let text = |capabilities: &[&str], warnings: &[&str]| {
            let own = |words: &[&str]| words.iter().map(ToString::to_string).collect();
            let manifest = Manifest {
                name: "lease".into(),
                version: "0.1.0".into(),
                abi: "1.1".into(),
                payload: "json".into(),
                capabilities: own(capabilities),
            };
            let (path, hash) = ("./liblease.so".into(), String::new());
            Library { path, bytes: Vec::new(), hash, manifest, warnings: own(warnings) }.text()
        };
        let plain = text(&["snapshot"], &[]);
        assert!(plain.contains("its state is handed over"), "{plain}");
        assert!(
            plain.ends_with("nothing seen against it; it was not run: `dvm plugin test ./liblease.so` does")
        );
        let warned = text(&[], &["it aborts"]);
        assert!(warned.contains("it has no state"), "{warned}");
        assert!(warned.contains("\nwarning: it aborts\n1 warning; it was not run"), "{warned}");
    }
}
