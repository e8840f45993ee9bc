//! Replaces everything but the experts by the mean of several models (Branch-Train-MiX, 2403.07816
//! §2.2).

use moe_model::{Ffn, Linear, Model, OutputHead, Weight};

use super::experts::mean_network;
use crate::part::mean;

/// Replaces every weight of `model` by the mean of that weight in `others`, which have the same
/// shapes.
pub(super) fn average(model: &mut Model, others: &[Model]) {
    of(&mut model.embed, others, |m| &m.embed);
    of(&mut model.final_norm, others, |m| &m.final_norm);
    if let OutputHead::Own(head) = &mut model.head {
        of(head, others, Model::head_weight);
    }
    for (index, layer) in model.layers.iter_mut().enumerate() {
        of(&mut layer.attention_norm, others, |m| &m.layers[index].attention_norm);
        of(&mut layer.ffn_norm, others, |m| &m.layers[index].ffn_norm);
        for (i, projection) in layer.attention.linears_mut().into_iter().enumerate() {
            linear(projection, others, |m| m.layers[index].attention.linears()[i]);
        }
        for (i, norm) in layer.attention.norms_mut().into_iter().enumerate() {
            of(norm, others, |m| m.layers[index].attention.norms()[i]);
        }
        // Only layers that stay dense need this; the others are replaced.
        if let Ffn::Dense(ffn) = &mut layer.ffn {
            // Models with experts were refused before.
            let networks: Vec<_> =
                others.iter().filter_map(|m| m.layers[index].ffn.dense()).collect();
            **ffn = mean_network(&networks);
        }
    }
}

fn of(weight: &mut Weight, others: &[Model], pick: impl Fn(&Model) -> &Weight) {
    *weight = mean(others.iter().map(|m| pick(m).clone()).collect());
}

fn linear(linear: &mut Linear, others: &[Model], pick: impl Fn(&Model) -> &Linear) {
    of(&mut linear.weight, others, |m| &pick(m).weight);
    if let Some(bias) = &mut linear.bias {
        *bias = mean(others.iter().filter_map(|m| pick(m).bias.clone()).collect());
    }
}
