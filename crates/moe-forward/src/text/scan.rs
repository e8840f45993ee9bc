//! A record that is too long to be held: where its text lies, found without keeping it.

use std::ops::Range;

use moe_checkpoint::Result;

use super::reader::TextReader;
use super::wrong::{Cause, Wrong};

/// Keys that we know are shorter.
const MAX_KEY_BYTES: u64 = 64;

/// What a long line holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scanned {
    /// A record of text; its characters as they stand between the quotes.
    Text(Range<u64>),
    /// A record of something else, which must be held to be read.
    Other,
    /// White space alone.
    Blank,
    /// No record.
    Malformed(Wrong),
}

/// What the line `line` of `reader` holds. Brackets and strings must be whole; what lies in them
/// isn't looked at.
pub(super) fn scan(reader: &mut TextReader<'_>, line: Range<u64>) -> Result<Scanned> {
    Scan { reader, at: line.start, end: line.end }.object()
}

struct Scan<'a, 'b> {
    reader: &'a mut TextReader<'b>,
    at: u64,
    end: u64,
}

impl Scan<'_, '_> {
    fn object(mut self) -> Result<Scanned> {
        let mut text = None;
        let mut is_other = false;
        match self.next_solid()? {
            Some(b'{') => {}
            Some(_) => return Ok(malformed(Cause::Other, "not an object")),
            None => return Ok(Scanned::Blank),
        }
        loop {
            let Some(key) = self.key()? else { return Ok(unfinished()) };
            let Some(first) = self.peek_solid()? else { return Ok(unfinished()) };
            let start = self.at;
            if !self.skip_value()? {
                return Ok(unfinished());
            }
            let value = start..self.at;
            match (key.as_slice(), first) {
                (b"text", b'"') => text = Some(value.start + 1..value.end - 1),
                // null: as if the key weren't there.
                (b"text" | b"input_ids", b'n') => {}
                (b"text" | b"input_ids", _) => is_other = true,
                _ => {}
            }
            match self.next_solid()? {
                Some(b',') => {}
                Some(b'}') => break,
                Some(other) => {
                    let what = format!("{:?} behind a value", char::from(other));
                    return Ok(malformed(Cause::Other, what));
                }
                None => return Ok(unfinished()),
            }
        }
        if self.next_solid()?.is_some() {
            return Ok(malformed(Cause::Trailing, "trailing characters behind the object"));
        }
        Ok(text.filter(|_| !is_other).map_or(Scanned::Other, Scanned::Text))
    }

    /// A key and its colon; one that is longer than any that is known is cut.
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

    /// Whether there was a whole value.
    fn skip_value(&mut self) -> Result<bool> {
        let mut depth = 0usize;
        loop {
            let Some(byte) = self.peek()? else { return Ok(false) };
            match byte {
                b'"' => {
                    if !self.skip_string()? {
                        return Ok(false);
                    }
                    if depth == 0 {
                        return Ok(true);
                    }
                    continue;
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth > 0 => depth -= 1,
                // What stands around the value.
                b',' | b'}' | b']' if depth == 0 => return Ok(true),
                _ => {}
            }
            self.at += 1;
            if depth == 0 && matches!(byte, b']' | b'}') {
                return Ok(true);
            }
        }
    }

    /// Whether there was a whole string.
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
