//! `selftest`: compares every pass on built-in models with golden outputs, on any device, from the
//! binary alone.

mod families;
mod goldens;
mod gptq;
mod quantizing;
mod reducing;
mod training;

use candle_core::{DType, Device, Tensor};
use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use serde::Serialize;
use serde_json::Value;

use crate::progress::{Progress, Unit};

use goldens::{Goldens, HAS_BUILT_IN_MOE, folders};

/// One line of the table.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Check {
    /// The name of the check.
    pub name: String,
    /// Models, options or tensors that were compared.
    pub cases: usize,
    /// Largest error.
    pub error: f64,
    /// The largest error that is accepted.
    pub tolerance: f64,
    /// Choices that are not the reference's: tokens sent to other experts, other experts kept or
    /// grouped; none is allowed.
    pub differing: usize,
}

impl Check {
    /// Whether the error is within the tolerance. NaN is not.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance && self.differing == 0 && self.cases > 0
    }
}

/// Runs every check on the device of `compute`.
///
/// # Errors
/// [`Kind::Io`] where the goldens can't be unpacked; errors of computing.
pub fn selftest(compute: &Compute, progress: &dyn Progress) -> Result<Vec<Check>> {
    let goldens = Goldens::unpack()?;
    let families = folders(&goldens.path("families"))?;
    let of_moe = if HAS_BUILT_IN_MOE { ON_BUILT_IN_MOE } else { &[] };
    let others = of_moe.iter().chain(OTHERS);
    progress.stage("selftest", (families.len() + others.clone().count()) as u64, Unit::Parts);
    let mut checks = Vec::new();
    for family in families {
        checks.extend(families::checks(&family, compute)?);
        progress.advance(1);
    }
    for checks_of in others {
        checks.extend(checks_of(&goldens, compute)?);
        progress.advance(1);
    }
    goldens.remove()?;
    Ok(checks)
}

/// Compares our own operations on the device with their references, which a CPU runs.
fn kernels(_: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    if compute.device.is_cpu() {
        return Ok(Vec::new());
    }
    let found = moe_math::kernels::check(&compute.device).map_err(|e| numeric("the kernels", e))?;
    // Sums in another order differ by this much.
    Ok(found
        .into_iter()
        .map(|(name, error)| check(format!("kernel {name}"), 1e-4, &[(error, 0)]))
        .collect())
}

/// A function that runs some of the checks.
type Checks = fn(&Goldens, &Compute) -> Result<Vec<Check>>;

/// Checks on the built-in MoE, for builds with the feature `goldens`.
const ON_BUILT_IN_MOE: &[Checks] = &[reducing::checks, gptq::checks];
const OTHERS: &[Checks] = &[quantizing::checks, training::checks, kernels];

/// The checks that this build leaves out, and the remedy; None where it runs all.
pub const UNCHECKED: Option<&str> = if HAS_BUILT_IN_MOE {
    None
} else {
    Some(
        "observe, prune, merge and GPTQ are not checked: this build lacks the model for it (13 MB); \
         build with --features goldens in a checkout, or install the wheel",
    )
};

/// The error of a case, and the number of choices that differ.
type CaseError = (f64, usize);

fn check(name: String, tolerance: f64, outcomes: &[CaseError]) -> Check {
    let larger = |max: f64, error: f64| if error > max || error.is_nan() { error } else { max };
    Check {
        name,
        cases: outcomes.len(),
        error: outcomes.iter().map(|(error, _)| *error).fold(0.0, larger),
        tolerance,
        differing: outcomes.iter().map(|(_, differing)| differing).sum(),
    }
}

fn numeric(what: &str, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot check {what}")).source(error)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let read = || tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
    read().map_err(|e| numeric("these values", e))
}

/// The largest |a − b|, in units of the largest |b|.
fn apart(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |most, b| most.max(b.abs()));
    let larger = |most: f64, apart: f64| if apart > most || apart.is_nan() { apart } else { most };
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, larger)
}

/// Deserializes a JSON value of a golden.
fn golden<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value)
        .map_err(|e| Error::new(Kind::Malformed, format!("this golden says something else: {e}")))
}
