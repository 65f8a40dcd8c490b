//! What members say to each other, as stories: `scenarios/*.txt`, one idea each.
//!
//! A file holds commands, `----`, and what came of them; `harness/script.rs` tells the commands. `REWRITE=1 cargo test -p
//! dvm-core --test scenarios` writes the outputs anew, and the difference is read like code.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(directory).expect("the scenarios are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

#[test]
fn every_scenario_ends_as_written() {
    let rewrite = std::env::var_os("REWRITE").is_some();
    let mut wrong = Vec::new();
    for file in files() {
        let text = fs::read_to_string(&file).expect("readable");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let played = std::panic::catch_unwind(|| harness::play(&text));
        match played {
            Ok(played) if played == text => {}
            Ok(played) if rewrite => fs::write(&file, played).expect("writable"),
            Ok(played) => wrong.push(format!("{name}\n{}", difference(&text, &played))),
            Err(_) => wrong.push(format!("{name} panicked")),
        }
    }
    assert!(wrong.is_empty(), "REWRITE=1 writes them anew:\n{}", wrong.join("\n"));
}

/// The first line that differs.
fn difference(old: &str, new: &str) -> String {
    let at = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
    format!(
        "  line {}: written  {}\n  {:width$} came     {}",
        at + 1,
        line(old),
        "",
        line(new),
        width = 5 + (at + 1).to_string().len()
    )
}
