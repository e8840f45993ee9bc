//! A JSON array of records. It is copied to an anonymous scratch file with each element on its own
//! line; every byte keeps its offset.

use moe_checkpoint::{Error, Kind, Result, Scratch};

use super::lines::Lines;
use super::scratch::{CHUNK_BYTES, no_room, scratch};
use crate::text::bytes::TextBytes;
use crate::text::kind::{FileStart, OpenedText, TextFormat};
use crate::text::record::{LineStart, object_start};
use crate::text::source::{TextFile, TextOrigin, TextUnit};

/// A JSON array.
pub(super) struct Array;

impl TextFormat for Array {
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool> {
        // An array of other values is left to `Lines`, whose error shows how to write it as
        // records.
        let Some(first) = head.body().strip_prefix(b"[") else { return Ok(false) };
        let first = object_start(first.trim_ascii_start());
        Ok(head.ending() == "json" || matches!(first, LineStart::Whole | LineStart::Open))
    }

    fn open(&self, bytes: TextBytes, head: &FileStart<'_>) -> Result<OpenedText> {
        let list = bytes.skipping(head.mark());
        let (scratch, end) = lines_of_array(&list)?;
        let lines = TextFile::of(list.unpacked(scratch, end), &Lines);
        Ok(OpenedText::Text(TextFile { origin: Some(Box::new(ArrayOrigin(list))), ..lines }))
    }
}

/// The JSON array that the lines were made from.
struct ArrayOrigin(TextBytes);

impl TextOrigin for ArrayOrigin {
    fn name(&self) -> &'static str {
        "a JSON array"
    }

    fn place(&self, text: &TextBytes, at: u64) -> Option<String> {
        let (record, line) = self.record(text, at)?;
        Some(format!("record {record} of the list, on line {line}"))
    }

    fn unit(&self) -> &'static TextUnit {
        &TextUnit { name: "element of the list", is_line: false, jq: ".[] | " }
    }
}

impl ArrayOrigin {
    /// Returns the number of the record that begins at byte `at` of `lines`, and its line in the
    /// array's file, both counted from 1. It reads the file up to there.
    fn record(&self, lines: &TextBytes, at: u64) -> Option<(u64, u64)> {
        let (mut records, mut line) = (0, 1);
        let mut has_begun = false;
        let mut from = 0;
        while from < lines.len() {
            let bytes = (CHUNK_BYTES as u64).min(lines.len() - from) as usize;
            let (mut own, mut of_list) = (vec![0; bytes], vec![0; bytes]);
            lines.read_at(from, &mut own).and_then(|()| self.0.read_at(from, &mut of_list)).ok()?;
            for (offset, (own, of_list)) in (from..).zip(own.into_iter().zip(of_list)) {
                // White space may precede the record, including line breaks of the array.
                if offset >= at && !own.is_ascii_whitespace() {
                    return Some((records, line));
                }
                line += u64::from(of_list == b'\n');
                has_begun |= of_list == b'[';
                records += u64::from(has_begun && own == b'\n');
            }
            from += bytes as u64;
        }
        None
    }
}

/// Copies the JSON array `file` to a scratch file with one element per line, and returns it with
/// its length.
fn lines_of_array(file: &TextBytes) -> Result<(Scratch, u64)> {
    let scratch = scratch()?;
    let mut lines = ArrayLines::default();
    let (mut at, mut end) = (0, 0);
    while at < file.len() {
        let mut chunk = vec![0; CHUNK_BYTES.min((file.len() - at) as usize)];
        file.read_at(at, &mut chunk)?;
        at += chunk.len() as u64;
        lines
            .split(&mut chunk)
            .map_err(|what| malformed(format!("line {}: {what}", lines.breaks + 1)))?;
        scratch.write_at(end, &chunk).map_err(no_room)?;
        end += chunk.len() as u64;
    }
    if lines.state != UnpackState::After {
        return Err(malformed(format!(
            "the file ends in line {}, and its list isn't closed",
            lines.breaks + 1
        )));
    }
    Ok((scratch, end))
}

fn malformed(what: String) -> Error {
    Error::new(Kind::Malformed, what)
        .remedy("give a list of records, or records line by line: jq -c '.[]' makes such")
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum UnpackState {
    #[default]
    Before,
    Within,
    After,
}

/// Puts each array element on its own line without moving a byte: brackets and commas between
/// elements become line breaks, and line breaks inside elements become spaces.
#[derive(Default)]
struct ArrayLines {
    state: UnpackState,
    depth: usize,
    /// Number of line breaks read so far.
    breaks: u64,
    in_string: bool,
    is_escaped: bool,
    /// Whether a value follows the last top-level comma.
    has_element: bool,
    /// Whether there was a top-level comma.
    has_comma: bool,
}

impl ArrayLines {
    fn split(&mut self, chunk: &mut [u8]) -> Result<(), String> {
        for byte in chunk {
            self.breaks += u64::from(*byte == b'\n');
            if self.in_string {
                self.in_string = self.is_escaped || *byte != b'"';
                self.is_escaped = !self.is_escaped && *byte == b'\\';
                continue;
            }
            self.check_commas(*byte)?;
            self.split_at(byte)?;
        }
        Ok(())
    }

    /// Handles a `byte` outside strings, and replaces it with a line break or a space where needed.
    #[inline]
    fn split_at(&mut self, byte: &mut u8) -> Result<(), String> {
        match (self.state, *byte) {
            (UnpackState::Before, b'[') => (self.state, *byte) = (UnpackState::Within, b'\n'),
            (UnpackState::Within, b'"') => self.in_string = true,
            (UnpackState::Within, b'[' | b'{') => self.depth += 1,
            (UnpackState::Within, b']') if self.depth == 0 => {
                (self.state, *byte) = (UnpackState::After, b'\n')
            }
            (UnpackState::Within, b']' | b'}') => {
                let depth = self.depth.checked_sub(1);
                self.depth = depth.ok_or("a bracket is closed that wasn't opened")?;
            }
            (UnpackState::Within, b',') if self.depth == 0 => *byte = b'\n',
            (UnpackState::Within, b'\n' | b'\r') => *byte = b' ',
            (UnpackState::Before | UnpackState::After, byte) if !byte.is_ascii_whitespace() => {
                return Err(format!("{:?} outside of the list", char::from(byte)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Refuses commas without a record before or after them, as Python does. `byte` is outside
    /// strings.
    fn check_commas(&mut self, byte: u8) -> Result<(), String> {
        if self.state != UnpackState::Within || byte.is_ascii_whitespace() {
            return Ok(());
        }
        match byte {
            b',' if self.depth == 0 && !self.has_element => {
                Err("a comma of the list has no record before it".to_owned())
            }
            b']' if self.depth == 0 && self.has_comma && !self.has_element => {
                Err("the list ends with a comma that no record follows".to_owned())
            }
            b',' if self.depth == 0 => {
                (self.has_comma, self.has_element) = (true, false);
                Ok(())
            }
            _ => {
                self.has_element = true;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_an_array_become_lines() {
        let split = |text: &str, chunk: usize| {
            let mut bytes = text.as_bytes().to_vec();
            let mut lines = ArrayLines::default();
            let split = bytes.chunks_mut(chunk).try_for_each(|chunk| lines.split(chunk));
            split.map(|()| (String::from_utf8(bytes).unwrap(), lines.state == UnpackState::After))
        };
        let text = "[{\"a\": \"],\\\"\\\\\",\n \"b\": [1, 2]}, {\"c\": {}}\n]\n";
        let wanted = "\n{\"a\": \"],\\\"\\\\\",  \"b\": [1, 2]}\n {\"c\": {}} \n\n";
        for chunk in [1, 3, 100] {
            assert_eq!(split(text, chunk), Ok((wanted.to_owned(), true)));
        }
        assert_eq!(split("[{}", 9), Ok(("\n{}".to_owned(), false)));
        for wrong in ["[{}] x", "[}]", "[{},]", "[{}, \n]", "[,{}]", "[{},,{}]", "[,]"] {
            assert!(split(wrong, 1).is_err() && split(wrong, 9).is_err(), "{wrong}");
        }
        assert!(split("[ ]", 9).is_ok() && split("[1,[2,],3]", 9).is_ok());
    }
}
