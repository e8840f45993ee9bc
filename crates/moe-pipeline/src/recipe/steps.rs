//! Reads steps and passes from the tables of a recipe.

use std::path::PathBuf;

use moe_checkpoint::{Error, Result};
use moe_passes::{PASSES, Pass, PassInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::defaults::of_program;
use super::guess::guess;
use super::spare::StepKeys;
use super::wording::{of_serde, plain, with_keys};
use super::{Step, StepKind, schema, spelled, usage};
use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use crate::run::check_together;
use crate::writing::WritingOptions;

fn missing(key: &str, example: &str) -> Error {
    usage(
        format!("the key {key:?} is missing"),
        format!("add {key} = {example}, to the step or to [defaults]"),
    )
}

pub(super) fn parse_step(mut table: toml::Table) -> Result<Step> {
    let command: Option<String> = take(&mut table, "run")?;
    let command = command.ok_or_else(|| {
        let what = "every step has a key \"run\" that names its command";
        usage(
            what,
            format!(
                "add run = \"{}\" or another command: {}",
                PASSES[0],
                all_commands().join(", ")
            ),
        )
    })?;
    if let Some(known) = schema::keys_of_step(&command) {
        check_keys(&table, &command, known)?;
    }
    spelled::values(&mut table, &command);
    let model: Option<PathBuf> = take(&mut table, "model")?;
    let model = model.ok_or_else(|| missing("model", "\"CHECKPOINT\""))?;
    let label = take(&mut table, "label")?;
    let kind = match command.as_str() {
        CONVERT => {
            let (output, overwrite) = take_output(&mut table)?;
            let writing = take_writing(&mut table)?;
            let passes: Vec<toml::Table> = take(&mut table, "pass")?.unwrap_or_default();
            rest::<Nothing>(table)?;
            StepKind::Convert { passes: parse_passes(passes)?, output, overwrite, writing }
        }
        "observe" => {
            let (output, overwrite) = take_output(&mut table)?;
            let options: ObserveOptions = rest(table)?;
            options.check().map_err(with_keys)?;
            StepKind::Observe { output, overwrite, options }
        }
        "eval" => {
            let original: Option<PathBuf> = take(&mut table, "original")?;
            let options: EvalOptions = rest(table)?;
            options.check(original.is_some()).map_err(with_keys)?;
            StepKind::Eval { original, options }
        }
        "verify" => rest::<Nothing>(table).map(|_| StepKind::Verify)?,
        "inspect" => rest::<Nothing>(table).map(|_| StepKind::Inspect)?,
        pass if PassInfo::named(pass).is_some() => {
            let (output, overwrite) = take_output(&mut table)?;
            let writing = take_writing(&mut table)?;
            StepKind::Convert { passes: vec![parse_pass(pass, table)?], output, overwrite, writing }
        }
        other => {
            let known = all_commands();
            let what = format!("there is no command {other:?}, only {}", known.join(", "));
            return Err(usage(
                what + &guess(other, known.iter().copied()),
                "give run one of these",
            ));
        }
    };
    Ok(Step { command, model, label, chosen: String::new(), kind, keys: StepKeys::default() })
}

/// All commands that a step can run.
pub(crate) fn all_commands() -> Vec<&'static str> {
    pass_names().chain([CONVERT, "observe", "eval", "verify", "inspect"]).collect()
}

/// The command of a step that runs several passes.
pub(super) const CONVERT: &str = "convert";

fn pass_names() -> impl Iterator<Item = &'static str> + Clone {
    PASSES.iter().map(|info| info.name)
}

fn all_passes() -> String {
    pass_names().collect::<Vec<_>>().join(", ")
}

fn parse_pass(name: &str, table: toml::Table) -> Result<Box<dyn Pass>> {
    let Some(info) = PassInfo::named(name) else {
        let what = format!(
            "there is no pass {name:?}, only {}{}",
            all_passes(),
            guess(name, pass_names())
        );
        return Err(usage(what, "give run one of these"));
    };
    let pass = read(table, |table| info.options.from_table(table))?;
    // Errors that can be found now must not appear after earlier steps have run for hours.
    pass.check_options().map_err(with_keys)?;
    Ok(pass)
}

/// Refuses keys of `table` that aren't `known` to `command`.
fn check_keys(table: &toml::Table, command: &str, known: &[String]) -> Result<()> {
    match table.keys().find(|key| !known.contains(key)) {
        Some(key) if of_program(key, "").is_some() => {
            let value = table[key].to_string();
            let what = format!("`{key}` is not a key of a step");
            Err(usage(what, of_program(key, &value).unwrap_or_default()))
        }
        Some(key) => {
            let known = known.join(", ");
            let error = of_serde(&format!("unknown field `{key}`, expected one of {known}"));
            Err(error.unknown_option(command, key))
        }
        None => Ok(()),
    }
}

/// The passes of a step that runs several.
fn parse_passes(tables: Vec<toml::Table>) -> Result<Vec<Box<dyn Pass>>> {
    if tables.is_empty() {
        let what =
            "the key \"pass\" is missing: the passes that it runs, each a table [[step.pass]]";
        return Err(usage(what, "add a [[step.pass]] with run = \"PASS\" for each"));
    }
    let mut passes = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        passes
            .push(parse_pass_of_step(table).map_err(|e| e.within(&format!("pass {}", index + 1)))?);
    }
    let borrowed: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
    check_together(&borrowed)?;
    Ok(passes)
}

fn parse_pass_of_step(mut table: toml::Table) -> Result<Box<dyn Pass>> {
    let name: Option<String> = take(&mut table, "run")?;
    let remedy = || format!("add run = \"{}\" or another of {}", PASSES[0], all_passes());
    let name =
        name.ok_or_else(|| usage("the key \"run\" that names the pass is missing", remedy()))?;
    if PassInfo::named(&name).is_some() {
        check_keys(&table, &name, &schema::keys_of_pass(&name))?;
    }
    spelled::values(&mut table, &name);
    parse_pass(&name, table)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(super) fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>> {
    let value = table.remove(key);
    value
        .map(|v| v.try_into().map_err(|e: toml::de::Error| of_serde(e.message()).within(key)))
        .transpose()
}

/// Takes the output of a step, and whether it replaces an earlier one.
fn take_output(table: &mut toml::Table) -> Result<(PathBuf, bool)> {
    let output = take(table, "output")?.ok_or_else(|| missing("output", "\"PATH\""))?;
    Ok((output, take(table, "overwrite")?.unwrap_or(false)))
}

/// Takes the options of writing the step's result.
fn take_writing(table: &mut toml::Table) -> Result<WritingOptions> {
    let mut given = toml::Table::new();
    for key in WRITING {
        given.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let writing: WritingOptions = rest(given)?;
    writing.check().map_err(with_keys)?;
    Ok(writing)
}

/// The keys of [`WritingOptions`].
const WRITING: [&str; 2] = ["max-shard-size", "probe-tokens"];

fn rest<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    read(table, |table| toml::Value::Table(table).try_into())
}

/// Parses `table` with `parse`; errors name the key.
fn read<T>(
    table: toml::Table,
    parse: impl Fn(toml::Table) -> Result<T, toml::de::Error>,
) -> Result<T> {
    let said = parse(table.clone()).map_err(|error| plain(&error.to_string()));
    said.map_err(|error| {
        // Where options consist of flattened groups, serde doesn't say whose value is wrong: it is
        // the key without which the error disappears.
        let is_subject = |key: &&String| {
            let mut others = table.clone();
            others.remove(*key);
            let other = parse(others).map_err(|other| plain(&other.to_string()));
            other.map_or_else(
                |other| other != error && !other.contains(&format!("`{key}`")),
                |_| true,
            )
        };
        match table.keys().find(is_subject) {
            Some(key)
                if ![format!("`{key}`"), format!("`{key}.")]
                    .iter()
                    .any(|named| error.contains(named)) =>
            {
                of_serde(&format!("{error} in `{key}`"))
            }
            _ => of_serde(&error),
        }
    })
}
