//! What the documentation shows, run as it stands.
//!
//! These tests start real kernels by the programs that were built beside them: `cargo build --workspace --bins` and
//! `cargo build -p dvm-plugin-counter -p dvm-capi` come first, as `cargo xtask test` does.
#![expect(clippy::print_stdout, reason = "an example of the book tells what it sees")]

use dvm_plugin_api::place::RuntimeDir;
use dvm_tests::book::{block, marked, page};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

// The example of docs/clients.md, from here …
use dvm_plugin_api::client::{Client, Filter, Next, Target};
use dvm_plugin_api::local::{Answer, Failure, Operation, Request, Since};
use dvm_plugin_api::place::DvmPlace;
use serde_json::json;
use std::time::Duration;

/// Writes a key, and hears of it as everybody does. `RuntimeDir::create()?.dvm("NAME")?` is a DVM's place.
fn greet(place: DvmPlace) -> Result<(), Failure> {
    let limit = Some(Duration::from_secs(10));
    let mut client = Client::connect(Target::new(place, "my application"))?;

    let kinds = vec!["key-changed".to_owned()];
    let mut events = client.events(Since::Now, Filter { kinds, follow: true, key_prefix: None })?;

    let put = Operation::Put { key: "app/greeting".into(), value: json!("hello") };
    let write = Request::StateTransaction { conditions: vec![], then: vec![put], otherwise: vec![] };
    if let Answer::Done { receipt: Some(receipt), .. } = client.request(write, None, limit)? {
        println!("every member has it, at index {} ({})", receipt.index, receipt.label);
    }

    match events.next(limit)? {
        Next::Event(event) => println!("{} {:?}", event.kind, event.more),
        Next::Quiet => println!("nothing within the limit"),
        Next::End(_) => println!("the DVM has ended"),
    }
    Ok(())
}
// … to here.

/// Where cargo puts what it builds.
fn built() -> PathBuf {
    let me = std::env::current_exe().expect("it runs");
    me.ancestors().nth(2).expect("it is in deps").to_path_buf()
}

/// A user with directories of his own, to whom the programs are at hand.
struct User {
    scratch: TempDir,
}

impl User {
    fn new() -> Self {
        for name in ["dvm", "dvm-kernel", "libcounter.so"] {
            let path = built().join(name);
            assert!(path.is_file(), "{} is not built: run `cargo xtask test`", path.display());
        }
        Self { scratch: TempDir::new().expect("a directory") }
    }

    fn shell(&self, line: &str) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-ec", line]);
        command.env("PATH", format!("{}:{path}", built().display()));
        command.env("DVM_RUNTIME_DIR", self.scratch.path().join("run"));
        command.env("DVM_LOG_DIR", self.scratch.path().join("log"));
        for variable in ["DVM_URI", "DVM_KERNEL", "DVM_PLUGIN_PATH", "DVM_LOG"] {
            command.env_remove(variable);
        }
        let output = command.output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}`: {}\n{said}\n{complaint}", output.status);
        said
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // A failed test leaves its kernels behind; this ends them. There may be none.
        let path = self.scratch.path();
        let mut command = Command::new(built().join("dvm"));
        command.args(["halt", "--force"]).env_remove("DVM_URI");
        command.env("DVM_RUNTIME_DIR", path.join("run")).env("DVM_LOG_DIR", path.join("log"));
        let _ = command.output();
    }
}

#[test]
fn the_quick_start_runs_as_it_stands() {
    let text = page("README.md");
    let commands = block(&text, "## Quick start", "sh");
    let lines: Vec<_> = commands.lines().filter(|line| !line.is_empty()).collect();
    assert!((1..=5).contains(&lines.len()), "a quick start has at most five commands:\n{commands}");
    let user = User::new();
    let said: Vec<_> = lines.iter().map(|line| user.shell(line)).collect();
    let call = lines.iter().position(|line| line.starts_with("dvm call")).expect("it calls a plug-in");
    assert_eq!(said[call].trim(), r#"{"value":42}"#);
    assert!(user.shell("dvm list").contains("no DVM"), "the last command leaves nothing");
}

#[test]
fn the_readme_names_the_projects_two_commands() {
    let commands = block(&page("README.md"), "## Two commands", "sh");
    assert_eq!(commands, "cargo xtask demo\ncargo xtask test");
}

#[test]
fn the_client_of_the_book_works() {
    let shown = block(&page("docs/clients.md"), "## In Rust", "rust");
    let mine = marked(include_str!("docs.rs"));
    assert_eq!(shown, mine, "docs/clients.md shows another client than this test runs");

    let user = User::new();
    user.shell("dvm up --local 3 --name book");
    let runtime = RuntimeDir::create_at(&user.scratch.path().join("run")).expect("it is ours");
    greet(runtime.dvm("book").expect("a name")).expect("it greets");
    assert_eq!(user.shell("dvm state get app/greeting").trim(), "hello");
    user.shell("dvm halt");
}

#[test]
fn the_plugin_of_the_book_is_the_one_that_is_compiled() {
    // `cargo test --doc` compiles the example at the head of the plug-in API.
    let lib = page("plugin-api/src/lib.rs");
    let documentation = lib.lines().map_while(|line| line.strip_prefix("//!"));
    let documentation: Vec<_> = documentation.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let compiled = documentation.join("\n").split("\n```").nth(1).expect("an example").trim().to_owned();
    let shown = block(&page("docs/plugins.md"), "## A complete one", "rust");
    assert_eq!(shown, compiled, "docs/plugins.md shows another plug-in than plugin-api/src/lib.rs");
}

#[test]
fn the_example_of_services_is_the_one_that_is_compiled() {
    // `cargo test --doc` compiles it.
    let lib = page("plugin-api/src/service.rs");
    let documentation = lib.lines().map_while(|line| line.strip_prefix("//!"));
    let documentation: Vec<_> = documentation.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let compiled = documentation.join("\n").split("\n```").nth(1).expect("an example").trim().to_owned();
    let shown = block(&page("docs/host-services.md"), "## A whole one", "rust");
    assert_eq!(shown, compiled, "docs/host-services.md shows another plug-in than plugin-api/src/service.rs");
}

/// `c_plugins.rs` compiles it, loads it and calls it.
#[test]
fn the_plugin_in_c_of_the_book_is_the_one_that_is_loaded() {
    let shown = block(&page("docs/plugins.md"), "## In C", "c");
    let loaded = page("plugins/counter-c/counter.c");
    assert_eq!(
        shown,
        loaded.trim_end(),
        "docs/plugins.md shows another plug-in than plugins/counter-c/counter.c"
    );
}

#[test]
fn every_command_is_in_the_book() {
    let user = User::new();
    let text = page("docs/commands.md");
    let help = user.shell("dvm --help");
    let commands = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let commands = commands.expect("it lists them").lines().filter_map(|line| line.split_whitespace().next());
    for command in commands.filter(|command| *command != "help") {
        assert!(text.contains(&format!("dvm {command}")), "docs/commands.md shows no `dvm {command}`");
        let options = user.shell(&format!("dvm {command} --help"));
        let own = options.split("Global options:").next().expect("it begins");
        let words = own.split_whitespace().map(|word| word.trim_matches(|c: char| "[],".contains(c)));
        for option in words.filter(|word| word.starts_with("--") && *word != "--help" && *word != "--version")
        {
            assert!(text.contains(option), "docs/commands.md does not tell of `{option}` of `dvm {command}`");
        }
    }
}

#[test]
fn every_setting_is_in_the_book() {
    let user = User::new();
    let text = page("docs/settings.md");
    user.shell("dvm up --name settings");
    let settings = user.shell("dvm config get --json");
    user.shell("dvm halt");
    let settings: serde_json::Value = serde_json::from_str(&settings).expect("a document");
    for (name, value) in settings["settings"].as_object().expect("settings") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let quoted = format!("| `{name}` | {value} |");
        let word = format!("| `{name}` | `{value}` |");
        assert!(text.contains(&quoted) || text.contains(&word), "docs/settings.md: {name}, default {value}");
    }
}
