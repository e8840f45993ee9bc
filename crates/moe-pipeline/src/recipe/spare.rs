//! Keys that are meant for several steps, and that one of them has no use for: it runs without
//! them, if another step uses them.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::Step;
use super::steps::parse_step;

/// The place of a key in the recipe. A key of a table in a step, such as a gate, is written with a
/// dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    /// The command of a table of defaults, or the number of a step in a block, with that of a pass.
    place: String,
    key: String,
}

/// The keys of a step, or of one of its passes, by where they were written.
#[derive(Debug)]
pub(super) struct WrittenStep {
    /// The command; keys that aren't the step's own come from its defaults.
    pub command: String,
    /// Keys that are written in the step itself.
    pub own: Vec<String>,
    /// Whether the own keys may be left out, too, since the step is in a block and they are meant
    /// for each of its choices.
    pub own_may_pass: bool,
}

impl WrittenStep {
    /// The place of `key`, if the key may be left out of a step that has no use for it.
    fn origin(&self, key: &str, place: &str) -> Option<Origin> {
        let is_own = self.has(key);
        let place =
            if is_own { format!("step {place}") } else { format!("defaults {}", self.command) };
        (!is_own || self.own_may_pass).then(|| Origin { place, key: key.to_owned() })
    }

    /// Whether `key` is written in the step itself.
    fn has(&self, key: &str) -> bool {
        let first = key.split('.').next().unwrap_or(key);
        self.own.iter().any(|own| own == first)
    }

    /// A key of `table` that has no effect there according to `error`, if it may be left out.
    fn without_use(&self, table: &Table, error: &Error, place: &str) -> Option<(String, Origin)> {
        let keys = error.idle_options().iter().map(|option| option.trim_start_matches('-'));
        let mut keys = keys.filter(|key| has_key(table, key));
        keys.find_map(|key| Some((key.to_owned(), self.origin(key, place)?)))
    }
}

/// The keys of a step, and where they come from.
#[derive(Debug, Default)]
pub(super) struct StepKeys {
    table: Table,
    /// The keys of the step, then those of each of its passes.
    written: Vec<WrittenStep>,
    /// The number of the step, after those of the blocks around it.
    place: String,
}

impl StepKeys {
    /// Removes a key of the step, or of its pass number `at`, that has no effect there according to
    /// `error`, if it may be left out. Returns where it was written, and the command whose defaults
    /// have it, if the step itself doesn't.
    fn pass_by(&mut self, at: usize, error: &Error) -> Option<(Origin, Option<String>)> {
        let (written, table) = (self.written.get(at)?, table_at(&mut self.table, at)?);
        let (key, origin) = written.without_use(table, error, &format!("{} {at}", self.place))?;
        remove_key(table, &key);
        Some((origin, (!written.has(&key)).then(|| written.command.clone())))
    }

    /// The step without a key that has no effect on its model according to `error`, and where that
    /// key was written. None where there is no such key, or it is for this step alone.
    ///
    /// # Errors
    /// Errors of the remaining step.
    pub fn without(&mut self, error: &Error) -> Result<Option<(Step, Origin)>> {
        let Some((origin, _)) = (0..self.written.len()).find_map(|at| self.pass_by(at, error))
        else {
            return Ok(None);
        };
        Ok(Some((parse_step(self.table.clone())?, origin)))
    }

    /// The places of its keys that may be left out of other steps.
    pub fn origins(&self) -> Vec<Origin> {
        let passes = self
            .table
            .get("pass")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_table);
        let mut origins = Vec::new();
        for (at, (table, written)) in
            std::iter::once(&self.table).chain(passes).zip(&self.written).enumerate()
        {
            let place = format!("{} {at}", self.place);
            origins.extend(keys_of(table).iter().filter_map(|key| written.origin(key, &place)));
        }
        origins
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

/// Records the keys that some step used, and those that were left out of steps, with the reason.
#[derive(Default)]
pub(super) struct Spare {
    used: BTreeSet<Origin>,
    passed: BTreeMap<Origin, Error>,
}

/// A key that was left out of a step.
pub(super) struct Passed {
    pub origin: Origin,
    /// The command whose defaults have it; None if the step itself does.
    pub defaults: Option<String>,
    /// Why the step has no use for it.
    pub error: Error,
}

impl Spare {
    /// Parses the step `table` at `place` without keys that have no effect in it; returns the step
    /// and these keys. `written` has the origins of the keys of the step, then of each of its
    /// passes.
    ///
    /// # Errors
    /// Any other error of the step.
    pub fn parse(
        &mut self,
        table: Table,
        written: Vec<WrittenStep>,
        place: &str,
    ) -> Result<(Step, Vec<Passed>)> {
        let mut keys = StepKeys { table, written, place: place.to_owned() };
        let mut passed = Vec::new();
        loop {
            // Most steps parse at once.
            let error = match parse_step(keys.table.clone()) {
                Ok(step) => {
                    self.used.extend(keys.origins());
                    return Ok((Step { keys, ..step }, passed));
                }
                Err(error) => error,
            };
            match keys.pass_by(pass_of(error.what()), &error) {
                Some((origin, defaults)) => passed.push(Passed { origin, defaults, error }),
                None => return Err(error),
            }
        }
    }

    /// Records that the key at `origin` was left out; `error` is returned if no step uses it.
    pub fn pass(&mut self, origin: Origin, error: Error) {
        self.passed.entry(origin).or_insert(error);
    }

    /// Refuses keys that no step uses.
    ///
    /// # Errors
    /// The error about the first of them, from the first step that it was left out of.
    pub fn check(self) -> Result<()> {
        match self.passed.into_iter().find(|(origin, _)| !self.used.contains(origin)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// The number of the pass that the message `what` is about; 0 for the step itself.
fn pass_of(what: &str) -> usize {
    let number = what.strip_prefix("pass ").and_then(|rest| rest.split(':').next()?.parse().ok());
    number.unwrap_or(0)
}

/// The table of pass number `pass` of `step`; the step's own for 0.
fn table_at(step: &mut Table, pass: usize) -> Option<&mut Table> {
    match pass.checked_sub(1) {
        None => Some(step),
        Some(index) => step.get_mut("pass")?.as_array_mut()?.get_mut(index)?.as_table_mut(),
    }
}
