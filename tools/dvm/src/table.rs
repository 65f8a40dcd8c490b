//! Tables and small forms for eyes.

use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde_json::Value;

/// A table without lines: a bold head, two spaces between columns.
pub(crate) struct Rows {
    table: Table,
}

impl Rows {
    pub(crate) fn new(head: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // Whether colours reach the user is decided where it is printed.
        table.enforce_styling();
        table.set_header(
            head.iter().map(|title| Cell::new(title.to_uppercase()).add_attribute(Attribute::Bold)),
        );
        Self { table }
    }

    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.table.add_row(row.into_iter().map(|text| match color(&text) {
            Some(color) => Cell::new(text).fg(color),
            None => Cell::new(text),
        }));
    }

    pub(crate) fn text(self) -> String {
        let text = self.table.to_string();
        text.lines()
            .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The colour of a word that is a state.
fn color(word: &str) -> Option<Color> {
    match word {
        "normal" | "running" | "confirmed" | "live" | "ok" | "active" | "primary" => Some(Color::Green),
        "joining" | "suspected" | "leaving" | "loading" | "degraded" | "provisional" | "flushing"
        | "abstain" => Some(Color::Yellow),
        "fenced" | "failed" | "blocked" | "dead" | "timeout" | "absent" => Some(Color::Red),
        _ => None,
    }
}

/// A string without its quotes, anything else as JSON.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `key=value` pairs.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, String)>) -> String {
    pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// `-` for nothing.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// `1 member`, `2 members`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
