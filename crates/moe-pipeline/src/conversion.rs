//! The outcome of a run.

use moe_model::Verdict;
use serde::Serialize;

use crate::progress::Timings;
use crate::receipt::Receipt;

/// What makes tokens of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HasTokenizer {
    /// tokenizer.json, which this program reads.
    Here,
    /// Files of a tokenizer that only others read.
    Elsewhere,
    /// Nothing.
    Nowhere,
}

/// What a run has done.
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
    /// What engines do with the result's quantized experts.
    pub engines: Vec<Verdict>,
    /// Whether `heal` can train the result further.
    pub heals: bool,
    /// What makes tokens of text for the result.
    pub tokenizer: HasTokenizer,
}
