//! Reads parts of a text as characters: prose as it is, a JSON string with its escapes resolved.

use std::ops::Range;
use std::path::Path;

use moe_checkpoint::{Error, Kind, Result};

use super::command::naming_file;
use super::reader::TextReader;
use super::surrogates::{is_high, is_low, unit};

/// Length of the longest unit that must not be cut: a surrogate pair, written as two escapes.
const LONGEST: u64 = 12;
/// How many bytes back to search for a character that shows which backslashes begin an escape.
const LOOK_BACK: u64 = 4096;

/// A text within a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passage {
    /// The text's bytes in the file.
    pub range: Range<u64>,
    /// Whether the text is the inside of a JSON string.
    pub is_escaped: bool,
}

impl Passage {
    /// Decodes about `bytes` bytes from `at`, which must be the beginning of a character. Returns
    /// the text and the position after it.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for bytes that aren't UTF-8 or not a JSON string; errors of reading.
    pub fn part(&self, reader: &mut TextReader<'_>, at: u64, bytes: u64) -> Result<(String, u64)> {
        self.decoded(reader, at..at.saturating_add(bytes.max(LONGEST)).min(self.range.end))
    }

    /// Decodes the characters that lie completely in `range`, which must begin at a character.
    /// Returns the text and the position after it.
    ///
    /// # Errors
    /// As for [`Self::part`].
    pub fn decoded(&self, reader: &mut TextReader<'_>, range: Range<u64>) -> Result<(String, u64)> {
        let at = range.start;
        let is_last = range.end == self.range.end;
        let raw = reader.bytes(range)?;
        let decoded = if self.is_escaped { unescaped(raw, is_last) } else { plain(raw, is_last) };
        let (text, used) = decoded.map_err(|(place, what)| {
            let path = reader.text.path();
            Error::new(Kind::Malformed, format!("byte {}: {what}", at + place as u64))
                .file(path)
                .remedy(self.decoding_remedy(path))
        })?;
        Ok((text, at + used as u64))
    }

    /// Returns the remedy for a file whose bytes aren't characters.
    fn decoding_remedy(&self, path: &Path) -> String {
        if self.is_escaped {
            return "write the file again, as Python's json does, or leave this record out".into();
        }
        let remedy =
            "write it as UTF-8: if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE > data.txt";
        naming_file(remedy, path)
    }

    /// Returns the position of the first character that begins at `at` or after it.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn boundary(&self, reader: &mut TextReader<'_>, at: u64) -> Result<u64> {
        let at = at.min(self.range.end);
        let from = at.saturating_sub(LOOK_BACK).max(self.range.start);
        let window = reader.bytes(from..(at + LONGEST).min(self.range.end))?;
        let wanted = (at - from) as usize;
        let mut place =
            if self.is_escaped { escape_before(window, wanted).unwrap_or(0) } else { wanted };
        if self.is_escaped && !window[place..wanted].contains(&b'\\') {
            place = wanted;
        }
        while place < wanted {
            place += width(&window[place..]);
        }
        while window.get(place).is_some_and(|byte| byte & 0xc0 == 0x80) {
            place += 1;
        }
        // This is the second half of a pair whose first half lies before.
        if self.is_escaped && low_surrogate(&window[place.min(window.len())..]) {
            place += 6;
        }
        Ok((from + place as u64).min(self.range.end))
    }
}

/// Returns the last backslash up to `wanted` that is sure to begin an escape, since no backslash
/// precedes it.
fn escape_before(window: &[u8], wanted: usize) -> Option<usize> {
    (1..wanted).rev().find(|at| window[*at] == b'\\' && window[at - 1] != b'\\')
}

/// Returns the number of bytes of the character or escape that `text` begins with.
fn width(text: &[u8]) -> usize {
    match text {
        [b'\\', b'u', ..] => 6,
        [b'\\', ..] => 2,
        [first, ..] if *first >= 0xf0 => 4,
        [first, ..] if *first >= 0xe0 => 3,
        [first, ..] if *first >= 0xc0 => 2,
        _ => 1,
    }
}

fn low_surrogate(text: &[u8]) -> bool {
    unit(text).is_some_and(is_low)
}

/// The text and the number of bytes that it was decoded from, or else the position of the error and
/// a message.
type Decoded = Result<(String, usize), (usize, String)>;

fn plain(raw: &[u8], is_last: bool) -> Decoded {
    match std::str::from_utf8(raw) {
        Ok(text) => Ok((text.to_owned(), raw.len())),
        // A character that is cut in two belongs to the next part.
        Err(e) if e.error_len().is_none() && !is_last => {
            let used = e.valid_up_to();
            Ok((String::from_utf8_lossy(&raw[..used]).into_owned(), used))
        }
        Err(e) => Err((e.valid_up_to(), "this is not UTF-8".to_owned())),
    }
}

fn unescaped(raw: &[u8], is_last: bool) -> Decoded {
    let mut text = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let run = memchr::memchr(b'\\', &raw[at..]).unwrap_or(raw.len() - at);
        text.extend_from_slice(&raw[at..at + run]);
        at += run;
        if at == raw.len() {
            break;
        }
        let escaped = escape(&raw[at..], is_last).map_err(|what| (at, what))?;
        let Some((character, used)) = escaped else { break };
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        at += used;
    }
    whole_characters(text, is_last, at)
}

/// Returns `bytes`, which were decoded from `used` bytes, without a character that is cut in two.
fn whole_characters(bytes: Vec<u8>, is_last: bool, used: usize) -> Decoded {
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, used)),
        Err(e) if e.utf8_error().error_len().is_none() && !is_last => {
            let kept = e.utf8_error().valid_up_to();
            let bytes = e.into_bytes();
            // The bytes that are cut off aren't an escape, since an escape gives a whole character.
            Ok((String::from_utf8_lossy(&bytes[..kept]).into_owned(), used - (bytes.len() - kept)))
        }
        Err(_) => Err((0, "this is not UTF-8".to_owned())),
    }
}

/// The character of an escape, and its length in bytes; None if it continues in the next part.
type Escape = Result<Option<(char, usize)>, String>;

/// Decodes the escape that `raw` begins with.
fn escape(raw: &[u8], is_last: bool) -> Escape {
    if raw.len() < 2 && !is_last {
        return Ok(None);
    }
    let character = match raw.get(1) {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
        Some(b'u') => return unicode_escape(raw, is_last),
        _ => return Err(bad_escape()),
    };
    Ok(Some((character, 2)))
}

/// Decodes the escape of a UTF-16 unit, or of a surrogate pair, that `raw` begins with.
fn unicode_escape(raw: &[u8], is_last: bool) -> Escape {
    if raw.len() < 6 && !is_last {
        return Ok(None);
    }
    let first = unit(raw).ok_or_else(bad_escape)?;
    if !is_high(first) && !is_low(first) {
        return Ok(char::from_u32(first).map(|character| (character, 6)));
    }
    if raw.len() < 12 && !is_last {
        return Ok(None);
    }
    let Some(second) = unit(&raw[6..]).filter(|second| is_high(first) && is_low(*second)) else {
        return Err(
            "half of a surrogate pair is no character, and no tokenizer takes it".to_owned()
        );
    };
    let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    char::from_u32(code).map(|character| Some((character, 12))).ok_or_else(bad_escape)
}

fn bad_escape() -> String {
    "this is not a JSON escape".to_owned()
}
