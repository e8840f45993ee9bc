//! Runs a template within its limits of steps, time and memory.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use chrono::NaiveDateTime;
use serde_json::Value as Json;

use super::ast::Tree;
use super::held::{excess, room};
use super::scope::Scope;
use super::value::{Function, Value};
use super::{Fail, Fallible, STACK_BYTES, TemplateLimits, json};
use crate::chat::dates::{Dates, Present};

pub(super) struct Interpreter {
    limits: TemplateLimits,
    steps: u64,
    since: Instant,
    /// An address at the start of the stack, to measure its depth.
    base: usize,
    /// Bytes of strings that are being written: the template's, and those of macros and blocks
    /// within it.
    pub written: usize,
    /// Variables that are set outside all loops and macros.
    pub globals: Rc<Scope>,
    /// Scopes that macros hold and that hold these macros in turn. They are cleared at the end,
    /// since reference counts alone wouldn't free them.
    pub captured: Vec<Rc<Scope>>,
    /// The present for `strftime_now`.
    pub present: Present,
}

/// Renders `tree` with `variables`. Returns the text, and the dates that it wrote.
pub(super) fn render(
    tree: &Tree,
    variables: &[(String, Json)],
    now: NaiveDateTime,
    limits: TemplateLimits,
) -> Fallible<(String, Dates)> {
    let marker = 0u8;
    let mut interpreter = Interpreter {
        limits,
        steps: 0,
        since: Instant::now(),
        base: (&raw const marker).addr(),
        written: 0,
        globals: globals(tree, variables)?,
        captured: Vec::new(),
        present: Present::new(now),
    };
    let scope = Rc::clone(&interpreter.globals);
    let mut out = String::new();
    let result = interpreter.body(&tree.body, &scope, &mut out);
    interpreter.captured.drain(..).for_each(|scope| scope.clear());
    result.map(|_| (out, interpreter.present.written))
}

/// The functions that transformers gives templates.
const FUNCTIONS: [(&str, Function); 8] = [
    ("range", Function::Range),
    ("dict", Function::Dict),
    ("namespace", Function::Namespace),
    ("cycler", Function::Cycler),
    ("joiner", Function::Joiner),
    ("lipsum", Function::Lipsum),
    ("raise_exception", Function::RaiseException),
    ("strftime_now", Function::StrftimeNow),
];

/// Returns the scope of the names that a template has from its start.
fn globals(tree: &Tree, variables: &[(String, Json)]) -> Fallible<Rc<Scope>> {
    let globals = Scope::outermost();
    for (name, function) in FUNCTIONS {
        globals.set(&name.into(), Value::Function(function));
    }
    if !tree.blocks.is_empty() {
        globals.set(&"self".into(), Value::Blocks(Arc::clone(&tree.blocks)));
    }
    for (name, value) in variables {
        globals.set(&name.as_str().into(), json::value(value)?);
    }
    Ok(globals)
}

impl Interpreter {
    /// Counts a step, and the additional cost of handling `bytes` bytes.
    pub fn step(&mut self, bytes: usize) -> Fallible<()> {
        self.steps += 1 + bytes as u64 / 256;
        if self.steps > self.limits.steps {
            let what =
                "the template runs out of fuel: more than 10,000,000 steps for a conversation";
            return Err(Fail::new(what));
        }
        // The clock is read at each step, since one of them can take as long as thousands of
        // others.
        if self.since.elapsed() > self.limits.time {
            return Err(Fail::new(self.limits.too_long()));
        }
        if let Some(what) = excess() {
            return Err(Fail::new(format!("the template {what}")));
        }
        let marker = 0u8;
        // A quarter of the stack is left for what runs between two steps.
        if self.base.abs_diff((&raw const marker).addr()) > STACK_BYTES / 4 * 3 {
            return Err(Fail::new("the template calls itself too often"));
        }
        self.room(0)
    }

    /// Counts a step that makes a value of `bytes` bytes, if there is room for it.
    pub fn handled(&mut self, bytes: usize) -> Fallible<()> {
        self.room(bytes)?;
        self.step(bytes)
    }

    /// Checks that the template may hold `bytes` bytes more.
    pub fn room(&self, bytes: usize) -> Fallible<()> {
        room(bytes.saturating_add(self.written))
    }
}
