//! What is said of a layer that became dense.

use serde::Serialize;

use crate::pass::Kept;

/// How a layer's dense network was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistilledLayer {
    /// Neurons of the experts, of those that are the same one.
    pub distinct: usize,
    /// Neurons of the dense network.
    pub width: usize,
    /// Those among them that are zero, since there were no more.
    pub zeros: usize,
    /// Where the others come from, in order.
    pub parts: Vec<DistilledPart>,
    /// Mean gate of each expert over all tokens.
    pub gates: Vec<f64>,
    /// Mean gate of the shared expert, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_gate: Option<f64>,
    /// What experts were ranked by, where they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// How the down projection was fitted, where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<DownFit>,
    /// How it was trained, where it was: on what reaches the original layer, then on what reaches
    /// this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trained: Vec<Trained>,
    /// Norm of the error of the network's output by that of the mixture's, on windows that nothing
    /// but λ and the steps of training were chosen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Whether it gives what the mixture gives.
    pub kept: Kept,
}

/// Neurons that come from one network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistilledPart {
    /// Which it is.
    pub from: String,
    /// How many neurons.
    pub neurons: usize,
    /// The mean factor that their down columns were multiplied by.
    pub factor: f64,
}

/// A choice of λ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DownFit {
    /// λ as a multiple of the mean diagonal of Σ h hᵀ; none where the measured projection did best.
    pub lambda: Option<f64>,
    /// Each that was tried, and the relative output error on held-out tokens; the last is the
    /// measured projection's.
    pub tried: Vec<(Option<f64>, f64)>,
}

/// A run of training.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trained {
    /// Steps that were taken.
    pub steps: u64,
    /// The step that did best on held-out tokens, which is kept; 0 for what was there before.
    pub best: u64,
    /// The step in which the loss or its gradient ceased to be a number, if one did; nothing was
    /// learned from it on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diverged: Option<u64>,
    /// What held-out tokens said on the way.
    pub looks: Vec<Look>,
}

impl Trained {
    /// The error on held-out tokens before, and of what is kept.
    pub fn errors(&self) -> Option<[f64; 2]> {
        let at =
            |step: u64| self.looks.iter().find(|look| look.step == step).map(|look| look.error);
        Some([at(0)?, at(self.best)?])
    }
}

/// A look at held-out tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// Steps so far.
    pub step: u64,
    /// Norm of the error of the output by that of the mixture's.
    pub error: f64,
    /// Mean loss of the steps since the last look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}
