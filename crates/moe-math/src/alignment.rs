//! Aligns the neurons of one expert with those of another: the costs of pairs, and the cheapest
//! permutation.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::assignment::{AssignmentError, linear};
use crate::linkage::squared_distance;

/// −⟨rᵢ, mⱼ⟩ for rows of `reference` and `member`, both `[n, d]`. The permutation with the least
/// total minimizes ‖R − P M‖_F (M-SMoE, 2310.01334).
///
/// # Errors
/// If the device fails.
pub fn negative_products(reference: Tensor, member: Tensor) -> Result<Vec<f64>> {
    let products = reference.matmul(&member.t()?)?;
    // For large experts each of these takes hundreds of megabytes.
    drop((reference, member));
    let mut costs: Vec<f64> = products.flatten_all()?.to_vec1()?;
    costs.iter_mut().for_each(|product| *product = -*product);
    Ok(costs)
}

/// ‖rᵢ − mⱼ‖₂ for rows of `reference` and `member`, `[n, d]` row by row.
pub fn distances(reference: &[f64], member: &[f64], d: usize) -> Vec<f64> {
    let columns = member.len() / d;
    let mut costs = vec![0.0; reference.len() / d * columns];
    costs.par_chunks_exact_mut(columns.max(1)).zip(reference.par_chunks_exact(d)).for_each(
        |(costs, row)| {
            costs
                .iter_mut()
                .zip(member.chunks_exact(d))
                .for_each(|(cost, m)| *cost = squared_distance(row, m).sqrt());
        },
    );
    costs
}

/// Returns the member's neuron that moves to each place of the reference, such that the total of
/// `cost` is minimal. `cost` is `[n, n]`: rows are places, columns are the member's neurons.
///
/// # Errors
/// [`AssignmentError`] for costs that are not square or not finite.
pub fn permutation(cost: &[f64], n: usize) -> std::result::Result<Vec<u32>, AssignmentError> {
    let columns = linear(cost, n)?;
    Ok(columns.into_iter().flatten().map(|column| column as u32).collect())
}
