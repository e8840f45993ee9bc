//! Everything but the experts as the mean of several models (Branch-Train-MiX, 2403.07816 §2.2).

use moe_model::{Ffn, Head, Linear, Model, QkNorm, Weight};

use super::experts::mean_network;
use crate::part::mean;

/// Replaces every weight of `model` by the mean of the same weight in `others`, which have its shapes.
pub(super) fn average(model: &mut Model, others: &[Model]) {
    of(&mut model.embed, others, |m| &m.embed);
    of(&mut model.final_norm, others, |m| &m.final_norm);
    if let Head::Own(head) = &mut model.head {
        of(head, others, Model::head_weight);
    }
    for (index, layer) in model.layers.iter_mut().enumerate() {
        of(&mut layer.attention_norm, others, |m| &m.layers[index].attention_norm);
        of(&mut layer.ffn_norm, others, |m| &m.layers[index].ffn_norm);
        let attention = &mut layer.attention;
        linear(&mut attention.q, others, |m| &m.layers[index].attention.q);
        linear(&mut attention.k, others, |m| &m.layers[index].attention.k);
        linear(&mut attention.v, others, |m| &m.layers[index].attention.v);
        linear(&mut attention.o, others, |m| &m.layers[index].attention.o);
        if let Some(norm) = &mut attention.qk_norm {
            let (q, k) = qk(norm);
            let sources = |pick: fn(&QkNorm) -> &Weight| {
                let found = others.iter().filter_map(|m| m.layers[index].attention.qk_norm.as_ref());
                mean(found.map(|norm| pick(norm).clone()).collect())
            };
            (*q, *k) = (
                sources(|norm| match norm {
                    QkNorm::PerHead { q, .. } | QkNorm::FullWidth { q, .. } => q,
                }),
                sources(|norm| match norm {
                    QkNorm::PerHead { k, .. } | QkNorm::FullWidth { k, .. } => k,
                }),
            );
        }
        // Of layers that stay dense; the others are replaced.
        if let Ffn::Dense(ffn) = &mut layer.ffn {
            // Models with experts were refused.
            let networks: Vec<_> = others.iter().filter_map(|m| m.layers[index].ffn.dense()).collect();
            **ffn = mean_network(&networks);
        }
    }
}

fn qk(norm: &mut QkNorm) -> (&mut Weight, &mut Weight) {
    match norm {
        QkNorm::PerHead { q, k } | QkNorm::FullWidth { q, k } => (q, k),
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
