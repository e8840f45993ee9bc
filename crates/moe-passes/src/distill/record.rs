//! The record of a layer that became dense.

use std::fmt;

use moe_math::figures::{Checked, check_part, within};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pass::{Kept, LayerDetails};

/// The record of a layer that was made dense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistilledLayer {
    /// Number of distinct neurons in the experts.
    pub distinct: usize,
    /// Number of neurons of the dense network.
    pub width: usize,
    /// Number of neurons among them that are zero, since the experts have no more.
    pub zeros: usize,
    /// The networks that its other neurons come from, in order.
    pub parts: Vec<DistilledPart>,
    /// Mean gate of each expert over all tokens.
    pub gates: Vec<f64>,
    /// Mean gate of the shared expert. None if it has no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_gate: Option<f64>,
    /// The experts' scores, if experts were ranked; empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// The fit of the down projection. None if it wasn't fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<DownFit>,
    /// Its training: first on the inputs of the original layer, then on the inputs of this one.
    /// Empty if it wasn't trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained: Vec<Trained>,
    /// Relative error of the network's output, ‖y − mixture‖ / ‖mixture‖, on windows that only λ
    /// and the number of training steps were chosen on. None without such windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Whether it computes what the mixture computes.
    pub kept: Kept,
}

impl LayerDetails for DistilledLayer {
    const KIND: &'static str = "distilled";

    fn check(&self) -> Checked {
        check_part(["zeros", "width"], self.zeros as u64, self.width as u64)?;
        for (index, part) in self.parts.iter().enumerate() {
            let checked =
                check_part(["neurons", "the width"], part.neurons as u64, self.width as u64);
            within(format_args!("parts[{index}]"), checked)?;
        }
        for (index, trained) in self.trained.iter().enumerate() {
            let checked = check_part(["best", "steps"], trained.best, trained.steps);
            within(format_args!("trained[{index}]"), checked)?;
        }
        Ok(())
    }
}

/// Neurons that come from one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistilledPart {
    /// The network.
    #[serde(flatten)]
    pub from: PartSource,
    /// The number of neurons.
    pub neurons: usize,
    /// The mean factor that their down columns were multiplied by.
    pub factor: f64,
}

/// A network that neurons come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum PartSource {
    /// The shared expert.
    SharedExpert,
    /// A routed expert.
    Expert {
        /// The index of the expert.
        expert: usize,
    },
    /// The mean of routed experts whose neurons were aligned.
    Mean {
        /// Their indices.
        experts: Vec<usize>,
    },
    /// No network: the neurons are random.
    Chance,
}

impl fmt::Display for PartSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedExpert => f.write_str("shared expert"),
            Self::Expert { expert } => write!(f, "expert {expert}"),
            Self::Mean { experts } => {
                let experts: Vec<_> = experts.iter().map(usize::to_string).collect();
                write!(f, "mean of experts {}", experts.join(", "))
            }
            Self::Chance => f.write_str("chance"),
        }
    }
}

/// The choice of the regularization λ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DownFit {
    /// λ as a multiple of the mean diagonal of Σ h hᵀ. None if the measured projection did best.
    pub lambda: Option<f64>,
    /// Each λ that was tried, with its relative output error on held-out tokens; last the measured
    /// projection, without λ.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Vec<(Option<f64>, Option<f64>)>")]
    pub tried: Vec<(Option<f64>, f64)>,
}

/// A run of training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trained {
    /// Steps that were taken.
    pub steps: u64,
    /// The step that did best on held-out tokens, whose weights are kept; 0 for the weights before
    /// training.
    pub best: u64,
    /// The step in which the loss or its gradient stopped being finite, after which training
    /// stopped. None if that didn't happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diverged: Option<u64>,
    /// Errors on held-out tokens in the course of training.
    pub looks: Vec<Look>,
}

impl Trained {
    /// The error on held-out tokens before training, and that of the weights that are kept.
    pub fn errors(&self) -> Option<[f64; 2]> {
        let at =
            |step: u64| self.looks.iter().find(|look| look.step == step).map(|look| look.error);
        Some([at(0)?, at(self.best)?])
    }
}

/// A measurement on held-out tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Look {
    /// Number of steps so far.
    pub step: u64,
    /// Relative error of the output, ‖y − mixture‖ / ‖mixture‖.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub error: f64,
    /// Mean loss of the steps since the last measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    pub loss: Option<f64>,
}
