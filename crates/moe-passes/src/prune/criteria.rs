//! The criteria that rank experts.

use clap::ValueEnum;
use moe_math::saliency;
use moe_math::statistics::CalibrationSums;
use serde::{Deserialize, Serialize};

use crate::reduce::Needs;

/// The criterion by which experts are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Mean of gate × norm of the output over an expert's tokens (2510.13999).
    Reap,
    /// Sum of the norms of an expert's outputs.
    Ean,
    /// Mean of the norms of an expert's outputs (2606.15716).
    Man,
    /// Mean of the squared norms of an expert's outputs (2606.15716).
    Msan,
    /// Number of tokens that choose an expert.
    Frequency,
    /// Sum of the gates that an expert is given.
    SoftFrequency,
    /// Ratio of mean absolute to root mean square weight, the lower the better; needs no data
    /// (2603.18492).
    Aimer,
    /// Squared change of the layer's output when an expert is left out and its tokens are rerouted
    /// (2402.14800).
    LeaveOneOut,
    /// The same by 1 − cosine; the best of these on the built-in MoE
    /// (recipes/compare-pruning.toml).
    #[default]
    LeaveOneOutCosine,
    /// The set of experts whose output is nearest to the layer's, of all sets; for up to 16
    /// experts; needs --data.
    Exhaustive,
    /// The expert with the fewest votes goes, its votes pass to the tokens' next choices, and so
    /// on; needs --data.
    RankedChoice,
    /// Drawn by --seed: the baseline.
    Random,
}

/// The sentence that a report has for the criterion `name`.
pub(super) fn words(name: &str) -> Option<&'static str> {
    Criterion::from_str(name, false).ok().map(Criterion::words)
}

impl Criterion {
    fn words(self) -> &'static str {
        match self {
            Self::Reap => "mean of gate × norm of the output over an expert's tokens",
            Self::Ean => "sum of the norms of an expert's outputs",
            Self::Man => "mean of the norms of an expert's outputs",
            Self::Msan => "mean of the squared norms of an expert's outputs",
            Self::Frequency => "tokens that choose an expert",
            Self::SoftFrequency => "sum of the gates that an expert is given",
            Self::Aimer => "evenness of an expert's weights",
            Self::LeaveOneOut => "squared change of the layer's output without the expert",
            Self::LeaveOneOutCosine => "turn of the layer's output without the expert",
            Self::Exhaustive => "of all sets of experts the one whose output is nearest",
            Self::RankedChoice => "votes of tokens, which pass on when an expert goes",
            Self::Random => "chance",
        }
    }

    pub(super) fn needs(self) -> Needs {
        let sums = !matches!(self, Self::Aimer | Self::Random);
        let left_out = matches!(self, Self::LeaveOneOut | Self::LeaveOneOutCosine);
        let inputs = matches!(self, Self::Exhaustive | Self::RankedChoice);
        Needs { sums, left_out, sample_every: 0, inputs }
    }

    /// Saliencies by this criterion; None for criteria that need more than sums.
    pub(super) fn of_sums(self, sums: &CalibrationSums) -> Option<Vec<f64>> {
        let of: fn(&CalibrationSums) -> Vec<f64> = match self {
            Self::Reap => saliency::reap,
            Self::Ean => saliency::expert_activation_norm,
            Self::Man => saliency::mean_activation_norm,
            Self::Msan => saliency::mean_square_activation_norm,
            Self::Frequency => saliency::frequency,
            Self::SoftFrequency => saliency::soft_frequency,
            Self::LeaveOneOut => saliency::leave_one_out,
            Self::LeaveOneOutCosine => saliency::leave_one_out_cosine,
            Self::Aimer | Self::Exhaustive | Self::RankedChoice | Self::Random => return None,
        };
        Some(of(sums))
    }
}
