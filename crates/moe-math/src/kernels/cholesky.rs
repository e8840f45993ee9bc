//! Batched Cholesky factors on a device.
//!
//! GPTQ needs the factor that starts at the last column: M with H = Mᵀ M, M lower triangular, which
//! `quantize/cholesky.rs` calls Rᵀ. As there, blocks of rows are computed from the last one,
//! left-looking: one batched product applies all later rows to a block.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Arguments, Geometry, elements, int};

/// Rows of a block.
const BLOCK: usize = 64;

/// M with H = Mᵀ M for each of the symmetric matrices `[E, K, K]`, and whether it exists. If it
/// doesn't, that matrix's result is meaningless. Above the diagonal, elements of H aren't read, and
/// elements of M are 0.
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
pub(crate) fn reverse_cholesky(matrices: &Tensor) -> Result<(Tensor, Vec<bool>)> {
    let (count, size, columns) = matrices.dims3()?;
    if size != columns || count * size * size > u32::MAX as usize {
        bail!(
            "matrices of shape {:?} aren't square, or have more than 2³² − 1 elements",
            matrices.shape()
        );
    }
    let factor = Tensor::zeros(matrices.shape(), DType::F32, matrices.device())?;
    let mut failed = Tensor::zeros(count, DType::F32, matrices.device())?;
    let mut end = size;
    while end > 0 {
        let first = (end - 1) / BLOCK * BLOCK;
        let rows = end - first;
        let left = less_products(matrices, &factor, first..end)?;
        let found = left.narrow(2, first, rows)?.contiguous()?.apply_op1_no_bwd(&DiagonalBlock)?;
        let row = row_of_blocks(&found, &left, first)?.pad_with_zeros(2, 0, size - end)?;
        factor.slice_set(&row.contiguous()?, 1, first)?;
        failed = (failed + found.narrow(1, 2 * rows, 1)?.narrow(2, 0, 1)?.flatten_all()?)?;
        end = first;
    }
    Ok((factor, failed.to_vec1::<f32>()?.iter().map(|failed| *failed == 0.0).collect()))
}

/// The `rows` of `matrices` up to the diagonal, minus the product with later rows of `factor`.
fn less_products(matrices: &Tensor, factor: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    let (size, Range { start: first, end }) = (matrices.dim(1)?, rows.clone());
    let left = matrices.narrow(1, first, rows.len())?.narrow(2, 0, end)?.contiguous()?;
    if end == size {
        return Ok(left);
    }
    let later = factor.narrow(1, end, size - end)?.narrow(2, 0, end)?;
    let block = later.narrow(2, first, rows.len())?.transpose(1, 2)?.contiguous()?;
    left - block.matmul(&later.contiguous()?)?
}

/// Rows of the factor up to the diagonal. `found` is the result for their diagonal block; the first
/// `first` columns of `left` are before it.
fn row_of_blocks(found: &Tensor, left: &Tensor, first: usize) -> Result<Tensor> {
    let rows = found.dim(2)?;
    let diagonal = found.narrow(1, 0, rows)?.contiguous()?;
    if first == 0 {
        return Ok(diagonal);
    }
    let inverse = found.narrow(1, rows, rows)?.contiguous()?;
    let before = inverse.matmul(&left.narrow(2, 0, first)?.contiguous()?)?;
    Tensor::cat(&[&before, &diagonal], 2)
}

/// Factors diagonal blocks `[E, B, B]`. The result `[E, 2 B + 1, B]` holds M, M⁻ᵀ and a last row
/// that tells whether there is no factor.
pub(super) struct DiagonalBlock;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct CholeskyBlock {
    pub block: *const f32,
    pub found: *mut f32,
    pub matrices: i32,
    pub size: i32,
}

// SAFETY: cholesky.cu declares the same structure; `DiagonalBlock` passes tensors of the shapes
// named there.
unsafe impl Arguments for CholeskyBlock {
    const SOURCE: &'static str = "cholesky";

    fn kernel(&self) -> &'static str {
        "cholesky_block"
    }

    fn geometry(&self) -> Geometry {
        Geometry { blocks: [self.matrices as usize, 1], threads: self.size as usize }
    }
}

impl DiagonalBlock {
    /// Returns all arguments except the pointers.
    pub(super) fn arguments(&self, [matrices, size]: [usize; 2]) -> CholeskyBlock {
        CholeskyBlock {
            block: std::ptr::null(),
            found: std::ptr::null_mut(),
            matrices: int(matrices),
            size: int(size),
        }
    }

    fn shapes(layout: &Layout) -> Result<([usize; 2], Shape)> {
        let (matrices, size, columns) = layout.shape().dims3()?;
        if size > BLOCK || size != columns {
            bail!("no diagonal blocks of {:?}", layout.shape());
        }
        Ok(([matrices, size], Shape::from((matrices, 2 * size + 1, size))))
    }
}

impl CustomOp1 for DiagonalBlock {
    fn name(&self) -> &'static str {
        "diagonal block of a Cholesky factor"
    }

    fn cpu_fwd(&self, blocks: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ([_, size], shape) = Self::shapes(layout)?;
        let blocks = elements::<f32>(blocks, layout)?;
        let mut found = vec![0f32; shape.elem_count()];
        if size > 0 {
            let all =
                found.par_chunks_mut((2 * size + 1) * size).zip(blocks.par_chunks(size * size));
            all.for_each(|(found, block)| of_block(block, found, size));
        }
        Ok((CpuStorage::F32(found), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        blocks: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use super::cuda::{launch, read, write};
        let (sizes, shape) = Self::shapes(layout)?;
        let device = blocks.device.clone();
        let stream = device.cuda_stream();
        let found = device.alloc_zeros::<f32>(shape.elem_count())?;
        let mut all = candle_core::CudaStorage::wrap_cuda_slice(found, device.clone());
        {
            let (block, _block) = read::<f32>(blocks, layout, &stream)?;
            let (found, _found) = write(&mut all, &Layout::contiguous(&shape), &stream)?;
            launch(&device, CholeskyBlock { block, found, ..self.arguments(sizes) })?;
        }
        Ok((all, shape))
    }
}

fn of_block(block: &[f32], found: &mut [f32], size: usize) {
    let (m, rest) = found.split_at_mut(size * size);
    let (inverse, failed) = rest.split_at_mut(size * size);
    if !factor_block(block, m, size) {
        failed.fill(1.0);
    }
    for j in 0..size {
        for i in (0..=j).rev() {
            let of_identity = if i == j { 1.0 } else { 0.0 };
            let rest = (i + 1..=j)
                .fold(of_identity, |rest, c| rest - m[c * size + i] * inverse[c * size + j]);
            inverse[i * size + j] = rest / m[i * size + i];
        }
    }
}

/// Fills M, and returns whether it exists; a pivot that isn't positive becomes 1.
fn factor_block(block: &[f32], m: &mut [f32], size: usize) -> bool {
    let mut all_good = true;
    for k in (0..size).rev() {
        for j in 0..=k {
            m[k * size + j] = (k + 1..size)
                .fold(block[k * size + j], |rest, c| rest - m[c * size + k] * m[c * size + j]);
        }
        let pivot = m[k * size + k].sqrt();
        let good = pivot > 0.0 && pivot.is_finite();
        all_good &= good;
        let pivot = if good { pivot } else { 1.0 };
        m[k * size..][..k].iter_mut().for_each(|value| *value /= pivot);
        m[k * size + k] = pivot;
    }
    all_good
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::{generator, normal};

    /// Mᵀ M equals the matrix, for sizes around the edges of blocks. A matrix without a factor is
    /// reported among others that have one.
    #[test]
    fn factors_give_the_matrices_back() {
        for size in [1, 5, 63, 64, 65, 130, 200] {
            let x = normal(2 * 2 * size * size, 1.0, &mut generator(1, 0));
            let x = Tensor::from_vec(x, (2, 2 * size, size), &Device::Cpu).unwrap();
            let good = x.transpose(1, 2).unwrap().matmul(&x).unwrap();
            let matrices =
                Tensor::cat(&[&good, &good.narrow(0, 0, 1).unwrap().neg().unwrap()], 0).unwrap();
            let (factors, found) = reverse_cholesky(&matrices).unwrap();
            assert_eq!(found, [true, true, false]);
            let factors = factors.narrow(0, 0, 2).unwrap();
            let product = factors.transpose(1, 2).unwrap().matmul(&factors).unwrap();
            let off =
                (product - &good).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let off = off.to_scalar::<f32>().unwrap();
            assert!(off < 2e-5 * size as f32, "{size}: {off}");
            for factor in factors.to_vec3::<f32>().unwrap() {
                assert!(
                    factor
                        .iter()
                        .enumerate()
                        .all(|(k, row)| row[k] > 0.0 && row[k + 1..].iter().all(|v| *v == 0.0))
                );
            }
        }
        assert!(
            reverse_cholesky(&Tensor::zeros((1, 2, 3), DType::F32, &Device::Cpu).unwrap()).is_err()
        );
    }
}
