//! What GPTQ needs of a Hessian: an order of the columns, and a triangular factor.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{Auto, MatMut, Par, Spec};

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
    /// Aᵀ, `[K, K]`: row k is what column k takes from the error of each column before it.
    pub feedback: Vec<T>,
    /// diag H before damping, in the order of the weight's columns.
    pub diagonal: Vec<T>,
    /// Columns without energy, in the order of the weight's columns: they neither give nor take feedback.
    pub dead: Vec<bool>,
    /// λ that was used.
    pub damping: f64,
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
    if !(0..size).all(|i| hessian.sum[i * size..][..=i].iter().all(|h| h.finite())) {
        return Err(QuantizeError::NotFinite);
    }
    let dead: Vec<bool> = diagonal.iter().map(|h| *h <= T::ZERO).collect();
    let live = dead.iter().filter(|dead| !**dead).count();
    let mean = diagonal.iter().map(|h| h.to_f64().max(0.0)).sum::<f64>() / live.max(1) as f64;
    let order = act_order.then(|| descending(&diagonal));
    let (mut share, mut attempts) = (damping.start, 1);
    loop {
        let mut matrix = reversed(hessian, order.as_deref(), &dead, T::from_f64(share * mean));
        if cholesky(&mut matrix, size) {
            let feedback = feedback(&matrix, size);
            return Ok(Factor { order, feedback, diagonal, dead, damping: share, attempts });
        }
        if share * damping.step > damping.most || damping.step <= 1.0 {
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

/// The lower triangle, by columns, of H with damping, columns from the last to be solved to the first.
fn reversed<T: Real>(hessian: &Hessian<T>, order: Option<&[u32]>, dead: &[bool], added: T) -> Vec<T> {
    let size = hessian.size;
    let column = |k: usize| order.map_or(k, |order| order[k] as usize);
    let mut matrix = vec![T::ZERO; size * size];
    for (j, values) in matrix.chunks_exact_mut(size).enumerate() {
        let a = column(size - 1 - j);
        if dead[a] {
            values[j] = T::ONE;
            continue;
        }
        for (i, value) in values.iter_mut().enumerate().skip(j) {
            let b = column(size - 1 - i);
            *value = if dead[b] { T::ZERO } else { hessian.sum[a.max(b) * size + a.min(b)] };
        }
        values[j] = values[j] + added;
    }
    matrix
}

/// The Cholesky factor in place of the lower triangle; whether there is one.
fn cholesky<T: Real>(matrix: &mut [T], size: usize) -> bool {
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<T>(size, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    let view = MatMut::from_column_major_slice_mut(matrix, size, size);
    let factored = cholesky_in_place(view, Default::default(), Par::Seq, stack, Spec::new(Auto::<T>::auto())).is_ok();
    factored && (0..size).all(|i| matrix[i * size + i].finite() && matrix[i * size + i] > T::ZERO)
}

/// Aᵀ from L of the reversed order: A_jk = L_(n−1−j)(n−1−k) / L_(n−1−k)(n−1−k).
fn feedback<T: Real>(lower: &[T], size: usize) -> Vec<T> {
    let mut feedback = vec![T::ZERO; size * size];
    for (k, row) in feedback.chunks_exact_mut(size).enumerate() {
        let column = &lower[(size - 1 - k) * size..][..size];
        let pivot = column[size - 1 - k];
        for (weight, value) in row[..k].iter_mut().zip(column.iter().rev()) {
            *weight = *value / pivot;
        }
    }
    feedback
}
