//! Multi-head latent attention (DeepSeek-V2, 2405.04434 §2.1), with keys and values written out for
//! every head.

use std::ops::Range;

use candle_core::{D, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::ops;
use moe_model::{LatentAttention, Model};

use crate::loader::{LoadedLinear, Loader};
use crate::rotary::Rotary;
use crate::scores::{Scores, Seen};

/// The loaded weights of latent attention.
pub(crate) struct LoadedLatent {
    /// Projection and norm of the latents that queries are made from; None if queries are made from
    /// the hidden states.
    q_latent: Option<(LoadedLinear, Tensor)>,
    q: LoadedLinear,
    kv_a: LoadedLinear,
    kv_a_norm: Tensor,
    kv_b: LoadedLinear,
    o: LoadedLinear,
    heads: usize,
    kv_rank: usize,
    nope: usize,
    rope: usize,
    value: usize,
    eps: f32,
    scores: Scores,
}

impl LoadedLatent {
    pub fn load(loader: Loader<'_>, model: &Model, attention: &LatentAttention) -> Result<Self> {
        let q_latent = attention.q_latent.as_ref();
        Ok(Self {
            q_latent: q_latent
                .map(|latent| {
                    Ok((loader.linear(&latent.projection)?, loader.tensor(&latent.norm)?))
                })
                .transpose()?,
            q: loader.linear(&attention.q)?,
            kv_a: loader.linear(&attention.kv_a)?,
            kv_a_norm: loader.tensor(&attention.kv_a_norm)?,
            kv_b: loader.linear(&attention.kv_b)?,
            o: loader.linear(&attention.o)?,
            heads: model.heads,
            kv_rank: attention.kv_rank(),
            nope: attention.nope,
            rope: attention.rope,
            value: attention.value,
            eps: attention.norm_eps as f32,
            scores: Scores { scale: attention.scale, window: None },
        })
    }

    pub fn forward(
        &self,
        x: &Tensor,
        spans: &[Range<usize>],
        rotary: &Rotary,
        seen: Seen<'_>,
    ) -> CandleResult<Tensor> {
        seen(0, x);
        let (tokens, heads) = (x.dim(0)?, self.heads);
        let kv_b = if self.q_latent.is_some() { 3 } else { 2 };
        let q = self.queries(x, seen)?.reshape((tokens, heads, self.nope + self.rope))?;
        let latent = self.kv_a.forward(x)?;
        let k_rope = latent.narrow(1, self.kv_rank, self.rope)?.unsqueeze(1)?;
        let latent = self.norm(&latent.narrow(1, 0, self.kv_rank)?, &self.kv_a_norm)?;
        seen(kv_b, &latent);
        let kv = self.kv_b.forward(&latent)?.reshape((tokens, heads, self.nope + self.value))?;
        let sequences = spans.iter().map(|span| self.attend(&q, &k_rope, &kv, span, rotary));
        let attended = Tensor::cat(&sequences.collect::<CandleResult<Vec<_>>>()?, 0)?;
        seen(kv_b + 1, &attended);
        self.o.forward(&attended)
    }

    /// Runs attention on the sequence `span`. `q` and `kv` are `[tokens, heads, width]`, and
    /// `k_rope` is shared by all heads.
    fn attend(
        &self,
        q: &Tensor,
        k_rope: &Tensor,
        kv: &Tensor,
        span: &Range<usize>,
        rotary: &Rotary,
    ) -> CandleResult<Tensor> {
        let q_rope = rotary.apply(&part(q, span, self.nope, self.rope)?)?;
        let k_rope = rotary
            .apply(&part(k_rope, span, 0, self.rope)?)?
            .broadcast_as(q_rope.shape())?
            .contiguous()?;
        let q = Tensor::cat(&[&part(q, span, 0, self.nope)?, &q_rope], D::Minus1)?;
        let k = Tensor::cat(&[&part(kv, span, 0, self.nope)?, &k_rope], D::Minus1)?;
        self.scores.attend(q, &k, &part(kv, span, self.nope, self.value)?)
    }

    fn queries(&self, x: &Tensor, seen: Seen<'_>) -> CandleResult<Tensor> {
        let Some((projection, norm)) = &self.q_latent else { return self.q.forward(x) };
        let latent = self.norm(&projection.forward(x)?, norm)?;
        seen(1, &latent);
        self.q.forward(&latent)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> CandleResult<Tensor> {
        ops::rms_norm(x, weight, self.eps)
    }
}

/// Returns columns of a sequence, `[heads, tokens, width]`.
fn part(x: &Tensor, span: &Range<usize>, start: usize, width: usize) -> CandleResult<Tensor> {
    x.narrow(0, span.start, span.len())?
        .narrow(D::Minus1, start, width)?
        .transpose(0, 1)?
        .contiguous()
}
