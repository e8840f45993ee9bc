//! The effects of options on the dense model's function.

use super::scales::Scales;
use super::{Init, LayerChoice, Rest, RouterInit, UpcycleOptions};
use crate::pass::{Effect, Kept};

/// Below this standard deviation, rows of shards give equal probabilities in f32 on some tokens.
const LEAST_GROUP_STD: f64 = 1e-4;

/// The effects of the options on the function, one by one.
pub(super) fn effects(
    options: &UpcycleOptions,
    scales: Scales,
    normalize: bool,
    others_differ: bool,
) -> Vec<Effect> {
    let mut effects = vec![experts(options)];
    if others_differ {
        effects.push(Effect::new("--expert-model", Kept::No, "experts come from different models"));
    } else if !options.models.is_empty() {
        effects.push(Effect::new(
            "--expert-model",
            Kept::Exactly,
            "all are the model that is upcycled",
        ));
    }
    if options.rest == Rest::Average && others_differ {
        effects.push(Effect::new(
            "--rest average",
            Kept::No,
            "everything but the experts is the mean of the models",
        ));
    }
    if options.has_noise() {
        let why = format!("noise of standard deviation {} on experts", options.noise_std);
        effects.push(Effect::new("--noise-std", Kept::No, why));
    }
    effects.push(scale(scales));
    effects.push(router(options, normalize));
    if options.layers != LayerChoice::All {
        effects.push(Effect::new("--layers", Kept::Exactly, "the other layers stay as they are"));
    }
    effects
}

fn experts(options: &UpcycleOptions) -> Effect {
    let UpcycleOptions { granularity, experts, top_k, .. } = *options;
    match options.init {
        Init::Drop if options.drop_fraction > 0.0 => {
            let why = format!(
                "a share {} of every expert's neurons is reinitialized",
                options.drop_fraction
            );
            Effect::new("--init drop", Kept::No, why)
        }
        Init::Partition if top_k < experts => Effect::new(
            "--init partition",
            Kept::No,
            "a token uses the neurons of its experts only",
        ),
        Init::Partition => {
            Effect::new("--init partition", Kept::Exactly, "every token uses all neurons")
        }
        _ if granularity > 1 => {
            let why = "the shards of a network are chosen together and add up to it";
            Effect::new(format!("--granularity {granularity}"), Kept::Exactly, why)
        }
        _ => Effect::new("--init copy", Kept::Exactly, "every expert is the dense network"),
    }
}

fn scale(scales: Scales) -> Effect {
    const OPTION: &str = "--scale-placement";
    if scales.routed.gate_and_up != 1.0 {
        let why = format!(
            "gate and up projections are scaled by {:.6}, which SiLU doesn't undo",
            scales.routed.gate_and_up
        );
        return Effect::new(OPTION, Kept::No, why);
    }
    let factors = [scales.routed.down, scales.shared.map_or(1.0, |s| s.down)];
    match factors.into_iter().find(|x| *x != 0.0 && x.log2().fract() != 0.0) {
        None => Effect::new(
            OPTION,
            Kept::Exactly,
            "down projections are scaled by powers of two, which is exact, or not at all",
        ),
        Some(factor) => {
            let why = format!(
                "down projections are scaled by {factor}, which rounds in the stored dtype"
            );
            Effect::new(OPTION, Kept::Approximately, why)
        }
    }
}

fn router(options: &UpcycleOptions, normalize: bool) -> Effect {
    let std = options.router_std();
    let (is_zero, all_active) =
        (options.router == RouterInit::Zeros, options.top_k == options.experts);
    let effect = |kept, why: &str| Effect::new("--router", kept, why);
    let near_zero =
        format!("a router of standard deviation {std:e} leaves routing weights close to 1/experts");
    if options.init == Init::Partition && options.experts > 1 {
        return match is_zero {
            true => effect(Kept::Approximately, &near_zero),
            false => effect(
                Kept::No,
                "routing weights differ, and with them the neurons' shares; --router zeros evens them out",
            ),
        };
    }
    if !normalize && !all_active {
        return match is_zero {
            true => effect(Kept::Approximately, &near_zero),
            false => effect(
                Kept::No,
                "routing weights are not normalised, so their sum depends on the token; --router zeros keeps the function",
            ),
        };
    }
    if options.granularity > 1
        && !all_active
        && !options.router.is_surveyed()
        && std < LEAST_GROUP_STD
    {
        let why = format!(
            "rows of standard deviation {std:e} tie in f32 now and then, which mixes shards of two groups"
        );
        return effect(Kept::Approximately, &why);
    }
    effect(Kept::Exactly, "routing weights sum to one, whatever the router")
}
