//! Σ ρ x xᵀ over the inputs of a matrix.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{QuantizeError, Real, checked_length};

/// Columns of a block; only blocks of the lower triangle are computed.
const BLOCK: usize = 96;
/// Side of the squares by which the lower triangle is mirrored.
const TILE: usize = 16;

/// H = Σ_t ρ_t x_t x_tᵀ over tokens. The factor 2 of 2210.17323 is left out, since no code depends
/// on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian<T = f32> {
    /// Width of the inputs, K.
    pub size: usize,
    /// `[K, K]`; only the lower triangle holds values, and those above the diagonal are not used.
    pub sum: Vec<T>,
    /// Σ ρ
    pub weight: f64,
    /// Σ ρ²
    pub squares: f64,
    /// Number of tokens added.
    pub tokens: u64,
}

impl<T: Real> Hessian<T> {
    /// Starts without tokens, for inputs of width `size`.
    pub fn new(size: usize) -> Self {
        Self { size, sum: vec![T::ZERO; size * size], weight: 0.0, squares: 0.0, tokens: 0 }
    }

    /// Adds the tokens of `x`, `[n, K]`, with a weight ρ for each, or 1. Sums are in T within a
    /// call and across calls; with more tokens per call, each costs less.
    ///
    /// # Errors
    /// For lengths that don't fit.
    pub fn add(&mut self, x: &[T], weights: Option<&[f32]>) -> Result<(), QuantizeError> {
        let tokens = x.len() / self.size.max(1);
        checked_length(x.len(), tokens * self.size)?;
        let weighted = match weights {
            Some(weights) => {
                checked_length(weights.len(), tokens)?;
                Some(weighted(x, weights, self.size))
            }
            None => None,
        };
        self.count(tokens, weights);
        self.add_products(weighted.as_deref().unwrap_or(x), x, tokens);
        Ok(())
    }

    /// Updates everything except the sum.
    pub(super) fn count(&mut self, tokens: usize, weights: Option<&[f32]>) {
        self.tokens += tokens as u64;
        self.weight += weights.map_or(tokens as f64, |w| w.iter().map(|w| f64::from(*w)).sum());
        self.squares += weights
            .map_or(tokens as f64, |w| w.iter().map(|w| f64::from(*w) * f64::from(*w)).sum());
    }

    fn add_products(&mut self, a: &[T], b: &[T], tokens: usize) {
        let size = self.size;
        let (a, b) = (
            MatRef::from_row_major_slice(a, tokens, size),
            MatRef::from_row_major_slice(b, tokens, size),
        );
        self.sum.par_chunks_mut(BLOCK * size).enumerate().rev().for_each(|(block, sum)| {
            let (first, rows) = (block * BLOCK, sum.len() / size);
            let sum =
                MatMut::from_row_major_slice_mut(sum, rows, size).subcols_mut(0, first + rows);
            let (a, b) = (a.subcols(first, rows), b.subcols(0, first + rows));
            matmul(sum, Accum::Add, a.transpose(), b, T::ONE, Par::Seq);
        });
    }

    /// The number of tokens of equal weight that carry as much information: (Σ ρ)² / Σ ρ² (Kish
    /// 1965).
    pub fn effective_tokens(&self) -> f64 {
        if self.squares > 0.0 { self.weight * self.weight / self.squares } else { 0.0 }
    }

    /// The whole symmetric matrix, `[K, K]`.
    pub fn full(&self) -> Vec<T> {
        let size = self.size;
        let mut full = self.sum.clone();
        for (block, rows) in full.chunks_mut((TILE * size).max(1)).enumerate() {
            // Copies squares of the lower triangle, transposed; the first reads from itself.
            for first in (block * TILE..size).step_by(TILE) {
                for (i, row) in rows.chunks_exact_mut(size).enumerate() {
                    let above = first.max(block * TILE + i)..(first + TILE).min(size);
                    for (j, value) in above.clone().zip(&mut row[above]) {
                        *value = self.sum[j * size + block * TILE + i];
                    }
                }
            }
        }
        full
    }

    /// H* = (n Ĥ + κ Ĥ') / (n + κ), with Ĥ and Ĥ' the means over tokens of this and of `other`, and
    /// n the effective tokens of this. Afterwards the mean of this is H*, and its weight is n + κ.
    /// An `other` without tokens changes nothing.
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn shrink(&mut self, other: &Self, kappa: f64) -> Result<(), QuantizeError> {
        checked_length(other.size, self.size)?;
        if let Some([own, others]) = self.mixed(other, kappa) {
            let (own, others) = (T::from_f64(own), T::from_f64(others));
            self.sum
                .par_iter_mut()
                .zip(&other.sum)
                .for_each(|(sum, other)| *sum = own * *sum + others * *other);
            self.weigh(kappa);
        }
        Ok(())
    }

    /// The factors by which shrinkage multiplies the sums of this and `other`; None if it changes
    /// nothing.
    pub(super) fn mixed(&self, other: &Self, kappa: f64) -> Option<[f64; 2]> {
        let own = if self.weight > 0.0 { self.effective_tokens() / self.weight } else { 0.0 };
        (other.weight > 0.0).then(|| [own, kappa / other.weight])
    }

    /// Sets the weight after shrinkage.
    pub(super) fn weigh(&mut self, kappa: f64) {
        self.weight = self.effective_tokens() + kappa;
        self.squares = self.weight;
    }
}

/// ρ x for each row.
fn weighted<T: Real>(x: &[T], weights: &[f32], size: usize) -> Vec<T> {
    let mut weighted = x.to_vec();
    for (row, weight) in weighted.chunks_exact_mut(size.max(1)).zip(weights) {
        let weight = T::from_f32(*weight);
        row.iter_mut().for_each(|x| *x *= weight);
    }
    weighted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|x| f64::from(*x)).collect()
    }

    /// Compares with sums by hand, for sizes around the edges of blocks, with weights and in two
    /// calls.
    #[test]
    fn sums_are_those_of_outer_products() {
        for size in [1, 15, 95, 96, 97, 200] {
            let (x, tokens) = (normal(12 * size, 1.0, &mut generator(1, 0)), 12);
            let weights: Vec<f32> = (0..tokens).map(|t| t as f32 / 4.0).collect();
            let (mut hessian, mut narrow) = (Hessian::<f64>::new(size), Hessian::<f32>::new(size));
            for part in [0..5, 5..tokens] {
                let rows = part.start * size..part.end * size;
                hessian.add(&wide(&x[rows.clone()]), Some(&weights[part.clone()])).unwrap();
                narrow.add(&x[rows], Some(&weights[part])).unwrap();
            }
            let (full, narrow) = (hessian.full(), narrow.full());
            for i in 0..size {
                for j in 0..size {
                    let term = |t: usize| {
                        f64::from(weights[t])
                            * f64::from(x[t * size + i])
                            * f64::from(x[t * size + j])
                    };
                    let expected: f64 = (0..tokens).map(term).sum();
                    assert!((full[i * size + j] - expected).abs() < 1e-12, "{size}: {i} {j}");
                    assert!(
                        (f64::from(narrow[i * size + j]) - expected).abs() < 1e-4,
                        "{size}: {i} {j}"
                    );
                }
            }
            assert_eq!((hessian.tokens, hessian.weight, hessian.squares), (12, 16.5, 31.625));
        }
    }

    #[test]
    fn shrinkage_by_hand() {
        let (mut own, mut layer) = (Hessian::<f64>::new(2), Hessian::new(2));
        own.add(&[1.0, 2.0, 3.0, 0.0], Some(&[0.5, 0.5])).unwrap();
        layer.add(&[2.0, 2.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0], None).unwrap();
        // Ĥ = [[5, 1], [1, 2]] over 2 effective tokens; the layer's mean is [[1, 1], [1, 5]], and κ
        // is 2.
        assert_eq!(own.effective_tokens(), 2.0);
        own.shrink(&layer, 2.0).unwrap();
        assert_eq!(own.weight, 4.0);
        assert_eq!(
            own.full().iter().map(|h| h / own.weight).collect::<Vec<_>>(),
            [3.0, 1.0, 1.0, 3.5]
        );
        // An expert without tokens gets the layer's mean; if the layer has none, nothing changes.
        let mut cold = Hessian::new(2);
        cold.shrink(&layer, 2.0).unwrap();
        assert_eq!((cold.full(), cold.weight, cold.tokens), (vec![2.0, 2.0, 2.0, 10.0], 2.0, 0));
        let before = cold.clone();
        cold.shrink(&Hessian::new(2), 2.0).unwrap();
        assert_eq!(cold, before);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut hessian = Hessian::<f32>::new(4);
        assert!(hessian.add(&[0.0; 6], None).is_err());
        assert!(hessian.add(&[0.0; 8], Some(&[1.0])).is_err());
        assert_eq!(hessian.tokens, 0);
    }
}
