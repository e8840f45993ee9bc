//! Prompts that describe what experts are for: a JSON list with an entry for each.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, json};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::batch::Batch;
use crate::corpus::load_tokenizer;

/// The prompts of one expert.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptSet {
    /// What it is for.
    positive: Vec<String>,
    /// What it isn't for.
    #[serde(default)]
    negative: Vec<String>,
}

const REMEDY: &str = "give a list such as [{\"positive\": [\"a prompt\", …], \"negative\": []}, …]";

/// Reads `sets` sets of prompts from the JSON file `path`, tokenised with the tokenizer of `model_dir`: all sequences, and for
/// each the set that it belongs to, and whether it is a positive prompt there.
///
/// # Errors
/// [`Kind::Malformed`] where the file is something else, [`Kind::Usage`] for another number of sets, a set without a
/// positive prompt, or a prompt without a token; [`Kind::Missing`] without a tokenizer.
pub fn load_prompts(path: &Path, model_dir: &Path, sets: usize) -> Result<(Batch, Vec<(usize, bool)>)> {
    let found: Vec<PromptSet> = json::read_expecting(path, REMEDY)?;
    let usage = |what: String| Error::new(Kind::Usage, what).file(path);
    if found.len() != sets {
        return Err(usage(format!("{} sets of prompts for {sets} router rows", found.len()))
            .remedy("give one set for each expert; shards of one network share theirs"));
    }
    if let Some(index) = found.iter().position(|set| set.positive.is_empty()) {
        return Err(usage(format!("entry {index} has no positive prompt")).remedy(REMEDY));
    }
    let tokenizer = load_tokenizer(model_dir)?;
    let (mut sequences, mut kinds) = (Vec::new(), Vec::new());
    for (index, set) in found.iter().enumerate() {
        for (prompts, is_positive) in [(&set.positive, true), (&set.negative, false)] {
            for prompt in prompts {
                sequences.push(encode(&tokenizer, prompt).map_err(|e| e.file(path))?);
                kinds.push((index, is_positive));
            }
        }
    }
    Ok((Batch::new(sequences.iter().map(Vec::as_slice)), kinds))
}

fn encode(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let failed = |e| Error::new(Kind::Malformed, "the tokenizer failed").source(e);
    // Special tokens alone would say nothing of the prompt.
    let words = tokenizer.encode_fast(prompt, false).map_err(failed)?;
    if words.get_ids().is_empty() {
        return Err(Error::new(Kind::Usage, format!("the prompt {prompt:?} gives no token")).remedy("give it some words"));
    }
    Ok(tokenizer.encode_fast(prompt, true).map_err(failed)?.get_ids().to_vec())
}
