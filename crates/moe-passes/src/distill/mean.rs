//! The baseline: means of experts whose neurons are aligned.

use moe_model::{Expert, Moe, Result};

use crate::align::{Permutations, by_weights};
use crate::merged::{Share, merged};

/// Means of groups of experts.
pub(super) struct Means {
    /// The mean of each group.
    pub networks: Vec<Expert>,
    /// The experts of each group.
    pub groups: Vec<Vec<usize>>,
}

/// `count` networks: the mean of every `count`-th expert of `moe`, weighted by `weights`. Neurons
/// of a group are aligned by weights with those of its first expert.
pub(super) fn means(moe: &Moe, count: usize, weights: &[f64]) -> Result<Means> {
    let experts = moe.experts.len();
    let groups: Vec<Vec<usize>> =
        (0..count).map(|first| (first..experts).step_by(count).collect()).collect();
    let permutations = by_weights(moe, &groups)?;
    let networks = groups.iter().map(|group| mean(moe, group, weights, &permutations)).collect();
    Ok(Means { networks, groups })
}

/// The mean of the experts of `group`.
fn mean(moe: &Moe, group: &[usize], weights: &[f64], permutations: &Permutations) -> Expert {
    let all: f64 = group.iter().map(|expert| weights[*expert]).sum();
    let members = group.iter().map(|expert| {
        // Experts that no token chose have equal weights.
        let coefficient = if all > 0.0 { weights[*expert] / all } else { 1.0 / group.len() as f64 };
        let permutation = permutations.get(expert).cloned();
        (&moe.experts[*expert], Share::All { coefficient, permutation })
    });
    merged(&members.collect::<Vec<_>>())
}
