//! The receipt: which passes ran on which bytes, and the outcome. The same run gives the same
//! receipt.

mod check;
#[cfg(test)]
pub(crate) mod made_up;
mod read;
mod schema;
mod told;

use std::collections::BTreeMap;

use moe_forward::Difference;
use moe_model::{CaveatWhen, Parameters, Verdict};
use moe_passes::{DecidedBy, Effect, Identity, LayerRecord, PassInfo, PoolStats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::build::{BUILD, VERSION};
use crate::train::TrainingRecord;
use crate::trust::HeldOutReport;
use crate::writing::WritingOptions;

pub(crate) use crate::file_names::{RECEIPT_FILE, RUN_FILE};
pub use read::ReceiptFile;
pub(crate) use read::age;
pub use schema::receipt_schema;

/// The format of receipts that this build writes, and the only one that it reads. Receipts without
/// a format have format 0.
pub const FORMAT: u64 = 1;

/// The contents of `moe-convert.json`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    /// The version of the receipt's format. Another version has other keys, or keys of another
    /// meaning.
    pub format: u64,
    /// The program that wrote the receipt.
    pub tool: Tool,
    /// Passes that ran before this one in the same run, with no checkpoint between them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<EarlierPass>,
    /// The pass; the last one, if several ran.
    #[schemars(with = "String")]
    pub pass: &'static PassInfo,
    /// The pass's options, with the defaults that follow from options alone.
    pub options: serde_json::Value,
    /// The checkpoint that was converted.
    pub source: SourceRecord,
    /// Further checkpoints that were read, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<SourceRecord>,
    /// SHA-256 of text, statistics and plans that were read, by file name; names that occur twice
    /// have as many folders as it takes to tell them apart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
    /// SHA-256 of the text that those statistics were gathered on, as far as they record it, by
    /// file name likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub observed: BTreeMap<String, String>,
    /// SHA-256 of plans that were written besides the result, by file name likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<String, String>,
    /// The dtype of matrix products.
    pub dtype: String,
    /// The kind of device that computed: cpu, cuda or metal.
    pub device: String,
    /// Options for writing the result.
    pub writing: WritingOptions,
    /// The dtype of router computations. None for f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_dtype: Option<String>,
    /// The checkpoint that was written.
    pub result: ResultRecord,
    /// Whether the options promise that the result computes the function of the source.
    pub identity: Identity,
    /// The effect of each option on the function.
    pub effects: Vec<Effect>,
    /// The difference between result and source, measured on the weights that were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// Quality of the result on held-out text. None if it wasn't measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutReport>,
    /// The training. None for a pass that doesn't train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingRecord>,
    /// The data that decisions about experts are based on. None if there were no decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedBy>,
    /// The effect of the pool of text on the calibration. None without a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStats>,
    /// Each layer, with what was done to it.
    pub layers: Vec<LayerRecord>,
    /// Warnings that were shown to the user.
    pub warnings: Vec<String>,
    /// Reasons why stock loaders compute something else from the result; `warnings` explains them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caveats: Vec<CaveatWhen>,
    /// Verdicts of engines on its quantized experts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<Verdict>,
    /// Files next to the source's weights that were not copied, by name, each with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// SHA-256 of the files that were written, by name: all that the manifest lists, except this
    /// receipt and the model card, which differs in a copy of another name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// A pass that ran before the last one in the same run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EarlierPass {
    /// The pass.
    #[schemars(with = "String")]
    pub pass: &'static PassInfo,
    /// The pass's options, with the defaults that follow from options alone.
    pub options: serde_json::Value,
    /// The data that its decisions about experts are based on. None if there were no decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedBy>,
    /// The effect of the pool of text on the calibration. None without a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStats>,
    /// The model that it made, which the next pass converted.
    pub result: ResultRecord,
    /// Each layer, with what was done to it.
    pub layers: Vec<LayerRecord>,
}

/// The program's name in receipts.
const NAME: &str = "moe-convert";

/// The program that wrote a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tool {
    /// The name of the program.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// A hash of the sources that it was built from: results of other builds are not reused.
    pub build: String,
}

impl Tool {
    /// The record of this program.
    pub(crate) fn this() -> Self {
        Self { name: NAME.to_owned(), version: VERSION.to_owned(), build: BUILD.to_owned() }
    }
}

/// The checkpoint that was read.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SourceRecord {
    /// Name of its directory.
    pub name: String,
    /// The family of the model.
    pub model_type: String,
    /// Parameters in total.
    pub total_parameters: usize,
    /// Parameters that one token uses.
    pub active_parameters: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// SHA-256 of config, weights, tokenizer and all other files that are copied, by file name.
    pub sha256: BTreeMap<String, String>,
}

/// The checkpoint that was written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResultRecord {
    /// The family of the model.
    pub model_type: String,
    /// Parameters by component.
    pub parameters: Parameters,
    /// Parameters in total.
    pub total_parameters: usize,
    /// Parameters that one token uses.
    pub active_parameters: usize,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of tensors whose bytes are the source's.
    pub tensors_copied: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Of all pairs of a token and a layer, those in which two groups of experts tie for the last place
/// among the chosen ones. A runtime that breaks ties otherwise than by index then mixes the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupTies {
    /// Number of pairs that were checked.
    pub routings: u64,
    /// Ties of probabilities in f32.
    pub in_f32: u64,
    /// Ties if router logits are computed in bf16.
    pub in_bf16: u64,
}

/// Comparison of the logits of result and source, on seeded random tokens.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Seed of the tokens.
    pub seed: u64,
    /// Numbers.
    #[serde(flatten)]
    pub difference: Difference,
    /// Ties between groups of experts. None if experts aren't chosen in groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_ties: Option<GroupTies>,
}
