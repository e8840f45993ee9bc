//! Solves the columns of a chunk in order, and feeds the errors of each to later ones.
//!
//! This is LDLQ (Chee et al. 2307.13304, equation 2 and theorem 6: the same codes as GPTQ). With H
//! = A D Aᵀ, A unit upper triangular, column k of W is rounded after Σ_{j<k} (W − Ŵ)_j A_jk is
//! added to it. That needs no inverse of H.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::Arch;

use super::Real;
use super::chunk::RowChunk;
use super::grid::{CLIPS, Grid, kept_range};
use super::kernel::{RoundColumns, STRIP, WeightedErrors, WidenRange};

/// Maximum number of columns that are solved one by one. Between larger blocks, matrix products
/// carry the errors.
const COLUMNS: usize = 32;

/// The factors by which errors are fed to later columns.
#[derive(Clone, Copy)]
pub(super) struct Feedback<'a, T> {
    /// Aᵀ, `[K, K]`: row k holds the factors by which column k takes the errors of earlier columns.
    pub weights: &'a [T],
    /// The inverse of each group's diagonal block of A, `[g, g]` by columns; None if groups are
    /// fixed beforehand.
    pub settled: Option<&'a [T]>,
    /// Weights of the squared errors of each solved column, see [`RoundColumns`].
    pub costs: &'a [[T; 2]],
}

/// The inputs that all rows of a matrix share.
#[derive(Clone, Copy)]
pub(super) struct ColumnSolver<'a, T> {
    pub grid: &'a Grid<T>,
    /// The order in which columns are solved; None for the order of the matrix.
    pub order: Option<&'a [u32]>,
    /// Energies of the columns in the matrix's order, for the clip search; None for no search.
    pub diagonal: Option<&'a [T]>,
    /// None to round columns to nearest.
    pub feedback: Option<Feedback<'a, T>>,
}

impl<T: Real> ColumnSolver<'_, T> {
    /// Solves the chunk; codes, scales and zeros stay in it.
    pub fn run(&self, chunk: &mut RowChunk<T>) {
        if self.settled().is_none() {
            self.fix_groups(chunk);
        }
        self.solve(chunk, 0..chunk.width);
    }

    fn settled(&self) -> Option<&[T]> {
        self.feedback.and_then(|feedback| feedback.settled)
    }

    /// Halves `columns` down to a few, and carries the errors of the first half to the second by a
    /// matrix product.
    fn solve(&self, chunk: &mut RowChunk<T>, columns: Range<usize>) {
        let (first, end, group) = (columns.start, columns.end, chunk.group);
        let grouped = self.settled().is_some();
        if grouped && columns.len() == group {
            self.fix_settled(chunk, first / group);
        }
        if columns.len() <= if grouped { COLUMNS.min(group) } else { COLUMNS } {
            return self.round(chunk, columns);
        }
        let unit = if grouped && columns.len() > group { group } else { COLUMNS };
        let middle = first + columns.len().div_ceil(unit).div_ceil(2) * unit;
        self.solve(chunk, first..middle);
        self.carry(chunk, first..middle, middle..end);
        self.solve(chunk, middle..end);
    }

    /// Feeds the errors of columns `from` to columns `to`.
    fn carry(&self, chunk: &mut RowChunk<T>, from: Range<usize>, to: Range<usize>) {
        let Some(feedback) = self.feedback else { return };
        let (rows, width) = (chunk.rows(), chunk.width);
        let errors = chunk.weight[chunk.columns(&from)].as_flattened();
        let errors = MatRef::from_column_major_slice(errors, rows, from.len());
        let fed = chunk.columns(&to);
        let fed =
            MatMut::from_column_major_slice_mut(chunk.fed[fed].as_flattened_mut(), rows, to.len());
        let weights = MatRef::from_column_major_slice(feedback.weights, width, width);
        let weights = weights.submatrix(from.start, to.start, from.len(), to.len());
        matmul(fed, Accum::Add, errors, weights, T::ONE, Par::Seq);
    }

    /// Rounds `columns` one after another.
    fn round(&self, chunk: &mut RowChunk<T>, columns: Range<usize>) {
        let groups: Vec<usize> = columns.clone().map(|k| self.column(k) / chunk.group).collect();
        let feedback: Vec<&[T]> =
            columns.clone().map(|k| self.taken(k, columns.start, chunk.width)).collect();
        let none = vec![[T::ZERO; 2]; columns.len()];
        let costs = self.feedback.map_or(&*none, |feedback| &feedback.costs[columns.clone()]);
        let members = chunk.columns(&columns);
        Arch::new().dispatch(RoundColumns {
            grid: self.grid,
            strips: chunk.strips,
            weight: &mut chunk.weight[members.clone()],
            fed: &chunk.fed[members.clone()],
            feedback: &feedback,
            groups: &groups,
            costs,
            scales: &chunk.scales,
            zeros: &chunk.zeros,
            codes: &mut chunk.codes[members],
            errors: &mut chunk.errors,
        });
    }

    /// The factors by which column `k` takes the errors of columns `first` to `k`.
    fn taken(&self, k: usize, first: usize, width: usize) -> &[T] {
        self.feedback.map_or(&[], |feedback| &feedback.weights[k * width..][first..k])
    }

    /// The matrix's column that is solved as number `k`.
    fn column(&self, k: usize) -> usize {
        self.order.map_or(k, |order| order[k] as usize)
    }

    /// Fixes scales and zeros of all groups, from the given weights.
    fn fix_groups(&self, chunk: &mut RowChunk<T>) {
        let mut members = vec![Vec::with_capacity(chunk.group); chunk.width / chunk.group];
        for k in 0..chunk.width {
            members[self.column(k) / chunk.group].push(k);
        }
        let weight = std::mem::take(&mut chunk.weight);
        for (group, members) in members.iter().enumerate() {
            let columns: Vec<_> = members
                .iter()
                .map(|k| (self.column(*k), &weight[chunk.columns(&(*k..k + 1))]))
                .collect();
            self.fix(chunk, group, &columns);
        }
        chunk.weight = weight;
    }

    /// Fixes scales and zeros of a group whose columns are adjacent, from the weights that best
    /// compensate the errors so far: those that its columns would have if none of them were
    /// rounded, W + B A_g⁻¹, where B is fed by earlier columns.
    fn fix_settled(&self, chunk: &mut RowChunk<T>, group: usize) {
        let best = self.settled_weight(chunk, group);
        let columns: Vec<_> = best
            .chunks_exact(chunk.strips)
            .enumerate()
            .map(|(k, c)| (group * chunk.group + k, c))
            .collect();
        self.fix(chunk, group, &columns);
    }

    /// Computes W + B A_g⁻¹ of a group.
    fn settled_weight(&self, chunk: &RowChunk<T>, group: usize) -> Vec<[T; STRIP]> {
        let (rows, size) = (chunk.rows(), chunk.group);
        let members = chunk.columns(&(group * size..(group + 1) * size));
        let mut found = chunk.weight[members.clone()].to_vec();
        let Some(settled) = self.settled().filter(|_| group > 0) else { return found };
        let settled = &settled[group * size * size..][..size * size];
        let settled = MatRef::from_column_major_slice(settled, size, size);
        let fed = MatRef::from_column_major_slice(chunk.fed[members].as_flattened(), rows, size);
        let mut best = MatMut::from_column_major_slice_mut(found.as_flattened_mut(), rows, size);
        // Since the matrix is upper triangular, a block of columns takes only from columns up to
        // its end.
        for first in (0..size).step_by(COLUMNS) {
            let count = COLUMNS.min(size - first);
            let best = best.rb_mut().subcols_mut(first, count);
            let settled = settled.subcols(first, count).subrows(0, first + count);
            let fed = fed.subcols(0, first + count);
            matmul(best, Accum::Add, fed, settled, T::ONE, Par::Seq);
        }
        found
    }

    /// Fixes scales and zeros of a group from `columns`, each with its index in the matrix.
    fn fix(&self, chunk: &mut RowChunk<T>, group: usize, columns: &[(usize, &[[T; STRIP]])]) {
        let arch = Arch::new();
        let mut min = vec![[T::ZERO; STRIP]; chunk.strips];
        let mut max = min.clone();
        for (_, column) in columns {
            arch.dispatch(WidenRange { column, min: &mut min, max: &mut max });
        }
        let at = chunk.columns(&(group..group + 1));
        let (scales, zeros) = (&mut chunk.scales[at.clone()], &mut chunk.zeros[at]);
        self.parameters([&min, &max], T::ONE, scales, zeros);
        if let Some(diagonal) = self.diagonal {
            self.clip(columns, diagonal, [&min, &max], [scales, zeros]);
        }
    }

    /// Computes scales and zeros for the share `kept` of the range of each row.
    fn parameters(
        &self,
        range: [&[[T; STRIP]]; 2],
        kept: T,
        scales: &mut [[T; STRIP]],
        zeros: &mut [[T; STRIP]],
    ) {
        let found = scales.as_flattened_mut().iter_mut().zip(zeros.as_flattened_mut());
        let [min, max] = range.map(|values| values.as_flattened());
        for (((scale, zero), min), max) in found.zip(min).zip(max) {
            (*scale, *zero) = self.grid.parameters(*min * kept, *max * kept);
        }
    }

    /// Shrinks the range of each row step by step, and keeps the one that minimizes Σ diag(H) · (w
    /// − ŵ)².
    fn clip(
        &self,
        columns: &[(usize, &[[T; STRIP]])],
        diagonal: &[T],
        range: [&[[T; STRIP]]; 2],
        [scales, zeros]: [&mut [[T; STRIP]]; 2],
    ) {
        let mut best_errors = self.errors(columns, diagonal, scales, zeros);
        let (mut tried_scales, mut tried_zeros) = (scales.to_vec(), zeros.to_vec());
        for step in 1..=CLIPS {
            let share = T::from_f64(kept_range(step));
            self.parameters(range, share, &mut tried_scales, &mut tried_zeros);
            let errors = self.errors(columns, diagonal, &tried_scales, &tried_zeros);
            let kept = scales.as_flattened_mut().iter_mut().zip(zeros.as_flattened_mut());
            let tried = tried_scales.as_flattened().iter().zip(tried_zeros.as_flattened());
            let errors = best_errors.as_flattened_mut().iter_mut().zip(errors.as_flattened());
            for (((scale, zero), (tried_scale, tried_zero)), (best, error)) in
                kept.zip(tried).zip(errors)
            {
                if *error < *best {
                    (*scale, *zero, *best) = (*tried_scale, *tried_zero, *error);
                }
            }
        }
    }

    /// Σ diag(H) · (w − ŵ)² of each row.
    fn errors(
        &self,
        columns: &[(usize, &[[T; STRIP]])],
        diagonal: &[T],
        scales: &[[T; STRIP]],
        zeros: &[[T; STRIP]],
    ) -> Vec<[T; STRIP]> {
        let (arch, mut sums) = (Arch::new(), vec![[T::ZERO; STRIP]; scales.len()]);
        for (k, column) in columns {
            arch.dispatch(WeightedErrors {
                grid: self.grid,
                energy: diagonal[*k],
                column,
                scales,
                zeros,
                sums: &mut sums,
            });
        }
        sums
    }
}
