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
    let warnings = [
        surveyed_on_the_base(options).map(str::to_owned),
        without_gradient(options, normalize),
        zero_router(options).map(str::to_owned),
        (scales.routed.gate_and_up != 1.0).then(|| SQUARED_RELU.to_owned()),
        neurons_at_random(options).map(str::to_owned),
        given_twice(sources),
        lost_noise(options, sources.model),
    ];
    let others = sources.others.iter().filter_map(|other| other_positions(sources.model, other));
    warnings.into_iter().flatten().chain(others).collect()
}

/// The warning where the scale is on gate and up projections, too.
const SQUARED_RELU: &str =
    "this scale placement keeps the function of squared-ReLU networks only, and changes this one";

/// A warning about routers that are made of another model's states than they will see; else None.
fn surveyed_on_the_base(options: &UpcycleOptions) -> Option<&'static str> {
    let what =
        "routers are made of what the base sees on text, not of what the mean of the models sees";
    (options.rest == Rest::Average && options.router.is_surveyed()).then_some(what)
}

/// A warning about routers that training can't change; else None.
fn without_gradient(options: &UpcycleOptions, normalize: bool) -> Option<String> {
    if options.top_k != options.granularity || !normalize || options.router_rows() <= 1 {
        return None;
    }
    let what = match options.granularity {
        1 => "with top-k 1 and normalised routing weights every weight is 1",
        _ => {
            "with one group of shards a token and normalised routing weights all weights are equal"
        }
    };
    Some(format!("{what}, so the router gets no gradient: train with a larger --top-k"))
}

/// A warning about routers without any preference; else None.
fn zero_router(options: &UpcycleOptions) -> Option<&'static str> {
    let is_zero = options.router_std() == 0.0 && !options.router.is_surveyed();
    let what = "an exactly zero router sends every token to the same experts";
    (is_zero && options.router_rows() > 1).then_some(what)
}

/// A warning about a partition that routers know nothing of; else None.
fn neurons_at_random(options: &UpcycleOptions) -> Option<&'static str> {
    let drops = options.init == Init::Partition && options.top_k < options.experts;
    let what = "a router that knows nothing of the partition drops neurons at random";
    (drops && !options.has_surveyed_router()).then_some(what)
}

/// A warning about a model whose positions or norms are not those of the base; else None.
fn other_positions(base: &Model, other: &Model) -> Option<String> {
    if rope(other) == rope(base) && other.norm_eps == base.norm_eps {
        return None;
    }
    let file = other.config_file.display();
    let what = "has another rotary embedding or norm ε than the base, whose are kept";
    Some(format!("{file} {what}"))
}

/// The settings of the rotary embedding in the config of `model`.
fn rope(model: &Model) -> String {
    let keys = ["rope_theta", "rope_scaling", "rope_parameters"];
    serde_json::to_string(&keys.map(|key| model.config.get(key))).unwrap_or_default()
}

/// A warning about models that are given as experts more than once, under whatever names; else
/// None.
fn given_twice(sources: &Sources<'_>) -> Option<String> {
    let firsts = sources.first_alike.get(1..)?;
    let (second, first) = firsts
        .iter()
        .enumerate()
        .find_map(|(at, first)| Some((at, firsts[..at].iter().position(|f| f == first)?)))?;
    let [first, second] = [first, second].map(|at| folder_of(&sources.others[at]));
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

fn folder_of(model: &Model) -> String {
    model.config_file.parent().unwrap_or(Path::new("")).display().to_string()
}
