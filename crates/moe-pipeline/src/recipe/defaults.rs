//! `[defaults]`: keys of commands, and checks for keys that don't belong there.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::{Error, Result};
use moe_passes::PASSES;

use super::commands::all_commands;
use super::guess::guess;
use super::mistake::usage;
use super::syntax::line_of;
use crate::spelling::possible_options;

/// The tables of [defaults] in the recipe `text`, by command; keys outside of a command's table are
/// refused.
pub(super) fn defaults(
    given: BTreeMap<String, toml::Spanned<toml::Value>>,
    text: &str,
) -> Result<BTreeMap<String, toml::Table>> {
    let mut tables = BTreeMap::new();
    for (key, value) in given {
        let line = line_of(text, value.span().start);
        match value.into_inner() {
            toml::Value::Table(table) => _ = tables.insert(key, table),
            value => return Err(outside_of_tables(&key, &value, line)),
        }
    }
    Ok(tables)
}

/// The error for a `key` of [defaults] at `line` that is in no command's table.
fn outside_of_tables(key: &str, value: &toml::Value, line: usize) -> Error {
    let what = format!(
        "line {line}, [defaults]: {key} is a key, and [defaults] has a table for each command"
    );
    let of_command = || format!("put it below [defaults.{}], say", PASSES[0]);
    usage(what, of_program(key, &value.to_string()).unwrap_or_else(of_command))
}

/// Refuses defaults of commands that no step runs. This comes before steps are checked, since these
/// would seem to lack the keys.
pub(super) fn check_defaults(
    defaults: &BTreeMap<String, toml::Table>,
    steps: &[toml::Table],
) -> Result<()> {
    let mut commands = BTreeSet::new();
    named_runs(steps, &mut commands);
    // The values of variables are known only once steps are expanded.
    if commands.iter().any(|command| command.contains("${")) {
        return check_defaults_run(defaults, &all_commands().into_iter().collect());
    }
    check_defaults_run(defaults, &commands)
}

/// Refuses defaults of a command that isn't among `commands`.
pub(super) fn check_defaults_run(
    defaults: &BTreeMap<String, toml::Table>,
    commands: &BTreeSet<&str>,
) -> Result<()> {
    let Some(name) = defaults.keys().find(|name| !commands.contains(name.as_str())) else {
        return Ok(());
    };
    let guess = guess(name, commands.iter().copied());
    let commands = commands.iter().copied().collect::<Vec<_>>().join(", ");
    let what = format!("[defaults.{name}]: no step runs {name:?}{guess}");
    Err(usage(what, format!("name a command that a step runs ({commands}), or remove the table")))
}

/// Collects the commands that `steps`, their passes and the steps of blocks run, as written.
fn named_runs<'t>(
    steps: impl IntoIterator<Item = &'t toml::Table>,
    commands: &mut BTreeSet<&'t str>,
) {
    for step in steps {
        commands.extend(step.get("run").and_then(toml::Value::as_str));
        for inner in ["step", "pass"] {
            let tables = step.get(inner).and_then(toml::Value::as_array).into_iter().flatten();
            named_runs(tables.filter_map(toml::Value::as_table).collect::<Vec<_>>(), commands);
        }
    }
}

/// The remedy for a key that belongs to the whole run instead of a step; None for other keys.
pub(super) fn of_program(key: &str, value: &str) -> Option<String> {
    let known = OF_PROGRAM.into_iter().chain(SWITCHES);
    let option = possible_options(key).find(|option| known.clone().any(|known| known == option))?;
    let value = if SWITCHES.contains(&option.as_str()) {
        String::new()
    } else {
        format!(" {}", value.trim_matches('"'))
    };
    Some(format!("it is for all steps: give --{option}{value} to moe-convert run"))
}

/// Options of `moe-convert run` that take a value, and those that don't.
const OF_PROGRAM: [&str; 8] = [
    "device",
    "dtype",
    "router-dtype",
    "device-memory",
    "threads",
    "memory-budget",
    "junit",
    "summary",
];
const SWITCHES: [&str; 6] = ["timings", "json", "quiet", "dry-run", "resume", "fresh"];
