//! The column loop of GPTQ on a device (2210.17323, Algorithm 1).
//!
//! E matrices of N rows and K columns are processed together, as `[E, K, N]`: neighboring threads
//! take neighboring rows.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Arguments, Geometry, elements, elements_mut};

/// Maximum number of columns of [`round_block`].
pub(crate) const BLOCK: usize = 32;

/// Rounds the columns of a block one after another. `weight` and `fed` (what columns before the
/// block feed to them) are `[E, B, N]`. `feedback` between these columns is `[E, B, B]`; only its
/// part below the diagonal is used. `grids`, `[2, E, B, N]` or `[2, E, 1, N]`, holds scales and
/// signed zeros. Codes lie between `low` and `high`.
///
/// # Errors
/// For shapes that don't fit and more columns than [`BLOCK`], or if the device fails.
pub(crate) fn round_block(
    weight: &Tensor,
    fed: &Tensor,
    feedback: &Tensor,
    grids: &Tensor,
    [low, high]: [f32; 2],
) -> Result<Rounded> {
    let (experts, size, rows) = weight.dims3()?;
    let columns = grids.dim(2)?;
    let fits = size <= BLOCK
        && fed.dims() == weight.dims()
        && feedback.dims() == [experts, size, size]
        && grids.dims() == [2, experts, columns, rows]
        && [1, size].contains(&columns);
    if !fits {
        let [weight, feedback, grids] = [weight, feedback, grids].map(Tensor::shape);
        bail!("columns of {weight:?} with feedback of {feedback:?} and grids of {grids:?}");
    }
    let state = Tensor::stack(&[weight, fed, fed], 0)?;
    state.inplace_op3(
        &feedback.contiguous()?,
        &grids.contiguous()?,
        &BlockRounding { low, high },
    )?;
    Ok(Rounded { errors: state.get(0)?, codes: state.get(1)?, missed: state.get(2)? })
}

/// The rounded columns of a block, `[E, B, N]` each.
pub(crate) struct Rounded {
    /// w − ŵ
    pub errors: Tensor,
    /// Signed codes.
    pub codes: Tensor,
    /// w plus what was fed to it, minus ŵ.
    pub missed: Tensor,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RoundBlock {
    pub state: *mut f32,
    pub feedback: *const f32,
    pub grids: *const f32,
    pub experts: i32,
    pub size: i32,
    pub rows: i32,
    pub columns: i32,
    pub low: f32,
    pub high: f32,
}

// SAFETY: round.cu declares the same structure; `BlockRounding` passes tensors of the shapes named
// there.
unsafe impl Arguments for RoundBlock {
    const SOURCE: &'static str = "round";

    fn kernel(&self) -> &'static str {
        "round_block"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.experts as usize, self.rows as usize)
    }
}

struct BlockRounding {
    low: f32,
    high: f32,
}

/// The inputs for rounding the columns of all experts.
struct RoundInputs<'a> {
    feedback: &'a [f32],
    /// All scales, then all zeros.
    grids: &'a [f32],
    /// E, B and N.
    shape: [usize; 3],
    /// Number of grids for the columns: B, or 1 for all.
    columns: usize,
}

impl BlockRounding {
    /// Rounds column `i` of an expert, given that expert's planes of the state.
    fn column(
        &self,
        inputs: &RoundInputs<'_>,
        [expert, i]: [usize; 2],
        [weights, fed, missed]: [&mut [f32]; 3],
    ) {
        let &RoundInputs { feedback, grids, shape: [experts, size, rows], columns } = inputs;
        let (scales, zeros) = grids.split_at(experts * columns * rows);
        let (errors, weights) = weights.split_at_mut(i * rows);
        let row = &feedback[(expert * size + i) * size..][..i];
        let grid = (expert * columns + if columns == 1 { 0 } else { i }) * rows;
        for n in 0..rows {
            let at = i * rows + n;
            let corrected = row
                .iter()
                .enumerate()
                .fold(fed[at], |best, (j, a)| best + a * errors[j * rows + n]);
            let best = corrected + weights[n];
            let (scale, zero) = (scales[grid + n], zeros[grid + n]);
            let code = (best / scale + zero).clamp(self.low, self.high).round_ties_even();
            let value = (code - zero) * scale;
            weights[n] -= value;
            fed[at] = code;
            missed[at] = best - value;
        }
    }
}

impl InplaceOp3 for BlockRounding {
    fn name(&self) -> &'static str {
        "rounding of columns"
    }

    fn cpu_fwd(
        &self,
        state: &mut CpuStorage,
        ls: &Layout,
        feedback: &CpuStorage,
        lf: &Layout,
        grids: &CpuStorage,
        lg: &Layout,
    ) -> Result<()> {
        let (_, experts, size, rows) = ls.shape().dims4()?;
        let (feedback, grids) = (elements::<f32>(feedback, lf)?, elements::<f32>(grids, lg)?);
        let inputs =
            RoundInputs { feedback, grids, shape: [experts, size, rows], columns: lg.dims()[2] };
        let state = elements_mut(state, ls)?;
        let plane = state.len() / 3;
        let (weights, rest) = state.split_at_mut(plane);
        let (fed, missed) = rest.split_at_mut(plane);
        let of = (size * rows).max(1);
        let of_experts =
            weights.par_chunks_mut(of).zip(fed.par_chunks_mut(of)).zip(missed.par_chunks_mut(of));
        of_experts.enumerate().for_each(|(expert, ((weights, fed), missed))| {
            (0..size).for_each(|i| self.column(&inputs, [expert, i], [weights, fed, missed]));
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        state: &mut candle_core::CudaStorage,
        ls: &Layout,
        feedback: &candle_core::CudaStorage,
        lf: &Layout,
        grids: &candle_core::CudaStorage,
        lg: &Layout,
    ) -> Result<()> {
        use super::cuda::{launch, read, write};
        use super::int;
        let device = state.device.clone();
        let stream = device.cuda_stream();
        let (feedback, _feedback) = read::<f32>(feedback, lf, &stream)?;
        let (grids, _grids) = read::<f32>(grids, lg, &stream)?;
        let (state, _state) = write(state, ls, &stream)?;
        let (_, experts, size, rows) = ls.shape().dims4()?;
        let [experts, size, rows, columns] = [experts, size, rows, lg.dims()[2]].map(int);
        let &Self { low, high } = self;
        launch(
            &device,
            RoundBlock { state, feedback, grids, experts, size, rows, columns, low, high },
        )
    }
}

/// X with Aᵀ X = `values`, `[E, B, N]`, for the unit lower triangular Aᵀ in `feedback`, `[E, B,
/// B]`. The diagonal of `feedback` isn't read.
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
pub(crate) fn settle(values: &Tensor, feedback: &Tensor) -> Result<Tensor> {
    let (experts, size, _) = values.dims3()?;
    if feedback.dims() != [experts, size, size] {
        bail!("values of {:?} with feedback of {:?}", values.shape(), feedback.shape());
    }
    let settled = values.copy()?;
    settled.inplace_op2(&feedback.contiguous()?, &Settling)?;
    Ok(settled)
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Settle {
    pub values: *mut f32,
    pub feedback: *const f32,
    pub experts: i32,
    pub size: i32,
    pub rows: i32,
}

// SAFETY: round.cu declares the same structure; `Settling` passes tensors of the shapes named
// there.
unsafe impl Arguments for Settle {
    const SOURCE: &'static str = "round";

    fn kernel(&self) -> &'static str {
        "settle"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.experts as usize, self.rows as usize)
    }
}

/// Replaces `values`, `[B, N]` of one expert, by X.
fn settle_expert(values: &mut [f32], feedback: &[f32], [size, rows]: [usize; 2]) {
    for i in 1..size {
        let (before, row) = values.split_at_mut(i * rows);
        for n in 0..rows {
            let sum: f32 = (0..i).map(|j| feedback[i * size + j] * before[j * rows + n]).sum();
            row[n] -= sum;
        }
    }
}

struct Settling;

impl InplaceOp2 for Settling {
    fn name(&self) -> &'static str {
        "settling of a group"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        lv: &Layout,
        feedback: &CpuStorage,
        lf: &Layout,
    ) -> Result<()> {
        let (_, size, rows) = lv.shape().dims3()?;
        let (values, feedback) = (elements_mut(values, lv)?, elements::<f32>(feedback, lf)?);
        if !values.is_empty() {
            let of_experts =
                values.par_chunks_mut(size * rows).zip(feedback.par_chunks(size * size));
            of_experts.for_each(|(values, feedback)| settle_expert(values, feedback, [size, rows]));
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        values: &mut candle_core::CudaStorage,
        lv: &Layout,
        feedback: &candle_core::CudaStorage,
        lf: &Layout,
    ) -> Result<()> {
        use super::cuda::{launch, read, write};
        use super::int;
        let (experts, size, rows) = lv.shape().dims3()?;
        let device = values.device.clone();
        let stream = device.cuda_stream();
        let (feedback, _feedback) = read::<f32>(feedback, lf, &stream)?;
        let (values, _values) = write(values, lv, &stream)?;
        launch(
            &device,
            Settle { values, feedback, experts: int(experts), size: int(size), rows: int(rows) },
        )
    }
}
