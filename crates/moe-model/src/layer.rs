//! One decoder layer, typed.

use serde::{Deserialize, Serialize};

use crate::weight::Weight;

/// A linear map `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Weight>,
}

impl Linear {
    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}

/// Normalisation of queries and keys before the rotary embedding.
#[derive(Debug, Clone)]
pub enum QkNorm {
    /// Over each head; both weights are `[head_dim]`.
    PerHead {
        /// Query norm.
        q: Weight,
        /// Key norm.
        k: Weight,
    },
    /// Over all heads at once; `[heads · head_dim]` and `[kv_heads · head_dim]`.
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
    /// Queries in groups that share keys and values.
    Grouped(Box<GroupedAttention>),
    /// Keys and values, and maybe queries, by way of narrow latents.
    Latent(Box<LatentAttention>),
}

impl Attention {
    /// A token attends to this many tokens up to and including itself; `None` means all.
    pub fn window(&self) -> Option<usize> {
        match self {
            Attention::Grouped(attention) => attention.window,
            Attention::Latent(_) => None,
        }
    }

    /// Grouped-query attention, if it is that.
    pub fn grouped(&self) -> Option<&GroupedAttention> {
        match self {
            Attention::Grouped(attention) => Some(attention),
            Attention::Latent(_) => None,
        }
    }

    /// Latent attention, if it is that.
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

    /// For each of [`Attention::linears`], the first of them that reads the same input.
    pub fn inputs(&self) -> Vec<usize> {
        match self {
            Attention::Grouped(_) => vec![0, 0, 0, 3],
            Attention::Latent(a) if a.q_latent.is_some() => vec![0, 1, 0, 3, 4],
            Attention::Latent(_) => vec![0, 0, 2, 3],
        }
    }

    /// The weights of the norms inside it.
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

    /// The weights of the norms inside it, in the order of [`Attention::norms`].
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
    /// Normalisation of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Projected queries, keys and values are clamped to ± this.
    pub clip: Option<f64>,
    /// A token attends to this many tokens up to and including itself; `None` means all.
    pub window: Option<usize>,
}

/// The latent that latent attention may make queries of: `norm(projection x)`.
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
    /// What queries are made of, if not of the hidden state.
    pub q_latent: Option<QueryLatent>,
    /// Queries, `[heads · (nope + rope), rank or hidden]`.
    pub q: Linear,
    /// The latent of keys and values, then the key's rotary part, which all heads share: `[rank +
    /// rope, hidden]`.
    pub kv_a: Linear,
    /// RMS norm of the latent, `[rank]`.
    pub kv_a_norm: Weight,
    /// Of each head the key's other part, then the value: `[heads · (nope + value), rank]`.
    pub kv_b: Linear,
    /// Output projection, `[hidden, heads · value]`.
    pub o: Linear,
    /// Width of a head's part of queries and keys that has no position.
    pub nope: usize,
    /// Width of the part that is rotated.
    pub rope: usize,
    /// Width of a head's values.
    pub value: usize,
    /// What scores are multiplied by before the softmax.
    pub scale: f64,
    /// ε of the norms of the latents, whatever the other norms have.
    pub norm_eps: f64,
}

impl LatentAttention {
    /// Whether scores are scaled by other than 1 / √(nope + rope), as yarn's `mscale_all_dim` has
    /// it.
    pub fn scales_scores(&self) -> bool {
        (self.scale * ((self.nope + self.rope) as f64).sqrt() - 1.0).abs() > 1e-9
    }

    /// Width of the latent of keys and values.
    pub fn kv_rank(&self) -> usize {
        self.kv_a_norm.elements()
    }

    /// Width of the latent of queries, where they have one.
    pub fn q_rank(&self) -> Option<usize> {
        self.q_latent.as_ref().map(|latent| latent.norm.elements())
    }
}

/// A gated feed-forward network, `down(act(gate x) ∘ (up x))`: a dense layer's block or one expert.
#[derive(Debug, Clone)]
pub struct Expert {
    /// `[width, hidden]`.
    pub gate: Linear,
    /// `[width, hidden]`.
    pub up: Linear,
    /// `[hidden, width]`.
    pub down: Linear,
}

impl Expert {
    /// Intermediate width in neurons.
    pub fn width(&self) -> usize {
        self.gate.weight.shape()[0]
    }

    /// Whether both are made of the same bytes.
    pub fn same_source(&self, other: &Self) -> bool {
        let same = |(a, b): (&Linear, &Linear)| {
            let biases = match (&a.bias, &b.bias) {
                (Some(a), Some(b)) => a.same_source(b),
                (None, None) => true,
                _ => false,
            };
            biases && a.weight.same_source(&b.weight)
        };
        self.linears().into_iter().zip(other.linears()).all(same)
    }

    /// The three projections.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Elements of their matrices.
    pub fn elements(&self) -> usize {
        self.linears().iter().map(|linear| linear.weight.elements()).sum()
    }

    fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        [&mut self.gate, &mut self.up, &mut self.down].into_iter().flat_map(Linear::weights_mut)
    }
}

/// What makes a score of a router's logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// Softmax over the experts.
    Softmax,
    /// σ of each logit.
    Sigmoid,
}

/// What transformers computes the routers of a family in, where the model runs in the dtype that it
/// is stored in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterPrecision {
    /// f32, whatever the model runs in.
    #[default]
    F32,
    /// The model's dtype for states, weights and logits. Scores and gates are f32.
    ModelLogits,
    /// The same, and gates are rounded to the model's dtype, too.
    Model,
}

/// What makes a group's score of its experts' choice scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupScore {
    /// The largest.
    Max,
    /// The sum of the two largest.
    TopTwoSum,
}

/// Experts in groups of consecutive ones: a token goes to experts of its best groups only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// How many groups there are; always more than one.
    pub count: usize,
    /// How many of them a token can go to.
    pub kept: usize,
    /// What they are ranked by.
    pub score: GroupScore,
}

/// Which experts a token goes to: those of the best choice scores, weighed by their scores.
///
/// Rules A, B and C of families.md. The choice score is the score plus the bias; in which order
/// things happen is said once, in `moe_math::routing::Rule`.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, hidden]`.
    pub weight: Weight,
    /// `[experts]`: added to the scores for choosing, not for weighing.
    pub bias: Option<Weight>,
    /// What transformers computes it in.
    pub precision: RouterPrecision,
    /// What makes scores of the logits.
    pub scoring: Scoring,
    /// Groups of experts, where they limit the choice.
    pub groups: Option<Groups>,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Whether the selected scores are divided by their sum.
    pub normalize: bool,
    /// Multiplies the weights of the selected.
    pub scale: f64,
}

impl Router {
    /// Softmax over the experts' logits, then top-k.
    pub fn softmax(weight: Weight, top_k: usize, normalize: bool) -> Self {
        let precision = RouterPrecision::F32;
        Self {
            weight,
            bias: None,
            precision,
            scoring: Scoring::Softmax,
            groups: None,
            top_k,
            normalize,
            scale: 1.0,
        }
    }

    /// Its weights.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

/// An expert that every token goes through.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// Its feed-forward network.
    pub expert: Expert,
    /// `[1, hidden]`: its output is scaled by `σ(gate · x)`; without it, it isn't.
    pub gate: Option<Weight>,
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct Moe {
    /// Which experts a token goes to, and with which weights.
    pub router: Router,
    /// The routed experts, all of one width.
    pub experts: Vec<Expert>,
    /// The shared expert.
    pub shared: Option<SharedExpert>,
}

/// A layer's feed-forward block.
#[derive(Debug, Clone)]
pub enum Ffn {
    /// One network for every token.
    Dense(Box<Expert>),
    /// Routed experts.
    Moe(Box<Moe>),
}

impl Ffn {
    /// The one network, if it is that.
    pub fn dense(&self) -> Option<&Expert> {
        match self {
            Ffn::Dense(expert) => Some(expert),
            Ffn::Moe(_) => None,
        }
    }

    /// The mixture, if it is one.
    pub fn moe(&self) -> Option<&Moe> {
        match self {
            Ffn::Moe(moe) => Some(moe),
            Ffn::Dense(_) => None,
        }
    }
}

/// A pre-norm decoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// RMS norm before attention, `[hidden]`.
    pub attention_norm: Weight,
    /// Attention.
    pub attention: Attention,
    /// RMS norm before the feed-forward block, `[hidden]`.
    pub ffn_norm: Weight,
    /// Feed-forward block.
    pub ffn: Ffn,
}

impl Layer {
    /// Every weight.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let mut weights = vec![&mut self.attention_norm, &mut self.ffn_norm];
        match &mut self.attention {
            Attention::Grouped(attention) => {
                let GroupedAttention { q, k, v, o, qk_norm, .. } = attention.as_mut();
                weights.extend([q, k, v, o].into_iter().flat_map(Linear::weights_mut));
                if let Some(QkNorm::PerHead { q, k } | QkNorm::FullWidth { q, k }) = qk_norm {
                    weights.extend([q, k]);
                }
            }
            Attention::Latent(attention) => {
                let LatentAttention { q_latent, q, kv_a, kv_a_norm, kv_b, o, .. } =
                    attention.as_mut();
                if let Some(QueryLatent { projection, norm }) = q_latent {
                    weights.extend(projection.weights_mut().chain([norm]));
                }
                weights.extend(
                    [q, kv_a, kv_b, o].into_iter().flat_map(Linear::weights_mut).chain([kv_a_norm]),
                );
            }
        }
        match &mut self.ffn {
            Ffn::Dense(expert) => weights.extend(expert.weights_mut()),
            Ffn::Moe(moe) => {
                let Moe { router, experts, shared } = moe.as_mut();
                weights.extend(std::iter::once(&mut router.weight).chain(&mut router.bias));
                weights.extend(experts.iter_mut().flat_map(Expert::weights_mut));
                if let Some(SharedExpert { expert, gate }) = shared {
                    weights.extend(expert.weights_mut().chain(gate));
                }
            }
        }
        weights
    }
}
