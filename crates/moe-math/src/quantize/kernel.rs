//! The loops over rows, with the machine's widest vectors.
//!
//! Everything is written as loops that are inlined into `with_simd`: only inlined code gets the
//! machine's instructions, and closures that are passed on don't.

use pulp::{Simd, WithSimd};

use super::Real;
use super::grid::Grid;

/// Rows that are solved together; a column of them fits in registers.
pub const STRIP: usize = 64;

/// Rounds a few columns one after another, and feeds the error of each to the next.
pub(super) struct RoundColumns<'a, T> {
    pub grid: &'a Grid<T>,
    /// Number of strips in a column.
    pub strips: usize,
    /// `[columns, rows]`: W before, W − Ŵ afterwards.
    pub weight: &'a mut [[T; STRIP]],
    /// `[columns, rows]`: corrections by the errors of other columns.
    pub fed: &'a [[T; STRIP]],
    /// The factors by which each column takes the errors of earlier ones; empty for none.
    pub feedback: &'a [&'a [T]],
    /// The group of each column.
    pub groups: &'a [usize],
    /// Factors of two squared errors of a column: of what it was rounded from minus Ŵ, which is
    /// added, and of W − Ŵ, which is subtracted.
    pub costs: &'a [[T; 2]],
    /// `[groups, rows]`
    pub scales: &'a [[T; STRIP]],
    /// `[groups, rows]`
    pub zeros: &'a [[T; STRIP]],
    /// `[columns, rows]`
    pub codes: &'a mut [[u8; STRIP]],
    /// The weighted squared error of each row, which this adds to.
    pub errors: &'a mut [[T; STRIP]],
}

impl<T: Real> WithSimd for RoundColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for strip in 0..self.strips {
            for k in 0..self.groups.len() {
                self.round(simd, strip, k);
            }
        }
    }
}

impl<T: Real> RoundColumns<'_, T> {
    /// Rounds a strip of column `k`.
    #[inline(always)]
    fn round<S: Simd>(&mut self, simd: S, strip: usize, k: usize) {
        let strips = self.strips;
        let (before, at) = self.weight.split_at_mut(k * strips + strip);
        let mut x = self.fed[k * strips + strip];
        T::feed(simd, &mut x, self.feedback[k], &before[strip..], strips);
        let (w, codes) = (&mut at[0], &mut self.codes[k * strips + strip]);
        let grid = self.groups[k] * strips + strip;
        let (scale, zero) = (&self.scales[grid], &self.zeros[grid]);
        let ([rounded, damped], errors) = (self.costs[k], &mut self.errors[strip]);
        for i in 0..STRIP {
            let best = w[i] + x[i];
            let code = self.grid.code(best, scale[i], zero[i]);
            let value = (code - zero[i]) * scale[i];
            codes[i] = self.grid.unsigned(code);
            w[i] -= value;
            errors[i] += rounded * ((best - value) * (best - value)) - damped * (w[i] * w[i]);
        }
    }
}

/// Lowers `min` and raises `max` to the values of a column.
pub(super) struct WidenRange<'a, T> {
    pub column: &'a [[T; STRIP]],
    pub min: &'a mut [[T; STRIP]],
    pub max: &'a mut [[T; STRIP]],
}

impl<T: Real> WithSimd for WidenRange<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((x, min), max) in self.column.iter().zip(self.min).zip(self.max) {
            for i in 0..STRIP {
                min[i] = if x[i] < min[i] { x[i] } else { min[i] };
                max[i] = if x[i] > max[i] { x[i] } else { max[i] };
            }
        }
    }
}

/// Adds energy · (w − ŵ)² of a column to the sums of its rows.
pub(super) struct WeightedErrors<'a, T> {
    pub grid: &'a Grid<T>,
    pub energy: T,
    pub column: &'a [[T; STRIP]],
    pub scales: &'a [[T; STRIP]],
    pub zeros: &'a [[T; STRIP]],
    pub sums: &'a mut [[T; STRIP]],
}

impl<T: Real> WithSimd for WeightedErrors<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { grid, energy, column, scales, zeros, sums } = self;
        for (((x, scale), zero), sum) in column.iter().zip(scales).zip(zeros).zip(sums) {
            for i in 0..STRIP {
                let error = x[i] - (grid.code(x[i], scale[i], zero[i]) - zero[i]) * scale[i];
                sum[i] += energy * error * error;
            }
        }
    }
}
