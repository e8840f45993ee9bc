//! Groups of a layer's experts that become one. Each group has its centroid first.

use moe_math::linkage::{average_linkage, euclidean, squared_distance};
use moe_math::saliency::greatest;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::{Moe, Result};

use super::parameters::Grouping;
use crate::reduce::LayerView;
use crate::usage::usage;

/// Experts that may be merged with each other, ascending, and how many of them are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Division {
    pub experts: Vec<usize>,
    pub count: usize,
}

/// Groups a layer of `count` experts; `group` groups one division. Only experts of the same routing
/// group are merged, and each routing group keeps equally many. Protected experts stand alone;
/// where that would leave no group for the others, protection has no effect.
///
/// Groups are ascending by centroid, and members after the centroid are ascending.
pub(super) fn of_layer(
    moe: &Moe,
    count: usize,
    protected: &[usize],
    group: impl Fn(&Division) -> Vec<Vec<usize>>,
) -> Vec<Vec<usize>> {
    let divisions = moe.router.groups.map_or(1, |groups| groups.count);
    let (size, count) = (moe.experts.len() / divisions, count / divisions);
    let mut groups = Vec::new();
    for division in 0..divisions {
        let experts: Vec<usize> = (division * size..(division + 1) * size).collect();
        let (mut alone, others): (Vec<_>, Vec<_>) =
            experts.iter().copied().partition(|e| protected.contains(e));
        let division = if alone.len() < count && !others.is_empty() {
            Division { count: count - alone.len(), experts: others }
        } else {
            alone.clear();
            Division { count, experts }
        };
        groups.extend(alone.into_iter().map(|expert| vec![expert]));
        groups.extend(group(&division));
    }
    groups.iter_mut().for_each(|group| group[1..].sort_unstable());
    groups.sort_unstable_by_key(|group| group[0]);
    groups
}

/// The groups of a layer around its most salient experts.
pub(super) fn around_most_salient(
    layer: &LayerView<'_>,
    saliency: &[f64],
    similarity: &Similarity,
    (grouping, cap): (Grouping, usize),
) -> Vec<Vec<usize>> {
    of_layer(layer.moe, layer.count, layer.protected, |division| {
        division.around_centroids(saliency, similarity, grouping, cap)
    })
}

/// The groups of a layer in which each expert joins the most salient one of most similar router
/// logits.
pub(super) fn like_logits(
    layer: &LayerView<'_>,
    sums: &CalibrationSums,
    saliency: &[f64],
) -> Vec<Vec<usize>> {
    let without_cap = (Grouping::Nearest, usize::MAX);
    around_most_salient(layer, saliency, &by_logits(layer, sums), without_cap)
}

/// The clusters of a layer by the mean outputs of its experts.
///
/// # Errors
/// For statistics without outputs on tokens that didn't choose the expert.
pub(super) fn clusters_of_outputs(
    layer: &LayerView<'_>,
    sums: &CalibrationSums,
) -> Result<Vec<Vec<usize>>> {
    let features = mean_outputs(layer.index, sums)?;
    Ok(of_layer(layer.moe, layer.count, layer.protected, |division| {
        division.clusters(&features, sums.sizes().hidden)
    }))
}

/// The similarity of experts by their router logits.
pub(super) fn by_logits(layer: &LayerView<'_>, sums: &CalibrationSums) -> Similarity {
    Similarity::cosines_of_products(sums.get(Quantity::LogitProducts), layer.moe.experts.len())
}

/// The mean output of each expert over the sampled tokens, whether they chose it or not, `[experts,
/// hidden]`.
fn mean_outputs(index: usize, sums: &CalibrationSums) -> Result<Vec<f64>> {
    let tokens = sums.scalar(Quantity::SampledTokens);
    if tokens > 0.0 {
        return Ok(sums.get(Quantity::SampledOutputs).iter().map(|sum| sum / tokens).collect());
    }
    Err(usage(
        &["--stats"],
        format!(
            "these statistics of layer {index} don't say what experts do on tokens that didn't choose them"
        ),
        "observe again with --all-experts-every 1 (or 16, for a sixteenth of the cost), or give --data",
    ))
}

/// The similarity of each pair of experts, `[n, n]`.
pub(super) struct Similarity {
    n: usize,
    values: Vec<f64>,
}

impl Similarity {
    /// Cosines of rows `[n, d]`; 0 where a row is 0.
    pub fn cosines(rows: &[f64], n: usize) -> Self {
        let rows: Vec<&[f64]> = rows.chunks_exact(rows.len() / n).collect();
        let products: Vec<f64> =
            (0..n * n).map(|ij| inner_product(rows[ij / n], rows[ij % n])).collect();
        Self::cosines_of_products(&products, n)
    }

    /// The same, computed from all inner products, `[n, n]`.
    pub fn cosines_of_products(products: &[f64], n: usize) -> Self {
        let norms: Vec<f64> = (0..n).map(|i| products[i * n + i].sqrt()).collect();
        let cosines = products.iter().enumerate().map(|(ij, product)| {
            let norms = norms[ij / n] * norms[ij % n];
            if norms > 0.0 { product / norms } else { 0.0 }
        });
        Self { n, values: cosines.collect() }
    }

    /// The mean of both.
    pub fn mean(self, other: &Self) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| (a + b) / 2.0).collect();
        Self { n: self.n, values }
    }

    pub fn of(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }
}

fn inner_product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Division {
    /// The most salient experts, ascending, and the others, ascending.
    pub fn centroids(&self, saliency: &[f64]) -> (Vec<usize>, Vec<usize>) {
        let of_division: Vec<f64> = self.experts.iter().map(|e| saliency[*e]).collect();
        let chosen = greatest(&of_division, self.count);
        let centroids = chosen.iter().map(|position| self.experts[*position]).collect::<Vec<_>>();
        let others = self.experts.iter().copied().filter(|e| !centroids.contains(e)).collect();
        (centroids, others)
    }

    /// The most salient experts, each with those that join it. A group has at most `cap` experts,
    /// or more where some would be left over.
    pub fn around_centroids(
        &self,
        saliency: &[f64],
        similarity: &Similarity,
        grouping: Grouping,
        cap: usize,
    ) -> Vec<Vec<usize>> {
        let (centroids, others) = self.centroids(saliency);
        let cap = cap.max(1 + others.len().div_ceil(centroids.len().max(1)));
        match grouping {
            Grouping::Pseudo => pseudo(centroids, others, saliency, similarity, cap),
            Grouping::Nearest => nearest(centroids, &others, similarity, cap),
        }
    }

    /// Average linkage on the Euclidean distances of `features`, `[all experts, d]`. The centroid
    /// is the member nearest to the mean; among equals, the lower.
    pub fn clusters(&self, features: &[f64], d: usize) -> Vec<Vec<usize>> {
        let feature = |e: usize| &features[e * d..][..d];
        let chosen: Vec<f64> = self.experts.iter().flat_map(|e| feature(*e)).copied().collect();
        let clusters = average_linkage(&euclidean(&chosen, d), self.count);
        let groups = clusters.into_iter().map(|cluster| {
            let mut members: Vec<usize> =
                cluster.into_iter().map(|position| self.experts[position]).collect();
            let centroid = most_central(&members, feature);
            members[..=centroid].rotate_right(1);
            members
        });
        groups.collect()
    }
}

/// The position of the member whose feature is nearest to the mean of all members.
fn most_central<'a>(members: &[usize], feature: impl Fn(usize) -> &'a [f64]) -> usize {
    // Two members are equally far from their mean, whatever rounding says.
    if members.len() <= 2 {
        return 0;
    }
    let mut mean = vec![0.0; feature(members[0]).len()];
    members.iter().for_each(|e| mean.iter_mut().zip(feature(*e)).for_each(|(sum, x)| *sum += x));
    mean.iter_mut().for_each(|sum| *sum /= members.len() as f64);
    let away: Vec<f64> = members.iter().map(|e| squared_distance(feature(*e), &mean)).collect();
    (1..members.len()).fold(0, |best, i| if away[i] < away[best] { i } else { best })
}

/// REAM's grouping: from the most salient centroid to the least, each takes the cap − 1 nearest
/// experts that are still free.
fn pseudo(
    centroids: Vec<usize>,
    mut free: Vec<usize>,
    saliency: &[f64],
    similarity: &Similarity,
    cap: usize,
) -> Vec<Vec<usize>> {
    let mut order = centroids;
    order.sort_by(|a, b| saliency[*b].total_cmp(&saliency[*a]).then(a.cmp(b)));
    let mut groups = Vec::new();
    for centroid in order {
        free.sort_by(|a, b| {
            let nearer = similarity.of(centroid, *b).total_cmp(&similarity.of(centroid, *a));
            nearer.then(a.cmp(b))
        });
        let rest = free.split_off(free.len().min(cap - 1));
        let nearest = std::mem::replace(&mut free, rest);
        groups.push(std::iter::once(centroid).chain(nearest).collect());
    }
    groups
}

/// Goes through pairs of expert and centroid by descending similarity: a pair is joined if the
/// expert is free and the group has room.
fn nearest(
    centroids: Vec<usize>,
    others: &[usize],
    similarity: &Similarity,
    cap: usize,
) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> =
        centroids.into_iter().map(|centroid| vec![centroid]).collect();
    let mut pairs = Vec::with_capacity(others.len() * groups.len());
    for j in others {
        for (g, group) in groups.iter().enumerate() {
            pairs.push((similarity.of(*j, group[0]), *j, g));
        }
    }
    // The sort is stable: among equals, the lower expert comes first, then the lower centroid.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut free = others.to_vec();
    for (_, j, group) in pairs {
        if free.contains(&j) && groups[group].len() < cap {
            groups[group].push(j);
            free.retain(|e| *e != j);
        }
    }
    groups
}

/// Weights of each group's members, in order, proportional to `weights`; they sum to 1. They are
/// equal where all weights of a group are 0, as when no token chose any member.
pub(super) fn coefficients(groups: &[Vec<usize>], weights: &[f64]) -> Vec<Vec<f64>> {
    groups.iter().map(|group| shares(group, weights)).collect()
}

fn shares(group: &[usize], weights: &[f64]) -> Vec<f64> {
    let sum: f64 = group.iter().map(|e| weights[*e]).sum();
    let shares =
        group.iter().map(|e| if sum > 0.0 { weights[*e] / sum } else { 1.0 / group.len() as f64 });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity() -> Similarity {
        // Expert 2 is nearest to 0, and 3 to 1; 0 is the more salient of the two centroids.
        let values =
            vec![1.0, 0.0, 0.9, 0.3, 0.0, 1.0, 0.2, 0.8, 0.9, 0.2, 1.0, 0.1, 0.3, 0.8, 0.1, 1.0];
        Similarity { n: 4, values }
    }

    fn all(count: usize) -> Division {
        Division { experts: (0..4).collect(), count }
    }

    #[test]
    fn the_most_salient_centroid_takes_all_that_it_has_room_for() {
        let group = |grouping, cap| {
            all(2).around_centroids(&[3.0, 2.0, 1.0, 0.0], &similarity(), grouping, cap)
        };
        assert_eq!(group(Grouping::Pseudo, 16), [vec![0, 2, 3], vec![1]]);
        assert_eq!(group(Grouping::Pseudo, 2), [vec![0, 2], vec![1, 3]]);
        assert_eq!(group(Grouping::Nearest, 16), [vec![0, 2], vec![1, 3]]);
    }

    #[test]
    fn a_cap_that_binds_leaves_the_nearer_of_two() {
        let mut similarity = similarity();
        similarity.values[3 * 4] = 0.95;
        let group = |cap| {
            all(2).around_centroids(&[3.0, 2.0, 1.0, 0.0], &similarity, Grouping::Nearest, cap)
        };
        assert_eq!(group(16), [vec![0, 3, 2], vec![1]]);
        assert_eq!(group(2), [vec![0, 3], vec![1, 2]]);
        assert_eq!(group(1), [vec![0, 3], vec![1, 2]], "a cap that can't hold all grows");
    }

    #[test]
    fn groups_without_weight_are_plain_means() {
        let groups = [vec![0, 1], vec![2, 3], vec![4]];
        assert_eq!(
            coefficients(&groups, &[3.0, 1.0, 0.0, 0.0, 0.0]),
            [vec![0.75, 0.25], vec![0.5, 0.5], vec![1.0]]
        );
    }

    #[test]
    fn directions_without_length_are_like_nothing() {
        let similarity = Similarity::cosines(&[1.0, 1.0, 0.0, 0.0, 2.0, 0.0], 3);
        assert_eq!((similarity.of(0, 1), similarity.of(1, 1)), (0.0, 0.0));
        assert!((similarity.of(0, 2) - 0.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn the_centroid_is_the_member_nearest_to_the_mean() {
        assert_eq!(all(2).clusters(&[0.0, 9.0, 0.4, 1.0], 1), [vec![2, 0, 3], vec![1]]);
        assert_eq!(all(3).clusters(&[0.0, 9.0, 0.4, 5.0], 1), [vec![0, 2], vec![1], vec![3]]);
    }
}
