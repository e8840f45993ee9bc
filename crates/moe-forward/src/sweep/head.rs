//! Computes logits from the last hidden states.

use candle_core::{DType, Tensor};
use moe_checkpoint::Result;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::{Compute, ops};
use moe_model::{Model, Weight};

use crate::context::Context;
use crate::finite;
use crate::loader::Loader;

/// Callers that need the logits of many tokens compute them in blocks that take this many bytes, of
/// f64 or f32 according to what they compute from them.
pub const LOGIT_BYTES: usize = 64 << 20;

/// The loaded weights of the final norm and the output head.
pub struct LmHead {
    norm: Tensor,
    weight: Tensor,
    eps: f32,
    compute: Compute,
    /// The weights that both were loaded from, for messages.
    sources: [Weight; 2],
}

impl LmHead {
    /// Loads the final norm and the output head.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn load(model: &Model, compute: &Compute) -> Result<Self> {
        Self::load_with(model, Loader::new(compute))
    }

    pub(crate) fn load_with(model: &Model, loader: Loader<'_>) -> Result<Self> {
        let (norm, weight) =
            (loader.tensor(&model.final_norm)?, loader.matrix(model.head_weight())?);
        let sources = [model.final_norm.clone(), model.head_weight().clone()];
        Ok(Self {
            norm,
            weight,
            eps: model.norm_eps as f32,
            compute: loader.compute.clone(),
            sources,
        })
    }

    /// Returns the logits `[tokens, vocab]` of final hidden states `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Numeric`] if they are not finite; errors of the device.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.elem_count() / self.norm.elem_count();
        let work = Work::products(rows, self.weight.elem_count());
        let logits = self.compute.stage("head", work, || self.forward(hidden));
        let logits = logits.context(|| "the logits".into())?;
        finite::check(&logits, "the logits", &self.sources)?;
        Ok(logits)
    }

    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let normed = ops::rms_norm(hidden, &self.norm, self.eps)?;
        product(&normed, &self.weight)?.to_dtype(DType::F32)
    }

    /// Returns the number of rows of the head: the size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }
}
