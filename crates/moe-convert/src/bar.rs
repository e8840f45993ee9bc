//! Progress on stderr: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moe_pipeline::{Progress, Quiet, Unit};

/// Writes a line to stderr. Where that is closed or full there is nobody to tell, and work goes on.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The progress that fits stderr.
pub fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar(Mutex::new(ProgressBar::hidden())))
    } else {
        Box::new(Lines)
    }
}

/// One bar, for the stage that runs.
struct Bar(Mutex<ProgressBar>);

impl Bar {
    fn with(&self, f: impl FnOnce(&mut ProgressBar)) {
        // A poisoned lock means that a drawing thread panicked; the bar is still a bar.
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        let template = match unit {
            Unit::Bytes => "{msg:14} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            Unit::Layers => "{msg:14} {wide_bar} layer {pos}/{len} {eta}",
            Unit::Files => "{msg:14} {wide_bar} file {pos}/{len} {eta}",
            Unit::Parts => "{msg:14} {wide_bar} part {pos}/{len} {eta}",
            Unit::Steps => "{msg:14} {wide_bar} step {pos}/{len} {prefix} {eta}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.with(|bar| {
            bar.finish_and_clear();
            *bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.set_message(name.to_owned());
        });
    }

    fn advance(&self, units: u64) {
        self.with(|bar| bar.inc(units));
    }

    fn status(&self, text: &str) {
        self.with(|bar| bar.set_prefix(text.to_owned()));
    }

    fn note(&self, text: &str) {
        self.with(|bar| bar.suspend(|| say(&format!("note: {text}"))));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.with(|bar| bar.finish_and_clear());
    }
}

/// A line for each stage.
struct Lines;

impl Progress for Lines {
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        match unit {
            Unit::Bytes => say(&format!("{name}: {}", moe_pipeline::ByteSize(total))),
            Unit::Layers => say(&format!("{name}: {total} layers")),
            Unit::Files => say(&format!("{name}: {total} files")),
            Unit::Parts => say(&format!("{name}: {total} parts")),
            Unit::Steps => say(&format!("{name}: {total} steps")),
        }
    }

    fn note(&self, text: &str) {
        say(&format!("note: {text}"));
    }
}
