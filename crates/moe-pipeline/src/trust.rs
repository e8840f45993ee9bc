//! What a conversion costs on held-out text, beside what the pass's control of the same size would.

use moe_checkpoint::Result;
use moe_forward::{Corpus, DomainReport, EvalReport, Observer, TokenizeOptions, evaluate};
use moe_model::Model;
use moe_passes::Pass;
use serde::Serialize;

use crate::convert::ConvertOptions;
use crate::prepare::Prepared;
use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::{directory_of, storage};

/// Quality on held-out text against the original.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutReport {
    /// The result.
    pub result: EvalReport,
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

/// Measures the planned result of `prepared`, and its control, on the pass's held-out text; none if it has none.
pub(crate) fn measure<P: Pass>(
    prepared: &Prepared,
    pass: &P,
    options: &ConvertOptions,
    output: &std::path::Path,
    progress: &dyn Progress,
) -> Result<Option<HeldOutReport>> {
    let Some(held_out) = pass.held_out() else { return Ok(None) };
    let source = &prepared.source;
    let tokenize = TokenizeOptions {
        sequence_length: held_out.sequence_length,
        vocab: source.vocab,
        max_tokens: Some(held_out.max_tokens),
        ..TokenizeOptions::default()
    };
    let corpus = Corpus::load(held_out.data, prepared.checkpoint.dir(), tokenize)?;
    let storage = storage(source, corpus.tokens(), options.memory_budget, directory_of(output))?;
    let evaluated = |name: &str, model: &Model| -> Result<EvalReport> {
        progress.stage(name, model.layers.len() as u64, Unit::Layers);
        let mut observer = LayerProgress(progress);
        evaluate(model, Some(source), &corpus, &storage, &options.compute, &mut observer as &mut dyn Observer)
    };
    let result = evaluated("measure on held-out text", &prepared.result)?;
    let control = pass.control(&prepared.sources(&options.compute, prepared.decisions.as_ref()))?;
    let control = control.map(|model| evaluated(&format!("measure: {}", P::CONTROL), &model)).transpose()?;
    Ok(Some(HeldOutReport { result, control_name: P::CONTROL, control }))
}
