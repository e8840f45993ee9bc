//! Conversion of little-endian f32, f16 and bf16 weights to f32 and back, and to tensors.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::Compute;
use crate::kernels::upload;

/// Below this many elements another thread isn't worthwhile.
const PARALLEL_ELEMENTS: usize = 1 << 16;

/// Decodes `bytes` of `dtype` (F32, F16 or BF16) into f32, exactly.
///
/// # Errors
/// For any other dtype.
pub fn decode_f32(bytes: &[u8], dtype: DType) -> Result<Vec<f32>> {
    let width = dtype.size_in_bytes();
    let mut values = vec![0f32; bytes.len() / width];
    let decode: fn(&[u8], &mut [f32]) = match dtype {
        DType::F32 => decode_part_of_f32,
        DType::BF16 => decode_part_of_bf16,
        DType::F16 => decode_part_of_f16,
        other => bail!("{other:?} is not a weight encoding"),
    };
    let inputs = bytes.par_chunks(PARALLEL_ELEMENTS * width);
    values
        .par_chunks_mut(PARALLEL_ELEMENTS)
        .zip(inputs)
        .for_each(|(out, bytes)| decode(bytes, out));
    Ok(values)
}

fn decode_part_of_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*b);
    }
}

/// bf16 is the upper half of an f32.
fn decode_part_of_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

fn decode_part_of_f16(bytes: &[u8], out: &mut [f32]) {
    let halves: Vec<f16> =
        bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
    halves.convert_to_f32_slice(out);
}

/// Encodes `values` as `dtype` (F32, F16 or BF16), rounding to nearest even.
///
/// # Errors
/// For any other dtype.
pub fn encode_f32(values: &[f32], dtype: DType) -> Result<Vec<u8>> {
    let width = dtype.size_in_bytes();
    let mut bytes = vec![0u8; values.len() * width];
    let encode: fn(&[f32], &mut [u8]) = match dtype {
        DType::F32 => |values, out| {
            for (b, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *b = value.to_le_bytes();
            }
        },
        DType::BF16 => |values, out| {
            for (b, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *b = bf16::from_f32(*value).to_le_bytes();
            }
        },
        DType::F16 => |values, out| {
            for (b, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *b = f16::from_f32(*value).to_le_bytes();
            }
        },
        other => bail!("{other:?} is not a weight encoding"),
    };
    let outputs = bytes.par_chunks_mut(PARALLEL_ELEMENTS * width);
    values.par_chunks(PARALLEL_ELEMENTS).zip(outputs).for_each(|(values, out)| encode(values, out));
    Ok(bytes)
}

/// Makes a tensor of `shape` from encoded bytes, in the dtype and on the device of `compute`.
///
/// # Errors
/// For a dtype other than F32, F16 and BF16, or if the device fails.
pub fn to_tensor(bytes: &[u8], dtype: DType, shape: &[usize], compute: &Compute) -> Result<Tensor> {
    if compute.device.is_cpu() && compute.dtype == DType::F32 {
        return Tensor::from_vec(decode_f32(bytes, dtype)?, shape, &Device::Cpu);
    }
    // The narrow bytes are copied to the device and widened there.
    Tensor::from_raw_buffer(bytes, dtype, shape, &compute.device)?.to_dtype(compute.dtype)
}

/// Values in their stored encoding. Readers fill them as little-endian bytes, without another copy.
pub enum Encoded {
    /// f32
    F32(Vec<f32>),
    /// f16
    F16(Vec<f16>),
    /// bf16
    BF16(Vec<bf16>),
}

impl Encoded {
    /// Creates `elements` zeros of `dtype`.
    ///
    /// # Errors
    /// For a dtype other than F32, F16 and BF16.
    pub fn zeros(dtype: DType, elements: usize) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Self::F32(vec![0.0; elements]),
            DType::F16 => Self::F16(vec![f16::ZERO; elements]),
            DType::BF16 => Self::BF16(vec![bf16::ZERO; elements]),
            other => bail!("{other:?} is not a weight encoding"),
        })
    }

    /// The bytes of all values, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F16(values) => bytemuck::cast_slice_mut(values),
            Self::BF16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    /// Makes a matrix for [`crate::product::product`]. On the CPU it stays as stored, since that
    /// kernel widens it; elsewhere it gets the dtype of `compute`.
    ///
    /// # Errors
    /// For a shape of another size, or if the device fails.
    pub fn into_matrix(self, shape: &[usize], compute: &Compute) -> Result<Tensor> {
        if compute.device.is_cuda() {
            return self.uploaded(shape, &compute.device)?.to_dtype(compute.dtype);
        }
        let matrix = match self {
            Self::F32(values) => Tensor::from_vec(values, shape, &compute.device),
            Self::F16(values) => Tensor::from_vec(values, shape, &compute.device),
            Self::BF16(values) => Tensor::from_vec(values, shape, &compute.device),
        }?;
        let as_stored = compute.device.is_cpu() && compute.dtype == DType::F32;
        if as_stored { Ok(matrix) } else { matrix.to_dtype(compute.dtype) }
    }

    fn uploaded(&self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (bytes, dtype) = match self {
            Self::F32(values) => (bytemuck::cast_slice(values), DType::F32),
            Self::F16(values) => (bytemuck::cast_slice(values), DType::F16),
            Self::BF16(values) => (bytemuck::cast_slice(values), DType::BF16),
        };
        upload(bytes, dtype, shape, device)
    }
}

/// The position of the first value of `dtype` that is not finite. It uses the calling thread only:
/// it runs while files are read and written, and waking other threads would delay that.
///
/// # Errors
/// For a dtype other than F32, F16, BF16 and F8E4M3.
pub fn first_non_finite(bytes: &[u8], dtype: DType) -> Result<Option<usize>> {
    // A float is not finite exactly if all of its exponent bits are set.
    let found = match dtype {
        DType::BF16 => {
            first(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80)
        }
        DType::F16 => {
            first(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00)
        }
        DType::F8E4M3 => first(bytes, |b| b & 0x7f == 0x7f),
        DType::F32 => {
            first(bytes.as_chunks::<4>().0, |b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000)
        }
        other => bail!("{other:?} is not a weight encoding"),
    };
    Ok(found)
}

/// The first position of a `bad` value. Blocks are folded without branches, so that the compiler
/// can vectorize them.
fn first<T>(values: &[T], bad: impl Fn(&T) -> bool) -> Option<usize> {
    const BLOCK: usize = 4096;
    let block = values
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |any, value| any | bad(value)))?;
    values[block * BLOCK..].iter().position(bad).map(|position| block * BLOCK + position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [DType::BF16, DType::F16] {
            let values = decode_f32(&all, dtype).unwrap();
            let back = encode_f32(&values, dtype).unwrap();
            for (i, value) in values.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
                assert_eq!(all[2 * i..2 * i + 2], back[2 * i..2 * i + 2], "{dtype:?} {value}");
            }
        }
    }

    #[test]
    fn decoding_agrees_with_candle() {
        let bytes: Vec<u8> = (0..4000u32).map(|i| (i * 37 % 251) as u8 & 0x3f).collect();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let shape = [bytes.len() / dtype.size_in_bytes()];
            let theirs = Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu).unwrap();
            let theirs: Vec<f32> = theirs.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            assert_eq!(decode_f32(&bytes, dtype).unwrap(), theirs);
        }
    }

    #[test]
    fn the_first_non_finite_value_is_found() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut values = vec![1.5f32; 200_000];
            assert_eq!(
                first_non_finite(&encode_f32(&values, dtype).unwrap(), dtype).unwrap(),
                None
            );
            values[150_001] = f32::NEG_INFINITY;
            values[140_003] = f32::NAN;
            assert_eq!(
                first_non_finite(&encode_f32(&values, dtype).unwrap(), dtype).unwrap(),
                Some(140_003)
            );
        }
    }
}
