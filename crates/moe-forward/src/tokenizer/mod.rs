//! Converts text to token ids, as `AutoTokenizer.from_pretrained(folder)` of transformers 5 does:
//! from `tokenizer.json` and the files next to it.

mod class;
#[cfg(test)]
mod golden;
mod growth;
mod settings;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use moe_checkpoint::{
    CONFIG_FILE, Error, Kind, Result, file_exists, json, read_whole, without_mark,
};
use moe_model::families;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Encoding, ModelWrapper, Tokenizer};

pub use settings::TOKENIZER_FILE;

use class::Class;
use settings::{Defaults, SETTINGS_FILES, SpecialToken, TokenizerSettings};
pub(crate) use settings::{TOKENIZER_CONFIG_FILE, read_config};
use worker::{TokenizerWorker, WorkerLimits};

/// A checkpoint's tokenizer.
pub struct TextTokenizer {
    tokenizer: Arc<Tokenizer>,
    worker: Mutex<TokenizerWorker>,
    named: Vec<(String, String)>,
    file: PathBuf,
}

impl TextTokenizer {
    /// Reads the tokenizer of the checkpoint in `model_dir`.
    ///
    /// # Errors
    /// [`Kind::Missing`] without a `tokenizer.json`; [`Kind::Malformed`] for files that can't be
    /// parsed; [`Kind::Unsupported`] for a tokenizer that transformers would make in a way that
    /// isn't implemented here, and for one that multiplies its input.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let tokenizer_config = read_config(model_dir)?;
        let file = tokenizer_file(model_dir, &tokenizer_config);
        if !file_exists(&file)? {
            return Err(no_tokenizer(model_dir));
        }
        let bytes = read_whole(&file, json::MAX_JSON_BYTES)?;
        let class = choose_class(model_dir, &tokenizer_config, &bytes)?;
        let size = bytes.len();
        let source = TokenizerSource { model_dir: model_dir.to_owned(), file: file.clone(), class };
        let (give, take) = std::sync::mpsc::channel();
        let started = TokenizerWorker::start(&file, size, WorkerLimits::USUAL, move || {
            let (tokenizer, roles) = source.build(bytes, tokenizer_config)?;
            // If loading took too long, nobody receives the result.
            _ = give.send(roles);
            Ok(tokenizer)
        });
        let (worker, tokenizer) = started.map_err(|e| e.file(&file))?;
        let named = take.into_iter().flatten().collect();
        Ok(Self { tokenizer, worker: Mutex::new(worker), named, file })
    }

    /// Tokenizes `text`. With `special_tokens`, this includes those that begin and end every text.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if the tokenizer fails on it, [`Kind::Unsupported`] if it takes too
    /// long.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.encode(text, special_tokens).map_err(|e| e.file(&self.file))
    }

    /// As [`Self::encode`], but returns the tokens with their places in `text`.
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub(crate) fn places(&self, text: &str, special_tokens: bool) -> Result<Encoding> {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.places(text, special_tokens).map_err(|e| e.file(&self.file))
    }

    /// Returns the texts of tokens with a role (`bos_token`, …), which chat templates can refer to.
    pub fn named(&self) -> &[(String, String)] {
        &self.named
    }

    /// Returns the id of the token with this role; None if there is no such token.
    pub fn id_of(&self, role: &str) -> Option<u32> {
        let (_, text) = self.named.iter().find(|(known, _)| known == role)?;
        self.tokenizer.token_to_id(text)
    }

    /// Returns the ids of special tokens.
    pub fn special_ids(&self) -> BTreeSet<u32> {
        let tokens = self.tokenizer.get_added_tokens_decoder();
        tokens.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// Returns the tokens, by id, that have no row in an embedding of `vocab` rows.
    pub fn beyond(&self, vocab: usize) -> Vec<(u32, String)> {
        let tokens = self.tokenizer.get_vocab(true).into_iter();
        let mut beyond: Vec<_> =
            tokens.filter(|(_, id)| *id as usize >= vocab).map(|(text, id)| (id, text)).collect();
        beyond.sort();
        beyond
    }

    /// Checks that an embedding of `vocab` rows has a row for each of `ids`, which this tokenizer
    /// made.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], naming the token.
    pub fn check(&self, ids: &[u32], vocab: usize) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= vocab) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
        let what = format!(
            "this tokenizer gives {token:?} the id {id}, but the model's vocabulary has {vocab}"
        );
        Err(Error::new(Kind::Unsupported, what)
            .file(&self.file)
            .remedy("resize the model's embeddings to its tokenizer (resize_token_embeddings), or take the token out"))
    }
}

fn no_tokenizer(model_dir: &Path) -> Error {
    Error::new(Kind::Missing, "this checkpoint has no tokenizer.json, which text needs")
        .file(model_dir)
        .remedy("add tokenizer.json, or give token ids: JSONL lines with \"input_ids\"")
}

/// Returns the tokens of the tokenizer in `model_dir`, by id, that have no row in an embedding of
/// `vocab` rows; empty without a tokenizer.
///
/// # Errors
/// As for [`TextTokenizer::load`].
pub fn tokens_beyond_vocabulary(model_dir: &Path, vocab: usize) -> Result<Vec<(u32, String)>> {
    if !file_exists(&model_dir.join(TOKENIZER_FILE))? {
        return Ok(Vec::new());
    }
    Ok(TextTokenizer::load(model_dir)?.beyond(vocab))
}

/// Returns the ids of special tokens of the tokenizer in `model_dir`; empty without a tokenizer.
///
/// # Errors
/// As for [`TextTokenizer::load`].
pub fn special_tokens(model_dir: &Path) -> Result<BTreeSet<u32>> {
    if !file_exists(&model_dir.join(TOKENIZER_FILE))? {
        return Ok(BTreeSet::new());
    }
    Ok(TextTokenizer::load(model_dir)?.special_ids())
}

/// Returns the files of `model_dir` that decide how text becomes tokens, including chat templates,
/// sorted.
///
/// # Errors
/// [`Kind::Io`] if the directory can't be listed.
pub fn tokenizer_files(model_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        SETTINGS_FILES.iter().chain([&TOKENIZER_FILE]).map(|name| model_dir.join(name)).collect();
    files.push(tokenizer_file(model_dir, &read_config(model_dir).unwrap_or_default()));
    files.extend(crate::chat::template_files(model_dir)?);
    files.retain(|file| file.is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// Returns the path of `tokenizer.json`, or of the file for newer versions that
/// `fast_tokenizer_files` lists.
fn tokenizer_file(model_dir: &Path, tokenizer_config: &Map<String, Value>) -> PathBuf {
    let listed = tokenizer_config.get("fast_tokenizer_files").and_then(Value::as_array);
    let mut versions: Vec<(&str, &str)> = Vec::new();
    for name in listed.into_iter().flatten().filter_map(Value::as_str) {
        let version = name.split_once("tokenizer.").and_then(|(_, rest)| rest.rsplit_once(".json"));
        // Only a name is accepted, not a path that leads out of the folder.
        versions
            .extend(version.filter(|_| !name.contains('/')).map(|(version, _)| (version, name)));
    }
    versions.sort();
    let newest = versions.iter().take_while(|(version, _)| is_old_enough(version)).last();
    model_dir.join(newest.map_or(TOKENIZER_FILE, |(_, name)| name))
}

fn is_old_enough(version: &str) -> bool {
    /// The version of transformers whose choice is reproduced.
    const TRANSFORMERS: [u64; 2] = [5, 23];
    let numbers: Option<Vec<u64>> = version.split('.').map(|part| part.parse().ok()).collect();
    numbers.is_some_and(|numbers| numbers.as_slice() <= &TRANSFORMERS[..])
}

fn choose_class(
    model_dir: &Path,
    tokenizer_config: &Map<String, Value>,
    tokenizer: &[u8],
) -> Result<Class> {
    let path = model_dir.join(CONFIG_FILE);
    let config =
        if file_exists(&path)? { Value::from(json::read_python(&path)?) } else { Value::Null };
    let family = config["model_type"].as_str().and_then(|model_type| families().get(model_type));
    let rule = family.and_then(|family| family.tokenizer.as_ref());
    const BYTES: &[u8] = b"\"ByteLevel\"";
    let byte_level = tokenizer.windows(BYTES.len()).any(|window| window == BYTES);
    Class::choose(rule, &config, tokenizer_config, byte_level)
        .map_err(|e| class::in_config(e, model_dir))
}

/// Where a tokenizer is loaded from, and how, apart from the bytes of its file and its settings.
struct TokenizerSource {
    model_dir: PathBuf,
    file: PathBuf,
    class: Class,
}

impl TokenizerSource {
    /// Makes the class's tokenizer from the file's `bytes`. Also returns the texts of tokens with a
    /// role.
    fn build(
        &self,
        bytes: Vec<u8>,
        tokenizer_config: Map<String, Value>,
    ) -> Result<(Tokenizer, Vec<(String, String)>)> {
        let (mut tokenizer, added) = self.parse(bytes)?;
        let defaults = Defaults {
            named: self.class.defaults(),
            padding: tokenizer.get_padding().map(|padding| padding.pad_token.clone()),
            added,
        };
        let settings = TokenizerSettings::read(&self.model_dir, tokenizer_config, defaults)?;
        // The file's padding and truncation were saved by chance; transformers also depends on the
        // call. Padding could be to a billion tokens.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| self.malformed(e))?;
        let mut tokenizer = self.class.rebuild(tokenizer, &settings, &self.model_dir)?;
        self.refuse_dropout(&tokenizer)?;
        growth::check(&tokenizer)?;
        tokenizer.set_encode_special_tokens(settings.split_special_tokens);
        self.add_tokens(&mut tokenizer, &settings).map_err(|e| self.malformed(e))?;
        let named = settings.named.iter();
        let named = named.map(|(role, token)| (role.clone(), token.text().to_owned())).collect();
        Ok((tokenizer, named))
    }

    /// Parses the file itself, and returns its tokenizer with the added tokens that it lists.
    fn parse(&self, bytes: Vec<u8>) -> Result<(Tokenizer, BTreeMap<i64, AddedToken>)> {
        let json = without_mark(&bytes);
        let tokenizer = crate::guarded::guarded(|| Tokenizer::from_bytes(json))
            .map_err(|e| self.malformed(e))?;
        let added = added_tokens(json).map_err(|e| self.malformed(e.into()))?;
        Ok((tokenizer, added))
    }

    fn add_tokens(
        &self,
        tokenizer: &mut Tokenizer,
        settings: &TokenizerSettings,
    ) -> tokenizers::Result<()> {
        let added = tokens_to_add(tokenizer, settings);
        tokenizer.add_tokens(added)?;
        if self.class.adds_specials_again() {
            tokenizer.add_tokens(specials_again(self.class, settings))?;
        }
        Ok(())
    }

    fn refuse_dropout(&self, tokenizer: &Tokenizer) -> Result<()> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return Ok(()) };
        if !model.dropout.is_some_and(|share| share > 0.0) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unsupported,
            "this tokenizer leaves merges out at random (dropout): no two readings are alike",
        )
        .file(&self.file)
        .remedy("set \"dropout\" to null in its \"model\"; it is for training"))
    }

    fn malformed(&self, error: tokenizers::Error) -> Error {
        Error::new(Kind::Malformed, "cannot understand this tokenizer")
            .source(error)
            .file(&self.file)
            .remedy("download tokenizer.json again")
    }
}

/// Returns the added tokens that a `tokenizer.json` lists, by id.
fn added_tokens(bytes: &[u8]) -> serde_json::Result<BTreeMap<i64, AddedToken>> {
    #[derive(Deserialize)]
    struct Listed {
        id: i64,
        #[serde(flatten)]
        token: AddedToken,
    }
    // The last of two equal keys counts, as in transformers.
    let file: BTreeMap<String, &RawValue> = serde_json::from_slice(bytes)?;
    let listed: Vec<Listed> = match file.get("added_tokens") {
        Some(listed) => serde_json::from_str(listed.get())?,
        None => Vec::new(),
    };
    Ok(listed.into_iter().map(|listed| (listed.id, listed.token)).collect())
}

/// Returns the tokens that `TokenizersBackend.__init__` adds: listed tokens, then those with a role
/// and extra ones that it doesn't have yet.
fn tokens_to_add(tokenizer: &Tokenizer, settings: &TokenizerSettings) -> Vec<AddedToken> {
    let mut known: BTreeSet<String> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    known.extend(settings.listed.values().map(|token| token.content.clone()));
    let mut to_add: Vec<SpecialToken> =
        settings.listed.values().cloned().map(SpecialToken::Added).collect();
    // There may be as many as a vocabulary has, hence the set. Listed tokens are known by their
    // texts already.
    let mut seen: HashSet<&SpecialToken> = HashSet::new();
    for token in settings.named.iter().map(|(_, token)| token).chain(&settings.extra) {
        if !known.contains(token.text()) && seen.insert(token) {
            to_add.push(token.clone());
        }
    }
    let named: HashSet<&str> = settings.named.iter().map(|(_, token)| token.text()).collect();
    let added = to_add.into_iter().map(|token| match token {
        SpecialToken::Text(text) => AddedToken::from(text, true),
        SpecialToken::Added(token) => {
            let is_special = token.special || named.contains(token.content.as_str());
            token.special(is_special)
        }
    });
    added.collect()
}

fn specials_again(class: Class, settings: &TokenizerSettings) -> Vec<AddedToken> {
    let tokens = settings.named.iter().map(|(_, token)| token).chain(&settings.extra);
    let again = tokens.map(|token| match token {
        SpecialToken::Added(added) if class.keeps_matching(token) => added.clone().special(true),
        _ => AddedToken::from(token.text(), true),
    });
    again.collect()
}
