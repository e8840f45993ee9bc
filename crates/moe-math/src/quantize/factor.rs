//! What GPTQ needs of a Hessian: an order of the columns, and a triangular factor.

use super::cholesky::upper_cholesky;
use super::{Hessian, QuantizeError, Real};

/// How much of the mean diagonal is added to the diagonal, so that the Hessian can be factored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// λ, the share that is tried first.
    pub start: f64,
    /// What it is multiplied by where that fails.
    pub step: f64,
    /// The greatest share that is tried.
    pub most: f64,
}

impl Default for Damping {
    fn default() -> Self {
        Self { start: 0.01, step: 10.0, most: 1.0 }
    }
}

/// H + λ mean(diag H) I = A D Aᵀ with A unit upper triangular, columns in the order in which they are solved.
///
/// GPTQ's upper Cholesky factor of H⁻¹ is D^(−1/2) A⁻¹; the solver needs A, which takes no inverse.
#[derive(Debug, Clone)]
pub struct Factor<T> {
    /// Columns of the weight in the order in which they are solved; none: as they are.
    pub order: Option<Vec<u32>>,
    /// Aᵀ, `[K, K]`: row k is what column k takes from the error of each column before it. Only its lower triangle holds
    /// values.
    pub feedback: Vec<T>,
    /// D, in the order in which columns are solved.
    pub pivots: Vec<T>,
    /// diag H before damping, in the order of the weight's columns.
    pub diagonal: Vec<T>,
    /// Columns without energy, in the order of the weight's columns: they neither give nor take feedback.
    pub dead: Vec<bool>,
    /// λ that was used.
    pub damping: f64,
    /// λ mean(diag H), over columns with energy: what was added to their diagonal.
    pub added: f64,
    /// Factorisations that were tried.
    pub attempts: u32,
}

/// Factors `hessian`, with more damping where that fails. With `act_order`, columns are solved from the greatest
/// diagonal to the least, equal ones in their own order.
///
/// # Errors
/// [`QuantizeError::NotFinite`], and [`QuantizeError::Singular`] where all damping fails.
pub fn factorise<T: Real>(
    hessian: &Hessian<T>,
    damping: &Damping,
    act_order: bool,
) -> Result<Factor<T>, QuantizeError> {
    let size = hessian.size;
    let diagonal: Vec<T> = (0..size).map(|i| hessian.sum[i * size + i]).collect();
    let dead: Vec<bool> = diagonal.iter().map(|h| *h <= T::ZERO).collect();
    let live = dead.iter().filter(|dead| !**dead).count();
    let mean = diagonal.iter().map(|h| h.to_f64().max(0.0)).sum::<f64>() / live.max(1) as f64;
    let order = act_order.then(|| descending(&diagonal));
    let (mut share, mut attempts) = (damping.start, 1);
    loop {
        let mut matrix = ordered(hessian, order.as_deref());
        damp(&mut matrix, order.as_deref(), &dead, T::from_f64(share * mean));
        if upper_cholesky(&mut matrix, size) {
            let pivots = unit_diagonal(&mut matrix, size);
            let added = share * mean;
            return Ok(Factor { order, feedback: matrix, pivots, diagonal, dead, damping: share, added, attempts });
        }
        if !(0..size).all(|i| hessian.sum[i * size..][..=i].iter().all(|h| h.finite())) {
            return Err(QuantizeError::NotFinite);
        }
        if damping.step <= 1.0 || share * damping.step > damping.most {
            return Err(QuantizeError::Singular { damping: share });
        }
        share *= damping.step;
        attempts += 1;
    }
}

/// Indices from the greatest value to the least, equal ones in their own order.
fn descending<T: Real>(values: &[T]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].to_f64().total_cmp(&values[*a as usize].to_f64()));
    order
}

/// H by columns in the order in which they are solved, at least its upper triangle.
fn ordered<T: Real>(hessian: &Hessian<T>, order: Option<&[u32]>) -> Vec<T> {
    let Some(order) = order else { return hessian.sum.clone() };
    let size = hessian.size;
    let mut places = vec![0; size];
    for (k, column) in order.iter().enumerate() {
        places[*column as usize] = k;
    }
    let mut matrix = vec![T::ZERO; size * size];
    for (i, (row, place)) in hessian.sum.chunks_exact(size.max(1)).zip(&places).enumerate() {
        for (h, other) in row.iter().zip(&places[..=i]) {
            matrix[place.max(other) * size + place.min(other)] = *h;
        }
    }
    matrix
}

/// Adds `added` to the diagonal; a dead column becomes one of the identity.
fn damp<T: Real>(matrix: &mut [T], order: Option<&[u32]>, dead: &[bool], added: T) {
    let size = dead.len();
    let dead: Vec<bool> = (0..size).map(|k| dead[order.map_or(k, |order| order[k] as usize)]).collect();
    let any = dead.contains(&true);
    for (k, column) in matrix.chunks_exact_mut(size.max(1)).enumerate() {
        column[k] = column[k] + added;
        if any {
            let lost = |j: usize| dead[j] || dead[k];
            column[..=k].iter_mut().enumerate().filter(|(j, _)| lost(*j)).for_each(|(_, value)| *value = T::ZERO);
        }
        if dead[k] {
            column[k] = T::ONE;
        }
    }
}

/// A from R, each column over its pivot, and D, the squares of the pivots.
fn unit_diagonal<T: Real>(upper: &mut [T], size: usize) -> Vec<T> {
    let columns = upper.chunks_exact_mut(size.max(1)).enumerate();
    columns
        .map(|(k, column)| {
            let pivot = column[k];
            column[..=k].iter_mut().for_each(|value| *value = *value / pivot);
            pivot * pivot
        })
        .collect()
}
