//! Warnings about what a user of `upcycle` may not have meant.

use std::path::Path;

use moe_checkpoint::Dtype;
use moe_model::Model;

use super::scales::Scales;
use super::{Init, Rest, UpcycleOptions};
use crate::pass::Sources;

/// The standard deviation of weights where the config doesn't give one.
const USUAL_STD: f64 = 0.02;

/// Warnings about options that work, but may not do what is wanted.
pub(super) fn warnings(
    options: &UpcycleOptions,
    normalize: bool,
    scales: Scales,
    sources: &Sources<'_>,
) -> Vec<String> {
    let (base, others) = (sources.model, sources.others);
    let mut warnings = Vec::new();
    if options.rest == Rest::Average && options.router.is_surveyed() {
        warnings.push("routers are made of what the base sees on text, not of what the mean of the models sees".into());
    }
    let experts = options.router_rows();
    if options.top_k == options.granularity && normalize && experts > 1 {
        let what = match options.granularity {
            1 => "with top-k 1 and normalised routing weights every weight is 1",
            _ => {
                "with one group of shards a token and normalised routing weights all weights are equal"
            }
        };
        warnings
            .push(format!("{what}, so the router gets no gradient: train with a larger --top-k"));
    }
    if options.router_std() == 0.0 && !options.router.is_surveyed() && experts > 1 {
        warnings.push("an exactly zero router sends every token to the same experts".to_owned());
    }
    if scales.routed.gate_and_up != 1.0 {
        warnings
            .push("this scale placement keeps the function of squared-ReLU networks only, and changes this one".into());
    }
    if options.init == Init::Partition
        && options.top_k < options.experts
        && !options.has_surveyed_router()
    {
        warnings.push(
            "a router that knows nothing of the partition drops neurons at random".to_owned(),
        );
    }
    warnings.extend(given_twice(sources));
    warnings.extend(lost_noise(options, base));
    let rope = |m: &Model| {
        serde_json::to_string(&(
            m.config.get("rope_theta"),
            m.config.get("rope_scaling"),
            m.config.get("rope_parameters"),
        ))
        .unwrap_or_default()
    };
    for other in others {
        if rope(other) != rope(base) || other.norm_eps != base.norm_eps {
            let file = other.config_file.display();
            warnings.push(format!(
                "{file} has another rotary embedding or norm ε than the base, whose are kept"
            ));
        }
    }
    warnings
}

/// A warning about models that are given as experts more than once, under whatever names; else
/// None.
fn given_twice(sources: &Sources<'_>) -> Option<String> {
    let firsts = sources.first_alike.get(1..)?;
    let (second, first) = firsts
        .iter()
        .enumerate()
        .find_map(|(at, first)| Some((at, firsts[..at].iter().position(|f| f == first)?)))?;
    let folder = |at: usize| {
        sources.others[at].config_file.parent().unwrap_or(Path::new("")).display().to_string()
    };
    let (first, second) = (folder(first), folder(second));
    let again = if first == second {
        "is given twice".to_owned()
    } else {
        format!("is the same model as {second}")
    };
    Some(format!(
        "--expert-model {first} {again}: experts that are made of it start out as the same network"
    ))
}

/// A warning about noise that is lost in rounding weights of this size; else None.
fn lost_noise(options: &UpcycleOptions, base: &Model) -> Option<String> {
    let dtype = base.layers.iter().find_map(|layer| layer.ffn.dense())?.gate.weight.dtype();
    let digits = match dtype {
        Dtype::BF16 => 8,
        Dtype::F16 => 11,
        _ => 24,
    };
    let size = base
        .config
        .get("initializer_range")
        .and_then(serde_json::Value::as_f64)
        .unwrap_or(USUAL_STD);
    // A weight changes only where its rounding step is below the noise. Below `least`, fewer than
    // one weight in a hundred does.
    let least = size * 0.5f64.powi(digits) / 80.0;
    let std = options.noise_std;
    (options.has_noise() && std < least).then(|| {
        format!(
            "--noise-std {std:e} is lost in rounding: fewer than one in a hundred weights of about {size} in {dtype} changes, so that \
             experts stay almost the same; give {:.0e}, say",
            size / 20.0
        )
    })
}
