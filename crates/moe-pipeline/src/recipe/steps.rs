//! Reads steps and passes from the tables of a recipe.

use std::path::PathBuf;

use moe_checkpoint::{Error, Result};
use moe_passes::{PASSES, Pass, PassInfo};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::commands::{CONVERT, GATES, all_commands, pass_names};
use super::defaults::of_program;
use super::guess::{guess, guess_key};
use super::keys::StepKeys;
use super::mistake::{Mistake, usage};
use super::parsed::{Step, StepKind};
use super::take::{take_path, take_switch, take_tables, take_text};
use super::{misread, schema, spelled, values, wording};
use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use crate::run::check_together;
use crate::spelling::other_names;
use crate::writing::WritingOptions;

/// The step that `table` describes.
pub(super) fn parse_step(mut table: Table) -> Result<Step, Mistake> {
    let command = take_text(&mut table, "run")?.ok_or_else(no_command)?;
    if let Some(known) = schema::keys_of_step(&command) {
        check_keys(&table, &command, known)?;
    }
    spelled::values(&mut table, &command);
    let model =
        take_path(&mut table, "model")?.ok_or_else(|| missing("model", "\"CHECKPOINT\""))?;
    let label = take_text(&mut table, "label")?;
    Ok(Step {
        kind: parse_kind(&command, table)?,
        command,
        model,
        label,
        chosen: String::new(),
        keys: StepKeys::default(),
    })
}

fn parse_kind(command: &str, table: Table) -> Result<StepKind, Mistake> {
    match command {
        CONVERT => several_passes(table),
        "observe" => observe(table),
        "eval" => eval(table),
        // Keys that all commands have are taken from the table, and it had no others.
        "verify" => Ok(StepKind::Verify),
        "inspect" => Ok(StepKind::Inspect),
        pass if PassInfo::named(pass).is_some() => one_pass(pass, table),
        other => Err(unknown_command(other).into()),
    }
}

fn several_passes(mut table: Table) -> Result<StepKind, Mistake> {
    let (output, overwrite) = take_output(&mut table)?;
    let writing = take_writing(&mut table)?;
    let passes = parse_passes(take_tables(&mut table, "pass")?.unwrap_or_default())?;
    Ok(StepKind::Convert { passes, output, overwrite, writing })
}

fn one_pass(name: &str, mut table: Table) -> Result<StepKind, Mistake> {
    let (output, overwrite) = take_output(&mut table)?;
    let writing = take_writing(&mut table)?;
    Ok(StepKind::Convert { passes: vec![parse_pass(name, table)?], output, overwrite, writing })
}

fn observe(mut table: Table) -> Result<StepKind, Mistake> {
    let (output, overwrite) = take_output(&mut table)?;
    let options: ObserveOptions = read(table, "observe")?;
    options.check().map_err(wording::mistake)?;
    Ok(StepKind::Observe { output, overwrite, options })
}

fn eval(mut table: Table) -> Result<StepKind, Mistake> {
    let original = take_path(&mut table, "original")?;
    check_gates(&table)?;
    let options: EvalOptions = read(table, "eval")?;
    options.check(original.is_some()).map_err(wording::mistake)?;
    Ok(StepKind::Eval { original, options })
}

/// Refuses gates that aren't a table of gates.
fn check_gates(table: &Table) -> Result<(), Mistake> {
    let Some(gates) = table.get(GATES) else { return Ok(()) };
    let Some(gates) = gates.as_table() else {
        return Err(Mistake::of_value(GATES, values::of_type(GATES, gates, "a table")));
    };
    let known = schema::keys_of_gates();
    match gates.keys().find(|key| !known.contains(key)) {
        Some(key) => {
            let guess = guess_key(key, &known, &[]);
            let error = unknown_key(key, &format!(" in `{GATES}`"), &known, &guess);
            Err(Mistake::about([format!("{GATES}.{key}")], error))
        }
        None => Ok(()),
    }
}

fn parse_pass(name: &str, table: Table) -> Result<Box<dyn Pass>, Mistake> {
    let Some(info) = PassInfo::named(name) else { return Err(unknown_pass(name).into()) };
    let pass = info.options.from_table(table.clone());
    let pass = pass.map_err(|error| misread::mistake(&table, name, &error))?;
    // Errors that can be found now must not appear after earlier steps have run for hours.
    pass.check_options().map_err(wording::mistake)?;
    Ok(pass)
}

/// Refuses keys of `table` that aren't `known` to `command`.
fn check_keys(table: &Table, command: &str, known: &[String]) -> Result<(), Mistake> {
    let Some((key, value)) = table.iter().find(|(key, _)| !known.contains(key)) else {
        return Ok(());
    };
    let is_gate = known.iter().any(|key| key == GATES) && schema::keys_of_gates().contains(key);
    let elsewhere = of_program(key, &value.to_string())
        .or_else(|| is_gate.then(|| format!("it is a gate: {GATES} = {{ {key} = {value} }}")));
    let error = match elsewhere {
        Some(remedy) => usage(format!("`{key}` is not a key of a step"), remedy),
        None => {
            let others: Vec<_> =
                schema::command_of(command).into_iter().flat_map(other_names).collect();
            let guess = guess_key(key, known, &others);
            unknown_key(key, "", known, &guess).unknown_option(command, key)
        }
    };
    Err(Mistake::about([key], error))
}

/// The passes of a step that runs several.
fn parse_passes(tables: Vec<Table>) -> Result<Vec<Box<dyn Pass>>, Mistake> {
    if tables.is_empty() {
        let what =
            "the key \"pass\" is missing: the passes that it runs, each a table [[step.pass]]";
        return Err(usage(what, "add a [[step.pass]] with run = \"PASS\" for each").into());
    }
    let mut passes = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        passes.push(parse_pass_of_step(table).map_err(|mistake| mistake.in_pass(index + 1))?);
    }
    let borrowed: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
    check_together(&borrowed)?;
    Ok(passes)
}

fn parse_pass_of_step(mut table: Table) -> Result<Box<dyn Pass>, Mistake> {
    let name = take_text(&mut table, "run")?.ok_or_else(|| {
        let remedy = format!("add run = \"{}\" or another of {}", PASSES[0], all_passes());
        usage("the key \"run\" that names the pass is missing", remedy)
    })?;
    if PassInfo::named(&name).is_some() {
        check_keys(&table, &name, &schema::keys_of_pass(&name))?;
    }
    spelled::values(&mut table, &name);
    parse_pass(&name, table)
}

/// Takes the output of a step, and whether it replaces an earlier one.
fn take_output(table: &mut Table) -> Result<(PathBuf, bool), Mistake> {
    let output = take_path(table, "output")?.ok_or_else(|| missing("output", "\"PATH\""))?;
    Ok((output, take_switch(table, "overwrite")?))
}

/// Takes the options of writing the step's result.
fn take_writing(table: &mut Table) -> Result<WritingOptions, Mistake> {
    let mut given = Table::new();
    for key in WRITING {
        given.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let writing: WritingOptions = read(given, CONVERT)?;
    writing.check().map_err(wording::mistake)?;
    Ok(writing)
}

/// The keys of [`WritingOptions`].
const WRITING: [&str; 2] = ["max-shard-size", "probe-tokens"];

/// Reads options of `command` from `table`.
fn read<T: DeserializeOwned>(table: Table, command: &str) -> Result<T, Mistake> {
    let options = Value::Table(table.clone()).try_into();
    options.map_err(|error| misread::mistake(&table, command, &error))
}

fn missing(key: &str, example: &str) -> Error {
    usage(
        format!("the key {key:?} is missing"),
        format!("add {key} = {example}, to the step or to [defaults]"),
    )
}

fn no_command() -> Error {
    let all = all_commands().join(", ");
    usage(
        "every step has a key \"run\" that names its command",
        format!("add run = \"{}\" or another command: {all}", PASSES[0]),
    )
}

fn unknown_command(name: &str) -> Error {
    let known = all_commands();
    let what = format!("there is no command {name:?}, only {}", known.join(", "));
    usage(what + &guess(name, known), "give run one of these")
}

fn unknown_pass(name: &str) -> Error {
    let guess = guess(name, pass_names());
    let what = format!("there is no pass {name:?}, only {}{guess}", all_passes());
    usage(what, "give run one of these")
}

fn all_passes() -> String {
    pass_names().collect::<Vec<_>>().join(", ")
}

/// The error for a `key` that isn't `known` in this place, which messages name after the key.
fn unknown_key(key: &str, place: &str, known: &[String], guess: &str) -> Error {
    let known = known.join(", ");
    usage(
        format!("unknown field `{key}`{place}, expected one of {known}{guess}"),
        "correct the key or remove it; the keys of a step are the options of its command, which --help describes",
    )
}
