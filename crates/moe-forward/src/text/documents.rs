//! How a text is divided into documents.

use std::collections::BTreeMap;
use std::ops::Range;

use moe_checkpoint::{Hasher, Result};

use super::escaped::Passage;
use super::reader::TextReader;
use super::record::Record;
use super::scan::{Scanned, scan};
use super::wrong::Wrong;

/// How a text is divided into documents. Neither of the two ways of reading holds more than one
/// record, or one block of bytes.
///
/// Read in order ([`super::Stream`]), a text is asked for its [`Documents::next`] from byte 0 on,
/// and then from where the one before it ended. Read at places ([`super::Places`]), it is asked for
/// [`Documents::in_cell`] of cells in the order in which a seed drew them; what is taken of long
/// lines enters the hash of the sample there.
pub(super) trait Documents: Sync {
    /// The document that begins at byte `at`.
    ///
    /// # Errors
    /// What reading returns.
    fn next(&self, reader: &mut TextReader<'_>, at: u64) -> Result<Next>;

    /// What lies in `cell`.
    ///
    /// # Errors
    /// What reading returns.
    fn in_cell(
        &self,
        reader: &mut TextReader<'_>,
        cell: Range<u64>,
        lines: &mut LongLines,
    ) -> Result<Vec<Unit>>;

    /// Whether a file whose name ends so says that this is in it.
    fn is_named_so(&self, ending: &str) -> bool;

    /// What a file whose name ends so was taken for, in words.
    fn taken_for(&self, ending: &str) -> String;
}

/// A document in its place.
pub(super) struct Next {
    /// Its bytes.
    pub bytes: Range<u64>,
    pub document: Document,
    /// Where the next one is to be looked for; `None` where none is, so that a text ends where
    /// whoever reads the document stops.
    pub following: Option<u64>,
}

pub(super) enum Document {
    Blank,
    /// Text, which may be too long to be held.
    Text(Passage),
    Record(Record),
    Malformed(Wrong),
}

/// Something in a cell.
pub(super) enum Unit {
    /// A line that is a record, or blank.
    Record(Range<u64>),
    /// A part of a document.
    Part { passage: Passage, part: Range<u64> },
    /// A line that isn't a record.
    Malformed(Range<u64>, Wrong),
}

/// Lines longer than a cell that were met in a sample.
pub(super) struct LongLines {
    /// Bytes of a cell.
    cell: u64,
    /// The end and the content of each, by where it begins.
    met: BTreeMap<u64, (u64, Scanned)>,
    /// Takes in all that the sample depends on.
    pub hasher: Hasher,
}

impl LongLines {
    pub fn new(cell: u64, hasher: Hasher) -> Self {
        Self { cell, met: BTreeMap::new(), hasher }
    }

    /// Where the line begins that byte `at` lies in.
    pub fn start(&self, reader: &mut TextReader<'_>, at: u64) -> Result<u64> {
        match self.met.range(..=at).next_back() {
            Some((start, (end, _))) if at <= *end => Ok(*start),
            _ => reader.line_start(at),
        }
    }

    /// Where the line ends that begins at `start`.
    pub fn end(&self, reader: &mut TextReader<'_>, start: u64) -> Result<u64> {
        match self.met.get(&start) {
            Some((end, _)) => Ok(*end),
            None => reader.line_end(start),
        }
    }

    /// What `line` holds, if it is longer than a cell.
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
        // All that is taken of the line but its text, which is hashed where it is read.
        self.hasher.update(format!("{line:?} {scanned:?}").as_bytes());
        self.met.insert(line.start, (line.end, scanned.clone()));
        Ok(Some(scanned))
    }
}
