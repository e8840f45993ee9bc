//! Translates keys and values of steps to the spelling that the program reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::{Arg, Command};
use moe_checkpoint::{Result, shown, shown_path};
use toml::{Table, Value};

use super::commands::OF_STEPS;
use super::mistake::{Mistake, usage};
use super::schema;
use crate::spelling::{self, Spelled};

/// A key that is written by its earlier name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EarlierKey {
    pub was: String,
    pub now: String,
}

/// Keys with earlier names: the place where each was found first, and all its lines.
#[derive(Debug, Default)]
pub(super) struct EarlierKeys(BTreeMap<EarlierKey, (String, BTreeSet<usize>)>);

impl EarlierKeys {
    /// Records that `key` is at `line`, in the `place` that messages name.
    pub fn add(&mut self, key: EarlierKey, line: Option<usize>, place: &str) {
        let (_, lines) = self.0.entry(key).or_insert_with(|| (place.to_owned(), BTreeSet::new()));
        lines.extend(line);
    }

    /// The notes on the recipe `file`: one for each key, regardless of its number of lines.
    pub fn notes(&self, file: &Path) -> Vec<String> {
        self.0.iter().map(|(key, (place, lines))| key.note(file, place, lines)).collect()
    }
}

impl EarlierKey {
    /// The note on this key in the recipe `file`, where `place` is the first place that has it.
    fn note(&self, file: &Path, place: &str, lines: &BTreeSet<usize>) -> String {
        let mut lines = lines.iter();
        let line = lines.next().map_or(String::new(), |line| format!("line {line}, "));
        let others: Vec<String> = lines.map(usize::to_string).collect();
        let others = match others.as_slice() {
            [] => String::new(),
            [line] => format!(" (also in line {line})"),
            lines => format!(" (also in lines {})", lines.join(", ")),
        };
        let said = spelling::renamed(&format!("`{}`", self.was), &format!("`{}`", self.now));
        format!("{}, {line}{}: {said}{others}", shown_path(file), shown(place, ""))
    }
}

/// Renames keys of `table`, which runs `command`, to their current names, including those of inner
/// tables such as gates. Returns the keys that had earlier names.
///
/// # Errors
/// A mistake where two keys are the same option.
pub(super) fn keys(table: &mut Table, command: &str) -> Result<Vec<EarlierKey>, Mistake> {
    let of_steps = schema::keys_of_step(command).unwrap_or_default();
    match schema::command_of(command) {
        Some(command) => keys_of(table, command, of_steps),
        None => Ok(Vec::new()),
    }
}

/// The key that steps of all commands have, such as the output, for which `key` is another name.
fn key_of_steps(key: &str, of_steps: &[String]) -> Option<String> {
    let is_of_steps = |name: &String| OF_STEPS.contains(&name.as_str()) && of_steps.contains(name);
    spelling::possible_options(key).find(is_of_steps)
}

fn keys_of(
    table: &mut Table,
    command: &Command,
    of_steps: &[String],
) -> Result<Vec<EarlierKey>, Mistake> {
    let mut earlier = Vec::new();
    let mut spelled = Table::new();
    let mut written = BTreeMap::new();
    for (key, mut value) in std::mem::take(table) {
        if let Value::Table(inner) = &mut value {
            earlier.extend(keys_of(inner, command, &[])?);
        }
        let of_key = spelling::option(&key, command);
        let now = match &of_key {
            Some(spelled) => spelled.option.clone(),
            None => key_of_steps(&key, of_steps).unwrap_or_else(|| key.clone()),
        };
        if let Some(other) = written.insert(now.clone(), key.clone()) {
            return Err(twice([other, key], &now));
        }
        if let Some(of_key) = of_key {
            value = value_of(&of_key, value);
            if of_key.is_earlier {
                earlier.push(EarlierKey { was: key, now: now.clone() });
            }
        }
        spelled.insert(now, value);
    }
    *table = spelled;
    Ok(earlier)
}

/// The mistake that `keys` are two names of the key `now`.
fn twice(keys: [String; 2], now: &str) -> Mistake {
    let [one, other] = &keys;
    let what = format!("`{one}` and `{other}` are one key, and both are given");
    let error = usage(what, format!("give `{now}` alone, once"));
    Mistake::about(keys, error)
}

/// Converts `value`, which was written under another name, to the form that the key takes.
fn value_of(key: &Spelled, value: Value) -> Value {
    let text = match &value {
        Value::Integer(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return value,
    };
    let given = key.value(&text);
    if given == text { value } else { Value::String(given) }
}

/// Rewrites values of `table`, which runs `command`, in the spelling that options take.
pub(super) fn values(table: &mut Table, command: &str) {
    let Some(command) = schema::command_of(command) else { return };
    values_of(table, command);
}

fn values_of(table: &mut Table, command: &Command) {
    for (key, value) in table.iter_mut() {
        if let Value::Table(inner) = value {
            values_of(inner, command);
        }
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key.as_str()));
        match (arg, value) {
            (Some(arg), Value::Array(values)) => {
                values.iter_mut().for_each(|value| respell(value, arg));
            }
            (Some(arg), value) => respell(value, arg),
            (None, _) => {}
        }
    }
}

/// Rewrites `value` in the spelling that `arg` takes.
fn respell(value: &mut Value, arg: &Arg) {
    let spelled = value.as_str().and_then(|text| spelling::value(text, arg));
    let Some(spelled) = spelled else { return };
    // A percentage is a text, and the key takes a number.
    let is_word = !arg.get_possible_values().is_empty();
    let number = spelled.parse().ok().filter(|_| !is_word).map(Value::Float);
    *value = number.unwrap_or(Value::String(spelled));
}
