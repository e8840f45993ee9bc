//! Takes keys out of the table of a step, which has values of some types.

use std::path::PathBuf;

use moe_checkpoint::Result;
use toml::{Table, Value};

use super::mistake::Mistake;
use super::values::of_type;

/// Takes the text under `key`; None where there is no such key.
pub(super) fn take_text(table: &mut Table, key: &str) -> Result<Option<String>, Mistake> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => Err(wrong(key, &value, "a text")),
    }
}

/// Takes the path under `key`; None where there is no such key.
pub(super) fn take_path(table: &mut Table, key: &str) -> Result<Option<PathBuf>, Mistake> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(path)) => Ok(Some(path.into())),
        Some(value) => Err(wrong(key, &value, "a path")),
    }
}

/// Takes whether `key` is true; it isn't where there is no such key.
pub(super) fn take_switch(table: &mut Table, key: &str) -> Result<bool, Mistake> {
    match table.remove(key) {
        None => Ok(false),
        Some(Value::Boolean(is_on)) => Ok(is_on),
        Some(value) => Err(wrong(key, &value, "true or false")),
    }
}

/// Takes the table under `key`; None where there is no such key.
pub(super) fn take_table(table: &mut Table, key: &str) -> Result<Option<Table>, Mistake> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::Table(inner)) => Ok(Some(inner)),
        Some(value) => Err(wrong(key, &value, "a table")),
    }
}

/// Takes the list of tables under `key`; None where there is no such key.
pub(super) fn take_tables(table: &mut Table, key: &str) -> Result<Option<Vec<Table>>, Mistake> {
    let values = match table.remove(key) {
        None => return Ok(None),
        Some(Value::Array(values)) => values,
        Some(value) => return Err(wrong(key, &value, "a list of tables")),
    };
    let tables = values.into_iter().map(|value| match value {
        Value::Table(table) => Ok(table),
        value => Err(wrong(key, &value, "a table")),
    });
    tables.collect::<Result<Vec<Table>, Mistake>>().map(Some)
}

fn wrong(key: &str, value: &Value, expected: &str) -> Mistake {
    Mistake::of_value(key, of_type(key, value, expected))
}
