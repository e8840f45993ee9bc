//! Counts the operations of a forward pass that its mathematics require.

use moe_math::meter::Work;
use moe_model::{Expert, Ffn, Layer, Model};

/// Floating point operations of a forward pass without head.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ForwardWork {
    /// Operations of attention.
    pub attention: f64,
    /// Operations of feed-forward blocks, routers included.
    pub networks: f64,
}

impl ForwardWork {
    /// Counts the operations of `tokens` tokens in sequences of `sequence` tokens through all
    /// layers of `model`.
    pub fn of(model: &Model, tokens: usize, sequence: usize) -> Self {
        let sequence = sequence.clamp(1, tokens.max(1));
        let spans = tokens.div_ceil(sequence);
        let pairs = (spans * sequence * sequence / 2) as f64;
        let mut sum = Self::default();
        for layer in &model.layers {
            sum.attention += attention_flops(model, layer, tokens, pairs);
            sum.networks += Work::products(tokens, active_weights(&layer.ffn)).flops;
        }
        sum
    }

    /// Returns the sum.
    pub fn total(self) -> f64 {
        self.attention + self.networks
    }
}

fn elements(network: &Expert) -> usize {
    network.linears().iter().map(|linear| linear.weight.elements()).sum()
}

/// Counts the operations of projections for `tokens` tokens, and of scores and weighted sums for
/// `pairs` pairs of a query and a key.
pub(crate) fn attention_flops(model: &Model, layer: &Layer, tokens: usize, pairs: f64) -> f64 {
    let projections: usize =
        layer.attention.linears().iter().map(|linear| linear.weight.elements()).sum();
    Work::products(tokens, projections).flops + 4.0 * pairs * (model.heads * model.head_dim) as f64
}

/// Counts the weights of `ffn` that one token uses.
fn active_weights(ffn: &Ffn) -> usize {
    match ffn {
        Ffn::Dense(network) => elements(network),
        Ffn::Moe(moe) => {
            let routed = moe.router.top_k * moe.experts.first().map_or(0, elements);
            let shared = moe.shared.as_ref().map_or(0, |shared| elements(&shared.expert));
            routed + shared + moe.router.weight.elements()
        }
    }
}
