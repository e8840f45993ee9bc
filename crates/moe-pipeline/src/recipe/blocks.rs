//! Blocks: steps that run for every combination of choices.

use std::path::Path;

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::mistake::{Mistake, usage};
use super::take::{take_table, take_tables};
use super::variables::Variables;
use crate::portable::portable;

/// Maximum number of steps: a few choices in a few nested blocks would make more than can ever run.
pub(super) const MAX_STEPS: usize = 10_000;

/// Refuses recipes whose blocks make more steps than can ever run, before any of them is made.
pub(super) fn check_count(tables: &[Table]) -> Result<()> {
    if steps_of(tables) > MAX_STEPS { Err(too_many()) } else { Ok(()) }
}

pub(super) fn too_many() -> Error {
    let what = format!("the blocks of this recipe make more than {MAX_STEPS} steps");
    usage(what, "give blocks fewer choices, or write several recipes")
}

/// The minimum number of steps that `tables` expand to: choices given by a variable count as one.
fn steps_of(tables: &[Table]) -> usize {
    tables.iter().map(steps_of_table).fold(0, usize::saturating_add)
}

fn steps_of_table(table: &Table) -> usize {
    let Some(inner) = table.get("step").and_then(Value::as_array) else { return 1 };
    let inner =
        inner.iter().filter_map(Value::as_table).map(steps_of_table).fold(0, usize::saturating_add);
    let choices = table.get("each").and_then(Value::as_table).into_iter().flatten();
    choices
        .filter_map(|(_, values)| values.as_array())
        .map(Vec::len)
        .fold(inner, usize::saturating_mul)
}

/// Steps, and the choices for each combination of which they run.
pub(super) struct Block {
    pub choices: Vec<(String, Value)>,
    pub steps: Vec<Table>,
}

impl Block {
    /// Whether `table` is a block, and not a step that runs a command.
    pub fn is_one(table: &Table) -> bool {
        table.contains_key("each") || table.contains_key("step")
    }

    /// Reads the block `table`.
    ///
    /// # Errors
    /// A mistake where there is no choice or no step, or something else.
    pub fn read(mut table: Table) -> Result<Self, Mistake> {
        let choices = take_table(&mut table, "each")?.ok_or_else(|| {
            let what = "the key \"each\" is missing: the choices for which its steps run";
            usage(what, "add each.NAME = [VALUES] to the step")
        })?;
        let steps = take_tables(&mut table, "step")?.unwrap_or_default();
        if let Some(key) = table.keys().next() {
            let what = format!("unknown key `{key}`, expected each and step");
            let remedy = "a block has each and [[step.step]] alone: move the key to a step in it";
            return Err(Mistake::about([key], usage(what, remedy)));
        }
        if choices.is_empty() {
            let what = "it has no choice under each";
            return Err(Mistake::about(["each"], usage(what, "add each.NAME = [VALUES]")));
        }
        if steps.is_empty() {
            let remedy = "add a [[step.step]] with what runs for each choice";
            return Err(usage("it has no step", remedy).into());
        }
        Ok(Self { choices: choices.into_iter().collect(), steps })
    }
}

/// The variables that one value of a choice sets, and its name in messages.
pub(super) struct Setting {
    pub variables: Vec<(String, Value)>,
    pub shown: String,
}

impl Setting {
    fn new(choice: &str, index: usize, value: Value) -> Self {
        let variables = match value {
            Value::Table(table) => table.into_iter().collect(),
            value => vec![(choice.to_owned(), value)],
        };
        let own = variables.iter().find(|(name, _)| name == choice).map(|(_, value)| value);
        let shown = match own {
            Some(Value::String(text)) => format!("{choice} {}", portable(Path::new(text))),
            Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))) => {
                format!("{choice} {value}")
            }
            _ => format!("{choice} {}", index + 1),
        };
        Self { variables, shown }
    }

    /// The names of its variables.
    pub fn names(&self) -> Vec<&str> {
        self.variables.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// The settings for the `values` of `choice`: tables of variables, or values of the variable that
/// it names.
pub(super) fn settings(
    choice: &str,
    values: &Value,
    variables: &mut Variables,
) -> Result<Vec<Setting>> {
    let mut values = values.clone();
    if values.is_str() {
        variables.replace(&mut values)?;
    }
    let Value::Array(values) = values else {
        let what = format!("give a list of values or of tables of variables, not {values}");
        return Err(usage(what, format!("write each.{choice} = [{values}] for one value")));
    };
    let values = values.into_iter().enumerate();
    let settings: Vec<_> =
        values.map(|(index, value)| Setting::new(choice, index, value)).collect();
    let Some(first) = settings.first() else {
        return Err(usage("give at least one value", "add a value, or leave the choice out"));
    };
    match settings.iter().find(|other| other.names() != first.names()) {
        Some(other) => Err(unlike(first, other)),
        None => Ok(settings),
    }
}

/// The error for two values of a choice that set other variables than each other.
fn unlike(first: &Setting, other: &Setting) -> Error {
    let [first, other] = [first, other].map(|setting| setting.names().join(", "));
    let what = format!(
        "every value sets the same variables in the same order: here are {first}, and {other}"
    );
    usage(what, "give each table the same keys")
}
