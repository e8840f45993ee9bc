//! Encoding matrices as 8-bit floats.

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

/// The greatest e4m3 value.
const MAX_E4M3: f32 = 448.0;

/// The e4m3 code nearest to `value`, the even one of two equally near. Values beyond ±448 become
/// ±448; NaN stays NaN.
pub fn e4m3_code(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= MAX_E4M3 {
        return sign | 0x7e;
    }
    if magnitude < 1.0 / 64.0 {
        // Below 2⁻⁶ codes are 2⁻⁹ apart. If this rounds to 8, that is the code of the first normal
        // number.
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Drops 20 of 23 mantissa bits, rounding to nearest even. A carry goes into the exponent, whose
    // bias changes from 127 to 7.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

/// Codes `[rows, columns]` of a matrix, and a scale for each block.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Codes, row by row.
    pub codes: Vec<u8>,
    /// One for each block, in row-major order of blocks. The last blocks of a row or column may be
    /// cut off.
    pub scales: Vec<f32>,
}

/// Encodes `weight` of `shape` `[rows, columns]`. The scale of each `block` is max |w| / 448,
/// rounded to `scale_dtype` before codes are made; for a block of zeros it is 2⁻²³, as in
/// compressed-tensors. A block of `[1, columns]` gives each output channel a scale.
///
/// # Errors
/// For sizes that don't fit, weights that are not finite, and scales other than F32, F16 and BF16.
pub fn encode(
    weight: &[f32],
    shape: [usize; 2],
    block: [usize; 2],
    scale_dtype: DType,
) -> candle_core::Result<Encoded> {
    let ([rows, columns], [high, wide]) = (shape, block);
    if weight.len() != rows * columns || high == 0 || wide == 0 {
        candle_core::bail!("{} weights for {shape:?} in {block:?}", weight.len());
    }
    if !weight.par_iter().all(|w| w.is_finite()) {
        candle_core::bail!("a weight is not finite");
    }
    let blocks = RowOfBlocks { columns, wide, stored: stored_as(scale_dtype)? };
    let per_row = columns.div_ceil(wide);
    let mut scales = vec![0f32; rows.div_ceil(high) * per_row];
    let mut codes = vec![0u8; weight.len()];
    let size = (high * columns).max(1);
    let lines = weight.par_chunks(size).zip(codes.par_chunks_mut(size));
    lines.zip(scales.par_chunks_mut(per_row.max(1))).for_each(|((weight, codes), scales)| {
        blocks.find_scales(weight, scales);
        blocks.write_codes(weight, scales, codes);
    });
    Ok(Encoded { codes, scales })
}

/// The rounding of scales that are stored in `dtype`.
fn stored_as(dtype: DType) -> candle_core::Result<fn(f32) -> f32> {
    Ok(match dtype {
        DType::F32 => |scale| scale,
        DType::F16 => |scale| f16::from_f32(scale).to_f32(),
        DType::BF16 => |scale| bf16::from_f32(scale).to_f32(),
        other => candle_core::bail!("scales can't be stored as {other:?}"),
    })
}

/// A row of neighboring blocks.
struct RowOfBlocks {
    /// Columns of the matrix.
    columns: usize,
    /// Columns of a block.
    wide: usize,
    /// Rounds a scale to its stored dtype.
    stored: fn(f32) -> f32,
}

impl RowOfBlocks {
    /// Sets `scales`, which are 0, to those of the blocks of `weight`.
    fn find_scales(&self, weight: &[f32], scales: &mut [f32]) {
        for row in weight.chunks_exact(self.columns) {
            for (scale, part) in scales.iter_mut().zip(row.chunks(self.wide)) {
                *scale = part.iter().fold(*scale, |most, w| most.max(w.abs()));
            }
        }
        for scale in scales {
            let found = (self.stored)(*scale / MAX_E4M3);
            *scale = if found > 0.0 { found } else { f32::EPSILON };
        }
    }

    fn write_codes(&self, weight: &[f32], scales: &[f32], codes: &mut [u8]) {
        let codes = codes.chunks_exact_mut(self.columns);
        for (row, codes) in weight.chunks_exact(self.columns).zip(codes) {
            let parts = row.chunks(self.wide).zip(codes.chunks_mut(self.wide));
            for ((part, codes), scale) in parts.zip(scales) {
                for (code, w) in codes.iter_mut().zip(part) {
                    *code = e4m3_code(w / scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fp8::e4m3;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=255u8 {
            let value = e4m3(code);
            if !value.is_nan() {
                assert_eq!(e4m3_code(value), code, "{value}");
            }
        }
        assert!(e4m3(e4m3_code(f32::NAN)).is_nan());
    }

    /// Tests values between neighbors: below and above the middle, and at it, where the even code
    /// is taken.
    #[test]
    fn values_between_go_to_the_nearest_or_even_code() {
        for code in 0..0x7e_u8 {
            let middle = (e4m3(code) + e4m3(code + 1)) / 2.0;
            assert_eq!(e4m3_code(middle.next_down()), code);
            assert_eq!(e4m3_code(middle.next_up()), code + 1);
            assert_eq!(e4m3_code(middle), code + (code & 1));
            assert_eq!(e4m3_code(-middle), 0x80 | (code + (code & 1)));
        }
        for beyond in [448.0, 460.0, 1e9, f32::INFINITY] {
            assert_eq!((e4m3_code(beyond), e4m3_code(-beyond)), (0x7e, 0xfe));
        }
    }

    #[test]
    fn blocks_and_channels_get_their_scales() {
        let weight: Vec<f32> = (0..15).map(|i| (i as f32 - 7.0) * 0.3).collect();
        for (block, dtype) in
            [([2, 2], DType::F32), ([1, 5], DType::BF16), ([128, 128], DType::F16)]
        {
            let encoded = encode(&weight, [3, 5], block, dtype).unwrap();
            let blocks = crate::fp8::Fp8Matrix {
                codes: &encoded.codes,
                shape: [3, 5],
                scales: &encoded.scales,
                block,
            };
            let found = blocks.dequantize().unwrap();
            for (at, (w, found)) in weight.iter().zip(found).enumerate() {
                let scale = encoded.scales
                    [at / 5 / block[0] * 5usize.div_ceil(block[1]) + at % 5 / block[1]];
                // Half the spacing with 3 bits of mantissa, or of the smallest numbers.
                assert!((w - found).abs() <= (w.abs() / 16.0).max(scale / 1024.0), "{w} {found}");
            }
            for (row, scale) in encoded.scales.iter().enumerate().filter(|_| block == [1, 5]) {
                let greatest =
                    weight[row * 5..][..5].iter().fold(0f32, |most, w| most.max(w.abs()));
                assert_eq!(*scale, bf16::from_f32(greatest / 448.0).to_f32());
            }
        }
        assert_eq!(encode(&[0.0; 4], [2, 2], [2, 2], DType::F32).unwrap().scales, [f32::EPSILON]);
    }

    #[test]
    fn matrices_that_can_not_be_encoded_are_refused() {
        assert!(encode(&[0.0; 3], [2, 2], [2, 2], DType::F32).is_err());
        assert!(encode(&[f32::NAN; 4], [2, 2], [2, 2], DType::F32).is_err());
        assert!(encode(&[0.0; 4], [2, 2], [2, 2], DType::U8).is_err());
        assert!(encode(&[0.0; 4], [2, 2], [0, 2], DType::F32).is_err());
    }
}
