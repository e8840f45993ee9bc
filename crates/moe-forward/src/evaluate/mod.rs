//! Held-out quality: loss and perplexity per domain, distance to another model, expert load.

mod choices;
mod load_counter;
mod report;
mod scoring;

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use moe_model::Model;

use self::choices::TokenChoices;
use self::load_counter::LoadCounter;
pub use self::report::{Comparison, DomainReport, EvalReport, LayerLoad};
use self::scoring::{Scored, Scorer, of_original};
use crate::corpus::Corpus;
use crate::observer::Observer;
use crate::states::Storage;

/// Checks that the distributions of next tokens of two models can be compared.
///
/// # Errors
/// [`Kind::Mismatch`] if the vocabularies differ.
pub fn check_vocabularies(model: usize, original: usize, config_file: &Path) -> Result<()> {
    if model == original {
        return Ok(());
    }
    let what = format!("vocabularies of {model} and {original} tokens can't be compared");
    Err(Error::new(Kind::Mismatch, what)
        .file(config_file)
        .remedy("compare models with the same tokenizer"))
}

/// Evaluates `model` on `corpus`, compared with `original` if it is given. `storage` is where
/// hidden states are kept.
///
/// # Errors
/// [`Kind::Mismatch`] if the vocabularies of the two differ; errors of the sweeps.
pub fn evaluate(
    model: &Model,
    original: Option<&Model>,
    corpus: &Corpus,
    storage: &Storage,
    compute: &Compute,
    observer: &mut dyn Observer,
) -> Result<EvalReport> {
    original.map_or(Ok(()), |original| {
        check_vocabularies(model.vocab, original.vocab, &original.config_file)
    })?;
    let batch = corpus.batch();
    let mut counter = LoadCounter::new(corpus, observer);
    let model = Scored::run(model, &batch, compute, storage, &mut counter)?;
    let load = counter.finish();
    let mut choices = TokenChoices { tokens: batch.tokens(), layers: Vec::new() };
    let original = original
        .map(|original| {
            let scored = Scored::run(original, &batch, compute, storage, &mut choices);
            scored.map_err(|error| of_original(error, original))
        })
        .transpose()?;
    let rare = choices.rare_mass(batch.tokens());
    let (domains, all) = Scorer { model, original, batch: &batch, rare }.rows(corpus)?;
    Ok(EvalReport { domains, all, load })
}
