//! The reasons why a line is not a record. They are found where the line is read, and used to
//! choose a remedy.

use std::fmt;

use serde::de::IgnoredAny;
use serde_json::error::Category;

use super::surrogates::{is_high, is_low, unit};

/// Maximum size of a record that isn't text. Records of text are read in parts, so they may be
/// longer.
pub(super) const MAX_RECORD_BYTES: u64 = 64 << 20;
/// serde_json refuses arrays and objects at this nesting depth.
const MAX_DEPTH: usize = 128;

/// An error in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub cause: Cause,
    what: String,
    /// The place within the line; empty if it isn't known.
    place: String,
}

/// The cause of an error, as far as the remedy depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    NotUtf8,
    /// The line doesn't begin with a JSON value.
    NotJson,
    /// The line ends within the record, or within a string of it.
    Unfinished {
        in_string: bool,
    },
    /// A comma follows the record.
    Comma,
    /// Something other than a comma follows the record.
    Trailing,
    /// A string has half of a surrogate pair.
    HalfPair,
    TooDeep,
    TooLong,
    /// The line is a string.
    IsString,
    /// The line is an array.
    IsList,
    /// The value of "text" is an array.
    TextIsList,
    /// The line has no known key, but this key with an array of objects.
    RecordsUnder(String),
    /// The line has no known key; this key seems to hold the text.
    TextUnder(String),
    Other,
}

impl Wrong {
    pub fn new(cause: Cause, what: impl Into<String>) -> Self {
        Self { cause, what: what.into(), place: String::new() }
    }

    /// The error for a record of `bytes` bytes, which is too long.
    pub fn too_long(bytes: u64) -> Self {
        let what = format!(
            "{} MB in one record that isn't \"text\", which must be held whole; the most is {} MB",
            bytes / 1_000_000,
            MAX_RECORD_BYTES / 1_000_000
        );
        Self::new(Cause::TooLong, what)
    }

    /// Describes the `error` of parsing `line` as an object.
    pub fn of_line(line: &str, error: &serde_json::Error) -> Self {
        if let Some(b',') = byte_after(line) {
            let what = "trailing characters: a comma stands behind the object";
            return Self::new(Cause::Comma, what);
        }
        let cause = cause_in_line(line, error, byte_after(line).is_some());
        let place = format!(" at column {}", error.column());
        Self { cause, what: without_its_place(error), place }
    }

    /// Describes the `error` of parsing `value`, which is a complete value in a line. A column of
    /// the value would be taken for one of the line.
    pub fn of_value(value: &str, error: &serde_json::Error) -> Self {
        Self::new(cause_in_value(value, error), without_its_place(error))
    }

    /// Returns the message without the place in the line.
    pub fn without_place(&self) -> String {
        format!("{}{}", self.what, self.note())
    }

    fn note(&self) -> &'static str {
        match self.cause {
            Cause::HalfPair => {
                ": half of a surrogate pair is no character, and no tokenizer takes it"
            }
            _ => "",
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.what, self.place, self.note())
    }
}

/// The message of `error` without the place that it ends with.
fn without_its_place(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    said.strip_suffix(&place).unwrap_or(&said).to_owned()
}

/// Returns the first byte after the value that `line` begins with, if that value is complete and
/// something follows.
fn byte_after(line: &str) -> Option<u8> {
    let mut values = serde_json::Deserializer::from_str(line).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    line[values.byte_offset()..].trim_start().bytes().next()
}

fn cause_in_line(line: &str, error: &serde_json::Error, is_followed: bool) -> Cause {
    let start = line.trim_start();
    match error.classify() {
        Category::Eof => Cause::Unfinished { in_string: Prefix::of(line.as_bytes()).in_string },
        Category::Data if start.starts_with('"') => Cause::IsString,
        Category::Data if start.starts_with('[') => Cause::IsList,
        // Strings of an object that aren't needed aren't examined.
        Category::Syntax if start.starts_with('"') && ends_in_half(line, error) => Cause::HalfPair,
        Category::Syntax if is_followed => Cause::Trailing,
        Category::Syntax if !begins_value(start) => Cause::NotJson,
        _ => Cause::Other,
    }
}

fn cause_in_value(value: &str, error: &serde_json::Error) -> Cause {
    if error.classify() != Category::Syntax {
        Cause::Other
    } else if ends_in_half(value, error) {
        Cause::HalfPair
    } else if Prefix::of(read(value, error)).depth >= MAX_DEPTH {
        Cause::TooDeep
    } else {
        Cause::Other
    }
}

/// Returns the part of `json` that was read before `error` was found. Lines have no line breaks, so
/// a column is a number of bytes.
fn read<'a>(json: &'a str, error: &serde_json::Error) -> &'a [u8] {
    &json.as_bytes()[..error.column().min(json.len())]
}

fn begins_value(text: &str) -> bool {
    let is_literal = ["true", "false", "null"].iter().any(|literal| text.starts_with(literal));
    is_literal || text.starts_with(|c: char| c.is_ascii_digit() || "{[\"-".contains(c))
}

/// Returns whether serde_json stopped at half of a surrogate pair.
fn ends_in_half(json: &str, error: &serde_json::Error) -> bool {
    Prefix::of(read(json, error)).ends_in_half
}

/// The state after the beginning of a JSON text.
#[derive(Default)]
struct Prefix {
    in_string: bool,
    /// Number of open arrays and objects.
    depth: usize,
    /// Whether the text ends in half of a surrogate pair without its other half.
    ends_in_half: bool,
}

impl Prefix {
    fn of(json: &[u8]) -> Self {
        let mut prefix = Self::default();
        let mut at = 0;
        while at < json.len() {
            at += prefix.enter(&json[at..]);
        }
        prefix
    }

    /// Reads what `rest` begins with, and returns its length in bytes.
    fn enter(&mut self, rest: &[u8]) -> usize {
        match (self.in_string, rest[0]) {
            (true, b'\\') => {
                let (width, shows) = escape(rest);
                self.ends_in_half |= shows == Some(rest.len());
                return width;
            }
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'[' | b'{') => self.depth += 1,
            (false, b']' | b'}') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        1
    }
}

/// Returns the length of the escape that `text` begins with. The second value is the number of
/// bytes that show that it is half of a surrogate pair; None if it isn't.
fn escape(text: &[u8]) -> (usize, Option<usize>) {
    let Some(first) = unit(text) else { return (2, None) };
    if is_low(first) {
        return (6, Some(6));
    }
    if !is_high(first) {
        return (6, None);
    }
    match (&text[6..], unit(&text[6..])) {
        (_, Some(second)) if is_low(second) => (12, None),
        (_, Some(_)) => (6, Some(12)),
        ([b'\\', ..], None) => (6, Some(8)),
        _ => (6, Some(7)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn cause(value: &str) -> Cause {
        Wrong::of_value(value, &serde_json::from_str::<Value>(value).unwrap_err()).cause
    }

    #[test]
    fn halves_of_pairs_are_distinguished_from_other_errors() {
        for half in [
            r#""half \ud83d""#,
            r#""half \ud83d pair""#,
            r#"["\ud83d\n"]"#,
            r#"["\\\ud83d\ud83d\ude00"]"#,
            r#"{"a": "\ud83d\u0041"}"#,
            r#"["fine \ud83d\ude00", "low \ude00"]"#,
        ] {
            assert_eq!(cause(half), Cause::HalfPair, "{half}");
        }
        for other in [r#""\x""#, r#"["\\ud83d", x]"#, r#"["\ud83d\ude00\q"]"#] {
            assert_eq!(cause(other), Cause::Other, "{other}");
        }
    }

    #[test]
    fn the_maximum_depth_is_that_of_serde_json() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(serde_json::from_str::<Value>(&nested(MAX_DEPTH - 1)).is_ok());
        assert_eq!(cause(&nested(MAX_DEPTH)), Cause::TooDeep);
    }

    #[test]
    fn a_line_has_a_column_and_a_value_has_none() {
        let error = serde_json::from_str::<Vec<u32>>("5").unwrap_err();
        let wrong = Wrong::of_value("5", &error);
        assert_eq!(wrong.to_string(), "invalid type: integer `5`, expected a sequence");
        let half = r#""\ud83d""#;
        let wrong = Wrong::of_value(half, &serde_json::from_str::<String>(half).unwrap_err());
        assert_eq!(
            wrong.to_string(),
            "unexpected end of hex escape: half of a surrogate pair is no character, and no tokenizer takes it"
        );
        let error = serde_json::from_str::<Value>("{\"a\" 1}").unwrap_err();
        let wrong = Wrong::of_line("{\"a\" 1}", &error);
        assert_eq!(wrong.to_string(), "expected `:` at column 6");
        assert_eq!(wrong.without_place(), "expected `:`");
    }
}
