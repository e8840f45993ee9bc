//! The sweep: hidden states of a batch flow through the model layer by layer.

mod converter;
mod head;
mod loaded;
mod observer;

use std::ops::Range;
use std::path::PathBuf;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::meter::Work;
use moe_math::{Compute, ops};
use moe_model::{Ffn, Layer, Model, Weight};

pub use self::converter::{Converted, Converter, Forcing, Inputs};
pub use self::head::Head;
pub use self::observer::{ExpertRun, Observer, Silent, Wants};

use self::loaded::LoadedLayer;

use crate::attention::LoadedAttention;
use crate::batch::{Batch, check_ids};
use crate::context::Context;
use crate::ffn;
use crate::finite;
use crate::loader::{Loader, Shared};
use crate::rotary::Rotary;
use crate::states::{States, Storage, blocks};
use crate::work::attention_flops;

/// Attention runs on whole sequences of about this many tokens together.
const ATTENTION_TOKENS: usize = 4096;

/// Is shown what projections read for which tokens: the first of [`moe_model::Attention::linears`]
/// that reads it.
type SeenFor<'a> = &'a mut dyn FnMut(usize, Range<usize>, &Tensor) -> Result<()>;

/// A batch on its way through a model.
pub struct Sweep<'a> {
    model: &'a Model,
    batch: &'a Batch,
    compute: &'a Compute,
    rotary: Rotary,
    shared: Option<&'a Shared>,
    scratch: Option<PathBuf>,
    /// The sequences of each block of tokens.
    blocks: Vec<Range<usize>>,
    states: States,
}

impl<'a> Sweep<'a> {
    /// Embeds `batch`, all of which stays in memory and goes through a layer at once.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a token id that the vocabulary doesn't have; what
    /// reading returns.
    pub fn new(model: &'a Model, batch: &'a Batch, compute: &'a Compute) -> Result<Self> {
        Self::stored(model, batch, compute, &Storage::default())
    }

    /// Embeds `batch`, whose states are kept as `storage` says.
    ///
    /// # Errors
    /// As for [`Sweep::new`]; [`moe_checkpoint::Kind::Io`] where a scratch file can't be written.
    pub fn stored(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        storage: &Storage,
    ) -> Result<Self> {
        check_ids(&batch.ids, model.vocab).map_err(|e| e.file(&model.config_file))?;
        let rotary = Rotary::new(&model.rope, batch.longest(), compute)
            .context(|| "the rotary embedding".into())?;
        let blocks = blocks(&batch.spans, storage.block_tokens);
        let scratch = storage.scratch.clone();
        let mut states = States::new(&blocks, model.hidden, scratch.as_deref(), compute)?;
        for (index, block) in blocks.iter().enumerate() {
            let embedded = embed(&model.embed, &batch.ids[block.clone()], compute)?;
            finite::check(&embedded, "the embeddings of these tokens", [&model.embed])?;
            states.set(index, embedded)?;
        }
        Ok(Self { model, batch, compute, rotary, shared: None, scratch, blocks, states })
    }

    /// For `batch` on its way, whose states [`Sweep::enter`] gives.
    ///
    /// # Errors
    /// What the device returns.
    pub(crate) fn without_states(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
    ) -> Result<Self> {
        let rotary = Rotary::new(&model.rope, batch.longest(), compute)
            .context(|| "the rotary embedding".into())?;
        let blocks = blocks(&batch.spans, None);
        let states = States::new(&blocks, model.hidden, None, compute)?;
        Ok(Self { model, batch, compute, rotary, shared: None, scratch: None, blocks, states })
    }

    /// All tokens go on from `hidden`, `[tokens, hidden]`.
    pub(crate) fn enter(&mut self, hidden: Tensor) -> Result<()> {
        self.states.set(0, hidden)
    }

    /// Looks for weights among `shared`, and fills it, from now on.
    pub(crate) fn share(&mut self, shared: &'a Shared) {
        self.shared = Some(shared);
    }

    /// Runs all layers.
    ///
    /// # Errors
    /// As for [`Sweep::layer`].
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        for index in 0..self.model.layers.len() {
            self.layer(index, observer)?;
            observer.layer_done(index, self.model.layers.len())?;
        }
        Ok(())
    }

    /// Runs layer `index`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Numeric`] where the result is not finite, naming the tensor if a
    /// weight is to blame; what reading and the device return.
    pub fn layer(&mut self, index: usize, observer: &mut dyn Observer) -> Result<()> {
        let layer = &self.model.layers[index];
        let cache = self.cache();
        let loader = Loader::sharing(self.compute, self.shared.unwrap_or(&cache));
        let loaded = LoadedLayer::load(loader, self.model, layer)?;
        for block in 0..self.blocks.len() {
            let attended = self.attention(index, &loaded, block, &mut |_, _, _| Ok(()))?;
            let normed = self.checked_ffn_input(index, layer, &attended, &loaded)?;
            observer.ffn_input(index, &normed)?;
            let out = ffn::forward(loader, index, &layer.ffn, &normed, observer)?;
            let hidden = self.leave(index, layer, block, &attended, &out)?;
            self.compute.stage(ffn::STATISTICS, Work::UNCOUNTED, || {
                observer.layer_output(index, &hidden)
            })?;
        }
        Ok(())
    }

    /// Runs layer `index`, and lets what `converter` makes of its feed-forward block give the
    /// states that reach the next layer.
    ///
    /// # Errors
    /// As for [`Sweep::layer`].
    pub fn layer_converted(&mut self, index: usize, converter: &mut dyn Converter) -> Result<()> {
        let layer = &self.model.layers[index];
        self.converted(index, layer, converter).map(drop)
    }

    /// The same with `layer` in the place of the model's; what it became.
    ///
    /// # Errors
    /// As for [`Sweep::layer`].
    pub fn converted(
        &mut self,
        index: usize,
        layer: &Layer,
        converter: &mut dyn Converter,
    ) -> Result<Layer> {
        let mut left = layer.clone();
        let cache = self.cache();
        let loader = Loader::sharing(self.compute, self.shared.unwrap_or(&cache));
        let mut loaded = LoadedLayer::load(loader, self.model, layer)?;
        if converter.converts_attention() {
            for block in 0..self.blocks.len() {
                self.attention(index, &loaded, block, &mut |linear, tokens, x| {
                    finite::check(
                        x,
                        &format!("the attention of layer {index}"),
                        attention_weights(layer),
                    )?;
                    converter.attention_input(index, linear, tokens, x)
                })?;
            }
            if let Some(attention) = converter.convert_attention(index)? {
                loaded.attention = LoadedAttention::load(loader, self.model, &attention)?;
                left.attention = attention;
            }
        }
        let scratch = self.scratch.as_deref();
        let observes = converter.observes();
        let mut originals = observes
            .then(|| States::new(&self.blocks, self.model.hidden, scratch, self.compute))
            .transpose()?;
        for block in 0..self.blocks.len() {
            let attended = self.attention(index, &loaded, block, &mut |_, _, _| Ok(()))?;
            let normed = self.checked_ffn_input(index, layer, &attended, &loaded)?;
            if let Some(originals) = &mut originals {
                converter.ffn_input(index, &normed)?;
                let out = ffn::forward(loader, index, &layer.ffn, &normed, converter)?;
                // What is decided on this layer would blame another tensor.
                finite::check(
                    &out,
                    &format!("the feed-forward network of layer {index}"),
                    network_weights(layer),
                )?;
                originals.set(block, out)?;
            }
            self.states.set(block, attended)?;
        }
        let (states, tokens, norm) = (&self.states, self.blocks.as_slice(), &loaded.ffn_norm);
        let outputs = originals.as_ref();
        let inputs =
            Inputs { layer: index, states, tokens, norm, eps: self.model.norm_eps, outputs };
        let converted = self
            .compute
            .stage("decisions", Work::UNCOUNTED, || converter.convert(index, &inputs))?;
        let (ffn, routed) = match converted {
            Some(Converted { ffn, routed }) => (Some(ffn), routed),
            None => (None, None),
        };
        for (block, tokens) in self.blocks.clone().into_iter().enumerate() {
            let attended = self.states.get(block)?;
            let original = originals.as_ref().map(|originals| originals.get(block)).transpose()?;
            let out = match (&ffn, original) {
                (None, Some(original)) => original,
                (ffn, original) => {
                    let normed = self.ffn_input(index, &attended, &loaded)?;
                    let out = match (ffn, &routed) {
                        (Some(Ffn::Moe(moe)), Some(routed)) => {
                            let of_block = routed.narrow(0, tokens.start, tokens.len());
                            let of_block = of_block.context(|| "the experts' outputs".into())?;
                            ffn::with_shared(loader, index, moe, &normed, of_block)?
                        }
                        _ => ffn::forward(
                            loader,
                            index,
                            ffn.as_ref().unwrap_or(&layer.ffn),
                            &normed,
                            &mut Silent,
                        )?,
                    };
                    if let Some(original) = &original {
                        let work = Work::bytes(2 * original.elem_count() as u64 * 4);
                        self.compute.stage(ffn::STATISTICS, work, || {
                            converter.converted(index, original, &out)
                        })?;
                    }
                    original.filter(|_| converter.forcing() == Forcing::Teacher).unwrap_or(out)
                }
            };
            self.leave(index, layer, block, &attended, &out)?;
        }
        left.ffn = ffn.unwrap_or(left.ffn);
        Ok(left)
    }

    /// Where several blocks need the same weights, they are loaded once.
    fn cache(&self) -> Shared {
        let cache = Shared::default();
        if self.blocks.len() > 1 {
            cache.record();
        }
        cache
    }

    /// The states of `block` behind the attention of layer `index`; `seen` is shown what
    /// projections read for which tokens.
    fn attention(
        &self,
        index: usize,
        layer: &LoadedLayer,
        block: usize,
        seen: SeenFor<'_>,
    ) -> Result<Tensor> {
        // candle's errors can't hold ours.
        let mut failed = None;
        let hidden = self.states.get(block)?;
        let tokens = &self.blocks[block];
        let within = |span: &&Range<usize>| tokens.start <= span.start && span.end <= tokens.end;
        let spans: Vec<_> = self.batch.spans.iter().filter(within).cloned().collect();
        let mut run = |spans: &[Range<usize>]| {
            let (start, end) = (spans[0].start, spans[spans.len() - 1].end);
            let local: Vec<_> = spans.iter().map(|s| s.start - start..s.end - start).collect();
            let x = hidden.narrow(0, start - tokens.start, end - start)?;
            let mut show = |linear: usize, input: &Tensor| {
                if failed.is_none() {
                    failed = seen(linear, start..end, input).err();
                }
            };
            let out = layer.attention.forward(
                &self.norm(&x, &layer.attention_norm)?,
                &local,
                &self.rotary,
                &mut show,
            )?;
            x + out
        };
        let work = attention_work(self.model, &self.model.layers[index], &spans);
        let parts = self.compute.stage("attention", work, || {
            group_spans(&spans).map(&mut run).collect::<candle_core::Result<Vec<_>>>()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        parts
            .and_then(|parts| Tensor::cat(&parts, 0))
            .context(|| format!("the attention of layer {index}"))
    }

    fn ffn_input(&self, index: usize, attended: &Tensor, layer: &LoadedLayer) -> Result<Tensor> {
        self.norm(attended, &layer.ffn_norm).context(|| format!("a norm of layer {index}"))
    }

    /// The same, refused where it is not finite: observers would blame the weights that they look
    /// at.
    fn checked_ffn_input(
        &self,
        index: usize,
        layer: &Layer,
        attended: &Tensor,
        loaded: &LoadedLayer,
    ) -> Result<Tensor> {
        let normed = self.ffn_input(index, attended, loaded)?;
        finite::check(
            &normed,
            &format!("the attention of layer {index}"),
            attention_weights(layer),
        )?;
        Ok(normed)
    }

    /// The states with which `block` leaves layer `index`.
    fn leave(
        &mut self,
        index: usize,
        layer: &Layer,
        block: usize,
        attended: &Tensor,
        out: &Tensor,
    ) -> Result<Tensor> {
        let hidden = (attended + out).context(|| format!("layer {index}"))?;
        finite::check(&hidden, &format!("the hidden states of layer {index}"), weights_of(layer))?;
        self.states.set(block, hidden.clone())?;
        Ok(hidden)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        normed(x, weight, self.model.norm_eps)
    }

    /// The hidden states of `tokens`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the device or the scratch file returns.
    pub fn hidden(&self, tokens: Range<usize>) -> Result<Tensor> {
        self.states.rows(tokens)
    }
}

/// Of all pairs of tokens, the query comes later in half.
fn attention_work(model: &Model, layer: &Layer, spans: &[Range<usize>]) -> Work {
    let tokens = spans.iter().map(ExactSizeIterator::len);
    let pairs: usize = tokens.clone().map(|tokens| tokens * tokens / 2).sum();
    Work::flops(attention_flops(model, layer, tokens.sum(), pairs as f64))
}

fn normed(x: &Tensor, weight: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    ops::rms_norm(x, weight, eps as f32)
}

/// The rows `ids` of the embedding `table`, `[ids, hidden]`; each row that occurs is read once.
///
/// # Errors
/// What reading and the device return.
pub fn embed(table: &Weight, ids: &[u32], compute: &Compute) -> Result<Tensor> {
    embed_with(Loader::new(compute), table, ids)
}

/// The same with what `loader` finds.
pub(crate) fn embed_with(loader: Loader<'_>, table: &Weight, ids: &[u32]) -> Result<Tensor> {
    let mut unique = ids.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let row =
        |id: &u32| unique.binary_search(id).expect("every id is among the unique ones") as u32;
    let rows: Vec<u32> = ids.iter().map(row).collect();
    let read = loader.rows(table, &unique)?;
    let select =
        || read.index_select(&Tensor::from_vec(rows, ids.len(), &loader.compute.device)?, 0);
    select().context(|| "the embedding".into())
}

/// Consecutive sequences, in groups of about [`ATTENTION_TOKENS`].
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

pub(crate) fn weights_of(layer: &Layer) -> Vec<&Weight> {
    let mut weights = attention_weights(layer);
    weights.extend(network_weights(layer));
    weights
}

/// The weights that make what enters the feed-forward network.
fn attention_weights(layer: &Layer) -> Vec<&Weight> {
    let mut weights = vec![&layer.attention_norm, &layer.ffn_norm];
    weights.extend(layer.attention.norms());
    weights.extend(
        layer
            .attention
            .linears()
            .into_iter()
            .flat_map(|l| std::iter::once(&l.weight).chain(&l.bias)),
    );
    weights
}

fn network_weights(layer: &Layer) -> Vec<&Weight> {
    let (mut weights, mut linears) = (Vec::new(), Vec::new());
    match &layer.ffn {
        Ffn::Dense(expert) => linears.extend(expert.linears()),
        Ffn::Moe(moe) => {
            weights.extend(moe.router.weights());
            linears.extend(moe.experts.iter().flat_map(|e| e.linears()));
            if let Some(shared) = &moe.shared {
                weights.extend(&shared.gate);
                linears.extend(shared.expert.linears());
            }
        }
    }
    weights.extend(linears.into_iter().flat_map(|l| std::iter::once(&l.weight).chain(&l.bias)));
    weights
}
