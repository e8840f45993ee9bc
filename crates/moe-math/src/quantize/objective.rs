//! What quantization costs the output of a matrix, without another forward pass.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{Hessian, QuantizeError, checked_length};

/// Rows of W that a thread takes at a time.
const ROWS: usize = 64;

/// tr(ΔW H ΔWᵀ) and tr(W H Wᵀ), ΔW = W − Ŵ: Σ ρ |ΔW x|² and Σ ρ |W x|² over the inputs that H was made of. W and Ŵ are
/// `[N, K]`.
///
/// # Errors
/// For values that are not as many as `hessian` calls for.
pub fn objective(weight: &[f32], dequantized: &[f32], hessian: &Hessian<f32>) -> Result<[f64; 2], QuantizeError> {
    let width = hessian.size;
    checked_length(dequantized.len(), weight.len())?;
    checked_length(weight.len(), weight.len() / width.max(1) * width)?;
    let full = hessian.full();
    let parts: Vec<[f64; 2]> = weight
        .par_chunks(ROWS * width)
        .zip(dequantized.par_chunks(ROWS * width))
        .map(|(weight, dequantized)| {
            let error: Vec<f32> = weight.iter().zip(dequantized).map(|(w, q)| w - q).collect();
            [energy(&error, &full, width), energy(weight, &full, width)]
        })
        .collect();
    Ok(parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]))
}

/// tr(M H Mᵀ) of rows M.
fn energy(rows: &[f32], hessian: &[f32], width: usize) -> f64 {
    let count = rows.len() / width;
    let mut product = vec![0f32; rows.len()];
    let to = MatMut::from_row_major_slice_mut(&mut product, count, width);
    let from = MatRef::from_row_major_slice(rows, count, width);
    matmul(to, Accum::Replace, from, MatRef::from_row_major_slice(hessian, width, width), 1.0, Par::Seq);
    rows.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
