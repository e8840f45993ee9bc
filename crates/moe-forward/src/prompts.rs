//! Prompts that describe what experts are for: a JSON list with an entry for each.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, json};
use serde::Deserialize;

use crate::batch::Batch;
use crate::tokenizer::TextTokenizer;

/// The prompts of one expert.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptSet {
    /// Prompts of tasks that the expert is for.
    positive: Vec<String>,
    /// Prompts of tasks that the expert isn't for.
    #[serde(default)]
    negative: Vec<String>,
}

const REMEDY: &str = "give a list such as [{\"positive\": [\"a prompt\", …], \"negative\": []}, …]";

/// Prompts as token ids.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// All prompts, one sequence each, which begin with the tokenizer's BOS token if it has one.
    pub batch: Batch,
    /// For each sequence, the index of its set, and whether it is a positive prompt there.
    pub kinds: Vec<(usize, bool)>,
    /// Number of tokens at the start of each sequence that are the same for all prompts: the BOS
    /// token.
    pub skip: usize,
}

/// Reads `sets` sets of prompts from the JSON file `path`. They are tokenized with the tokenizer of
/// `model_dir` as mergekit does: the BOS token, then the prompt, and no other special tokens.
///
/// # Errors
/// [`Kind::Malformed`] if the file has another form; [`Kind::Usage`] for another number of sets, a
/// set without a positive prompt, or a prompt without a token; [`Kind::Missing`] without a
/// tokenizer.
pub fn load_prompts(path: &Path, model_dir: &Path, sets: usize) -> Result<Prompts> {
    let found: Vec<PromptSet> = json::read_expecting(path, REMEDY)?;
    if found.len() != sets {
        let what = format!("{} sets of prompts for {sets} router rows", found.len());
        return Err(unsuitable(path, what)
            .remedy("give one set for each expert; shards of one network share theirs"));
    }
    if let Some(index) = found.iter().position(|set| set.positive.is_empty()) {
        let what = format!("entry {index} has no positive prompt");
        return Err(unsuitable(path, what).remedy(REMEDY));
    }
    let tokenizer = TextTokenizer::load(model_dir)?;
    let bos = tokenizer.id_of("bos_token");
    let (mut sequences, mut kinds) = (Vec::new(), Vec::new());
    for (index, set) in found.iter().enumerate() {
        for (prompts, is_positive) in [(&set.positive, true), (&set.negative, false)] {
            for prompt in prompts {
                let ids = tokenizer.encode(prompt, false)?;
                sequences.push(after_bos(bos, prompt, &ids).map_err(|e| e.file(path))?);
                kinds.push((index, is_positive));
            }
        }
    }
    let batch = Batch::new(sequences.iter().map(Vec::as_slice));
    Ok(Prompts { batch, kinds, skip: usize::from(bos.is_some()) })
}

fn after_bos(bos: Option<u32>, prompt: &str, ids: &[u32]) -> Result<Vec<u32>> {
    if ids.is_empty() {
        let what = format!("the prompt {prompt:?} gives no token");
        return Err(Error::new(Kind::Usage, what)
            .options(&["--prompts"])
            .remedy("give it some words"));
    }
    Ok(bos.into_iter().chain(ids.iter().copied()).collect())
}

fn unsuitable(path: &Path, what: String) -> Error {
    Error::new(Kind::Usage, what).options(&["--prompts"]).file(path)
}
