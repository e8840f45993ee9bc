//! JSON Lines: a file with one record per line.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use moe_checkpoint::Result;

use crate::text::bytes::TextBytes;
use crate::text::documents::{CellUnit, Document, Documents, LongLines, NextDocument};
use crate::text::escaped::Passage;
use crate::text::kind::{FileStart, OpenedText, TextFormat};
use crate::text::reader::TextReader;
use crate::text::record::{LineStart, object_start, parse};
use crate::text::scan::{Scanned, scan};
use crate::text::source::TextFile;
use crate::text::wrong::{MAX_RECORD_BYTES, Wrong};

/// Records up to this size are read in one go.
const HELD_BYTES: u64 = 1 << 20;

/// A file with a JSON object in each line.
pub(super) struct Lines;

impl TextFormat for Lines {
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool> {
        let body = head.body();
        let line_end = body.iter().position(|byte| *byte == b'\n');
        let line = &body[..line_end.unwrap_or(body.len())];
        Ok(is_named_for_lines(head.name)
            // `{}` lacks all keys, as the error will say.
            || line.trim_ascii() == b"{}"
            || match object_start(line) {
                LineStart::Whole => true,
                // The line is longer than the part of the file that is examined, so its end wasn't
                // seen.
                LineStart::Open => line_end.is_none() && !head.is_all,
                LineStart::Other => false,
            })
    }

    fn open(&self, bytes: TextBytes, head: &FileStart<'_>) -> Result<OpenedText> {
        Ok(OpenedText::Text(TextFile::of(bytes.skipping(head.mark()), &Lines)))
    }
}

impl Documents for Lines {
    fn next(&self, reader: &mut TextReader<'_>, at: u64) -> Result<NextDocument> {
        let end = reader.line_end(at)?;
        let scanned = if end - at <= HELD_BYTES { Scanned::Other } else { scan(reader, at..end)? };
        let document = match scanned {
            Scanned::Text(range) => Document::Text(Passage { range, is_escaped: true }),
            Scanned::Other if end - at <= MAX_RECORD_BYTES => record(reader.bytes(at..end)?),
            Scanned::Other => Document::Malformed(Wrong::too_long(end - at)),
            Scanned::Blank => Document::Blank,
            Scanned::Malformed(wrong) => Document::Malformed(wrong),
        };
        Ok(NextDocument { bytes: at..end, document, following: Some(end + 1) })
    }

    fn in_cell(
        &self,
        reader: &mut TextReader<'_>,
        cell: Range<u64>,
        lines: &mut LongLines,
    ) -> Result<Vec<CellUnit>> {
        let mut units = Vec::new();
        let mut start = lines.start(reader, cell.start)?;
        while start < cell.end {
            let line = start..lines.end(reader, start)?;
            start = line.end + 1;
            units.extend(in_line(line.clone(), lines.scanned(reader, line)?, &cell));
        }
        Ok(units)
    }

    fn is_named_so(&self, ending: &str) -> bool {
        matches!(ending, "jsonl" | "ndjson" | "jl" | "json")
    }

    fn taken_for(&self, _: &str) -> String {
        "JSON Lines, a document a line".to_owned()
    }
}

fn record(line: &[u8]) -> Document {
    if line.trim_ascii().is_empty() {
        return Document::Blank;
    }
    parse(line).map_or_else(Document::Malformed, Document::Record)
}

/// Returns the part of `line` that belongs to `cell`, if any. `scanned` is given for lines longer
/// than a cell. A record belongs to the cell that it begins in, and of a long text each cell has
/// its part.
fn in_line(line: Range<u64>, scanned: Option<Scanned>, cell: &Range<u64>) -> Option<CellUnit> {
    let begins_here = cell.contains(&line.start);
    match scanned {
        None => begins_here.then_some(CellUnit::Record(line)),
        Some(Scanned::Blank) => None,
        Some(Scanned::Text(range)) => {
            let part = range.start.max(cell.start)..range.end.min(cell.end);
            let passage = Passage { range, is_escaped: true };
            (part.start < part.end).then_some(CellUnit::Part { passage, part })
        }
        Some(Scanned::Other) if !begins_here => None,
        Some(Scanned::Other) if line.end - line.start > MAX_RECORD_BYTES => {
            let wrong = Wrong::too_long(line.end - line.start);
            Some(CellUnit::Malformed(line, wrong))
        }
        Some(Scanned::Other) => Some(CellUnit::Record(line)),
        Some(Scanned::Malformed(wrong)) => Some(CellUnit::Malformed(line, wrong)),
    }
}

/// Returns whether any part of the name says that each line is a JSON record, as in `a.jsonl.txt`.
fn is_named_for_lines(name: &Path) -> bool {
    const WORDS: [&str; 5] = ["jsonl", "jsonlines", "ndjson", "ldjson", "jl"];
    let name = name.file_name().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    name.split('.').skip(1).any(|part| WORDS.contains(&part))
}
