//! What a conversion costs on held-out text, beside what the pass's control of the same size would.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::{Corpus, DomainReport, EvalReport, Observer, Room, TokenizeOptions, evaluate};
use moe_model::Model;
use moe_passes::HeldOut;
use serde::Serialize;

use crate::options::ConvertOptions;
use crate::prepare::Prepared;
use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::{directory_of, storage};

/// Quality on held-out text against the original.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutReport {
    /// The result.
    pub result: EvalReport,
    /// What it was behind each stage, where it was made in several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
    /// What it is measured beside.
    pub control_name: &'static str,
    /// That, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<EvalReport>,
}

impl HeldOutReport {
    /// The rows of the result, each with that of the control.
    pub fn rows(&self) -> impl Iterator<Item = (&DomainReport, Option<&DomainReport>)> {
        let mut control = self.control.iter().flat_map(EvalReport::rows);
        self.result.rows().map(move |row| (row, control.next()))
    }
}

/// What a stage of a conversion gave.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    /// What it did.
    pub stage: &'static str,
    /// Whether it stays: it measured better than what was there before.
    pub kept: bool,
    /// The model behind it.
    pub report: EvalReport,
}

impl StageReport {
    /// What it did, and whether that was taken back.
    pub fn name(&self) -> String {
        if self.kept { self.stage.to_owned() } else { format!("{} (taken back)", self.stage) }
    }
}

/// Reads held-out text by the tokenizer of the model in `dir`, which must fit in `room`.
///
/// # Errors
/// As for [`Corpus::load`].
pub(crate) fn corpus(
    held_out: &HeldOut<'_>,
    dir: &Path,
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

/// Measures `model` on `corpus` beside the original `source`.
///
/// # Errors
/// What [`evaluate`] returns.
pub(crate) fn evaluated(
    name: &str,
    model: &Model,
    source: &Model,
    corpus: &Corpus,
    options: &ConvertOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<EvalReport> {
    let storage = storage(
        source,
        corpus.tokens(),
        options.memory_budget,
        &options.compute,
        directory_of(output),
    )?;
    progress.stage(name, model.layers.len() as u64, Unit::Layers { tokens: corpus.tokens() });
    let mut observer = LayerProgress(progress);
    evaluate(
        model,
        Some(source),
        corpus,
        &storage,
        &options.compute,
        &mut observer as &mut dyn Observer,
    )
}

/// Measures the planned result of `prepared`, and the last pass's control, on that pass's held-out
/// text; none if it has none.
pub(crate) fn measure(
    prepared: &Prepared<'_>,
    options: &ConvertOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<Option<HeldOutReport>> {
    let Some(corpus) = &prepared.held_out else { return Ok(None) };
    let measured = |name: &str, model: &Model| {
        evaluated(name, model, &prepared.source, corpus, options, output, progress)
    };
    // What the last stage that stays gave is the result.
    let result = match prepared.stages.iter().rev().find(|stage| stage.kept) {
        Some(stage) => stage.report.clone(),
        None => measured("measure on held-out text", prepared.result())?,
    };
    let pass = prepared.last().pass;
    // Receipts have a name also where nothing is measured beside the result.
    let control_name = pass.info().baseline.map_or("random choice", |baseline| baseline.name);
    let control = prepared
        .baseline()?
        .map(|model| measured(&format!("measure: {control_name}"), &model))
        .transpose()?;
    Ok(Some(HeldOutReport { result, stages: prepared.stages.clone(), control_name, control }))
}
