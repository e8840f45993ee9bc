//! The outcome of a run.

use moe_model::Verdict;
use serde::Serialize;

use crate::progress::Timings;
use crate::receipt::Receipt;

/// Whether a checkpoint has a tokenizer, and who can read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HasTokenizer {
    /// A tokenizer.json, which this program reads.
    Here,
    /// Files that only other programs read.
    Elsewhere,
    /// No tokenizer.
    Nowhere,
}

/// The outcome of a run.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Conversion {
    /// The receipt, as written.
    pub receipt: Receipt,
    /// Time of each stage.
    pub timings: Timings,
    /// Bytes of all weight files.
    pub bytes: u64,
    /// Seconds that the hashing thread was busy while writing.
    pub hashing_seconds: f64,
    /// The verdicts of engines on the result's quantized experts.
    pub engines: Vec<Verdict>,
    /// Whether `heal` can train the result further.
    pub heals: bool,
    /// Whether the result has a tokenizer, and who can read it.
    pub tokenizer: HasTokenizer,
}
