//! Causal attention: grouped queries with an optional sliding window, or by way of latents.

use std::ops::Range;

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::ops;
use moe_model::{Attention, GroupedAttention, Model, QkNorm};

use crate::latent::LoadedLatent;
use crate::loader::{LoadedLinear, Loader};
use crate::rotary::Rotary;

/// Queries of a block are scored at once: the memory for scores is heads × this × keys.
const QUERY_BLOCK: usize = 256;

/// An attention block in memory.
pub(crate) enum LoadedAttention {
    Grouped(LoadedGrouped),
    Latent(LoadedLatent),
}

/// Is shown each input of projections, with the first of [`Attention::linears`] that reads it.
pub(crate) type Seen<'a> = &'a mut dyn FnMut(usize, &Tensor);

impl LoadedAttention {
    pub fn load(loader: Loader<'_>, model: &Model, attention: &Attention) -> Result<Self> {
        Ok(match attention {
            Attention::Grouped(attention) => {
                Self::Grouped(LoadedGrouped::load(loader, model, attention)?)
            }
            Attention::Latent(attention) => {
                Self::Latent(LoadedLatent::load(loader, model, attention)?)
            }
        })
    }

    /// `x` is `[tokens, hidden]`, already normalised; `spans` are its sequences.
    pub fn forward(
        &self,
        x: &Tensor,
        spans: &[Range<usize>],
        rotary: &Rotary,
        seen: Seen<'_>,
    ) -> CandleResult<Tensor> {
        match self {
            Self::Grouped(attention) => attention.forward(x, spans, rotary, seen),
            Self::Latent(attention) => attention.forward(x, spans, rotary, seen),
        }
    }
}

/// Grouped-query attention in memory.
pub(crate) struct LoadedGrouped {
    q: LoadedLinear,
    k: LoadedLinear,
    v: LoadedLinear,
    o: LoadedLinear,
    qk_norm: LoadedNorm,
    shape: Shape,
}

enum LoadedNorm {
    None,
    PerHead(Tensor, Tensor),
    FullWidth(Tensor, Tensor),
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    clip: Option<f64>,
    eps: f32,
}

impl LoadedGrouped {
    fn load(loader: Loader<'_>, model: &Model, attention: &GroupedAttention) -> Result<Self> {
        let qk_norm = match &attention.qk_norm {
            None => LoadedNorm::None,
            Some(QkNorm::PerHead { q, k }) => {
                LoadedNorm::PerHead(loader.tensor(q)?, loader.tensor(k)?)
            }
            Some(QkNorm::FullWidth { q, k }) => {
                LoadedNorm::FullWidth(loader.tensor(q)?, loader.tensor(k)?)
            }
        };
        Ok(Self {
            q: loader.linear(&attention.q)?,
            k: loader.linear(&attention.k)?,
            v: loader.linear(&attention.v)?,
            o: loader.linear(&attention.o)?,
            qk_norm,
            shape: Shape {
                heads: model.heads,
                kv_heads: model.kv_heads,
                head_dim: model.head_dim,
                window: attention.window,
                clip: attention.clip,
                eps: model.norm_eps as f32,
            },
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        spans: &[Range<usize>],
        rotary: &Rotary,
        seen: Seen<'_>,
    ) -> CandleResult<Tensor> {
        seen(0, x);
        let Shape { heads, kv_heads, head_dim, clip, eps, window } = self.shape;
        let scores = Scores { scale: (head_dim as f64).powf(-0.5), window };
        let norm = |x: Tensor, weight: &Tensor| ops::rms_norm(&x, weight, eps);
        let (mut q, mut k, mut v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        if let LoadedNorm::FullWidth(q_weight, k_weight) = &self.qk_norm {
            (q, k) = (norm(q, q_weight)?, norm(k, k_weight)?);
        }
        if let Some(clip) = clip {
            (q, k, v) = (q.clamp(-clip, clip)?, k.clamp(-clip, clip)?, v.clamp(-clip, clip)?);
        }
        let by_head = |x: Tensor, heads: usize| x.reshape((x.dim(0)?, heads, head_dim));
        let (mut q, mut k, v) = (by_head(q, heads)?, by_head(k, kv_heads)?, by_head(v, kv_heads)?);
        if let LoadedNorm::PerHead(q_weight, k_weight) = &self.qk_norm {
            (q, k) = (norm(q, q_weight)?, norm(k, k_weight)?);
        }
        let sequences = spans.iter().map(|span| {
            let of = |x: &Tensor| x.narrow(0, span.start, span.len())?.transpose(0, 1);
            let (q, k) = (rotary.apply(&of(&q)?)?, rotary.apply(&of(&k)?)?);
            scores.attend(q, &k, &of(&v)?.contiguous()?)
        });
        let attended = Tensor::cat(&sequences.collect::<CandleResult<Vec<_>>>()?, 0)?;
        seen(3, &attended);
        self.o.forward(&attended)
    }
}

/// How scores become weights.
pub(crate) struct Scores {
    /// Multiplies them.
    pub scale: f64,
    /// A token attends to this many tokens up to and including itself.
    pub window: Option<usize>,
}

impl Scores {
    /// One sequence: `q` is `[heads, tokens, width]`, `k` `[kv_heads, tokens, width]` and `v`
    /// `[kv_heads, tokens, value]`; gives `[tokens, heads · value]`.
    pub fn attend(&self, q: Tensor, k: &Tensor, v: &Tensor) -> CandleResult<Tensor> {
        let window = self.window;
        let (heads, tokens, width) = q.dims3()?;
        let (kv_heads, _, value) = v.dims3()?;
        let groups = heads / kv_heads;
        let scaled = (q.reshape((kv_heads, groups, tokens, width))? * self.scale)?;
        drop(q);
        let blocks = (0..tokens).step_by(QUERY_BLOCK).map(|first| {
            let end = (first + QUERY_BLOCK).min(tokens);
            let queries = end - first;
            // The first query's window says which keys no query of the block can see.
            let start = window.map_or(0, |w| (first + 1).saturating_sub(w));
            let keys = end - start;
            let q = scaled.narrow(2, first, queries)?.contiguous()?.reshape((
                kv_heads,
                groups * queries,
                width,
            ))?;
            let (k, v) = (k.narrow(1, start, keys)?, v.narrow(1, start, keys)?);
            // In long sequences scores are most of what is held: each form of them goes before the
            // next but one comes.
            let scores = q
                .matmul(&k.transpose(1, 2)?)?
                .reshape((kv_heads, groups, queries, keys))?
                .to_dtype(DType::F32)?
                .broadcast_add(&mask(first..end, start..end, window, &q)?)?;
            let weights = ops::softmax(&scores)?;
            drop(scores);
            let weights = weights.to_dtype(v.dtype())?;
            let out =
                weights.reshape((kv_heads, groups * queries, keys))?.matmul(&v.contiguous()?)?;
            out.reshape((heads, queries, value))?.transpose(0, 1)?.reshape((queries, heads * value))
        });
        Tensor::cat(&blocks.collect::<CandleResult<Vec<_>>>()?, 0)
    }
}

/// 0 where query i sees key j, −∞ elsewhere; `[queries, keys]` on the device of `like`.
fn mask(
    queries: Range<usize>,
    keys: Range<usize>,
    window: Option<usize>,
    like: &Tensor,
) -> CandleResult<Tensor> {
    let visible = |i: usize, j: usize| j <= i && window.is_none_or(|w| j + w > i);
    let (rows, columns) = (queries.len(), keys.len());
    let values: Vec<f32> = queries
        .flat_map(|i| {
            keys.clone().map(move |j| if visible(i, j) { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Tensor::from_vec(values, (rows, columns), like.device())
}
