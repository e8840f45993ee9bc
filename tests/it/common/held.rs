//! Runs that something happens to while they work.

use super::{BINARY, Outcome, Sandbox};

/// A run in a shell, and what is done to it while it works.
pub struct Held<'a> {
    /// Shell before the run.
    pub before: &'a str,
    /// The run's arguments, and where its output goes.
    pub line: &'a str,
    /// The test of `[`, such as `-e FILE`, that holds when the run has come so far.
    pub once: &'a str,
    /// Shell at that moment; `$pid` is the run.
    pub then: &'a str,
}

impl Sandbox {
    /// Starts a run, waits until it has come so far, acts, and waits for its end. The exit code is
    /// the run's, or 7 if it ended before it had come so far.
    #[track_caller]
    pub fn held(&self, run: &Held<'_>) -> Outcome {
        let Held { before, line, once, then } = run;
        let outcome = self.shell(&format!(
            "{before}\n'{BINARY}' {line} & pid=$!\n\
             until [ {once} ]; do kill -0 $pid || exit 7; sleep 0.01; done\n\
             {then}\nwait $pid"
        ));
        assert_ne!(outcome.code, 7, "it ended too early\n{outcome}");
        outcome
    }

    /// Starts a run, and kills it once the file `name` is there.
    #[track_caller]
    pub fn killed_at(&self, line: &str, name: &str) {
        let once = format!("-e {name}");
        let then = "kill -KILL $pid";
        self.held(&Held { before: "", line, once: &once, then }).exits(137);
    }
}

/// Shell that does `change` while the run is stopped.
pub fn while_stopped(change: &str) -> String {
    format!("kill -STOP $pid; sleep 0.02; {change}; kill -CONT $pid")
}
