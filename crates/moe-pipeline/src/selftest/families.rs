//! Compares forward passes and upcyclings of tiny models of every family with transformers.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::{Batch, Silent, logit_difference, parity};
use moe_math::Compute;
use moe_model::{Kind, Model};
use moe_passes::{Identity, Pass, Sources, UpcycleOptions};

use super::goldens::folders;
use super::{CaseError, Check, check};

/// Maximum error of a logit against transformers; the standard deviation of logits is about 1.
const PARITY: f64 = 1e-4;
/// Maximum difference of logits between a model and its upcycling, in units of the largest logit.
const IDENTITY: f64 = 1e-4;

/// Checks of the family whose goldens are in `dir`.
pub fn checks(dir: &Path, compute: &Compute) -> Result<Vec<Check>> {
    let family = dir.file_name().unwrap_or_default().to_string_lossy();
    let cases = folders(dir)?;
    let found = cases.iter().map(|case| forward(case, compute)).collect::<Result<Vec<_>>>()?;
    let mut checks = vec![check(format!("forward {family}"), PARITY, &found)];
    let upcycled = cases
        .iter()
        .filter_map(|case| upcycle(case, compute).transpose())
        .collect::<Result<Vec<_>>>()?;
    if !upcycled.is_empty() {
        checks.push(check(format!("upcycle {family}"), IDENTITY, &upcycled));
    }
    Ok(checks)
}

fn forward(case: &Path, compute: &Compute) -> Result<CaseError> {
    let model = Model::open(&case.join("model"))?;
    let found =
        parity(&model, &case.join("tokens.json"), &case.join("reference.safetensors"), compute)?;
    Ok((f64::from(found.logits.max(found.weights)), found.misrouted))
}

/// `None` for models that aren't dense, or that no MoE family can hold.
fn upcycle(case: &Path, compute: &Compute) -> Result<Option<CaseError>> {
    let dense = Model::open(&case.join("model"))?;
    if dense.family.upcycles_to.is_empty() {
        return Ok(None);
    }
    let sources = Sources::new(&dense, compute);
    let planned = UpcycleOptions::copies(5, 2).plan(&sources);
    let planned = planned.and_then(|plan| {
        let planned = plan.planned;
        Ok((planned.model.declare()?.reread()?, Identity::of(&planned.effects)))
    });
    let (moe, identity) = match planned {
        Ok(planned) => planned,
        Err(error) if error.kind() == Kind::Unsupported => return Ok(None),
        Err(error) => return Err(error),
    };
    let batch = Batch::from_json(&case.join("tokens.json"))?;
    let difference = logit_difference(&dense, &moe, &batch, compute, &mut Silent)?;
    let error = difference.max_logit_difference / difference.max_logit.max(1.0);
    // A plan that doesn't promise an exact copy fails the check.
    Ok(Some((if identity == Identity::Exact { error } else { f64::NAN }, 0)))
}
