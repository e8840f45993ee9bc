//! k-means by Euclidean distance or by angle, with or without a limit on cluster sizes.

use candle_core::Tensor;
use rand_core::RngCore;

use crate::assignment::balanced;
use crate::points::Points;

pub use crate::points::{ClusterError, Metric};

/// Options of the search.
#[derive(Debug, Clone, Copy)]
pub struct KmeansOptions {
    /// The distance between points.
    pub metric: Metric,
    /// Maximum number of iterations; at least one is made.
    pub max_iterations: usize,
}

impl Default for KmeansOptions {
    fn default() -> Self {
        Self { metric: Metric::Euclidean, max_iterations: 300 }
    }
}

/// Points in clusters; no cluster is empty.
#[derive(Debug, Clone)]
pub struct Clustering {
    /// `[k, d]` f32, on the device of the points; unit vectors with [`Metric::Cosine`].
    pub centroids: Tensor,
    /// The cluster index of each point.
    pub assignment: Vec<u32>,
    /// Σ |x − c|² over points and their centroids, in f64. With [`Metric::Cosine`] the points are
    /// normalized.
    pub inertia: f64,
    /// Number of assignments computed.
    pub iterations: usize,
    /// Whether the last assignment equals the one before. If not, the search ended at the maximum
    /// number of iterations, or where rounding kept the inertia from falling.
    pub is_settled: bool,
}

/// Lloyd's k-means of `points` `[n, d]` from a k-means++ start.
///
/// Distances are f32 matrix products on the device of the points, in blocks; sums are f64 on the
/// host, in a fixed order. In addition to the points, this takes 2·n·d f32. Of equally near
/// centroids the lowest index wins. An empty cluster takes the point farthest from its centroid
/// (the first of equally far ones) from a cluster that has others.
///
/// # Errors
/// [`ClusterError`] for no clusters, n < k, fewer than k distinct points, or values that are not
/// finite.
pub fn kmeans(
    points: &Tensor,
    clusters: usize,
    options: &KmeansOptions,
    generator: &mut impl RngCore,
) -> Result<Clustering, ClusterError> {
    let search = ClusterSearch::new(points, clusters, None, options)?;
    search.run(search.points.plus_plus(clusters, generator))
}

/// [`kmeans`] from given centroids `[k, d]`.
///
/// # Errors
/// As for [`kmeans`], and if the widths differ.
pub fn kmeans_from(
    points: &Tensor,
    initial: &Tensor,
    options: &KmeansOptions,
) -> Result<Clustering, ClusterError> {
    let search = ClusterSearch::new(points, initial.dims2()?.0, None, options)?;
    search.run(search.points.center(initial)?)
}

/// [`kmeans`] with at most `capacity` points in a cluster. Each assignment is the cheapest within
/// that limit ([`balanced`]); with n = k · capacity all clusters have equal sizes. LLaMA-MoE
/// (2406.16554) splits an FFN's neurons this way by their weights, CMoE (2502.04416) by their
/// binary activations.
///
/// # Errors
/// As for [`kmeans`], and if n > k · capacity.
pub fn balanced_kmeans(
    points: &Tensor,
    clusters: usize,
    capacity: usize,
    options: &KmeansOptions,
    generator: &mut impl RngCore,
) -> Result<Clustering, ClusterError> {
    let search = ClusterSearch::new(points, clusters, Some(capacity), options)?;
    search.run(search.points.plus_plus(clusters, generator))
}

/// [`balanced_kmeans`] from given centroids `[k, d]`.
///
/// # Errors
/// As for [`balanced_kmeans`], and if the widths differ.
pub fn balanced_kmeans_from(
    points: &Tensor,
    initial: &Tensor,
    capacity: usize,
    options: &KmeansOptions,
) -> Result<Clustering, ClusterError> {
    let search = ClusterSearch::new(points, initial.dims2()?.0, Some(capacity), options)?;
    search.run(search.points.center(initial)?)
}

/// Lloyd's search: it assigns points to the nearest centroids, moves the centroids, and repeats.
/// Neither step can raise the inertia.
struct ClusterSearch {
    points: Points,
    clusters: usize,
    capacity: Option<usize>,
    max_iterations: usize,
}

/// An assignment, its centroids (minus the points' mean) and its inertia.
struct ClusterState {
    assignment: Vec<u32>,
    centroids: Vec<f64>,
    inertia: f64,
}

impl ClusterSearch {
    fn new(
        points: &Tensor,
        clusters: usize,
        capacity: Option<usize>,
        options: &KmeansOptions,
    ) -> Result<Self, ClusterError> {
        let (n, d) = points.dims2()?;
        if clusters == 0 || n < clusters {
            return Err(ClusterError::Clusters { points: n, clusters });
        }
        if d == 0 {
            return Err(ClusterError::NoCoordinates);
        }
        let points = Points::new(points, options.metric)?;
        Ok(Self { points, clusters, capacity, max_iterations: options.max_iterations.max(1) })
    }

    fn run(&self, initial: Vec<f64>) -> Result<Clustering, ClusterError> {
        let mut state = self.step(&initial)?;
        for iterations in 2..=self.max_iterations {
            let next = self.step(&state.centroids)?;
            let is_settled = next.assignment == state.assignment;
            // Only rounding can keep the inertia from falling. Ending here prevents endless cycles.
            if is_settled || next.inertia >= state.inertia {
                return self.finish(state, iterations, is_settled);
            }
            state = next;
        }
        self.finish(state, self.max_iterations, false)
    }

    fn step(&self, centroids: &[f64]) -> Result<ClusterState, ClusterError> {
        let mut assignment = match self.capacity {
            None => self.nearest(centroids)?,
            Some(capacity) => self.nearest_with_room(centroids, capacity)?,
        };
        self.fill_empty(&mut assignment, centroids)?;
        let centroids = self.points.centroids(&assignment, centroids);
        let inertia = self.points.distances(&assignment, &centroids).iter().sum();
        Ok(ClusterState { assignment, centroids, inertia })
    }

    fn nearest(&self, centroids: &[f64]) -> candle_core::Result<Vec<u32>> {
        let mut assignment = Vec::with_capacity(self.points.n);
        self.points.scores(centroids, |block| {
            assignment.extend(
                block.chunks_exact(self.clusters).map(|scores| index_of_least(scores) as u32),
            );
        })?;
        Ok(assignment)
    }

    fn nearest_with_room(
        &self,
        centroids: &[f64],
        capacity: usize,
    ) -> Result<Vec<u32>, ClusterError> {
        let mut cost = Vec::with_capacity(self.points.n * self.clusters);
        self.points
            .scores(centroids, |block| cost.extend(block.iter().map(|score| f64::from(*score))))?;
        Ok(balanced(&cost, self.clusters, capacity)?)
    }

    /// Gives every empty cluster the point farthest from its centroid.
    fn fill_empty(&self, assignment: &mut [u32], centroids: &[f64]) -> Result<(), ClusterError> {
        let mut counts = vec![0usize; self.clusters];
        assignment.iter().for_each(|a| counts[*a as usize] += 1);
        let empty: Vec<usize> = (0..self.clusters).filter(|c| counts[*c] == 0).collect();
        if empty.is_empty() {
            return Ok(());
        }
        let mut distances = self.points.distances(assignment, centroids);
        for cluster in empty {
            let movable = (0..self.points.n)
                .filter(|i| counts[assignment[*i] as usize] > 1 && distances[*i] > 0.0);
            let farthest =
                movable.max_by(|a, b| distances[*a].total_cmp(&distances[*b]).then(b.cmp(a)));
            let Some(i) = farthest else {
                return Err(ClusterError::Duplicates {
                    points: self.points.n,
                    clusters: self.clusters,
                });
            };
            counts[assignment[i] as usize] -= 1;
            counts[cluster] += 1;
            (assignment[i], distances[i]) = (cluster as u32, 0.0);
        }
        Ok(())
    }

    fn finish(
        &self,
        state: ClusterState,
        iterations: usize,
        is_settled: bool,
    ) -> Result<Clustering, ClusterError> {
        let ClusterState { assignment, centroids, inertia } = state;
        let centroids = self.points.uncenter(&centroids)?;
        Ok(Clustering { centroids, assignment, inertia, iterations, is_settled })
    }
}

/// The index of the least score; among equals, the first.
fn index_of_least(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, c| if scores[c] < scores[best] { c } else { best })
}
