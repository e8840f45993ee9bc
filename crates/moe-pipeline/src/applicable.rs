//! Finds the passes that accept a model: each is asked for a plan and for the names that it would
//! write, which needs no weights.

use moe_math::Compute;
use moe_model::{Error, Kind, Model, Result};
use moe_passes::{PASSES, PassInfo, ReportKind, Sources};
use serde::Serialize;

/// Whether a pass accepts the model.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Applicable {
    /// The pass.
    #[schemars(with = "String")]
    pub pass: &'static PassInfo,
    /// Families that its result can have, the default first; empty if the pass refuses the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gives: Vec<String>,
    /// The reason why it refuses the model, and a remedy. None if it accepts the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuses: Option<String>,
}

/// The answer of each pass for `model`, with as few options as it needs.
pub(crate) fn applicable(model: &Model) -> Vec<Applicable> {
    PASSES.into_iter().map(|info| asked(info, model)).collect()
}

/// Whether `model` can be trained further.
pub(crate) fn heals(model: &Model) -> bool {
    PASSES
        .into_iter()
        .filter(|info| info.report == ReportKind::Training)
        .any(|info| asked(info, model).refuses.is_none())
}

/// Asks `info`'s pass for a plan, and for one more with each family that it can be told to make.
fn asked(info: &'static PassInfo, model: &Model) -> Applicable {
    let (mut gives, refuses) = match planned(info, model, None) {
        Ok(family) => (vec![family], None),
        Err(error) => (Vec::new(), Some(error.briefly())),
    };
    if refuses.is_none() {
        for target in (info.targets)(model.family) {
            gives.extend(
                planned(info, model, Some(target)).ok().filter(|family| !gives.contains(family)),
            );
        }
    }
    Applicable { pass: info, gives, refuses }
}

/// The family of the model that the pass would make.
fn planned(info: &PassInfo, model: &Model, target: Option<&str>) -> Result<String> {
    let wrong = |e| Error::new(Kind::Usage, "these are not the options of this pass").source(e);
    let mut options: toml::Table = info.least_options.parse().map_err(wrong)?;
    options.extend(target.map(|target| ("target".to_owned(), target.into())));
    let pass = info.options.from_table(options).map_err(wrong)?;
    let plan = pass.plan(&Sources::new(model, &Compute::cpu()))?;
    Ok(plan.planned.model.declare()?.reread()?.family.model_type.clone())
}
