//! `eval`: quality of a checkpoint on held-out text, compared with another checkpoint, with gates.

use std::path::Path;

use moe_checkpoint::{Checkpoint, Result, Snapshot};
use moe_forward::{
    Corpus, DataSpec, EvalReport, Room, Storage, TextRead, TokenizeOptions, evaluate,
};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::check_windows;
use serde::Deserialize;

use crate::budget;
use crate::gates::Gates;
use crate::learned;
use crate::memory::{self, Text};
use crate::needs::{WorkLimits, measuring_bytes};
use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::{ByteSize, storage};

/// The text to evaluate on, and limits for the results.
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
    let report = Evaluation {
        model: &Model::read(&checkpoints[0])?,
        original: checkpoints.get(1).map(Model::read).transpose()?.as_ref(),
        options,
        work: WorkLimits { budget: memory_budget, compute, scratch: &std::env::temp_dir() },
    }
    .run(model, progress)?;
    checkpoints.iter().try_for_each(Checkpoint::check_unchanged)?;
    snapshot.check()?;
    Ok(report)
}

/// The evaluation of a model, compared with an original if there is one.
struct Evaluation<'a> {
    model: &'a Model,
    original: Option<&'a Model>,
    options: &'a EvalOptions,
    work: WorkLimits<'a>,
}

impl Evaluation<'_> {
    /// Evaluates the model on its text, by the tokenizer in `dir`.
    fn run(&self, dir: &Path, progress: &dyn Progress) -> Result<EvalReport> {
        let room = self.room();
        let corpus = self.read_text(dir, room)?;
        corpus.texts.iter().filter_map(TextRead::note).for_each(|note| progress.note(&note));
        let learned = learned::notes(dir, DataSpec::files(&self.options.data))?;
        learned.iter().for_each(|note| progress.note(note));
        self.check_budget(&corpus, room)?;
        let Self { model, original, work, .. } = self;
        let storage = self.storage(&corpus, work.budget)?;
        let tokens = corpus.tokens();
        progress.stage("evaluate", model.layers.len() as u64, Unit::Layers { tokens });
        let mut observer = LayerProgress(progress);
        evaluate(model, *original, &corpus, &storage, work.compute, &mut observer)
    }

    /// Returns how much text fits in memory; None without a budget.
    fn room(&self) -> Option<Room> {
        let Self { model, original, options, work } = self;
        budget::room(work.budget, "--data-tokens", |tokens| {
            measuring_bytes(model, *original, tokens, options.sequence_length, work)
        })
    }

    fn read_text(&self, dir: &Path, room: Option<Room>) -> Result<Corpus> {
        let tokenize = TokenizeOptions {
            sequence_length: self.options.sequence_length,
            vocab: self.model.vocab,
            max_tokens: self.options.data_tokens,
            memory_bytes: self.work.budget.map(|budget| budget.0),
            room,
            ..TokenizeOptions::default()
        };
        Corpus::load(&self.options.data, dir, tokenize)
    }

    /// Refuses a budget that evaluating on `corpus` doesn't fit in; `room` is for fewer tokens.
    fn check_budget(&self, corpus: &Corpus, room: Option<Room>) -> Result<()> {
        let Self { model, original, options, work } = self;
        let way = |_| room.and_then(|room| room.way(corpus.domains.len(), options.data_tokens));
        budget::check_budget(work.budget, way, |budget| {
            let text = Text::of(corpus, self.storage(corpus, Some(budget))?);
            Ok(memory::evaluation(model, *original, &text, work.compute))
        })
        .map(drop)
    }

    /// Storage for hidden states under `budget`.
    fn storage(&self, corpus: &Corpus, budget: Option<ByteSize>) -> Result<Storage> {
        storage(self.model, corpus.tokens(), budget, self.work.compute, self.work.scratch)
    }
}
