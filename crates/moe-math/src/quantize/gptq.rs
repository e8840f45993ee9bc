//! GPTQ for many matrices at once.

use faer::linalg::triangular_inverse::invert_unit_upper_triangular;
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use super::chunk::{Job, each_chunk};
use super::columns::{Feedback, Solver};
use super::grid::Grid;
use super::{Codes, Factor, QuantizeError, Real, Scheme, checked_length};

/// How matrices are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The grids.
    pub scheme: Scheme,
    /// Whether the range of each group may shrink, down to half, where that lessens Σ diag(H) · (w
    /// − ŵ)².
    pub clip_search: bool,
}

/// A matrix, and the factor of the Hessian of its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, T> {
    /// `[N, K]`
    pub weight: &'a [f32],
    /// Of `[K, K]`.
    pub factor: &'a Factor<T>,
}

/// A quantized matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// Its codes.
    pub codes: Codes,
    /// tr(ΔW H ΔWᵀ) with ΔW = W − Ŵ and H as it was factored, but without damping. It costs nothing
    /// beside the codes; in f32 it is good to about 10⁻⁶ of what damping adds to it.
    pub error: f64,
}

/// Quantizes matrices of one shape, in parallel over them and over their rows, with one answer
/// whatever the threads.
///
/// With an order in the factor, scales come from the weights as they are given ("static" groups:
/// the file needs no order). Without, those of a group come from the weights that best make up for
/// the errors of all columns before it, which are the ones that Algorithm 1 of 2210.17323 holds
/// when it reaches the group.
///
/// # Errors
/// For schemes and lengths that don't fit, and weights that are not finite.
pub fn solve<T: Real>(
    problems: &[Problem<'_, T>],
    shape: [usize; 2],
    options: &Options,
) -> Result<Vec<Solved>, QuantizeError> {
    let (group, width) = (checked(problems, shape, options)?, shape[1]);
    if problems.iter().any(|problem| problem.factor.on_device.is_some()) {
        return Err(QuantizeError::Device("its factor is not in memory".to_owned()));
    }
    let grid = Grid::<T>::new(&options.scheme);
    let prepared = problems.par_iter().map(|problem| Prepared::of(problem.factor, width, group));
    let prepared: Vec<_> = prepared.collect();
    let solvers: Vec<_> = prepared.iter().map(|prepared| prepared.solver(&grid, options)).collect();
    let mut found: Vec<Codes> = problems.iter().map(|_| Codes::blank(shape, group)).collect();
    let mut jobs: Vec<Job<'_>> = Vec::with_capacity(problems.len());
    for (Problem { weight, factor }, codes) in problems.iter().zip(&mut found) {
        jobs.push(Job { weight, order: factor.order.as_deref(), codes });
    }
    let errors = each_chunk(&mut jobs, &grid, |index, chunk| solvers[index].run(chunk))?;
    Ok(found.into_iter().zip(errors).map(|(codes, error)| Solved { codes, error }).collect())
}

/// Columns of a group, where everything is of its length.
pub(super) fn checked<T>(
    problems: &[Problem<'_, T>],
    [rows, width]: [usize; 2],
    options: &Options,
) -> Result<usize, QuantizeError> {
    let group = options.scheme.group_of(width)?;
    for problem in problems {
        checked_length(problem.weight.len(), rows * width)?;
        checked_length(problem.factor.pivots.len(), width)?;
    }
    Ok(group)
}

/// A factor, and what solvers of its problems take beside it.
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

    fn solver<'b>(&'b self, grid: &'b Grid<T>, options: &Options) -> Solver<'b, T> {
        let factor = self.factor;
        let diagonal = options.clip_search.then_some(&*factor.diagonal);
        let settled = self.settled.as_deref();
        let feedback = Feedback { weights: &factor.feedback, settled, costs: &self.costs };
        Solver { grid, order: factor.order.as_deref(), diagonal, feedback: Some(feedback) }
    }
}

/// ΔW (H + λ mean I) ΔWᵀ = Σ_k D_k (what column k was rounded from − ŵ_k)²; what damping adds is
/// taken off again.
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

/// The inverse of each group's block of A, where groups are fixed on the way.
fn settled<T: Real>(factor: &Factor<T>, width: usize, group: usize) -> Option<Vec<T>> {
    if factor.order.is_some() || group == width {
        return None;
    }
    let mut inverses = vec![T::ZERO; width * group];
    let feedback = MatRef::from_column_major_slice(&factor.feedback, width, width);
    for (g, inverse) in inverses.chunks_exact_mut(group * group).enumerate() {
        // What is inverted writes no diagonal.
        inverse.iter_mut().step_by(group + 1).for_each(|one| *one = T::ONE);
        let part = feedback.submatrix(g * group, g * group, group, group);
        let inverse = MatMut::from_column_major_slice_mut(inverse, group, group);
        invert_unit_upper_triangular(inverse, part, Par::Seq);
    }
    Some(inverses)
}

#[cfg(test)]
mod tests;
