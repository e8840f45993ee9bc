//! Causal grouped-query attention, with an optional sliding window.

use std::ops::Range;

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_model::{Attention, Model, QkNorm};

use crate::loader::{LoadedLinear, Loader};
use crate::rotary::Rotary;

/// Queries of a block are scored at once: the memory for scores is heads × this × keys.
const QUERY_BLOCK: usize = 256;

/// An attention block in memory.
pub(crate) struct LoadedAttention {
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

impl LoadedAttention {
    pub fn load(loader: Loader<'_>, model: &Model, attention: &Attention) -> Result<Self> {
        let qk_norm = match &attention.qk_norm {
            None => LoadedNorm::None,
            Some(QkNorm::PerHead { q, k }) => LoadedNorm::PerHead(loader.tensor(q)?, loader.tensor(k)?),
            Some(QkNorm::FullWidth { q, k }) => LoadedNorm::FullWidth(loader.tensor(q)?, loader.tensor(k)?),
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

    /// `x` is `[tokens, hidden]`, already normalised; `spans` are its sequences.
    pub fn forward(&self, x: &Tensor, spans: &[Range<usize>], rotary: &Rotary) -> CandleResult<Tensor> {
        let Shape { heads, kv_heads, head_dim, clip, eps, .. } = self.shape;
        let norm = |x: Tensor, weight: &Tensor| candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps);
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
            self.attend(&q, &k, &of(&v)?.contiguous()?)
        });
        self.o.forward(&Tensor::cat(&sequences.collect::<CandleResult<Vec<_>>>()?, 0)?)
    }

    /// One sequence: `q` is `[heads, tokens, head_dim]`, `k` and `v` `[kv_heads, tokens, head_dim]`;
    /// gives `[tokens, heads · head_dim]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> CandleResult<Tensor> {
        let Shape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let (tokens, groups) = (q.dim(1)?, heads / kv_heads);
        let q = (q.reshape((kv_heads, groups, tokens, head_dim))? * (head_dim as f64).powf(-0.5))?;
        let blocks = (0..tokens).step_by(QUERY_BLOCK).map(|first| {
            let end = (first + QUERY_BLOCK).min(tokens);
            let queries = end - first;
            // The first query's window says which keys no query of the block can see.
            let start = window.map_or(0, |w| (first + 1).saturating_sub(w));
            let keys = end - start;
            let q = q.narrow(2, first, queries)?.contiguous()?.reshape((kv_heads, groups * queries, head_dim))?;
            let (k, v) = (k.narrow(1, start, keys)?, v.narrow(1, start, keys)?);
            let scores = q.matmul(&k.transpose(1, 2)?)?.reshape((kv_heads, groups, queries, keys))?;
            let scores = scores.to_dtype(DType::F32)?.broadcast_add(&mask(first..end, start..end, window, &q)?)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
            let out = weights.reshape((kv_heads, groups * queries, keys))?.matmul(&v.contiguous()?)?;
            out.reshape((heads, queries, head_dim))?.transpose(0, 1)?.reshape((queries, heads * head_dim))
        });
        Tensor::cat(&blocks.collect::<CandleResult<Vec<_>>>()?, 0)
    }
}

/// 0 where query i sees key j, −∞ elsewhere; `[queries, keys]` on the device of `like`.
fn mask(queries: Range<usize>, keys: Range<usize>, window: Option<usize>, like: &Tensor) -> CandleResult<Tensor> {
    let visible = |i: usize, j: usize| j <= i && window.is_none_or(|w| j + w > i);
    let (rows, columns) = (queries.len(), keys.len());
    let values: Vec<f32> =
        queries.flat_map(|i| keys.clone().map(move |j| if visible(i, j) { 0.0 } else { f32::NEG_INFINITY })).collect();
    Tensor::from_vec(values, (rows, columns), like.device())
}
