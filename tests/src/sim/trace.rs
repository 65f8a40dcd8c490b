//! A readable account of a run: one line for each input, output and fault.

use dvm_core::{Input, Output};

/// Where the lines go.
pub type Tracer = Box<dyn FnMut(&str)>;

/// Longest line, characters.
const LINE_MAX: usize = 600;

/// An input as the trace shows it.
pub(crate) fn input(input: &Input) -> String {
    match input {
        Input::Ring { link, message } => clip(format!("ring {link} {message:?}")),
        Input::Control { from, message } => clip(format!("from {from:?} {message:?}")),
        Input::Snapshot { from, snapshot } => format!("snapshot from {from:?} at {}", snapshot.state.index),
        other => clip(format!("{other:?}")),
    }
}

/// An output as the trace shows it.
pub(crate) fn output(output: &Output) -> String {
    match output {
        Output::Know(identity) => format!("know {} {:?}", identity.name, identity.id),
        Output::Ring { link, message } => clip(format!("ring {link} {message:?}")),
        Output::Control { to, message } => clip(format!("to {to:?} {message:?}")),
        Output::Snapshot { to, snapshot } => format!("snapshot to {to:?} at {}", snapshot.state.index),
        Output::Deliver(delivery) => {
            let (entry, applied) = (&delivery.entry, &delivery.applied);
            let words: Vec<_> = delivery.events.iter().map(|event| event.kind.word()).collect();
            clip(format!(
                "deliver {} in {:?} {:?} key {}.{} -> {applied:?} [{}] {:?}",
                entry.index,
                entry.view,
                entry.label,
                entry.key.lnum,
                entry.key.origin.0,
                words.join(" "),
                entry.content,
            ))
        }
        Output::Orphans { fork, entries, truncated } => {
            format!("orphans after {fork}: {} (truncated {truncated})", entries.len())
        }
        other => clip(format!("{other:?}")),
    }
}

fn clip(mut line: String) -> String {
    if line.len() > LINE_MAX {
        let at = (0..=LINE_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(at);
        line.push('…');
    }
    line
}
