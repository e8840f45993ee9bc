//! Text for evaluation and calibration: files with a label and a weight, tokenised into windows.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use moe_checkpoint::{Error, Kind, Result};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::batch::{Batch, check_ids};
use crate::chat::ChatTemplate;

/// A data file as the user names it: `path`, `label=path` or `label=path@weight`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DataSpec {
    /// The domain; the file's name without extension unless given.
    pub label: String,
    /// Text, or JSONL if the name ends in `.jsonl`.
    pub path: PathBuf,
    /// Its share in pooled figures, if given.
    pub weight: Option<f64>,
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (label, rest) = match text.split_once('=') {
            Some((label, rest)) if !label.is_empty() && !label.contains('/') => (Some(label), rest),
            _ => (None, text),
        };
        let (path, weight) = match rest.rsplit_once('@').map(|(path, weight)| (path, weight.parse::<f64>())) {
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
#[derive(Debug, Clone, Copy)]
pub struct TokenizeOptions {
    /// Documents are cut into windows of this many tokens; each is a sequence of its own.
    pub sequence_length: usize,
    /// Size of the vocabulary, which no token id may reach.
    pub vocab: usize,
    /// At most this many tokens are kept of each domain.
    pub max_tokens: Option<usize>,
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
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The domains.
    pub domains: Vec<Domain>,
}

impl Corpus {
    /// Reads and tokenises `specs` with the tokenizer of the checkpoint in `model_dir`.
    ///
    /// # Errors
    /// [`Kind::Missing`] without a tokenizer or a file, [`Kind::Malformed`] for lines that are no JSON of a
    /// known form, [`Kind::Usage`] where nothing is left to predict.
    pub fn load(specs: &[DataSpec], model_dir: &Path, options: TokenizeOptions) -> Result<Self> {
        if options.sequence_length < 2 {
            return Err(Error::new(Kind::Usage, "a sequence length below 2 leaves nothing to predict")
                .remedy("raise --sequence-length"));
        }
        if let Some(spec) = specs.iter().find(|s| !s.path.exists() || s.path.is_dir()) {
            let what = if spec.path.is_dir() { "a directory is no data file" } else { "no such data file" };
            return Err(Error::new(Kind::Missing, what).file(&spec.path).remedy("check --data"));
        }
        let mut source = Documents { model_dir, tokenizer: None, template: None };
        let mut domains: Vec<Domain> = Vec::new();
        for spec in specs {
            let mut windows = Vec::new();
            source
                .for_each(&spec.path, &mut |ids| {
                    check_ids(&ids, options.vocab)?;
                    windows.extend(ids.chunks(options.sequence_length).filter(|w| w.len() >= 2).map(<[u32]>::to_vec));
                    Ok(())
                })
                .map_err(|e| e.file(&spec.path))?;
            if windows.is_empty() {
                return Err(Error::new(Kind::Usage, "this data has no two tokens in a row: nothing to predict")
                    .file(&spec.path)
                    .remedy("give text with at least a sentence"));
            }
            match domains.iter_mut().find(|d| d.label == spec.label) {
                Some(domain) => domain.sequences.extend(windows),
                None => domains.push(Domain { label: spec.label.clone(), weight: spec.weight, sequences: windows }),
            }
        }
        if let Some(limit) = options.max_tokens {
            domains.iter_mut().for_each(|d| truncate(&mut d.sequences, limit));
        }
        Ok(Self { domains })
    }

    /// All sequences, end to end.
    pub fn batch(&self) -> Batch {
        Batch::new(self.domains.iter().flat_map(|d| &d.sequences).map(Vec::as_slice))
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.domains.iter().flat_map(|d| &d.sequences).map(Vec::len).sum()
    }
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

/// Reads documents as token ids; the tokenizer and the chat template are loaded when first needed.
struct Documents<'a> {
    model_dir: &'a Path,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<serde_json::Value>,
    input_ids: Option<Vec<u32>>,
}

impl Documents<'_> {
    fn for_each(&mut self, path: &Path, take: &mut dyn FnMut(Vec<u32>) -> Result<()>) -> Result<()> {
        let fail = |e| Error::io("cannot read this data file", path, e);
        if path.extension().is_none_or(|e| e != "jsonl") {
            let text = std::fs::read_to_string(path).map_err(fail)?;
            return take(self.encode(&text, true)?);
        }
        let lines = BufReader::new(std::fs::File::open(path).map_err(fail)?).lines();
        for (number, line) in lines.enumerate() {
            let line = line.map_err(fail)?;
            if line.trim().is_empty() {
                continue;
            }
            let malformed = |what: String| {
                Error::new(Kind::Malformed, format!("line {}: {what}", number + 1))
                    .file(path)
                    .remedy("each line is an object with \"text\", \"messages\" or \"input_ids\"")
            };
            let parsed: Line = serde_json::from_str(&line).map_err(|e| malformed(e.to_string()))?;
            take(match parsed {
                Line { input_ids: Some(ids), .. } => ids,
                Line { text: Some(text), .. } => self.encode(&text, true)?,
                Line { messages: Some(messages), .. } => {
                    let text = self.render(&messages).map_err(|e| e.file(path))?;
                    // The template writes the special tokens itself.
                    self.encode(&text, false)?
                }
                _ => return Err(malformed("none of the known keys".into())),
            })?;
        }
        Ok(())
    }

    fn encode(&mut self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(load_tokenizer(self.model_dir)?);
        }
        let tokenizer = self.tokenizer.as_ref().expect("it was just loaded");
        let encoding = tokenizer.encode_fast(text, special_tokens);
        Ok(encoding.map_err(|e| Error::new(Kind::Malformed, "the tokenizer failed").source(e))?.get_ids().to_vec())
    }

    fn render(&mut self, messages: &serde_json::Value) -> Result<String> {
        if self.template.is_none() {
            self.template = Some(ChatTemplate::load(self.model_dir)?);
        }
        self.template.as_ref().expect("it was just loaded").render(messages)
    }
}

pub(crate) fn load_tokenizer(model_dir: &Path) -> Result<Tokenizer> {
    let path = model_dir.join("tokenizer.json");
    if !path.is_file() {
        return Err(Error::new(Kind::Missing, "this checkpoint has no tokenizer.json, which text needs")
            .file(model_dir)
            .remedy("add tokenizer.json, or give token ids: JSONL lines with \"input_ids\""));
    }
    Tokenizer::from_file(&path).map_err(|e| {
        Error::new(Kind::Malformed, "cannot understand this tokenizer")
            .source(e)
            .file(&path)
            .remedy("download tokenizer.json again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, String, Option<f64>) {
        let spec: DataSpec = text.parse().unwrap();
        (spec.label, spec.path.to_string_lossy().into_owned(), spec.weight)
    }

    #[test]
    fn data_arguments() {
        assert_eq!(spec("a/b.txt"), ("b".into(), "a/b.txt".into(), None));
        assert_eq!(spec("code=x.jsonl@0.2"), ("code".into(), "x.jsonl".into(), Some(0.2)));
        assert_eq!(spec("a/k=v.txt"), ("k=v".into(), "a/k=v.txt".into(), None));
        assert_eq!(spec("x@home.txt"), ("x@home".into(), "x@home.txt".into(), None));
        for bad in ["", "code=", "a@0", "a@-1", "a@nan"] {
            assert!(bad.parse::<DataSpec>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn truncation_keeps_order_and_pairs() {
        let mut sequences = vec![vec![1, 2, 3], vec![4, 5, 6], vec![7, 8]];
        truncate(&mut sequences, 5);
        assert_eq!(sequences, [vec![1, 2, 3], vec![4, 5]]);
        truncate(&mut sequences, 4);
        assert_eq!(sequences, [vec![1, 2, 3]]);
    }
}
