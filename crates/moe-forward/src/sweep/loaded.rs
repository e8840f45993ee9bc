//! What attention and norms of a layer need, on the device.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_model::{Layer, Model};

use crate::attention::LoadedAttention;
use crate::loader::Loader;

/// A layer's weights but for its feed-forward block.
pub(super) struct LoadedLayer {
    pub attention_norm: Tensor,
    pub attention: LoadedAttention,
    pub ffn_norm: Tensor,
}

impl LoadedLayer {
    pub(super) fn load(loader: Loader<'_>, model: &Model, layer: &Layer) -> Result<Self> {
        Ok(Self {
            attention_norm: loader.tensor(&layer.attention_norm)?,
            attention: LoadedAttention::load(loader, model, &layer.attention)?,
            ffn_norm: loader.tensor(&layer.ffn_norm)?,
        })
    }
}
