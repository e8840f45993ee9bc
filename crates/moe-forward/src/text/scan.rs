//! Finds the text of a record that is too long to be held, without keeping the record.

use std::ops::Range;

use moe_checkpoint::Result;

use super::reader::TextReader;
use super::wrong::{Cause, Wrong};

/// Maximum length of a key; all known keys are shorter.
const MAX_KEY_BYTES: u64 = 64;

/// The content of a long line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scanned {
    /// A record of text: the bytes between its quotes.
    Text(Range<u64>),
    /// A record of another form, which must be held to be parsed.
    Other,
    /// Only white space.
    Blank,
    /// Not a record.
    Malformed(Wrong),
}

/// Finds out what the line `line` of `reader` holds. Brackets and strings must be complete; their
/// content isn't checked.
pub(super) fn scan(reader: &mut TextReader<'_>, line: Range<u64>) -> Result<Scanned> {
    Scan { reader, at: line.start, end: line.end }.object()
}

struct Scan<'a, 'b> {
    reader: &'a mut TextReader<'b>,
    at: u64,
    end: u64,
}

/// A key and the beginning of its value.
struct Member {
    key: Vec<u8>,
    /// The first byte of the value.
    first: u8,
    value: Range<u64>,
}

/// The members found in a record so far.
#[derive(Default)]
struct RecordMembers {
    /// The bytes of the record's text.
    text: Option<Range<u64>>,
    is_other: bool,
}

impl RecordMembers {
    fn add(&mut self, Member { key, first, value }: Member) {
        match (key.as_slice(), first) {
            (b"text", b'"') => self.text = Some(value.start + 1..value.end - 1),
            // null counts as if the key weren't there.
            (b"text" | b"input_ids", b'n') => {}
            (b"text" | b"input_ids", _) => self.is_other = true,
            _ => {}
        }
    }

    fn scanned(self) -> Scanned {
        self.text.filter(|_| !self.is_other).map_or(Scanned::Other, Scanned::Text)
    }
}

impl Scan<'_, '_> {
    fn object(mut self) -> Result<Scanned> {
        match self.next_solid()? {
            Some(b'{') => {}
            Some(_) => return Ok(malformed(Cause::Other, "not an object")),
            None => return Ok(Scanned::Blank),
        }
        let mut members = RecordMembers::default();
        loop {
            let Some(member) = self.member()? else { return Ok(unfinished()) };
            members.add(member);
            match self.next_solid()? {
                Some(b',') => {}
                Some(b'}') => break,
                Some(other) => {
                    let what = format!("{:?} after a value", char::from(other));
                    return Ok(malformed(Cause::Other, what));
                }
                None => return Ok(unfinished()),
            }
        }
        if self.next_solid()?.is_some() {
            return Ok(malformed(Cause::Trailing, "trailing characters after the object"));
        }
        Ok(members.scanned())
    }

    /// Reads the next member; None if it is incomplete.
    fn member(&mut self) -> Result<Option<Member>> {
        let Some(key) = self.key()? else { return Ok(None) };
        let Some(first) = self.peek_solid()? else { return Ok(None) };
        let start = self.at;
        let is_whole = self.skip_value()?;
        Ok(is_whole.then_some(Member { key, first, value: start..self.at }))
    }

    /// Reads a key and its colon. A key longer than any known one is cut.
    fn key(&mut self) -> Result<Option<Vec<u8>>> {
        if self.peek_solid()? != Some(b'"') {
            return Ok(None);
        }
        let start = self.at;
        if !self.skip_string()? {
            return Ok(None);
        }
        let key = start + 1..(self.at - 1).min(start + 1 + MAX_KEY_BYTES);
        let key = self.reader.bytes(key)?.to_vec();
        Ok((self.next_solid()? == Some(b':')).then_some(key))
    }

    /// Skips a value. Returns whether it was complete.
    fn skip_value(&mut self) -> Result<bool> {
        let mut depth = 0usize;
        loop {
            let Some(byte) = self.peek()? else { return Ok(false) };
            match byte {
                b'"' => {
                    let is_whole = self.skip_string()?;
                    if !is_whole || depth == 0 {
                        return Ok(is_whole);
                    }
                    continue;
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth > 0 => depth -= 1,
                // The end of the value: these belong to the record.
                b',' | b'}' | b']' if depth == 0 => return Ok(true),
                _ => {}
            }
            self.at += 1;
            if depth == 0 && matches!(byte, b']' | b'}') {
                return Ok(true);
            }
        }
    }

    /// Skips a string. Returns whether it was complete.
    fn skip_string(&mut self) -> Result<bool> {
        self.at += 1;
        loop {
            let block = self.reader.block(self.at, self.end)?;
            if block.is_empty() {
                return Ok(false);
            }
            match memchr::memchr2(b'"', b'\\', block) {
                None => self.at += block.len() as u64,
                Some(found) if block[found] == b'"' => {
                    self.at += found as u64 + 1;
                    return Ok(true);
                }
                Some(found) => self.at += found as u64 + 2,
            }
            if self.at > self.end {
                return Ok(false);
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.reader.block(self.at, self.end)?.first().copied())
    }

    fn peek_solid(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.at += 1;
        }
        Ok(None)
    }

    fn next_solid(&mut self) -> Result<Option<u8>> {
        let found = self.peek_solid()?;
        self.at += u64::from(found.is_some());
        Ok(found)
    }
}

fn unfinished() -> Scanned {
    let cause = Cause::Unfinished { in_string: false };
    malformed(cause, "the line ends within the record, or a key is missing")
}

fn malformed(cause: Cause, what: impl Into<String>) -> Scanned {
    Scanned::Malformed(Wrong::new(cause, what))
}
