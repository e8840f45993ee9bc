//! Steps as they are written become steps as they run: defaults filled in, blocks repeated for every combination of their
//! choices, variables replaced.

use std::collections::BTreeMap;

use moe_checkpoint::{Error, Result};
use toml::{Table, Value};

use super::guess::guess_key;
use super::source::Source;
use super::variables::Variables;
use super::{Step, parse_step, take, usage};

/// A few choices in a few blocks within each other make more steps than can ever run.
const MAX_STEPS: usize = 10_000;

/// The steps of a recipe so far.
pub(super) struct Expansion<'a> {
    pub source: Source<'a>,
    /// Keys by command, where a step itself doesn't have them.
    pub defaults: &'a BTreeMap<String, Table>,
    pub variables: Variables,
    /// What was chosen in the blocks around the present step, as messages say it.
    pub chosen: Vec<String>,
    pub steps: Vec<Step>,
}

/// Keys of steps that run one pass which passes within a step don't have.
pub(super) const OF_STEPS: [&str; 6] = ["model", "output", "overwrite", "label", "max-shard-size", "probe-tokens"];

/// The variables that one value of a choice sets, and how messages call it.
struct Setting {
    variables: Vec<(String, Value)>,
    shown: String,
}

impl Expansion<'_> {
    /// Appends the steps that `tables` stand for; `place` is the number of the block around them with a dot, or nothing.
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

    /// Gives `table`, which runs `name`, the defaults of keys that it doesn't have, but for those that are `left_out`.
    fn fill_in(&self, name: &str, table: &mut Table, left_out: &[&str]) {
        let defaults = self.defaults.get(name).into_iter().flatten();
        for (key, value) in defaults.filter(|(key, _)| !left_out.contains(&key.as_str())) {
            table.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    fn command(&mut self, mut table: Table, place: &str) -> Result<()> {
        // Defaults go by what runs.
        let passes = table.get_mut("pass").and_then(Value::as_array_mut).into_iter().flatten();
        let mut runs: Vec<&mut Value> = passes.filter_map(|pass| pass.get_mut("run")).collect();
        let named = runs.iter_mut().try_for_each(|run| self.variables.replace(run));
        let named = named.and_then(|()| table.get_mut("run").map_or(Ok(()), |run| self.variables.replace(run)));
        named.map_err(|what| self.wrong(place, "?", &what))?;
        let name = table.get("run").and_then(Value::as_str).unwrap_or("?").to_owned();
        self.fill_in(&name, &mut table, &[]);
        for pass in table.get_mut("pass").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some((name, pass)) = pass_name(pass).zip(pass.as_table_mut()) {
                self.fill_in(&name, pass, &OF_STEPS);
            }
        }
        let step =
            table.iter_mut().try_for_each(|(_, value)| self.variables.replace(value)).and_then(|()| parse_step(table));
        if self.steps.len() == MAX_STEPS {
            return Err(usage(format!("its blocks make more than {MAX_STEPS} steps")));
        }
        let chosen = self.chosen.join(", ");
        let shown = if chosen.is_empty() { name } else { format!("{name}; {chosen}") };
        let step = step.map_err(|what| self.wrong(place, &shown, &what))?;
        self.steps.push(Step { chosen, ..step });
        Ok(())
    }

    /// What is wrong with a step, and where it stands.
    fn wrong(&self, place: &str, name: &str, what: &str) -> Error {
        let line = self.source.line(place, what).map_or(String::new(), |line| format!("line {line}, "));
        usage(format!("{line}step {place} ({name}): {what}{}", guess_key(what)))
    }

    fn block(&mut self, mut table: Table, place: &str) -> Result<()> {
        let in_block = |what: String| self.wrong(place, "a block", &what);
        let each: Table = take(&mut table, "each")
            .and_then(|each| each.ok_or("the key \"each\" is missing: the choices for which its steps run".to_owned()))
            .map_err(in_block)?;
        let steps: Vec<Table> = take(&mut table, "step").map_err(in_block)?.unwrap_or_default();
        if let Some(key) = table.keys().next() {
            return Err(in_block(format!("unknown key `{key}`, expected each and step")));
        }
        if each.is_empty() || steps.is_empty() {
            let missing = if each.is_empty() { "no choice under each" } else { "no step" };
            return Err(in_block(format!("it has {missing}")));
        }
        let choices: Vec<_> = each.into_iter().collect();
        self.combinations(&choices, &steps, place)
    }

    /// Runs `steps` for every combination of `choices`, the last one varying fastest.
    fn combinations(&mut self, choices: &[(String, Value)], steps: &[Table], place: &str) -> Result<()> {
        let Some(((choice, values), others)) = choices.split_first() else {
            return self.steps(steps, &format!("{place}."));
        };
        let in_choice = |what: String| usage(format!("step {place} (a block): each.{choice}: {what}"));
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
                return Err(in_choice(format!("no step of the block uses ${{{name}}}")));
            }
        }
        Ok(())
    }

    /// What `choice` can be: tables of variables, or values of the variable that it names.
    fn settings(&mut self, choice: &str, values: &Value) -> Result<Vec<Setting>, String> {
        let mut values = values.clone();
        if values.is_str() {
            self.variables.replace(&mut values)?;
        }
        let Value::Array(values) = values else {
            return Err(format!("give a list of values or of tables of variables, not {values}"));
        };
        let settings: Vec<_> =
            values.into_iter().enumerate().map(|(i, value)| Setting::new(choice, i, value)).collect();
        let names = |setting: &Setting| setting.variables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        match settings.first() {
            None => Err("give at least one value".to_owned()),
            Some(first) => match settings.iter().find(|other| names(other) != names(first)) {
                None => Ok(settings),
                Some(other) => Err(format!(
                    "every value sets the same variables in the same order: here are {}, and {}",
                    names(first).join(", "),
                    names(other).join(", ")
                )),
            },
        }
    }
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
            Some(Value::String(text)) => format!("{choice} {text}"),
            Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))) => format!("{choice} {value}"),
            _ => format!("{choice} {}", index + 1),
        };
        Self { variables, shown }
    }
}
