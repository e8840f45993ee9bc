//! Operations that candle has no kernel for.
//!
//! Each is a custom operation of candle: on the CPU it is the reference, written here; with CUDA it
//! starts a kernel of `kernels/*.cu`, which `build.rs` compiles. Tests run these very sources on
//! the host, too, and compare them with the reference (`tests.rs`). Index arithmetic that both
//! sides need is in `Geometry` and in the arguments' structures, which C declares alike.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only CUDA and tests start kernels"))]

mod cholesky;
#[cfg(feature = "cuda")]
mod cuda;
mod gram;
mod mix;
mod round;
#[cfg(test)]
mod tests;
mod upload;

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, WithDType, bail};
use half::bf16;

pub(crate) use cholesky::reverse_cholesky;
pub(crate) use gram::add_gram;
pub(crate) use mix::{Table, add_outputs};
pub(crate) use round::{BLOCK, Rounded, group_grids, round_block, settle};
pub(crate) use upload::upload;

use crate::quantize::Scheme;
use crate::quantize::grid::Grid;
use crate::sampling::{generator, normal};

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
/// The structure is declared alike in the kernel's source, and its pointers hold what the kernel
/// reads and writes there.
unsafe trait Arguments: Copy {
    /// The file in `kernels/`, without its ending.
    const SOURCE: &'static str;

    /// The kernel's name there.
    fn kernel(&self) -> &'static str;

    fn geometry(&self) -> Geometry;
}

/// Where in its storage a tensor lies, which must be contiguous.
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

/// The same to write to.
fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a kernel writes f32") };
    Ok(&mut values[span(layout)?])
}

fn int(value: usize) -> i32 {
    i32::try_from(value).expect("tensors of kernels have fewer than 2^31 rows")
}

/// Runs a kernel of candle's, in f32 and bf16, and one of ours on `device`, and looks at what comes
/// of them.
///
/// # Errors
/// What the device returns, and for other values than there must be.
pub(crate) fn launch(device: &Device) -> Result<()> {
    let rows = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], device)?.to_dtype(DType::BF16)?;
    let sum = (Tensor::zeros((2, 2), DType::F32, device)? + 1.0)?;
    if device.is_metal() {
        // candle's kernels are all that runs there.
        return rows
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .broadcast_add(&sum.to_device(&Device::Cpu)?)
            .map(drop);
    }
    // Both rows go to the first token, half of each.
    add_outputs(&sum, &rows, &Table::new(2, &[0, 0], &[0.5, 0.5]))?;
    let found = sum.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    match found == [[3.0, 4.0], [1.0, 1.0]] {
        true => Ok(()),
        false => bail!("a kernel gave {found:?} instead of [[3, 4], [1, 1]]"),
    }
}

/// The largest difference of each operation on `device` from its reference on the CPU, relative to
/// the largest value.
///
/// # Errors
/// What the device returns.
pub fn check(device: &Device) -> Result<Vec<(&'static str, f64)>> {
    let apart = |operation: &dyn Fn(&Device) -> Result<Tensor>| -> Result<f64> {
        let values =
            |device| operation(device)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
        let (found, expected) = (values(device)?, values(&Device::Cpu)?);
        let scale = expected.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let larger =
            |most: f32, apart: f32| if apart > most || apart.is_nan() { apart } else { most };
        Ok(f64::from(
            found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, larger),
        ))
    };
    let random = |stream: u64, shape: &[usize], device: &Device| {
        let values = normal(shape.iter().product(), 1.0, &mut generator(stream, 0));
        Tensor::from_vec(values, shape, device)
    };
    // Scales of 2 and zeros of 1, so that no value lies on the border of two codes.
    let rounded = |device: &Device| {
        let block = [3, BLOCK, 200];
        let grids = Tensor::cat(
            &[
                Tensor::full(2f32, (1, 3, 1, 200), device)?,
                Tensor::ones((1, 3, 1, 200), DType::F32, device)?,
            ],
            0,
        )?;
        let feedback = (random(2, &[3, BLOCK, BLOCK], device)? * 0.1)?;
        let found = round_block(
            &random(0, &block, device)?,
            &random(1, &block, device)?,
            &feedback,
            &grids,
            [-8.0, 7.0],
        )?;
        Tensor::cat(&[found.errors, found.codes, found.missed], 0)
    };
    let settled = |device: &Device| {
        settle(&random(3, &[3, 150, 200], device)?, &(random(4, &[3, 150, 150], device)? * 0.01)?)
    };
    let grids = |dtype: DType| {
        move |device: &Device| {
            let scheme = Scheme { bits: 4, symmetric: true, group: None, scale_dtype: dtype };
            group_grids(
                &random(5, &[6, 32, 200], device)?,
                &random(6, &[6, 32], device)?.sqr()?,
                Grid::new(&scheme),
                true,
            )
        }
    };
    let factors = |device: &Device| {
        let x = random(7, &[3, 300, 150], device)?;
        Ok(reverse_cholesky(&x.transpose(1, 2)?.contiguous()?.matmul(&x)?)?.0)
    };
    let gram = |dtype: DType| {
        move |device: &Device| {
            let sum = Tensor::zeros((150, 150), DType::F32, device)?;
            add_gram(&sum, &random(8, &[300, 150], device)?.to_dtype(dtype)?)?;
            Ok(sum)
        }
    };
    let mixed = |dtype: DType| {
        move |device: &Device| {
            let sum = random(9, &[40, 130], device)?;
            let tokens: Vec<u32> = (0..100u32).map(|row| row * 7 % 40).collect();
            let gates = normal(100, 1.0, &mut generator(10, 0));
            add_outputs(
                &sum,
                &random(11, &[100, 130], device)?.to_dtype(dtype)?,
                &Table::new(40, &tokens, &gates),
            )?;
            Ok(sum)
        }
    };
    // Three times as many bytes as go at once, so that buffers take turns.
    let uploaded = |device: &Device| {
        let values = normal(24 << 20, 1.0, &mut generator(12, 0));
        upload(bytemuck::cast_slice(&values), DType::F32, &[values.len()], device)
    };
    Ok(vec![
        ("upload", apart(&uploaded)?),
        ("round", apart(&rounded)?),
        ("settle", apart(&settled)?),
        ("grids in f32", apart(&grids(DType::F32))?),
        ("grids in f16", apart(&grids(DType::F16))?),
        ("grids in bf16", apart(&grids(DType::BF16))?),
        ("cholesky", apart(&factors)?),
        ("gram of f32", apart(&gram(DType::F32))?),
        ("gram of bf16", apart(&gram(DType::BF16))?),
        ("mix of f32", apart(&mixed(DType::F32))?),
        ("mix of bf16", apart(&mixed(DType::BF16))?),
    ])
}
