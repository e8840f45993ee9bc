//! What a family's file says of stock loaders.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A model that a stock loader gets wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caveat {
    /// The models of the family that it is about.
    pub when: CaveatWhen,
    /// Says which loader gets them wrong, what happens, and what to do.
    pub note: String,
}

/// What a [`Caveat`] applies to.
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

/// Which class transformers makes a family's tokenizer of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRule {
    /// The class where the tokenizer's files name none.
    pub class: String,
    /// Whether it is this class whatever the files name: transformers holds those of the family to
    /// be wrong.
    #[serde(default)]
    pub overrules: bool,
}

/// Keys of `rope_scaling` that versions of transformers before 5 fail without.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OlderScaling {
    /// Keys that must be there.
    pub needs: Vec<String>,
    /// Keys that must be numbers where they are there.
    pub numbers: Vec<String>,
}
