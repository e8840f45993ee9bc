//! Text for evaluation and calibration: files with a label and a weight, tokenised into windows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use moe_checkpoint::{Error, Kind, Result, counted};
use moe_math::sampling;
use serde::Deserialize;

use crate::batch::Batch;
use crate::chat::{Clock, Dates};
use crate::text::{Encoder, LabelRoom, Places, Room, Stream, TextFile, Windows};
use crate::text_read::{How, TextRead};

/// A data file as the user names it: `path`, `label=path` or `label=path@weight`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DataSpec {
    /// The domain; the file's name without extension unless given.
    pub label: String,
    /// Text, or records of JSON: its content says which.
    pub path: PathBuf,
    /// Its share in pooled figures, if given.
    pub weight: Option<f64>,
}

impl DataSpec {
    /// The files of `specs`.
    pub fn files(specs: &[Self]) -> impl Iterator<Item = &Path> {
        specs.iter().map(|spec| spec.path.as_path())
    }
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (label, rest) = match text.split_once('=') {
            Some((label, rest)) if !label.is_empty() && !label.contains('/') => (Some(label), rest),
            _ => (None, text),
        };
        let percent = rest
            .rsplit_once('@')
            .and_then(|(path, weight)| Some((path, weight.strip_suffix('%')?)));
        if let Some((path, Ok(percent))) =
            percent.map(|(path, number)| (path, number.trim().parse::<f64>()))
        {
            let what = format!("cannot understand --data {text:?}: its weight is in per cent");
            let label = label.map_or(String::new(), |label| format!("{label}="));
            return Err(Error::new(Kind::Usage, what)
                .remedy(format!("write {label}{path}@{}", percent / 100.0)));
        }
        let (path, weight) =
            match rest.rsplit_once('@').map(|(path, weight)| (path, weight.parse::<f64>())) {
                Some((path, Ok(weight))) => (path, Some(weight)),
                _ => (rest, None),
            };
        if path.is_empty() || weight.is_some_and(|w| !(w > 0.0 && w.is_finite())) {
            return Err(Error::new(Kind::Usage, format!("cannot understand --data {text:?}"))
                .remedy("give path, label=path or label=path@weight with a positive weight"));
        }
        let path = PathBuf::from(path);
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { label: label.map_or_else(stem, str::to_owned), path, weight })
    }
}

impl<'de> Deserialize<'de> for DataSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How text becomes sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizeOptions {
    /// Documents are cut into windows of this many tokens; each is a sequence of its own.
    pub sequence_length: usize,
    /// Size of the vocabulary, which no token id may reach.
    pub vocab: usize,
    /// At most this many tokens are kept of each domain.
    pub max_tokens: Option<usize>,
    /// Windows run across the documents of a domain, so that short ones fill them.
    pub pack: bool,
    /// Which windows are kept: drawn at random with this seed; the first ones without.
    pub sample: Option<u64>,
    /// As many bytes a chat template may hold, at most.
    pub memory_bytes: Option<u64>,
    /// What all tokens may take, if anything bounds them.
    pub room: Option<Room>,
    /// The present, for chat templates that write the date.
    pub clock: Clock,
}

/// The sequences of one label.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its name.
    pub label: String,
    /// Its share in pooled figures, if given.
    pub weight: Option<f64>,
    /// Token ids, at least two in each.
    pub sequences: Vec<Vec<u32>>,
}

/// Tokenised data, a domain for each label in order of first appearance.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// The domains.
    pub domains: Vec<Domain>,
    /// What was read of each file, in the order in which they are given.
    pub texts: Vec<TextRead>,
}

impl Corpus {
    /// Reads and tokenises `specs` with the tokenizer of the checkpoint in `model_dir`.
    ///
    /// Files are read from their beginning, up to [`TokenizeOptions::max_tokens`] where windows
    /// aren't drawn. Where they are drawn, a label of more than 4 MiB, and of more than 16 bytes
    /// for each token that is wanted, is read at places that the seed draws; of others all windows
    /// are made, and then drawn. Where there is no room for all of them, they are made twice: first
    /// to know how long each is, then to hold those that were drawn.
    ///
    /// # Errors
    /// [`Kind::Missing`] without a tokenizer or a file, [`Kind::Unsupported`] for a file of another
    /// format, [`Kind::Malformed`] for lines that are no record of a known form, [`Kind::Usage`]
    /// where nothing is left to predict.
    pub fn load(specs: &[DataSpec], model_dir: &Path, options: TokenizeOptions) -> Result<Self> {
        if options.sequence_length < 2 {
            return Err(Error::new(
                Kind::Usage,
                "a sequence length below 2 leaves nothing to predict",
            )
            .remedy("raise --sequence-length"));
        }
        let files = specs.iter().map(open).collect::<Result<Vec<_>>>()?;
        check_weights(specs)?;
        let mut encoder =
            Encoder::new(model_dir, options.vocab, options.clock).within(options.memory_bytes);
        let labels = specs
            .iter()
            .enumerate()
            .filter(|(at, spec)| specs[..*at].iter().all(|s| s.label != spec.label))
            .count();
        let room = options
            .room
            .map(|room| room.shared(labels, options.max_tokens, options.sample.is_some()));
        let mut texts: Vec<Option<TextRead>> = specs.iter().map(|_| None).collect();
        let mut domains: Vec<Domain> = Vec::new();
        for (first, DataSpec { label, weight, .. }) in specs.iter().enumerate() {
            if domains.iter().any(|domain| domain.label == *label) {
                continue;
            }
            let own: Vec<usize> =
                (first..specs.len()).filter(|at| specs[*at].label == *label).collect();
            let own_files: Vec<&TextFile> = own.iter().map(|at| &files[*at]).collect();
            let stream = domains.len() as u64;
            let mut random = options.sample.map(|seed| sampling::generator(seed, stream));
            let limit = options.max_tokens.map(|limit| limit.max(2));
            let bytes = own_files.iter().map(|file| file.len()).sum();
            let room = room.map(|room| {
                domains.iter().fold(room, |room, domain| room.without(&domain.sequences))
            });
            let (mut sequences, read) = match (random.as_mut(), limit) {
                (Some(random), Some(limit)) if is_large(bytes, limit) => {
                    room.map_or(Ok(()), |room| room.check_sample())?;
                    let (mut sequences, read) =
                        drawn(&own_files, &mut encoder, options, limit, random)?;
                    draw(&mut sequences, limit, random);
                    (sequences, read)
                }
                (Some(random), Some(limit)) => {
                    all_drawn(&own_files, &mut encoder, options, room, limit, random)?
                }
                (Some(_), None) => from_beginning(&own_files, &mut encoder, options, None, room)?,
                (None, limit) => from_beginning(&own_files, &mut encoder, options, limit, room)?,
            };
            if let Some(limit) = limit {
                truncate(&mut sequences, limit);
            }
            let made: usize = read.iter().map(|read| read.tokens).sum();
            let kept: usize = sequences.iter().map(Vec::len).sum();
            for (at, mut read) in own.iter().zip(read) {
                read.has_more |= kept < made;
                texts[*at] = Some(read);
            }
            domains.push(Domain { label: label.clone(), weight: *weight, sequences });
        }
        Ok(Self { domains, texts: texts.into_iter().flatten().collect() })
    }

    /// What was read, and why not all of it is here, in words: for those who say that it is too
    /// little.
    pub fn account(&self) -> String {
        let sum = |count: fn(&TextRead) -> usize| self.texts.iter().map(count).sum::<usize>();
        let read = sum(|text| text.tokens);
        let beyond = read.saturating_sub(self.tokens());
        let parts = [
            (beyond, "beyond the number of tokens that was asked for"),
            (
                sum(|text| text.alone),
                "alone at the end of a document or window, where there is nothing to predict",
            ),
            (sum(|text| text.padding), "masked or padding"),
        ];
        let dropped: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{count} {why}"))
            .collect();
        let read = format!(
            "{} of {} were read",
            counted((read + sum(|t| t.alone) + sum(|t| t.padding)) as u64, "token"),
            counted(sum(|t| t.documents) as u64, "document")
        );
        if dropped.is_empty() {
            format!("{read}, and all were kept")
        } else {
            format!("{read}, of which these were left out: {}", dropped.join(", "))
        }
    }

    /// The sequences of all domains in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.domains.iter().flat_map(|d| &d.sequences).map(Vec::as_slice)
    }

    /// All sequences, end to end.
    pub fn batch(&self) -> Batch {
        Batch::new(self.sequences())
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.domains.iter().flat_map(|d| &d.sequences).map(Vec::len).sum()
    }
}

/// Sequences of these lengths, drawn at random, that make up `limit` tokens or just more.
fn chosen(lengths: &[u32], limit: usize, random: &mut impl rand_core::RngCore) -> BTreeSet<usize> {
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

/// Keeps sequences drawn at random, in their order, that make up `limit` tokens or just more.
fn draw(sequences: &mut Vec<Vec<u32>>, limit: usize, random: &mut impl rand_core::RngCore) {
    let lengths: Vec<u32> = sequences.iter().map(|sequence| sequence.len() as u32).collect();
    let kept = chosen(&lengths, limit, random);
    let mut index = 0..;
    sequences.retain(|_| index.next().is_some_and(|index| kept.contains(&index)));
}

/// Keeps whole sequences, and one cut short, up to `limit` tokens; never fewer than two.
fn truncate(sequences: &mut Vec<Vec<u32>>, limit: usize) {
    let mut left = limit.max(2);
    sequences.retain_mut(|sequence| {
        sequence.truncate(left);
        left -= sequence.len();
        sequence.len() >= 2
    });
}

/// A label that isn't larger is read whole, so that its windows are drawn from all that there are.
pub const WHOLE_BYTES: u64 = 4 << 20;
/// Nor is one that is so small for what is wanted of it.
pub const WHOLE_BYTES_PER_TOKEN: u64 = 16;

fn is_large(bytes: u64, wanted_tokens: usize) -> bool {
    bytes > WHOLE_BYTES.max(WHOLE_BYTES_PER_TOKEN.saturating_mul(wanted_tokens as u64))
}

fn open(spec: &DataSpec) -> Result<TextFile> {
    TextFile::open(&spec.path).map_err(|error| {
        let name = format!("{}={}", spec.label, spec.path.display());
        // Only what stands before "=" made it another file.
        if error.kind() == Kind::Missing && Path::new(&name).exists() {
            let what = format!("no such data file; {:?} was taken for its label", spec.label);
            return Error::new(Kind::Missing, what)
                .file(&spec.path)
                .remedy(format!("to mean the file {name}, give ./{name}"));
        }
        error
    })
}

fn check_weights(specs: &[DataSpec]) -> Result<()> {
    let with = specs.iter().find(|spec| spec.weight.is_some());
    let without = specs.iter().find(|spec| spec.weight.is_none());
    let (Some(with), Some(without)) = (with, without) else { return Ok(()) };
    let what = format!("{:?} has a weight, {:?} has none", with.label, without.label);
    Err(Error::new(Kind::Usage, what)
        .file(&without.path)
        .remedy("give every file of --data @WEIGHT, or none"))
}

/// All windows of a label's files, or the first ones that make up `enough` tokens; and what was
/// read.
fn from_beginning(
    files: &[&TextFile],
    encoder: &mut Encoder<'_>,
    options: TokenizeOptions,
    enough: Option<usize>,
    room: Option<LabelRoom>,
) -> Result<(Vec<Vec<u32>>, Vec<TextRead>)> {
    let mut windows = Windows::new(options.sequence_length, options.pack);
    let texts = fill(&mut windows, files, encoder, options, enough, room)?;
    Ok((windows.done, texts))
}

/// Windows of a label's files that `random` draws from all of them, of `limit` tokens or just more;
/// and what was read. What is drawn doesn't depend on the room that there is.
fn all_drawn(
    files: &[&TextFile],
    encoder: &mut Encoder<'_>,
    options: TokenizeOptions,
    room: Option<LabelRoom>,
    limit: usize,
    random: &mut impl rand_core::RngCore,
) -> Result<(Vec<Vec<u32>>, Vec<TextRead>)> {
    let mut windows = Windows::new(options.sequence_length, options.pack);
    let texts = fill(&mut windows, files, encoder, options, None, room)?;
    let Some(lengths) = windows.lengths() else {
        let mut sequences = windows.done;
        draw(&mut sequences, limit, random);
        return Ok((sequences, texts));
    };
    let numbers = chosen(lengths, limit, random);
    let mut held = Windows::chosen(options.sequence_length, options.pack, numbers);
    fill(&mut held, files, encoder, options, None, room.map(LabelRoom::firm))?;
    Ok((held.done, texts))
}

/// Puts a label's files into `windows`, as far as these should have `enough` tokens; what was read.
fn fill(
    windows: &mut Windows,
    files: &[&TextFile],
    encoder: &mut Encoder<'_>,
    options: TokenizeOptions,
    enough: Option<usize>,
    room: Option<LabelRoom>,
) -> Result<Vec<TextRead>> {
    let mut texts = Vec::new();
    for file in files {
        if enough.is_some_and(|enough| windows.tokens >= enough) {
            texts.push(TextRead::of(
                file,
                &Windows::default(),
                &Windows::default(),
                How::Beginning(0),
                Dates::new(),
            ));
            continue;
        }
        let before = windows.counts();
        let stream = Stream { file, encoder, vocab: options.vocab, enough, room };
        let end = stream.read(windows).map_err(|e| e.file(file.path()))?;
        if windows.tokens == before.tokens {
            return Err(nothing_to_predict(windows, &before).file(file.path()));
        }
        let how = if end < file.len() { How::Beginning(end) } else { How::Whole };
        texts.push(TextRead::of(file, windows, &before, how, encoder.take_dates()));
    }
    Ok(texts)
}

/// Windows at places of a label's files that `random` draws; and what was read.
fn drawn(
    files: &[&TextFile],
    encoder: &mut Encoder<'_>,
    options: TokenizeOptions,
    tokens: usize,
    random: &mut impl rand_core::RngCore,
) -> Result<(Vec<Vec<u32>>, Vec<TextRead>)> {
    let TokenizeOptions { sequence_length: length, vocab, pack, .. } = options;
    let drawn = Places { files, encoder, vocab, length, tokens }.draw(random)?;
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
        let how = How::Places { cells: drawn.cells, digest: drawn.digest };
        texts.push(TextRead::of(file, &windows, &before, how, drawn.dates));
    }
    if windows.done.is_empty() {
        return Err(nothing_to_predict(&windows, &Windows::default()).file(files[0].path()));
    }
    Ok((windows.done, texts))
}

/// Nothing was found since there was what `before` counted.
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

#[cfg(test)]
mod tests;
