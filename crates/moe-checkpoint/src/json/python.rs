//! Preserves values that Python accepts in JSON and JSON readers don't: some numbers, and unpaired
//! surrogates. They become strings with a mark, from which they are written back unchanged.

use std::borrow::Cow;
use std::ops::Range;

/// Marks a string that holds a number which JSON readers don't keep.
const NO_JSON: char = '\u{f8ff}';
/// Precedes the four digits of an unpaired surrogate in a string. Python keeps these; JSON readers
/// refuse them.
const HALF: char = '\u{f8fe}';

/// The number in the string `value`, as it was in the file; None if [`keep_numbers`] didn't make
/// it.
pub fn kept_number(value: &str) -> Option<&str> {
    value.strip_prefix(NO_JSON)
}

/// The JSON `text`, in which numbers that Python reads and serde_json doesn't keep are strings:
/// `NaN`, infinities, integers of more than 64 bits, -0, and numbers that overflow a float.
/// [`kept_number`] distinguishes them from other strings.
pub fn keep_numbers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut kept = Replaced::of(text);
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let length = bytes[at..].iter().take_while(|byte| is_of_number(**byte)).count();
                let number = &text[at..at + length];
                if is_lost(number) {
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

/// The JSON `text` with escapes of unpaired surrogates replaced by a mark and their digits. Escapes
/// occur only in its strings.
fn keep_halves(text: &str) -> Cow<'_, str> {
    let mut kept = Replaced::of(text);
    let mut at = 0;
    while let Some(next) = text[at..].find('\\') {
        at += next;
        let rest = &text[at..];
        at += match escaped_unit(rest) {
            Some(0xd800..=0xdbff) if begins_with_low_half(&rest[6..]) => 12,
            Some(0xd800..=0xdfff) => {
                let mark = kept.replace(at..at + 6);
                mark.push(HALF);
                mark.push_str(&rest[2..6]);
                6
            }
            // Skips any other escape, such as a quote or backslash.
            _ => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
        };
    }
    kept.finish()
}

/// The UTF-16 unit of the escape that `text` begins with.
fn escaped_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.get(2..6)?, 16).ok().filter(|_| text.starts_with("\\u"))
}

fn begins_with_low_half(text: &str) -> bool {
    matches!(escaped_unit(text), Some(0xdc00..=0xdfff))
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

/// The JSON `text` with the numbers and surrogates that [`keep_numbers`] found written back.
pub(super) fn with_kept_numbers(text: &str) -> String {
    let text = with_halves(text);
    let start = format!("\"{NO_JSON}");
    let mut parts = text.split(&start);
    let mut written = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // The number ends with its string.
        let (number, rest) = part.split_once('"').unwrap_or((part, ""));
        written.push_str(number);
        written.push_str(rest);
    }
    written
}

/// The JSON `text` with marks replaced by escapes.
fn with_halves(text: &str) -> Cow<'_, str> {
    let mut parts = text.split(HALF);
    let first = parts.next().unwrap_or_default();
    let mut written = String::new();
    for part in parts {
        let is_half = part.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match is_half.filter(|unit| (0xd800..=0xdfff).contains(unit)) {
            Some(_) => written.push_str("\\u"),
            None => written.push(HALF),
        }
        written.push_str(part);
    }
    if written.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(first.to_owned() + &written) }
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
}
