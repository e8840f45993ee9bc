//! Reads documents of a data file in order, and tokenizes them into windows.

use std::ops::ControlFlow;

use moe_checkpoint::{Error, Result};

use super::documents::{Document, NextDocument};
use super::encoder::Encoder;
use super::pieces::{FileParts, HeldText, Parts as _, Take, tokenize};
use super::reader::TextReader;
use super::record::Record;
use super::refused::{RecordLine, malformed};
use super::room::LabelRoom;
use super::source::TextFile;
use super::windows::Windows;
use crate::batch::check_ids;

/// Files up to this size are checked to their end, even if enough was read.
const CHECKED_BYTES: u64 = 4 << 20;

/// Reads a data file from its beginning.
pub(crate) struct Stream<'a, 'e> {
    /// The file to read.
    pub file: &'a TextFile,
    /// The encoder that makes the tokens.
    pub encoder: &'a mut Encoder<'e>,
    /// Number of token ids in the vocabulary.
    pub vocab: usize,
    /// Reading stops once there are windows of this many tokens; None to read all.
    pub enough: Option<usize>,
    /// The memory that its windows may take.
    pub room: Option<LabelRoom>,
}

impl Stream<'_, '_> {
    /// Fills `windows`, and returns the position where it stopped, which is the end if there wasn't
    /// enough.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Malformed`] for a line that isn't a record;
    /// [`moe_checkpoint::Kind::Usage`] for ids beyond the vocabulary; errors of reading and of the
    /// tokenizer.
    pub fn read(mut self, windows: &mut Windows) -> Result<u64> {
        let file = self.file;
        let mut reader = TextReader::new(&file.bytes);
        let mut at = 0;
        let mut number = 0;
        let mut is_over = false;
        while !is_over && at < file.len() && (!windows.have(self.enough) || self.is_checked()) {
            let next = file.documents.next(&mut reader, at)?;
            number += 1;
            is_over = next.following.is_none();
            at = self.document(&mut reader, next, number, windows)?;
        }
        // A window that isn't full is kept at the end of the text, but not where reading stopped
        // early.
        if !windows.have(self.enough) {
            windows.end_file();
        }
        Ok(at.min(file.len()))
    }

    /// Puts document `next`, the `number`-th from 1 on, into `windows`, and returns the position
    /// where to continue.
    fn document(
        &mut self,
        reader: &mut TextReader<'_>,
        next: NextDocument,
        number: u64,
        windows: &mut Windows,
    ) -> Result<u64> {
        let NextDocument { bytes, document, following } = next;
        let place = RecordLine { line: bytes, number: Some(number) };
        let at = following.unwrap_or(self.file.len());
        let (flow, at) = match document {
            Document::Blank => return Ok(at),
            Document::Malformed(wrong) => return Err(malformed(self.file, &place, &wrong)),
            _ if windows.have(self.enough) => return Ok(at),
            Document::Text(passage) => {
                let mut parts = FileParts { at: passage.range.start, reader, passage };
                let flow = self.text(&mut parts, following.is_none(), windows)?;
                (flow, following.unwrap_or(parts.at))
            }
            Document::Record(record) => (self.record(record, &place, windows)?, at),
        };
        if flow.is_continue() {
            windows.end_document();
        }
        Ok(at)
    }

    /// Puts a text into `windows`. If `is_last` and the file is checked, the text is read to its
    /// end.
    fn text(
        &mut self,
        parts: &mut FileParts<'_, '_>,
        is_last: bool,
        windows: &mut Windows,
    ) -> Result<ControlFlow<()>> {
        let limits = self.limits();
        let flow = tokenize(self.encoder, parts, true, &mut |ids| limits.take(windows, ids))?;
        while is_last && self.is_checked() && parts.next()?.is_some() {}
        Ok(flow)
    }

    fn record(
        &mut self,
        record: Record,
        place: &RecordLine,
        windows: &mut Windows,
    ) -> Result<ControlFlow<()>> {
        let limits = self.limits();
        let mut take = |ids: &[u32]| limits.take(windows, ids);
        let (flow, padding) = tokenize_record(self.encoder, record, (self.file, place), &mut take)?;
        windows.padding += padding;
        Ok(flow)
    }

    fn limits(&self) -> StreamLimits {
        StreamLimits { vocab: self.vocab, enough: self.enough, room: self.room }
    }

    /// Returns whether the file is read to its end even if enough was read.
    fn is_checked(&self) -> bool {
        self.file.len() <= CHECKED_BYTES
    }
}

/// The limits that a stream keeps to.
struct StreamLimits {
    vocab: usize,
    enough: Option<usize>,
    room: Option<LabelRoom>,
}

impl StreamLimits {
    /// Puts tokens into `windows`.
    fn take(&self, windows: &mut Windows, ids: &[u32]) -> Result<ControlFlow<()>> {
        check_ids(ids, self.vocab)?;
        windows.push(ids);
        if windows.have(self.enough) {
            return Ok(ControlFlow::Break(()));
        }
        self.room.map_or(Ok(()), |room| room.check(windows))?;
        Ok(ControlFlow::Continue(()))
    }
}

/// Passes the tokens of `record`, found at this place of a file, to `take`. Also returns the number
/// of its tokens that are masked or padding.
pub(super) fn tokenize_record(
    encoder: &mut Encoder<'_>,
    record: Record,
    (file, place): (&TextFile, &RecordLine),
    take: Take<'_>,
) -> Result<(ControlFlow<()>, usize)> {
    match record {
        Record::Text(text) => Ok((tokenize(encoder, &mut HeldText(&text), true, take)?, 0)),
        Record::Messages(messages, tools) => {
            let text =
                encoder.render(&messages, tools.as_ref()).map_err(|e| of_record(e, file, place))?;
            // The template writes the special tokens itself.
            Ok((tokenize(encoder, &mut HeldText(&text), false, take)?, 0))
        }
        Record::Ids(ids, mask) => {
            let seen = match mask {
                Some(mask) => masked(&ids, &mask),
                None => encoder.unpadded(&ids)?,
            };
            let flow = take(&seen).map_err(|e| of_record(e, file, place))?;
            Ok((flow, ids.len() - seen.len()))
        }
    }
}

/// Returns the tokens that `mask` marks as visible.
fn masked(ids: &[u32], mask: &[bool]) -> Vec<u32> {
    ids.iter().zip(mask).filter(|(_, seen)| **seen).map(|(id, _)| *id).collect()
}

/// Adds the `place` of a record to the `error` that it caused. The data file is named next to the
/// file that the error names.
fn of_record(error: Error, file: &TextFile, place: &RecordLine) -> Error {
    let place = place.shown(file);
    match error.named_file() {
        Some(_) => error.within(&format!("{place} of {}", file.path().display())),
        None => error.within(&place),
    }
}
