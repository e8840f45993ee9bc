//! Operations for which candle has no kernel.
//!
//! Each is a custom operation of candle: on the CPU it is the reference, written here; with CUDA it
//! starts a kernel of `kernels/*.cu`, which `build.rs` compiles. Tests also run these sources on
//! the host and compare them with the reference (`tests.rs`). Index arithmetic that both sides need
//! is in `Geometry` and in the argument structures, which C declares in the same way.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only CUDA and tests start kernels"))]

mod check;
mod cholesky;
#[cfg(feature = "cuda")]
mod cuda;
mod gram;
mod grids;
mod mix;
mod round;
#[cfg(test)]
mod tests;
mod upload;

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, WithDType, bail};
use half::bf16;

pub use check::check;

pub(crate) use cholesky::reverse_cholesky;
pub(crate) use gram::add_gram;
pub(crate) use grids::group_grids;
pub(crate) use mix::{CombineTable, add_outputs};
pub(crate) use round::{BLOCK, Rounded, round_block, settle};
pub(crate) use upload::upload;

/// Threads of a CUDA block in which each takes a row.
const THREADS: usize = 128;

/// The launch dimensions of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    /// Numbers of blocks; only the first may exceed 65,535.
    blocks: [usize; 2],
    /// Threads of a block.
    threads: usize,
}

impl Geometry {
    /// One block for each of `items` and each [`THREADS`] of `rows`.
    fn of_rows(items: usize, rows: usize) -> Self {
        Self { blocks: [items, rows.div_ceil(THREADS)], threads: THREADS }
    }
}

/// A kernel's arguments.
///
/// # Safety
/// The kernel's source must declare the same structure, and its pointers must be valid for what the
/// kernel reads and writes.
unsafe trait Arguments: Copy {
    /// Name of the file in `kernels/`, without extension.
    const SOURCE: &'static str;

    /// Name of the kernel in that file.
    fn kernel(&self) -> &'static str;

    fn geometry(&self) -> Geometry;
}

/// The range of a tensor's elements in its storage; the tensor must be contiguous.
fn span(layout: &Layout) -> Result<Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel takes contiguous tensors")
    };
    Ok(start..end)
}

/// The elements of a contiguous tensor on the CPU.
fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    Ok(&storage.as_slice::<T>()?[span(layout)?])
}

/// The values of a tensor in f32 or bf16, as f32.
fn widened<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    Ok(match storage {
        CpuStorage::BF16(_) => {
            elements::<bf16>(storage, layout)?.iter().map(|value| value.to_f32()).collect()
        }
        _ => elements::<f32>(storage, layout)?.into(),
    })
}

/// The f32 elements of a contiguous tensor on the CPU, for writing.
fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a kernel writes f32") };
    Ok(&mut values[span(layout)?])
}

fn int(value: usize) -> i32 {
    i32::try_from(value).expect("tensors of kernels have fewer than 2^31 rows")
}

/// Runs one of candle's kernels, in f32 and bf16, and one of ours on `device`, and checks the
/// results.
///
/// # Errors
/// If the device fails, or the values are wrong.
pub(crate) fn launch(device: &Device) -> Result<()> {
    let rows = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], device)?.to_dtype(DType::BF16)?;
    let sum = (Tensor::zeros((2, 2), DType::F32, device)? + 1.0)?;
    if device.is_metal() {
        // On Metal only candle's kernels are used.
        return rows
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .broadcast_add(&sum.to_device(&Device::Cpu)?)
            .map(drop);
    }
    // Both rows are added to the first token, each times one half.
    add_outputs(&sum, &rows, &CombineTable::new(2, &[0, 0], &[0.5, 0.5]))?;
    let found = sum.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    if found != [[3.0, 4.0], [1.0, 1.0]] {
        bail!("a kernel gave {found:?} instead of [[3, 4], [1, 1]]");
    }
    Ok(())
}
