//! Algorithms by which each group of experts becomes one expert, their weighted mean.

use moe_math::meter::Work;
use moe_math::statistics::CalibrationSums;
use moe_model::{Expert, Result};

use super::fit::Fit;
use super::groups::coefficients;
use crate::align::Permutations;
use crate::merged::{Share, merged};
use crate::pass::{NetworkEdit, NetworkSource};
use crate::reduce::{LayerView, Reduced};

/// The steps in which one grouping algorithm differs from another.
///
/// [`reduce`] asks for a layer's `groups`, takes the mean of each with `weights`, after it has put
/// the neurons of members in the order of the centroid's by `permutations`, and lets `fit` replace
/// the down projection.
pub(super) trait Grouped {
    /// The saliency of each expert.
    fn saliency(&self, sums: &CalibrationSums) -> Vec<f64>;

    /// Whether saliency chooses the experts whose router rows stay.
    fn is_ranked(&self) -> bool {
        true
    }

    /// The weight of each expert in the mean of its group.
    fn weights(&self, sums: &CalibrationSums) -> Vec<f64> {
        self.saliency(sums)
    }

    /// The experts of each group, its centroid first.
    fn groups(&self, layer: &LayerView<'_>, sums: &CalibrationSums) -> Result<Vec<Vec<usize>>>;

    /// The order of neurons for members whose order differs from their centroid's.
    fn permutations(
        &self,
        _layer: &LayerView<'_>,
        _sums: &CalibrationSums,
        _groups: &[Vec<usize>],
    ) -> Result<Permutations> {
        Ok(Permutations::new())
    }

    /// The fit of down projections to the groups' outputs; None if those of the mean stay.
    fn fit<'a>(&self, _layer: &'a LayerView<'a>) -> Result<Option<Fit<'a>>> {
        Ok(None)
    }
}

/// The groups of a layer, decided before weights are made.
pub(super) struct Groups {
    /// Experts of each group, its centroid first.
    pub members: Vec<Vec<usize>>,
    /// Weights of each group's members; they sum to 1.
    pub coefficients: Vec<Vec<f64>>,
    pub permutations: Permutations,
}

impl Groups {
    pub fn decide(
        algorithm: &dyn Grouped,
        layer: &LayerView<'_>,
        sums: &CalibrationSums,
    ) -> Result<Self> {
        let members =
            layer.compute.stage("groups", Work::UNCOUNTED, || algorithm.groups(layer, sums))?;
        let coefficients = coefficients(&members, &algorithm.weights(sums));
        let permutations = layer.compute.stage("alignment", Work::UNCOUNTED, || {
            algorithm.permutations(layer, sums, &members)
        })?;
        Ok(Self { members, coefficients, permutations })
    }

    /// Each group's members with their weights.
    fn iter(&self) -> impl Iterator<Item = (&[usize], &[f64])> {
        self.members.iter().map(Vec::as_slice).zip(self.coefficients.iter().map(Vec::as_slice))
    }

    /// The experts that the groups become.
    fn experts(&self, layer: &LayerView<'_>, fit: Option<&Fit<'_>>) -> Result<Vec<Expert>> {
        self.iter()
            .map(|(group, coefficients)| {
                let mut expert = self.mean(&layer.moe.experts, group, coefficients);
                if let (Some(fit), [_, _, ..]) = (fit, group)
                    && let Some(down) = fit.down(group, coefficients, &expert)?
                {
                    expert.down.weight = down;
                }
                Ok(expert)
            })
            .collect()
    }

    /// The mean of a group; the only member of a group of one stays as it is stored.
    fn mean(&self, experts: &[Expert], group: &[usize], coefficients: &[f64]) -> Expert {
        if let [one] = group {
            return experts[*one].clone();
        }
        let members = group.iter().zip(coefficients).map(|(expert, coefficient)| {
            let permutation = self.permutations.get(expert).cloned();
            (&experts[*expert], Share::All { coefficient: *coefficient, permutation })
        });
        merged(&members.collect::<Vec<_>>())
    }
}

/// Decides a layer by `algorithm`.
pub(super) fn reduce(algorithm: &dyn Grouped, layer: &LayerView<'_>) -> Result<Reduced> {
    let sums = layer.pooled();
    let groups = Groups::decide(algorithm, layer, &sums)?;
    let fit = algorithm.fit(layer)?;
    let experts =
        layer.compute.stage("fits", Work::UNCOUNTED, || groups.experts(layer, fit.as_ref()))?;
    let halves = if algorithm.is_ranked() {
        layer.halves(|sums| Some(algorithm.saliency(sums)))
    } else {
        None
    };
    Ok(Reduced {
        made: Some(groups.iter().map(|(group, weights)| edit(group, weights)).collect()),
        clusters: groups.members,
        saliency: algorithm.saliency(&sums),
        halves,
        experts: Some(experts),
        carried: None,
    })
}

/// The record of a group's expert.
fn edit(group: &[usize], coefficients: &[f64]) -> NetworkEdit {
    if let [one] = group {
        return NetworkEdit::of(vec![NetworkSource::expert(*one)]);
    }
    let sources = group.iter().zip(coefficients).map(|(expert, weight)| NetworkSource {
        weight: Some(*weight),
        ..NetworkSource::expert(*expert)
    });
    NetworkEdit::of(sources.collect())
}
