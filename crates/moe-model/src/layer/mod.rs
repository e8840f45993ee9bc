//! One decoder layer, typed.

mod attention;
mod linear;
mod mixture;
mod router;

use crate::weight::Weight;

pub use self::attention::{Attention, GroupedAttention, LatentAttention, QkNorm, QueryLatent};
pub use self::linear::Linear;
pub use self::mixture::{Expert, Moe, SharedExpert};
pub use self::router::{GroupScore, Groups, Router, RouterPrecision, Scoring};

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
