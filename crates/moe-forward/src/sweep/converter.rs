//! Who says in a sweep what layers become.

use std::ops::Range;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_model::{Attention, Ffn};

use super::normed;
use super::observer::Observer;
use crate::context::Context;
use crate::states::States;

/// Watches a sweep, and says what its layers become.
pub trait Converter: Observer {
    /// Whether it observes a block before it converts it; otherwise the block isn't run.
    fn observes(&self) -> bool {
        true
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
    /// `[tokens, hidden]`. Called where it was observed.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let _ = (index, original, converted);
        Ok(())
    }
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
    pub(super) norm: &'s Tensor,
    pub(super) eps: f64,
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
        normed(&self.states.get(block)?, self.norm, self.eps)
            .context(|| format!("a norm of layer {}", self.layer))
    }

    /// What the original block gave for them, `[tokens, hidden]`; none where it wasn't observed.
    ///
    /// # Errors
    /// As for [`Inputs::get`].
    pub fn output(&self, block: usize) -> Result<Option<Tensor>> {
        self.outputs.map(|outputs| outputs.get(block)).transpose()
    }
}
