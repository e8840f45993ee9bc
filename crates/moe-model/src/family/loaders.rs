//! The behavior of stock loaders for a family, as described by its file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A warning about models that a stock loader handles wrongly.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caveat {
    /// The models of the family that the warning is about.
    pub when: CaveatWhen,
    /// A sentence that says which loader is wrong, what happens, and what to do.
    pub note: String,
}

/// The condition under which a [`Caveat`] applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CaveatWhen {
    /// Models with a sliding window in some layer.
    SlidingWindow,
    /// Models whose heads don't add up to the hidden size.
    HeadDim,
    /// Models whose latent attention scales scores by more than 1 / √(width of a head's queries):
    /// yarn with `mscale_all_dim`.
    ScoreScale,
    /// Models whose config has a window, where no layer has one.
    IdleWindow,
    /// Models with biases in dense blocks or shared experts, but none in routed experts.
    BiasedDense,
}

/// The class that transformers uses for a family's tokenizer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRule {
    /// The class that is used if the tokenizer's files name none.
    pub class: String,
    /// Whether this class is used whatever the files name, since transformers considers the names
    /// in this family's files to be wrong.
    #[serde(default)]
    pub overrules: bool,
}

/// Keys of `rope_scaling` without which versions of transformers before 5 fail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OlderScaling {
    /// Required keys.
    pub needs: Vec<String>,
    /// Keys that may be missing, but otherwise must be numbers.
    pub numbers: Vec<String>,
}
