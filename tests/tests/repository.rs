//! Rules of the repository that no compiler keeps: who depends on whom, what the documentation promises.
//!
//! Each failure names the file, the line and what to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our packages each package may use; tests may use more.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("dvm-core", &[]),
    ("dvm-plugin-api", &[]),
    ("dvm-capi", &["dvm-plugin-api"]),
    ("dvm-kernel", &["dvm-core", "dvm-plugin-api"]),
    ("dvm-plugin-counter", &["dvm-plugin-api"]),
    ("dvm-plugin-hooks", &["dvm-plugin-api"]),
    ("dvm-plugin-jobs", &["dvm-plugin-api"]),
    ("dvm-plugin-ledger", &["dvm-plugin-api"]),
    ("dvm-plugin-metrics", &["dvm-plugin-api"]),
    ("dvm-plugin-services", &["dvm-plugin-api"]),
    ("dvm", &["dvm-plugin-api"]),
    ("xtask", &[]),
    ("dvm-tests", &["dvm-core", "dvm-plugin-api"]),
];

/// Dependencies that belong to some packages only, and why.
const KEPT_TO: [(&str, &[&str], &str); 4] = [
    ("abi_stable", &["dvm-plugin-api"], "the ABI is the plug-in API's matter alone"),
    ("tokio", &["dvm-kernel"], "the core is a value, and the client lives in programs that have no runtime"),
    ("rustls", &["dvm-kernel", "dvm"], "only kernels speak to each other; `dvm bench` measures a raw ring"),
    ("clap", &["dvm-kernel", "dvm", "xtask", "dvm-tests"], "libraries take no arguments"),
];

/// All that the core may use: nothing of it does IO, reads a clock or draws entropy.
const CORE_MAY_USE: [&str; 6] = ["blake3", "bytes", "postcard", "rpds", "serde", "thiserror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the workspace").to_path_buf()
}

/// Files below `directory` whose names end so, without what is built, what git keeps, and what is frozen.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        // What is frozen is as it was.
        let is_frozen = path == root().join("tests/abi");
        if path.is_dir() && name != "target" && name != ".git" && !is_frozen {
            found.extend(files(&path, ending));
        } else if path.is_file() && name.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path as it is said in a message.
fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Fails with all that is wrong at once.
fn complain(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Name and dependencies of a package; those of its tests are left out.
fn package(manifest: &str) -> (String, Vec<String>) {
    let (mut name, mut uses, mut table) = (String::new(), Vec::new(), "");
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_end_matches(']');
            if let Some(one) = table.strip_prefix("dependencies.") {
                uses.push(one.to_owned());
            }
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim().trim_end_matches(".workspace");
            match table {
                "package" if key == "name" => name = value.trim().trim_matches('"').to_owned(),
                "dependencies" => uses.push(key.to_owned()),
                _ => {}
            }
        }
    }
    (name, uses)
}

fn packages() -> BTreeMap<String, Vec<String>> {
    let manifests = files(&root(), "Cargo.toml").into_iter().map(|path| read(&path));
    manifests.map(|text| package(&text)).filter(|(name, _)| !name.is_empty()).collect()
}

#[test]
fn a_manifest_is_read() {
    let text = "[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\nc = { path = \"c\" }\n\
                [dependencies.d]\n[dev-dependencies]\ne = \"1\"\n";
    assert_eq!(package(text), ("a".into(), vec!["b".into(), "c".into(), "d".into()]));
}

#[test]
fn dependencies_point_one_way() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, uses) in &packages {
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| known == name) else {
            wrong.push(format!("package {name} is new: say in MAY_USE which of ours it may use"));
            continue;
        };
        let ours = uses.iter().filter(|used| packages.contains_key(*used));
        for used in ours.filter(|used| !allowed.contains(&used.as_str())) {
            wrong.push(format!("{name} uses {used}; it may use {allowed:?}"));
        }
        for (dependency, users, why) in KEPT_TO {
            if uses.iter().any(|used| used == dependency) && !users.contains(&name.as_str()) {
                wrong.push(format!("{name} uses {dependency}, kept to {users:?}: {why}"));
            }
        }
    }
    for used in packages["dvm-core"].iter().filter(|used| !CORE_MAY_USE.contains(&used.as_str())) {
        wrong.push(format!("dvm-core uses {used}; it may use {CORE_MAY_USE:?}"));
    }
    complain(&wrong);
}

#[test]
fn the_core_does_without_the_standard_library() {
    let core = root().join("dvm-core/src");
    assert!(read(&core.join("lib.rs")).contains("#![no_std]"), "dvm-core/src/lib.rs: it says #![no_std]");
    let mut wrong = Vec::new();
    for path in files(&core, ".rs").into_iter().filter(|path| !path.ends_with("tests.rs")) {
        for (number, line) in read(&path).lines().enumerate() {
            if line.contains("#[cfg(test)]") {
                // A file's tests are its last part.
                break;
            }
            let code = line.split("//").next().unwrap_or_default();
            for word in ["std::", "extern crate std", "HashMap", "HashSet"] {
                if code.contains(word) {
                    wrong.push(format!(
                        "{}:{}: `{word}`: use core, alloc and ordered maps",
                        short(&path),
                        number + 1
                    ));
                }
            }
        }
    }
    complain(&wrong);
}

#[test]
fn modules_say_what_they_are() {
    let sources = files(&root(), ".rs").into_iter();
    // Tests in a file of their own belong to the module that they stand with.
    let sources = sources.filter(|path| path.components().any(|part| part.as_os_str() == "src"));
    let silent = sources.filter(|path| !path.ends_with("tests.rs") && !read(path).starts_with("//!"));
    let wrong = silent.map(|path| format!("{}:1: open the module with `//!`, what it owns", short(&path)));
    complain(&wrong.collect::<Vec<_>>());
}

#[test]
fn no_file_knows_one_machine() {
    // Put together here, so that this file does not name them.
    let places = ["home", "root", "work", "Users", "mnt"].map(|place| format!("/{place}/"));
    let mut wrong = Vec::new();
    for ending in [".rs", ".md", ".toml", ".txt"] {
        for path in files(&root(), ending) {
            for (number, line) in read(&path).lines().enumerate() {
                for place in &places {
                    let begins = line.find(place.as_str()).is_some_and(|at| {
                        let before = line[..at].chars().next_back();
                        before.is_none_or(|before| !before.is_alphanumeric() && !"_.-~$}".contains(before))
                    });
                    if begins {
                        wrong.push(format!("{}:{}: a path below {place}", short(&path), number + 1));
                    }
                }
            }
        }
    }
    complain(&wrong);
}

/// The lines of a Markdown file with their numbers, code blocks left out.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut code = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    });
    lines.map(|(number, line)| (number + 1, line)).collect()
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in files(&root(), ".md") {
        let text = read(&path);
        for (number, line) in prose(&text) {
            for part in line.split("](").skip(1) {
                let link = part.split(')').next().unwrap_or_default();
                if link.contains("://") {
                    continue;
                }
                let (file, part) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => path.clone(),
                    file => path.parent().expect("a file is in a directory").join(file),
                };
                let at = format!("{}:{number}", short(&path));
                if !target.exists() {
                    wrong.push(format!("{at}: {file} does not exist"));
                } else if !part.is_empty() {
                    let there = read(&target);
                    let mut headings = prose(&there).into_iter().filter(|(_, line)| line.starts_with('#'));
                    if !headings.any(|(_, heading)| anchor(heading) == part) {
                        wrong.push(format!("{at}: {} has no heading `{part}`", short(&target)));
                    }
                }
            }
        }
    }
    complain(&wrong);
}

#[test]
fn pages_have_one_title_and_no_level_is_left_out() {
    let mut wrong = Vec::new();
    for path in files(&root(), ".md") {
        let text = read(&path);
        let levels = prose(&text).into_iter().filter_map(|(number, line)| {
            let level = line.chars().take_while(|c| *c == '#').count();
            (level > 0 && line[level..].starts_with(' ')).then_some((number, level))
        });
        let mut before = 0;
        for (number, level) in levels {
            if (before == 0) != (level == 1) || level > before + 1 {
                wrong.push(format!("{}:{number}: a heading of level {level} after {before}", short(&path)));
            }
            before = level;
        }
        if before == 0 {
            wrong.push(format!("{}:1: no title", short(&path)));
        }
    }
    complain(&wrong);
}

#[test]
fn the_protocol_page_keeps_its_numbers() {
    // Code and tests name sections and rules by these.
    let text = read(&root().join("docs/protocol.md"));
    let titles = [
        "1. Identities and history",
        "2. Detection",
        "3. The ring",
        "4. Agreement",
        "5. View change",
        "6. Joining",
        "7. Large payloads",
        "8. Partitions, healing, sessions",
        "9. Invariants",
        "10. Limits",
        "11. Knobs",
    ];
    let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for title in titles {
        assert!(headings.contains(&title), "docs/protocol.md has no section `{title}`");
    }
    for rule in 1..=11 {
        assert!(text.contains(&format!("**R{rule}")), "docs/protocol.md has no rule R{rule}");
    }
    for invariant in 1..=22 {
        assert!(
            text.contains(&format!("| I{invariant} |")),
            "docs/protocol.md has no invariant I{invariant}"
        );
    }
}

#[test]
fn every_page_of_the_book_is_in_its_table_of_contents() {
    let docs = root().join("docs");
    let contents = read(&docs.join("SUMMARY.md"));
    let pages = files(&docs, ".md").into_iter().filter(|path| !path.ends_with("SUMMARY.md"));
    let names = pages.map(|path| path.file_name().expect("it has a name").to_string_lossy().into_owned());
    let missing = names.filter(|name| !contents.contains(&format!("({name})")));
    let wrong = missing.map(|name| format!("docs/SUMMARY.md: {name} is not in it"));
    complain(&wrong.collect::<Vec<_>>());
}
