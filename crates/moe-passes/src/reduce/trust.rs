//! What tells how far the decision about a layer can be trusted.

use moe_math::load::Load;
use moe_math::rank::{jaccard, spearman};
use moe_math::saliency::greatest;
use moe_math::statistics::{Quantity, Sums};
use serde::Serialize;

use super::{LayerView, Reduced};

/// Figures about one layer's decision. Shares are of the calibration tokens' sums before the decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerTrust {
    /// Experts before and after.
    pub experts: [usize; 2],
    /// For each expert that is left: the one whose router row it keeps, then what was merged into it.
    pub clusters: Vec<Vec<usize>>,
    /// What experts were ranked by; greater is kept.
    pub saliency: Vec<f64>,
    /// Share of Σ g ‖f‖ that the kept experts had.
    pub retained_mass: f64,
    /// The least such share over domains, and whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_domain: Option<(String, f64)>,
    /// Share of tokens' choices whose expert is gone.
    pub lost_choices: f64,
    /// Tokens that chose each expert before.
    pub load: Load,
    /// Spearman's correlation of the saliencies that each half of the data gives, and the Jaccard index of what they keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stability: Option<[f64; 2]>,
    /// √(Σ‖y − y'‖² / Σ‖y‖²) of the block's output, all tokens routed anew, on the states that reached it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Super experts among the experts, which the guard kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub super_experts: Vec<usize>,
}

impl LayerTrust {
    /// What the sums of `layer` say of `reduced`.
    pub(super) fn new(reduced: &Reduced, layer: &LayerView<'_>) -> Self {
        let kept = reduced.kept();
        let pooled = layer.pooled();
        let share = |sums: &Sums, quantity: Quantity| {
            let values = sums.get(quantity);
            let all: f64 = values.iter().sum();
            if all > 0.0 { kept.iter().map(|e| values[*e]).sum::<f64>() / all } else { 1.0 }
        };
        let of_domain = |(label, sums): (&str, Sums)| (label.to_owned(), share(&sums, Quantity::GatedNorms));
        let domains = layer.domains().into_iter().map(of_domain);
        let counts = pooled.get(Quantity::Tokens).iter().map(|n| n.round() as u64).collect();
        let stability = reduced.halves.as_ref().map(|[a, b]| {
            let count = kept.len();
            [spearman(a, b), jaccard(&greatest(a, count), &greatest(b, count))]
        });
        Self {
            experts: [pooled.sizes().experts, kept.len()],
            clusters: reduced.clusters.clone(),
            saliency: reduced.saliency.clone(),
            retained_mass: share(&pooled, Quantity::GatedNorms),
            worst_domain: domains.min_by(|a, b| a.1.total_cmp(&b.1)),
            lost_choices: 1.0 - share(&pooled, Quantity::Tokens),
            load: Load::new(counts),
            stability,
            output_error: None,
            super_experts: layer.protected.to_vec(),
        }
    }
}
