//! `dvm plugin new`: what it makes builds without the network, tests itself, and loads as it is.

use dvm_tests::book::{block, page, root};
use dvm_tests::cluster::{Cluster, Ground, built, has};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `dvm plugin new` in a ground's home; the project's directory.
fn new(ground: &Ground, name: &str, options: &[&str]) -> PathBuf {
    let mut command = ground.dvm(&[&["--json", "plugin", "new", name], options].concat());
    command.current_dir(ground.home());
    let document = ground.finish(command).exits(0).json();
    let project = ground.home().join(name);
    for file in document["files"].as_array().expect("files") {
        assert!(project.join(file.as_str().expect("a path")).is_file(), "{document}");
    }
    project
}

/// Where cargo puts what it builds, and how it compiles what is not the project's own: as this workspace does, so that
/// most of it is there already.
fn settings(ground: &Ground) -> PathBuf {
    let target = built("dvm").ancestors().nth(2).expect("target/PROFILE/dvm").to_path_buf();
    let text = format!(
        "[build]\ntarget-dir = {target:?}\n\
         [profile.dev]\ndebug = \"line-tables-only\"\n\
         [profile.dev.package.\"*\"]\nopt-level = 2\ndebug = false\n\
         [profile.dev.package.dvm-plugin-api]\nopt-level = 0\ndebug = \"line-tables-only\"\n"
    );
    fs::create_dir(ground.home().join(".cargo")).expect("created");
    fs::write(ground.home().join(".cargo/config.toml"), text).expect("written");
    target
}

/// Runs a step of a project, which may take as long as it takes to compile.
fn step(project: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(project);
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO")) {
        if variable != "CARGO_HOME" {
            command.env_remove(variable);
        }
    }
    let output = command.output().expect("it runs");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{told}", output.status);
    // Whoever begins is not to begin with those of others.
    assert!(!told.contains("warning"), "{program} {arguments:?}:\n{told}");
}

fn is_loaded_and_called(library: &Path, name: &str) {
    let cluster = Cluster::up(1, &[]);
    let library = library.to_str().expect("text");
    let check = cluster.ok(&["plugin", "check", library]);
    assert_eq!((&check["name"], &check["warnings"]), (&json!(name), &json!([])), "{check}");
    let refused = cluster.json(&["plugin", "load", library, "-c", "step=0"]).exits(4);
    assert!(refused.stdout.contains("with a step of 0"), "{refused}");
    let _ = cluster.ok(&["plugin", "load", library, "-c", "step=2"]);
    let reply = cluster.ok(&["call", name, "{\"add\":3}"]);
    assert_eq!(reply["reply"], json!({"value": 6}), "{reply}");
    let _ = cluster.ok(&["plugin", "configure", name, "-c", "step=5"]);
    let reply = cluster.ok(&["call", name, "{\"add\":1}"]);
    assert_eq!(reply["reply"], json!({"value": 11}), "{reply}");
    // A joiner has the state.
    let _ = cluster.ok(&["add", "--local", "1"]);
    let get = ["--member", "k1", "call", name, "{\"get\":true}"];
    let answer = || (cluster.json(&get).exit == 0).then(|| cluster.ok(&get));
    let reply = dvm_tests::cluster::wait_for("the joiner's instance answers", answer);
    assert_eq!(reply["reply"], json!({"value": 11}), "{reply}");
}

#[test]
fn a_new_project_in_rust_is_built_tested_and_loaded() {
    let ground = Ground::new();
    let target = settings(&ground);
    let project = new(&ground, "first_rust", &[]);
    step(&project, "cargo", &["test", "--offline"]);
    step(&project, "cargo", &["build", "--offline"]);
    is_loaded_and_called(&target.join("debug/libfirst_rust.so"), "first_rust");
}

#[test]
fn a_new_project_in_c_is_built_tested_and_loaded() {
    if !has(&["cc", "make"], "a project in C") {
        return;
    }
    let ground = Ground::new();
    let project = new(&ground, "first_c", &["--lang", "c"]);
    step(&project, "make", &["test"]);
    step(&project, "make", &[]);
    is_loaded_and_called(&project.join("libfirst_c.so"), "first_c");
    // And by the one line of its README.
    let readme = fs::read_to_string(project.join("README.md")).expect("text");
    let line = readme.lines().find(|line| line.starts_with("cc ")).expect("a line");
    fs::remove_file(project.join("libfirst_c.so")).expect("removed");
    step(&project, "sh", &["-c", line]);
    assert!(project.join("libfirst_c.so").is_file());
}

/// A block of the page, line by line as it stands. A project's `target` is where everything is built.
fn follow(ground: &Ground, directory: &Path, lines: &str) -> Vec<String> {
    let (mut directory, mut said) = (directory.to_path_buf(), Vec::new());
    let target = built("dvm").ancestors().nth(2).expect("target/PROFILE/dvm").to_path_buf();
    let path = format!("{}:{}", target.join("debug").display(), std::env::var("PATH").unwrap_or_default());
    for line in lines.lines() {
        if let Some(into) = line.strip_prefix("cd ") {
            directory.push(into);
            continue;
        }
        if line.starts_with("cargo") && !directory.join("target").exists() {
            symlink(&target, directory.join("target")).expect("linked");
        }
        let mut shell = ground.program("sh");
        shell.args(["-ec", line]).current_dir(&directory).env("PATH", &path).env("CARGO_NET_OFFLINE", "true");
        shell.env("PKG_CONFIG_PATH", ground.prefix().join("lib/pkgconfig"));
        for (variable, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME")
        {
            shell.env_remove(variable);
        }
        said.push(ground.finish(shell).exits(0).stdout.trim().to_owned());
    }
    said
}

#[test]
fn the_page_of_the_first_plugin_runs_as_it_stands() {
    if !has(&["cc", "make", "pkg-config"], "the page of the first plug-in") {
        return;
    }
    let cluster = Cluster::up(3, &[]);
    let (ground, home): (&Ground, _) = (&cluster, cluster.home());
    let _ = settings(ground);
    let text = page("docs/plugins.md");
    let shortest = text.split("## A complete one").next().expect("it begins");
    let said = follow(ground, home, &block(shortest, "## The shortest way", "sh"));
    assert_eq!(said.last().map(String::as_str), Some(r#"{"value":3}"#));
    let (_, in_c) = shortest.split_once("The same in C:").expect("and in C");
    let in_c = format!("\n## C\n{in_c}");
    let said = follow(ground, home, &block(&in_c, "## C", "sh"));
    assert_eq!(said.last().map(String::as_str), Some(r#"{"value":3}"#));

    // The complete one, with its test. The sources are beside it, as its manifest says.
    symlink(root(), home.join("dvm")).expect("linked");
    let book = home.join("book");
    fs::create_dir_all(book.join("src")).expect("created");
    fs::write(book.join("Cargo.toml"), block(&text, "## A complete one", "toml")).expect("written");
    fs::copy(root().join("Cargo.lock"), book.join("Cargo.lock")).expect("copied");
    let test = block(&text, "## Tests, without a DVM", "rust,test");
    let code = format!("{}\n\n{test}\n", block(&text, "## A complete one", "rust"));
    fs::write(book.join("src/lib.rs"), code).expect("written");
    let _ = follow(ground, &book, "cargo test");
    let said = follow(ground, &book, &block(&text, "## A complete one", "sh"));
    assert_eq!(said[3..], [r#"{"number":null}"#, r#"{"number":"1815"}"#]);

    let c = home.join("c");
    fs::create_dir(&c).expect("created");
    fs::write(c.join("counter.c"), block(&text, "## In C", "c")).expect("written");
    let said = follow(ground, &c, &block(&text, "## In C", "sh"));
    assert_eq!(said.last().map(String::as_str), Some(r#"{"value":16}"#));
    let said = follow(ground, home, &block(&text, "## Tests, without a DVM", "sh"));
    assert!(said[0].starts_with("counter: nothing broke"), "{said:?}");
}

/// What breaks in the small DVM in memory is named, with the line that does it again.
#[test]
fn a_plugin_that_breaks_is_told_where() {
    let ground = Ground::new();
    let told = |arguments: &[&str]| {
        let counter = ["plugin", "test", "counter", "-c", "faults=true"];
        let mut command = ground.dvm(&[&["--json"], &counter[..], arguments].concat());
        command.env("DVM_PLUGIN_PATH", built("libcounter.so").parent().expect("a directory"));
        ground.finish(command)
    };
    let fine = told(&["--seeds", "2", r#"{"add":1}"#]).exits(0).json();
    assert!(fine["replies"].as_u64() > Some(0) && fine["crashes"].as_u64() > Some(0), "{fine}");
    let broken = [r#"{"add":1}"#, r#"{"fail":"panic"}"#];
    let text = told(&[&["--mode", "warm", "--first-seed", "3"], &broken[..]].concat()).error("failure", 1);
    for words in ["in mode warm, under seed 3", "panicked at index", r#"the command {"fail":"panic"}"#] {
        assert!(text.contains(words), "{words} in {text}");
    }
    // And one that takes its process with it, or does not come back.
    for (fault, limit, how) in [
        ("exit", "30s", "ends its process in mode hot, under seed 5 | it exited with code 3"),
        ("segv", "30s", "ends its process in mode hot, under seed 5 | it was ended by signal 11"),
        ("hang", "2s", "does not go on in mode hot, under seed 5 | nothing has happened for 2.0 s"),
    ] {
        let command = format!(r#"{{"fail":"{fault}"}}"#);
        let run = ["--mode", "hot", "--first-seed", "5", "--step-limit", limit, &command];
        let text = told(&run).error("failure", 1);
        assert!(
            text.contains(how) && text.contains(&format!("for which {command} was drawn")),
            "{how} in {text}"
        );
    }
}

#[test]
fn what_would_be_lost_or_cannot_be_named_is_refused() {
    let ground = Ground::new();
    let refused = |arguments: &[&str], code: &str, exit: i32, words: &str| {
        let mut command = ground.dvm(&[&["--json", "plugin", "new"], arguments].concat());
        command.current_dir(ground.home());
        let outcome = ground.finish(command);
        let text = outcome.error(code, exit);
        assert!(text.contains(words), "{words} in {text}");
    };
    fs::create_dir(ground.home().join("empty")).expect("created");
    let _ = new(&ground, "empty", &["--lang", "c"]);
    refused(&["empty", "--lang", "c"], "failure", 1, "the directory empty is not empty");
    fs::write(ground.home().join("file"), "mine").expect("written");
    refused(&["file", "--lang", "c"], "failure", 1, "file is there, and is no directory");
    assert_eq!(fs::read_to_string(ground.home().join("file")).expect("text"), "mine");
    refused(&["../up"], "usage", 2, "lower-case letters");
    refused(&["fn"], "usage", 2, "`fn` is no name for a plug-in");
    refused(&["good", "--lang", "cobol"], "usage", 2, "cobol");
    refused(&["good", "--api", "/nowhere"], "usage", 2, "the sources of dvm-plugin-api are not in /nowhere");
    assert!(!ground.home().join("good").exists(), "nothing is made");
}
