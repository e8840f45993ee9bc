//! The trait that divides a text into documents.

use std::collections::BTreeMap;
use std::ops::Range;

use moe_checkpoint::{Hasher, Result};

use super::escaped::Passage;
use super::reader::TextReader;
use super::record::Record;
use super::scan::{Scanned, scan};
use super::wrong::Wrong;

/// Divides a text into documents. Neither of the two ways of reading holds more than one record, or
/// one block of bytes.
///
/// To read in order ([`super::Stream`]), [`Documents::next`] is called at byte 0, and then at the
/// end of each document. To sample ([`super::Places`]), [`Documents::in_cell`] is called for cells
/// in the order in which a seed drew them, and the parts of long lines that are used enter the hash
/// of the sample.
pub(super) trait Documents: Sync {
    /// Returns the document that begins at byte `at`.
    ///
    /// # Errors
    /// Errors of reading.
    fn next(&self, reader: &mut TextReader<'_>, at: u64) -> Result<NextDocument>;

    /// Returns the units that lie in `cell`.
    ///
    /// # Errors
    /// Errors of reading.
    fn in_cell(
        &self,
        reader: &mut TextReader<'_>,
        cell: Range<u64>,
        lines: &mut LongLines,
    ) -> Result<Vec<CellUnit>>;

    /// Returns whether the ending of a file's name stands for this content.
    fn is_named_so(&self, ending: &str) -> bool;

    /// Describes the kind that a file with this ending was detected as.
    fn taken_for(&self, ending: &str) -> String;
}

/// A document and its place.
pub(super) struct NextDocument {
    /// The document's bytes in the text.
    pub bytes: Range<u64>,
    pub document: Document,
    /// The position to search for the next document from. None if there is none: then the text ends
    /// where the reader of this document stops.
    pub following: Option<u64>,
}

pub(super) enum Document {
    Blank,
    /// A text, which may be too long to be held.
    Text(Passage),
    Record(Record),
    Malformed(Wrong),
}

/// A unit found in a cell.
pub(super) enum CellUnit {
    /// A line that is a record, or blank.
    Record(Range<u64>),
    /// A part of a document.
    Part { passage: Passage, part: Range<u64> },
    /// A line that isn't a record.
    Malformed(Range<u64>, Wrong),
}

/// Lines longer than a cell that were met while sampling.
pub(super) struct LongLines {
    /// Number of bytes in a cell.
    cell: u64,
    /// The end and the content of each line, by the position where it begins.
    met: BTreeMap<u64, (u64, Scanned)>,
    /// Hashes everything that the sample depends on.
    pub hasher: Hasher,
}

impl LongLines {
    pub fn new(cell: u64, hasher: Hasher) -> Self {
        Self { cell, met: BTreeMap::new(), hasher }
    }

    /// Returns the beginning of the line that contains byte `at`.
    pub fn start(&self, reader: &mut TextReader<'_>, at: u64) -> Result<u64> {
        match self.met.range(..=at).next_back() {
            Some((start, (end, _))) if at <= *end => Ok(*start),
            _ => reader.line_start(at),
        }
    }

    /// Returns the end of the line that begins at `start`.
    pub fn end(&self, reader: &mut TextReader<'_>, start: u64) -> Result<u64> {
        match self.met.get(&start) {
            Some((end, _)) => Ok(*end),
            None => reader.line_end(start),
        }
    }

    /// Returns the content of `line` if it is longer than a cell.
    pub fn scanned(
        &mut self,
        reader: &mut TextReader<'_>,
        line: Range<u64>,
    ) -> Result<Option<Scanned>> {
        if line.end - line.start <= self.cell {
            return Ok(None);
        }
        if let Some((_, scanned)) = self.met.get(&line.start) {
            return Ok(Some(scanned.clone()));
        }
        let scanned = scan(reader, line.clone())?;
        // Hashes everything that the sample takes from the line except its text, which is hashed
        // where it is read.
        self.hasher.update(format!("{line:?} {scanned:?}").as_bytes());
        self.met.insert(line.start, (line.end, scanned.clone()));
        Ok(Some(scanned))
    }
}
