//! Tables of rotary position embeddings.

use candle_core::{D, Result, Tensor};
use moe_math::{Compute, ops};
use moe_model::Rope;

/// cos and sin, `[positions, dims / 2]` each.
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
    dims: usize,
    interleaved: bool,
}

impl Rotary {
    pub fn new(rope: &Rope, positions: usize, compute: &Compute) -> Result<Self> {
        let (inverse, factor) = rope.inverse_frequencies();
        let table = |f: fn(f64) -> f64| {
            let angles = (0..positions).flat_map(|p| inverse.iter().map(move |w| p as f64 * w));
            let values: Vec<f32> = angles.map(|angle| (f(angle) * factor) as f32).collect();
            Tensor::from_vec(values, (positions, inverse.len()), &compute.device)?
                .to_dtype(compute.dtype)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            dims: rope.dims,
            interleaved: rope.interleaved,
        })
    }

    /// Rotates the first dimensions of `x`, `[heads, tokens, width]`. Positions of tokens count
    /// from 0.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let rest = x.dim(D::Minus1)? - self.dims;
        let front = x.narrow(D::Minus1, 0, self.dims)?.unsqueeze(0)?.contiguous()?;
        let rotated = ops::rotated(&front, &self.cos, &self.sin, self.interleaved)?.squeeze(0)?;
        match rest {
            0 => Ok(rotated),
            _ => Tensor::cat(
                &[&rotated, &x.narrow(D::Minus1, self.dims, rest)?.contiguous()?],
                D::Minus1,
            ),
        }
    }
}
