//! `selftest`: every pass on built-in models against golden outputs, on any device, from the binary
//! alone.

mod families;
mod quantizing;
mod reducing;
mod training;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use include_dir::{Dir, include_dir};
use moe_checkpoint::{Error, Kind, Result, TemporaryDir};
use moe_math::Compute;
use serde::Serialize;
use serde_json::Value;

use crate::progress::{Progress, Unit};

/// What other implementations computed, by the folders of `golden/`: tiny checkpoints of every
/// family, the built-in MoE, and what they are run on.
static GOLDENS: [(&str, Dir<'_>); 5] = [
    ("families", include_dir!("$CARGO_MANIFEST_DIR/../../golden/families")),
    ("models/moe", include_dir!("$CARGO_MANIFEST_DIR/../../golden/models/moe")),
    ("pruning", include_dir!("$CARGO_MANIFEST_DIR/../../golden/pruning")),
    ("quantize", include_dir!("$CARGO_MANIFEST_DIR/../../golden/quantize")),
    ("training", include_dir!("$CARGO_MANIFEST_DIR/../../golden/training")),
];

/// What golden/pruning runs pruned models on.
static TOKENS: &str = include_str!("../../../../golden/models/moe.tokens.json");

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was computed.
    pub name: String,
    /// Models, options or tensors that were compared.
    pub cases: usize,
    /// Largest error.
    pub error: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// Choices that are not the reference's: tokens sent to other experts, other experts kept or
    /// grouped; none is allowed.
    pub differing: usize,
}

impl Check {
    /// Whether the error is within the tolerance. An error that is no number is not.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance && self.differing == 0 && self.cases > 0
    }
}

/// Runs every check on the device of `compute`.
///
/// # Errors
/// [`Kind::Io`] where the goldens can't be unpacked; what computing returns.
pub fn selftest(compute: &Compute, progress: &dyn Progress) -> Result<Vec<Check>> {
    let goldens = Goldens::unpack()?;
    let families = folders(&goldens.path("families"))?;
    let others: [Checks; 4] = [reducing::checks, quantizing::checks, training::checks, kernels];
    progress.stage("selftest", (families.len() + others.len()) as u64, Unit::Parts);
    let mut checks = Vec::new();
    for family in families {
        checks.extend(families::checks(&family, compute)?);
        progress.advance(1);
    }
    for of in others {
        checks.extend(of(&goldens, compute)?);
        progress.advance(1);
    }
    goldens.remove()?;
    Ok(checks)
}

/// Operations of our own on the device beside their references, which are what a CPU runs.
fn kernels(_: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    if compute.device.is_cpu() {
        return Ok(Vec::new());
    }
    let found = moe_math::kernels::check(&compute.device).map_err(|e| numeric("the kernels", e))?;
    // Sums in other orders differ by so much.
    Ok(found
        .into_iter()
        .map(|(name, error)| check(format!("kernel {name}"), 1e-4, &[(error, 0)]))
        .collect())
}

/// Checks of a kind.
type Checks = fn(&Goldens, &Compute) -> Result<Vec<Check>>;

/// Error of a case, and choices that differ.
type Outcome = (f64, usize);

fn check(name: String, tolerance: f64, outcomes: &[Outcome]) -> Check {
    let larger = |max: f64, error: f64| if error > max || error.is_nan() { error } else { max };
    Check {
        name,
        cases: outcomes.len(),
        error: outcomes.iter().map(|(error, _)| *error).fold(0.0, larger),
        tolerance,
        differing: outcomes.iter().map(|(_, differing)| differing).sum(),
    }
}

/// The goldens, unpacked.
struct Goldens(TemporaryDir);

impl Goldens {
    fn unpack() -> Result<Self> {
        let dir = TemporaryDir::made(&std::env::temp_dir(), || Ok(tempfile::tempdir()?.keep()))?;
        for (folder, files) in &GOLDENS {
            let path = dir.path().join(folder);
            let unpack = fs::create_dir_all(&path).and_then(|()| files.extract(&path));
            unpack.map_err(|e| Error::io("cannot unpack the goldens", path, e))?;
        }
        let path = dir.path().join("models/moe.tokens.json");
        fs::write(&path, TOKENS).map_err(|e| Error::io("cannot unpack the goldens", path, e))?;
        Ok(Self(dir))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn json(&self, path: &str) -> Result<Value> {
        moe_checkpoint::json::read(&self.path(path))
    }

    fn tensors(&self, path: &str) -> Result<HashMap<String, Tensor>> {
        let path = self.path(path);
        candle_core::safetensors::load(&path, &Device::Cpu).map_err(|e| {
            Error::new(Kind::Malformed, "cannot read this golden").source(e).file(path)
        })
    }

    fn remove(self) -> Result<()> {
        self.0.remove()
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

/// A value of JSON that a golden has.
fn golden<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value)
        .map_err(|e| Error::new(Kind::Malformed, format!("this golden says something else: {e}")))
}

/// Those entries of `path` that are directories, in order.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io("cannot read this directory", path, e);
    let entries = fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut folders: Vec<_> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}
