//! The sweep: hidden states of a batch flow through the model layer by layer.

use candle_core::{DType, Tensor};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::product::product;
use moe_math::routing::Routing;
use moe_model::{Ffn, Layer, Model, Weight};

use crate::attention::LoadedAttention;
use crate::batch::{Batch, check_ids};
use crate::context::Context;
use crate::ffn;
use crate::finite;
use crate::loader::{Loader, Shared};
use crate::rotary::Rotary;

/// Attention runs on whole sequences of about this many tokens together.
const ATTENTION_TOKENS: usize = 4096;

/// Watches a sweep.
pub trait Observer {
    /// The feed-forward block of `layer` is about to run on `x`, `[tokens, hidden]`, already normalised: what its router
    /// sees. Called once for a layer.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let _ = (layer, x);
        Ok(())
    }

    /// Tokens were routed in `layer`: `logits` is `[tokens, experts]`. Called once or more for a layer, in token order.
    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) {
        let _ = (layer, logits, routing);
    }

    /// `layer` of `layers` is done.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        let _ = (layer, layers);
        Ok(())
    }
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {}

/// A batch on its way through a model.
pub struct Sweep<'a> {
    model: &'a Model,
    batch: &'a Batch,
    compute: &'a Compute,
    rotary: Rotary,
    shared: Option<&'a Shared>,
    /// `[tokens, hidden]`.
    hidden: Tensor,
}

impl<'a> Sweep<'a> {
    /// Embeds `batch`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a token id that the vocabulary doesn't have; what reading returns.
    pub fn new(model: &'a Model, batch: &'a Batch, compute: &'a Compute) -> Result<Self> {
        check_ids(&batch.ids, model.vocab).map_err(|e| e.file(&model.config_file))?;
        let hidden = embed(&model.embed, &batch.ids, compute)?;
        finite::check(&hidden, "the embeddings of these tokens", [&model.embed])?;
        let rotary = Rotary::new(&model.rope, batch.longest(), compute).context(|| "the rotary embedding".into())?;
        Ok(Self { model, batch, compute, rotary, shared: None, hidden })
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
    /// [`moe_checkpoint::Kind::Numeric`] where the result is not finite, naming the tensor if a weight is to blame;
    /// what reading and the device return.
    pub fn layer(&mut self, index: usize, observer: &mut dyn Observer) -> Result<()> {
        let layer = &self.model.layers[index];
        let loader = Loader { compute: self.compute, shared: self.shared };
        let attended = self.attention(index, layer, loader)?;
        let ffn_norm = loader.tensor(&layer.ffn_norm)?;
        let normed = self.norm(&attended, &ffn_norm).context(|| format!("a norm of layer {index}"))?;
        observer.ffn_input(index, &normed)?;
        let out = ffn::forward(loader, index, &layer.ffn, &normed, observer)?;
        self.hidden = (attended + out).context(|| format!("layer {index}"))?;
        finite::check(&self.hidden, &format!("the hidden states of layer {index}"), weights_of(layer))
    }

    fn attention(&self, index: usize, layer: &Layer, loader: Loader<'_>) -> Result<Tensor> {
        let norm = loader.tensor(&layer.attention_norm)?;
        let attention = LoadedAttention::load(loader, self.model, &layer.attention)?;
        let run = |spans: &[std::ops::Range<usize>]| {
            let (start, end) = (spans[0].start, spans[spans.len() - 1].end);
            let local: Vec<_> = spans.iter().map(|s| s.start - start..s.end - start).collect();
            let x = self.hidden.narrow(0, start, end - start)?;
            let out = attention.forward(&self.norm(&x, &norm)?, &local, &self.rotary)?;
            x + out
        };
        let parts = group_spans(&self.batch.spans).map(run).collect::<candle_core::Result<Vec<_>>>();
        parts.and_then(|parts| Tensor::cat(&parts, 0)).context(|| format!("the attention of layer {index}"))
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, weight, self.model.norm_eps as f32)
    }

    /// The hidden states, `[tokens, hidden]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }
}

/// The rows `ids` of the embedding `table`, `[ids, hidden]`; each row that occurs is read once.
///
/// # Errors
/// What reading and the device return.
pub fn embed(table: &Weight, ids: &[u32], compute: &Compute) -> Result<Tensor> {
    let mut unique = ids.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let row = |id: &u32| unique.binary_search(id).expect("every id is among the unique ones") as u32;
    let rows: Vec<u32> = ids.iter().map(row).collect();
    let read = Loader { compute, shared: None }.rows(table, &unique)?;
    let select = || read.index_select(&Tensor::from_vec(rows, ids.len(), &compute.device)?, 0);
    select().context(|| "the embedding".into())
}

/// Consecutive sequences, in groups of about [`ATTENTION_TOKENS`].
fn group_spans(spans: &[std::ops::Range<usize>]) -> impl Iterator<Item = &[std::ops::Range<usize>]> {
    let mut rest = spans;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let fits = rest.iter().take_while(|s| s.end - first.start <= ATTENTION_TOKENS).count();
        let (group, others) = rest.split_at(fits.max(1));
        rest = others;
        Some(group)
    })
}

fn weights_of(layer: &Layer) -> Vec<&Weight> {
    let mut weights = vec![&layer.attention_norm, &layer.ffn_norm];
    let mut linears = layer.attention.linears();
    weights.extend(layer.attention.norms());
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

/// The final norm and the output head in memory.
pub struct Head {
    norm: Tensor,
    weight: Tensor,
    eps: f32,
    /// Where both come from, for messages.
    sources: [Weight; 2],
}

impl Head {
    /// Loads both.
    ///
    /// # Errors
    /// What reading returns.
    pub fn load(model: &Model, compute: &Compute) -> Result<Self> {
        Self::load_with(model, Loader { compute, shared: None })
    }

    pub(crate) fn load_with(model: &Model, loader: Loader<'_>) -> Result<Self> {
        let (norm, weight) = (loader.tensor(&model.final_norm)?, loader.matrix(model.head_weight())?);
        let sources = [model.final_norm.clone(), model.head_weight().clone()];
        Ok(Self { norm, weight, eps: model.norm_eps as f32, sources })
    }

    /// Logits `[tokens, vocab]` of final hidden states `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Numeric`] where they are not finite; what the device returns.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let compute = || {
            let normed = candle_nn::ops::rms_norm(&hidden.contiguous()?, &self.norm, self.eps)?;
            product(&normed, &self.weight)?.to_dtype(DType::F32)
        };
        let logits = compute().context(|| "the logits".into())?;
        finite::check(&logits, "the logits", &self.sources)?;
        Ok(logits)
    }

    /// Rows of the head: the size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }
}
