//! Jinja2 as transformers sets it up for chat templates, with Python's values. The output of a
//! template depends on how Python formats a list or a float, on its string methods and its
//! operators, and no other engine reproduces these.
//!
//! A template is a program from a checkpoint. It runs on a thread with a large stack, within limits
//! of steps, depth and memory.

mod args;
mod ast;
mod attributes;
mod calls;
mod comparing;
mod eval;
mod expressions;
mod filters;
mod format;
mod held;
mod interpreter;
mod json;
mod letters;
mod lexer;
mod literals;
mod methods;
mod numbers;
mod operators;
mod parser;
mod percent;
mod repr;
mod scope;
mod sequences;
mod sorting;
mod spec;
mod splitting;
mod statements;
mod strings;
mod tags;
mod tests;
mod text_filters;
mod value;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{Builder, scope};
use std::time::Duration;

use chrono::NaiveDateTime;
use serde_json::Value as Json;

use super::dates::Dates;
use crate::memory_limit::{CheckpointCode, limited};

/// Cost of copying an entry of a list or dictionary, as the number of bytes of a string that cost
/// as much.
const ENTRY_BYTES: usize = 256;
/// Maximum memory of a template's strings and lists. A conversation takes a few times its own size.
pub(super) const MAX_BYTES: usize = 512 << 20;
/// Minimum memory of a template, however small a budget is.
const MIN_BYTES: usize = 8 << 20;
/// Size of the stack. A level of a template takes about 10 KiB; Python's limit allows a few hundred
/// levels.
const STACK_BYTES: usize = 64 << 20;

/// Limits of a template's work on a conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct TemplateLimits {
    /// Maximum number of steps. A message takes a few hundred.
    pub steps: u64,
    /// Maximum time, however many steps. A long conversation takes milliseconds.
    pub time: Duration,
    /// Maximum memory of its strings and lists.
    pub bytes: usize,
}

impl TemplateLimits {
    pub const USUAL: Self =
        Self { steps: 10_000_000, time: Duration::from_secs(30), bytes: MAX_BYTES };

    /// Returns the limits in a run that may hold `memory` bytes.
    pub fn within(memory: Option<u64>) -> Self {
        // A step may copy everything that is held, and the rendered text is held next to its
        // tokens.
        let share =
            memory.map_or(MAX_BYTES, |bytes| usize::try_from(bytes / 4).unwrap_or(MAX_BYTES));
        Self { bytes: share.clamp(MIN_BYTES, MAX_BYTES), ..Self::USUAL }
    }

    /// Returns how long a caller waits. This is longer than a template may run, since a single step
    /// on all values that may be held can't look at the clock.
    fn patience(self) -> Duration {
        self.time + self.time / 20
    }

    fn too_long(self) -> String {
        format!("the template runs for more than {} s for a conversation", self.time.as_secs_f64())
    }
}

/// An error in a template, and its line.
#[derive(Debug)]
pub(super) struct Fail {
    what: String,
    line: Option<usize>,
}

type Fallible<T> = Result<T, Fail>;

impl Fail {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), line: None }
    }

    /// Returns the error at `line`, unless it already names an inner one.
    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Fail {}

/// A parsed template.
pub(super) struct Template {
    tree: Arc<ast::Tree>,
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// Jinja2's syntax errors, and features that aren't supported.
    pub fn parse(source: &str) -> Result<Self, Fail> {
        on_a_large_stack(|| parser::parse(source)).map(|tree| Self { tree: Arc::new(tree) })
    }

    /// Renders `variables`, and returns the text with the dates that the template wrote. `file` is
    /// where the template comes from.
    ///
    /// # Errors
    /// Errors that the template raises, and exceeded limits.
    pub fn render(
        &self,
        variables: Vec<(String, Json)>,
        now: NaiveDateTime,
        limits: TemplateLimits,
        file: &Path,
    ) -> Result<(String, Dates), Fail> {
        let tree = Arc::clone(&self.tree);
        let file = file.to_owned();
        let (give, take) = channel();
        // A thread that takes too long is abandoned.
        thread()
            .spawn(move || _ = give.send(rendered(tree, &variables, now, limits, &file)))
            .map_err(not_started)?;
        match take.recv_timeout(limits.patience()) {
            Ok(rendered) => rendered,
            Err(RecvTimeoutError::Timeout) => Err(Fail::new(limits.too_long())),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Fail::new("the chat template's thread ended"))
            }
        }
    }
}

/// Renders `variables` on this thread, and drops `tree`.
fn rendered(
    tree: Arc<ast::Tree>,
    variables: &[(String, Json)],
    now: NaiveDateTime,
    limits: TemplateLimits,
    file: &Path,
) -> Fallible<(String, Dates)> {
    held::allow(limits.bytes);
    // A step's own copies come on top of what is held.
    limited(CheckpointCode::Template, file, 2 * limits.bytes, || {
        interpreter::render(&tree, variables, now, limits)
    })
}

impl Drop for Template {
    fn drop(&mut self) {
        // Dropping a deep tree recurses as deeply. If a template still runs, its thread drops the
        // tree.
        let Some(tree) = Arc::into_inner(std::mem::take(&mut self.tree)) else { return };
        _ = on_a_large_stack(move || {
            drop(tree);
            Ok(())
        });
    }
}

fn thread() -> Builder {
    Builder::new().name("template".into()).stack_size(STACK_BYTES)
}

fn not_started(error: std::io::Error) -> Fail {
    Fail::new(format!("the chat template's thread can't start: {error}"))
}

fn on_a_large_stack<T: Send>(call: impl FnOnce() -> Fallible<T> + Send) -> Fallible<T> {
    scope(|threads| {
        let thread = thread().spawn_scoped(threads, call).map_err(not_started)?;
        thread.join().unwrap_or_else(|_| Err(Fail::new("the chat template's thread ended")))
    })
}
