//! Integer grids: the values that the codes of a group stand for.

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use super::chunk::{MatrixJob, each_chunk};
use super::columns::ColumnSolver;
use super::{QuantizeError, Real, WIDTHS, checked_length};

/// A grid for each group of columns of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridScheme {
    /// Bit width of codes: one of [`WIDTHS`].
    pub bits: u32,
    /// Whether the middle code stands for 0.
    pub symmetric: bool,
    /// Columns of a group; None for the whole row.
    pub group: Option<usize>,
    /// Dtype of stored scales: F32, F16 or BF16. Scales are rounded to it before they are used.
    pub scale_dtype: DType,
}

impl GridScheme {
    /// Columns of a group in rows of `width`.
    ///
    /// # Errors
    /// If the scheme doesn't fit such rows.
    pub fn group_of(&self, width: usize) -> Result<usize, QuantizeError> {
        if !WIDTHS.contains(&self.bits) {
            return Err(QuantizeError::Bits(self.bits));
        }
        if ![DType::F32, DType::F16, DType::BF16].contains(&self.scale_dtype) {
            return Err(QuantizeError::ScaleDtype(self.scale_dtype));
        }
        let group = self.group.unwrap_or(width);
        if group == 0 || width == 0 || !width.is_multiple_of(group) {
            return Err(QuantizeError::Group { group, width });
        }
        Ok(group)
    }
}

/// A quantized matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// N and K.
    pub shape: [usize; 2],
    /// Columns of a group.
    pub group: usize,
    /// `[N, K]`, q + 2^(b−1): between 0 and 2^b − 1 whether symmetric or not.
    pub codes: Vec<u8>,
    /// `[N, K / group]`, rounded to the scheme's dtype.
    pub scales: Vec<f32>,
    /// `[N, K / group]`, the code that stands for 0; always 2^(b−1) if symmetric.
    pub zeros: Vec<u8>,
}

impl Codes {
    pub(super) fn blank(shape: [usize; 2], group: usize) -> Self {
        let [rows, width] = shape;
        let groups = rows * (width / group);
        Self {
            shape,
            group,
            codes: vec![0; rows * width],
            scales: vec![0.0; groups],
            zeros: vec![0; groups],
        }
    }

    /// (code − zero) · scale, `[N, K]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.codes.len()];
        let groups = self.scales.par_iter().zip(&self.zeros);
        let codes = self.codes.par_chunks(self.group);
        values.par_chunks_mut(self.group).zip(codes).zip(groups).for_each(
            |((values, codes), (scale, zero))| {
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = f32::from(i16::from(*code) - i16::from(*zero)) * scale;
                }
            },
        );
        values
    }
}

/// The nearest code of every weight of `[N, K]`, with scales from the largest and smallest weight
/// of each group.
///
/// # Errors
/// For schemes that don't fit, and weights that are not finite.
pub fn round_to_nearest(
    weight: &[f32],
    shape: [usize; 2],
    scheme: &GridScheme,
) -> Result<Codes, QuantizeError> {
    checked_length(weight.len(), shape[0] * shape[1])?;
    let group = scheme.group_of(shape[1])?;
    let mut codes = Codes::blank(shape, group);
    let grid = Grid::<f32>::new(scheme);
    each_chunk(&mut [MatrixJob { weight, order: None, codes: &mut codes }], &grid, |_, chunk| {
        ColumnSolver { grid: &grid, order: None, diagonal: None, feedback: None }.run(chunk);
    })?;
    Ok(codes)
}

/// Number of steps in which clipping shrinks ranges to half.
pub(crate) const CLIPS: u32 = 10;

/// The share of a range that remains after `step` steps of clipping.
pub(crate) fn kept_range(step: u32) -> f64 {
    1.0 - 0.5 * f64::from(step) / f64::from(CLIPS)
}

/// Converts values to codes by a scheme. Here signed codes q have type T, between `low` and `high`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid<T> {
    pub low: T,
    pub high: T,
    pub symmetric: bool,
    pub scale_dtype: DType,
}

impl<T: Real> Grid<T> {
    pub fn new(scheme: &GridScheme) -> Self {
        let half = f64::from(1u32 << (scheme.bits - 1));
        let (low, high) = (T::from_f64(-half), T::from_f64(half - 1.0));
        Self { low, high, symmetric: scheme.symmetric, scale_dtype: scheme.scale_dtype }
    }

    /// The scale of a group with values from `min` to `max`, and its signed code of 0. It is
    /// `calculate_qparams` of compressed-tensors 0.19, except that the zero is computed from the
    /// stored scale. A scale that rounds to 0 becomes the spacing of its dtype at 1.
    pub fn parameters(&self, min: T, max: T) -> (T, T) {
        // Computed in f64, since a zero on the other side of a tie moves every code of its group.
        let (min, max) = (min.to_f64().min(0.0), max.to_f64().max(0.0));
        let (low, high) = (self.low.to_f64(), self.high.to_f64());
        if self.symmetric {
            return (T::from_f32(self.stored(max.max(-min) / ((high - low) / 2.0))), T::ZERO);
        }
        let exact = (max - min) / (high - low);
        let scale = self.stored(exact);
        let zero = if exact == 0.0 {
            0.0
        } else {
            (low - min / f64::from(scale)).clamp(low, high).round_ties_even()
        };
        (T::from_f32(scale), T::from_f64(zero))
    }

    /// The scale as it will be read back.
    fn stored(&self, scale: f64) -> f32 {
        // f32 is far more precise than either half format, so rounding twice differs only at ties.
        let scale = scale as f32;
        let (stored, spacing) = match self.scale_dtype {
            DType::F16 => {
                (f16::from_f32(scale.min(f16::MAX.to_f32())).to_f32(), f16::EPSILON.to_f32())
            }
            DType::BF16 => {
                (bf16::from_f32(scale.min(bf16::MAX.to_f32())).to_f32(), bf16::EPSILON.to_f32())
            }
            _ => (scale.min(f32::MAX), f32::EPSILON),
        };
        if stored == 0.0 { spacing } else { stored }
    }

    #[inline(always)]
    fn clamp(&self, q: T) -> T {
        let q = if q > self.low { q } else { self.low };
        if q < self.high { q } else { self.high }
    }

    /// The signed code nearest to `value`, halves to the even one.
    #[inline(always)]
    pub fn code(&self, value: T, scale: T, zero: T) -> T {
        self.clamp(value / scale + zero).round_even()
    }

    /// The stored form of a signed code.
    #[inline(always)]
    pub fn unsigned(&self, code: T) -> u8 {
        (code - self.low).byte()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    fn scheme(bits: u32, symmetric: bool) -> GridScheme {
        GridScheme { bits, symmetric, group: Some(4), scale_dtype: DType::F32 }
    }

    #[test]
    fn symmetric_grids_by_hand() {
        // The scale is 7.5 / 7.5. 0.5, 1.5 and 2.5 go to even codes, and 7.5 is cut off at 7.
        let weight = [7.5, 0.5, 1.5, 2.5, -7.5, -0.5, -1.5, -6.5];
        let codes = round_to_nearest(&weight, [1, 8], &scheme(4, true)).unwrap();
        assert_eq!(
            (codes.scales.as_slice(), codes.zeros.as_slice()),
            ([1.0, 1.0].as_slice(), [8, 8].as_slice())
        );
        assert_eq!(codes.codes, [15, 8, 10, 10, 0, 8, 6, 2]);
        assert_eq!(codes.dequantize(), [7.0, 0.0, 2.0, 2.0, -8.0, 0.0, -2.0, -6.0]);
    }

    #[test]
    fn asymmetric_grids_by_hand() {
        // The first group goes from −1 to 2 in steps of 1, the second from 0, which belongs to
        // every group, to 3.
        let weight = [-1.0, 2.0, 0.4, 0.6, 3.0, 2.0, 2.5, 1.0];
        let codes = round_to_nearest(&weight, [2, 4], &scheme(2, false)).unwrap();
        assert_eq!(
            (codes.scales.as_slice(), codes.zeros.as_slice()),
            ([1.0, 1.0].as_slice(), [1, 0].as_slice())
        );
        assert_eq!(codes.codes, [0, 3, 1, 2, 3, 2, 2, 1]);
        assert_eq!(codes.dequantize(), [-1.0, 2.0, 0.0, 1.0, 3.0, 2.0, 2.0, 1.0]);
    }

    #[test]
    fn groups_of_zeros_stay_zero() {
        for (dtype, spacing) in
            [(DType::F32, f32::EPSILON), (DType::F16, 0.000_976_562_5), (DType::BF16, 0.007_812_5)]
        {
            for symmetric in [true, false] {
                let scheme = GridScheme { scale_dtype: dtype, ..scheme(4, symmetric) };
                let codes = round_to_nearest(&[0.0; 8], [2, 4], &scheme).unwrap();
                assert_eq!((codes.codes, codes.zeros), (vec![8; 8], vec![8; 2]));
                assert_eq!(codes.scales, [spacing; 2]);
            }
        }
    }

    #[test]
    fn scales_are_values_of_their_dtype() {
        let weight = normal(64, 1.0, &mut generator(1, 0));
        for (dtype, held) in [
            (DType::BF16, (|x| bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
            (DType::F16, |x| f16::from_f32(x).to_f32()),
        ] {
            let codes = round_to_nearest(
                &weight,
                [8, 8],
                &GridScheme { scale_dtype: dtype, ..scheme(4, true) },
            )
            .unwrap();
            for (group, (scale, weight)) in codes.scales.iter().zip(weight.chunks(4)).enumerate() {
                let greatest = weight.iter().fold(0f32, |most, w| most.max(w.abs()));
                assert_eq!(*scale, held(greatest / 7.5));
                for (code, w) in codes.codes[group * 4..].iter().zip(weight) {
                    assert_eq!(
                        f32::from(*code) - 8.0,
                        (w / scale).round_ties_even().clamp(-8.0, 7.0)
                    );
                }
            }
        }
        let huge = round_to_nearest(
            &[3e38; 4],
            [1, 4],
            &GridScheme { scale_dtype: DType::F16, ..scheme(4, true) },
        )
        .unwrap();
        assert_eq!(huge.scales, [65504.0]);
    }

    /// Every weight is off by at most half a step, for shapes around the edges of strips and tiles.
    #[test]
    fn errors_are_within_half_a_step() {
        for (rows, width) in [(1, 4), (3, 20), (64, 16), (65, 36), (130, 8)] {
            let weight = normal(rows * width, 1.0, &mut generator(2, 0));
            for bits in WIDTHS {
                let codes = round_to_nearest(&weight, [rows, width], &scheme(bits, false)).unwrap();
                assert!(codes.codes.iter().all(|code| u32::from(*code) < 1 << bits));
                let scales = codes.scales.iter().flat_map(|scale| [scale; 4]);
                for ((w, found), scale) in weight.iter().zip(codes.dequantize()).zip(scales) {
                    // The zero is rounded too, so the ends of the range may be off by up to a step.
                    assert!((w - found).abs() <= 1.001 * scale, "{bits} bits: {w} {found} {scale}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let round = |weight: &[f32], scheme| round_to_nearest(weight, [1, 8], &scheme);
        let good = scheme(4, true);
        assert_eq!(round(&[0.0; 7], good), Err(QuantizeError::Length { found: 7, expected: 8 }));
        assert_eq!(round(&[0.0; 8], GridScheme { bits: 7, ..good }), Err(QuantizeError::Bits(7)));
        assert_eq!(
            round(&[0.0; 8], GridScheme { group: Some(3), ..good }),
            Err(QuantizeError::Group { group: 3, width: 8 })
        );
        assert_eq!(
            round(&[0.0; 8], GridScheme { scale_dtype: DType::F64, ..good }),
            Err(QuantizeError::ScaleDtype(DType::F64))
        );
        for wrong in [f32::NAN, f32::INFINITY] {
            assert_eq!(
                round(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, wrong, 0.0], good),
                Err(QuantizeError::NotFinite)
            );
        }
    }
}
