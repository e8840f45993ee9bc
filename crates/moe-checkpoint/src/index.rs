//! Which files hold a checkpoint's tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::json;

/// The index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The one file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The name of shard `number` (from 0) of `count`; the single-file name where there is one.
pub fn shard_file_name(number: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// What an index says: the shard files, and which one holds each tensor.
pub(crate) struct Index {
    pub files: BTreeSet<String>,
    /// Empty without an index: the files themselves say what they hold.
    pub weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with a weight_map")]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

/// Finds the shard files of `dir`.
pub(crate) fn find_shards(dir: &Path) -> Result<Index> {
    let index = dir.join(INDEX_FILE);
    if index.exists() {
        if !index.is_file() {
            return Err(Error::new(Kind::Malformed, "the index is not a regular file")
                .file(&index)
                .remedy("download the index again"));
        }
        return read_index(&index);
    }
    if dir.join(SINGLE_FILE).exists() {
        return Ok(Index { files: [SINGLE_FILE.to_owned()].into(), weight_map: BTreeMap::new() });
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("cannot list the checkpoint", dir, e))?;
    let names: BTreeSet<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let mut weights = names.iter().filter(|n| n.ends_with(".safetensors"));
    match (weights.next(), weights.next()) {
        (Some(one), None) => Ok(Index { files: [one.clone()].into(), weight_map: BTreeMap::new() }),
        (Some(_), Some(_)) => Err(Error::new(Kind::Missing, format!("several shards but no {INDEX_FILE}"))
            .file(dir)
            .remedy("download the index file too")),
        _ if names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pth") || n.ends_with(".pt")) => {
            Err(Error::new(Kind::Unsupported, "this checkpoint has pickled PyTorch weights only")
                .file(dir)
                .remedy("save it as safetensors: model.save_pretrained(dir, safe_serialization=True)"))
        }
        _ => Err(Error::new(Kind::Missing, "no safetensors weights here")
            .file(dir)
            .remedy(format!("a checkpoint directory holds {SINGLE_FILE}, or shards with {INDEX_FILE}"))),
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let raw: RawIndex = json::read(path)?;
    let files: BTreeSet<String> = raw.weight_map.values().cloned().collect();
    for file in &files {
        let mut components = Path::new(file).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain || file.contains('\0') {
            return Err(Error::new(Kind::Malformed, format!("the index points outside the checkpoint: {file:?}"))
                .file(path)
                .remedy("shards must lie beside the index; don't trust this checkpoint"));
        }
        let shard = path.with_file_name(file);
        if !shard.is_file() {
            return Err(Error::new(Kind::Missing, format!("the index names a shard that is not there: {file}"))
                .file(path)
                .remedy("download the missing shard"));
        }
    }
    if files.is_empty() {
        return Err(Error::new(Kind::Malformed, "the index lists no tensor")
            .file(path)
            .remedy("download the index again"));
    }
    Ok(Index { files, weight_map: raw.weight_map })
}
