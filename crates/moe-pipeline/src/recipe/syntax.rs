//! Reads the tables of a recipe from its text, and says where the text isn't a recipe.

use std::collections::BTreeMap;
use std::ops::Range;

use moe_checkpoint::{Error, Result};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::guess::guess;
use super::mistake::usage;

/// The tables of a recipe, as they are written.
#[derive(Deserialize)]
pub(super) struct RawRecipe {
    pub name: Option<String>,
    #[serde(default)]
    pub vars: toml::Table,
    /// Keys by command, for every step that runs it and doesn't have them itself.
    #[serde(default)]
    pub defaults: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    pub step: Vec<toml::Table>,
}

/// The keys of [`RawRecipe`].
const KEYS: [&str; 4] = ["name", "vars", "defaults", "step"];

impl RawRecipe {
    /// Reads the recipe `text`.
    ///
    /// # Errors
    /// An error where it isn't TOML, or has other keys or values than a recipe has.
    pub fn read(text: &str) -> Result<Self> {
        let document = DeTable::parse(text).map_err(|error| not_toml(&error))?;
        let root = document.get_ref();
        if let Some(key) = root.keys().find(|key| !KEYS.contains(&key.get_ref().as_ref())) {
            return Err(unknown_key(text, key.get_ref(), &key.span()));
        }
        if let Some(span) = root.values().find_map(too_large) {
            return Err(number_too_large(text, &span));
        }
        toml::from_str(text).map_err(|error| not_toml(&error))
    }
}

/// The line of the byte at `offset` of `text`, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.get(..offset).unwrap_or(text).matches('\n').count()
}

fn not_toml(error: &toml::de::Error) -> Error {
    let remedy = "correct the TOML at this place; docs/recipes.md shows how recipes are written";
    let whole = error.to_string();
    let wrong = usage(error.message(), remedy);
    match whole.trim_end().strip_suffix(error.message()).map(str::trim_end) {
        None | Some("") => wrong,
        Some(place) => wrong.excerpt(place),
    }
}

fn unknown_key(text: &str, key: &str, span: &Range<usize>) -> Error {
    let (place, guess) = (excerpt(text, span), guess(key, KEYS));
    usage(
        format!("unknown field `{key}`, expected one of {}{guess}", KEYS.join(", ")),
        "a recipe has name, vars, defaults and step; keys of a step stand below its [[step]]",
    )
    .excerpt(place)
}

fn number_too_large(text: &str, span: &Range<usize>) -> Error {
    let remedy = format!("give a number up to {}", i64::MAX);
    usage("this number is too large for TOML", remedy).excerpt(excerpt(text, span))
}

/// The range of the first integer in `value` that is larger than TOML's.
fn too_large(value: &Spanned<DeValue<'_>>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Integer(number) if !fits(number) => Some(value.span()),
        DeValue::Array(values) => values.iter().find_map(too_large),
        DeValue::Table(table) => table.values().find_map(too_large),
        _ => None,
    }
}

fn fits(number: &DeInteger<'_>) -> bool {
    i64::from_str_radix(number.as_str(), number.radix()).is_ok()
}

/// The place of `span` in `text` with its line, in the form of TOML's own errors.
fn excerpt(text: &str, span: &Range<usize>) -> String {
    let line = line_of(text, span.start);
    let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let content = text[start..].lines().next().unwrap_or_default();
    let column = text[start..span.start].chars().count();
    let place = format!("TOML parse error at line {line}, column {}", column + 1);
    // Of a message with a very long line, the end wouldn't be shown.
    if content.len() > MAX_SHOWN {
        return place;
    }
    let marks = "^".repeat(text[span.clone()].chars().count());
    let gutter = " ".repeat(line.to_string().len());
    format!("{place}\n{gutter} |\n{line} | {content}\n{gutter} | {:column$}{marks}", "")
}

/// The maximum number of bytes of a line that an error shows.
const MAX_SHOWN: usize = 200;
