//! Keys that were written for several steps and that one of them has no use for: it runs without them, if another uses them.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::{EARLIER_KEYS, Step, parse_step};

/// Where a key stands in the recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    /// The command of a table of defaults, or the number of a step in a block, with that of a pass.
    place: String,
    key: String,
}

/// The keys of a step, or of one of its passes, by where they were written.
pub(super) struct Written {
    /// What it runs, whose defaults have all keys but the own ones.
    pub command: String,
    /// The keys that it has itself.
    pub own: Vec<String>,
    /// Whether these, too, are for several steps: those of a block, for each of its choices.
    pub own_may_pass: bool,
}

impl Written {
    /// Where `key` stands, if it may pass by a step without use for it.
    fn origin(&self, key: &str, place: &str) -> Option<Origin> {
        let is_own = self.own.iter().any(|own| own == key);
        let place = if is_own { format!("step {place}") } else { format!("defaults {}", self.command) };
        (!is_own || self.own_may_pass).then(|| Origin { place, key: key.to_owned() })
    }

    /// A key of `table` that `error` says does nothing there, if it may pass by.
    fn without_use(&self, table: &Table, error: &Error, place: &str) -> Option<(String, Origin)> {
        let keys = error.idle_options().iter().map(|option| option.trim_start_matches('-'));
        let earlier = |key: &'_ str| EARLIER_KEYS.iter().find(|(_, now)| *now == key).map(|(was, _)| *was);
        let mut keys = keys.flat_map(|key| [Some(key), earlier(key)]).flatten().filter(|key| table.contains_key(*key));
        keys.find_map(|key| Some((key.to_owned(), self.origin(key, place)?)))
    }
}

/// Which keys some step used, and which others were left out of steps, and why.
#[derive(Default)]
pub(super) struct Spare {
    used: BTreeSet<Origin>,
    passed: BTreeMap<Origin, Error>,
}

/// A key that was left out of a step.
pub(super) struct Passed {
    pub origin: Origin,
    /// The command whose defaults have it; none if the step itself does.
    pub defaults: Option<String>,
    /// What is wrong with it there.
    pub error: Error,
}

impl Spare {
    /// The step that is `table`, which is called `place`, without keys that do nothing in it, and those. `written` says where the keys of
    /// the step, then those of each of its passes, come from.
    ///
    /// # Errors
    /// What else is wrong with it.
    pub fn parse(&mut self, mut table: Table, written: &[Written], place: &str) -> Result<(Step, Vec<Passed>)> {
        let mut passed = Vec::new();
        loop {
            // Steps that lack nothing are most.
            let error = match parse_step(table.clone()) {
                Ok(step) => {
                    self.use_keys(&table, written, place);
                    return Ok((step, passed));
                }
                Err(error) => error,
            };
            let at = pass_of(error.what());
            let (Some(of_table), Some(inner)) = (written.get(at), table_at(&mut table, at)) else { return Err(error) };
            let Some((key, origin)) = of_table.without_use(inner, &error, &format!("{place} {at}")) else {
                return Err(error);
            };
            inner.remove(&key);
            let is_own = of_table.own.contains(&key);
            passed.push(Passed { origin, defaults: (!is_own).then(|| of_table.command.clone()), error });
        }
    }

    fn use_keys(&mut self, table: &Table, written: &[Written], place: &str) {
        let passes = table.get("pass").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
        for (at, (table, written)) in std::iter::once(table).chain(passes).zip(written).enumerate() {
            let place = format!("{place} {at}");
            self.used.extend(table.keys().filter_map(|key| written.origin(key, &place)));
        }
    }

    /// Keeps in mind that the key at `origin` was left out; `error` is said if no step uses it.
    pub fn pass(&mut self, origin: Origin, error: Error) {
        self.passed.entry(origin).or_insert(error);
    }

    /// Refuses keys that no step uses.
    ///
    /// # Errors
    /// What is wrong with the first of them in the first step that it was left out of.
    pub fn check(self) -> Result<()> {
        match self.passed.into_iter().find(|(origin, _)| !self.used.contains(origin)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// The number of the pass that `what` is about; 0 for the step itself.
fn pass_of(what: &str) -> usize {
    let number = what.strip_prefix("pass ").and_then(|rest| rest.split(':').next()?.parse().ok());
    number.unwrap_or(0)
}

/// The table of that pass of `step`, or the step's.
fn table_at(step: &mut Table, pass: usize) -> Option<&mut Table> {
    match pass.checked_sub(1) {
        None => Some(step),
        Some(index) => step.get_mut("pass")?.as_array_mut()?.get_mut(index)?.as_table_mut(),
    }
}
