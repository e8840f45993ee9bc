//! The keys of a step, and where in the recipe each was written.

use moe_checkpoint::Error;
use toml::{Table, Value};

use super::mistake::key_of;

/// The place of a key in the recipe. A key of a table in a step, such as a gate, is written with a
/// dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyOrigin {
    /// The command of a table of defaults, or the number of a step in a block, with that of a pass.
    place: String,
    key: String,
}

/// The keys of a step, or of one of its passes, by where they were written.
#[derive(Debug, Default)]
pub(super) struct WrittenStep {
    /// The command; keys that aren't the step's own come from its defaults.
    pub command: String,
    /// Keys that are written in the step itself.
    pub own: Vec<String>,
}

impl WrittenStep {
    /// Whether `key` is written in the step itself.
    fn has(&self, key: &str) -> bool {
        let first = key.split('.').next().unwrap_or(key);
        self.own.iter().any(|own| own == first)
    }
}

/// The keys of a step, and where they come from.
#[derive(Debug, Default)]
pub(super) struct StepKeys {
    pub table: Table,
    /// The keys of the step, then those of each of its passes.
    pub written: Vec<WrittenStep>,
    /// The number of the step, after those of the blocks around it.
    pub place: String,
    /// Whether the step's own keys may be left out, too: it is in a block, and they are meant for
    /// each of its choices.
    pub own_may_pass: bool,
}

impl StepKeys {
    /// Removes a key of the step, or of its pass number `at`, that has no effect there according to
    /// `error`, if it may be left out. Returns where it was written, and the command whose defaults
    /// have it, if the step itself doesn't.
    pub fn pass_by(&mut self, at: usize, error: &Error) -> Option<(KeyOrigin, Option<String>)> {
        let table = table_at(&mut self.table, at)?;
        let idle = error.idle_options().iter().map(|option| key_of(option));
        let idle: Vec<&str> = idle.filter(|key| has_key(table, key)).collect();
        let (key, origin) = idle.into_iter().find_map(|key| Some((key, self.origin(at, key)?)))?;
        remove_key(table_at(&mut self.table, at)?, key);
        let written = &self.written[at];
        Some((origin, (!written.has(key)).then(|| written.command.clone())))
    }

    /// The origins of the step's keys that may be left out of other steps.
    pub fn origins(&self) -> Vec<KeyOrigin> {
        let passes = passes_of(&self.table).filter_map(Value::as_table);
        let tables = std::iter::once(&self.table).chain(passes).enumerate();
        tables
            .flat_map(|(at, table)| {
                keys_of(table).into_iter().filter_map(move |key| self.origin(at, &key))
            })
            .collect()
    }

    /// The place of `key` of the step, or of its pass number `at`, if the key may be left out of a
    /// step that has no use for it.
    fn origin(&self, at: usize, key: &str) -> Option<KeyOrigin> {
        let written = self.written.get(at)?;
        let is_own = written.has(key);
        let place = if is_own {
            format!("step {} {at}", self.place)
        } else {
            format!("defaults {}", written.command)
        };
        (!is_own || self.own_may_pass).then(|| KeyOrigin { place, key: key.to_owned() })
    }
}

/// The keys of `table`, and those of tables in it, with a dot.
fn keys_of(table: &Table) -> Vec<String> {
    let mut keys: Vec<String> = table.keys().cloned().collect();
    for (key, inner) in table.iter().filter_map(|(key, value)| Some((key, value.as_table()?))) {
        keys.extend(inner.keys().map(|inner| format!("{key}.{inner}")));
    }
    keys
}

fn has_key(table: &Table, key: &str) -> bool {
    match key.split_once('.') {
        Some((outer, inner)) => {
            table.get(outer).and_then(Value::as_table).is_some_and(|of| of.contains_key(inner))
        }
        None => table.contains_key(key),
    }
}

fn remove_key(table: &mut Table, key: &str) {
    match key.split_once('.') {
        Some((outer, inner)) => {
            _ = table.get_mut(outer).and_then(Value::as_table_mut).map(|of| of.remove(inner))
        }
        None => _ = table.remove(key),
    }
}

/// The table of pass number `pass` of `step`; the step's own for 0.
fn table_at(step: &mut Table, pass: usize) -> Option<&mut Table> {
    match pass.checked_sub(1) {
        None => Some(step),
        Some(index) => passes_mut(step).nth(index)?.as_table_mut(),
    }
}

/// The tables under `pass` of a step that runs several.
pub(super) fn passes_of(table: &Table) -> impl Iterator<Item = &Value> {
    table.get("pass").and_then(Value::as_array).into_iter().flatten()
}

/// Mutable [`passes_of`].
pub(super) fn passes_mut(table: &mut Table) -> impl Iterator<Item = &mut Value> {
    table.get_mut("pass").and_then(Value::as_array_mut).into_iter().flatten()
}
