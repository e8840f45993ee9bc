//! Expands steps: fills in defaults, repeats blocks for every combination of their choices, and
//! replaces variables.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::source::RecipeText;
use super::spare::{Spare, WrittenStep};
use super::spelled::{self, EarlierKey, EarlierKeys};
use super::steps::{parse_step, take};
use super::variables::Variables;
use super::{Step, usage};
use crate::portable::portable;

/// A few choices in a few nested blocks would make more steps than can ever run.
const MAX_STEPS: usize = 10_000;

/// The expanded steps of a recipe so far.
pub(super) struct Expansion<'a> {
    pub source: RecipeText<'a>,
    /// Keys by command, for steps that don't have them.
    pub defaults: &'a BTreeMap<String, Table>,
    pub variables: Variables,
    /// The choices of the blocks around the current step, in the words of messages.
    pub chosen: Vec<String>,
    pub steps: Vec<Step>,
    /// Keys that are meant for several steps.
    pub spare: Spare,
    /// Keys that are written by earlier names.
    pub earlier: EarlierKeys,
}

/// Keys that belong to a step: its passes don't have them.
pub(super) const OF_STEPS: [&str; 6] =
    ["model", "output", "overwrite", "label", "max-shard-size", "probe-tokens"];

/// The variables that one value of a choice sets, and its name in messages.
struct Setting {
    variables: Vec<(String, Value)>,
    shown: String,
}

impl Expansion<'_> {
    /// Refuses recipes whose blocks make more steps than can ever run, before any of them is made.
    pub fn check_count(tables: &[Table]) -> Result<()> {
        match steps_of(tables) > MAX_STEPS {
            true => Err(too_many()),
            false => Ok(()),
        }
    }

    /// Appends the steps that `tables` expand to; `place` is the number of the surrounding block
    /// with a dot, or empty.
    pub fn steps(&mut self, tables: &[Table], place: &str) -> Result<()> {
        for (index, table) in tables.iter().enumerate() {
            let place = format!("{place}{}", index + 1);
            match table.contains_key("each") || table.contains_key("step") {
                true => self.block(table.clone(), &place)?,
                false => self.command(table.clone(), &place)?,
            }
        }
        Ok(())
    }

    /// Fills in the defaults of `name`, which `table` runs, except keys that are `left_out`.
    /// Returns the keys that `table` had itself, which must have an effect.
    fn fill_in(&self, name: &str, table: &mut Table, left_out: &[&str]) -> Vec<String> {
        let own = table.keys().cloned().collect();
        let defaults = self.defaults.get(name).into_iter().flatten();
        for (key, value) in defaults.filter(|(key, _)| !left_out.contains(&key.as_str())) {
            table.entry(key.clone()).or_insert_with(|| value.clone());
        }
        own
    }

    /// The keys of `table`, which runs `name`, that override a default. Defaults with variables are
    /// left out, since these may be undefined for this step.
    fn overridden(&self, name: &str, table: &Table) -> Vec<String> {
        let defaults = self.defaults.get(name).into_iter().flatten();
        let overridden = defaults
            .filter(|(key, value)| table.contains_key(*key) && !value.to_string().contains("${"));
        overridden.map(|(key, _)| key.clone()).collect()
    }

    /// Checks the defaults that `step`, which runs `name` and is valid, overrides: they must be
    /// valid as well.
    fn check_overridden(
        &mut self,
        name: &str,
        mut step: Table,
        overridden: &[String],
    ) -> Result<()> {
        let defaults = self.defaults.get(name).into_iter().flatten();
        step.extend(
            defaults
                .map(|(key, value)| (key.clone(), value.clone()))
                .filter(|(key, _)| overridden.contains(key)),
        );
        let checked = self.replace(&mut step).and_then(|()| check_idle(step, overridden));
        checked.map_err(|error| self.wrong_default(name, error))
    }

    fn command(&mut self, mut table: Table, place: &str) -> Result<()> {
        // Which defaults apply depends on the commands.
        let mut runs: Vec<&mut Value> =
            passes_mut(&mut table).filter_map(|pass| pass.get_mut("run")).collect();
        let named = runs.iter_mut().try_for_each(|run| self.variables.replace(run));
        let named = named
            .and_then(|()| table.get_mut("run").map_or(Ok(()), |run| self.variables.replace(run)));
        named.map_err(|error| self.wrong(place, "?", &[], error))?;
        let name = table.get("run").and_then(Value::as_str).unwrap_or("?").to_owned();
        self.spell(&mut table, &name, place)?;
        let overridden = self.overridden(&name, &table);
        let own = self.fill_in(&name, &mut table, &[]);
        let mut own_of_passes = Vec::new();
        for pass in passes_mut(&mut table) {
            let named = pass_name(pass).zip(pass.as_table_mut());
            own_of_passes.push(
                named.map_or(Vec::new(), |(name, pass)| self.fill_in(&name, pass, &OF_STEPS)),
            );
        }
        let mut runs: Vec<String> = passes_of(&table).filter_map(pass_name).collect();
        runs.push(name.clone());
        if self.steps.len() == MAX_STEPS {
            return Err(too_many());
        }
        let overriding = (!overridden.is_empty()).then(|| table.clone());
        let replaced = self.replace(&mut table);
        drop_idle(&mut table, &own);
        for (pass, own) in passes_mut(&mut table).zip(&own_of_passes) {
            pass.as_table_mut().into_iter().for_each(|pass| drop_idle(pass, own));
        }
        let chosen = self.chosen.join(", ");
        let shown = if chosen.is_empty() { name.clone() } else { format!("{name}; {chosen}") };
        let of_tables = std::iter::once(own).chain(own_of_passes);
        let commands = std::iter::once(&name).chain(&runs);
        // Where a variable has emptied a list of text, options about text aren't needed.
        let lacks_text = std::iter::once(&table)
            .chain(passes_of(&table).filter_map(Value::as_table))
            .any(is_emptied);
        let own_may_pass = !self.chosen.is_empty() || lacks_text;
        let written = of_tables.zip(commands).map(|(own, command)| WrittenStep {
            command: command.clone(),
            own,
            own_may_pass,
        });
        let written: Vec<WrittenStep> = written.collect();
        let step = replaced.and_then(|()| self.spare.parse(table, written, place));
        let (step, passed) = step.map_err(|error| self.wrong(place, &shown, &runs, error))?;
        for passed in passed.into_iter().filter(|_| !lacks_text) {
            let error = match &passed.defaults {
                Some(command) => self.wrong_default(command, passed.error),
                None => self.wrong(place, &shown, &runs, passed.error),
            };
            self.spare.pass(passed.origin, error);
        }
        if let Some(overriding) = overriding {
            self.check_overridden(&name, overriding, &overridden)?;
        }
        self.steps.push(Step { chosen, ..step });
        Ok(())
    }

    /// Gives the keys of a step, which runs `name`, and of its passes their current names and
    /// spelling.
    fn spell(&mut self, table: &mut Table, name: &str, place: &str) -> Result<()> {
        let earlier = spelled::keys(table, name);
        self.take_down(earlier, name, "", place)?;
        for (index, pass) in passes_mut(table).enumerate() {
            let Some((command, pass)) = pass_name(pass).zip(pass.as_table_mut()) else { continue };
            let earlier = spelled::keys(pass, &command);
            self.take_down(earlier, name, &format!("pass {}: ", index + 1), place)?;
        }
        Ok(())
    }

    /// Records the keys of a step, or of its pass `pass`, that have `earlier` names.
    fn take_down(
        &mut self,
        earlier: Result<Vec<EarlierKey>>,
        name: &str,
        pass: &str,
        place: &str,
    ) -> Result<()> {
        let earlier =
            earlier.map_err(|error| self.wrong(place, name, &[], in_pass(error, pass)))?;
        for key in earlier {
            let line = self.source.line(place, &format!("{pass}`{}`", key.was));
            self.earlier.add(key, line, &format!("step {place} ({name})"));
        }
        Ok(())
    }

    /// Replaces variables in all values of a step.
    fn replace(&mut self, table: &mut Table) -> Result<()> {
        let mut of_key = |(key, value): (&str, &mut Value)| {
            self.variables.replace(value).map_err(|error| error.about(&format!("`{key}`")))
        };
        table.iter_mut().try_for_each(|(key, value)| of_key((key.as_str(), value)))
    }

    /// `error` of a step that runs all of `runs`, with its place: in the step, or in the defaults
    /// that filled it in.
    fn wrong(&self, place: &str, name: &str, runs: &[String], error: Error) -> Error {
        let of_step = self.source.key_of_step(place, error.what());
        let of_defaults = runs
            .iter()
            .filter_map(|run| Some((self.source.key_of_defaults(run, error.what())?, run)));
        match of_defaults.min_by_key(|(found, _)| found.mentioned) {
            Some((found, run)) if of_step.is_none_or(|own| found.mentioned < own.mentioned) => {
                error.within(&format!("line {}, [defaults.{run}]", found.line))
            }
            _ => {
                let line = self
                    .source
                    .line(place, error.what())
                    .map_or(String::new(), |line| format!("line {line}, "));
                let name = if name == "?" { String::new() } else { format!(" ({name})") };
                error.within(&format!("{line}step {place}{name}"))
            }
        }
    }

    /// `error` about a default of `command` that a step doesn't use.
    fn wrong_default(&self, command: &str, error: Error) -> Error {
        let line = self.source.key_of_defaults(command, error.what());
        let line = line.map_or(String::new(), |key| format!("line {}, ", key.line));
        error.within(&format!("{line}[defaults.{command}]"))
    }

    fn block(&mut self, mut table: Table, place: &str) -> Result<()> {
        let in_block = |error: Error| self.wrong(place, "a block", &[], error);
        let each: Option<Table> = take(&mut table, "each").map_err(in_block)?;
        let each = each.ok_or_else(|| {
            let what = "the key \"each\" is missing: the choices for which its steps run";
            in_block(usage(what, "add each.NAME = [VALUES] to the step"))
        })?;
        let steps: Vec<Table> = take(&mut table, "step").map_err(in_block)?.unwrap_or_default();
        if let Some(key) = table.keys().next() {
            let what = format!("unknown key `{key}`, expected each and step");
            return Err(in_block(usage(
                what,
                "a block has each and [[step.step]] alone: move the key to a step in it",
            )));
        }
        if each.is_empty() || steps.is_empty() {
            let (missing, remedy) = match each.is_empty() {
                true => ("no choice under each", "add each.NAME = [VALUES]"),
                false => ("no step", "add a [[step.step]] with what runs for each choice"),
            };
            return Err(in_block(usage(format!("it has {missing}"), remedy)));
        }
        let choices: Vec<_> = each.into_iter().collect();
        self.combinations(&choices, &steps, place)
    }

    /// Runs `steps` for every combination of `choices`, the last one varying fastest.
    fn combinations(
        &mut self,
        choices: &[(String, Value)],
        steps: &[Table],
        place: &str,
    ) -> Result<()> {
        let Some(((choice, values), others)) = choices.split_first() else {
            return self.steps(steps, &format!("{place}."));
        };
        let in_choice =
            |error: Error| error.within(&format!("step {place} (a block): each.{choice}"));
        let settings = self.settings(choice, values).map_err(in_choice)?;
        for setting in &settings {
            for (name, value) in &setting.variables {
                self.variables.define(name, value.clone()).map_err(in_choice)?;
            }
            self.chosen.push(setting.shown.clone());
            self.combinations(others, steps, place)?;
            self.chosen.pop();
            for (name, _) in &setting.variables {
                self.variables.undefine(name);
            }
        }
        for (name, _) in settings.iter().take(1).flat_map(|setting| &setting.variables) {
            if !self.variables.was_used(name) {
                let what = format!("no step of the block uses ${{{name}}}");
                return Err(in_choice(usage(what, "use it in a step, or leave the choice out")));
            }
        }
        Ok(())
    }

    /// The values of `choice`: tables of variables, or values of the variable that it names.
    fn settings(&mut self, choice: &str, values: &Value) -> Result<Vec<Setting>> {
        let mut values = values.clone();
        if values.is_str() {
            self.variables.replace(&mut values)?;
        }
        let Value::Array(values) = values else {
            let what = format!("give a list of values or of tables of variables, not {values}");
            return Err(usage(what, format!("write each.{choice} = [{values}] for one value")));
        };
        let settings: Vec<_> = values
            .into_iter()
            .enumerate()
            .map(|(i, value)| Setting::new(choice, i, value))
            .collect();
        let names = |setting: &Setting| {
            setting.variables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        match settings.first() {
            None => Err(usage("give at least one value", "add a value, or leave the choice out")),
            Some(first) => match settings.iter().find(|other| names(other) != names(first)) {
                None => Ok(settings),
                Some(other) => {
                    let [first, other] = [first, other].map(|setting| names(setting).join(", "));
                    let what = format!(
                        "every value sets the same variables in the same order: here are {first}, and {other}"
                    );
                    Err(usage(what, "give each table the same keys"))
                }
            },
        }
    }
}

/// Refuses values of the keys `overridden` in a step that has them from defaults, where a value is
/// wrong by itself. Conflicts with the step's other keys don't matter, since these defaults aren't
/// used there.
fn check_idle(idle: Table, overridden: &[String]) -> Result<()> {
    match parse_step(idle) {
        Err(error) if overridden.iter().any(|key| is_of_value(error.what(), key)) => Err(error),
        _ => Ok(()),
    }
}

/// Whether `what` says that the value of `key` is wrong by itself.
fn is_of_value(what: &str, key: &str) -> bool {
    let is_typed = ["invalid", "unknown variant"].iter().any(|start| what.starts_with(start));
    let number = what.strip_prefix(&format!("`{key}` ")).and_then(|rest| rest.split(' ').next());
    number.is_some_and(|number| number.parse::<f64>().is_ok())
        || what.starts_with(&format!("{key}: "))
        || (is_typed && what.contains(&format!("in `{key}")))
}

/// `error` in `pass` of a step, or in the step itself where `pass` is empty.
fn in_pass(error: Error, pass: &str) -> Error {
    match pass.strip_suffix(": ") {
        Some(pass) => error.within(pass),
        None => error,
    }
}

fn too_many() -> Error {
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

/// The tables under `pass` of a step that runs several.
fn passes_of(table: &Table) -> impl Iterator<Item = &Value> {
    table.get("pass").and_then(Value::as_array).into_iter().flatten()
}

fn passes_mut(table: &mut Table) -> impl Iterator<Item = &mut Value> {
    table.get_mut("pass").and_then(Value::as_array_mut).into_iter().flatten()
}

/// Drops keys that say how text is read from a step without text, if they come from `[defaults]`,
/// or if a choice has emptied its list of text. `own` are the keys that the step has itself.
fn drop_idle(step: &mut Table, own: &[String]) {
    let [data, held_out] = ["data", "held-out"].map(|text| has_text(step, text) == Some(true));
    let is_emptied = is_emptied(step);
    step.retain(|key, _| {
        let is_used = match key {
            "data-tokens" | "pack" | "mask-special" => data,
            "held-out-tokens" => held_out,
            // Both texts are split into windows.
            "sequence-length" => data || held_out,
            _ => true,
        };
        is_used || (!is_emptied && own.iter().any(|own| own == key))
    });
}

/// Whether `step` has a list of text that is empty.
fn is_emptied(step: &Table) -> bool {
    ["data", "held-out"].iter().any(|text| has_text(step, text) == Some(false))
}

/// Whether the list of text under `key` is non-empty; None where there is no such key.
fn has_text(step: &Table, key: &str) -> Option<bool> {
    step.get(key).map(|files| files.as_array().is_none_or(|files| !files.is_empty()))
}

fn pass_name(pass: &Value) -> Option<String> {
    pass.get("run").and_then(Value::as_str).map(str::to_owned)
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
}
