//! Sums of outer products of f32 or bf16 values, in f32.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{elements_mut, widened};

/// Rows of the sum that a thread computes at a time.
const ROWS: usize = 64;

/// Adds Xᵀ X to `sum`, `[K, K]` in f32; `x` is `[n, K]` in f32 or bf16. Products of bf16 are added
/// in f32, on CUDA by tensor cores.
///
/// # Errors
/// For shapes and dtypes that don't fit, or if the device fails.
pub(crate) fn add_gram(sum: &Tensor, x: &Tensor) -> Result<()> {
    let size = x.dim(1)?;
    if sum.dims() != [size, size] || ![DType::F32, DType::BF16].contains(&x.dtype()) {
        bail!("a sum of {:?} for {:?} {:?}", sum.shape(), x.dtype(), x.shape());
    }
    sum.inplace_op2(&x.contiguous()?, &Gram)
}

/// Adds to `sum`, the rows of the whole sum from row `first` on.
fn add_rows(sum: &mut [f32], first: usize, x: MatRef<'_, f32>) {
    let rows = sum.len() / x.ncols();
    let sum = MatMut::from_row_major_slice_mut(sum, rows, x.ncols());
    let own = x.subcols(first, rows).transpose();
    matmul(sum, Accum::Add, own, x, 1.0, Par::Seq);
}

struct Gram;

impl InplaceOp2 for Gram {
    fn name(&self) -> &'static str {
        "sum of outer products"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        ls: &Layout,
        x: &CpuStorage,
        lx: &Layout,
    ) -> Result<()> {
        let (tokens, size) = lx.shape().dims2()?;
        let x = widened(x, lx)?;
        let x = MatRef::from_row_major_slice(&x, tokens, size);
        let blocks = elements_mut(sum, ls)?.par_chunks_mut((ROWS * size).max(1)).enumerate();
        blocks.for_each(|(block, sum)| add_rows(sum, block * ROWS, x));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &mut candle_core::CudaStorage,
        ls: &Layout,
        x: &candle_core::CudaStorage,
        lx: &Layout,
    ) -> Result<()> {
        use super::cuda::{add_gram, read_floats, write};
        let shape = lx.shape().dims2()?;
        let device = sum.device.clone();
        let stream = device.cuda_stream();
        let (sum, _sum) = write(sum, ls, &stream)?;
        let (x, _x) = read_floats(x, lx, &stream)?;
        add_gram(&device, sum, x, shape)
    }
}
