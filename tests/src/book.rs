//! The book's pages, and what they show.

use std::fs;
use std::path::{Path, PathBuf};

/// The workspace.
///
/// # Panics
/// Never: this crate is in it.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the workspace").to_path_buf()
}

/// A page, by its path in the workspace.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first block of code in this language after a heading.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn block(text: &str, heading: &str, language: &str) -> String {
    let from = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`"));
    let fence = format!("\n```{language}\n");
    let start = from + text[from..].find(&fence).expect("there is a block") + fence.len();
    text[start..].split("\n```").next().expect("there is an end").to_owned()
}

/// The part of a test's source between `from here …` and `… to here`, which a page shows.
///
/// # Panics
/// When it is not marked.
#[must_use]
pub fn marked(source: &str) -> &str {
    let marked = source.split("from here …\n").nth(1).and_then(|rest| rest.split("\n// … to here").next());
    marked.expect("it is marked")
}
