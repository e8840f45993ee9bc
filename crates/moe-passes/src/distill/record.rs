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
    /// Norm of the error of the network's output by that of the mixture's, on tokens that nothing was decided on.
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
    /// What their down columns were multiplied by, in the mean.
    pub factor: f64,
}

/// A choice of λ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DownFit {
    /// λ as a multiple of the mean diagonal of Σ h hᵀ; none where the measured projection did best.
    pub lambda: Option<f64>,
    /// Each that was tried, and the relative output error on held-out tokens; the last is the measured projection's.
    pub tried: Vec<(Option<f64>, f64)>,
}
