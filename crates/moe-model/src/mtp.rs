//! Layers for multi-token prediction (DeepSeek-V3, 2412.19437 §2.2): each predicts a token further
//! ahead.
//!
//! They lie behind the last layer, under the numbers that follow, and are no part of the model's
//! own forward pass: they are read and written, so that a pass can carry, convert or drop them.

use crate::layer::{Layer, Linear};
use crate::read::{Reader, Shape, names};
use crate::weight::Weight;
use crate::{Result, declare::Namer};

/// A layer for multi-token prediction: `head(norm(layer(eh_proj [enorm(embed of the next token);
/// hnorm(hidden state)])))`.
#[derive(Debug, Clone)]
pub struct MtpLayer {
    /// RMS norm of the next token's embedding, `[hidden]`.
    pub embed_norm: Weight,
    /// RMS norm of the hidden state that the layers before it leave, `[hidden]`.
    pub hidden_norm: Weight,
    /// Both to one, `[hidden, 2 · hidden]`.
    pub projection: Linear,
    /// The decoder layer.
    pub layer: Layer,
    /// RMS norm before the head, `[hidden]`.
    pub final_norm: Weight,
    /// A copy of the token embedding, where the file has one, `[vocab, hidden]`.
    pub embed: Option<Weight>,
    /// A copy of the output head, where the file has one, `[vocab, hidden]`.
    pub head: Option<Weight>,
}

mod own {
    pub const EMBED_NORM: &str = "enorm.weight";
    pub const HIDDEN_NORM: &str = "hnorm.weight";
    pub const PROJECTION: &str = "eh_proj.weight";
    pub const FINAL_NORM: &str = "shared_head.norm.weight";
    pub const EMBED: &str = "embed_tokens.weight";
    pub const HEAD: &str = "shared_head.head.weight";
}

impl MtpLayer {
    /// Its weights beside those of its decoder layer.
    pub fn own_weights(&self) -> impl Iterator<Item = &Weight> {
        let projection = std::iter::once(&self.projection.weight).chain(&self.projection.bias);
        let norms = [&self.embed_norm, &self.hidden_norm, &self.final_norm];
        norms.into_iter().chain(projection).chain(&self.embed).chain(&self.head)
    }
}

impl Reader<'_> {
    /// The layers for multi-token prediction behind `layers` others. Loaders' configs count some
    /// where there are none.
    pub fn mtp(&mut self, layers: usize, shape: &Shape) -> Result<Vec<MtpLayer>> {
        let Some(rule) = &self.config.family.mtp else { return Ok(Vec::new()) };
        let count = self.config.optional_usize(&rule.count)?.unwrap_or(0);
        let exists = |index: usize| {
            let prefix = format!("{}{index}.", names::LAYERS);
            self.tensors
                .range(prefix.clone()..)
                .next()
                .is_some_and(|(name, _)| name.starts_with(&prefix))
        };
        // Every one of them has tensors.
        if count > self.tensors.len() || !(layers..layers + count).any(exists) {
            return Ok(Vec::new());
        }
        (layers..layers + count).map(|index| self.mtp_layer(index, shape)).collect()
    }

    fn mtp_layer(&mut self, index: usize, shape: &Shape) -> Result<MtpLayer> {
        let at = |name: &str| format!("{}{index}.{name}", names::LAYERS);
        let (hidden, table) = (shape.hidden, [shape.vocab, shape.hidden]);
        Ok(MtpLayer {
            embed_norm: self.take(at(own::EMBED_NORM), &[hidden])?,
            hidden_norm: self.take(at(own::HIDDEN_NORM), &[hidden])?,
            projection: self.linear(&at(own::PROJECTION), false, [hidden, 2 * hidden])?,
            layer: self.layer(index, shape, None)?,
            final_norm: self.take(at(own::FINAL_NORM), &[hidden])?,
            embed: self.take_if_there(&at(own::EMBED), &table)?,
            head: self.take_if_there(&at(own::HEAD), &table)?,
        })
    }

    fn take_if_there(&mut self, name: &str, shape: &[usize]) -> Result<Option<Weight>> {
        self.tensors.contains_key(name).then(|| self.take(name, shape)).transpose()
    }
}

impl Namer<'_> {
    pub fn mtp_layer(&mut self, index: usize, mtp: &MtpLayer) -> Result<()> {
        let at = |name: &str| format!("{}{index}.{name}", names::LAYERS);
        self.push(at(own::EMBED_NORM), &mtp.embed_norm);
        self.push(at(own::HIDDEN_NORM), &mtp.hidden_norm);
        self.linear(at(own::PROJECTION), &mtp.projection);
        self.layer(index, &mtp.layer)?;
        self.push(at(own::FINAL_NORM), &mtp.final_norm);
        for (name, weight) in [(own::EMBED, &mtp.embed), (own::HEAD, &mtp.head)] {
            if let Some(weight) = weight {
                self.push(at(name), weight);
            }
        }
        Ok(())
    }
}
