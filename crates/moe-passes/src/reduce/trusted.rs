//! Computes how far a decision can be trusted, from the sums that it was made on.

use moe_math::load::Load;
use moe_math::rank::{jaccard, spearman};
use moe_math::saliency::greatest;
use moe_math::statistics::{CalibrationSums, Quantity};

use super::{LayerTrust, LayerView, Reduced};

impl LayerTrust {
    /// Figures for the decision `reduced`, from the sums of `layer`.
    pub(super) fn new(reduced: &Reduced, layer: &LayerView<'_>) -> Self {
        let pooled = layer.pooled();
        let kept = reduced.clusters.len();
        let carried = reduced.carried(pooled.sizes().experts);
        let mass = |sums: &CalibrationSums| share_kept(sums.get(Quantity::GatedNorms), &carried);
        let domains = layer.domains().into_iter();
        let domains = domains.map(|(label, sums)| (label.to_owned(), mass(&sums)));
        let counts = pooled.get(Quantity::Tokens).iter().map(|n| n.round() as u64).collect();
        let stability = reduced
            .halves
            .as_ref()
            .map(|[a, b]| [spearman(a, b), jaccard(&greatest(a, kept), &greatest(b, kept))]);
        Self {
            experts: [pooled.sizes().experts, kept],
            clusters: reduced.clusters.clone(),
            saliency: reduced.saliency.clone(),
            retained_mass: mass(&pooled),
            worst_domain: domains.min_by(|a, b| a.1.total_cmp(&b.1)),
            lost_choices: 1.0 - share_kept(pooled.get(Quantity::Tokens), &carried),
            load: Load::new(counts),
            stability,
            output_error: None,
            super_experts: layer.protected.to_vec(),
        }
    }
}

/// The share of the sum of `values`, by expert, that is kept where each expert's share `carried`
/// is; 1 where the sum is 0.
fn share_kept(values: &[f64], carried: &[f64]) -> f64 {
    let all: f64 = values.iter().sum();
    let kept: f64 = values.iter().zip(carried).map(|(value, share)| value * share).sum();
    if all > 0.0 { kept / all } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use moe_forward::Group;
    use moe_math::Compute;
    use moe_model::Model;

    use super::*;

    /// Experts of the built-in model have mass and tokens 1, 2, 3, …; the sum of all 24 is 300.
    fn trust(reduced: &Reduced) -> LayerTrust {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe");
        let model = Model::open(&dir).unwrap();
        let (index, moe) = model.moes().next().unwrap();
        let mut sums = CalibrationSums::new(moe_math::statistics::MixtureSizes {
            experts: 24,
            hidden: 1,
            width: 1,
        });
        for quantity in [Quantity::GatedNorms, Quantity::Tokens] {
            (0..24).for_each(|e| sums.of_mut(quantity, e)[0] = (e + 1) as f64);
        }
        let groups = [Group { label: "text".to_owned(), half: 0, weight: None, tokens: 75 }];
        let compute = Compute::cpu();
        let count = reduced.clusters.len();
        let sums = [sums];
        let (protected, inputs) = (&[][..], &[][..]);
        let view = LayerView {
            index,
            moe,
            count,
            protected,
            groups: &groups,
            sums: &sums,
            inputs,
            seed: 0,
            compute: &compute,
        };
        LayerTrust::new(reduced, &view)
    }

    #[test]
    fn dropped_experts_are_lost() {
        let trust = trust(&Reduced::unmerged(12..24, Vec::new()));
        // 13 + … + 24
        assert_eq!((trust.retained_mass, trust.lost_choices), (222.0 / 300.0, 1.0 - 222.0 / 300.0));
        assert_eq!(trust.worst_domain, Some(("text".to_owned(), 222.0 / 300.0)));
    }

    #[test]
    fn merged_experts_are_not_lost() {
        let clusters = (0..12).map(|e| vec![e, e + 12]).collect();
        let merged = trust(&Reduced { clusters, ..Reduced::unmerged([], Vec::new()) });
        assert_eq!(
            (merged.retained_mass, merged.lost_choices, merged.experts),
            (1.0, 0.0, [24, 12])
        );
        // Half of expert 23's neurons joined another expert.
        let carried: Vec<f64> = (0..24).map(|e| if e == 23 { 0.5 } else { 1.0 }).collect();
        let some =
            trust(&Reduced { carried: Some(carried), ..Reduced::unmerged(0..23, Vec::new()) });
        assert_eq!((some.retained_mass, some.lost_choices), (288.0 / 300.0, 1.0 - 288.0 / 300.0));
    }
}
