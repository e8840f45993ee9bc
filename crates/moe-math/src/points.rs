//! Points to be clustered. They are on the device for distances, and on the host for sums.

use candle_core::{DType, Tensor};
use rand_core::RngCore;
use rayon::prelude::*;

use crate::assignment::AssignmentError;
use crate::reduce::{dot, squared_distance, sum};
use crate::sampling::unit;

/// The distance between points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Metric {
    /// |x − c|²; a centroid is the mean of its points.
    #[default]
    Euclidean,
    /// 2 − 2 cos(x, c), which is |x − c|² of unit vectors; a centroid is the direction of its
    /// points' mean ("spherical k-means", Dhillon and Modha, Machine Learning 42, 2001).
    Cosine,
}

/// The reason why points can't be clustered as requested.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No clusters, or more than points.
    #[error("{points} points can't form {clusters} clusters")]
    Clusters {
        /// Number of points.
        points: usize,
        /// Number of clusters asked for.
        clusters: usize,
    },
    /// Fewer distinct points than clusters.
    #[error("fewer than {clusters} of the {points} points differ, so a cluster stays empty")]
    Duplicates {
        /// Number of points.
        points: usize,
        /// Number of clusters asked for.
        clusters: usize,
    },
    /// The initial centroids have another width than the points.
    #[error("the points have {points} coordinates, the initial centroids {centroids}")]
    Width {
        /// Width d of the points.
        points: usize,
        /// Width d of the centroids.
        centroids: usize,
    },
    /// A coordinate is infinite, NaN, or so large that squared distances overflow.
    #[error("{what} {row} is not finite, or beyond 1e15")]
    NotFinite {
        /// "point" or "initial centroid".
        what: &'static str,
        /// Index of its row.
        row: usize,
    },
    /// A zero vector has no angle to anything.
    #[error("{what} {row} is zero and has no direction")]
    NoDirection {
        /// "point" or "initial centroid".
        what: &'static str,
        /// Index of its row.
        row: usize,
    },
    /// Points have no coordinates.
    #[error("the points have no coordinates")]
    NoCoordinates,
    /// The clusters are too small for the points.
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    /// If the device fails.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// Points `[n, d]` minus their mean, so that distances stay accurate in f32 if all points are far
/// from the origin. Centroids are f64 `[k, d]`, row-major, minus the same mean.
pub(crate) struct Points {
    pub n: usize,
    pub d: usize,
    metric: Metric,
    mean: Vec<f64>,
    host: Vec<f32>,
    device: Tensor,
}

impl Points {
    pub fn new(points: &Tensor, metric: Metric) -> Result<Self, ClusterError> {
        let (n, d) = points.dims2()?;
        let mut host = rows(points, metric, "point")?;
        let mean = mean(d, host.chunks_exact(d));
        host.par_chunks_mut(d).for_each(|row| {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x = (f64::from(*x) - mean) as f32);
        });
        let device = Tensor::from_slice(&host, (n, d), points.device())?;
        Ok(Self { n, d, metric, mean, host, device })
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.host[i * self.d..][..self.d]
    }

    /// Subtracts the mean from the caller's centroids, `[k, d]`.
    pub fn center(&self, initial: &Tensor) -> Result<Vec<f64>, ClusterError> {
        let (k, d) = initial.dims2()?;
        if d != self.d {
            return Err(ClusterError::Width { points: self.d, centroids: d });
        }
        let rows = rows(initial, self.metric, "initial centroid")?;
        Ok((0..k * d).map(|i| f64::from(rows[i]) - self.mean[i % d]).collect())
    }

    /// Adds the mean to centroids, and returns a tensor `[k, d]` f32 on the device of the points.
    pub fn uncenter(&self, centroids: &[f64]) -> candle_core::Result<Tensor> {
        let values: Vec<f32> =
            centroids.iter().enumerate().map(|(i, c)| (c + self.mean[i % self.d]) as f32).collect();
        Tensor::from_vec(values, (centroids.len() / self.d, self.d), self.device.device())
    }

    /// Calls `use_block` with ½|c|² − x·c, `[block, k]`, for blocks of points in order. Apart from
    /// a term that depends on the point alone, that is ½|x − c|².
    pub fn scores(
        &self,
        centroids: &[f64],
        mut use_block: impl FnMut(&[f32]),
    ) -> candle_core::Result<()> {
        const BLOCK_SCORES: usize = 1 << 22;
        let k = centroids.len() / self.d;
        let device = self.device.device();
        let halves: Vec<f32> =
            centroids.chunks_exact(self.d).map(|c| (dot(c, c) / 2.0) as f32).collect();
        let halves = Tensor::from_vec(halves, (1, k), device)?;
        let narrow: Vec<f32> = centroids.iter().map(|c| *c as f32).collect();
        let transposed = Tensor::from_vec(narrow, (k, self.d), device)?.t()?;
        let block = (BLOCK_SCORES / k).max(1);
        for first in (0..self.n).step_by(block) {
            let x = self.device.narrow(0, first, block.min(self.n - first))?;
            let scores = halves.broadcast_sub(&x.matmul(&transposed)?)?;
            use_block(&scores.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }

    /// |x − c|² of each point and its assigned centroid.
    pub fn distances(&self, assignment: &[u32], centroids: &[f64]) -> Vec<f64> {
        let distances = assignment.par_iter().enumerate().map(|(i, a)| {
            squared_distance(self.row(i), &centroids[*a as usize * self.d..][..self.d])
        });
        distances.collect()
    }

    /// The centroid of each cluster's points. A cluster that is empty, or whose directions cancel,
    /// keeps its `previous` centroid.
    pub fn centroids(&self, assignment: &[u32], previous: &[f64]) -> Vec<f64> {
        let mut members = vec![Vec::new(); previous.len() / self.d];
        for (i, a) in assignment.iter().enumerate() {
            members[*a as usize].push(i);
        }
        let mut centroids = previous.to_vec();
        centroids
            .par_chunks_mut(self.d)
            .zip(&members)
            .filter(|(_, members)| !members.is_empty())
            .for_each(|(centroid, members)| {
                let mean = mean(self.d, members.iter().map(|i| self.row(*i)));
                match self.metric {
                    Metric::Euclidean => centroid.copy_from_slice(&mean),
                    Metric::Cosine => self.set_direction(centroid, &mean),
                }
            });
        centroids
    }

    /// Sets `centroid` to the unit vector along `mean`; both have the points' mean subtracted.
    fn set_direction(&self, centroid: &mut [f64], mean: &[f64]) {
        let raw: Vec<f64> = mean.iter().zip(&self.mean).map(|(x, mean)| x + mean).collect();
        let norm = dot(&raw, &raw).sqrt();
        // Unit vectors in f32 that cancel leave a rounding error.
        if norm > 1e-6 {
            for ((c, x), mean) in centroid.iter_mut().zip(&raw).zip(&self.mean) {
                *c = x / norm - mean;
            }
        }
    }

    /// k-means++ (Arthur and Vassilvitskii, SODA 2007): the first centroid is a random point; each
    /// next one is drawn with probability ∝ its squared distance to the nearest one so far. If no
    /// point differs from those chosen, the first point is chosen again.
    pub fn plus_plus(&self, k: usize, generator: &mut impl RngCore) -> Vec<f64> {
        let mut chosen = (unit(generator) * self.n as f64) as usize;
        let mut nearest = vec![f64::INFINITY; self.n];
        let mut centroids = Vec::with_capacity(k * self.d);
        loop {
            centroids.extend(self.row(chosen).iter().map(|x| f64::from(*x)));
            if centroids.len() == k * self.d {
                return centroids;
            }
            let last = &centroids[centroids.len() - self.d..];
            nearest.par_iter_mut().enumerate().for_each(|(i, nearest)| {
                *nearest = nearest.min(squared_distance(self.row(i), last));
            });
            chosen = draw(&nearest, unit(generator));
        }
    }
}

/// The index that `u` in [0, 1) draws with probability ∝ `weights`; 0 if all weights are 0.
fn draw(weights: &[f64], u: f64) -> usize {
    let target = u * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let passed = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    // Rounding can leave the target equal to the total.
    passed.or_else(|| weights.iter().rposition(|w| *w > 0.0)).unwrap_or(0)
}

/// The mean of rows of width `d`, summed in order.
fn mean<'a>(d: usize, rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Vec<f64> {
    let count = rows.len().max(1) as f64;
    let mut mean = vec![0f64; d];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    mean.iter_mut().for_each(|sum| *sum /= count);
    mean
}

/// The rows of `[n, d]` in f32 on the host; unit vectors for `Metric::Cosine`. Errors say `what`
/// they are.
fn rows(tensor: &Tensor, metric: Metric, what: &'static str) -> Result<Vec<f32>, ClusterError> {
    /// Up to here Σ x² of a row of any width fits in an f32.
    const MAX_COORDINATE: f32 = 1e15;
    let d = tensor.dims2()?.1;
    let mut rows: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if let Some(i) = rows.iter().position(|x| x.is_nan() || x.abs() > MAX_COORDINATE) {
        return Err(ClusterError::NotFinite { what, row: i / d });
    }
    if metric == Metric::Cosine {
        let zero = rows.par_chunks_exact_mut(d).position_first(|row| !normalize(row));
        zero.map_or(Ok(()), |row| Err(ClusterError::NoDirection { what, row }))?;
    }
    Ok(rows)
}

/// Divides `row` by its length; returns false if that is 0.
fn normalize(row: &mut [f32]) -> bool {
    let norm = sum(row, row, |a, b| f64::from(a) * f64::from(b)).sqrt();
    row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    norm > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        let weights = [0.0, 1.0, 0.0, 3.0, 0.0];
        assert_eq!([0.0, 0.2499, 0.25, 0.9999].map(|u| draw(&weights, u)), [1, 1, 3, 3]);
        assert_eq!(draw(&[0.0; 3], 0.5), 0);
    }
}
