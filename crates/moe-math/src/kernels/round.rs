//! GPTQ's columns on a device (2210.17323, Algorithm 1).
//!
//! E matrices of N rows and K columns go together, as `[E, K, N]`: neighbouring threads take
//! neighbouring rows.

use candle_core::{
    CpuStorage, CustomOp2, DType, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

use super::{Arguments, Geometry, elements, elements_mut, int};
use crate::quantize::grid::{CLIPS, Grid, kept_range};

/// Most columns that [`round_block`] takes.
pub(crate) const BLOCK: usize = 32;

/// Rounds the columns of a block one after another. `weight` and `fed`, what columns before the
/// block feed to them, are `[E, B, N]`, `feedback` of these columns to each other is `[E, B, B]`,
/// of which what lies below the diagonal counts, and `grids` `[2, E, B, N]` or `[2, E, 1, N]`:
/// scales and signed zeros; codes lie between `low` and `high`.
///
/// # Errors
/// For shapes that don't fit and more columns than [`BLOCK`]; what the device returns.
pub(crate) fn round_block(
    weight: &Tensor,
    fed: &Tensor,
    feedback: &Tensor,
    grids: &Tensor,
    [low, high]: [f32; 2],
) -> Result<Rounded> {
    let (experts, size, rows) = weight.dims3()?;
    let columns = grids.dim(2)?;
    if size > BLOCK
        || fed.dims() != weight.dims()
        || feedback.dims() != [experts, size, size]
        || grids.dims() != [2, experts, columns, rows]
        || ![1, size].contains(&columns)
    {
        bail!(
            "columns of {:?} with feedback of {:?} and grids of {:?}",
            weight.shape(),
            feedback.shape(),
            grids.shape()
        );
    }
    let state = Tensor::stack(&[weight, fed, fed], 0)?;
    state.inplace_op3(&feedback.contiguous()?, &grids.contiguous()?, &Round { low, high })?;
    Ok(Rounded { errors: state.get(0)?, codes: state.get(1)?, missed: state.get(2)? })
}

/// A block's columns, `[E, B, N]` each.
pub(crate) struct Rounded {
    /// w − ŵ
    pub errors: Tensor,
    /// Signed codes.
    pub codes: Tensor,
    /// What was rounded, which is w and what is fed to it, − ŵ.
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

// SAFETY: round.cu declares it alike; `Round` hands over tensors of the shapes named there.
unsafe impl Arguments for RoundBlock {
    const SOURCE: &'static str = "round";

    fn kernel(&self) -> &'static str {
        "round_block"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.experts as usize, self.rows as usize)
    }
}

struct Round {
    low: f32,
    high: f32,
}

impl InplaceOp3 for Round {
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
        let columns = lg.dims()[2];
        if experts * size * rows == 0 {
            return Ok(());
        }
        let plane = experts * size * rows;
        let (weights, rest) = elements_mut(state, ls)?.split_at_mut(plane);
        let (fed, missed) = rest.split_at_mut(plane);
        let (scales, zeros) = grids.split_at(experts * columns * rows);
        let of = size * rows;
        let of_experts =
            weights.par_chunks_mut(of).zip(fed.par_chunks_mut(of)).zip(missed.par_chunks_mut(of));
        of_experts.enumerate().for_each(|(expert, ((weights, fed), missed))| {
            for i in 0..size {
                let (errors, weights) = weights.split_at_mut(i * rows);
                let row = &feedback[(expert * size + i) * size..][..i];
                let grid = (expert * columns + if columns == 1 { 0 } else { i }) * rows;
                for n in 0..rows {
                    let at = i * rows + n;
                    let add = |best: f32, (j, a): (usize, &f32)| best + a * errors[j * rows + n];
                    let best = row.iter().enumerate().fold(fed[at], add) + weights[n];
                    let (scale, zero) = (scales[grid + n], zeros[grid + n]);
                    let code = (best / scale + zero).clamp(self.low, self.high).round_ties_even();
                    let value = (code - zero) * scale;
                    weights[n] -= value;
                    fed[at] = code;
                    missed[at] = best - value;
                }
            }
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

/// X with Aᵀ X = `values`, `[E, B, N]`, for the unit lower triangular Aᵀ of `feedback`, `[E, B,
/// B]`, whose diagonal isn't read.
///
/// # Errors
/// For shapes that don't fit; what the device returns.
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

// SAFETY: round.cu declares it alike; `Settling` hands over tensors of the shapes named there.
unsafe impl Arguments for Settle {
    const SOURCE: &'static str = "round";

    fn kernel(&self) -> &'static str {
        "settle"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.experts as usize, self.rows as usize)
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
        if values.is_empty() {
            return Ok(());
        }
        values.par_chunks_mut(size * rows).zip(feedback.par_chunks(size * size)).for_each(
            |(values, feedback)| {
                for i in 1..size {
                    let (before, row) = values.split_at_mut(i * rows);
                    for n in 0..rows {
                        let sum: f32 =
                            (0..i).map(|j| feedback[i * size + j] * before[j * rows + n]).sum();
                        row[n] -= sum;
                    }
                }
            },
        );
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

/// Scales and signed zeros, `[2, G, N]`, of groups `members`, `[G, g, N]`, whose columns have the
/// energies `energy`, `[G, g]`: those of the group's range or, where clips are tried, of the part
/// of it that loses least Σ energy · (w − ŵ)².
///
/// # Errors
/// For shapes that don't fit; what the device returns.
pub(crate) fn group_grids(
    members: &Tensor,
    energy: &Tensor,
    grid: Grid<f32>,
    clip_search: bool,
) -> Result<Tensor> {
    let (groups, size, _) = members.dims3()?;
    if energy.dims() != [groups, size] || size == 0 {
        bail!("groups of {:?} with energies of {:?}", members.shape(), energy.shape());
    }
    let grids = Grids { grid, clips: if clip_search { CLIPS } else { 0 } };
    members.contiguous()?.apply_op2_no_bwd(&energy.contiguous()?, &grids)
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GroupGrids {
    pub members: *const f32,
    pub energy: *const f32,
    pub grids: *mut f32,
    pub groups: i32,
    pub size: i32,
    pub rows: i32,
    pub symmetric: i32,
    pub clips: i32,
    pub mantissa: i32,
    pub low: f32,
    pub high: f32,
}

// SAFETY: round.cu declares it alike; `Grids` hands over tensors of the shapes named there.
unsafe impl Arguments for GroupGrids {
    const SOURCE: &'static str = "round";

    fn kernel(&self) -> &'static str {
        "group_grids"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.groups as usize, self.rows as usize)
    }
}

pub(super) struct Grids {
    pub grid: Grid<f32>,
    /// How many smaller ranges are tried, down to half.
    pub clips: u32,
}

impl Grids {
    /// Scale and signed zero of the group of `values`.
    fn of<V: Iterator<Item = f32>>(&self, values: impl Fn() -> V, energy: &[f32]) -> (f32, f32) {
        let (least, most) =
            values().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let tried = |clip| {
            let kept = if clip == 0 { 1.0 } else { kept_range(clip) as f32 };
            let (scale, zero) = self.grid.parameters(least * kept, most * kept);
            let lost = |value: f32| value - (self.grid.code(value, scale, zero) - zero) * scale;
            let error = || {
                values()
                    .zip(energy)
                    .map(|(value, energy)| energy * lost(value) * lost(value))
                    .sum::<f32>()
            };
            (scale, zero, if self.clips > 0 { error() } else { 0.0 })
        };
        let better = |best: (f32, f32, f32), found: (f32, f32, f32)| {
            if found.2 < best.2 { found } else { best }
        };
        let (scale, zero, _) = (1..=self.clips).map(tried).fold(tried(0), better);
        (scale, zero)
    }

    /// All but the pointers.
    pub(super) fn arguments(&self, [groups, size, rows]: [usize; 3]) -> GroupGrids {
        let mantissa = match self.grid.scale_dtype {
            DType::F16 => 10,
            DType::BF16 => 7,
            _ => 23,
        };
        GroupGrids {
            members: std::ptr::null(),
            energy: std::ptr::null(),
            grids: std::ptr::null_mut(),
            groups: int(groups),
            size: int(size),
            rows: int(rows),
            symmetric: i32::from(self.grid.symmetric),
            clips: int(self.clips as usize),
            mantissa,
            low: self.grid.low,
            high: self.grid.high,
        }
    }
}

impl CustomOp2 for Grids {
    fn name(&self) -> &'static str {
        "grids of groups"
    }

    fn cpu_fwd(
        &self,
        members: &CpuStorage,
        lm: &Layout,
        energy: &CpuStorage,
        le: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (groups, size, rows) = lm.shape().dims3()?;
        let (members, energy) = (elements::<f32>(members, lm)?, elements::<f32>(energy, le)?);
        let (mut scales, mut zeros) = (vec![0f32; groups * rows], vec![0f32; groups * rows]);
        if rows > 0 {
            let grids = scales.par_chunks_mut(rows).zip(zeros.par_chunks_mut(rows));
            let groups = members.par_chunks(size * rows).zip(energy.par_chunks(size));
            grids.zip(groups).for_each(|((scales, zeros), (members, energy))| {
                for n in 0..rows {
                    let values = || members.iter().skip(n).step_by(rows).copied();
                    (scales[n], zeros[n]) = self.of(values, energy);
                }
            });
        }
        scales.extend(zeros);
        Ok((CpuStorage::F32(scales), Shape::from((2, groups, rows))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        members: &candle_core::CudaStorage,
        lm: &Layout,
        energy: &candle_core::CudaStorage,
        le: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use super::cuda::{launch, read, write};
        let (groups, size, rows) = lm.shape().dims3()?;
        let device = members.device.clone();
        let stream = device.cuda_stream();
        let shape = Shape::from((2, groups, rows));
        let grids = device.alloc_zeros::<f32>(shape.elem_count())?;
        let mut found = candle_core::CudaStorage::wrap_cuda_slice(grids, device.clone());
        {
            let (members, _members) = read::<f32>(members, lm, &stream)?;
            let (energy, _energy) = read::<f32>(energy, le, &stream)?;
            let (grids, _grids) = write(&mut found, &Layout::contiguous(&shape), &stream)?;
            launch(
                &device,
                GroupGrids { members, energy, grids, ..self.arguments([groups, size, rows]) },
            )?;
        }
        Ok((found, shape))
    }
}
