//! Figures that tell how far the decision about a layer can be trusted.

use moe_math::figures::{Checked, check_experts, check_length, check_share, within};
use moe_math::load::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pass::LayerDetails;

/// Figures about one layer's decision. Shares are of the calibration tokens' sums before the
/// decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerTrust {
    /// Experts before and after.
    pub experts: [usize; 2],
    /// For each expert that is left: the one whose router row it keeps, then what was merged into
    /// it.
    pub clusters: Vec<Vec<usize>>,
    /// The saliency of each expert; experts with the greatest are kept.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    pub saliency: Vec<f64>,
    /// Share of Σ g ‖f‖ of the experts that go on, alone or merged into others; one of which only
    /// some neurons were merged counts by their share.
    pub retained_mass: f64,
    /// The domain with the least such share, and that share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_domain: Option<(String, f64)>,
    /// Share of tokens' choices whose expert doesn't go on, counted in the same way.
    pub lost_choices: f64,
    /// Tokens that chose each expert before.
    pub load: Load,
    /// Spearman's correlation of the saliencies that each half of the data gives, and the Jaccard
    /// index of what they keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    pub stability: Option<[f64; 2]>,
    /// √(Σ‖y − y'‖² / Σ‖y‖²) of the block's output, all tokens rerouted, on the states that reached
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    pub output_error: Option<f64>,
    /// Super experts among the experts, which the guard kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub super_experts: Vec<usize>,
}

impl LayerDetails for LayerTrust {
    const KIND: &'static str = "reduced";

    fn check(&self) -> Checked {
        let [before, after] = self.experts;
        check_length("load.counts", self.load.counts.len(), before)?;
        check_length("clusters", self.clusters.len(), after)?;
        for (index, cluster) in self.clusters.iter().enumerate() {
            check_experts(&format!("clusters[{index}]"), cluster, before)?;
        }
        // Some methods give experts no saliency.
        if !self.saliency.is_empty() {
            check_length("saliency", self.saliency.len(), before)?;
        }
        check_experts("super_experts", &self.super_experts, before)?;
        check_share("retained_mass", self.retained_mass)?;
        check_share("lost_choices", self.lost_choices)?;
        if let Some((_, share)) = &self.worst_domain {
            check_share("worst_domain[1]", *share)?;
        }
        within("load", self.load.check())
    }
}

impl LayerTrust {
    /// Whether all mass is kept by definition, since every expert is merged into another. The
    /// retained mass then says nothing of what merging costs, which shows in
    /// [`Self::output_error`].
    pub fn merges_all(&self) -> bool {
        self.retained_mass >= 1.0 && self.clusters.iter().any(|cluster| cluster.len() > 1)
    }
}
