//! Layers for multi-token prediction (DeepSeek-V3, 2412.19437 §2.2): each predicts a token further
//! ahead.
//!
//! Their numbers follow that of the last decoder layer. They aren't part of the model's forward
//! pass here; they are read and written so that a pass can carry, convert or drop them.

use crate::layer::{Layer, Linear};
use crate::weight::Weight;

/// A layer for multi-token prediction: `head(norm(layer(eh_proj [enorm(embed of the next token);
/// hnorm(hidden state)])))`.
#[derive(Debug, Clone)]
pub struct MtpLayer {
    /// RMS norm of the next token's embedding, `[hidden]`.
    pub embed_norm: Weight,
    /// RMS norm of the hidden state that the layers before it leave, `[hidden]`.
    pub hidden_norm: Weight,
    /// The projection of both, side by side, to one state, `[hidden, 2 · hidden]`.
    pub projection: Linear,
    /// The decoder layer.
    pub layer: Layer,
    /// RMS norm before the head, `[hidden]`.
    pub final_norm: Weight,
    /// A copy of the token embedding, `[vocab, hidden]`, if the file has one.
    pub embed: Option<Weight>,
    /// A copy of the output head, `[vocab, hidden]`, if the file has one.
    pub head: Option<Weight>,
}

impl MtpLayer {
    /// The layer's weights, without those of its decoder layer.
    pub fn own_weights(&self) -> impl Iterator<Item = &Weight> {
        let projection = std::iter::once(&self.projection.weight).chain(&self.projection.bias);
        let norms = [&self.embed_norm, &self.hidden_norm, &self.final_norm];
        norms.into_iter().chain(projection).chain(&self.embed).chain(&self.head)
    }
}
