//! One decoder layer, typed.

mod attention;
mod linear;
mod mixture;
mod router;

use crate::weight::Weight;

pub use self::attention::{Attention, GroupedAttention, LatentAttention, QkNorm, QueryLatent};
pub use self::linear::Linear;
pub use self::mixture::{Expert, Moe, SharedExpert};
pub use self::router::{Router, RouterPrecision};

/// A layer's feed-forward block.
#[derive(Debug, Clone)]
pub enum Ffn {
    /// One network for every token.
    Dense(Box<Expert>),
    /// A mixture of routed experts.
    Moe(Box<Moe>),
}

impl Ffn {
    /// Returns the network of a dense block; None for a mixture.
    pub fn dense(&self) -> Option<&Expert> {
        match self {
            Ffn::Dense(expert) => Some(expert),
            Ffn::Moe(_) => None,
        }
    }

    /// Returns the mixture; None for a dense block.
    pub fn moe(&self) -> Option<&Moe> {
        match self {
            Ffn::Moe(moe) => Some(moe),
            Ffn::Dense(_) => None,
        }
    }

    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        match self {
            Ffn::Dense(expert) => expert.weights_mut().collect(),
            Ffn::Moe(moe) => moe.weights_mut(),
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
    /// Every weight of the layer.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let mut weights = vec![&mut self.attention_norm, &mut self.ffn_norm];
        weights.extend(self.attention.weights_mut());
        weights.extend(self.ffn.weights_mut());
        weights
    }
}
