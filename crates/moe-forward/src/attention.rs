//! Causal attention: grouped queries with an optional sliding window, or latent attention.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::ops;
use moe_model::{Attention, GroupedAttention, Model, QkNorm};

use crate::latent::LoadedLatent;
use crate::loader::{LoadedLinear, Loader};
use crate::rotary::Rotary;
use crate::scores::{Scores, Seen};

/// The loaded weights of an attention block.
pub(crate) enum LoadedAttention {
    Grouped(LoadedGrouped),
    Latent(LoadedLatent),
}

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

    /// Runs attention on `x`, `[tokens, hidden]`, which is normalized already. `spans` are its
    /// sequences.
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

/// The loaded weights of grouped-query attention.
pub(crate) struct LoadedGrouped {
    q: LoadedLinear,
    k: LoadedLinear,
    v: LoadedLinear,
    o: LoadedLinear,
    qk_norm: LoadedNorm,
    shape: GroupedShape,
}

enum LoadedNorm {
    None,
    PerHead(Tensor, Tensor),
    FullWidth(Tensor, Tensor),
}

#[derive(Clone, Copy)]
struct GroupedShape {
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
            shape: GroupedShape {
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
        let GroupedShape { head_dim, window, .. } = self.shape;
        let scores = Scores { scale: (head_dim as f64).powf(-0.5), window };
        let [q, k, v] = self.by_head(x)?;
        let sequences = spans.iter().map(|span| {
            let q = rotary.apply(&heads_of_span(&q, span)?)?;
            let k = rotary.apply(&heads_of_span(&k, span)?)?;
            scores.attend(q, &k, &heads_of_span(&v, span)?.contiguous()?)
        });
        let attended = Tensor::cat(&sequences.collect::<CandleResult<Vec<_>>>()?, 0)?;
        seen(3, &attended);
        self.o.forward(&attended)
    }

    /// Returns queries, keys and values, `[tokens, heads, head_dim]`, before positions are applied.
    fn by_head(&self, x: &Tensor) -> CandleResult<[Tensor; 3]> {
        let GroupedShape { heads, kv_heads, head_dim, clip, eps, .. } = self.shape;
        let tokens = x.dim(0)?;
        let (mut q, mut k, mut v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        if let LoadedNorm::FullWidth(q_weight, k_weight) = &self.qk_norm {
            q = ops::rms_norm(&q, q_weight, eps)?;
            k = ops::rms_norm(&k, k_weight, eps)?;
        }
        if let Some(clip) = clip {
            (q, k, v) = (q.clamp(-clip, clip)?, k.clamp(-clip, clip)?, v.clamp(-clip, clip)?);
        }
        q = q.reshape((tokens, heads, head_dim))?;
        k = k.reshape((tokens, kv_heads, head_dim))?;
        v = v.reshape((tokens, kv_heads, head_dim))?;
        if let LoadedNorm::PerHead(q_weight, k_weight) = &self.qk_norm {
            q = ops::rms_norm(&q, q_weight, eps)?;
            k = ops::rms_norm(&k, k_weight, eps)?;
        }
        Ok([q, k, v])
    }
}

/// Returns the tokens `span` of `[tokens, heads, width]` as `[heads, span, width]`.
fn heads_of_span(x: &Tensor, span: &Range<usize>) -> CandleResult<Tensor> {
    x.narrow(0, span.start, span.len())?.transpose(0, 1)
}
