//! Scores of experts, and the order in which experts fill the dense network.

use clap::ValueEnum;
use moe_math::determinantal;
use moe_model::Result;
use serde::{Deserialize, Serialize};

use super::observe::{ExpertSums, LayerSums};

/// The score that ranks experts (2605.28207).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// The share of tokens that choose an expert.
    Frequency,
    /// The mean of the router's score over the tokens that choose it.
    Cp,
    /// The same times the root mean square of the norm of its output.
    Acp,
    /// A set of experts that score high by acp and give outputs unlike each other's.
    DoAcp,
    /// The mean of gate × norm of output over the tokens that choose it (REAP, 2510.13999).
    #[default]
    Reap,
}

impl Score {
    /// Whether all experts must run on some tokens, not only those that chose them.
    pub(super) fn needs_all_outputs(self) -> bool {
        self == Self::DoAcp
    }

    /// The experts of layer `layer` in the order in which they are taken, and the score of each;
    /// `count` of them are about to be taken.
    pub(super) fn order(
        self,
        layer: usize,
        sums: &LayerSums,
        count: usize,
    ) -> Result<(Vec<usize>, Vec<f64>)> {
        let scores: Vec<f64> =
            sums.experts.iter().map(|expert| self.of(expert, sums.tokens)).collect();
        if self == Self::DoAcp {
            let kernel = determinantal::kernel(&scores, &sums.output_products(layer)?);
            let lambda = determinantal::lambda(&kernel, scores.len(), count);
            return Ok((determinantal::greedy(&kernel, scores.len(), lambda), scores));
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        // The sort is stable, so that the lower index comes first among equals.
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        Ok((order, scores))
    }

    fn of(self, sums: &ExpertSums, tokens: f64) -> f64 {
        match self {
            Self::Frequency => mean(sums.tokens, tokens),
            Self::Cp => mean(sums.scores, sums.tokens),
            Self::Acp | Self::DoAcp => {
                mean(sums.scores, sums.tokens) * mean(sums.square_norms, sums.tokens).sqrt()
            }
            Self::Reap => mean(sums.gated_norms, sums.tokens),
        }
    }
}

/// A mean over `count` tokens; 0 over none.
fn mean(sum: f64, count: f64) -> f64 {
    if count > 0.0 { sum / count } else { 0.0 }
}
