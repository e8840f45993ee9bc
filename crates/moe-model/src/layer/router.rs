//! Routers.

use moe_math::routing::{Groups, Scoring};
use serde::{Deserialize, Serialize};

use crate::weight::Weight;

/// The dtypes that transformers uses for the routers of a family, if the model runs in the dtype of
/// the checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterPrecision {
    /// f32 for everything.
    #[default]
    F32,
    /// The model's dtype for states, weights and logits. Scores and gates are f32.
    ModelLogits,
    /// The model's dtype for states, weights and logits. Gates are also rounded to it.
    Model,
}

/// Chooses the experts with the best choice scores for each token, and weights them by their
/// scores.
///
/// The choice score is the score plus the bias. `moe_math::routing::RoutingRule` describes the order
/// of all steps.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, hidden]`.
    pub weight: Weight,
    /// The expert correction bias, `[experts]`: it is added to the scores that experts are chosen
    /// by, not to those that become their weights.
    pub bias: Option<Weight>,
    /// The dtypes that transformers computes the router in.
    pub precision: RouterPrecision,
    /// The function from logits to scores.
    pub scoring: Scoring,
    /// Groups of experts; None if they don't limit the choice.
    pub groups: Option<Groups>,
    /// Number of experts that a token goes to.
    pub top_k: usize,
    /// Whether the selected scores are divided by their sum.
    pub normalize: bool,
    /// The factor of the selected scores.
    pub scale: f64,
}

impl Router {
    /// A router that takes the softmax over the experts' logits, then the `top_k` best.
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

    /// The weight, and the bias if there is one.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}
