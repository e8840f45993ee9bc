//! Which passes take a model: each is asked for a plan and for the names of what it would write, which needs no weights.

use moe_math::Compute;
use moe_model::{Error, Kind, Model, Result};
use moe_passes::{
    DistillOptions, HealOptions, MergeOptions, Pass, PruneOptions, QuantizeOptions, Sources, UpcycleOptions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What a pass says to a model.
#[derive(Debug, Clone, Serialize)]
pub struct Applicable {
    /// The pass.
    pub pass: &'static str,
    /// Families that its result can have, the one that it has unless told otherwise first; none where the pass refuses the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gives: Vec<String>,
    /// Why it refuses the model, and what could be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuses: Option<String>,
}

/// What each pass says to `model`, with the fewest options that it needs.
pub(crate) fn applicable(model: &Model) -> Vec<Applicable> {
    // A plan opens no text.
    let text = "text";
    let family = &model.family;
    vec![
        asked::<UpcycleOptions>(UpcycleOptions::NAME, model, json!({ "experts": 2, "top-k": 1 }), &family.upcycles_to),
        asked::<PruneOptions>(PruneOptions::NAME, model, json!({ "keep": 1.0, "data": [text] }), &[]),
        asked::<MergeOptions>(MergeOptions::NAME, model, json!({ "keep": 1.0, "data": [text] }), &[]),
        asked::<QuantizeOptions>(QuantizeOptions::NAME, model, json!({ "scheme": "fp8-block" }), &[]),
        asked::<DistillOptions>(DistillOptions::NAME, model, json!({ "data": [text] }), &family.distills_to),
        healing(model),
    ]
}

/// What `heal` says to `model`.
pub(crate) fn healing(model: &Model) -> Applicable {
    asked::<HealOptions>(HealOptions::NAME, model, json!({ "train": ["all"], "data": ["text"] }), &[])
}

/// Asks for a plan with `options`, and with each of `targets` where there is one.
fn asked<P: Pass + DeserializeOwned>(
    pass: &'static str,
    model: &Model,
    mut options: Value,
    targets: &[String],
) -> Applicable {
    let (mut gives, refuses) = match planned::<P>(model, &options) {
        Ok(family) => (vec![family], None),
        Err(error) => (Vec::new(), Some(error.briefly())),
    };
    if refuses.is_none() {
        for target in targets {
            options["target"] = target.as_str().into();
            gives.extend(planned::<P>(model, &options).ok().filter(|family| !gives.contains(family)));
        }
    }
    Applicable { pass, gives, refuses }
}

/// The family of what the pass would make.
fn planned<P: Pass + DeserializeOwned>(model: &Model, options: &Value) -> Result<String> {
    let pass = P::deserialize(options)
        .map_err(|e| Error::new(Kind::Usage, "these are not the options of this pass").source(e))?;
    let plan = pass.plan(&Sources::new(model, &Compute::cpu()))?;
    Ok(plan.model.declare()?.reread()?.family.model_type.clone())
}
