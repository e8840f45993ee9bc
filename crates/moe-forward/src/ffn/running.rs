//! A layer whose feed-forward block runs: the parts that all tokens go through.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_model::{Expert, Moe};

use super::capacity::Capacity;
use super::parts::in_blocks;
use crate::context::Context;
use crate::loader::Loader;

/// A layer whose feed-forward block runs.
#[derive(Clone, Copy)]
pub(crate) struct RunningLayer<'a> {
    pub loader: Loader<'a>,
    pub index: usize,
    /// The capacity of experts; None if they take all tokens.
    pub capacity: Option<Capacity>,
}

impl RunningLayer<'_> {
    /// Runs the dense `network` on `x`, `[tokens, hidden]`.
    pub(super) fn dense(self, network: &Expert, x: &Tensor) -> Result<Tensor> {
        let expert = self.loader.expert(network)?;
        let work = Work::products(x.dims()[0], network.elements());
        self.loader
            .compute
            .stage("dense networks", work, || in_blocks(x, |x| expert.forward(x)))
            .context(|| format!("the feed-forward block of layer {}", self.index))
    }

    /// Adds the output of the shared expert of `moe` on `x` to `y`, that of the routed experts.
    pub fn with_shared(self, moe: &Moe, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(shared) = &moe.shared else { return Ok(y) };
        let expert = self.loader.expert(&shared.expert)?;
        let gate = shared.gate.as_ref().map(|gate| self.loader.matrix(gate)).transpose()?;
        let work = Work::products(x.dims()[0], shared.expert.elements());
        let sum = self.loader.compute.stage("shared experts", work, || {
            let out = in_blocks(x, |x| expert.forward(x))?;
            match &gate {
                Some(gate) => {
                    y + out.broadcast_mul(&candle_nn::ops::sigmoid(&product(x, gate)?)?)?
                }
                None => y + out,
            }
        });
        sum.context(|| format!("the shared expert of layer {}", self.index))
    }
}
