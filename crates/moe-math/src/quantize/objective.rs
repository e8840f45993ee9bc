//! What quantization costs the output of a matrix, without another forward pass.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{Hessian, QuantizeError, checked_length};
use crate::reduce::sum;

/// Rows of W that a thread takes at a time.
const ROWS: usize = 128;
/// Columns of a block: only blocks of the lower triangle are multiplied.
const BLOCK: usize = 128;

/// tr(ΔW H ΔWᵀ) and tr(W H Wᵀ), ΔW = W − Ŵ: Σ ρ |ΔW x|² and Σ ρ |W x|² over the inputs that H was made of. W and Ŵ are
/// `[N, K]`.
///
/// # Errors
/// For values that are not as many as `hessian` calls for.
pub fn objective(weight: &[f32], dequantized: &[f32], hessian: &Hessian<f32>) -> Result<[f64; 2], QuantizeError> {
    let width = hessian.size;
    checked_length(dequantized.len(), weight.len())?;
    checked_length(weight.len(), weight.len() / width.max(1) * width)?;
    let parts: Vec<[f64; 2]> = weight
        .par_chunks(ROWS * width)
        .zip(dequantized.par_chunks(ROWS * width))
        .map(|(weight, dequantized)| {
            let error: Vec<f32> = weight.iter().zip(dequantized).map(|(w, q)| w - q).collect();
            [energy(&error, hessian), energy(weight, hessian)]
        })
        .collect();
    Ok(parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]))
}

/// tr(M H Mᵀ) of rows M, from the lower triangle: Σ_J ⟨M_J, M_J H_JJ + 2 M_{<J} H_{<J,J}⟩ over blocks of columns J.
fn energy(rows: &[f32], hessian: &Hessian) -> f64 {
    let width = hessian.size;
    let count = rows.len() / width;
    let m = MatRef::from_row_major_slice(rows, count, width);
    let h = MatRef::from_row_major_slice(&hessian.sum, width, width);
    let (mut product, mut energy) = (vec![0f32; count * BLOCK], 0.0);
    for first in (0..width).step_by(BLOCK) {
        let size = BLOCK.min(width - first);
        let product = &mut product[..count * size];
        let mut to = MatMut::from_row_major_slice_mut(product, count, size);
        let before = h.submatrix(first, 0, size, first).transpose();
        matmul(to.rb_mut(), Accum::Replace, m.subcols(0, first), before, 2.0, Par::Seq);
        let block = h.submatrix(first, first, size, size);
        let block = Mat::from_fn(size, size, |i, j| block[(i.max(j), i.min(j))]);
        matmul(to, Accum::Add, m.subcols(first, size), block, 1.0, Par::Seq);
        for (row, product) in rows.chunks_exact(width).zip(product.chunks_exact(size)) {
            energy += sum(&row[first..first + size], product, |a, b| f64::from(a) * f64::from(b));
        }
    }
    energy
}
