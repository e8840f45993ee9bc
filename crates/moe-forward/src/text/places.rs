//! Samples a large text at random places, so that the time depends on the size of the sample and
//! not on that of the text.
//!
//! The label's files are divided into cells of eight bytes for each token of a window, and cells
//! are drawn without replacement until they have given enough tokens. A cell gives the documents
//! that begin in it. Of a document longer than a cell, it gives the first window of the part in the
//! cell. So each document has the same chance, and so does each part of a long one.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use moe_checkpoint::{Hasher, Result};
use moe_math::sampling::Shuffled;
use rand_core::RngCore;

use super::documents::{CellUnit, LongLines};
use super::encoder::Encoder;
use super::escaped::Passage;
use super::pieces::drop_special_end;
use super::reader::TextReader;
use super::record::parse;
use super::refused::{RecordLine, malformed};
use super::source::TextFile;
use super::stream::tokenize_record;
use crate::batch::check_ids;
use crate::chat::Dates;

/// Bytes of a cell for each token of a window. Nearly every token is shorter, so a cell holds at
/// least a window.
const CELL_BYTES_PER_TOKEN: u64 = 8;
const MIN_CELL_BYTES: u64 = 1 << 10;
/// Number of bytes before a passage that are tokenized with it, since its first tokens depend on
/// them.
const CONTEXT_BYTES: u64 = 256;

/// A request for a sample.
pub(crate) struct Places<'a, 'e> {
    /// The label's files.
    pub files: &'a [&'a TextFile],
    /// The encoder that makes the tokens.
    pub encoder: &'a mut Encoder<'e>,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Number of tokens in a window.
    pub length: usize,
    /// Number of tokens to draw.
    pub tokens: usize,
}

/// The sample that was drawn from one file.
pub(crate) struct Drawn {
    /// Documents, and parts of long ones, in the order of the file.
    pub documents: Vec<Vec<u32>>,
    /// Number of tokens that are masked or padding.
    pub padding: usize,
    /// Number of cells that were read, and number of all cells.
    pub cells: [u64; 2],
    /// SHA-256 of all bytes that the sample depends on.
    pub digest: String,
    /// The dates that a chat template wrote into it, by format.
    pub dates: Dates,
}

impl Places<'_, '_> {
    /// Draws cells with `random`, and returns the sample of each file.
    ///
    /// # Errors
    /// As for [`super::Stream::read`].
    pub fn draw(self, random: &mut impl RngCore) -> Result<Vec<Drawn>> {
        let Self { files, encoder, vocab, length, tokens } = self;
        let cell = (CELL_BYTES_PER_TOKEN * length.min(tokens) as u64).max(MIN_CELL_BYTES);
        // With a fixed phase, text after the first window of a cell would never be sampled.
        let phase = random.next_u64() % cell;
        let mut sampled: Vec<FileSample<'_>> =
            files.iter().map(|file| FileSample::new(file, cell, phase)).collect();
        let all = sampled.iter().map(|file| file.cells).sum();
        let mut found = 0;
        for mut index in Shuffled::new(all, random) {
            if found >= tokens {
                break;
            }
            let place = sampled.iter().position(|file| {
                let is_here = index < file.cells;
                index -= if is_here { 0 } else { file.cells };
                is_here
            });
            let file = &mut sampled[place.expect("cells are those of all files")];
            found +=
                file.read(index, encoder, vocab, length).map_err(|e| e.file(file.file.path()))?;
        }
        Ok(sampled.into_iter().map(FileSample::drawn).collect())
    }
}

/// The state of a file while it is sampled.
struct FileSample<'a> {
    reader: TextReader<'a>,
    file: &'a TextFile,
    cell: u64,
    phase: u64,
    cells: u64,
    lines: LongLines,
    /// The documents found, by cell.
    found: BTreeMap<u64, Vec<Vec<u32>>>,
    padding: usize,
    dates: Dates,
}

impl<'a> FileSample<'a> {
    fn new(file: &'a TextFile, cell: u64, phase: u64) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(format!("{} bytes, cells of {cell} from {phase}", file.len()).as_bytes());
        Self {
            reader: TextReader::new(&file.bytes),
            file,
            cell,
            phase,
            cells: (file.len() + phase).div_ceil(cell),
            lines: LongLines::new(cell, hasher),
            found: BTreeMap::new(),
            padding: 0,
            dates: Dates::new(),
        }
    }

    fn drawn(self) -> Drawn {
        Drawn {
            cells: [self.found.len() as u64, self.cells],
            documents: self.found.into_values().flatten().collect(),
            padding: self.padding,
            digest: self.lines.hasher.finish(),
            dates: self.dates,
        }
    }

    /// Reads cell `index`, and returns the number of tokens that it gave.
    fn read(
        &mut self,
        index: u64,
        encoder: &mut Encoder<'_>,
        vocab: usize,
        length: usize,
    ) -> Result<usize> {
        let start = (index * self.cell).saturating_sub(self.phase);
        let end = ((index + 1) * self.cell - self.phase).min(self.file.len());
        self.hash(start..end)?;
        let mut documents = Vec::new();
        let Self { reader, lines, file, .. } = self;
        for unit in file.documents.in_cell(reader, start..end, lines)? {
            let ids = self.unit(unit, encoder, length)?;
            check_ids(&ids, vocab)?;
            documents.push(ids);
        }
        self.dates.extend(encoder.take_dates());
        let tokens = documents.iter().map(Vec::len).filter(|tokens| *tokens >= 2).sum();
        self.found.insert(index, documents);
        Ok(tokens)
    }

    /// Returns the tokens of a document, or of a part of one.
    fn unit(
        &mut self,
        unit: CellUnit,
        encoder: &mut Encoder<'_>,
        length: usize,
    ) -> Result<Vec<u32>> {
        match unit {
            CellUnit::Malformed(line, wrong) => Err(malformed(self.file, &place(line), &wrong)),
            CellUnit::Record(line) => self.record(line, encoder),
            CellUnit::Part { passage, part } => self.part(passage, part, encoder, length),
        }
    }

    fn record(&mut self, line: Range<u64>, encoder: &mut Encoder<'_>) -> Result<Vec<u32>> {
        self.hash(line.clone())?;
        let (file, at) = (self.file, place(line.clone()));
        let line = self.reader.bytes(line)?;
        if line.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        let record = parse(line).map_err(|what| malformed(file, &at, &what))?;
        let mut ids = Vec::new();
        let mut take = |found: &[u32]| {
            ids.extend_from_slice(found);
            Ok(ControlFlow::Continue(()))
        };
        let (_, padding) = tokenize_record(encoder, record, (file, &at), &mut take)?;
        self.padding += padding;
        Ok(ids)
    }

    /// Returns the first window of a part of a document.
    fn part(
        &mut self,
        passage: Passage,
        part: Range<u64>,
        encoder: &mut Encoder<'_>,
        length: usize,
    ) -> Result<Vec<u32>> {
        let is_first = part.start == passage.range.start;
        // The part may be smaller than a character.
        let start = passage.boundary(&mut self.reader, part.start)?.min(part.end);
        let before = part.start.saturating_sub(CONTEXT_BYTES).max(passage.range.start);
        let before = passage.boundary(&mut self.reader, before)?.min(start);
        self.hash(before..part.end)?;
        let mut text = self.text(&passage, before..start)?;
        let context = text.len();
        text.push_str(&self.text(&passage, start..part.end)?);
        // At the beginning of a document, the tokenizer's tokens that precede a text are kept.
        let mut tokens = encoder.placed(&text, is_first)?;
        if part.end < passage.range.end {
            drop_special_end(&mut tokens);
        }
        let own = tokens.iter().filter(|token| token.is_special || token.start >= context);
        Ok(own.map(|token| token.id).take(length).collect())
    }

    /// Returns the characters that begin in `range`.
    fn text(&mut self, passage: &Passage, range: Range<u64>) -> Result<String> {
        Ok(passage.decoded(&mut self.reader, range)?.0)
    }

    fn hash(&mut self, range: Range<u64>) -> Result<()> {
        let bytes = self.reader.bytes(range.clone())?;
        self.lines.hasher.update(format!("{range:?}").as_bytes());
        self.lines.hasher.update(bytes);
        Ok(())
    }
}

fn place(line: Range<u64>) -> RecordLine {
    RecordLine { line, number: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};

    use moe_math::sampling;

    use super::*;
    use crate::chat::Clock;

    const LENGTH: usize = 64;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
    }

    fn english() -> String {
        std::fs::read_to_string(golden("text/english.calibration.txt")).unwrap()
    }

    fn sample(path: &Path, tokens: usize, seed: u64) -> (Drawn, BTreeSet<Vec<u32>>) {
        let model = golden("models/moe");
        let file = TextFile::open(path).unwrap();
        let mut encoder = Encoder::new(&model, 1 << 20, Clock::default());
        let places = Places {
            files: &[&file],
            encoder: &mut encoder,
            vocab: 1 << 20,
            length: LENGTH,
            tokens,
        };
        let drawn = places.draw(&mut sampling::generator(seed, 0)).unwrap().remove(0);
        let documents = drawn.documents.iter().cloned().collect();
        (drawn, documents)
    }

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    /// Samples of one long document are windows of its tokens, wherever they begin, with or without
    /// JSON around it.
    #[test]
    fn parts_of_a_long_text_have_the_tokens_of_the_whole_text() {
        let text = english();
        let whole = Encoder::new(&golden("models/moe"), 1 << 20, Clock::default())
            .encode(&text, true)
            .unwrap();
        let ascii: String = text.chars().fold(String::new(), |mut ascii, character| {
            match character {
                'e' => ascii.push_str("\\u0065"),
                '"' => ascii.push_str("\\\""),
                '\n' => ascii.push_str("\\n"),
                other => ascii.push(other),
            }
            ascii
        });
        let record =
            format!("{{\"id\": [1, {{\"a\": \"}}\"}}], \"text\": \"{ascii}\", \"more\": NaN}}\n");
        for text in [text.clone(), record.clone(), format!("{record}{record}")] {
            let (_dir, path) = written(&text);
            let (drawn, documents) = sample(&path, 2000, 1);
            assert!(drawn.cells[0] >= 2000 / LENGTH as u64 && drawn.cells[0] < drawn.cells[1]);
            for document in documents {
                assert!(document.len() <= LENGTH);
                // The last token of the text may be cut.
                let inner = &document[..document.len().saturating_sub(1)];
                assert!(
                    whole.windows(inner.len().max(1)).any(|window| window == inner),
                    "{document:?}"
                );
            }
        }
    }

    #[test]
    fn the_seed_decides_which_places_are_drawn() {
        let (_dir, path) = written(&english());
        let draw = |seed| sample(&path, 1000, seed);
        assert_eq!(draw(1).1, draw(1).1);
        assert_eq!(draw(1).0.digest, draw(1).0.digest);
        assert!(draw(1).1.is_disjoint(&draw(2).1));
        assert_ne!(draw(1).0.digest, draw(2).0.digest);
    }

    #[test]
    fn short_records_are_drawn_whole_and_all_if_all_are_wanted() {
        let mut lines = String::new();
        for (number, verse) in english().lines().enumerate() {
            let verse: String = verse.chars().take(90).collect();
            writeln!(lines, "{}", serde_json::json!({ "text": format!("{number} {verse}") }))
                .unwrap();
            lines.push_str(if number % 3 == 0 { "\n  \n" } else { "" });
        }
        let (_dir, path) = written(&lines);
        let model = golden("models/moe");
        let mut encoder = Encoder::new(&model, 1 << 20, Clock::default());
        let all: BTreeSet<Vec<u32>> = lines
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                encoder.encode(record["text"].as_str().unwrap(), true).unwrap()
            })
            .collect();
        let (some, documents) = sample(&path, 3000, 5);
        let documents: BTreeSet<_> = documents.into_iter().filter(|ids| !ids.is_empty()).collect();
        assert!(documents.is_subset(&all) && documents.len() > 10, "{:?}", some.cells);
        let (every, documents) = sample(&path, usize::MAX, 5);
        let documents: BTreeSet<_> = documents.into_iter().filter(|ids| !ids.is_empty()).collect();
        assert_eq!(every.cells[0], every.cells[1]);
        assert_eq!(documents, all);
    }

    #[test]
    fn only_what_a_sample_depends_on_changes_its_hash() {
        let text = english();
        let (_dir, path) = written(&text);
        let (before, documents) = sample(&path, 500, 3);
        let mut changed = [0; 2];
        for at in (0..text.len()).step_by(911) {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'q' { b'z' } else { b'q' };
            std::fs::write(&path, other).unwrap();
            let (after, others) = sample(&path, 500, 3);
            // Same hash, same documents.
            assert!(after.digest != before.digest || others == documents);
            changed[usize::from(after.digest != before.digest)] += 1;
        }
        assert!(changed[0] > 10 && changed[1] > 1, "{changed:?}");
    }
}
