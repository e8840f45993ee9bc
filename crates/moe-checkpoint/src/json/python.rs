//! Preserves values that Python accepts in JSON and JSON readers don't: some numbers, and unpaired
//! surrogates. They become strings with a mark, from which they are written back unchanged.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Marks a string that holds a number which JSON readers don't keep.
const NO_JSON: char = '\u{f8ff}';
/// Precedes the four digits of an unpaired surrogate in a string. Python keeps these; JSON readers
/// refuse them.
const HALF: char = '\u{f8fe}';

/// The number that the string `value` stands for, as it was in the file; None if it is a string
/// there too.
pub fn kept_number(value: &str) -> Option<&str> {
    value.strip_prefix(NO_JSON).filter(|number| is_lost(number))
}

/// The string that `value`, which isn't a [`kept_number`], was in the file. It differs for strings
/// alone that would have been taken for such a number.
pub fn kept_text(value: &str) -> &str {
    if is_like_kept(value) { &value[NO_JSON.len_utf8()..] } else { value }
}

/// Whether `value` is a number after one mark or more.
fn is_like_kept(value: &str) -> bool {
    let rest = value.trim_start_matches(NO_JSON);
    rest.len() < value.len() && is_lost(rest)
}

/// The JSON `text`, in which numbers that Python reads and serde_json doesn't keep are strings:
/// `NaN`, infinities, integers of more than 64 bits, -0, and numbers that overflow a float.
/// [`kept_number`] distinguishes them from other strings, of which those that look like them get
/// another mark ([`kept_text`] removes it).
pub fn keep_numbers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut kept = Replaced::of(text);
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = string_end(bytes, at);
                if is_string_like_kept(&text[at..end]) {
                    kept.replace(at + 1..at + 1).push(NO_JSON);
                }
                at = end;
            }
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let length = bytes[at..].iter().take_while(|byte| is_of_number(**byte)).count();
                let number = &text[at..at + length];
                // Python takes no number as a key either.
                let is_key = text[at + length..].trim_start().starts_with(':');
                if is_lost(number) && !is_key {
                    let text = ['"', NO_JSON].into_iter().chain(number.chars()).chain(['"']);
                    kept.replace(at..at + length).extend(text);
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    kept.finish()
}

/// Whether the JSON `string` is one that [`kept_number`] would take for a number.
fn is_string_like_kept(string: &str) -> bool {
    // Few strings begin in this way, so that few are parsed.
    string[1..].starts_with([NO_JSON, '\\'])
        && serde_json::from_str(string).is_ok_and(|text: String| is_like_kept(&text))
}

/// A text with parts replaced, in order. It is copied only if there is such a part.
struct Replaced<'a> {
    text: &'a str,
    written: String,
    /// The byte of `text` up to which `written` is complete.
    end: usize,
}

impl<'a> Replaced<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, written: String::new(), end: 0 }
    }

    /// Returns the text to which the caller appends the replacement of `part`.
    fn replace(&mut self, part: Range<usize>) -> &mut String {
        self.written.push_str(&self.text[self.end..part.start]);
        self.end = part.end;
        &mut self.written
    }

    fn finish(mut self) -> Cow<'a, str> {
        if self.end == 0 {
            return Cow::Borrowed(self.text);
        }
        self.written.push_str(&self.text[self.end..]);
        Cow::Owned(self.written)
    }
}

/// The end of the string that begins at `start`: after its quote, or the end of the text.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The JSON `text` as from [`keep_numbers`], with escapes of unpaired surrogates replaced by a mark
/// and their digits. Don't use it for text that is tokenized: unpaired surrogates are an error
/// there.
pub fn keep_python(text: &str) -> Cow<'_, str> {
    match keep_numbers(text) {
        Cow::Borrowed(text) => keep_halves(text),
        Cow::Owned(text) => Cow::Owned(keep_halves(&text).into_owned()),
    }
}

/// The JSON `text` with unpaired surrogates in its strings replaced by a mark and their digits.
/// Marks before these, and before what looks like their digits, are doubled.
fn keep_halves(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut kept = Replaced::of(text);
    let mut at = 0;
    while let Some(next) = text[at..].find('"') {
        let start = at + next;
        at = string_end(bytes, start);
        // Surrogates can only be written as escapes.
        if !text[start..at].contains([HALF, '\\']) {
            continue;
        }
        let marked =
            serde_json::from_str(&text[start..at]).ok().and_then(|Wtf8(units)| marked(&units));
        if let Some(marked) = marked {
            kept.replace(start..at).push_str(&Value::from(marked).to_string());
        }
    }
    kept.finish()
}

/// A string as serde_json reads it into bytes: UTF-8 in which surrogates may be unpaired.
struct Wtf8(Vec<u8>);

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Wtf8Visitor)
    }
}

struct Wtf8Visitor;

impl Visitor<'_> for Wtf8Visitor {
    type Value = Wtf8;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Wtf8, E> {
        Ok(Wtf8(bytes.to_vec()))
    }
}

/// The text of `bytes` with marks; None if it needs none.
fn marked(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = rest.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        push_marked(&mut text, valid);
        // Surrogates are all that isn't UTF-8.
        let [0xed, second, third, after @ ..] = &rest[valid.len()..] else { break };
        double_last_marks(&mut text);
        let unit = 0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f);
        let _ = write!(text, "{HALF}{unit:04x}");
        rest = after;
    }
    (text.as_bytes() != bytes).then_some(text)
}

/// Appends `added` to `text`, with marks before digits doubled.
fn push_marked(text: &mut String, added: &str) {
    let mut parts = added.split(HALF);
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push(HALF);
        if begins_as_half(part) {
            double_last_marks(text);
        }
        text.push_str(part);
    }
}

/// Doubles the marks that `text` ends with.
fn double_last_marks(text: &mut String) {
    let marks = text.chars().rev().take_while(|c| *c == HALF).count();
    text.extend(std::iter::repeat_n(HALF, marks));
}

/// Whether `text` begins with four digits of a surrogate.
fn begins_as_half(text: &str) -> bool {
    let digits = text.get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    matches!(unit, Some(0xd800..=0xdfff))
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

pub(super) fn is_integer(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether Python reads `number` and serde_json doesn't, or reads another value.
fn is_lost(number: &str) -> bool {
    if is_integer(number) {
        // JSON doesn't allow leading zeros.
        let is_plain = !number.trim_start_matches('-').starts_with('0') || number.len() == 1;
        return number == "-0"
            || is_plain && number.parse::<i64>().is_err() && number.parse::<u64>().is_err();
    }
    let is_word = matches!(number, "NaN" | "Infinity" | "-Infinity");
    is_word
        || number.ends_with(|c: char| c.is_ascii_digit())
            && number.parse().is_ok_and(f64::is_infinite)
}

/// The JSON `text` with the numbers and surrogates that [`keep_python`] found written back.
pub(super) fn with_kept_numbers(text: &str) -> String {
    let text = with_halves(text);
    let bytes = text.as_bytes();
    let mut written = Replaced::of(&text);
    let mut at = 0;
    while let Some(next) = text[at..].find('"') {
        let start = at + next;
        at = string_end(bytes, start);
        let string = text[start + 1..at].strip_suffix('"').unwrap_or_default();
        if let Some(number) = kept_number(string) {
            written.replace(start..at).push_str(number);
        } else if is_like_kept(string) {
            written.replace(start + 1..start + 1 + NO_JSON.len_utf8());
        }
    }
    written.finish().into_owned()
}

/// The JSON `text` with marks replaced by escapes.
fn with_halves(text: &str) -> Cow<'_, str> {
    let mut written = Replaced::of(text);
    let mut at = 0;
    while let Some(next) = text[at..].find(HALF) {
        let start = at + next;
        let rest = text[start..].trim_start_matches(HALF);
        at = text.len() - rest.len();
        if !begins_as_half(rest) {
            continue;
        }
        let marks = (at - start) / HALF.len_utf8();
        let replaced = written.replace(start..at);
        replaced.extend(std::iter::repeat_n(HALF, marks / 2));
        if marks % 2 == 1 {
            replaced.push_str("\\u");
        }
    }
    written.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_as_they_stand() {
        let cases = [
            ("[1, -1, 0, 1.5, 1e5, 18446744073709551615]", None),
            ("{\"NaN\": \"Infinity \\\" NaN\"}", None),
            ("[NaN, -Infinity, Infinity]", Some("[\"@NaN\", \"@-Infinity\", \"@Infinity\"]")),
            (
                "[18446744073709551616, -9223372036854775809]",
                Some("[\"@18446744073709551616\", \"@-9223372036854775809\"]"),
            ),
            (
                "{\"a\":-0,\"b\":-0.0,\"c\":1e400}",
                Some("{\"a\":\"@-0\",\"b\":-0.0,\"c\":\"@1e400\"}"),
            ),
            // Python doesn't accept these as numbers either.
            ("[01, 1e, Nan, -, +1, 007]", None),
        ];
        for (text, wanted) in cases {
            let wanted =
                wanted.map_or(text.to_owned(), |wanted| wanted.replace('@', &NO_JSON.to_string()));
            assert_eq!(keep_numbers(text), wanted, "{text}");
        }
    }
    /// What is read is written back, whatever strings hold.
    #[test]
    fn strings_with_marks_are_not_taken_for_numbers_or_surrogates() {
        for text in [
            r#"{"a":"@1, \"b\":2"}"#,
            r#"{"a":"@NaN","@NaN":"@@-0","b":"x\"@NaN"}"#,
            r#"["@1e999",NaN,"@@@Infinity",18446744073709551616]"#,
            r#"["%d800","%%dfff","%d7ff","%","%%"]"#,
            r#"["%\ud800","%%\udfff%","\ud83d x","\\ud800"]"#,
        ] {
            let text = text.replace('@', &NO_JSON.to_string()).replace('%', &HALF.to_string());
            let value: Value = serde_json::from_str(&keep_python(&text)).unwrap();
            assert_eq!(with_kept_numbers(&value.to_string()), text);
        }
        // Marks may be escaped.
        let value: Value = serde_json::from_str(&keep_python(r#"["\uf8ff\u004eaN"]"#)).unwrap();
        let text = value[0].as_str().unwrap();
        assert_eq!((kept_number(text), kept_text(text)), (None, "\u{f8ff}NaN"));
        let text = r#"["\uf8fe\u0064800", "\uf8fe\ud800"]"#;
        let value: Value = serde_json::from_str(&keep_python(text)).unwrap();
        let wanted = "[\"\u{f8fe}d800\",\"\u{f8fe}\\ud800\"]";
        assert_eq!(with_kept_numbers(&value.to_string()), wanted);
    }

    #[test]
    fn numbers_are_no_keys() {
        for text in ["{NaN: 1}", "{\"a\": 1, -Infinity : 2}"] {
            assert_eq!(keep_numbers(text), text);
        }
    }
}
