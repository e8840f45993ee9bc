//! Tables of rotary position embeddings.

use candle_core::{Result, Tensor};
use moe_math::Compute;
use moe_model::Rope;

/// cos and sin, `[positions, head_dim / 2]` each.
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub fn new(rope: &Rope, head_dim: usize, positions: usize, compute: &Compute) -> Result<Self> {
        let (inverse, factor) = rope.inverse_frequencies(head_dim);
        let table = |f: fn(f64) -> f64| {
            let angles = (0..positions).flat_map(|p| inverse.iter().map(move |w| p as f64 * w));
            let values: Vec<f32> = angles.map(|angle| (f(angle) * factor) as f32).collect();
            Tensor::from_vec(values, (positions, head_dim / 2), &compute.device)?.to_dtype(compute.dtype)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Rotates `x` of `[heads, tokens, head_dim]`, whose tokens have positions from 0.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }
}
