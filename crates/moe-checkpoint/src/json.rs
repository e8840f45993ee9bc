//! JSON files with errors that name the file, and bytes that don't depend on anything but the value.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::shown::escaped_json;
use crate::whole::{read_text, read_whole};

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

/// Stands before the name of a number that Python writes and JSON has no word for, within a text.
const NO_JSON: char = '\u{f8ff}';

/// Reads the JSON file `path` as Python does, which knows `Infinity`, `-Infinity` and `NaN`. They become texts that
/// [`to_pretty_python`] writes as it found them.
///
/// # Errors
/// As for [`read`].
pub fn read_python(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_whole(path, MAX_TREE_BYTES)?;
    let parsed = match std::str::from_utf8(&bytes) {
        Ok(text) => serde_json::from_str(&quoted(text)),
        Err(_) => serde_json::from_slice(&bytes),
    };
    parsed.map_err(|e| malformed(e, path, DAMAGED))
}

/// Refuses the file `path` unless Python reads it as JSON.
///
/// # Errors
/// As for [`read`].
pub fn check_python(path: &Path) -> Result<()> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    serde_json::from_str::<IgnoredAny>(&quoted(&text)).map(drop).map_err(|e| malformed(e, path, DAMAGED))
}

/// Whether Python reads `value`, which [`read_python`] read, as a float.
pub fn is_float(value: &Value) -> bool {
    value.is_f64() || value.as_str().is_some_and(|text| text.starts_with(NO_JSON))
}

/// `text` with quotes about `Infinity` and its kin.
fn quoted(text: &str) -> Cow<'_, str> {
    if !["Infinity", "NaN"].iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 64);
    let (mut rest, mut in_text) = (text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["Infinity", "-Infinity", "NaN"].into_iter().find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            quoted.extend(['"', NO_JSON].into_iter().chain(word.chars()).chain(['"']));
            rest = &rest[word.len()..];
            continue;
        }
        in_text ^= first == '"';
        let escape = if in_text && first == '\\' { rest.chars().nth(1) } else { None };
        quoted.push(first);
        quoted.extend(escape);
        rest = &rest[first.len_utf8() + escape.map_or(0, char::len_utf8)..];
    }
    Cow::Owned(quoted)
}

/// As [`to_pretty`], with what [`read_python`] found beyond JSON as it was.
pub fn to_pretty_python<T: Serialize>(value: &T) -> String {
    let text = to_pretty(value);
    let unquote = |text: String, word: &str| text.replace(&format!("\"{NO_JSON}{word}\""), word);
    ["Infinity", "-Infinity", "NaN"].into_iter().fold(text, unquote)
}

/// What a file begins with that Git keeps in the place of a large one.
pub const LFS_POINTER: &[u8; 23] = b"version https://git-lfs";

/// Whether `file` is such a one.
fn is_lfs_pointer(file: &File) -> bool {
    let mut start = [0; LFS_POINTER.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == *LFS_POINTER
}

const DAMAGED: &str = "this file is damaged: download or copy it again";

fn parse<T: DeserializeOwned>(path: &Path, max_bytes: u64, remedy: &str) -> Result<T> {
    serde_json::from_slice(&read_whole(path, max_bytes)?).map_err(|e| malformed(e, path, remedy))
}

fn malformed(error: serde_json::Error, path: &Path, remedy: &str) -> Error {
    // What Git keeps in the place of a large file is text, and a wrong token for JSON.
    if File::open(path).is_ok_and(|file| is_lfs_pointer(&file)) {
        return Error::new(Kind::Malformed, "this is a pointer of Git LFS in the place of the file")
            .file(path)
            .remedy("fetch it: git lfs pull");
    }
    Error::new(Kind::Malformed, "not the JSON that is expected here").source(error).file(path).remedy(remedy)
}

/// `value` as indented JSON that ends in a newline, without a character that a terminal would obey.
///
/// # Panics
/// If the value can't be JSON (a map whose keys are no strings), which is a bug.
pub fn to_pretty<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("plain data serialises");
    escaped_json(text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_beyond_json_is_read_and_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = "{\n  \"a\": [\n    0.0,\n    Infinity,\n    -Infinity\n  ],\n  \"NaN\": NaN,\n  \"b\\\"Infinity\": \"Infinity\\\\\"\n}\n";
        std::fs::write(&path, text).unwrap();
        let read = read_python(&path).unwrap();
        assert_eq!(read["b\"Infinity"], "Infinity\\");
        assert_eq!(to_pretty_python(&read), text);
        std::fs::write(&path, "{\"a\": infinity}").unwrap();
        assert_eq!(read_python(&path).unwrap_err().kind(), Kind::Malformed);
    }
}
