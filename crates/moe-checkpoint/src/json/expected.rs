//! Reads JSON into types. What is wrong is said in plain words, with the key as the subject.

use serde::de::{DeserializeOwned, Deserializer};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::MAX_TREE_BYTES;
use crate::shown::shown;

/// Reads `json` as a `T`. The error begins with the key that is wrong.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn parsed<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| {
        // Keeping the path takes time, which only errors are worth.
        let mut reader = serde_json::Deserializer::from_slice(json);
        let fits = json.len() as u64 <= MAX_TREE_BYTES;
        let tree =
            || if fits { serde_json::from_slice(json).unwrap_or_default() } else { Value::Null };
        explained::<T, _>(&mut reader, tree).unwrap_or_else(|| in_words("", &error.to_string()))
    })
}

/// Reads the object `fields` as a `T`. The error begins with the key that is wrong.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn of_object<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, String> {
    T::deserialize(fields).map_err(|error| {
        explained::<T, _>(fields, || Value::Object(fields.clone()))
            .unwrap_or_else(|| in_words("", &error.to_string()))
    })
}

/// What keeps `reader` from being read as a `T`; None where nothing does. `tree` is all that it
/// reads.
fn explained<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    reader: D,
    tree: impl FnOnce() -> Value,
) -> Option<String> {
    let error = serde_path_to_error::deserialize::<_, T>(reader).err()?;
    let said = error.inner().to_string();
    let mut key = shown_path(error.path());
    if let Some(within) = of_unexpected(error.path(), &said, tree) {
        key += &within;
    }
    Some(in_words(&key, &said))
}

/// `path` as people write it, such as `layers[2].experts`; empty for the whole.
fn shown_path(path: &Path) -> String {
    let mut shown = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => shown += &format!("[{index}]"),
            Segment::Map { key } => add_key(&mut shown, key),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    shown
}

fn add_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    *path += key;
}

/// The rest of the path to the value that `said` didn't expect. serde forgets it where an object
/// is read in parts; it is known where one value alone can be meant.
fn of_unexpected(path: &Path, said: &str, tree: impl FnOnce() -> Value) -> Option<String> {
    let found = said.strip_prefix("invalid type: ").or(said.strip_prefix("invalid value: "))?;
    let (found, _) = found.split_once(", expected ")?;
    let tree = tree();
    let mut value = &tree;
    for segment in path {
        value = match segment {
            Segment::Seq { index } => value.get(index)?,
            Segment::Map { key } => value.get(key)?,
            Segment::Enum { .. } | Segment::Unknown => value,
        };
    }
    let mut places = Vec::new();
    add_places(value, found, String::new(), &mut places);
    let start = shown_path(path);
    match places.as_slice() {
        [place] if start.is_empty() => Some(place.trim_start_matches('.').to_owned()),
        [place] => Some(place.clone()),
        _ => None,
    }
}

/// Adds the paths of all values in `value` that serde calls `found`.
fn add_places(value: &Value, found: &str, path: String, places: &mut Vec<String>) {
    let is_found = match value {
        Value::Number(number) if number.is_f64() => found == format!("floating point `{number}`"),
        Value::Number(number) => found == format!("integer `{number}`"),
        Value::String(text) => found == format!("string {text:?}"),
        Value::Bool(answer) => found == format!("boolean `{answer}`"),
        Value::Null => found == "null",
        Value::Array(_) => found == "sequence",
        Value::Object(_) => found == "map",
    };
    match value {
        Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| {
            add_places(value, found, format!("{path}[{index}]"), places);
        }),
        Value::Object(keys) => keys.iter().for_each(|(key, value)| {
            add_places(value, found, format!("{path}.{key}"), places);
        }),
        _ => {}
    }
    if is_found {
        places.push(path);
    }
}

/// Returns in plain words what serde `said` of the value at `key`; `key` may be empty.
pub fn in_words(key: &str, said: &str) -> String {
    let (said, place) = match said.rsplit_once(" at line ") {
        Some((said, place)) => (said, format!(" (line {})", place.replace(" column", ", column"))),
        None => (said, String::new()),
    };
    let subject = if key.is_empty() { "this" } else { key };
    let wrong = ["invalid type: ", "invalid value: ", "invalid length "]
        .into_iter()
        .find_map(|start| said.strip_prefix(start).map(|rest| (start, rest)));
    let sentence = if let Some((start, rest)) = wrong
        && let Some((found, wanted)) = rest.split_once(", expected ")
    {
        let found = if start == "invalid length " {
            format!("a list of {found}")
        } else {
            found_in_words(found)
        };
        format!("{subject} is {found}, where {} is expected", wanted_in_words(wanted))
    } else if let Some(missing) = quoted(said, "missing field ") {
        format!("{} is missing", with_key(key, missing))
    } else if let Some(doubled) = quoted(said, "duplicate field ") {
        format!("{} is given twice", with_key(key, doubled))
    } else if let Some(rest) = said.strip_prefix("EOF while parsing ") {
        format!("the file ends within {rest}")
    } else if key.is_empty() {
        said.to_owned()
    } else {
        format!("{key}: {said}")
    };
    // A key may be any text.
    shown(&(sentence + &place), "").into_owned()
}

/// `path` and then `key`.
fn with_key(path: &str, key: &str) -> String {
    let mut path = path.to_owned();
    add_key(&mut path, key);
    path
}

/// The word in backticks that follows on `start` in `said`, to its end.
fn quoted<'s>(said: &'s str, start: &str) -> Option<&'s str> {
    said.strip_prefix(start)?.strip_prefix('`')?.strip_suffix('`')
}

/// What serde calls a value that it `found`, in plain words.
fn found_in_words(found: &str) -> String {
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        _ => ["integer ", "floating point ", "boolean ", "string "]
            .into_iter()
            .find_map(|kind| found.strip_prefix(kind))
            .unwrap_or(found)
            .replace('`', ""),
    }
}

/// What serde calls the type that it `wanted`, in plain words.
fn wanted_in_words(wanted: &str) -> String {
    if let Some(count) = wanted.strip_prefix("an array of length ") {
        return format!("a list of {count}");
    }
    match wanted {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, 0 or more,".to_owned(),
        "isize" | "i64" | "i32" | "i16" | "i8" => "a whole number".to_owned(),
        "f64" | "f32" => "a number".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "an object".to_owned(),
        "variant identifier" => "a word".to_owned(),
        _ if wanted.starts_with("a tuple of size ") => wanted.replace("tuple of size", "list of"),
        _ if wanted.contains("internally tagged enum ") || names_type(wanted, "struct ") => {
            "an object".to_owned()
        }
        _ if names_type(wanted, "enum ") => "a word".to_owned(),
        _ => wanted.to_owned(),
    }
}

/// Whether `wanted` is `keyword` and the name of a type.
fn names_type(wanted: &str, keyword: &str) -> bool {
    wanted.strip_prefix(keyword).is_some_and(|name| name.starts_with(char::is_uppercase))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read for the errors alone")]
    struct Whole {
        tool: Tool,
        parts: Vec<Part>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read for the errors alone")]
    struct Tool {
        name: String,
        share: f64,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read for the errors alone")]
    struct Part {
        #[serde(flatten)]
        counts: Counts,
        pair: Option<[usize; 2]>,
        #[serde(default)]
        word: Word,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read for the errors alone")]
    struct Counts {
        used: usize,
        routed: usize,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Word {
        #[default]
        One,
    }

    #[test]
    fn errors_name_the_key_and_say_what_is_expected() {
        let tool = r#""tool": {"name": "a", "share": 1}"#;
        let part = |fields: &str| format!("{{{tool}, \"parts\": [{{{fields}}}]}}");
        for (text, said) in [
            ("[]".to_owned(), "this is a list of 0, where an object"),
            ("3".to_owned(), "this is 3, where an object is expected (line 1, column 1)"),
            ("{}".to_owned(), "tool is missing (line 1, column 2)"),
            ("{\"tool\": {\"name\": \"a\"}}".to_owned(), "tool.share is missing"),
            (
                r#"{"tool": {"name": 1}}"#.to_owned(),
                "tool.name is 1, where a string is expected (line 1",
            ),
            (
                r#"{"tool": {"name": "a", "share": "b"}}"#.to_owned(),
                "tool.share is \"b\", where a number is expected",
            ),
            (
                format!("{{{tool}, \"parts\": {{}}}}"),
                "parts is an object, where a list is expected",
            ),
            (
                part(r#""used": 1, "routed": -7"#),
                "parts[0].routed is -7, where a whole number, 0 or more, is expected",
            ),
            (part(r#""used": 1"#), "parts[0].routed is missing"),
            (
                part(r#""used": 1, "routed": 2, "pair": [1, null]"#),
                "parts[0].pair[1] is null, where a whole number, 0 or more, is expected",
            ),
            (
                part(r#""used": 1, "routed": 2, "word": "two""#),
                "parts[0].word: unknown variant `two`, expected `one`",
            ),
            (format!("{{{tool}, {tool}}}"), "tool is given twice (line 1"),
            (part(r#""used": 1, "routed": 2, "used": 2"#), "parts[0].used is given twice"),
            ("{\"tool\":".to_owned(), "the file ends within a value (line 1, column 8)"),
        ] {
            let found = parsed::<Whole>(text.as_bytes()).unwrap_err();
            assert!(found.starts_with(said), "{text}: {found}");
        }
    }

    #[test]
    fn objects_are_read_likewise() {
        let fields = serde_json::json!({ "used": 1, "routed": 2, "pair": [1] });
        let found = of_object::<Part>(fields.as_object().unwrap()).unwrap_err();
        assert_eq!(found, "pair is a list of 1, where a list of 2 is expected");
    }
}
