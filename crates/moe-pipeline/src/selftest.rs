//! `selftest`: every pass on built-in models against golden outputs, on any device, from the binary alone.

use std::fs;
use std::path::Path;

use include_dir::{Dir, DirEntry, include_dir};
use moe_checkpoint::{Error, Result};
use moe_forward::{Batch, Silent, logit_difference, parity};
use moe_math::Compute;
use moe_model::{Kind, Model};
use moe_passes::{Identity, Pass, Sources, UpcycleOptions};
use serde::Serialize;

use crate::progress::{Progress, Unit};

/// Tiny checkpoints of every family with what transformers computes from them.
static GOLDENS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../golden/families");

/// Largest error of a logit against transformers; their standard deviation is about 1.
const PARITY_TOLERANCE: f64 = 1e-4;
/// Largest difference of a logit between a model and its upcycling, for each unit of the largest logit.
const IDENTITY_TOLERANCE: f64 = 1e-4;

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was computed.
    pub name: String,
    /// Checkpoints it was computed on.
    pub models: usize,
    /// Largest error.
    pub error: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// Tokens sent to other experts than in the reference; none is allowed.
    pub misrouted: usize,
}

impl Check {
    /// Whether the error is within the tolerance. An error that is no number is not.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance && self.misrouted == 0 && self.models > 0
    }
}

/// Runs every check on the device of `compute`.
///
/// # Errors
/// [`Kind::Io`] where the goldens can't be unpacked; what computing returns.
pub fn selftest(compute: &Compute, progress: &dyn Progress) -> Result<Vec<Check>> {
    let dir =
        tempfile::tempdir().map_err(|e| Error::io("cannot make a temporary directory", std::env::temp_dir(), e))?;
    GOLDENS.extract(dir.path()).map_err(|e| Error::io("cannot unpack the goldens", dir.path(), e))?;
    let families: Vec<_> = GOLDENS.dirs().map(|d| d.path()).collect();
    progress.stage("selftest", families.len() as u64, Unit::Families);
    let mut checks = Vec::new();
    for family in families {
        let cases: Vec<_> =
            GOLDENS.get_dir(family).into_iter().flat_map(Dir::entries).filter_map(DirEntry::as_dir).collect();
        let cases: Vec<_> = cases.iter().map(|case| dir.path().join(case.path())).collect();
        let name = family.display();
        let forward = cases.iter().map(|case| forward(case, compute)).collect::<Result<Vec<_>>>()?;
        checks.push(summary(format!("forward {name}"), PARITY_TOLERANCE, &forward));
        let upcycled = cases.iter().filter_map(|case| upcycle(case, compute).transpose());
        let upcycled = upcycled.collect::<Result<Vec<_>>>()?;
        if !upcycled.is_empty() {
            checks.push(summary(format!("upcycle {name}"), IDENTITY_TOLERANCE, &upcycled));
        }
        progress.advance(1);
    }
    fs::remove_dir_all(dir.path()).map_err(|e| Error::io("cannot remove the temporary directory", dir.path(), e))?;
    Ok(checks)
}

/// Error and misrouted tokens of one case.
type Outcome = (f64, usize);

fn summary(name: String, tolerance: f64, outcomes: &[Outcome]) -> Check {
    let larger = |max: f64, error: f64| if error > max || error.is_nan() { error } else { max };
    Check {
        name,
        models: outcomes.len(),
        error: outcomes.iter().map(|(error, _)| *error).fold(0.0, larger),
        tolerance,
        misrouted: outcomes.iter().map(|(_, misrouted)| misrouted).sum(),
    }
}

fn forward(case: &Path, compute: &Compute) -> Result<Outcome> {
    let model = Model::open(&case.join("model"))?;
    let found = parity(&model, &case.join("tokens.json"), &case.join("reference.safetensors"), compute)?;
    Ok((f64::from(found.logits.max(found.weights)), found.misrouted))
}

/// `None` for models that are no dense ones, or that no MoE family can hold.
fn upcycle(case: &Path, compute: &Compute) -> Result<Option<Outcome>> {
    let dense = Model::open(&case.join("model"))?;
    if dense.family.upcycles_to.is_empty() {
        return Ok(None);
    }
    let sources = Sources::new(&dense, compute);
    let planned = UpcycleOptions::copies(5, 2).plan(&sources);
    let planned = planned.and_then(|plan| Ok((plan.model.declare()?.reread()?, Identity::of(&plan.effects))));
    let (moe, identity) = match planned {
        Ok(planned) => planned,
        Err(error) if error.kind() == Kind::Unsupported => return Ok(None),
        Err(error) => return Err(error),
    };
    let batch = Batch::from_json(&case.join("tokens.json"))?;
    let difference = logit_difference(&dense, &moe, &batch, compute, &mut Silent)?;
    let error = difference.max_logit_difference / difference.max_logit.max(1.0);
    // A copy that isn't promised to be exact is an error of the plan.
    Ok(Some((if identity == Identity::Exact { error } else { f64::NAN }, 0)))
}
