//! Fingerprints, which tell in milliseconds whether a checkpoint is the one that statistics or a
//! plan were made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    BUILD_INPUT, CONFIG_FILE, Checkpoint, Result, json, read_whole, sha256_bytes, sha256_file,
};
use moe_forward::tokenizer_files;
use moe_math::Compute;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::build::{BUILD, VERSION};
use crate::portable::short_names;
use crate::resources::device_kind;

/// The number of places at which each tensor is sampled, and the bytes of each sample.
const PLACES: u64 = 4;
const PLACE_BYTES: u64 = 256;

/// Hashes of a model and its tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Fingerprint {
    /// SHA-256 of config.json, and of every tensor's name, type, shape and some of its bytes.
    pub model: String,
    /// SHA-256 of all files that decide which tokens text becomes, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokenizer: Option<String>,
}

impl Fingerprint {
    /// The fingerprint of a checkpoint.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut seen = read(&checkpoint.dir().join(CONFIG_FILE))?;
        for (name, tensor) in checkpoint.tensors() {
            seen.extend(format!("{name} {} {:?}", tensor.dtype(), tensor.shape()).into_bytes());
            let part = PLACE_BYTES.min(tensor.bytes());
            for place in 0..PLACES {
                let mut bytes = vec![0; part as usize];
                tensor.read_at((tensor.bytes() - part) * place / (PLACES - 1), &mut bytes)?;
                seen.extend(bytes);
            }
        }
        Ok(Self { model: sha256_bytes(&seen), tokenizer: of_tokenizer(checkpoint.dir())? })
    }
}

fn of_tokenizer(dir: &Path) -> Result<Option<String>> {
    let mut seen = String::new();
    for file in tokenizer_files(dir)? {
        let name = file.strip_prefix(dir).unwrap_or(&file).to_string_lossy();
        seen += &format!("{name:?} {}\n", sha256_file(&file)?);
    }
    Ok(if seen.is_empty() { None } else { Some(sha256_bytes(seen.as_bytes())) })
}

/// Hash of everything that decides a run's outcome, including the build of the program and its
/// device: a killed run may be resumed only if this hash is the same. For texts that are read in
/// parts, `digests` has the hash of the part that was read.
///
/// # Errors
/// Errors of reading.
pub(crate) fn of_run<'a>(
    options: &serde_json::Value,
    compute: &Compute,
    models: impl IntoIterator<Item = &'a Checkpoint>,
    texts: impl IntoIterator<Item = &'a Path>,
    digests: &BTreeMap<PathBuf, String>,
) -> Result<String> {
    Ok(sha256_bytes(all_of_run(options, compute, models, texts, digests)?.to_string().as_bytes()))
}

/// [`of_run`] and, on a second line, a map of the same facts by names that users know: a training
/// is saved under this key. Of `options`, `own` are those of the pass that trains.
///
/// # Errors
/// Errors of reading.
pub(crate) fn of_training<'a>(
    options: &serde_json::Value,
    own: &serde_json::Value,
    compute: &Compute,
    models: impl IntoIterator<Item = &'a Checkpoint>,
    texts: &[&'a Path],
    digests: &BTreeMap<PathBuf, String>,
) -> Result<String> {
    let all = all_of_run(options, compute, models, texts.iter().copied(), digests)?;
    let mut facts: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    let options = own.as_object().into_iter().flatten();
    facts.extend(options.map(|(name, value)| (format!("--{name}"), value.clone())));
    let names = [
        ("build", BUILD_INPUT),
        ("dtype", "--dtype"),
        ("router_dtype", "--router-dtype"),
        ("device", "the kind of device"),
    ];
    facts.extend(names.map(|(key, name)| (name.to_owned(), all[key].clone())));
    let models = all["models"].as_array().into_iter().flatten().enumerate();
    facts.extend(models.map(|(index, model)| match index {
        0 => ("the model".to_owned(), model.clone()),
        _ => (format!("model {}", index + 1), model.clone()),
    }));
    let names = short_names(texts.iter().copied());
    let hashes = texts.iter().zip(all["texts"].as_array().into_iter().flatten());
    facts.extend(hashes.map(|(path, hash)| (names[path].clone(), hash.clone())));
    Ok(format!("{}\n{}", sha256_bytes(all.to_string().as_bytes()), serde_json::json!(facts)))
}

fn all_of_run<'a>(
    options: &serde_json::Value,
    compute: &Compute,
    models: impl IntoIterator<Item = &'a Checkpoint>,
    texts: impl IntoIterator<Item = &'a Path>,
    digests: &BTreeMap<PathBuf, String>,
) -> Result<serde_json::Value> {
    Ok(serde_json::json!({
        "version": VERSION,
        "build": BUILD,
        "dtype": compute.dtype.as_str(),
        "router_dtype": compute.router_dtype.other_than_f32(),
        "device": device_kind(&compute.device),
        "options": options,
        "models": models.into_iter().map(Fingerprint::of).collect::<Result<Vec<_>>>()?,
        "texts": texts.into_iter().map(|path| sha256_of(path, digests)).collect::<Result<Vec<_>>>()?,
    }))
}

/// The hash of a file, or of the part of it that was read.
///
/// # Errors
/// Errors of reading.
pub(crate) fn sha256_of(path: &Path, digests: &BTreeMap<PathBuf, String>) -> Result<String> {
    match digests.get(path) {
        Some(digest) => Ok(digest.clone()),
        None => sha256_file(path),
    }
}

/// The hash of each file, or of the part that was read, by its short name; files are hashed in
/// parallel.
///
/// # Errors
/// Errors of reading.
pub(crate) fn hashes_of(
    paths: &[&Path],
    digests: &BTreeMap<PathBuf, String>,
) -> Result<BTreeMap<String, String>> {
    let names: Vec<(&Path, String)> = short_names(paths.iter().copied()).into_iter().collect();
    names.into_par_iter().map(|(path, name)| Ok((name, sha256_of(path, digests)?))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_whole(path, json::MAX_JSON_BYTES)
}
