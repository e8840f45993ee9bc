//! The error that quantization causes in a matrix's output, without another forward pass.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{Hessian, QuantizeError, checked_length};
use crate::reduce::sum;

/// Rows of W that a thread takes at a time.
const ROWS: usize = 128;
/// Columns of a block; only blocks of the lower triangle are multiplied.
const BLOCK: usize = 128;

/// tr(ΔW H ΔWᵀ) and tr(W H Wᵀ), with ΔW = W − Ŵ: Σ ρ |ΔW x|² and Σ ρ |W x|² over the inputs of
/// which H is the sum. W and Ŵ are `[N, K]`.
///
/// # Errors
/// If the number of values doesn't match `hessian`.
pub fn objective(
    weight: &[f32],
    dequantized: &[f32],
    hessian: &Hessian<f32>,
) -> Result<[f64; 2], QuantizeError> {
    checked_length(dequantized.len(), weight.len())?;
    let error: Vec<f32> = weight.par_iter().zip(dequantized).map(|(w, q)| w - q).collect();
    Ok([energy(&error, hessian)?, energy(weight, hessian)?])
}

/// tr(W H Wᵀ) = Σ ρ |W x|² over the inputs of which H is the sum; W is `[N, K]`.
///
/// # Errors
/// If the number of values doesn't match `hessian`.
pub fn energy(weight: &[f32], hessian: &Hessian) -> Result<f64, QuantizeError> {
    let width = hessian.size.max(1);
    checked_length(weight.len(), weight.len() / width * width)?;
    let full = hessian.full();
    let parts: Vec<f64> =
        weight.par_chunks(ROWS * width).map(|rows| energy_of_rows(rows, &full, width)).collect();
    Ok(parts.iter().sum())
}

/// Over blocks of columns J, Σ_J ⟨W_J, W_J H_JJ + 2 W_{<J} H_{<J,J}⟩. Since H is symmetric, this
/// takes half the products.
fn energy_of_rows(rows: &[f32], hessian: &[f32], width: usize) -> f64 {
    let count = rows.len() / width;
    let m = MatRef::from_row_major_slice(rows, count, width);
    let h = MatRef::from_row_major_slice(hessian, width, width);
    let (mut product, mut energy) = (vec![0f32; count * BLOCK], 0.0);
    for first in (0..width).step_by(BLOCK) {
        let size = BLOCK.min(width - first);
        let product = &mut product[..count * size];
        let mut to = MatMut::from_row_major_slice_mut(product, count, size);
        let before = h.submatrix(0, first, first, size);
        matmul(to.rb_mut(), Accum::Replace, m.subcols(0, first), before, 2.0, Par::Seq);
        let block = h.submatrix(first, first, size, size);
        matmul(to, Accum::Add, m.subcols(first, size), block, 1.0, Par::Seq);
        for (row, product) in rows.chunks_exact(width).zip(product.chunks_exact(size)) {
            energy += sum(&row[first..first + size], product, |a, b| f64::from(a) * f64::from(b));
        }
    }
    energy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    /// Compares with Σ |W x|² over the inputs, for sizes around the edges of blocks.
    #[test]
    fn energies_are_those_of_the_outputs() {
        for (rows, width) in [(3, 5), (130, 40), (5, 128), (7, 300)] {
            let mut random = generator(1, 0);
            let (x, weight) =
                (normal(9 * width, 1.0, &mut random), normal(rows * width, 1.0, &mut random));
            let mut hessian = Hessian::new(width);
            hessian.add(&x, None).unwrap();
            let mut expected = 0f64;
            for x in x.chunks(width) {
                for w in weight.chunks(width) {
                    expected += w
                        .iter()
                        .zip(x)
                        .map(|(w, x)| f64::from(*w) * f64::from(*x))
                        .sum::<f64>()
                        .powi(2);
                }
            }
            let half: Vec<f32> = weight.iter().map(|w| w / 2.0).collect();
            let [error, output] = objective(&weight, &half, &hessian).unwrap();
            assert!(
                (output - expected).abs() < 1e-4 * expected,
                "{rows}×{width}: {output} {expected}"
            );
            assert!((error - expected / 4.0).abs() < 1e-4 * expected);
        }
        assert!(objective(&[0.0; 4], &[0.0; 3], &Hessian::new(2)).is_err());
        assert!(energy(&[0.0; 3], &Hessian::new(2)).is_err());
    }
}
