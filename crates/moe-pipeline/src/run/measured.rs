//! What a conversion costs on held-out text, beside what the pass's baseline of the same size would.

use moe_checkpoint::Result;
use moe_forward::{Corpus, EvalReport, Observer, Room, TokenizeOptions, evaluate};
use moe_model::Model;
use moe_passes::HeldOut;

use super::decided::Decided;
use crate::context::RunContext;
use crate::progress::{LayerProgress, Unit};
use crate::trust::HeldOutReport;

/// Reads held-out text by the tokenizer of the model in `dir`, which must fit in `room`.
///
/// # Errors
/// As for [`Corpus::load`].
pub(super) fn corpus(
    held_out: &HeldOut<'_>,
    dir: &std::path::Path,
    vocab: usize,
    room: Option<Room>,
) -> Result<Corpus> {
    let tokenize = TokenizeOptions {
        sequence_length: held_out.sequence_length,
        vocab,
        max_tokens: Some(held_out.max_tokens),
        room,
        ..TokenizeOptions::default()
    };
    Corpus::load(held_out.data, dir, tokenize)
}

/// Measures `model` on `corpus` beside the original `source`, as the stage `name`.
///
/// # Errors
/// What [`evaluate`] returns.
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

/// Measures the result of `decided`, and the last pass's baseline, on that pass's held-out text;
/// None if it has none.
pub(super) fn measure(decided: &Decided<'_>) -> Result<Option<HeldOutReport>> {
    let planned = &decided.planned;
    let Some(corpus) = &planned.held_out else { return Ok(None) };
    let measured = |name: &str, model: &Model| {
        evaluated(name, model, planned.source(), corpus, &planned.opened.run)
    };
    // What the last stage that stays gave is the result.
    let result = match decided.stages.iter().rev().find(|stage| stage.kept) {
        Some(stage) => stage.report.clone(),
        None => measured("measure on held-out text", planned.result())?,
    };
    let last = planned.last();
    // Receipts have a name also where nothing is measured beside the result.
    let control_name = last.pass.info().baseline.map_or("random choice", |baseline| baseline.name);
    let baseline = match &last.decisions {
        Some(edits) => last.transform.baseline(&last.source, edits)?,
        None => None,
    };
    let control =
        baseline.map(|model| measured(&format!("measure: {control_name}"), &model)).transpose()?;
    Ok(Some(HeldOutReport { result, stages: decided.stages.clone(), control_name, control }))
}
