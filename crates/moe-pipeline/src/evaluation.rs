//! `eval`: quality of a checkpoint on held-out text, compared with another checkpoint, with gates.

use std::path::Path;

use moe_checkpoint::{Checkpoint, Result, Snapshot};
use moe_forward::{Corpus, DataSpec, EvalReport, TextRead, TokenizeOptions, evaluate};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::check_windows;
use serde::Deserialize;

use crate::budget;
use crate::gates::Gates;
use crate::learned;
use crate::memory::{self, Text};
use crate::needs::{Work, measuring_bytes};
use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::{ByteSize, storage};

/// What to evaluate on.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EvalOptions {
    /// Held-out text as PATH, LABEL=PATH or LABEL=PATH@WEIGHT; a text file, or JSONL with "text",
    /// "messages", "conversations" or "input_ids".
    #[arg(long, value_name = "DATA", required = true)]
    pub data: Vec<DataSpec>,

    /// Documents are cut into windows of this many tokens, each a sequence of its own.
    #[arg(long, value_name = "TOKENS", default_value_t = default_sequence_length())]
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,

    /// At most this many tokens of each label, the first ones; the rest isn't read.
    #[arg(long, value_name = "TOKENS")]
    #[serde(default)]
    pub data_tokens: Option<usize>,

    /// Limits that the result must keep; exit code 3 if it doesn't.
    #[command(flatten)]
    #[serde(default)]
    pub gates: Gates,
}

fn default_sequence_length() -> usize {
    512
}

impl EvalOptions {
    /// The labels of the text, in order.
    fn labels(&self) -> Vec<&str> {
        self.data.iter().map(|data| data.label.as_str()).collect()
    }

    /// Refuses gates that can't be met, without reading a file.
    ///
    /// # Errors
    /// As for [`Gates::check`].
    pub(crate) fn check(&self, has_original: bool) -> Result<()> {
        check_windows(
            self.sequence_length,
            self.data_tokens.map(|tokens| ("--data-tokens", tokens)),
        )?;
        self.gates.check(has_original, &self.labels())
    }

    /// Refuses a golden file that is of other text.
    ///
    /// # Errors
    /// As for [`Gates::check_golden`].
    pub(crate) fn check_golden(&self) -> Result<()> {
        self.gates.check_golden(&self.labels())
    }
}

/// Evaluates the checkpoint `model`, and compares it with `original` if that is given.
///
/// # Errors
/// As for [`Gates::check`]; errors of reading and computing.
pub fn eval(
    model: &Path,
    original: Option<&Path>,
    options: &EvalOptions,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<EvalReport> {
    options.check(original.is_some())?;
    options.check_golden()?;
    options.gates.check_size(model)?;
    let mut snapshot = Snapshot::default();
    snapshot.extend(DataSpec::files(&options.data));
    let checkpoints =
        std::iter::once(model).chain(original).map(Checkpoint::open).collect::<Result<Vec<_>>>()?;
    checkpoints.iter().flat_map(Checkpoint::warnings).for_each(|warning| progress.note(warning));
    let opened = Model::read(&checkpoints[0])?;
    let original = checkpoints.get(1).map(Model::read).transpose()?;
    let scratch = std::env::temp_dir();
    let work = Work { budget: memory_budget, compute, scratch: &scratch };
    let room = budget::room(memory_budget, "--data-tokens", |tokens| {
        measuring_bytes(&opened, original.as_ref(), tokens, options.sequence_length, &work)
    });
    let tokenize = TokenizeOptions {
        sequence_length: options.sequence_length,
        vocab: opened.vocab,
        max_tokens: options.data_tokens,
        memory_bytes: memory_budget.map(|budget| budget.0),
        room,
        ..TokenizeOptions::default()
    };
    let corpus = Corpus::load(&options.data, model, tokenize)?;
    corpus.texts.iter().filter_map(TextRead::note).for_each(|note| progress.note(&note));
    learned::notes(model, DataSpec::files(&options.data))?
        .iter()
        .for_each(|note| progress.note(note));
    let stored = |budget| storage(&opened, corpus.tokens(), budget, compute, &scratch);
    let way = |_| room.and_then(|room| room.way(corpus.domains.len(), options.data_tokens));
    budget::check_budget(memory_budget, way, |budget| {
        let text = Text::of(&corpus, stored(Some(budget))?);
        Ok(memory::evaluation(&opened, original.as_ref(), &text, compute))
    })?;
    let storage = stored(memory_budget)?;
    progress.stage(
        "evaluate",
        opened.layers.len() as u64,
        Unit::Layers { tokens: corpus.tokens() },
    );
    let report = evaluate(
        &opened,
        original.as_ref(),
        &corpus,
        &storage,
        compute,
        &mut LayerProgress(progress),
    )?;
    checkpoints.iter().try_for_each(Checkpoint::check_unchanged)?;
    snapshot.check()?;
    Ok(report)
}
