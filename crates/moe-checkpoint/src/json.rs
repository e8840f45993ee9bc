//! JSON files: errors name the file, and the bytes written depend only on the value. A byte order
//! mark before the JSON is skipped, although Python fails on it; `verify` names such files, which
//! loaders can't read.

mod expected;
mod python;
mod unique;

use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::bounded_read::{read_text, read_whole, without_mark};
use crate::error::{Error, Kind, Result};
use crate::is_object::IsObject;
use crate::members;
use crate::shown::escaped_json;

pub use expected::{in_words, of_object, parsed};
pub use python::{keep_numbers, keep_python, kept_number, kept_text};
pub use unique::UniqueKeys;

use python::{is_integer, with_kept_numbers};

/// Maximum size of a JSON file in a checkpoint; a tokenizer of 250,000 tokens takes 30 MiB.
pub const MAX_JSON_BYTES: u64 = 256 << 20;
/// Maximum size of a JSON file that is kept as a tree, which can take 50 times the bytes of its
/// text. A config that names every expert of a large model takes 4 MiB.
pub(crate) const MAX_TREE_BYTES: u64 = 8 << 20;

/// Reads the JSON file `path`.
///
/// # Errors
/// [`Kind::Io`] if the file can't be read, [`Kind::Malformed`] if its content isn't as expected.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_expecting(path, DAMAGED)
}

/// Reads the JSON file `path` into a tree: a config, a receipt, a plan.
///
/// # Errors
/// As for [`read`].
pub fn read_tree<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, MAX_TREE_BYTES, DAMAGED)
}

/// Reads the JSON file `path`; `remedy` says what to do if its content isn't as expected.
///
/// # Errors
/// As for [`read`].
pub fn read_expecting<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T> {
    parse(path, MAX_JSON_BYTES, remedy)
}

/// Reads the JSON file `path` as Python does, including `Infinity`, `-Infinity`, `NaN`, and
/// unpaired surrogates. They become strings that [`to_pretty_python`] writes as they were.
///
/// # Errors
/// As for [`read`].
pub fn read_python(path: &Path) -> Result<Map<String, Value>> {
    python(without_mark(&read_whole(path, MAX_TREE_BYTES)?), path)
}

/// Reads the JSON file `path` as Python does, into a `T` that keeps no numbers. The file may
/// contain what only Python reads.
///
/// # Errors
/// As for [`read`].
pub fn read_python_as<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_whole(path, MAX_JSON_BYTES)?;
    let bytes = without_mark(&bytes);
    // Few files need a copy that JSON readers understand.
    match serde_json::from_slice(bytes) {
        Err(error) if error.is_syntax() => python(bytes, path),
        Err(_) => parsed(bytes).map_err(|said| malformed(said, path, DAMAGED)),
        Ok(value) => Ok(value),
    }
}

fn python<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    let read = match std::str::from_utf8(bytes) {
        Ok(text) => parsed(keep_python(text).as_bytes()),
        Err(_) => parsed(bytes),
    };
    read.map_err(|e| malformed(e, path, DAMAGED))
}

/// Whether the file `path` holds an object, as Python reads it, which fails on a byte order mark.
/// Nothing is kept.
///
/// # Errors
/// As for [`read`].
pub fn is_object(path: &Path) -> Result<bool> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    let read = serde_json::from_str::<IsObject>(&keep_python(&text))
        .map_err(|e| malformed(e, path, DAMAGED))?;
    Ok(read.0)
}

/// The text of the JSON file `path`, which holds an object, without `keys`. Everything else is
/// unchanged.
///
/// # Errors
/// As for [`read`].
pub fn read_without(path: &Path, keys: &[&str]) -> Result<String> {
    let text = read_text(path, MAX_TREE_BYTES)?;
    let kept =
        members::without(&keep_python(&text), keys).map_err(|e| malformed(e, path, DAMAGED))?;
    Ok(with_kept_numbers(&kept))
}

/// Whether Python reads `value`, which comes from [`read_python`], as a float.
pub fn is_float(value: &Value) -> bool {
    value.is_f64() || value.as_str().and_then(kept_number).is_some_and(|number| !is_integer(number))
}

/// Whether Python reads `value` as an integer, of any size.
pub fn is_int(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_str().and_then(kept_number).is_some_and(is_integer)
}

/// The number that Python reads in `value`, as the nearest float: it may be an integer of any size,
/// NaN or infinite. None if `value` isn't a number.
pub fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str().and_then(kept_number)?.parse().ok())
}

/// Whether `value` is a string or null.
pub fn is_text_or_null(value: &Value) -> bool {
    value.is_null() || value.is_string()
}

/// Whether `value` is false in Python.
pub fn is_false(value: &Value) -> bool {
    !is_true(value)
}

/// Whether `value` is true in Python.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(keys) => !keys.is_empty(),
    }
}

/// Whether `value` is a string, list or object, over which Python can iterate.
pub fn is_container(value: &Value) -> bool {
    value.is_string() || value.is_array() || value.is_object()
}

/// Like [`to_pretty`], but writes what [`read_python`] found beyond JSON as it was.
pub fn to_pretty_python<T: Serialize>(value: &T) -> String {
    with_kept_numbers(&to_pretty(value))
}

/// `value`, which comes from [`read_python`], on one line.
pub fn shown(value: &Value) -> String {
    with_kept_numbers(&value.to_string())
}

/// The beginning of a Git LFS pointer, which Git keeps instead of a large file.
pub const LFS_POINTER: &[u8; 23] = b"version https://git-lfs";

/// Whether `file` is a Git LFS pointer.
fn is_lfs_pointer(file: &File) -> bool {
    let mut start = [0; LFS_POINTER.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == *LFS_POINTER
}

const DAMAGED: &str = "this file is damaged: download or copy it again";

fn parse<T: DeserializeOwned>(path: &Path, max_bytes: u64, remedy: &str) -> Result<T> {
    parsed(without_mark(&read_whole(path, max_bytes)?)).map_err(|e| malformed(e, path, remedy))
}

fn malformed(said: impl Display, path: &Path, remedy: &str) -> Error {
    // A Git LFS pointer is text, which JSON would report as a wrong token.
    if File::open(path).is_ok_and(|file| is_lfs_pointer(&file)) {
        return Error::new(
            Kind::Malformed,
            "this is a pointer of Git LFS in the place of the file",
        )
        .file(path)
        .remedy("fetch it: git lfs pull");
    }
    let what = format!("not the JSON that is expected here: {said}");
    Error::new(Kind::Malformed, what).file(path).remedy(remedy)
}

/// `value` as indented JSON that ends in a newline, without characters that a terminal would obey.
///
/// # Panics
/// If the value can't be JSON (a map whose keys aren't strings), which is a bug.
pub fn to_pretty<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("plain data serializes");
    escaped_json(text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_skipped_except_by_is_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["{\"a\": 1}", "{\"a\": NaN}"] {
            std::fs::write(&path, [crate::BYTE_ORDER_MARK, text.as_bytes()].concat()).unwrap();
            assert_eq!(read_python(&path).unwrap().len(), 1);
            assert_eq!(read_python_as::<Map<String, Value>>(&path).unwrap().len(), 1);
            assert_eq!(is_object(&path).unwrap_err().kind(), Kind::Malformed);
        }
        std::fs::write(&path, "\u{feff}{\"a\": 1}").unwrap();
        assert_eq!(read_tree::<Value>(&path).unwrap()["a"], 1);
        assert_eq!(read::<Value>(&path).unwrap()["a"], 1);
        // Only the first is a byte order mark; the second is text.
        std::fs::write(&path, "\u{feff}\u{feff}{}").unwrap();
        assert_eq!(read::<Value>(&path).unwrap_err().kind(), Kind::Malformed);
    }

    #[test]
    fn values_that_only_python_reads_are_written_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let halves = "{\n  \"a\\ud800\": \"\\udc00\\\\ud800 \\ud83d\",\n  \"b\": 1\n}\n";
        std::fs::write(&path, halves).unwrap();
        assert_eq!(to_pretty_python(&read_python(&path).unwrap()), halves);
        std::fs::write(&path, "{\"a\": \"\\ud83d\\ude00\"}").unwrap();
        assert_eq!(read_python(&path).unwrap()["a"], "\u{1f600}");
        let text = "{\n  \"a\": [\n    0.0,\n    Infinity,\n    -Infinity\n  ],\n  \"NaN\": NaN,\n  \"b\\\"Infinity\": \"Infinity\\\\\"\n}\n";
        std::fs::write(&path, text).unwrap();
        let read = read_python(&path).unwrap();
        assert_eq!(read["b\"Infinity"], "Infinity\\");
        assert_eq!(to_pretty_python(&read), text);
        std::fs::write(&path, "{\"a\": infinity}").unwrap();
        assert_eq!(read_python(&path).unwrap_err().kind(), Kind::Malformed);
    }
}
