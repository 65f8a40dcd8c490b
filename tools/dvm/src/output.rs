//! What the user sees: documents for scripts, lines for eyes, failures for both.

use crate::cli::Global;
use dvm_plugin_api::local::Failure;
use serde::Serialize;
use serde_json::json;
use std::io::{ErrorKind, Write};

/// Version of every document's form.
const SCHEMA: u32 = 1;

/// How to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
}

/// A document with its version first.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        Self { json: global.json || global.json_lines, quiet: global.quiet, verbose: global.verbose > 0 }
    }

    /// For scripts, whatever the arguments say.
    pub(crate) fn json() -> Self {
        Self { json: true, quiet: false, verbose: false }
    }

    /// Whether documents are wanted.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a document, one line.
    pub(crate) fn document<T: Serialize>(self, body: &T) {
        let document = Document { schema: SCHEMA, body };
        self.line(serde_json::to_string(&document).expect("documents are plain data"));
    }

    /// Prints a document where they are wanted, else what `text` gives.
    pub(crate) fn tell<T: Serialize>(self, body: &T, text: impl FnOnce() -> String) {
        if self.json {
            self.document(body);
        } else {
            let text = text();
            if !text.is_empty() {
                self.line(text);
            }
        }
    }

    /// Prints a line. A reader that has seen enough ends the command.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        let mut stdout = anstream::stdout().lock();
        match writeln!(stdout, "{}", text.as_ref().trim_end_matches('\n')).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            // Where standard output is a full disk, the exit code must say so.
            Err(error) => {
                self.warn(format!("cannot write to standard output: {error}"));
                std::process::exit(1);
            }
            Ok(()) => {}
        }
    }

    /// Prints a line of what is no result of this command, but of what it ran: to standard error.
    pub(crate) fn aside(self, text: impl AsRef<str>) {
        self.warn(text);
    }

    /// Says something that is no result; not with `-q`.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// Says what only `-v` wants to know.
    pub(crate) fn detail(self, text: impl AsRef<str>) {
        if self.verbose {
            self.warn(text);
        }
    }

    /// Tells a failure: text on standard error, a document on standard output.
    pub(crate) fn failure(self, failure: &Failure) {
        let Failure { code, message, cause, hint } = failure;
        if self.json {
            let error = json!({"code": code.word(), "exit": code.exit(), "message": message, "cause": cause, "hint": hint});
            self.document(&json!({ "error": error }));
            return;
        }
        self.warn(format!("\x1b[1;31merror:\x1b[0m {message}"));
        for line in cause.iter().flat_map(|cause| cause.lines()) {
            self.warn(format!("\x1b[1mcause:\x1b[0m {line}"));
        }
        for line in hint.iter().flat_map(|hint| hint.lines()) {
            self.warn(format!("\x1b[1mhint:\x1b[0m {line}"));
        }
    }

    /// Writes to standard error; a closed one is nobody's concern.
    fn warn(self, text: impl AsRef<str>) {
        let _ = writeln!(anstream::stderr(), "{}", text.as_ref());
    }
}
