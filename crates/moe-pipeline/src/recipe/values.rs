//! The values that options take, as TOML has them, and the errors about others.

use std::any::TypeId;
use std::error::Error as _;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use moe_checkpoint::Error;
use toml::Value;

use super::guess::guess;
use super::mistake::usage;
use super::wording;
use crate::resources::ByteSize;

/// The kind of value that an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// Whether something is done.
    Switch,
    /// A whole number.
    Whole,
    /// Any number.
    Number,
    /// One of some words.
    Word,
    /// A size, or a number of bytes.
    Size,
    /// The path of a file or a directory.
    Path,
    /// Another text, which may have a form of its own.
    Text,
}

impl ValueKind {
    /// The kind of value that `arg` takes, or of each where it takes a list.
    pub fn of(arg: &Arg) -> Self {
        let is = |of: TypeId| arg.get_value_parser().type_id() == of;
        let integers = [
            TypeId::of::<usize>(),
            TypeId::of::<u64>(),
            TypeId::of::<u32>(),
            TypeId::of::<u8>(),
            TypeId::of::<i64>(),
            TypeId::of::<i32>(),
        ];
        match arg.get_action() {
            ArgAction::SetTrue => Self::Switch,
            _ if is(TypeId::of::<bool>()) => Self::Switch,
            _ if !words(arg).is_empty() => Self::Word,
            _ if integers.into_iter().any(is) => Self::Whole,
            _ if is(TypeId::of::<f64>()) || is(TypeId::of::<f32>()) => Self::Number,
            _ if is(TypeId::of::<ByteSize>()) => Self::Size,
            _ if is(TypeId::of::<PathBuf>()) => Self::Path,
            _ => Self::Text,
        }
    }

    /// The kind in messages.
    fn expected(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Whole => "a whole number, 0 or more",
            Self::Number => "a number",
            Self::Word => "a word",
            Self::Size => "a size such as \"5GB\" or a number of bytes",
            Self::Path => "a path",
            Self::Text => "a text",
        }
    }

    /// Whether TOML has values of this kind as `value` is.
    fn has_type_of(self, value: &Value) -> bool {
        match self {
            Self::Switch => value.is_bool(),
            Self::Whole => value.is_integer(),
            Self::Number => value.is_integer() || value.is_float(),
            Self::Size => value.is_integer() || value.is_str(),
            Self::Word | Self::Path | Self::Text => value.is_str(),
        }
    }
}

/// The words that `arg` takes; empty where it takes other values.
pub(super) fn words(arg: &Arg) -> Vec<String> {
    let shown = arg.get_possible_values().into_iter().filter(|word| !word.is_hide_set());
    shown.map(|word| PossibleValue::get_name(&word).to_owned()).collect()
}

/// Whether `arg` takes a list.
pub(super) fn takes_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some()
}

/// Returns the error about `value`, taken by itself, as the value of `arg`, an option of `command`
/// that the recipe has under `key`. None where the option takes it.
pub(super) fn refused(command: &Command, arg: &Arg, key: &str, value: &Value) -> Option<Error> {
    match (takes_list(arg), value) {
        (true, Value::Array(values)) => {
            values.iter().find_map(|value| refused_one(command, arg, key, value))
        }
        (true, value) => Some(of_type(key, value, "a list")),
        (false, value) => refused_one(command, arg, key, value),
    }
}

/// Returns the error about `value`, which is the option's only value or one of a list.
fn refused_one(command: &Command, arg: &Arg, key: &str, value: &Value) -> Option<Error> {
    let kind = ValueKind::of(arg);
    if !kind.has_type_of(value) {
        return Some(of_type(key, value, kind.expected()));
    }
    // These have no parser on the command line, or one that takes all numbers.
    if matches!(kind, ValueKind::Switch | ValueKind::Number) {
        return None;
    }
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let error = parsed(command, arg, &text).err()?;
    let own = error.source().and_then(|source| source.downcast_ref::<Error>());
    Some(match (own, kind) {
        (Some(own), _) => in_words_of_recipe(own, key),
        (None, ValueKind::Word) => unknown_word(&text, &words(arg), key),
        (None, kind) => {
            let (value, expected) = (described(value), kind.expected());
            usage(format!("invalid value: {value}, expected {expected} in `{key}`"), OTHER_VALUE)
        }
    })
}

/// Parses `text` as the command line does for `arg`.
fn parsed(command: &Command, arg: &Arg, text: &str) -> Result<(), clap::Error> {
    let option = format!("--{}={text}", arg.get_long().unwrap_or_default());
    match command.clone().no_binary_name(true).try_get_matches_from([option]) {
        Err(error)
            if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) =>
        {
            Err(error)
        }
        // Other options that the command needs don't matter here.
        _ => Ok(()),
    }
}

/// The `error` of an option's parser about the value of `key`.
fn in_words_of_recipe(error: &Error, key: &str) -> Error {
    let worded = usage(error.said(), error.named_remedy().unwrap_or(OTHER_VALUE));
    wording::mistake(worded).error.about(&format!("`{key}`"))
}

fn unknown_word(word: &str, words: &[String], key: &str) -> Error {
    let guess = guess(word, words.iter().map(String::as_str));
    let words = words.join(", ");
    let what = format!("unknown variant `{word}`, expected one of {words} in `{key}`{guess}");
    usage(what, "give one of these words")
}

/// The error for `value` under `key`, where the `expected` kind of value is another.
pub(super) fn of_type(key: &str, value: &Value, expected: &str) -> Error {
    let what = format!("invalid type: {}, expected {expected} in `{key}`", described(value));
    match value {
        Value::String(text) if expected == "a list" => {
            usage(what, format!("write {key} = [{text:?}]"))
        }
        Value::String(text) if text.ends_with('%') && expected == ValueKind::Number.expected() => {
            usage(what, "write per cent as a share, such as 0.75 for 75 %")
        }
        _ => usage(what, OTHER_VALUE),
    }
}

const OTHER_VALUE: &str =
    "give a value of the kind that is expected; the command's --help describes it";

/// `value` and its type.
fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("string {text:?}"),
        Value::Integer(number) => format!("integer `{number}`"),
        Value::Float(number) => format!("number `{number:?}`"),
        Value::Boolean(is_so) => format!("boolean `{is_so}`"),
        Value::Datetime(date) => format!("date `{date}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}
