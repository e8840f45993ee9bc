//! Routers.

use moe_math::routing::{Groups, Scoring};
use serde::{Deserialize, Serialize};

use crate::weight::Weight;

/// What transformers computes the routers of a family in, where the model runs in the dtype that it
/// is stored in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterPrecision {
    /// f32, whatever the model runs in.
    #[default]
    F32,
    /// The model's dtype for states, weights and logits. Scores and gates are f32.
    ModelLogits,
    /// The model's dtype for states, weights and logits; gates are rounded to it, too.
    Model,
}

/// Which experts a token goes to: those of the best choice scores, weighed by their scores.
///
/// It follows rules A, B and C of families.md. The choice score is the score plus the bias; in
/// which order things happen is said once, in `moe_math::routing::RoutingRule`.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, hidden]`.
    pub weight: Weight,
    /// The expert correction bias, `[experts]`: it is added to the scores for the choice of
    /// experts, not for their weights.
    pub bias: Option<Weight>,
    /// What transformers computes it in.
    pub precision: RouterPrecision,
    /// What makes scores of the logits.
    pub scoring: Scoring,
    /// Groups of experts, where they limit the choice.
    pub groups: Option<Groups>,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Whether the selected scores are divided by their sum.
    pub normalize: bool,
    /// The selected scores are multiplied by this.
    pub scale: f64,
}

impl Router {
    /// Softmax over the experts' logits, then top-k.
    pub fn softmax(weight: Weight, top_k: usize, normalize: bool) -> Self {
        let precision = RouterPrecision::F32;
        Self {
            weight,
            bias: None,
            precision,
            scoring: Scoring::Softmax,
            groups: None,
            top_k,
            normalize,
            scale: 1.0,
        }
    }

    /// Its weights.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}
