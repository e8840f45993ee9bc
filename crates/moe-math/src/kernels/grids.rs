//! Computes the quantization grid (scale and zero point) of each row in a group of columns, on a
//! device.
//!
//! Neighboring threads take neighboring rows, as in `round.rs`. The kernel is also in
//! `kernels/round.cu`.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Arguments, Geometry, elements, int};
use crate::quantize::grid::{CLIPS, Grid, kept_range};

/// Returns scales and signed zeros, `[2, G, N]`, for the weights of groups, `[G, g, N]`, whose
/// columns have the energies `energy`, `[G, g]`. A grid covers the range of its group or, with
/// `clip_search`, the clipped range that minimizes Σ energy · (w − ŵ)².
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
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

// SAFETY: round.cu declares the same structure; `Grids` passes tensors of the shapes named there.
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
    /// Number of clipped ranges to try, the smallest of them half the full range; 0 for no clip
    /// search.
    pub clips: u32,
}

impl Grids {
    /// Computes scale and signed zero of a group with these `values`.
    fn of<V: Iterator<Item = f32>>(&self, values: impl Fn() -> V, energy: &[f32]) -> (f32, f32) {
        let (min, max) =
            values().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let mut best = self.grid.parameters(min, max);
        if self.clips == 0 {
            return best;
        }
        let mut min_error = self.error(values(), energy, best);
        for clip in 1..=self.clips {
            let kept = kept_range(clip) as f32;
            let tried = self.grid.parameters(min * kept, max * kept);
            let error = self.error(values(), energy, tried);
            if error < min_error {
                (best, min_error) = (tried, error);
            }
        }
        best
    }

    /// Σ energy · (w − ŵ)² of a group with this scale and zero.
    fn error(
        &self,
        values: impl Iterator<Item = f32>,
        energy: &[f32],
        (scale, zero): (f32, f32),
    ) -> f32 {
        let errors = values.zip(energy).map(|(value, energy)| {
            let lost = value - (self.grid.code(value, scale, zero) - zero) * scale;
            energy * lost * lost
        });
        errors.sum()
    }

    /// Computes scale and signed zero of each row of a group.
    fn of_group(&self, members: &[f32], energy: &[f32], [scales, zeros]: [&mut [f32]; 2]) {
        let rows = scales.len();
        for n in 0..rows {
            let values = || members.iter().skip(n).step_by(rows).copied();
            (scales[n], zeros[n]) = self.of(values, energy);
        }
    }

    /// Returns all arguments except the pointers.
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
        let mut scales = vec![0f32; groups * rows];
        let mut zeros = vec![0f32; groups * rows];
        if rows > 0 {
            let grids = scales.par_chunks_mut(rows).zip(zeros.par_chunks_mut(rows));
            let groups = members.par_chunks(size * rows).zip(energy.par_chunks(size));
            grids.zip(groups).for_each(|((scales, zeros), (members, energy))| {
                self.of_group(members, energy, [scales, zeros]);
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
