//! The trait of passes that change layers during a sweep.

use std::ops::Range;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::routing::Routing;
use moe_model::{Attention, Ffn, Layer};

use super::loaded::Norm;
use crate::context::Context;
use crate::observer::{ExpertRun, LeftOut, Observer, Wants};
use crate::states::States;

/// Observes a sweep, and replaces parts of its layers.
///
/// A sweep calls a converter for each layer, in ascending order:
///
/// 1. If [`Converter::converts_attention`]: [`Converter::attention_input`] for each input of
///    attention's projections, then [`Converter::convert_attention`]. The layer continues with the
///    attention that this returns.
/// 2. For each block of tokens, if [`Converter::role`] is [`Role::Converts`] (the default): the
///    events of an [`Observer`] for the original feed-forward block, up to `sampled_output`.
/// 3. [`Converter::convert`], with the inputs of all blocks.
/// 4. For each block of tokens that the original ran on: [`Converter::converted`].
pub trait Converter: Observer {
    /// Returns how the converter handles feed-forward blocks.
    fn role(&self) -> Role {
        Role::Converts
    }

    /// Returns whether attention is converted too. If so, it runs twice, and its inputs are shown
    /// first by [`Converter::attention_input`].
    fn converts_attention(&self) -> bool {
        false
    }

    /// Shows the input of projections of layer `index`'s attention for `tokens`, `[tokens, width]`.
    /// `linear` is the index of the first of [`moe_model::Attention::linears`] that reads it.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn attention_input(
        &mut self,
        index: usize,
        linear: usize,
        tokens: Range<usize>,
        x: &Tensor,
    ) -> Result<()> {
        let _ = (index, linear, tokens, x);
        Ok(())
    }

    /// Returns the attention that replaces that of layer `index`; None keeps it.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn convert_attention(&mut self, index: usize) -> Result<Option<Attention>> {
        let _ = index;
        Ok(None)
    }

    /// Returns which states reach the next layer.
    fn forcing(&self) -> Forcing {
        Forcing::Student
    }

    /// Returns the replacement of layer `index`'s feed-forward block, whose complete `inputs` are
    /// given; None keeps it.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>>;

    /// Shows the outputs of layer `index`'s original block and of its replacement for some tokens,
    /// `[tokens, hidden]`. Called only if the original was observed.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let _ = (index, original, converted);
        Ok(())
    }
}

/// How a converter handles feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It observes them and converts none: [`Converter::convert`] isn't called.
    Watches,
    /// It observes a block before it converts it.
    Converts,
    /// It converts a block that hasn't run.
    ConvertsUnseen,
}

/// Which states continue after a converted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forcing {
    /// Those of the original block, which must have been observed.
    Teacher,
    /// Those of its replacement.
    Student,
}

/// A converted feed-forward block.
pub struct Converted {
    /// The replacement.
    pub ffn: Ffn,
    /// The gated sum of its routed experts' outputs for all tokens, `[tokens, hidden]`, if it was
    /// computed during conversion; then they aren't run again.
    pub routed: Option<Tensor>,
}

impl From<Ffn> for Converted {
    fn from(ffn: Ffn) -> Self {
        Self { ffn, routed: None }
    }
}

/// The inputs of a layer's feed-forward block, in blocks of tokens, normalized already.
pub struct Inputs<'s> {
    pub(super) layer: usize,
    pub(super) states: &'s States,
    pub(super) tokens: &'s [Range<usize>],
    pub(super) norm: &'s Norm,
    /// The outputs of the original block, if it was observed.
    pub(super) outputs: Option<&'s States>,
}

impl Inputs<'_> {
    /// Returns the range of each block's tokens, in order.
    pub fn blocks(&self) -> &[Range<usize>] {
        self.tokens
    }

    /// Returns the number of tokens in all blocks.
    pub fn tokens(&self) -> usize {
        self.tokens.last().map_or(0, |last| last.end)
    }

    /// Returns whether the hidden states of all tokens are in memory.
    pub fn in_memory(&self) -> bool {
        self.states.in_memory()
    }

    /// Returns the inputs of block `block`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Errors of the device or of the scratch file.
    pub fn get(&self, block: usize) -> Result<Tensor> {
        let states = self.states.get(block)?;
        self.norm.forward(&states).context(|| format!("a norm of layer {}", self.layer))
    }

    /// Returns the outputs of the original block for them, `[tokens, hidden]`; None if it wasn't
    /// observed.
    ///
    /// # Errors
    /// As for [`Inputs::get`].
    pub fn output(&self, block: usize) -> Result<Option<Tensor>> {
        self.outputs.map(|outputs| outputs.get(block)).transpose()
    }
}

/// The changes to a layer.
pub struct LayerChange {
    /// The replacement of the layer's attention; None if it was kept.
    pub attention: Option<Attention>,
    /// The replacement of the layer's feed-forward block; None if it was kept.
    pub ffn: Option<Ffn>,
}

impl LayerChange {
    /// Applies the changes to `layer`.
    pub fn applied_to(self, layer: Layer) -> Layer {
        Layer {
            attention: self.attention.unwrap_or(layer.attention),
            ffn: self.ffn.unwrap_or(layer.ffn),
            ..layer
        }
    }
}

/// Makes a converter that converts nothing of an observer.
pub(super) struct Watching<'o>(pub &'o mut dyn Observer);

impl Converter for Watching<'_> {
    fn role(&self) -> Role {
        Role::Watches
    }

    fn convert(&mut self, _: usize, _: &Inputs<'_>) -> Result<Option<Converted>> {
        Ok(None)
    }
}

impl Observer for Watching<'_> {
    fn wants(&self) -> Wants {
        self.0.wants()
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        self.0.ffn_input(layer, x)
    }

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.0.routed(layer, logits, routing)
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.0.expert_ran(layer, run)
    }

    fn left_out(&mut self, layer: usize, found: &LeftOut<'_>) -> Result<()> {
        self.0.left_out(layer, found)
    }

    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        tokens: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        self.0.sampled_output(layer, expert, tokens, output)
    }

    fn layer_output(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        self.0.layer_output(layer, hidden)
    }

    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        self.0.layer_done(layer, layers)
    }
}
