//! Σ ρ x xᵀ of the inputs of a matrix.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{QuantizeError, Real, checked_length};

/// Columns of a block: only blocks of the lower triangle are computed.
const BLOCK: usize = 128;
/// Side of the squares in which the lower triangle is mirrored.
const TILE: usize = 16;

/// H = Σ_t ρ_t x_t x_tᵀ over tokens, without the factor 2 of 2210.17323, which no code depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian<T = f32> {
    /// K
    pub size: usize,
    /// `[K, K]`; only the lower triangle holds values, what lies above the diagonal is not used.
    pub sum: Vec<T>,
    /// Σ ρ
    pub weight: f64,
    /// Σ ρ²
    pub squares: f64,
    /// Tokens that were added.
    pub tokens: u64,
}

impl<T: Real> Hessian<T> {
    /// Of no tokens, for inputs of width `size`.
    pub fn new(size: usize) -> Self {
        Self { size, sum: vec![T::ZERO; size * size], weight: 0.0, squares: 0.0, tokens: 0 }
    }

    /// Adds the tokens of `x`, `[n, K]`, with a weight ρ for each, or 1. Sums are made in T within a call and across
    /// calls; more tokens a call cost less a token.
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
        self.tokens += tokens as u64;
        self.weight += weights.map_or(tokens as f64, |w| w.iter().map(|w| f64::from(*w)).sum());
        self.squares += weights.map_or(tokens as f64, |w| w.iter().map(|w| f64::from(*w) * f64::from(*w)).sum());
        self.add_products(weighted.as_deref().unwrap_or(x), x, tokens);
        Ok(())
    }

    fn add_products(&mut self, a: &[T], b: &[T], tokens: usize) {
        let size = self.size;
        let (a, b) = (MatRef::from_row_major_slice(a, tokens, size), MatRef::from_row_major_slice(b, tokens, size));
        self.sum.par_chunks_mut(BLOCK * size).enumerate().rev().for_each(|(block, sum)| {
            let (first, rows) = (block * BLOCK, sum.len() / size);
            let sum = MatMut::from_row_major_slice_mut(sum, rows, size).subcols_mut(0, first + rows);
            let (a, b) = (a.subcols(first, rows), b.subcols(0, first + rows));
            matmul(sum, Accum::Add, a.transpose(), b, T::ONE, Par::Seq);
        });
    }

    /// Adds the tokens that `other` has seen.
    ///
    /// # Errors
    /// Where the sizes differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantizeError> {
        checked_length(other.size, self.size)?;
        self.sum.par_iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum = *sum + *other);
        self.weight += other.weight;
        self.squares += other.squares;
        self.tokens += other.tokens;
        Ok(())
    }

    /// The number of tokens of equal weight that would say as much: (Σ ρ)² / Σ ρ² (Kish 1965).
    pub fn effective_tokens(&self) -> f64 {
        if self.squares > 0.0 { self.weight * self.weight / self.squares } else { 0.0 }
    }

    /// Mean energy of each column: diag H / Σ ρ; 0 without tokens.
    pub fn mean_diagonal(&self) -> Vec<f64> {
        let scale = if self.weight > 0.0 { 1.0 / self.weight } else { 0.0 };
        (0..self.size).map(|i| self.sum[i * self.size + i].to_f64() * scale).collect()
    }

    /// All of it, `[K, K]`, symmetric.
    pub fn full(&self) -> Vec<T> {
        let size = self.size;
        let mut full = self.sum.clone();
        for (block, rows) in full.chunks_mut((TILE * size).max(1)).enumerate() {
            // Squares of the lower triangle, turned; the first reads from itself.
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

    /// H* = (n Ĥ + κ Ĥ') / (n + κ) with Ĥ and Ĥ' the means a token of this and of `other`, and n the effective tokens of
    /// this. Afterwards the mean of this is H*, and it weighs n + κ. An `other` without tokens changes nothing.
    ///
    /// # Errors
    /// Where the sizes differ.
    pub fn shrink(&mut self, other: &Self, kappa: f64) -> Result<(), QuantizeError> {
        checked_length(other.size, self.size)?;
        if other.weight <= 0.0 {
            return Ok(());
        }
        let (own, others) = self.shares(kappa / other.weight);
        self.sum.par_iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum = own * *sum + others * *other);
        self.weigh(kappa);
        Ok(())
    }

    /// The same towards `energy` · I, for inputs whose columns mean something else in every expert: `energy` is a mean
    /// over columns of the mean diagonal a token, over a layer.
    pub fn shrink_to_energy(&mut self, energy: f64, kappa: f64) {
        let (own, others) = self.shares(kappa * energy);
        self.sum.par_iter_mut().for_each(|sum| *sum = own * *sum);
        for i in 0..self.size {
            self.sum[i * self.size + i] = self.sum[i * self.size + i] + others;
        }
        self.weigh(kappa);
    }

    fn shares(&self, others: f64) -> (T, T) {
        let own = if self.weight > 0.0 { self.effective_tokens() / self.weight } else { 0.0 };
        (T::from_f64(own), T::from_f64(others))
    }

    fn weigh(&mut self, kappa: f64) {
        self.weight = self.effective_tokens() + kappa;
        self.squares = self.weight;
    }
}

/// ρ x
fn weighted<T: Real>(x: &[T], weights: &[f32], size: usize) -> Vec<T> {
    let mut weighted = x.to_vec();
    for (row, weight) in weighted.chunks_exact_mut(size.max(1)).zip(weights) {
        let weight = T::from_f32(*weight);
        row.iter_mut().for_each(|x| *x = *x * weight);
    }
    weighted
}
