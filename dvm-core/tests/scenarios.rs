//! What members say to each other, told as stories: `scenarios/*.txt`, one idea each.
//!
//! `REWRITE=1 cargo test -p dvm-core --test scenarios` writes down what happens now; the difference is reviewed like
//! code. The commands are those of `harness/script.rs`.

mod harness;

use std::fs;
use std::path::Path;

#[test]
fn what_happens_is_what_is_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let only = std::env::var("SCENARIO").ok();
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .expect("the scenarios are beside this file")
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only.as_str())))
        .collect();
    paths.sort();
    let mut wrong = Vec::new();
    for path in paths {
        let written = fs::read_to_string(&path).expect("a scenario is text");
        let played = match std::panic::catch_unwind(|| harness::play(&written)) {
            Ok(played) => played,
            Err(_) => format!("{} panics\n", path.display()),
        };
        if played == written {
            continue;
        }
        if std::env::var_os("REWRITE").is_some() && !played.ends_with("panics\n") {
            fs::write(&path, &played).expect("a scenario can be written");
        } else {
            eprintln!("{} goes differently now:\n{played}", path.display());
            wrong.push(path.file_name().expect("a file").to_owned());
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}; if that is right, write it down with REWRITE=1");
}
