//! Finds the mistake in a table of options that serde refuses.
//!
//! For options that consist of flattened groups, serde's error is a sentence that doesn't name the
//! key. So each key is checked against the option of the command line that it stands for.

use clap::Command;
use moe_checkpoint::json::in_words;
use toml::Table;

use super::mistake::{Mistake, usage};
use super::{schema, values};

/// The mistake in the options `table` of `command`, which can't be read because of `error`.
pub(super) fn mistake(table: &Table, command: &str, error: &toml::de::Error) -> Mistake {
    let found = schema::command_of(command)
        .and_then(|command| wrong_value(table, command, "").or_else(|| missing(table, command)));
    found.unwrap_or_else(|| {
        let what = format!("these options can't be read: {}", in_words("", error.message()));
        usage(what, "correct them; the command's --help describes each").into()
    })
}

/// The first value that its option doesn't take. `outer` is the key of the table with a dot, if it
/// is one within a step.
fn wrong_value(table: &Table, command: &Command, outer: &str) -> Option<Mistake> {
    table.iter().find_map(|(key, value)| {
        let path = format!("{outer}{key}");
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key.as_str()));
        let Some(arg) = arg else {
            return wrong_value(value.as_table()?, command, &format!("{path}."));
        };
        let error = values::refused(command, arg, &path, value)?;
        Some(Mistake::of_value(&path, error))
    })
}

/// The first option that `command` needs and `table` lacks.
fn missing(table: &Table, command: &Command) -> Option<Mistake> {
    let needed = command.get_arguments().filter(|arg| arg.is_required_set());
    let key = needed.filter_map(|arg| arg.get_long()).find(|key| !table.contains_key(*key))?;
    let remedy = "add this key to the step, or to [defaults] of its command";
    Some(usage(format!("missing field `{key}`"), remedy).into())
}
