//! Columns of a chunk, solved in order; the errors of each are fed to those after it.
//!
//! Written as LDLQ (Chee et al. 2307.13304, equation 2 and theorem 6: the same codes as GPTQ): with H = A D Aᵀ, A unit upper
//! triangular, column k of W is rounded after Σ_{j<k} (W − Ŵ)_j A_jk is added to it. That needs no inverse of H, and its
//! errors are those of the given weights, not of weights fed before.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::Arch;

use super::Real;
use super::chunk::{Chunk, STRIP};
use super::grid::Grid;

/// So many columns are solved one by one; between more, errors travel by matrix products.
const COLUMNS: usize = 32;

/// What columns take from those before them.
#[derive(Clone, Copy)]
pub(super) struct Feedback<'a, T> {
    /// `[K, K]`: row k is what column k takes from the error of each column before it, Aᵀ.
    pub weights: &'a [T],
    /// (I + A − its diagonal)⁻¹ of each group alone, `[g, g]` by columns; none where groups are fixed beforehand.
    pub settled: Option<&'a [T]>,
}

/// What is the same for all rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Solver<'a, T> {
    pub grid: &'a Grid<T>,
    /// The order in which columns are solved; none: as they are.
    pub order: Option<&'a [u32]>,
    /// Energies of the columns in their own order, for which clipping is searched; none: it isn't.
    pub diagonal: Option<&'a [T]>,
    /// None: columns are rounded to nearest.
    pub feedback: Option<Feedback<'a, T>>,
}

impl<T: Real> Solver<'_, T> {
    /// Leaves codes, scales and zeros in the chunk.
    pub fn run(&self, chunk: &mut Chunk<T>) {
        if self.settled().is_none() {
            self.fix_groups(chunk);
        }
        self.solve(chunk, 0..chunk.width);
    }

    fn settled(&self) -> Option<&[T]> {
        self.feedback.and_then(|feedback| feedback.settled)
    }

    /// Halves `columns`, down to a few, and carries the errors of one half to the other by a matrix product.
    fn solve(&self, chunk: &mut Chunk<T>, columns: Range<usize>) {
        let (first, end, group) = (columns.start, columns.end, chunk.group);
        let grouped = self.settled().is_some();
        if grouped && columns.len() == group {
            self.fix_settled(chunk, first / group);
        }
        if columns.len() <= COLUMNS.min(if grouped { group } else { COLUMNS }) {
            return Arch::new().dispatch(|| self.round(chunk, columns));
        }
        let unit = if grouped && columns.len() > group { group } else { COLUMNS };
        let middle = first + columns.len().div_ceil(unit).div_ceil(2) * unit;
        self.solve(chunk, first..middle);
        self.carry(chunk, first..middle, middle..end);
        self.solve(chunk, middle..end);
    }

    /// Feeds the errors of columns `from` to columns `to`.
    fn carry(&self, chunk: &mut Chunk<T>, from: Range<usize>, to: Range<usize>) {
        let Some(feedback) = self.feedback else { return };
        let (rows, width) = (chunk.rows, chunk.width);
        let errors = &chunk.weight[from.start * rows..from.end * rows];
        let errors = MatRef::from_column_major_slice(errors, rows, from.len());
        let fed = &mut chunk.fed[to.start * rows..to.end * rows];
        let fed = MatMut::from_column_major_slice_mut(fed, rows, to.len());
        let weights = MatRef::from_column_major_slice(feedback.weights, width, width);
        let weights = weights.submatrix(from.start, to.start, from.len(), to.len());
        matmul(fed, Accum::Add, errors, weights, T::ONE, Par::Seq);
    }

    /// Rounds `columns` one after another.
    #[inline(always)]
    fn round(&self, chunk: &mut Chunk<T>, columns: Range<usize>) {
        for strip in (0..chunk.rows).step_by(STRIP) {
            for k in columns.clone() {
                let at = k * chunk.rows + strip;
                let mut fed = [T::ZERO; STRIP];
                fed.copy_from_slice(&chunk.fed[at..at + STRIP]);
                if let Some(feedback) = self.feedback {
                    let weights = &feedback.weights[k * chunk.width..][columns.start..k];
                    let errors = chunk.weight[columns.start * chunk.rows..k * chunk.rows].chunks_exact(chunk.rows);
                    for (weight, errors) in weights.iter().zip(errors) {
                        for (fed, error) in fed.iter_mut().zip(&errors[strip..strip + STRIP]) {
                            *fed = *fed + *weight * *error;
                        }
                    }
                }
                self.round_column(chunk, k, strip, &fed);
            }
        }
    }

    /// Rounds a strip of column `k`, and leaves its error in place of it.
    #[inline(always)]
    fn round_column(&self, chunk: &mut Chunk<T>, k: usize, strip: usize, fed: &[T; STRIP]) {
        let (at, group) = (k * chunk.rows + strip, self.group(chunk, k) * chunk.rows + strip);
        let weight = &mut chunk.weight[at..at + STRIP];
        let codes = &mut chunk.codes[at..at + STRIP];
        let (scales, zeros) = (&chunk.scales[group..group + STRIP], &chunk.zeros[group..group + STRIP]);
        for i in 0..STRIP {
            let code = self.grid.code(weight[i] + fed[i], scales[i], zeros[i]);
            codes[i] = self.grid.unsigned(code);
            weight[i] = weight[i] - (code - zeros[i]) * scales[i];
        }
    }

    /// Where column `k` of the solved order belongs.
    #[inline(always)]
    fn group(&self, chunk: &Chunk<T>, k: usize) -> usize {
        self.column(k) / chunk.group
    }

    #[inline(always)]
    fn column(&self, k: usize) -> usize {
        self.order.map_or(k, |order| order[k] as usize)
    }

    /// Scales and zeros of all groups, from the weights as they are given.
    fn fix_groups(&self, chunk: &mut Chunk<T>) {
        let mut members = vec![Vec::with_capacity(chunk.group); chunk.width / chunk.group];
        for k in 0..chunk.width {
            members[self.group(chunk, k)].push(k);
        }
        for (group, members) in members.iter().enumerate() {
            let weight = std::mem::take(&mut chunk.weight);
            let columns: Vec<_> = members.iter().map(|k| (self.column(*k), &weight[chunk.column(*k)])).collect();
            Arch::new().dispatch(|| self.fix(chunk, group, &columns));
            chunk.weight = weight;
        }
    }

    /// Scales and zeros of a group whose columns stand side by side, from the weights that the errors so far make best:
    /// those which the columns would be fed if none of them were rounded, W + B (I + A_g)⁻¹ where B is fed from before.
    fn fix_settled(&self, chunk: &mut Chunk<T>, group: usize) {
        let (rows, size) = (chunk.rows, chunk.group);
        let members = group * size * rows..(group + 1) * size * rows;
        let mut best = vec![T::ZERO; size * rows];
        if let Some(settled) = self.settled() {
            let settled = MatRef::from_column_major_slice(&settled[group * size * size..][..size * size], size, size);
            let fed = MatRef::from_column_major_slice(&chunk.fed[members.clone()], rows, size);
            let best = MatMut::from_column_major_slice_mut(&mut best, rows, size);
            matmul(best, Accum::Replace, fed, settled, T::ONE, Par::Seq);
        }
        for (best, weight) in best.iter_mut().zip(&chunk.weight[members]) {
            *best = *best + *weight;
        }
        let columns: Vec<_> = best.chunks_exact(rows).enumerate().map(|(k, c)| (group * size + k, c)).collect();
        Arch::new().dispatch(|| self.fix(chunk, group, &columns));
    }

    /// Scales and zeros of a group from `columns`, each with its number in the order of the matrix.
    #[inline(always)]
    fn fix(&self, chunk: &mut Chunk<T>, group: usize, columns: &[(usize, &[T])]) {
        let at = chunk.column(group);
        let (mut least, mut most) = (vec![T::ZERO; chunk.rows], vec![T::ZERO; chunk.rows]);
        for (_, column) in columns {
            for ((least, most), x) in least.iter_mut().zip(&mut most).zip(*column) {
                *least = if *x < *least { *x } else { *least };
                *most = if *x > *most { *x } else { *most };
            }
        }
        let (scales, zeros) = (&mut chunk.scales[at.clone()], &mut chunk.zeros[at]);
        for (i, (scale, zero)) in scales.iter_mut().zip(&mut *zeros).enumerate() {
            (*scale, *zero) = self.grid.parameters(least[i], most[i]);
        }
        if let Some(diagonal) = self.diagonal {
            self.clip(columns, diagonal, [&least, &most], scales, zeros);
        }
    }

    /// Shrinks the range of each row by 5 % at a time, to half, and keeps the least Σ diag(H) · (w − ŵ)².
    #[inline(always)]
    fn clip(&self, columns: &[(usize, &[T])], diagonal: &[T], range: [&[T]; 2], scales: &mut [T], zeros: &mut [T]) {
        const STEPS: u32 = 10;
        let mut least_error = self.errors(columns, diagonal, scales, zeros);
        let (mut tried_scales, mut tried_zeros) = (scales.to_vec(), zeros.to_vec());
        for step in 1..=STEPS {
            let kept = T::from_f64(1.0 - 0.5 * f64::from(step) / f64::from(STEPS));
            for i in 0..scales.len() {
                (tried_scales[i], tried_zeros[i]) = self.grid.parameters(range[0][i] * kept, range[1][i] * kept);
            }
            let errors = self.errors(columns, diagonal, &tried_scales, &tried_zeros);
            for (i, error) in errors.iter().enumerate() {
                if *error < least_error[i] {
                    (least_error[i], scales[i], zeros[i]) = (*error, tried_scales[i], tried_zeros[i]);
                }
            }
        }
    }

    /// Σ diag(H) · (w − ŵ)² of each row.
    #[inline(always)]
    fn errors(&self, columns: &[(usize, &[T])], diagonal: &[T], scales: &[T], zeros: &[T]) -> Vec<T> {
        let mut sums = vec![T::ZERO; scales.len()];
        for (k, column) in columns {
            for (i, sum) in sums.iter_mut().enumerate() {
                let code = self.grid.code(column[i], scales[i], zeros[i]);
                let error = column[i] - (code - zeros[i]) * scales[i];
                *sum = *sum + diagonal[*k] * error * error;
            }
        }
        sums
    }
}
