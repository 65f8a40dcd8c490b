//! `plugin new`: a project that builds, tests itself without a DVM, and loads as it is.
//!
//! In C the header is put into the project. In Rust the project depends by path on `dvm-plugin-api` as it was installed, or
//! as it is in the checkout that this program was built in.

use crate::context::Context;
use crate::exit::{self, failed, usage};
use clap::{Args, ValueEnum};
use dvm_plugin_api::local::{Failure, FailureCode};
use serde_json::json;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where `cargo xtask install` puts the sources of `dvm-plugin-api`, below the prefix.
const INSTALLED: &str = "lib/dvm/plugin-api";

/// Longest name, bytes.
const NAME_MAX: usize = 48;

/// Words that cannot be a library's name in Rust, and files and packages that a project has already.
const TAKEN: &str = "abstract alloc as async await become box break build const continue core crate do dvm_plugin_api dyn \
    else enum extern false final fn for gen if impl in let loop macro match mod move mut override priv \
    proc_macro pub ref return self serde static std struct super test trait true try type typeof unsafe \
    unsized use virtual where while yield";

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Its name, and that of its directory, which is new or empty
    name: String,
    /// In which language
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// Where the sources of dvm-plugin-api are, for Rust; default: as installed, or those of this program's checkout
    #[arg(long, value_name = "DIR")]
    api: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    C,
}

/// A file of a project: its path in it, and its text.
type File = (String, String);

pub(crate) fn new(context: &Context, args: &NewArgs) -> exit::Result {
    let NewArgs { name, lang, api } = args;
    check(name)?;
    // What is missing is told before anything is made.
    let files = match lang {
        Language::Rust => rust(name, &find_api(api.as_deref())?)?,
        Language::C => c(name),
    };
    let directory = Path::new(name);
    vacant(directory)?;
    for (path, text) in &files {
        let path = directory.join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.map_err(|error| failed(format!("cannot write {}: {error}", path.display())))?;
    }
    let (language, steps) = match lang {
        Language::Rust => {
            ("rust", ["cargo test".to_owned(), "cargo build".into(), load("target/debug/", name)])
        }
        Language::C => ("c", ["make test".to_owned(), "make".into(), load("", name)]),
    };
    let paths: Vec<&String> = files.iter().map(|(path, _)| path).collect();
    let document =
        json!({"name": name, "lang": language, "directory": directory, "files": paths, "next": steps});
    context.out.tell(&document, || {
        let made = paths.iter().map(|path| format!("\n  {path}")).collect::<String>();
        let next = steps.iter().map(|step| format!("\n  {step}")).collect::<String>();
        format!("{name} is made, in {}:{made}\nnext, in it:{next}", directory.display())
    });
    Ok(exit::OK)
}

fn load(directory: &str, name: &str) -> String {
    format!("dvm plugin load ./{directory}lib{name}.so")
}

/// Whether a plug-in may have this name, in either language.
fn check(name: &str) -> Result<(), Failure> {
    let letters = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
    let begins = name.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
    let bad = |why: &str| Err(usage(format!("`{name}` is no name for a plug-in")).cause(why));
    if !letters || !begins {
        return bad("a name begins with a letter and has lower-case letters, digits and `_`");
    }
    if name.len() > NAME_MAX {
        return bad(&format!("it has {} letters, at most {NAME_MAX} are allowed", name.len()));
    }
    if TAKEN.split(' ').any(|taken| taken == name) {
        return bad("the word means something else to the compiler");
    }
    Ok(())
}

/// Whether nothing is there that would be lost.
fn vacant(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(failed(format!("the directory {shown} is not empty"))
                .hint("give another name, or empty it; nothing was written")),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(failed(format!("{shown} is there, and is no directory")).hint("give another name"))
        }
        Err(error) => Err(failed(format!("cannot look into {shown}: {error}"))),
    }
}

/// Whether the sources of `dvm-plugin-api` are here.
fn is_api(directory: &Path) -> bool {
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap_or_default();
    manifest.lines().any(|line| line == "name = \"dvm-plugin-api\"")
}

fn find_api(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let hint = "run `cargo xtask install`, or give a checkout's plugin-api with --api DIR";
    if let Some(given) = given {
        let found = std::path::absolute(given).ok().filter(|directory| is_api(directory));
        return found.ok_or_else(|| {
            usage(format!("the sources of dvm-plugin-api are not in {}", given.display())).hint(hint)
        });
    }
    let program = std::env::current_exe().unwrap_or_default();
    let installed = program.parent().and_then(Path::parent).map(|prefix| prefix.join(INSTALLED));
    let checkout = program.ancestors().skip(1).map(|directory| directory.join("plugin-api"));
    installed.into_iter().chain(checkout).find(|directory| is_api(directory)).ok_or_else(|| {
        Failure::new(FailureCode::NotFound, "the sources of dvm-plugin-api are not found")
            .cause(format!("they are neither in {INSTALLED} below the prefix of this program nor beside it"))
            .hint(hint)
    })
}

fn rust(name: &str, api: &Path) -> Result<Vec<File>, Failure> {
    let shown = api.to_str().ok_or_else(|| failed(format!("{} is no text", api.display())))?;
    let fill = |template: &str| {
        template.replace("@name@", name).replace("@api@", &toml::Value::String(shown.into()).to_string())
    };
    let mut files = vec![
        ("Cargo.toml".to_owned(), fill(include_str!("../templates/rust/Cargo.toml.in"))),
        ("src/lib.rs".into(), fill(include_str!("../templates/rust/lib.rs.in"))),
        ("README.md".into(), fill(include_str!("../templates/rust/README.md.in"))),
        (".gitignore".into(), "/target\n".into()),
    ];
    // The versions that it is known to build with, and that are there already where it was built.
    let locks = [Some(api), api.parent()].into_iter().flatten().map(|directory| directory.join("Cargo.lock"));
    if let Some(lock) = locks.filter_map(|path| fs::read_to_string(path).ok()).next() {
        files.push(("Cargo.lock".into(), lock));
    }
    Ok(files)
}

fn c(name: &str) -> Vec<File> {
    let me = std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned));
    // A `$` and a blank mean something to make and to the shell: then the one in PATH has to do.
    let me = me.filter(|path| path.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c)));
    let me = me.unwrap_or_else(|| "dvm".into());
    let fill = |template: &str| template.replace("@name@", name).replace("@dvm@", &me);
    vec![
        (format!("{name}.c"), fill(include_str!("../templates/c/plugin.c.in"))),
        ("test.c".into(), fill(include_str!("../templates/c/test.c.in"))),
        ("dvm_plugin.h".into(), include_str!("../../../plugin-api/capi/include/dvm_plugin.h").into()),
        ("Makefile".into(), fill(include_str!("../templates/c/Makefile.in"))),
        ("README.md".into(), fill(include_str!("../templates/c/README.md.in"))),
        (".gitignore".into(), format!("/lib{name}.so\n/run-tests\n")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_libraries_in_both_languages() {
        for good in ["a", "counter", "my_book2"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "2a", "_a", "My", "my-book", "a/b", "..", "a b", "é", "test", "fn", "yield"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check(&"a".repeat(NAME_MAX)).is_ok() && check(&"a".repeat(NAME_MAX + 1)).is_err());
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        let files = rust("thing", Path::new("/somewhere/\"odd\"")).expect("a path that is text");
        let manifest: toml::Table = toml::from_str(&files[0].1).expect("TOML");
        assert_eq!(manifest["dependencies"]["dvm-plugin-api"]["path"].as_str(), Some("/somewhere/\"odd\""));
        for (path, text) in files.into_iter().chain(c("thing")) {
            assert!(!["@name@", "@api@", "@dvm@"].iter().any(|blank| text.contains(blank)), "{path}");
        }
    }
}
