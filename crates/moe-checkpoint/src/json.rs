//! JSON files with errors that name the file, and bytes that don't depend on anything but the value.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::shown::escaped_json;
use crate::whole::read_whole;

/// No JSON file of a checkpoint is larger than this; a tokenizer of 250,000 tokens takes 30 MiB.
pub const MAX_JSON_BYTES: u64 = 256 << 20;
/// No JSON file that is kept as a tree is larger: such a tree can take 50 times the bytes of its text. A config that names
/// every expert of a large model takes 4 MiB.
const MAX_TREE_BYTES: u64 = 8 << 20;

/// Reads the JSON file `path`.
///
/// # Errors
/// [`Kind::Io`] where it can't be read, [`Kind::Malformed`] where it isn't what is expected.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_expecting(path, DAMAGED)
}

/// Reads the JSON file `path`, which is kept as a tree: a config, a receipt, a plan.
///
/// # Errors
/// As for [`read`].
pub fn read_tree<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, MAX_TREE_BYTES, DAMAGED)
}

/// Reads the JSON file `path`; `remedy` says what to do about one that isn't what is expected.
///
/// # Errors
/// As for [`read`].
pub fn read_expecting<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T> {
    parse(path, MAX_JSON_BYTES, remedy)
}

const DAMAGED: &str = "this file is damaged: download or copy it again";

fn parse<T: DeserializeOwned>(path: &Path, max_bytes: u64, remedy: &str) -> Result<T> {
    serde_json::from_slice(&read_whole(path, max_bytes)?).map_err(|e| {
        Error::new(Kind::Malformed, "not the JSON that is expected here").source(e).file(path).remedy(remedy)
    })
}

/// `value` as indented JSON that ends in a newline, without a character that a terminal would obey.
///
/// # Panics
/// If the value can't be JSON (a map whose keys are no strings), which is a bug.
pub fn to_pretty<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("plain data serialises");
    escaped_json(text) + "\n"
}
