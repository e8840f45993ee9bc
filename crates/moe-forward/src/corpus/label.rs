//! Tokenizes the files of one label into windows.

use std::collections::BTreeSet;

use moe_checkpoint::{Error, Kind, Result};
use moe_math::sampling;
use rand_core::RngCore;

use super::options::TokenizeOptions;
use crate::chat::Dates;
use crate::text::{Encoder, LabelRoom, Places, Stream, TextFile, Windows};
use crate::text_read::{ReadExtent, TextRead};

/// Sequences, and for each file the facts about what was read.
type Sequences = (Vec<Vec<u32>>, Vec<TextRead>);

/// Reads the files of a label.
pub(super) struct LabelReader<'a, 'e> {
    pub files: Vec<&'a TextFile>,
    pub encoder: &'a mut Encoder<'e>,
    pub options: TokenizeOptions,
    /// The memory that the label's windows may take.
    pub room: Option<LabelRoom>,
}

impl LabelReader<'_, '_> {
    /// Returns the label's windows, with as many tokens as the options want. `stream` separates its
    /// random numbers from those of other labels.
    pub fn read(mut self, stream: u64) -> Result<Sequences> {
        let limit = self.options.max_tokens.map(|limit| limit.max(2));
        let mut random = self.options.sample.map(|seed| sampling::generator(seed, stream));
        let bytes = self.files.iter().map(|file| file.len()).sum();
        let (mut sequences, mut texts) = match (random.as_mut(), limit) {
            (Some(random), Some(limit)) if is_large(bytes, limit) => {
                self.drawn_at_places(limit, random)?
            }
            (Some(random), Some(limit)) => self.drawn_of_all(limit, random)?,
            (_, limit) => self.beginning(limit)?,
        };
        if let Some(limit) = limit {
            truncate(&mut sequences, limit);
        }
        let made: usize = texts.iter().map(|text| text.tokens).sum();
        let kept: usize = sequences.iter().map(Vec::len).sum();
        texts.iter_mut().for_each(|text| text.has_more |= kept < made);
        Ok((sequences, texts))
    }

    /// Returns all windows of the files or, with `enough`, the first ones with that many tokens.
    fn beginning(&mut self, enough: Option<usize>) -> Result<Sequences> {
        let mut windows = Windows::new(self.options.sequence_length, self.options.pack);
        let texts = self.fill(&mut windows, enough)?;
        Ok((windows.done, texts))
    }

    /// Draws windows from all of the files, until they have `limit` tokens or slightly more. The
    /// draw doesn't depend on the room.
    fn drawn_of_all(&mut self, limit: usize, random: &mut impl RngCore) -> Result<Sequences> {
        let TokenizeOptions { sequence_length: length, pack, .. } = self.options;
        let mut windows = Windows::new(length, pack);
        let texts = self.fill(&mut windows, None)?;
        let Some(lengths) = windows.lengths() else {
            let mut sequences = windows.done;
            draw(&mut sequences, limit, random);
            return Ok((sequences, texts));
        };
        let mut held = Windows::chosen(length, pack, chosen(lengths, limit, random));
        self.room = self.room.map(LabelRoom::firm);
        self.fill(&mut held, None)?;
        Ok((held.done, texts))
    }

    /// Draws windows at random places of the files, until they have `limit` tokens or slightly
    /// more.
    fn drawn_at_places(&mut self, limit: usize, random: &mut impl RngCore) -> Result<Sequences> {
        self.room.map_or(Ok(()), |room| room.check_sample())?;
        let TokenizeOptions { sequence_length: length, vocab, pack, .. } = self.options;
        let files = &self.files;
        let places = Places { files, encoder: self.encoder, vocab, length, tokens: limit };
        let drawn = places.draw(random)?;
        let mut windows = Windows::new(length, pack);
        let mut texts = Vec::new();
        for (file, drawn) in files.iter().zip(drawn) {
            let before = windows.counts();
            for document in &drawn.documents {
                windows.push(document);
                windows.end_document();
            }
            windows.end_file();
            windows.padding += drawn.padding;
            let how = ReadExtent::Places { cells: drawn.cells, digest: drawn.digest };
            texts.push(TextRead::of(file, &windows, &before, how, drawn.dates));
        }
        if windows.done.is_empty() {
            return Err(nothing_to_predict(&windows, &Windows::default()).file(files[0].path()));
        }
        let mut sequences = windows.done;
        draw(&mut sequences, limit, random);
        Ok((sequences, texts))
    }

    /// Reads the files into `windows`, until these have `enough` tokens.
    fn fill(&mut self, windows: &mut Windows, enough: Option<usize>) -> Result<Vec<TextRead>> {
        let mut texts = Vec::new();
        for at in 0..self.files.len() {
            let file = self.files[at];
            let text = if windows.have(enough) {
                unread(file)
            } else {
                self.fill_from(file, windows, enough).map_err(|e| e.file(file.path()))?
            };
            texts.push(text);
        }
        Ok(texts)
    }

    fn fill_from(
        &mut self,
        file: &TextFile,
        windows: &mut Windows,
        enough: Option<usize>,
    ) -> Result<TextRead> {
        let before = windows.counts();
        let (vocab, room) = (self.options.vocab, self.room);
        let stream = Stream { file, encoder: self.encoder, vocab, enough, room };
        let end = stream.read(windows)?;
        if windows.tokens == before.tokens {
            return Err(nothing_to_predict(windows, &before));
        }
        let how = if end < file.len() { ReadExtent::Beginning(end) } else { ReadExtent::Whole };
        Ok(TextRead::of(file, windows, &before, how, self.encoder.take_dates()))
    }
}

/// The facts about a file that wasn't read, since the files before it had enough.
fn unread(file: &TextFile) -> TextRead {
    let none = Windows::default();
    TextRead::of(file, &none, &none, ReadExtent::Beginning(0), Dates::new())
}

/// Draws sequences of these lengths, until they have `limit` tokens or slightly more.
fn chosen(lengths: &[u32], limit: usize, random: &mut impl RngCore) -> BTreeSet<usize> {
    let order = sampling::choose(lengths.len(), lengths.len(), random);
    let mut kept = BTreeSet::new();
    let mut tokens = 0;
    for index in order {
        if tokens >= limit {
            break;
        }
        tokens += lengths[index] as usize;
        kept.insert(index);
    }
    kept
}

/// Draws sequences until they have `limit` tokens or slightly more, and keeps these in order.
pub(super) fn draw(sequences: &mut Vec<Vec<u32>>, limit: usize, random: &mut impl RngCore) {
    let lengths: Vec<u32> = sequences.iter().map(|sequence| sequence.len() as u32).collect();
    let kept = chosen(&lengths, limit, random);
    let mut index = 0..;
    sequences.retain(|_| index.next().is_some_and(|index| kept.contains(&index)));
}

/// Keeps the first `limit` tokens, but at least two. The last sequence may be cut short.
pub(super) fn truncate(sequences: &mut Vec<Vec<u32>>, limit: usize) {
    let mut left = limit.max(2);
    sequences.retain_mut(|sequence| {
        sequence.truncate(left);
        left -= sequence.len();
        sequence.len() >= 2
    });
}

/// A label up to this size is read whole, so that its windows are drawn from all of it.
const WHOLE_BYTES: u64 = 4 << 20;
/// A label with at most this many bytes for each wanted token is read whole, too.
const WHOLE_BYTES_PER_TOKEN: u64 = 16;

fn is_large(bytes: u64, wanted_tokens: usize) -> bool {
    bytes > WHOLE_BYTES.max(WHOLE_BYTES_PER_TOKEN.saturating_mul(wanted_tokens as u64))
}

/// The error that nothing to predict was found since the counts were those of `before`.
fn nothing_to_predict(found: &Windows, before: &Windows) -> Error {
    let (alone, padding) = (found.alone - before.alone, found.padding - before.padding);
    let (what, remedy) = match (alone, padding) {
        (0, 1..) => {
            ("every token of this data is padding", "give sequences with tokens that aren't masked")
        }
        _ => (
            "this data has no two tokens in a row: nothing to predict",
            "give text with at least a sentence",
        ),
    };
    Error::new(Kind::Usage, what).remedy(remedy)
}
