//! JSON files with errors that name the file, and bytes that don't depend on anything but the value.

use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// No JSON file of a checkpoint is larger than this; a tokenizer of 250,000 tokens takes 30 MiB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Reads the JSON file `path`.
///
/// # Errors
/// [`Kind::Io`] where it can't be read, [`Kind::Malformed`] where it isn't what is expected.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_expecting(path, "this file is damaged: download or copy it again")
}

/// Reads the JSON file `path`; `remedy` says what to do about one that isn't what is expected.
///
/// # Errors
/// As for [`read`].
pub fn read_expecting<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("cannot open this file", path, e))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("cannot read this file", path, e))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::new(Kind::Malformed, "this JSON file is larger than 256 MiB")
            .file(path)
            .remedy("no file of a checkpoint is that large: is it the right one?"));
    }
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::new(Kind::Malformed, "not the JSON that is expected here").source(e).file(path).remedy(remedy)
    })
}

/// `value` as indented JSON that ends in a newline.
///
/// # Panics
/// If the value can't be JSON (a map whose keys are no strings), which is a bug.
pub fn to_pretty<T: Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data serialises");
    text.push('\n');
    text
}
