//! Integer grids: which values the codes of a group stand for.

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use super::chunk::{Job, each_chunk};
use super::columns::Solver;
use super::{QuantizeError, Real, checked_length};

/// A grid for each group of columns of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Whether 0 lies in the middle of the codes.
    pub symmetric: bool,
    /// Columns of a group; none: the whole row.
    pub group: Option<usize>,
    /// What scales are stored as: F32, F16 or BF16. They are rounded to it before anything is computed with them.
    pub scale_dtype: DType,
}

impl Scheme {
    /// Columns of a group in rows of `width`.
    ///
    /// # Errors
    /// Where this is no scheme for such rows.
    pub fn group_of(&self, width: usize) -> Result<usize, QuantizeError> {
        if ![2, 3, 4, 8].contains(&self.bits) {
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
    /// `[N, K]`, q + 2^(b−1), so between 0 and 2^b − 1 whether symmetric or not.
    pub codes: Vec<u8>,
    /// `[N, K / group]`, rounded to the scheme's dtype.
    pub scales: Vec<f32>,
    /// `[N, K / group]`, the code that stands for 0; 2^(b−1) everywhere where symmetric.
    pub zeros: Vec<u8>,
}

impl Codes {
    pub(super) fn blank(shape: [usize; 2], group: usize) -> Self {
        let [rows, width] = shape;
        let groups = rows * (width / group);
        Self { shape, group, codes: vec![0; rows * width], scales: vec![0.0; groups], zeros: vec![0; groups] }
    }

    /// (code − zero) · scale, `[N, K]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.codes.len()];
        let groups = self.scales.par_iter().zip(&self.zeros);
        let codes = self.codes.par_chunks(self.group);
        values.par_chunks_mut(self.group).zip(codes).zip(groups).for_each(|((values, codes), (scale, zero))| {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = f32::from(i16::from(*code) - i16::from(*zero)) * scale;
            }
        });
        values
    }
}

/// The nearest code of every weight of `[N, K]`, with scales from the greatest and least weight of each group.
///
/// # Errors
/// For schemes that don't fit, and weights that are not finite.
pub fn round_to_nearest(weight: &[f32], shape: [usize; 2], scheme: &Scheme) -> Result<Codes, QuantizeError> {
    checked_length(weight.len(), shape[0] * shape[1])?;
    let group = scheme.group_of(shape[1])?;
    let mut codes = Codes::blank(shape, group);
    let grid = Grid::<f32>::new(scheme);
    each_chunk(&mut [Job { weight, order: None, codes: &mut codes }], &grid, |_, chunk| {
        Solver { grid: &grid, order: None, diagonal: None, feedback: None }.run(chunk);
    })?;
    Ok(codes)
}

/// How a scheme turns values into codes. Signed codes q are T here, between `low` and `high`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid<T> {
    pub low: T,
    pub high: T,
    symmetric: bool,
    scale_dtype: DType,
}

impl<T: Real> Grid<T> {
    pub fn new(scheme: &Scheme) -> Self {
        let half = f64::from(1u32 << (scheme.bits - 1));
        let (low, high) = (T::from_f64(-half), T::from_f64(half - 1.0));
        Self { low, high, symmetric: scheme.symmetric, scale_dtype: scheme.scale_dtype }
    }

    /// The scale and the signed code of 0 of a group with values from `least` to `most`: `calculate_qparams` of
    /// compressed-tensors 0.19, but that the zero comes from the scale as it is stored. A scale that rounds to 0 becomes the
    /// spacing of its dtype at 1.
    pub fn parameters(&self, least: T, most: T) -> (T, T) {
        // In f64, since a zero that falls on the other side of a tie moves every code of its group.
        let (least, most) = (least.to_f64().min(0.0), most.to_f64().max(0.0));
        let (low, high) = (self.low.to_f64(), self.high.to_f64());
        if self.symmetric {
            return (T::from_f32(self.stored(most.max(-least) / ((high - low) / 2.0))), T::ZERO);
        }
        let exact = (most - least) / (high - low);
        let scale = self.stored(exact);
        let zero = if exact == 0.0 { 0.0 } else { (low - least / f64::from(scale)).clamp(low, high).round_ties_even() };
        (T::from_f32(scale), T::from_f64(zero))
    }

    /// As it will be read back.
    fn stored(&self, scale: f64) -> f32 {
        // f32 lies far beyond what either half keeps, so that rounding twice makes no difference but at ties of its own.
        let scale = scale as f32;
        let (stored, spacing) = match self.scale_dtype {
            DType::F16 => (f16::from_f32(scale.min(f16::MAX.to_f32())).to_f32(), f16::EPSILON.to_f32()),
            DType::BF16 => (bf16::from_f32(scale.min(bf16::MAX.to_f32())).to_f32(), bf16::EPSILON.to_f32()),
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

    /// What a signed code is stored as.
    #[inline(always)]
    pub fn unsigned(&self, code: T) -> u8 {
        (code - self.low).byte()
    }
}
