//! Documents of a data file in their order, tokenized into windows as they come.

use std::ops::ControlFlow;

use moe_checkpoint::{Error, Result};

use super::encoder::Encoder;
use super::escaped::Passage;
use super::pieces::{HeldText, Parts as _, Read, Take, tokenize};
use super::reader::TextReader;
use super::recognize::Format;
use super::record::{Record, parse};
use super::refused::{RecordLine, malformed, too_long};
use super::room::LabelRoom;
use super::scan::{Scanned, scan};
use super::source::TextFile;
use super::windows::Windows;
use crate::batch::check_ids;

/// A file that isn't larger is checked to its end, though enough was read of it.
const CHECKED_BYTES: u64 = 4 << 20;
/// Records that aren't longer are read at once.
const HELD_BYTES: u64 = 1 << 20;
/// Records of text are read in parts; of others this is the longest.
pub(super) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Reads a data file from its beginning.
pub(crate) struct Stream<'a, 'e> {
    /// The file.
    pub file: &'a TextFile,
    /// Makes its tokens.
    pub encoder: &'a mut Encoder<'e>,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// It may stop when there are windows of so many tokens.
    pub enough: Option<usize>,
    /// What its windows may take.
    pub room: Option<LabelRoom>,
}

impl Stream<'_, '_> {
    /// Fills `windows`, and returns where it stopped: at the end, if it hadn't enough.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Malformed`] for a line that isn't a record;
    /// [`moe_checkpoint::Kind::Usage`] for ids beyond the vocabulary; what reading and the
    /// tokenizer return.
    pub fn read(self, windows: &mut Windows) -> Result<u64> {
        let Self { file, encoder, vocab, enough, room } = self;
        let limits = StreamLimits { vocab, enough, room };
        let mut reader = TextReader::new(file);
        let mut at = 0;
        let mut number = 0u64;
        while at < file.len() && (!has_enough(windows, enough) || file.len() <= CHECKED_BYTES) {
            if file.format == Format::Prose {
                let mut take = |ids: &[u32]| limits.take(windows, ids);
                let passage = Passage { range: 0..file.len(), is_escaped: false };
                let mut parts = Read { reader: &mut reader, passage, at: 0 };
                let flow = tokenize(encoder, &mut parts, true, &mut take)?;
                while file.len() <= CHECKED_BYTES && parts.next()?.is_some() {}
                at = parts.at;
                if flow.is_continue() {
                    windows.end_document();
                }
                break;
            }
            let end = reader.line_end(at)?;
            number += 1;
            let line = at..end;
            let at_line = line.clone();
            let scanned = if end - at <= HELD_BYTES {
                Scanned::Other
            } else {
                scan(&mut reader, line.clone())?
            };
            let flow = match scanned {
                Scanned::Text(range) => {
                    let passage = Passage { range: range.clone(), is_escaped: true };
                    let mut parts = Read { reader: &mut reader, passage, at: range.start };
                    at = end + 1;
                    if has_enough(windows, enough) {
                        continue;
                    }
                    let mut take = |ids: &[u32]| limits.take(windows, ids);
                    tokenize(encoder, &mut parts, true, &mut take)?
                }
                Scanned::Other if end - at <= MAX_RECORD_BYTES => {
                    let line = reader.bytes(line)?;
                    at = end + 1;
                    if line.trim_ascii().is_empty() {
                        continue;
                    }
                    let place = RecordLine { line: at_line, number: Some(number) };
                    let record = parse(line).map_err(|what| malformed(file, &place, &what))?;
                    if has_enough(windows, enough) {
                        continue;
                    }
                    let mut take = |ids: &[u32]| limits.take(windows, ids);
                    let (flow, padding) =
                        tokenize_record(encoder, record, (file, &place), &mut take)?;
                    windows.padding += padding;
                    flow
                }
                Scanned::Blank => {
                    at = end + 1;
                    continue;
                }
                Scanned::Other => {
                    let place = RecordLine { line: at_line, number: Some(number) };
                    return Err(malformed(file, &place, &too_long(end - at)));
                }
                Scanned::Malformed(what) => {
                    return Err(malformed(
                        file,
                        &RecordLine { line: at_line, number: Some(number) },
                        &what,
                    ));
                }
            };
            at = end + 1;
            if flow.is_continue() {
                windows.end_document();
            }
        }
        // A window that isn't full is one, if it is the text's end rather than ours.
        if !has_enough(windows, enough) {
            windows.end_file();
        }
        Ok(at.min(file.len()))
    }
}

/// What a stream may take.
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
        if has_enough(windows, self.enough) {
            return Ok(ControlFlow::Break(()));
        }
        self.room.map_or(Ok(()), |room| room.check(windows))?;
        Ok(ControlFlow::Continue(()))
    }
}

fn has_enough(windows: &Windows, enough: Option<usize>) -> bool {
    enough.is_some_and(|enough| windows.tokens >= enough)
}

/// Gives `take` the tokens of `record`, which stands at this place of a file; and how many of its
/// tokens are masked or padding.
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
                Some(mask) => {
                    ids.iter().zip(mask).filter(|(_, seen)| *seen).map(|(id, _)| *id).collect()
                }
                None => encoder.unpadded(&ids)?,
            };
            let flow = take(&seen).map_err(|e| of_record(e, file, place))?;
            Ok((flow, ids.len() - seen.len()))
        }
    }
}

/// An `error` of the record at this `place`, whose file is named beside the one that the error
/// names.
fn of_record(error: Error, file: &TextFile, place: &RecordLine) -> Error {
    let place = place.shown(file);
    match error.named_file() {
        Some(_) => error.within(&format!("{place} of {}", file.path().display())),
        None => error.within(&place),
    }
}
