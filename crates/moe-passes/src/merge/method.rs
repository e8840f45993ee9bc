//! The methods of merging a layer's experts.

use moe_math::meter::Work;
use moe_math::saliency;
use moe_math::statistics::{Quantity, Sums};
use moe_model::{Expert, Model, Moe, Result};

use super::dern;
use super::fit::{self, Fit};
use super::groups::{Division, Similarity, coefficients, of_layer};
use super::options::{DERN_THRESHOLD, GROUP_CAP, Grouping, MergeAlgorithm, MergeOptions, usage};
use crate::align::{self, Permutations, Sizes};
use crate::merged::{Share, merged};
use crate::pass::{NetworkEdit, NetworkSource};
use crate::reduce::{LayerView, Method, Needs, Reduced};

/// A method with its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merging {
    pub method: MergeAlgorithm,
    pub grouping: Grouping,
    pub group_cap: usize,
    pub dern_threshold: f64,
    pub sample_every: usize,
}

impl MergeOptions {
    pub(super) fn merging(&self) -> Merging {
        Merging {
            method: self.algorithm,
            grouping: self.grouping.unwrap_or_default(),
            group_cap: self.group_cap.unwrap_or(GROUP_CAP),
            dern_threshold: self.dern_threshold.unwrap_or(DERN_THRESHOLD),
            sample_every: self.all_experts_every.unwrap_or(1),
        }
    }
}

/// The groups of a layer, decided before weights are made.
pub(super) struct Decided {
    /// Experts of each group, its centroid first.
    pub groups: Vec<Vec<usize>>,
    /// Weights of each group's members; they sum to 1.
    pub coefficients: Vec<Vec<f64>>,
    pub permutations: Permutations,
}

impl Merging {
    /// The saliency that ranks experts and weights their means.
    fn saliency(&self, sums: &Sums) -> Vec<f64> {
        match self.method {
            MergeAlgorithm::Ream => saliency::reap(sums),
            MergeAlgorithm::Dern => saliency::soft_frequency(sums),
            _ => saliency::frequency(sums),
        }
    }

    /// The same from each half of the data, where saliency chooses the experts whose router rows
    /// stay; None otherwise.
    fn halves(&self, layer: &LayerView<'_>) -> Option<[Vec<f64>; 2]> {
        if matches!(self.method, MergeAlgorithm::HcSmoe | MergeAlgorithm::Average) {
            return None;
        }
        layer.halves(|sums| Some(self.saliency(sums)))
    }

    fn groups(&self, layer: &LayerView<'_>, sums: &Sums) -> Result<Vec<Vec<usize>>> {
        let n = layer.moe.experts.len();
        let saliency = self.saliency(sums);
        let logits = || Similarity::cosines_of_products(sums.get(Quantity::LogitProducts), n);
        let around = |similarity: Similarity, grouping, cap| {
            let group = |division: &Division| {
                division.around_centroids(&saliency, &similarity, grouping, cap)
            };
            of_layer(layer.moe, layer.count, layer.protected, group)
        };
        Ok(match self.method {
            MergeAlgorithm::Ream => {
                let outputs = Similarity::cosines(sums.get(Quantity::GatedOutputs), n);
                around(outputs.mean(&logits()), self.grouping, self.group_cap)
            }
            MergeAlgorithm::HcSmoe | MergeAlgorithm::Average => {
                let features = mean_outputs(layer.index, sums)?;
                let group = |division: &Division| division.clusters(&features, sums.sizes().hidden);
                of_layer(layer.moe, layer.count, layer.protected, group)
            }
            MergeAlgorithm::MSmoe | MergeAlgorithm::Mergemoe | MergeAlgorithm::Dern => {
                around(logits(), Grouping::Nearest, usize::MAX)
            }
        })
    }

    pub fn decide(&self, layer: &LayerView<'_>, sums: &Sums) -> Result<Decided> {
        let groups = layer.compute.stage("groups", Work::UNCOUNTED, || self.groups(layer, sums))?;
        let coefficients = match self.method {
            MergeAlgorithm::Average => coefficients(&groups, &vec![1.0; layer.moe.experts.len()]),
            _ => coefficients(&groups, &self.saliency(sums)),
        };
        let align = || match self.method {
            MergeAlgorithm::Ream => align::by_activations_and_weights(layer, sums, &groups),
            MergeAlgorithm::MSmoe => align::by_weights(layer.moe, &groups),
            _ => Ok(Permutations::new()),
        };
        let permutations = layer.compute.stage("alignment", Work::UNCOUNTED, align)?;
        Ok(Decided { groups, coefficients, permutations })
    }
}

impl Method for Merging {
    fn needs(&self) -> Needs {
        let by_outputs = matches!(self.method, MergeAlgorithm::HcSmoe | MergeAlgorithm::Average);
        Needs {
            sums: true,
            left_out: false,
            sample_every: if by_outputs { self.sample_every } else { 0 },
            inputs: self.method == MergeAlgorithm::Mergemoe,
        }
    }

    fn working_bytes(&self, model: &Model, experts: usize, tokens: usize) -> u64 {
        let of = |moe: &Moe| {
            let sizes = Sizes::of(moe);
            match self.method {
                MergeAlgorithm::Dern => dern::working_bytes(sizes),
                MergeAlgorithm::MSmoe => align::bytes_by_weights(sizes),
                MergeAlgorithm::Ream => align::bytes_by_activations_and_weights(sizes, experts),
                MergeAlgorithm::Mergemoe | MergeAlgorithm::HcSmoe | MergeAlgorithm::Average => 0,
            }
        };
        let compared = model.moes().map(|(_, moe)| of(moe) as u64).max().unwrap_or(0);
        match self.method {
            MergeAlgorithm::Mergemoe => fit::working_bytes(model, experts, tokens),
            _ => compared,
        }
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        let sums = layer.pooled();
        let saliency = self.saliency(&sums);
        let halves = self.halves(layer);
        if self.method == MergeAlgorithm::Dern {
            let reduce = || dern::reduce(layer, saliency, self.dern_threshold);
            let reduced = layer.compute.stage("neurons' targets", Work::UNCOUNTED, reduce)?;
            return Ok(Reduced { halves, ..reduced });
        }
        let decided = self.decide(layer, &sums)?;
        let fit =
            if self.method == MergeAlgorithm::Mergemoe { Some(Fit::new(layer)?) } else { None };
        let of_group = |(group, weights): (&Vec<usize>, &Vec<f64>)| {
            made(layer, group, weights, &decided.permutations, fit.as_ref())
        };
        let groups = decided.groups.iter().zip(&decided.coefficients);
        let make = || groups.map(of_group).collect::<Result<_>>();
        let experts = layer.compute.stage("fits", Work::UNCOUNTED, make)?;
        let made = decided
            .groups
            .iter()
            .zip(&decided.coefficients)
            .map(|(group, w)| edit(group, w))
            .collect();
        let clusters = decided.groups;
        Ok(Reduced {
            clusters,
            saliency,
            halves,
            experts: Some(experts),
            made: Some(made),
            carried: None,
        })
    }
}

/// The expert that a group becomes; the only member of a group of one stays as it is stored.
fn made(
    layer: &LayerView<'_>,
    group: &[usize],
    coefficients: &[f64],
    permutations: &Permutations,
    fit: Option<&Fit<'_>>,
) -> Result<Expert> {
    let experts = &layer.moe.experts;
    if let [one] = group {
        return Ok(experts[*one].clone());
    }
    let share = |(expert, coefficient): (&usize, &f64)| {
        let permutation = permutations.get(expert).cloned();
        (&experts[*expert], Share::All { coefficient: *coefficient, permutation })
    };
    let members: Vec<_> = group.iter().zip(coefficients).map(share).collect();
    let mut expert = merged(&members);
    if let Some(down) = fit.map(|fit| fit.down(group, coefficients, &expert)).transpose()?.flatten()
    {
        expert.down.weight = down;
    }
    Ok(expert)
}

/// The record of a group's expert.
fn edit(group: &[usize], coefficients: &[f64]) -> NetworkEdit {
    if let [one] = group {
        return NetworkEdit::of(vec![NetworkSource::expert(*one)]);
    }
    let source = |(expert, weight): (&usize, &f64)| NetworkSource {
        weight: Some(*weight),
        ..NetworkSource::expert(*expert)
    };
    NetworkEdit::of(group.iter().zip(coefficients).map(source).collect())
}

/// The mean output of each expert over the sampled tokens, whether they chose it or not, `[experts,
/// hidden]`.
fn mean_outputs(index: usize, sums: &Sums) -> Result<Vec<f64>> {
    let tokens = sums.scalar(Quantity::SampledTokens);
    if tokens > 0.0 {
        return Ok(sums.get(Quantity::SampledOutputs).iter().map(|sum| sum / tokens).collect());
    }
    Err(usage(
        format!(
            "these statistics of layer {index} don't say what experts do on tokens that didn't choose them"
        ),
        "observe again with --all-experts-every 1 (or 16, for a sixteenth of the cost), or give --data",
    ))
}
