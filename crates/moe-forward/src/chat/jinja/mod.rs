//! Jinja2 as transformers sets it up for chat templates, with Python's values: what a template prints depends on how Python writes a
//! list or a float, on its string methods and its operators, none of which another engine has in the same way.
//!
//! A template is a program out of a checkpoint. It runs on a thread with a large stack, and its steps, depth and memory are bounded.

mod ast;
mod calls;
mod eval;
mod expressions;
mod filters;
mod format;
mod held;
mod json;
mod letters;
mod lexer;
mod numbers;
mod operators;
mod parser;
mod repr;
mod sequences;
mod strings;
mod tests;
mod value;

use std::thread::{Builder, scope};

use serde_json::Value as Json;

/// A conversation takes a few hundred steps a message.
const MAX_STEPS: u64 = 10_000_000;
/// What it costs to copy an entry of a list or dictionary, in bytes of text that cost as much.
const ENTRY_BYTES: usize = 256;
/// How long a template may run, whatever its steps are: a long conversation takes milliseconds.
const MAX_SECONDS: u64 = 30;
/// What texts and lists may take at once. A conversation takes a few times its own size.
pub(super) const MAX_BYTES: usize = 512 << 20;
/// A level of a template takes some 10 KiB of the stack; Python's limit allows for a few hundred.
const STACK_BYTES: usize = 64 << 20;

/// What went wrong in a template, and in which line.
#[derive(Debug)]
pub(super) struct Fail {
    what: String,
    line: Option<usize>,
}

type Outcome<T> = Result<T, Fail>;

impl Fail {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), line: None }
    }

    /// In `line`, unless an inner line is known.
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

/// A template that was understood.
pub(super) struct Template {
    body: ast::Body,
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// What Jinja2 calls a syntax error, and what isn't supported.
    pub fn parse(source: &str) -> Result<Self, Fail> {
        on_a_large_stack(|| parser::parse(source)).map(|body| Self { body })
    }

    /// The text that it makes of `variables`.
    ///
    /// # Errors
    /// What the template raises, and what takes more than it may.
    pub fn render(&self, variables: &[(&str, Json)]) -> Result<String, Fail> {
        on_a_large_stack(|| eval::render(&self.body, variables))
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // A deep tree is taken apart by as deep a recursion.
        let body = std::mem::take(&mut self.body);
        _ = on_a_large_stack(move || {
            drop(body);
            Ok(())
        });
    }
}

fn on_a_large_stack<T: Send>(call: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    let failed = |what: &str| Fail::new(format!("the chat template's thread {what}"));
    scope(|threads| {
        let thread = Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn_scoped(threads, call);
        let thread = thread.map_err(|e| failed(&format!("can't start: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(failed("ended")))
    })
}
