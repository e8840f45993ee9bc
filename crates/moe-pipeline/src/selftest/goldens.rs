//! The goldens that the binary carries: outputs of other implementations, in the folders of
//! `golden/`. `crates/moe-pipeline/goldens` links to those that every build carries, so that the
//! crate's package contains them, too.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use include_dir::{Dir, include_dir};
use moe_checkpoint::{Error, Kind, Result, TemporaryDir};
use serde_json::Value;

/// Whether this build carries the built-in MoE and its goldens.
pub const HAS_BUILT_IN_MOE: bool = cfg!(feature = "goldens");

/// Tiny checkpoints of every family, quantized ones, and gradients.
static SMALL: [(&str, Dir<'_>); 3] = [
    ("families", include_dir!("$CARGO_MANIFEST_DIR/goldens/families")),
    ("quantize/checkpoints", include_dir!("$CARGO_MANIFEST_DIR/goldens/quantize/checkpoints")),
    ("training", include_dir!("$CARGO_MANIFEST_DIR/goldens/training")),
];

/// The built-in MoE and its goldens, which together with the above exceed a registry's limit.
#[cfg(feature = "goldens")]
static OF_BUILT_IN_MOE: [(&str, Dir<'_>); 2] = [
    ("models/moe", include_dir!("$CARGO_MANIFEST_DIR/../../golden/models/moe")),
    ("pruning", include_dir!("$CARGO_MANIFEST_DIR/../../golden/pruning")),
];
#[cfg(feature = "goldens")]
static FILES_OF_BUILT_IN_MOE: [(&str, &[u8]); 3] = [
    ("models/moe.tokens.json", include_bytes!("../../../../golden/models/moe.tokens.json")),
    ("quantize/gptq.json", include_bytes!("../../../../golden/quantize/gptq.json")),
    ("quantize/gptq.safetensors", include_bytes!("../../../../golden/quantize/gptq.safetensors")),
];
#[cfg(not(feature = "goldens"))]
static OF_BUILT_IN_MOE: [(&str, Dir<'_>); 0] = [];
#[cfg(not(feature = "goldens"))]
static FILES_OF_BUILT_IN_MOE: [(&str, &[u8]); 0] = [];

/// The goldens, unpacked into a temporary folder.
pub struct Goldens(TemporaryDir);

impl Goldens {
    /// Unpacks all goldens of this build.
    ///
    /// # Errors
    /// [`Kind::Io`] where the folder for temporary files doesn't take them.
    pub fn unpack() -> Result<Self> {
        let dir = TemporaryDir::made(&std::env::temp_dir(), || Ok(tempfile::tempdir()?.keep()))?;
        for (folder, files) in SMALL.iter().chain(&OF_BUILT_IN_MOE) {
            let path = dir.path().join(folder);
            let unpack = fs::create_dir_all(&path).and_then(|()| files.extract(&path));
            unpack.map_err(|e| Error::io("cannot unpack the goldens", path, e))?;
        }
        for (name, bytes) in &FILES_OF_BUILT_IN_MOE {
            let path = dir.path().join(name);
            fs::write(&path, bytes).map_err(|e| Error::io("cannot unpack the goldens", path, e))?;
        }
        Ok(Self(dir))
    }

    /// The unpacked file or folder of the golden `path`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// The golden `path` as JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        moe_checkpoint::json::read(&self.path(path))
    }

    /// The tensors of the golden `path`.
    pub fn tensors(&self, path: &str) -> Result<HashMap<String, Tensor>> {
        let path = self.path(path);
        candle_core::safetensors::load(&path, &Device::Cpu).map_err(|e| {
            Error::new(Kind::Malformed, "cannot read this golden").source(e).file(path)
        })
    }

    /// Removes the unpacked goldens.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn remove(self) -> Result<()> {
        self.0.remove()
    }
}

/// The directories in `path`, sorted.
pub fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io("cannot read this directory", path, e);
    let entries = fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut folders: Vec<_> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// The tensor `name` of a golden.
///
/// # Errors
/// [`Kind::Malformed`] if the golden lacks it.
pub fn named<'t>(tensors: &'t HashMap<String, Tensor>, name: &str) -> Result<&'t Tensor> {
    tensors
        .get(name)
        .ok_or_else(|| Error::new(Kind::Malformed, "this golden lacks a tensor").tensor(name))
}
