//! Operations that candle has no kernel for.
//!
//! Each is a custom operation of candle: on the CPU it is the reference, written here; with CUDA it starts a kernel of `kernels/*.cu`, which
//! `build.rs` compiles. Tests run these very sources on the host, too, and compare them with the reference (`tests.rs`).
//! Index arithmetic that both sides need is in `Geometry` and in the arguments' structures, which C declares alike.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only CUDA and tests start kernels"))]

mod cholesky;
#[cfg(feature = "cuda")]
mod cuda;
mod gram;
mod mix;
mod round;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, Layout, Result, WithDType, bail};

pub(crate) use cholesky::reverse_cholesky;
pub(crate) use gram::add_gram;
pub(crate) use mix::{Table, add_outputs};
pub(crate) use round::{BLOCK, group_grids, round_block, settle};

/// Threads of a CUDA block where each takes a row.
const THREADS: usize = 128;

/// How a kernel is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    /// Blocks; only the first number may exceed 65,535.
    blocks: [usize; 2],
    /// Threads of a block.
    threads: usize,
}

impl Geometry {
    /// A block for each of `items` and each [`THREADS`] of `rows`.
    fn of_rows(items: usize, rows: usize) -> Self {
        Self { blocks: [items, rows.div_ceil(THREADS)], threads: THREADS }
    }
}

/// A kernel's arguments.
///
/// # Safety
/// The structure is declared alike in the kernel's source, and its pointers hold what the kernel reads and writes there.
unsafe trait Arguments: Copy {
    /// The file in `kernels/`, without its ending.
    const SOURCE: &'static str;

    /// The kernel's name there.
    fn kernel(&self) -> &'static str;

    fn geometry(&self) -> Geometry;
}

/// The elements of a contiguous tensor on the CPU.
fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel takes contiguous tensors") };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// The same to write to.
fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel takes contiguous tensors") };
    let CpuStorage::F32(values) = storage else { bail!("a kernel writes f32") };
    Ok(&mut values[start..end])
}

fn int(value: usize) -> i32 {
    i32::try_from(value).expect("tensors of kernels have fewer than 2^31 rows")
}
