//! `eval`: quality of a checkpoint on held-out text, beside another, with gates.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{Corpus, DataSpec, EvalReport, TokenizeOptions, evaluate};
use moe_math::Compute;
use moe_model::Model;
use serde::{Deserialize, Serialize};

use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::{ByteSize, storage};

/// What to evaluate on.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EvalOptions {
    /// Held-out text as PATH, LABEL=PATH or LABEL=PATH@WEIGHT; a text file, or JSONL with "text", "messages" or "input_ids".
    #[arg(long, value_name = "DATA", required = true)]
    pub data: Vec<DataSpec>,

    /// Documents are cut into windows of this many tokens, each a sequence of its own.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,

    /// At most this many tokens of each label.
    #[arg(long, value_name = "TOKENS")]
    #[serde(default)]
    pub max_tokens: Option<usize>,

    /// Limits that the result must keep; exit code 3 if it doesn't.
    #[command(flatten)]
    #[serde(default)]
    pub gates: Gates,
}

fn default_sequence_length() -> usize {
    512
}

/// Quality gates.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gates {
    /// Gate: greatest mean KL to the original, in nats (needs --against).
    #[arg(long, value_name = "NATS")]
    pub max_kl: Option<f64>,

    /// Gate: greatest increase of the loss over the original's, in nats (needs --against).
    #[arg(long, value_name = "NATS")]
    pub max_loss_increase: Option<f64>,

    /// Gate: least share of tokens whose most probable next token is the original's (needs --against).
    #[arg(long, value_name = "SHARE")]
    pub min_agreement: Option<f64>,
}

/// A gate that was not met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateFailure {
    /// The gate's name.
    pub gate: &'static str,
    /// What it allows.
    pub limit: f64,
    /// What was measured.
    pub measured: f64,
}

impl Gates {
    fn any(&self) -> bool {
        self.max_kl.is_some() || self.max_loss_increase.is_some() || self.min_agreement.is_some()
    }

    /// The gates that `report` does not meet. A measurement that is no number meets none.
    pub fn failures(&self, report: &EvalReport) -> Vec<GateFailure> {
        let Some(against) = &report.all.against else { return Vec::new() };
        let failure = |gate, limit: Option<f64>, measured: f64, beyond: fn(f64, f64) -> bool| {
            let limit = limit.filter(|limit| measured.is_nan() || beyond(measured, *limit))?;
            Some(GateFailure { gate, limit, measured })
        };
        let at_most = |gate, limit, measured| failure(gate, limit, measured, |m, l| m > l);
        let at_least = |gate, limit, measured| failure(gate, limit, measured, |m, l| m < l);
        [
            at_most("max-kl", self.max_kl, against.kl),
            at_most("max-loss-increase", self.max_loss_increase, report.all.loss - against.original_loss),
            at_least("min-agreement", self.min_agreement, against.top1_agreement),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Evaluates the checkpoint `model`, beside `original` if it is given.
///
/// # Errors
/// [`Kind::Usage`] for gates that need an original; what reading and computing return.
pub fn eval(
    model: &Path,
    original: Option<&Path>,
    options: &EvalOptions,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<EvalReport> {
    if options.gates.any() && original.is_none() {
        return Err(Error::new(Kind::Usage, "a gate compares with an original").remedy("give --against ORIGINAL"));
    }
    let opened = Model::open(model)?;
    let original = original.map(Model::open).transpose()?;
    let tokenize = TokenizeOptions {
        sequence_length: options.sequence_length,
        vocab: opened.vocab,
        max_tokens: options.max_tokens,
        ..TokenizeOptions::default()
    };
    let corpus = Corpus::load(&options.data, model, tokenize)?;
    let storage = storage(&opened, corpus.tokens(), memory_budget, &std::env::temp_dir())?;
    progress.stage("evaluate", opened.layers.len() as u64, Unit::Layers { tokens: corpus.tokens() });
    evaluate(&opened, original.as_ref(), &corpus, &storage, compute, &mut LayerProgress(progress))
}
