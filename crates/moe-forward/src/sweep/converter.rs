//! Who says in a sweep what layers become.

use std::ops::Range;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::routing::Routing;
use moe_model::{Attention, Ffn, Layer};

use super::loaded::Norm;
use crate::context::Context;
use crate::observer::{ExpertRun, LeftOut, Observer, Wants};
use crate::states::States;

/// Watches a sweep, and says what its layers become.
///
/// A sweep calls a converter for each layer, in ascending order:
///
/// 1. Where [`Converter::converts_attention`]: [`Converter::attention_input`] for each input of
///    its projections, then [`Converter::convert_attention`]. The layer goes on with what that
///    gives.
/// 2. For each block of tokens, where [`Converter::role`] is [`Role::Converts`] (the default), what
///    an [`Observer`] is shown of the original feed-forward block, up to `sampled_output`.
/// 3. [`Converter::convert`], with the inputs of all blocks.
/// 4. For each block of tokens that the original ran on, [`Converter::converted`].
pub trait Converter: Observer {
    /// What it does with feed-forward blocks.
    fn role(&self) -> Role {
        Role::Converts
    }

    /// Whether attention is converted too: then it runs twice, and is first watched by
    /// [`Converter::attention_input`].
    fn converts_attention(&self) -> bool {
        false
    }

    /// What projections of layer `index`'s attention read for `tokens`, `[tokens, width]`; `linear`
    /// is the first of [`moe_model::Attention::linears`] that reads it.
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

    /// The attention that takes the place of layer `index`'s; `None` keeps it.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn convert_attention(&mut self, index: usize) -> Result<Option<Attention>> {
        let _ = index;
        Ok(None)
    }

    /// Which states reach the next layer.
    fn forcing(&self) -> Forcing {
        Forcing::Student
    }

    /// What takes the place of layer `index`'s feed-forward block, whose `inputs` are all there;
    /// `None` keeps it.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>>;

    /// What the block of layer `index` gave for some tokens, and what takes its place gives;
    /// `[tokens, hidden]`. It is called where the block was observed.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let _ = (index, original, converted);
        Ok(())
    }
}

/// What a converter does with feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It watches them, and converts none: [`Converter::convert`] isn't called.
    Watches,
    /// It watches a block before it converts it.
    Converts,
    /// It converts a block that hasn't run.
    ConvertsUnseen,
}

/// Whose states go on from a converted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forcing {
    /// The states of the original block, which must have been observed.
    Teacher,
    /// The states of what takes its place.
    Student,
}

/// A converted feed-forward block.
pub struct Converted {
    /// The block.
    pub ffn: Ffn,
    /// What its routed experts give for all tokens, weighed and summed, `[tokens, hidden]`, where
    /// that was computed on the way; it needn't be run on them again.
    pub routed: Option<Tensor>,
}

impl From<Ffn> for Converted {
    fn from(ffn: Ffn) -> Self {
        Self { ffn, routed: None }
    }
}

/// What reaches a layer's feed-forward block, in blocks of tokens, already normalised.
pub struct Inputs<'s> {
    pub(super) layer: usize,
    pub(super) states: &'s States,
    pub(super) tokens: &'s [Range<usize>],
    pub(super) norm: &'s Norm,
    /// What the original block gave, where it was observed.
    pub(super) outputs: Option<&'s States>,
}

impl Inputs<'_> {
    /// The tokens of each block, in order.
    pub fn blocks(&self) -> &[Range<usize>] {
        self.tokens
    }

    /// Tokens of all blocks.
    pub fn tokens(&self) -> usize {
        self.tokens.last().map_or(0, |last| last.end)
    }

    /// Whether the hidden states of all tokens are in memory.
    pub fn in_memory(&self) -> bool {
        self.states.in_memory()
    }

    /// The inputs of block `block`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the device or the scratch file returns.
    pub fn get(&self, block: usize) -> Result<Tensor> {
        let states = self.states.get(block)?;
        self.norm.forward(&states).context(|| format!("a norm of layer {}", self.layer))
    }

    /// What the original block gave for them, `[tokens, hidden]`; none where it wasn't observed.
    ///
    /// # Errors
    /// As for [`Inputs::get`].
    pub fn output(&self, block: usize) -> Result<Option<Tensor>> {
        self.outputs.map(|outputs| outputs.get(block)).transpose()
    }
}

/// What a layer became.
pub struct LayerChange {
    /// The attention that took the place of the layer's own, if any did.
    pub attention: Option<Attention>,
    /// The feed-forward block that took the place of the layer's own, if any did.
    pub ffn: Option<Ffn>,
}

impl LayerChange {
    /// What `layer` became.
    pub fn applied_to(self, layer: Layer) -> Layer {
        Layer {
            attention: self.attention.unwrap_or(layer.attention),
            ffn: self.ffn.unwrap_or(layer.ffn),
            ..layer
        }
    }
}

/// A plain observer: a converter that converts nothing.
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
