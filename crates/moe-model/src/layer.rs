//! One decoder layer, typed.

use crate::weight::Weight;

/// A linear map `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Weight>,
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

/// Grouped-query attention.
#[derive(Debug, Clone)]
pub struct Attention {
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
}

/// Softmax over the experts' logits, then top-k: rule A of families.md.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, hidden]`.
    pub weight: Weight,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Whether the selected probabilities are divided by their sum.
    pub normalize: bool,
}

/// An expert that every token goes through, scaled by `σ(gate · x)`.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// Its feed-forward network.
    pub expert: Expert,
    /// `[1, hidden]`.
    pub gate: Weight,
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
