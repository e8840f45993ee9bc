//! Attention of a layer.

use super::linear::Linear;
use crate::weight::Weight;

/// Normalization of queries and keys before the rotary embedding.
#[derive(Debug, Clone)]
pub enum QkNorm {
    /// Each head is normalized by itself; both weights are `[head_dim]`.
    PerHead {
        /// Query norm.
        q: Weight,
        /// Key norm.
        k: Weight,
    },
    /// All heads are normalized together; the weights are `[heads · head_dim]` and `[kv_heads ·
    /// head_dim]`.
    FullWidth {
        /// Query norm.
        q: Weight,
        /// Key norm.
        k: Weight,
    },
}

/// A layer's attention.
#[derive(Debug, Clone)]
pub enum Attention {
    /// Grouped-query attention: queries of a group share keys and values.
    Grouped(Box<GroupedAttention>),
    /// Latent attention: keys and values, and in some models queries, are computed from narrow
    /// latents.
    Latent(Box<LatentAttention>),
}

impl Attention {
    /// The number of tokens, up to and including itself, that a token attends to; None for all.
    pub fn window(&self) -> Option<usize> {
        match self {
            Attention::Grouped(attention) => attention.window,
            Attention::Latent(_) => None,
        }
    }

    /// Returns the grouped-query attention, or None for another kind.
    pub fn grouped(&self) -> Option<&GroupedAttention> {
        match self {
            Attention::Grouped(attention) => Some(attention),
            Attention::Latent(_) => None,
        }
    }

    /// Returns the latent attention, or None for another kind.
    pub fn latent(&self) -> Option<&LatentAttention> {
        match self {
            Attention::Latent(attention) => Some(attention),
            Attention::Grouped(_) => None,
        }
    }

    /// The output projection.
    pub fn output(&self) -> &Linear {
        match self {
            Attention::Grouped(attention) => &attention.o,
            Attention::Latent(attention) => &attention.o,
        }
    }

    /// Every projection.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Attention::Grouped(a) => vec![&a.q, &a.k, &a.v, &a.o],
            Attention::Latent(a) => {
                let latent = a.q_latent.iter().map(|latent| &latent.projection);
                latent.chain([&a.q, &a.kv_a, &a.kv_b, &a.o]).collect()
            }
        }
    }

    /// Every projection, in the order of [`Attention::linears`].
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Attention::Grouped(a) => vec![&mut a.q, &mut a.k, &mut a.v, &mut a.o],
            Attention::Latent(a) => {
                let latent = a.q_latent.iter_mut().map(|latent| &mut latent.projection);
                latent.chain([&mut a.q, &mut a.kv_a, &mut a.kv_b, &mut a.o]).collect()
            }
        }
    }

    pub(super) fn weights_mut(&mut self) -> Vec<&mut Weight> {
        match self {
            Attention::Grouped(attention) => attention.weights_mut(),
            Attention::Latent(attention) => attention.weights_mut(),
        }
    }

    /// For each of [`Attention::linears`], the index of the first one that reads the same input.
    pub fn inputs(&self) -> Vec<usize> {
        match self {
            Attention::Grouped(_) => vec![0, 0, 0, 3],
            Attention::Latent(a) if a.q_latent.is_some() => vec![0, 1, 0, 3, 4],
            Attention::Latent(_) => vec![0, 0, 2, 3],
        }
    }

    /// The weights of the norms inside the attention.
    pub fn norms(&self) -> Vec<&Weight> {
        match self {
            Attention::Grouped(a) => match &a.qk_norm {
                Some(QkNorm::PerHead { q, k } | QkNorm::FullWidth { q, k }) => vec![q, k],
                None => vec![],
            },
            Attention::Latent(a) => {
                a.q_latent.iter().map(|latent| &latent.norm).chain([&a.kv_a_norm]).collect()
            }
        }
    }

    /// The weights of the norms inside the attention, in the order of [`Attention::norms`].
    pub fn norms_mut(&mut self) -> Vec<&mut Weight> {
        match self {
            Attention::Grouped(a) => match &mut a.qk_norm {
                Some(QkNorm::PerHead { q, k } | QkNorm::FullWidth { q, k }) => vec![q, k],
                None => vec![],
            },
            Attention::Latent(a) => a
                .q_latent
                .iter_mut()
                .map(|latent| &mut latent.norm)
                .chain([&mut a.kv_a_norm])
                .collect(),
        }
    }
}

/// Grouped-query attention.
#[derive(Debug, Clone)]
pub struct GroupedAttention {
    /// Query projection, `[heads · head_dim, hidden]`.
    pub q: Linear,
    /// Key projection, `[kv_heads · head_dim, hidden]`.
    pub k: Linear,
    /// Value projection, `[kv_heads · head_dim, hidden]`.
    pub v: Linear,
    /// Output projection, `[hidden, heads · head_dim]`.
    pub o: Linear,
    /// Normalization of queries and keys, if there is any.
    pub qk_norm: Option<QkNorm>,
    /// Projected queries, keys and values are clamped to ± this value; None for no clamp.
    pub clip: Option<f64>,
    /// The number of tokens, up to and including itself, that a token attends to; None for all.
    pub window: Option<usize>,
}

impl GroupedAttention {
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let Self { q, k, v, o, qk_norm, .. } = self;
        let mut weights: Vec<_> = [q, k, v, o].into_iter().flat_map(Linear::weights_mut).collect();
        if let Some(QkNorm::PerHead { q, k } | QkNorm::FullWidth { q, k }) = qk_norm {
            weights.extend([q, k]);
        }
        weights
    }
}

/// The latent that queries of latent attention can be computed from: `norm(projection x)`.
#[derive(Debug, Clone)]
pub struct QueryLatent {
    /// `[rank, hidden]`.
    pub projection: Linear,
    /// RMS norm, `[rank]`.
    pub norm: Weight,
}

/// Multi-head latent attention (DeepSeek-V2, 2405.04434 §2.1).
#[derive(Debug, Clone)]
pub struct LatentAttention {
    /// The latent that queries are computed from; None if they are computed from the hidden state.
    pub q_latent: Option<QueryLatent>,
    /// The projection to queries, `[heads · (nope + rope), rank or hidden]`.
    pub q: Linear,
    /// The projection to the latent of keys and values, then to the keys' rotary part, which all
    /// heads share: `[rank + rope, hidden]`.
    pub kv_a: Linear,
    /// RMS norm of the latent, `[rank]`.
    pub kv_a_norm: Weight,
    /// The projection from the latent to the other part of the key, then to the value, of each
    /// head: `[heads · (nope + value), rank]`.
    pub kv_b: Linear,
    /// Output projection, `[hidden, heads · value]`.
    pub o: Linear,
    /// Width of the part of a head's queries and keys that isn't rotated.
    pub nope: usize,
    /// Width of the part of a head's queries and keys that is rotated.
    pub rope: usize,
    /// Width of a head's values.
    pub value: usize,
    /// The factor of attention scores before the softmax.
    pub scale: f64,
    /// ε of the norms of the latents, which can differ from that of other norms.
    pub norm_eps: f64,
}

impl LatentAttention {
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let Self { q_latent, q, kv_a, kv_a_norm, kv_b, o, .. } = self;
        let mut weights = Vec::new();
        if let Some(QueryLatent { projection, norm }) = q_latent {
            weights.extend(projection.weights_mut().chain([norm]));
        }
        weights.extend([q, kv_a, kv_b, o].into_iter().flat_map(Linear::weights_mut));
        weights.push(kv_a_norm);
        weights
    }

    /// Whether the factor of scores isn't 1 / √(nope + rope), because of yarn's `mscale_all_dim`.
    pub fn scales_scores(&self) -> bool {
        (self.scale * ((self.nope + self.rope) as f64).sqrt() - 1.0).abs() > 1e-9
    }

    /// Width of the latent of keys and values.
    pub fn kv_rank(&self) -> usize {
        self.kv_a_norm.elements()
    }

    /// Width of the latent of queries; None if they are computed from the hidden state.
    pub fn q_rank(&self) -> Option<usize> {
        self.q_latent.as_ref().map(|latent| latent.norm.elements())
    }
}
