//! `[defaults]`: keys of commands, and what doesn't belong there.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::Result;
use moe_passes::PASSES;

use super::guess::guess;
use super::steps::all_commands;
use super::usage;

/// The tables of [defaults] in the recipe `text`, which are of commands; keys that stand there by
/// themselves are refused.
pub(super) fn defaults(
    given: BTreeMap<String, toml::Spanned<toml::Value>>,
    text: &str,
) -> Result<BTreeMap<String, toml::Table>> {
    let mut tables = BTreeMap::new();
    for (key, value) in given {
        let line = text[..value.span().start].lines().count();
        match value.into_inner() {
            toml::Value::Table(table) => _ = tables.insert(key, table),
            value => {
                let what = format!(
                    "line {line}, [defaults]: {key} is a key, and [defaults] has a table for each command"
                );
                let of_command = || format!("put it below [defaults.{}], say", PASSES[0]);
                return Err(usage(
                    what,
                    of_program(&key, &value.to_string()).unwrap_or_else(of_command),
                ));
            }
        }
    }
    Ok(tables)
}

/// Refuses defaults of what no step runs before steps are looked at, which would lack the keys that
/// were meant for them.
pub(super) fn check_defaults(
    defaults: &BTreeMap<String, toml::Table>,
    steps: &[toml::Table],
) -> Result<()> {
    let mut commands = BTreeSet::new();
    named_runs(steps, &mut commands);
    // What a variable names is known when the steps are.
    if commands.iter().any(|command| command.contains("${")) {
        let all: Vec<&str> = all_commands();
        return check_defaults_run(defaults, &all.into_iter().collect());
    }
    check_defaults_run(defaults, &commands)
}

/// Refuses defaults of what isn't among `commands`.
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

/// Collects what `steps`, their passes and the steps of blocks run, as it is written.
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

/// How a key is given that is about the whole run, and no step's; none for others.
pub(super) fn of_program(key: &str, value: &str) -> Option<String> {
    let takes_value =
        ["device", "dtype", "router-dtype", "device-memory", "threads", "memory-budget"]
            .contains(&key);
    let is_switch = ["timings", "json", "quiet"].contains(&key);
    let value = if takes_value { format!(" {}", value.trim_matches('"')) } else { String::new() };
    (takes_value || is_switch)
        .then(|| format!("it is for all steps: give --{key}{value} to moe-convert run"))
}
