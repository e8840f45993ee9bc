//! 8-bit floats with a scale for each block.

mod encode;

use candle_core::{Result, bail};
use rayon::prelude::*;

pub use encode::{Encoded, e4m3_code, encode};

/// The values of all codes of e4m3 (4 bits of exponent, 3 of mantissa, no infinities; Micikevicius
/// et al. 2209.05433).
static E4M3: [f32; 256] = e4m3_values();

const fn e4m3_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        let magnitude = if code & 0x7f == 0x7f {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            // (1 + m / 8) · 2^(e − 7)
            (8 + mantissa) as f32 / 1024.0 * (1 << exponent) as f32
        };
        values[code] = if code >= 128 { -magnitude } else { magnitude };
        code += 1;
    }
    values
}

/// The exact value of an e4m3 code; NaN for the two codes that stand for it.
pub fn e4m3(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// A matrix as it is stored: codes, and a scale for each block of codes.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Matrix<'a> {
    /// `[rows, columns]`, row by row.
    pub codes: &'a [u8],
    /// Rows and columns.
    pub shape: [usize; 2],
    /// One for each block, in row-major order of blocks. The last blocks of a row or column may be
    /// cut off.
    pub scales: &'a [f32],
    /// Rows and columns of a block.
    pub block: [usize; 2],
}

impl Fp8Matrix<'_> {
    /// Returns code × scale of its block, in f32, row by row.
    ///
    /// # Errors
    /// If the number of codes or scales doesn't match shape and block.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let ([rows, columns], [high, wide]) = (self.shape, self.block);
        let scales = columns.div_ceil(wide.max(1));
        if high == 0
            || wide == 0
            || self.codes.len() != rows * columns
            || self.scales.len() != rows.div_ceil(high) * scales
        {
            let (codes, scales) = (self.codes.len(), self.scales.len());
            bail!("{codes} codes and {scales} scales for {:?} in {:?}", self.shape, self.block);
        }
        let mut values = vec![0f32; rows * columns];
        let lines = values
            .par_chunks_mut(columns.max(1))
            .zip(self.codes.par_chunks(columns.max(1)))
            .enumerate();
        lines.for_each(|(row, (values, codes))| {
            dequantize_row(codes, &self.scales[row / high * scales..][..scales], wide, values);
        });
        Ok(values)
    }
}

/// Fills the `values` of a row; each `wide` columns share a scale.
fn dequantize_row(codes: &[u8], scales: &[f32], wide: usize, values: &mut [f32]) {
    let blocks = values.chunks_mut(wide).zip(codes.chunks(wide)).zip(scales);
    for ((values, codes), scale) in blocks {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = e4m3(*code) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_format() {
        for (code, value) in
            [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x07, 7.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0)]
        {
            assert_eq!((e4m3(code), e4m3(code | 0x80)), (value, -value));
        }
        assert_eq!(e4m3(0x7e), 448.0);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert!(e4m3(0x80).is_sign_negative());
    }

    #[test]
    fn every_block_has_its_scale_and_the_last_may_be_cut_off() {
        let one = 0x38;
        let matrix = Fp8Matrix {
            codes: &[one; 15],
            shape: [3, 5],
            scales: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            block: [2, 2],
        };
        let expected =
            [[1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 3.0], [4.0, 4.0, 5.0, 5.0, 6.0]]
                .concat();
        assert_eq!(matrix.dequantize().unwrap(), expected);
        assert!(Fp8Matrix { scales: &[1.0; 5], ..matrix }.dequantize().is_err());
    }
}
