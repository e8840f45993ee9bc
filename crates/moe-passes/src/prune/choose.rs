//! Which experts of a layer stay.

use clap::ValueEnum;
use moe_forward::{group_factors, labels};
use moe_math::saliency::greatest;
use moe_math::sampling;
use moe_math::statistics::Sums;
use moe_model::{Model, Result};
use serde::{Deserialize, Serialize};

use super::criteria::{Criterion, aimer};
use super::exhaustive;
use crate::reduce::{LayerView, Method, Needs, Reduced, Size};

/// How domains are weighed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blend {
    /// Their sums are added up.
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
    /// What this criterion can't do.
    pub fn check(&self, model: &Model, size: Size) -> Result<()> {
        match self.criterion {
            Criterion::Exhaustive => exhaustive::check(model, size),
            _ => Ok(()),
        }
    }

    fn saliency(&self, layer: &LayerView<'_>) -> Result<Vec<f64>> {
        let factors = group_factors(layer.groups);
        let pooled = |groups: &dyn Fn(usize) -> bool| {
            let chosen = layer.sums.iter().zip(&factors).enumerate().filter(|(index, _)| groups(*index));
            Sums::pooled(chosen.map(|(_, (sums, factor))| (sums, *factor)))
        };
        match self.criterion {
            Criterion::Aimer => layer.moe.experts.iter().map(|e| aimer(e, layer.compute)).collect(),
            Criterion::Random => Ok(random(layer)),
            Criterion::RankedChoice => exhaustive::ranked_choice(layer),
            _ => Ok(self.criterion.of_sums(&pooled(&|_| true)).unwrap_or_default()),
        }
    }

    /// The same from either half of the data.
    fn halves(&self, layer: &LayerView<'_>) -> Option<[Vec<f64>; 2]> {
        let half = |half: u8| {
            let of = layer.groups.iter().zip(layer.sums).filter(|(group, _)| group.half == half && group.tokens > 0);
            let mut of = of.map(|(_, sums)| (sums, 1.0)).peekable();
            of.peek()?;
            self.criterion.of_sums(&Sums::pooled(of))
        };
        Some([half(0)?, half(1)?])
    }

    /// Saliencies of each domain as shares of their sum.
    fn by_domain(&self, layer: &LayerView<'_>) -> Vec<Vec<f64>> {
        let of = |label: &str| {
            let groups = layer.groups.iter().zip(layer.sums).filter(|(group, _)| group.label == label);
            let saliency =
                self.criterion.of_sums(&Sums::pooled(groups.map(|(_, sums)| (sums, 1.0)))).unwrap_or_default();
            let all: f64 = saliency.iter().sum();
            saliency.into_iter().map(|s| if all > 0.0 { s / all } else { 0.0 }).collect()
        };
        labels(layer.groups).into_iter().map(of).collect()
    }
}

impl Method for Pruning {
    fn needs(&self) -> Needs {
        self.criterion.needs()
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        if self.criterion == Criterion::Exhaustive {
            let kept = exhaustive::best_subset(layer)?;
            return Ok(reduced(kept, Vec::new(), None));
        }
        let saliency = self.saliency(layer)?;
        let kept = match self.blend {
            Blend::Pool => keep(&saliency, layer),
            Blend::MaxMin => keep(&max_min_order(&self.by_domain(layer)), layer),
        };
        Ok(reduced(kept, saliency, self.halves(layer)))
    }
}

fn reduced(kept: Vec<usize>, saliency: Vec<f64>, halves: Option<[Vec<f64>; 2]>) -> Reduced {
    Reduced { clusters: kept.into_iter().map(|e| vec![e]).collect(), saliency, halves, experts: None, made: None }
}

/// The most salient experts, protected ones first.
fn keep(saliency: &[f64], layer: &LayerView<'_>) -> Vec<usize> {
    let mut saliency = saliency.to_vec();
    layer.protected.iter().for_each(|e| saliency[*e] = f64::INFINITY);
    greatest(&saliency, layer.count)
}

/// A saliency for each expert: how early it is chosen when the domain that has the least share of its saliency so far
/// chooses next, its own most salient one. `shares` holds each domain's shares.
fn max_min_order(shares: &[Vec<f64>]) -> Vec<f64> {
    let experts = shares.first().map_or(0, Vec::len);
    let mut order = vec![0.0; experts];
    let mut left: Vec<usize> = (0..experts).collect();
    let mut kept = vec![0f64; shares.len()];
    for rank in (1..=experts).rev() {
        // Of equals the first domain, and the lower expert.
        let worst = (0..kept.len()).min_by(|a, b| kept[*a].total_cmp(&kept[*b])).unwrap_or(0);
        let best = |a: &&usize, b: &&usize| shares[worst][**a].total_cmp(&shares[worst][**b]).then(b.cmp(a));
        let Some(&chosen) = left.iter().max_by(best) else { break };
        left.retain(|e| *e != chosen);
        order[chosen] = rank as f64;
        kept.iter_mut().zip(shares).for_each(|(kept, shares)| *kept += shares[chosen]);
    }
    order
}

fn random(layer: &LayerView<'_>) -> Vec<f64> {
    let experts = layer.moe.experts.len();
    let mut saliency = vec![0.0; experts];
    let order = sampling::choose(experts, experts, &mut sampling::generator(layer.seed, layer.index as u64));
    order.into_iter().enumerate().for_each(|(rank, expert)| saliency[expert] = rank as f64);
    saliency
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_domain_chooses_next() {
        // Domain 0 chooses 0 (0.6 / 0.0), then domain 1 has least: 2 (0.6, 0.9), then domain 0: 1.
        let order = max_min_order(&[vec![0.6, 0.4, 0.0], vec![0.0, 0.1, 0.9]]);
        assert_eq!(order, [3.0, 1.0, 2.0]);
        assert!(max_min_order(&[]).is_empty());
    }
}
