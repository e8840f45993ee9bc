//! Text for evaluation and calibration: files with a label and a weight, tokenised into windows.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use moe_checkpoint::{CONFIG_FILE, Error, Kind, Result, json};
use moe_math::sampling;
use serde::Deserialize;

use crate::batch::{Batch, check_ids};
use crate::chat::ChatTemplate;
use crate::tokenizer::TextTokenizer;

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
        if let Some(spec) = specs.iter().find(|s| !s.path.is_file()) {
            let what = match spec.path.metadata() {
                Ok(found) if found.is_dir() => "a directory is no data file",
                // It is read several times: for its tokens, and for its hash in the receipt.
                Ok(_) => "a pipe or device is no data file",
                Err(_) => "no such data file",
            };
            return Err(Error::new(Kind::Missing, what).file(&spec.path).remedy("check --data"));
        }
        if let Some(spec) = specs.iter().find(|s| s.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))) {
            return Err(Error::new(Kind::Usage, "a .json file is no text")
                .file(&spec.path)
                .remedy("name it .jsonl where each line is a document; jq -c '.[]' makes such lines of an array"));
        }
        if let (Some(with), Some(without)) =
            (specs.iter().find(|s| s.weight.is_some()), specs.iter().find(|s| s.weight.is_none()))
        {
            let what = format!("{:?} has a weight, {:?} has none", with.label, without.label);
            return Err(Error::new(Kind::Usage, what)
                .file(&without.path)
                .remedy("give every file of --data @WEIGHT, or none"));
        }
        let mut source = Documents { model_dir, vocab: options.vocab, tokenizer: None, template: None, padding: None };
        let mut domains: Vec<Domain> = Vec::new();
        for spec in specs {
            let mut documents = Vec::new();
            let mut tokens = 0;
            source
                .for_each(&spec.path, &mut |ids, given| {
                    check_ids(&ids, options.vocab)?;
                    tokens += given;
                    documents.push(ids);
                    Ok(())
                })
                .map_err(|e| e.file(&spec.path))?;
            if options.pack {
                documents = vec![documents.concat()];
            }
            let windows = documents.iter().flat_map(|ids| ids.chunks(options.sequence_length));
            let windows: Vec<Vec<u32>> = windows.filter(|w| w.len() >= 2).map(<[u32]>::to_vec).collect();
            if windows.is_empty() {
                let (what, remedy) = match tokens > 0 && documents.iter().all(Vec::is_empty) {
                    true => ("every token of this data is padding", "give sequences with tokens that aren't masked"),
                    false => (
                        "this data has no two tokens in a row: nothing to predict",
                        "give text with at least a sentence",
                    ),
                };
                return Err(Error::new(Kind::Usage, what).file(&spec.path).remedy(remedy));
            }
            match domains.iter_mut().find(|d| d.label == spec.label) {
                Some(domain) => domain.sequences.extend(windows),
                None => domains.push(Domain { label: spec.label.clone(), weight: spec.weight, sequences: windows }),
            }
        }
        if let Some(limit) = options.max_tokens {
            for (index, domain) in domains.iter_mut().enumerate() {
                if let Some(seed) = options.sample {
                    draw(&mut domain.sequences, limit, &mut sampling::generator(seed, index as u64));
                }
                truncate(&mut domain.sequences, limit);
            }
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

/// Keeps sequences drawn at random, in their order, that make up `limit` tokens or just more.
fn draw(sequences: &mut Vec<Vec<u32>>, limit: usize, random: &mut impl rand_core::RngCore) {
    let order = sampling::choose(sequences.len(), sequences.len(), random);
    let mut kept = BTreeSet::new();
    let mut tokens = 0;
    for index in order {
        if tokens >= limit {
            break;
        }
        tokens += sequences[index].len();
        kept.insert(index);
    }
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

/// Reads documents as token ids; the tokenizer and the chat template are loaded when first needed.
struct Documents<'a> {
    model_dir: &'a Path,
    vocab: usize,
    tokenizer: Option<TextTokenizer>,
    template: Option<ChatTemplate>,
    padding: Option<Padding>,
}

/// The token that fills up sequences, if there is one, and whether it also means something.
#[derive(Clone, Copy)]
struct Padding {
    id: Option<u32>,
    also_end: bool,
}

impl Padding {
    /// What the config of the checkpoint in `dir` says.
    fn read(dir: &Path) -> Result<Self> {
        let config: serde_json::Value = json::read_tree(&dir.join(CONFIG_FILE))?;
        let ids = |key: &str| -> Vec<u32> {
            let one = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            match &config[key] {
                serde_json::Value::Array(ids) => ids.iter().filter_map(one).collect(),
                id => one(id).into_iter().collect(),
            }
        };
        let id = ids("pad_token_id").first().copied();
        let also_end = id.is_some_and(|id| ids("eos_token_id").contains(&id) || ids("bos_token_id").contains(&id));
        Ok(Self { id, also_end })
    }

    /// `ids` without padding at either end; of a token that means something too, one is left.
    fn removed(self, ids: &[u32]) -> Vec<u32> {
        let Some(pad) = self.id else { return ids.to_vec() };
        let is_pad = |id: &&u32| **id == pad;
        let (left, right) = (ids.iter().take_while(is_pad).count(), ids.iter().rev().take_while(is_pad).count());
        if left == ids.len() {
            return Vec::new();
        }
        let spared = usize::from(self.also_end);
        ids[left.saturating_sub(spared)..ids.len() - right.saturating_sub(spared)].to_vec()
    }
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<serde_json::Value>,
    tools: Option<serde_json::Value>,
    input_ids: Option<Vec<u32>>,
    attention_mask: Option<Vec<u32>>,
}

impl Documents<'_> {
    /// Gives `take` each document's token ids without padding, and how many there were with it.
    fn for_each(&mut self, path: &Path, take: &mut dyn FnMut(Vec<u32>, usize) -> Result<()>) -> Result<()> {
        let fail = |e| Error::io("cannot read this data file", path, e);
        if path.extension().is_none_or(|e| e != "jsonl") {
            let text = std::fs::read_to_string(path).map_err(fail)?;
            let ids = self.encode(&text, true)?;
            let given = ids.len();
            return take(ids, given);
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
            let (ids, given) = match parsed {
                Line { input_ids: Some(ids), attention_mask: Some(mask), .. } => {
                    if mask.len() != ids.len() {
                        let what = format!("{} token ids, but an attention_mask of {}", ids.len(), mask.len());
                        return Err(malformed(what));
                    }
                    let seen = ids.iter().zip(&mask).filter(|(_, mask)| **mask != 0);
                    (seen.map(|(id, _)| *id).collect(), ids.len())
                }
                Line { input_ids: Some(ids), .. } => (self.padding()?.removed(&ids), ids.len()),
                Line { text: Some(text), .. } => {
                    let ids = self.encode(&text, true)?;
                    let given = ids.len();
                    (ids, given)
                }
                Line { messages: Some(messages), tools, .. } => {
                    let text = self.render(&messages, tools.as_ref()).map_err(|e| e.file(path))?;
                    // The template writes the special tokens itself.
                    let ids = self.encode(&text, false)?;
                    let given = ids.len();
                    (ids, given)
                }
                _ => return Err(malformed("none of the known keys".into())),
            };
            take(ids, given)?;
        }
        Ok(())
    }

    fn padding(&mut self) -> Result<Padding> {
        match self.padding {
            Some(padding) => Ok(padding),
            None => Ok(*self.padding.insert(Padding::read(self.model_dir)?)),
        }
    }

    fn encode(&mut self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let vocab = self.vocab;
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode(text, special_tokens)?;
        tokenizer.check(&ids, vocab)?;
        Ok(ids)
    }

    fn tokenizer(&mut self) -> Result<&TextTokenizer> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(TextTokenizer::load(self.model_dir)?);
        }
        Ok(self.tokenizer.as_ref().expect("it was just loaded"))
    }

    fn render(&mut self, messages: &serde_json::Value, tools: Option<&serde_json::Value>) -> Result<String> {
        if self.template.is_none() {
            let named = self.tokenizer()?.named().to_vec();
            self.template = Some(ChatTemplate::load(self.model_dir, named)?);
        }
        self.template.as_ref().expect("it was just loaded").render(messages, tools)
    }
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
    fn what_would_be_misread_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |specs: &[&str]| {
            let file = |spec: &&str| -> DataSpec {
                let mut spec: DataSpec = spec.parse().unwrap();
                spec.path = dir.path().join(spec.path);
                std::fs::write(&spec.path, "words").unwrap();
                spec
            };
            let options = TokenizeOptions { sequence_length: 8, vocab: 9, max_tokens: None, pack: false, sample: None };
            Corpus::load(&specs.iter().map(file).collect::<Vec<_>>(), dir.path(), options).err().unwrap().to_string()
        };
        assert!(refused(&["a.txt", "b.JSON"]).contains("name it .jsonl"));
        assert!(refused(&["a=a.txt@0.9", "b=b.txt"]).contains("\"a\" has a weight, \"b\" has none"));
    }

    #[test]
    fn padding_is_dropped_at_both_ends() {
        let padding = |also_end| Padding { id: Some(0), also_end };
        assert_eq!(padding(false).removed(&[0, 0, 1, 0, 2, 0]), [1, 0, 2]);
        assert_eq!(padding(true).removed(&[0, 0, 1, 0, 2, 0]), [0, 1, 0, 2, 0]);
        assert_eq!(padding(true).removed(&[1, 2]), [1, 2]);
        assert_eq!(padding(true).removed(&[0, 0]), [0; 0]);
        assert_eq!(Padding { id: None, also_end: false }.removed(&[0, 1]), [0, 1]);
    }

    #[test]
    fn drawn_sequences_keep_their_order_and_reach_the_limit() {
        let all: Vec<Vec<u32>> = (0..50).map(|i| vec![i; 4]).collect();
        let drawn = |seed| {
            let mut sequences = all.clone();
            draw(&mut sequences, 30, &mut sampling::generator(seed, 0));
            sequences
        };
        assert_eq!(drawn(1).len(), 8);
        assert!(drawn(1).is_sorted() && drawn(1) == drawn(1) && drawn(1) != drawn(2));
        let mut few = all[..3].to_vec();
        draw(&mut few, 30, &mut sampling::generator(1, 0));
        assert_eq!(few, all[..3]);
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
