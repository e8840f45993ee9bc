//! `verify`: checks hashes, added files, shapes, finite values, that no expert is missing, and
//! pitfalls for loaders.

mod contents;
mod generation;
mod listed;
mod loaders;
mod notes;
mod older;
mod pointer;
mod tokenizer;

use std::path::Path;

use moe_checkpoint::{Checkpoint, Error, Kind, Manifest, Result, Stored, is_weights};
use moe_forward::float_dtype;
use moe_math::encoding::first_non_finite;
use moe_model::{Model, Verdict};
use rayon::prelude::*;
use serde::Serialize;

use crate::progress::{Progress, Unit};

pub(crate) use contents::ignored;
pub(crate) use generation::{CONFIG as GENERATION_CONFIG, RefusedConfig, refused_config};
pub(crate) use listed::{check_hashes, check_lists, listed};
pub(crate) use loaders::{check_carried, has_tokenizer};

/// Size of the blocks that tensors are read in.
const PART_BYTES: u64 = 1 << 20;
/// Memory for a model's headers and configs.
const HEADER_BYTES: u64 = 4 << 20;

/// The findings on a sound checkpoint; anything unsound is an error.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct VerifyReport {
    /// The family.
    pub model_type: String,
    /// Files whose SHA-256 is the manifest's; `None` without a manifest.
    pub hashed_files: Option<usize>,
    /// Files next to them that the manifest doesn't list; if there is a receipt, loaders ignore
    /// them.
    pub unlisted: Vec<String>,
    /// Number of tensors, all of the right shape and with finite values.
    pub tensors: usize,
    /// Bytes of these tensors.
    pub bytes: u64,
    /// Number of layers.
    pub layers: usize,
    /// Number of experts in all layers.
    pub experts: usize,
    /// Problems that stock loaders have with the checkpoint.
    pub notes: Vec<String>,
    /// Verdicts of engines on its quantized experts.
    pub engines: Vec<Verdict>,
}

impl VerifyReport {
    /// The report on a sound checkpoint that no manifest belongs to.
    fn of(checkpoint: &Checkpoint, model: &Model) -> Self {
        Self {
            model_type: model.family.model_type.clone(),
            hashed_files: None,
            unlisted: Vec::new(),
            tensors: checkpoint.tensors().len(),
            bytes: bytes(checkpoint),
            layers: model.layers.len(),
            experts: model.moes().map(|(_, moe)| moe.experts.len()).sum(),
            notes: notes::notes(checkpoint, model),
            engines: model.engines(),
        }
    }
}

/// Checks the checkpoint in `dir`.
///
/// # Errors
/// The first problem, naming file and tensor.
pub fn verify(dir: &Path, progress: &dyn Progress) -> Result<VerifyReport> {
    // Checks that need no weights come first: they take milliseconds.
    let (manifest, unlisted) = listed(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let model = Model::read(&checkpoint)?;
    let hashed_files = manifest.as_ref().map(|m| m.files.len());
    let (weights, small) =
        manifest.unwrap_or_default().files.into_iter().partition(|(name, _)| is_weights(name));
    // Damage is reported as damage, before what loaders would make of it.
    check_hashes(dir, &Manifest { files: small }, "side files", progress)?;
    loaders::check(&checkpoint, &model)?;
    check_hashes(dir, &Manifest { files: weights }, "weights", progress)?;
    check_values(&checkpoint, progress)?;
    Ok(VerifyReport { hashed_files, unlisted, ..VerifyReport::of(&checkpoint, &model) })
}

/// The size of all tensors in bytes.
fn bytes(checkpoint: &Checkpoint) -> u64 {
    checkpoint.tensors().values().map(Stored::bytes).sum()
}

/// Refuses tensors with values that aren't finite.
fn check_values(checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<()> {
    progress.stage("check values", bytes(checkpoint), Unit::Bytes);
    let tensors: Vec<&Stored> = checkpoint.tensors().values().collect();
    let check = |buffer: &mut Vec<u8>, tensor: &&Stored| -> Result<()> {
        check_finite(tensor, buffer)?;
        progress.advance(tensor.bytes());
        Ok(())
    };
    // The first bad tensor by name is reported, whichever thread finds one first.
    let results: Vec<_> =
        tensors.par_iter().map_init(|| vec![0; PART_BYTES as usize], check).collect();
    results.into_iter().collect()
}

/// The approximate memory that [`verify`] holds, in bytes, for a checkpoint of any size.
pub fn verify_bytes() -> u64 {
    HEADER_BYTES + 2 * rayon::current_num_threads() as u64 * PART_BYTES
}

fn check_finite(tensor: &Stored, buffer: &mut [u8]) -> Result<()> {
    let Some(dtype) = float_dtype(tensor.dtype()) else { return Ok(()) };
    let mut offset = 0;
    while offset < tensor.bytes() {
        let part = &mut buffer[..PART_BYTES.min(tensor.bytes() - offset) as usize];
        tensor.read_at(offset, part)?;
        let found = first_non_finite(part, dtype).map_err(|e| {
            Error::new(Kind::Numeric, "cannot check this tensor").source(e).tensor(tensor.name())
        })?;
        if let Some(position) = found {
            let element = offset / dtype.size_in_bytes() as u64 + position as u64;
            return Err(Error::new(Kind::Numeric, format!("element {element} is not finite"))
                .tensor(tensor.name())
                .file(tensor.path())
                .remedy(
                    "the training or conversion that wrote it failed: get a sound checkpoint",
                ));
        }
        offset += part.len() as u64;
    }
    Ok(())
}
