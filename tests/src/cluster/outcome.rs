//! What a command came to.

use serde_json::Value;

/// Exit code, output and complaints of a command that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command, as a line.
    pub line: String,
    /// Its exit code; 128 and the signal's number if one ended it.
    pub exit: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Asserts the exit code.
    ///
    /// # Panics
    /// With the whole outcome when it was another.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.exit, code, "{self}");
        self
    }

    /// The JSON document on standard output.
    ///
    /// # Panics
    /// When there is none, or it has not `"schema":1`.
    #[must_use]
    pub fn json(&self) -> Value {
        let document: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"));
        assert_eq!(document["schema"], 1, "{self}");
        document
    }

    /// The JSON documents on standard output, one a line.
    ///
    /// # Panics
    /// When a line is something else.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}: {self}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The text of the error document, all fields in one line, whose code and exit must be these.
    ///
    /// # Panics
    /// When it is another error, or none.
    #[must_use]
    pub fn error(&self, code: &str, exit: i32) -> String {
        assert_eq!(self.exit, exit, "{self}");
        let error = self.json()["error"].clone();
        assert_eq!((&error["code"], &error["exit"]), (&code.into(), &exit.into()), "{self}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{self}");
        ["message", "cause", "hint"]
            .map(|field| error[field].as_str().unwrap_or_default().to_owned())
            .join(" | ")
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, exit, stdout, stderr } = self;
        write!(f, "`{line}` ended with {exit}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}
