//! `cargo xtask mutants`: deliberate mistakes in the protocol, each of which the simulator must find.
//!
//! A mutant is a file in `tests/mutants`: which rule it breaks, one sentence, and text to find and to replace. It is put
//! into a copy of the sources, never into the checkout; the simulator is built there and plays seeds until one fails.
//! `none` stands for the sources as they are: the control that the seeds themselves are clean.

use crate::cargo::{built, root, run};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the copy leaves behind.
const NOT_COPIED: [&str; 3] = ["target", ".git", "docs"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seeds that a mutant may survive
    #[arg(long, default_value_t = 4_000)]
    seeds: u64,
    /// Only verify that every text to find occurs exactly once
    #[arg(long)]
    check: bool,
    /// Which ones; all when none is named
    names: Vec<String>,
}

/// One deliberate mistake.
#[derive(Debug, PartialEq, Eq)]
struct Mutant {
    name: String,
    /// The rule it breaks.
    rule: String,
    edits: Vec<Edit>,
}

/// One replacement of text.
#[derive(Debug, PartialEq, Eq)]
struct Edit {
    /// From the workspace's root.
    file: String,
    find: String,
    replace: String,
}

/// How a mutant fared.
enum Fate {
    Killed { by: String, seed: u64 },
    Survived,
}

pub(crate) fn run_all(args: &Args) -> Result<()> {
    let mutants = chosen(&args.names)?;
    for mutant in &mutants {
        mutant.applied(&root())?;
    }
    if args.check {
        eprintln!("{} mutants, every text to find is there once", mutants.len());
        return Ok(());
    }
    let copy = built("mutants").join("workspace");
    refresh(&root(), &copy)?;
    let mut lines = Vec::new();
    let mut wrong = Vec::new();
    for mutant in &mutants {
        let fate = mutant.play(&copy, args.seeds)?;
        let is_control = mutant.edits.is_empty();
        let (by, seeds) = match &fate {
            Fate::Killed { by, seed } => (by.clone(), seed.to_string()),
            Fate::Survived => ("survives".into(), format!("> {}", args.seeds)),
        };
        if matches!(fate, Fate::Survived) != is_control {
            wrong.push(mutant.name.as_str());
        }
        let line = format!("| {} | {} | {by} | {seeds} |", mutant.name, mutant.rule);
        eprintln!("{line}");
        lines.push(line);
    }
    eprintln!(
        "\n| mutant | rule | killed by | seeds needed |\n| --- | --- | --- | ---: |\n{}",
        lines.join("\n")
    );
    if !wrong.is_empty() {
        bail!("not as it should be: {}", wrong.join(", "));
    }
    Ok(())
}

/// The control, then the mutants by name; or those that are named.
fn chosen(names: &[String]) -> Result<Vec<Mutant>> {
    let control = Mutant { name: "none".into(), rule: "-".into(), edits: Vec::new() };
    let all: Vec<_> = [control].into_iter().chain(read_all()?).collect();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|mutant| mutant.name == **name)) {
        bail!("no mutant is called {unknown}; they are in tests/mutants");
    }
    Ok(all.into_iter().filter(|mutant| names.is_empty() || names.contains(&mutant.name)).collect())
}

fn read_all() -> Result<Vec<Mutant>> {
    let directory = root().join("tests/mutants");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let mut mutants = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "txt")) {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().context("a file has a name")?.to_string_lossy();
        mutants.push(Mutant::parse(&name, &text).with_context(|| format!("{}", path.display()))?);
    }
    Ok(mutants)
}

impl Mutant {
    /// `rule:` and `file:` lines, a sentence, then `find:` and `replace:` blocks; a later `file:` turns to another file.
    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut mutant = Self { name: name.into(), rule: String::new(), edits: Vec::new() };
        let (mut file, mut block): (_, Option<&str>) = (String::new(), None);
        for line in text.lines() {
            if let Some(rule) = line.strip_prefix("rule: ") {
                mutant.rule = rule.into();
            } else if let Some(path) = line.strip_prefix("file: ") {
                (file, block) = (path.into(), None);
            } else if line == "find:" {
                let (find, replace) = (String::new(), String::new());
                mutant.edits.push(Edit { file: file.clone(), find, replace });
                block = Some(line);
            } else if line == "replace:" {
                block = Some(line);
            } else if let (Some(block), Some(edit)) = (block, mutant.edits.last_mut()) {
                let text = if block == "find:" { &mut edit.find } else { &mut edit.replace };
                text.push_str(line);
                text.push('\n');
            }
        }
        ensure!(!mutant.rule.is_empty(), "no `rule:`");
        let whole = |edit: &Edit| !edit.file.is_empty() && !edit.find.is_empty();
        ensure!(!mutant.edits.is_empty() && mutant.edits.iter().all(whole), "no `file:` or no `find:`");
        Ok(mutant)
    }

    /// The files it changes, as they are and as they become.
    fn applied(&self, tree: &Path) -> Result<Vec<(PathBuf, String, String)>> {
        let mut files: Vec<(PathBuf, String, String)> = Vec::new();
        for edit in &self.edits {
            let path = tree.join(&edit.file);
            if !files.iter().any(|(known, ..)| *known == path) {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                files.push((path.clone(), text.clone(), text));
            }
            let (.., text) = files.iter_mut().find(|(known, ..)| *known == path).expect("put there above");
            let times = text.matches(&edit.find).count();
            ensure!(times == 1, "{}: in {} this occurs {times} times:\n{}", self.name, edit.file, edit.find);
            *text = text.replace(&edit.find, &edit.replace);
        }
        Ok(files)
    }

    /// Builds the simulator with the mistake in it and plays seeds from 1 on.
    fn play(&self, copy: &Path, seeds: u64) -> Result<Fate> {
        let files = self.applied(copy)?;
        for (path, _, text) in &files {
            fs::write(path, text)?;
        }
        let target = built("mutants").join("build");
        let built = build(copy, &target);
        for (path, text, _) in &files {
            fs::write(path, text)?;
        }
        built.with_context(|| format!("{} does not compile", self.name))?;
        let mut simulate = Command::new(target.join("release/simulate"));
        simulate.args(["--failures", "1", "--seeds", &seeds.to_string()]);
        let output = simulate.output().context("cannot run the simulator")?;
        let told = String::from_utf8_lossy(&output.stdout);
        // Seeds are taken in order, so the least one that failed is the first that fails.
        let lines: Vec<_> = told.lines().collect();
        let failures = (0..lines.len()).filter_map(|at| failure(lines[at], lines.get(at + 1).unwrap_or(&"")));
        match failures.min_by_key(|(seed, _)| *seed) {
            Some((seed, by)) => Ok(Fate::Killed { by, seed }),
            None if output.status.success() => Ok(Fate::Survived),
            None => bail!("the simulator ended with {} and told no failure", output.status),
        }
    }
}

fn build(copy: &Path, target: &Path) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(copy).env("CARGO_TARGET_DIR", target);
    command.args(["build", "--release", "--quiet", "-p", "dvm-tests", "--bin", "simulate"]);
    // Warnings about what a mistake leaves unused are of no interest.
    command.env("RUSTFLAGS", "-Awarnings");
    run(&mut command, "cargo build --release -p dvm-tests --bin simulate")
}

/// Seed and cause of a line `seed N failed: CLASS [RULE] at T s: TEXT`; a panic's words are on the next one.
fn failure(line: &str, next: &str) -> Option<(u64, String)> {
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(" failed: ")?;
    let (class, rest) = rest.split_once(" [")?;
    let (rule, _) = rest.split_once(']')?;
    let cause = match class {
        "panic" => {
            let short: String = next.chars().take(60).collect();
            format!("assertion: {}", short.replace('|', "/"))
        }
        _ => format!("{rule} ({class})"),
    };
    Some((seed.parse().ok()?, cause))
}

/// Makes the copy equal to the sources; what is equal already keeps its time, so that little is built again.
fn refresh(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut present = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if NOT_COPIED.iter().any(|not| name == *not) {
            continue;
        }
        let target = to.join(&name);
        if kind.is_dir() {
            refresh(&entry.path(), &target)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path())?;
            if fs::read(&target).ok().as_ref() != Some(&bytes) {
                fs::write(&target, bytes)?;
            }
        }
        present.push(name);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !present.contains(&entry.file_name()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_to_find_is_there_once() {
        for mutant in read_all().expect("the mutants parse") {
            mutant.applied(&root()).expect("the mutant can be applied");
        }
    }

    #[test]
    fn a_mutant_may_change_several_files() {
        let text = "file: a.rs\nrule: R1\nSay why.\n\nfind:\n    x\nreplace:\n    y\nfile: b.rs\nfind:\nz\nreplace:\n";
        let mutant = Mutant::parse("m", text).expect("it is whole");
        assert_eq!(mutant.rule, "R1");
        let edits: Vec<_> =
            mutant.edits.iter().map(|e| (e.file.as_str(), e.find.as_str(), e.replace.as_str())).collect();
        assert_eq!(edits, [("a.rs", "    x\n", "    y\n"), ("b.rs", "z\n", "")]);
    }

    #[test]
    fn a_failure_is_read_from_the_simulators_line() {
        let line = "seed 12 failed: safety [I3] at 1.250000 s: two histories";
        assert_eq!(failure(line, ""), Some((12, "I3 (safety)".into())));
        let line = "seed 3 failed: panic [panic] at 0.5 s: panicked at dvm-core/src/ring.rs:286:9:";
        let cause = "assertion: deliveries go by key".to_owned();
        assert_eq!(failure(line, "deliveries go by key"), Some((3, cause)));
    }
}
