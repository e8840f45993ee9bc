//! The loaded weights of a layer's attention and norms.

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::ops;
use moe_model::{Layer, Model};

use crate::attention::LoadedAttention;
use crate::loader::Loader;

/// The loaded weights of a layer, except for its feed-forward block.
pub(super) struct LoadedLayer {
    pub attention_norm: Norm,
    pub attention: LoadedAttention,
    pub ffn_norm: Norm,
}

/// An RMS norm.
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl LoadedLayer {
    pub(super) fn load(loader: Loader<'_>, model: &Model, layer: &Layer) -> Result<Self> {
        let eps = model.norm_eps;
        Ok(Self {
            attention_norm: Norm { weight: loader.tensor(&layer.attention_norm)?, eps },
            attention: LoadedAttention::load(loader, model, &layer.attention)?,
            ffn_norm: Norm { weight: loader.tensor(&layer.ffn_norm)?, eps },
        })
    }
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps as f32)
    }
}
