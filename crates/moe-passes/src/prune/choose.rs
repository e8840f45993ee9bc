//! The choice of experts that stay in a layer.

use clap::ValueEnum;
use moe_model::{Model, Result};
use serde::{Deserialize, Serialize};

use super::criteria::Criterion;
use super::exhaustive;
use crate::reduce::{
    LayerView, Method, Needs, Reduced, Size, aimer, most_salient, random_saliency,
};

/// The way in which domains are weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blend {
    /// The sums of all domains are added up.
    #[default]
    Pool,
    /// The domain that has kept the least share of its saliency chooses next.
    MaxMin,
}

/// Pruning by a criterion.
pub(super) struct Pruning {
    pub criterion: Criterion,
    pub blend: Blend,
}

impl Pruning {
    /// Refuses a model or size that this criterion can't handle.
    pub fn check(&self, model: &Model, size: &Size) -> Result<()> {
        match self.criterion {
            Criterion::Exhaustive => exhaustive::check(model, size),
            _ => Ok(()),
        }
    }

    fn saliency(&self, layer: &LayerView<'_>) -> Result<Vec<f64>> {
        match self.criterion {
            Criterion::Aimer => layer.moe.experts.iter().map(|e| aimer(e, layer.compute)).collect(),
            Criterion::Random => {
                Ok(random_saliency(layer.moe.experts.len(), layer.index, layer.seed))
            }
            Criterion::RankedChoice => exhaustive::ranked_choice(layer),
            _ => Ok(self.criterion.of_sums(&layer.pooled()).unwrap_or_default()),
        }
    }

    /// The saliencies of each domain, as shares of their sum.
    fn by_domain(&self, layer: &LayerView<'_>) -> Vec<Vec<f64>> {
        let domains = layer.domains().into_iter().map(|(_, sums)| {
            let saliency = self.criterion.of_sums(&sums).unwrap_or_default();
            let all: f64 = saliency.iter().sum();
            saliency.into_iter().map(|s| if all > 0.0 { s / all } else { 0.0 }).collect()
        });
        domains.collect()
    }
}

impl Method for Pruning {
    fn needs(&self) -> Needs {
        self.criterion.needs()
    }

    fn working_bytes(&self, model: &Model, experts: usize, tokens: usize) -> u64 {
        match self.criterion {
            Criterion::Exhaustive => exhaustive::best_subset_bytes(model.hidden, experts, tokens),
            Criterion::RankedChoice => {
                exhaustive::ranked_choice_bytes(model.hidden, experts, tokens)
            }
            _ => 0,
        }
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        if self.criterion == Criterion::Exhaustive {
            return Ok(Reduced::unmerged(exhaustive::best_subset(layer)?, Vec::new()));
        }
        let saliency = self.saliency(layer)?;
        let kept = match self.blend {
            Blend::Pool => keep(&saliency, layer),
            Blend::MaxMin => keep(&max_min_order(&self.by_domain(layer)), layer),
        };
        let halves = layer.halves(|sums| self.criterion.of_sums(sums));
        Ok(Reduced { halves, ..Reduced::unmerged(kept, saliency) })
    }
}

/// The most salient experts, protected ones first.
fn keep(saliency: &[f64], layer: &LayerView<'_>) -> Vec<usize> {
    let mut saliency = saliency.to_vec();
    layer.protected.iter().for_each(|e| saliency[*e] = f64::INFINITY);
    most_salient(&saliency, layer.moe, layer.count)
}

/// A saliency for each expert that says how early max-min chooses it: the domain that has the least
/// share of its saliency so far chooses next, its own most salient expert. `shares` holds each
/// domain's shares.
fn max_min_order(shares: &[Vec<f64>]) -> Vec<f64> {
    let experts = shares.first().map_or(0, Vec::len);
    let mut order = vec![0.0; experts];
    let mut left: Vec<usize> = (0..experts).collect();
    let mut kept = vec![0f64; shares.len()];
    for rank in (1..=experts).rev() {
        // Among equals, the first domain and the lower expert.
        let worst = (0..kept.len()).min_by(|a, b| kept[*a].total_cmp(&kept[*b])).unwrap_or(0);
        let shares_of_worst = &shares[worst];
        let best = left
            .iter()
            .max_by(|a, b| shares_of_worst[**a].total_cmp(&shares_of_worst[**b]).then(b.cmp(a)));
        let Some(&chosen) = best else { break };
        left.retain(|e| *e != chosen);
        order[chosen] = rank as f64;
        kept.iter_mut().zip(shares).for_each(|(kept, shares)| *kept += shares[chosen]);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_domain_chooses_next() {
        // Domain 0 chooses 0 (0.6 / 0.0); domain 1, which has least, chooses 2 (0.6, 0.9); domain 0
        // chooses 1.
        let order = max_min_order(&[vec![0.6, 0.4, 0.0], vec![0.0, 0.1, 0.9]]);
        assert_eq!(order, [3.0, 1.0, 2.0]);
        assert!(max_min_order(&[]).is_empty());
    }
}
