//! The effects of options on the dense model's function.

use super::scales::Scales;
use super::{Init, LayerChoice, Rest, RouterInit, UpcycleOptions};
use crate::pass::{Effect, Kept};

/// Below this standard deviation, rows of shards give equal probabilities in f32 on some tokens.
const MIN_GROUP_STD: f64 = 1e-4;

/// The effects of the options on the function, one by one.
pub(super) fn effects(
    options: &UpcycleOptions,
    scales: Scales,
    normalize: bool,
    others_differ: bool,
) -> Vec<Effect> {
    let effects = [
        Some(experts(options)),
        models(options, others_differ),
        (options.rest == Rest::Average && others_differ).then(|| {
            let why = "everything but the experts is the mean of the models";
            Effect::new("--rest average", Kept::No, why)
        }),
        options.has_noise().then(|| {
            let why = format!("noise of standard deviation {} on experts", options.noise_std);
            Effect::new("--noise-std", Kept::No, why)
        }),
        Some(scale(scales)),
        Some(router(options, normalize)),
        (options.layers != LayerChoice::All)
            .then(|| Effect::new("--layers", Kept::Exactly, "the other layers stay as they are")),
    ];
    effects.into_iter().flatten().collect()
}

/// The effect of taking experts from other models; None without any.
fn models(options: &UpcycleOptions, others_differ: bool) -> Option<Effect> {
    const OPTION: &str = "--expert-model";
    if others_differ {
        return Some(Effect::new(OPTION, Kept::No, "experts come from different models"));
    }
    let why = "all are the model that is upcycled";
    (!options.models.is_empty()).then(|| Effect::new(OPTION, Kept::Exactly, why))
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
    const OPTION: &str = "--router";
    let all_active = options.top_k == options.experts;
    if options.init == Init::Partition && options.experts > 1 {
        return unless_almost_zero(
            options,
            "routing weights differ, and with them the neurons' shares; --router zeros evens them out",
        );
    }
    if !normalize && !all_active {
        return unless_almost_zero(
            options,
            "routing weights are not normalised, so their sum depends on the token; --router zeros keeps the function",
        );
    }
    let std = options.router_std();
    let is_drawn = !options.router.is_surveyed();
    if options.granularity > 1 && !all_active && is_drawn && std < MIN_GROUP_STD {
        let why = format!(
            "rows of standard deviation {std:e} tie in f32 now and then, which mixes shards of two groups"
        );
        return Effect::new(OPTION, Kept::Approximately, why);
    }
    Effect::new(OPTION, Kept::Exactly, "routing weights sum to one, whatever the router")
}

/// The effect of routers that change the function, and `why`, unless they are almost zero.
fn unless_almost_zero(options: &UpcycleOptions, why: &str) -> Effect {
    if options.router != RouterInit::Zeros {
        return Effect::new("--router", Kept::No, why);
    }
    let std = options.router_std();
    let why =
        format!("a router of standard deviation {std:e} leaves routing weights close to 1/experts");
    Effect::new("--router", Kept::Approximately, why)
}
