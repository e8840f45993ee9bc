//! Tokens that the model has no embedding for.

use moe_checkpoint::{CONFIG_FILE, Checkpoint, json};
use moe_forward::tokens_beyond_vocabulary;
use moe_model::Model;
use serde_json::{Map, Value};

use crate::verify::generation;

/// Keys of configs that name tokens.
const KEYS: [&str; 4] = ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"];

pub(super) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let generation =
        json::read_python(&checkpoint.dir().join(generation::CONFIG)).unwrap_or_default();
    let mut notes: Vec<String> = of_tokenizer(checkpoint, model.vocab).into_iter().collect();
    notes.extend(of_keys(CONFIG_FILE, checkpoint.config(), model.vocab));
    notes.extend(of_keys(generation::CONFIG, &generation, model.vocab));
    notes
}

fn of_tokenizer(checkpoint: &Checkpoint, vocab: usize) -> Option<String> {
    match tokens_beyond_vocabulary(checkpoint.dir(), vocab) {
        Ok(beyond) => beyond.last().map(|(id, token)| {
            format!(
                "the tokenizer has tokens beyond the vocabulary of {vocab}, such as {token:?} ({id}): loaders fail where text has them"
            )
        }),
        Err(error) => Some(format!("text can't be tokenized here: {}", error.briefly())),
    }
}

/// Keys of `config`, which is that of `file`, with tokens beyond a vocabulary of `vocab`.
fn of_keys(file: &str, config: &Map<String, Value>, vocab: usize) -> Vec<String> {
    let beyond = KEYS.into_iter().filter_map(|key| {
        let id = ids(config.get(key)?)
            .iter()
            .filter_map(Value::as_u64)
            .find(|id| *id >= vocab as u64)?;
        Some(format!("{file} says {key} {id}, beyond the vocabulary of {vocab}"))
    });
    beyond.collect()
}

/// A token, or a list of them.
fn ids(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}
