//! What a run of the program left: its exit code, its messages, and how long it took.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::ERROR_LIMIT;

/// The outcome of a run of the binary.
pub struct Outcome {
    /// The command.
    pub line: String,
    /// The exit code, or 128 + signal where a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    pub(super) fn new(line: &str, output: &Output, took: Duration) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code =
            output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            line: line.to_owned(),
            code,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            took,
        }
    }

    /// Asserts exit code 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Asserts that stderr holds all of `texts`.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in\n{self}");
        }
        self
    }

    /// Parses stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}\n{self}"))
    }

    /// The reasons why this isn't a good refusal.
    pub(super) fn refusal_problems(&self, code: i32, complaints: &[&str]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.code != code {
            problems.push(format!("exit code {}, not {code}", self.code));
        }
        for complaint in complaints.iter().chain(&["remedy"]) {
            if !self.stderr.contains(complaint) {
                problems.push(format!("stderr lacks {complaint:?}"));
            }
        }
        if self.stderr.contains("panicked") || self.stderr.contains("RUST_BACKTRACE") {
            problems.push("it panicked".to_owned());
        }
        if self.stderr.contains("struct ") {
            problems.push("it names a type of the source code".to_owned());
        }
        if !self.stdout.is_empty() {
            problems.push("a failure wrote to stdout".to_owned());
        }
        if self.took > ERROR_LIMIT {
            problems.push(format!("it took {:?}", self.took));
        }
        problems
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let indent = |text: &str| text.trim_end().replace('\n', "\n  | ");
        write!(f, "  $ {}\n  exit {}\n  | {}", self.line, self.code, indent(&self.stderr))
    }
}
