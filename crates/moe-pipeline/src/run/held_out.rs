//! Held-out text of a pass, and measuring models on it.

use moe_checkpoint::Result;
use moe_forward::{Corpus, EvalReport, Observer, TokenizeOptions, evaluate};
use moe_model::Model;
use moe_passes::{HeldOut, Pass};

use super::opened::Opened;
use crate::budget;
use crate::context::RunContext;
use crate::needs::measuring_bytes;
use crate::progress::{LayerProgress, Unit};

/// Returns the text that the result of `pass` is measured on; None where the pass has none.
pub(super) fn held_out_of(pass: &dyn Pass) -> Option<HeldOut<'_>> {
    pass.inputs().held_out.filter(|held_out| !held_out.while_training)
}

/// Reads the text that `result` is to be measured on, by the source's tokenizer.
///
/// # Errors
/// As for [`Corpus::load`].
pub(super) fn read_held_out(
    held_out: &HeldOut<'_>,
    opened: &Opened<'_>,
    result: &Model,
) -> Result<Corpus> {
    let Opened { run, source, .. } = opened;
    let work = run.work();
    let live =
        |tokens| measuring_bytes(result, Some(source), tokens, held_out.sequence_length, &work);
    let tokenize = TokenizeOptions {
        sequence_length: held_out.sequence_length,
        vocab: source.vocab,
        max_tokens: Some(held_out.max_tokens),
        room: budget::room(work.budget, "--held-out-tokens", live),
        ..TokenizeOptions::default()
    };
    Corpus::load(held_out.data, run.input, tokenize)
}

/// Measures `model` on `corpus`, compared with the original `source`, as the stage `name`.
///
/// # Errors
/// As for [`evaluate`].
pub(super) fn evaluated(
    name: &str,
    model: &Model,
    source: &Model,
    corpus: &Corpus,
    run: &RunContext<'_>,
) -> Result<EvalReport> {
    let storage = run.storage(source, corpus.tokens())?;
    let tokens = corpus.tokens();
    run.progress.stage(name, model.layers.len() as u64, Unit::Layers { tokens });
    let mut observer = LayerProgress(run.progress);
    let observer = &mut observer as &mut dyn Observer;
    evaluate(model, Some(source), corpus, &storage, run.compute(), observer)
}
