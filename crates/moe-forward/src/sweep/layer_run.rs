//! Runs one layer of a sweep on all tokens, and converts it if its converter does.

use std::ops::Range;
use std::path::Path;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::meter::Work;
use moe_model::{Attention, Ffn, Layer, Model};

use super::converter::{Converted, Converter, Forcing, Inputs, LayerChange, Role};
use super::loaded::LoadedLayer;
use super::weights::{attention_weights, network_weights, weights_of};
use crate::attention::LoadedAttention;
use crate::context::Context;
use crate::ffn::{self, RunningLayer};
use crate::finite;
use crate::observer::{STATISTICS, Silent};
use crate::rotary::Rotary;
use crate::states::States;
use crate::work::attention_flops;

/// Approximate number of tokens, in whole sequences, that attention runs on together.
const ATTENTION_TOKENS: usize = 4096;

/// A function that is called with each input of projections, the range of its tokens, and the index
/// of the first of [`moe_model::Attention::linears`] that reads it.
type SeenFor<'a> = &'a mut dyn FnMut(usize, Range<usize>, &Tensor) -> Result<()>;

/// The state of a layer's run.
pub(super) struct LayerRun<'s> {
    pub model: &'s Model,
    pub compute: &'s Compute,
    pub rotary: &'s Rotary,
    /// The range of each sequence's tokens.
    pub spans: &'s [Range<usize>],
    /// The range of each block's tokens.
    pub blocks: &'s [Range<usize>],
    pub scratch: Option<&'s Path>,
    pub states: &'s mut States,
    pub running: RunningLayer<'s>,
    pub layer: &'s Layer,
    pub loaded: LoadedLayer,
}

impl LayerRun<'_> {
    /// Runs the layer, or what `converter` makes of it, on all tokens.
    pub fn run(mut self, converter: &mut dyn Converter) -> Result<LayerChange> {
        let attention =
            if converter.converts_attention() { self.convert_attention(converter)? } else { None };
        let ffn = match converter.role() {
            Role::Watches => {
                self.watch(converter)?;
                None
            }
            Role::Converts => self.convert_seen(converter)?,
            Role::ConvertsUnseen => self.convert_unseen(converter)?,
        };
        Ok(LayerChange { attention, ffn })
    }

    /// Shows `converter` the inputs of attention's projections, and continues with its attention.
    fn convert_attention(&mut self, converter: &mut dyn Converter) -> Result<Option<Attention>> {
        let index = self.running.index;
        for block in 0..self.blocks.len() {
            self.attention(block, &mut |linear, tokens, x| {
                finite::check(x, &self.attention_name(), attention_weights(self.layer))?;
                converter.attention_input(index, linear, tokens, x)
            })?;
        }
        let converted = converter.convert_attention(index)?;
        if let Some(attention) = &converted {
            self.loaded.attention =
                LoadedAttention::load(self.running.loader, self.model, attention)?;
        }
        Ok(converted)
    }

    /// Runs the layer unchanged, block by block.
    fn watch(&mut self, converter: &mut dyn Converter) -> Result<()> {
        for block in 0..self.blocks.len() {
            let attended = self.attention(block, &mut |_, _, _| Ok(()))?;
            let out = self.original(block, &attended, converter)?;
            let hidden = self.leave(block, &attended, &out)?;
            self.compute.stage(STATISTICS, Work::UNCOUNTED, || {
                converter.layer_output(self.running.index, &hidden)
            })?;
        }
        Ok(())
    }

    /// Runs the original on all blocks before it is converted.
    fn convert_seen(&mut self, converter: &mut dyn Converter) -> Result<Option<Ffn>> {
        let originals = self.originals(converter)?;
        let converted = self.convert(Some(&originals), converter)?;
        for block in 0..self.blocks.len() {
            let attended = self.states.get(block)?;
            let original = originals.get(block)?;
            let out = match &converted {
                None => original,
                Some(converted) => {
                    let out = self.converted(block, &attended, Some(converted))?;
                    self.show_converted(&original, &out, converter)?;
                    if converter.forcing() == Forcing::Teacher { original } else { out }
                }
            };
            self.leave(block, &attended, &out)?;
        }
        Ok(converted.map(|converted| converted.ffn))
    }

    /// Returns the original's outputs for all blocks. The states stay those after attention.
    fn originals(&mut self, converter: &mut dyn Converter) -> Result<States> {
        let mut originals =
            States::new(self.blocks, self.model.hidden, self.scratch, self.compute)?;
        for block in 0..self.blocks.len() {
            let attended = self.attention(block, &mut |_, _, _| Ok(()))?;
            let out = self.original(block, &attended, converter)?;
            // Checked here: a decision about this layer would fail later and blame another tensor.
            let name = format!("the feed-forward network of layer {}", self.running.index);
            finite::check(&out, &name, network_weights(self.layer))?;
            originals.set(block, out)?;
            self.states.set(block, attended)?;
        }
        Ok(originals)
    }

    /// Converts the block from its inputs alone.
    fn convert_unseen(&mut self, converter: &mut dyn Converter) -> Result<Option<Ffn>> {
        for block in 0..self.blocks.len() {
            let attended = self.attention(block, &mut |_, _, _| Ok(()))?;
            self.checked_ffn_input(&attended)?;
            self.states.set(block, attended)?;
        }
        let converted = self.convert(None, converter)?;
        for block in 0..self.blocks.len() {
            let attended = self.states.get(block)?;
            let out = self.converted(block, &attended, converted.as_ref())?;
            self.leave(block, &attended, &out)?;
        }
        Ok(converted.map(|converted| converted.ffn))
    }

    fn convert(
        &self,
        outputs: Option<&States>,
        converter: &mut dyn Converter,
    ) -> Result<Option<Converted>> {
        let layer = self.running.index;
        let norm = &self.loaded.ffn_norm;
        let inputs = Inputs { layer, states: self.states, tokens: self.blocks, norm, outputs };
        self.compute.stage("decisions", Work::UNCOUNTED, || converter.convert(layer, &inputs))
    }

    /// Returns the output of the layer's own feed-forward block for the states `attended` of
    /// `block`.
    fn original(
        &self,
        block: usize,
        attended: &Tensor,
        converter: &mut dyn Converter,
    ) -> Result<Tensor> {
        let normed = self.checked_ffn_input(attended)?;
        converter.ffn_input(self.running.index, &normed)?;
        let first = self.blocks[block].start;
        ffn::forward(self.running, &self.layer.ffn, &normed, first, converter)
    }

    /// Returns the output of the converted block for the states `attended` of `block`.
    fn converted(
        &self,
        block: usize,
        attended: &Tensor,
        converted: Option<&Converted>,
    ) -> Result<Tensor> {
        let tokens = &self.blocks[block];
        let normed = self.ffn_input(attended)?;
        if let Some(Converted { ffn: Ffn::Moe(moe), routed: Some(routed) }) = converted {
            let of_block = routed.narrow(0, tokens.start, tokens.len());
            let of_block = of_block.context(|| "the experts' outputs".into())?;
            return self.running.with_shared(moe, &normed, of_block);
        }
        let ffn = converted.map_or(&self.layer.ffn, |converted| &converted.ffn);
        ffn::forward(self.running, ffn, &normed, tokens.start, &mut Silent)
    }

    fn show_converted(
        &self,
        original: &Tensor,
        out: &Tensor,
        converter: &mut dyn Converter,
    ) -> Result<()> {
        let work = Work::bytes(2 * original.elem_count() as u64 * 4);
        self.compute
            .stage(STATISTICS, work, || converter.converted(self.running.index, original, out))
    }

    /// Returns the states of `block` after attention. `seen` is shown the inputs of projections
    /// with their tokens.
    fn attention(&self, block: usize, seen: SeenFor<'_>) -> Result<Tensor> {
        // candle's errors can't hold ours, so ours is kept aside.
        let mut failed = None;
        let hidden = self.states.get(block)?;
        let tokens = &self.blocks[block];
        let within = self.spans.iter().filter(|s| tokens.start <= s.start && s.end <= tokens.end);
        let spans: Vec<_> = within.cloned().collect();
        let parts = self.compute.stage("attention", self.attention_work(&spans), || {
            let of_spans = group_spans(&spans).map(|spans| {
                let start = spans[0].start;
                let end = spans[spans.len() - 1].end;
                let x = hidden.narrow(0, start - tokens.start, end - start)?;
                self.attended(&x, spans, &mut |linear, input| {
                    if failed.is_none() {
                        failed = seen(linear, start..end, input).err();
                    }
                })
            });
            of_spans.collect::<CandleResult<Vec<_>>>()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        parts.and_then(|parts| Tensor::cat(&parts, 0)).context(|| self.attention_name())
    }

    /// Returns `x`, the states of the consecutive sequences `spans`, after attention.
    fn attended(
        &self,
        x: &Tensor,
        spans: &[Range<usize>],
        seen: &mut dyn FnMut(usize, &Tensor),
    ) -> CandleResult<Tensor> {
        let start = spans[0].start;
        let local: Vec<_> = spans.iter().map(|s| s.start - start..s.end - start).collect();
        let normed = self.loaded.attention_norm.forward(x)?;
        let out = self.loaded.attention.forward(&normed, &local, self.rotary, seen)?;
        x + out
    }

    /// Only half of all pairs of tokens are scored: those whose query comes after the key.
    fn attention_work(&self, spans: &[Range<usize>]) -> Work {
        let tokens = spans.iter().map(ExactSizeIterator::len);
        let pairs: usize = tokens.clone().map(|tokens| tokens * tokens / 2).sum();
        Work::flops(attention_flops(self.model, self.layer, tokens.sum(), pairs as f64))
    }

    fn attention_name(&self) -> String {
        format!("the attention of layer {}", self.running.index)
    }

    fn ffn_input(&self, attended: &Tensor) -> Result<Tensor> {
        let normed = self.loaded.ffn_norm.forward(attended);
        normed.context(|| format!("a norm of layer {}", self.running.index))
    }

    /// As [`Self::ffn_input`], but returns an error if it isn't finite: observers would blame the
    /// weights that they look at.
    fn checked_ffn_input(&self, attended: &Tensor) -> Result<Tensor> {
        let normed = self.ffn_input(attended)?;
        finite::check(&normed, &self.attention_name(), attention_weights(self.layer))?;
        Ok(normed)
    }

    /// Returns the states with which `block` leaves the layer.
    fn leave(&mut self, block: usize, attended: &Tensor, out: &Tensor) -> Result<Tensor> {
        let index = self.running.index;
        let hidden = (attended + out).context(|| format!("layer {index}"))?;
        let name = format!("the hidden states of layer {index}");
        finite::check(&hidden, &name, weights_of(self.layer))?;
        self.states.set(block, hidden.clone())?;
        Ok(hidden)
    }
}

/// Groups consecutive sequences to about [`ATTENTION_TOKENS`] tokens.
fn group_spans(spans: &[Range<usize>]) -> impl Iterator<Item = &[Range<usize>]> {
    let mut rest = spans;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let fits = rest.iter().take_while(|s| s.end - first.start <= ATTENTION_TOKENS).count();
        let (group, others) = rest.split_at(fits.max(1));
        rest = others;
        Some(group)
    })
}
