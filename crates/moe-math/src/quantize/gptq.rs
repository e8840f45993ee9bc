//! GPTQ for many matrices at once.

use faer::linalg::triangular_inverse::invert_unit_upper_triangular;
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use super::chunk::{MatrixJob, each_chunk};
use super::columns::{ColumnSolver, Feedback};
use super::grid::Grid;
use super::{Codes, Factor, GridScheme, QuantizeError, Real, checked_length};

/// Options for quantizing matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptqOptions {
    /// The grids of the codes.
    pub scheme: GridScheme,
    /// Whether the range of each group may shrink, down to half, if that reduces Σ diag(H) · (w −
    /// ŵ)².
    pub clip_search: bool,
}

/// A matrix, and the factor of the Hessian of its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, T> {
    /// `[N, K]`
    pub weight: &'a [f32],
    /// Factor of the `[K, K]` Hessian.
    pub factor: &'a Factor<T>,
}

/// A quantized matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct SolvedMatrix {
    /// Codes of the matrix, with its scales and zeros.
    pub codes: Codes,
    /// tr(ΔW H ΔWᵀ) with ΔW = W − Ŵ and H as it was factored, but without damping. It is a
    /// by-product of the codes; in f32 it is accurate to about 10⁻⁶ of what damping adds to it.
    pub error: f64,
}

/// Quantizes matrices of one shape, in parallel over matrices and rows. The result doesn't depend
/// on the number of threads.
///
/// If the factor has an order, scales come from the given weights ("static" groups: the file needs
/// no order). Otherwise a group's scales come from the weights that best compensate the errors of
/// all earlier columns; Algorithm 1 of 2210.17323 holds these weights when it reaches the group.
///
/// # Errors
/// For schemes and lengths that don't fit, and weights that are not finite.
pub fn solve<T: Real>(
    problems: &[Problem<'_, T>],
    shape: [usize; 2],
    options: &GptqOptions,
) -> Result<Vec<SolvedMatrix>, QuantizeError> {
    let (group, width) = (checked(problems, shape, options)?, shape[1]);
    if problems.iter().any(|problem| problem.factor.on_device.is_some()) {
        return Err(QuantizeError::Device("its factor is not in memory".to_owned()));
    }
    let grid = Grid::<T>::new(&options.scheme);
    let prepared = problems.par_iter().map(|problem| Prepared::of(problem.factor, width, group));
    let prepared: Vec<_> = prepared.collect();
    let solvers: Vec<_> = prepared.iter().map(|prepared| prepared.solver(&grid, options)).collect();
    let mut found: Vec<Codes> = problems.iter().map(|_| Codes::blank(shape, group)).collect();
    let mut jobs: Vec<MatrixJob<'_>> = Vec::with_capacity(problems.len());
    for (Problem { weight, factor }, codes) in problems.iter().zip(&mut found) {
        jobs.push(MatrixJob { weight, order: factor.order.as_deref(), codes });
    }
    let errors = each_chunk(&mut jobs, &grid, |index, chunk| solvers[index].run(chunk))?;
    Ok(found.into_iter().zip(errors).map(|(codes, error)| SolvedMatrix { codes, error }).collect())
}

/// Returns the number of columns of a group, if all lengths fit.
pub(super) fn checked<T>(
    problems: &[Problem<'_, T>],
    [rows, width]: [usize; 2],
    options: &GptqOptions,
) -> Result<usize, QuantizeError> {
    let group = options.scheme.group_of(width)?;
    for problem in problems {
        checked_length(problem.weight.len(), rows * width)?;
        checked_length(problem.factor.pivots.len(), width)?;
    }
    Ok(group)
}

/// A factor, with matrices derived from it that all problems with this factor share.
struct Prepared<'a, T> {
    factor: &'a Factor<T>,
    /// See [`Feedback::settled`].
    settled: Option<Vec<T>>,
    costs: Vec<[T; 2]>,
}

impl<'a, T: Real> Prepared<'a, T> {
    fn of(factor: &'a Factor<T>, width: usize, group: usize) -> Self {
        Self { factor, settled: settled(factor, width, group), costs: costs(factor) }
    }

    fn solver<'b>(&'b self, grid: &'b Grid<T>, options: &GptqOptions) -> ColumnSolver<'b, T> {
        let factor = self.factor;
        let diagonal = options.clip_search.then_some(&*factor.diagonal);
        let settled = self.settled.as_deref();
        let feedback = Feedback { weights: &factor.feedback, settled, costs: &self.costs };
        ColumnSolver { grid, order: factor.order.as_deref(), diagonal, feedback: Some(feedback) }
    }
}

/// For each column k the factors D_k and λ mean in ΔW H ΔWᵀ = Σ_k D_k (what column k was rounded
/// from − ŵ_k)² − λ mean (w_k − ŵ_k)². The second term takes off what damping adds.
pub(super) fn costs<T: Real>(factor: &Factor<T>) -> Vec<[T; 2]> {
    let costs = factor.pivots.iter().enumerate().map(|(k, pivot)| {
        if factor.dead[factor.column(k)] {
            [T::ZERO; 2]
        } else {
            [*pivot, T::from_f64(factor.added)]
        }
    });
    costs.collect()
}

/// The inverse of each group's block of A; None if groups are fixed beforehand.
fn settled<T: Real>(factor: &Factor<T>, width: usize, group: usize) -> Option<Vec<T>> {
    if factor.order.is_some() || group == width {
        return None;
    }
    let mut inverses = vec![T::ZERO; width * group];
    let feedback = MatRef::from_column_major_slice(&factor.feedback, width, width);
    for (g, inverse) in inverses.chunks_exact_mut(group * group).enumerate() {
        // The inversion doesn't write the diagonal.
        inverse.iter_mut().step_by(group + 1).for_each(|one| *one = T::ONE);
        let part = feedback.submatrix(g * group, g * group, group, group);
        let inverse = MatMut::from_column_major_slice_mut(inverse, group, group);
        invert_unit_upper_triangular(inverse, part, Par::Seq);
    }
    Some(inverses)
}

#[cfg(test)]
mod tests;
