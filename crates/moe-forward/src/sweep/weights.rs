//! The weights that a layer's states depend on, to find the one that made them not finite.

use moe_model::{Ffn, Layer, Linear, Weight};

pub(crate) fn weights_of(layer: &Layer) -> Vec<&Weight> {
    let mut weights = attention_weights(layer);
    weights.extend(network_weights(layer));
    weights
}

/// Returns the weights that the input of the feed-forward network depends on.
pub(super) fn attention_weights(layer: &Layer) -> Vec<&Weight> {
    let mut weights = vec![&layer.attention_norm, &layer.ffn_norm];
    weights.extend(layer.attention.norms());
    weights.extend(layer.attention.linears().into_iter().flat_map(Linear::weights));
    weights
}

pub(super) fn network_weights(layer: &Layer) -> Vec<&Weight> {
    let (mut weights, mut linears) = (Vec::new(), Vec::new());
    match &layer.ffn {
        Ffn::Dense(expert) => linears.extend(expert.linears()),
        Ffn::Moe(moe) => {
            weights.extend(moe.router.weights());
            linears.extend(moe.experts.iter().flat_map(|e| e.linears()));
            if let Some(shared) = &moe.shared {
                weights.extend(&shared.gate);
                linears.extend(shared.expert.linears());
            }
        }
    }
    weights.extend(linears.into_iter().flat_map(Linear::weights));
    weights
}
