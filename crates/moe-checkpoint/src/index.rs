//! Which files hold a checkpoint's tensors.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::folder::Folder;
use crate::formats::{CONFIG_FILE, other_format};
use crate::is_object::IsObject;
use crate::json;
use crate::plural::counted;
use crate::regular::file_exists;
use crate::stored::SourceFile;

/// The index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The one file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The config key by which transformers finds weights of another name.
pub const EXPLICIT_KEY: &str = "transformers_weights";

/// The name of shard `number` (from 0) of `count`; the single-file name where there is one.
pub fn shard_file_name(number: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// What an index says, and how it fits the files that it names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexFacts {
    /// Whether it has an object `metadata`, without which transformers reads no index.
    pub has_metadata: bool,
    /// Tensors that it lists and no shard holds, which loaders don't mind.
    pub unheld: Vec<String>,
    /// Tensors that another shard holds than it says, likewise.
    pub misplaced: Vec<String>,
    /// Tensors that shards hold and it doesn't list: transformers before 5 starts them at random.
    pub unlisted: Vec<String>,
}

/// The files that hold a checkpoint's tensors.
#[derive(Default)]
pub(crate) struct Shards {
    pub files: BTreeSet<String>,
    /// The index that names them, if one does.
    pub index: Option<RawIndex>,
    index_name: Option<String>,
    /// What is to be said of other weights in the same folder.
    pub warnings: Vec<String>,
    /// Files of those that this says enough of.
    spoken_of: BTreeSet<String>,
}

#[derive(Default)]
pub(crate) struct RawIndex {
    pub weight_map: BTreeMap<String, String>,
    /// Whether it has an object `metadata`.
    pub has_metadata: bool,
}

impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawIndexVisitor)
    }
}

struct RawIndexVisitor;

impl<'de> Visitor<'de> for RawIndexVisitor {
    type Value = RawIndex;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    /// Of a key that stands twice the last counts, as for Python; other keys aren't kept.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawIndex, A::Error> {
        let (mut weight_map, mut has_metadata) = (None, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "weight_map" => weight_map = Some(map.next_value()?),
                "metadata" => has_metadata = map.next_value::<IsObject>()?.0,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        let weight_map = weight_map.ok_or_else(|| serde::de::Error::missing_field("weight_map"))?;
        Ok(RawIndex { weight_map, has_metadata })
    }
}

/// Finds the files with the tensors of the model in `folder`. Of several sets it takes the one that
/// transformers takes: what the config names, then [`SINGLE_FILE`], then what [`INDEX_FILE`] names.
pub(crate) fn find_shards(folder: &Folder, config: &Map<String, Value>) -> Result<Shards> {
    let (single, index) = (folder.path().join(SINGLE_FILE), folder.path().join(INDEX_FILE));
    // A folder of such a name is none of the weights, for transformers either.
    let is_there = |path: &Path| path.exists() && !path.is_dir();
    let mut found = match config.get(EXPLICIT_KEY).and_then(Value::as_str) {
        Some(named) => explicit(folder, named)?,
        None => match (is_there(&single), is_there(&index)) {
            (true, true) => single_beside_index(folder, &index)?,
            (true, false) => Shards::of_file(SINGLE_FILE),
            (false, true) => indexed(folder, &index)?,
            (false, false) => unnamed(folder)?,
        },
    };
    found.warnings.extend(others(folder, &found)?);
    Ok(found)
}

impl Shards {
    fn of_file(name: &str) -> Self {
        Self { files: [name.to_owned()].into(), ..Self::default() }
    }
}

/// The file, or the index, that the config names.
fn explicit(folder: &Folder, named: &str) -> Result<Shards> {
    let named = &resolved(named);
    let path = folder.path().join(named);
    let is_index = named.ends_with(".safetensors.index.json");
    if !is_plain(named) || !is_index && !named.ends_with(".safetensors") {
        return Err(Error::new(Kind::Malformed, format!("config key {EXPLICIT_KEY:?} is {named:?}"))
            .file(folder.path().join(CONFIG_FILE))
            .remedy(
                "transformers wants a .safetensors file in this folder, or an index of such: correct or remove the key",
            ));
    }
    let mut found = if is_index { indexed(folder, &path)? } else { Shards::of_file(named) };
    if ![SINGLE_FILE, INDEX_FILE].contains(&named.as_str()) {
        found.warnings.push(format!(
            "config.json names {named} ({EXPLICIT_KEY}), which transformers and this program read: vLLM \
             and SGLang don't know that key"
        ));
    }
    Ok(found)
}

/// One file, and an index beside it that may name others.
fn single_beside_index(folder: &Folder, index: &Path) -> Result<Shards> {
    // transformers doesn't look at the index here, so it need not be sound.
    let Ok(other) = indexed(folder, index) else {
        let mut found = Shards::of_file(SINGLE_FILE);
        found.spoken_of.insert(INDEX_FILE.to_owned());
        found.warnings.push(format!(
            "{INDEX_FILE} beside {SINGLE_FILE} can't be followed: transformers and this program read {SINGLE_FILE} \
             alone, vLLM and SGLang look at the index: remove it"
        ));
        return Ok(found);
    };
    if other.files.contains(SINGLE_FILE) {
        let mut found = other;
        if found.files.len() > 1 && holds_all(folder, &found)? {
            let more = found.files.len() - 1;
            let mut found = Shards::of_file(SINGLE_FILE);
            found.warnings.push(format!(
                "{INDEX_FILE} names {SINGLE_FILE}, which holds all tensors, and {} beside it: transformers and this \
                 program read {SINGLE_FILE} alone, vLLM and SGLang read all that the index names: remove the index",
                counted(more as u64, "file")
            ));
            return Ok(found);
        }
        if found.files.len() > 1 {
            found.warnings.push(format!(
                "{INDEX_FILE} names {SINGLE_FILE} and more: transformers reads {SINGLE_FILE} alone; vLLM, SGLang \
                 and this program read all that the index names"
            ));
        }
        return Ok(found);
    }
    let mut found = Shards::of_file(SINGLE_FILE);
    found.spoken_of = other.files.iter().cloned().chain([INDEX_FILE.to_owned()]).collect();
    let shards = match other.files.len() {
        1 => "the file".to_owned(),
        count => format!("the {count} shards"),
    };
    found.warnings.push(format!(
        "two sets of weights: {SINGLE_FILE}, which transformers and this program read, and {shards} of {INDEX_FILE}, \
         which vLLM and SGLang read: remove the set that isn't meant"
    ));
    Ok(found)
}

/// Whether [`SINGLE_FILE`] alone holds every tensor that the index of `found` lists.
fn holds_all(folder: &Folder, found: &Shards) -> Result<bool> {
    let path = folder.path().join(SINGLE_FILE);
    folder.check_file(&path)?;
    let (_, entries) = SourceFile::open(&path)?;
    let held: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    Ok(found
        .index
        .iter()
        .flat_map(|index| index.weight_map.keys())
        .all(|name| held.contains(name.as_str())))
}

/// What there is where no file has one of the usual names.
fn unnamed(folder: &Folder) -> Result<Shards> {
    let names = names(folder)?;
    let mut weights = names.iter().filter(|n| n.ends_with(".safetensors"));
    match (weights.next(), weights.next()) {
        (Some(one), None) => Ok(Shards::of_file(one)),
        (Some(_), Some(_)) => {
            Err(Error::new(Kind::Missing, format!("several shards but no {INDEX_FILE}"))
                .file(folder.path())
                .remedy("download the index file too"))
        }
        _ => {
            let nothing = || {
                Error::new(Kind::Missing, "no safetensors weights here").remedy(format!(
                    "a checkpoint directory holds {SINGLE_FILE}, or shards with {INDEX_FILE}"
                ))
            };
            Err(other_format(&names).unwrap_or_else(nothing).file(folder.path()))
        }
    }
}

/// What other loaders do with the weights that `found` leaves unread.
fn others(folder: &Folder, found: &Shards) -> Result<Vec<String>> {
    let mut names = names(folder)?;
    names.retain(|name| {
        let is_read = found.files.contains(name) || found.index_name.as_ref() == Some(name);
        !is_read && !found.spoken_of.contains(name) && !name.starts_with('.')
    });
    let list = |wanted: &dyn Fn(&&String) -> bool| {
        let wanted: Vec<_> =
            names.iter().filter(wanted).map(|name| name.escape_debug().to_string()).collect();
        match wanted.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            [first, .., last] => Some(format!("{first} … {last} ({} files)", wanted.len())),
        }
    };
    let mistral =
        |name: &&String| name.starts_with("consolidated") && name.ends_with(".safetensors");
    let pickled = |name: &&String| {
        let known =
            ["pytorch_model", "consolidated", "model"].iter().any(|start| name.starts_with(start));
        known && [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
    };
    let unread =
        |name: &&String| name.to_ascii_lowercase().ends_with(".safetensors") && !mistral(name);
    // A variant, as transformers calls it, has an index of its own:
    // model.safetensors.index.fp16.json.
    let index = |name: &&String| name.contains(".safetensors.index") && name.ends_with(".json");
    let read = "transformers and this program read the weights in Hugging Face's format";
    let mut warnings = Vec::new();
    if let Some(files) = list(&mistral) {
        warnings.push(format!(
            "a second set of weights, {files}: {read}, vLLM reads that instead: remove the set that isn't meant"
        ));
    }
    if let Some(files) = list(&unread) {
        let who = match found.index {
            Some(_) => "no index names it, so that neither transformers nor this program reads it",
            None => {
                "without an index, vLLM and SGLang read all .safetensors files; transformers and this program don't"
            }
        };
        warnings
            .push(format!("{files} beside the weights: {who}: move what isn't meant elsewhere"));
    }
    if let Some(files) = list(&index) {
        warnings.push(format!(
            "{files}, an index of other weights, is not followed by transformers and this program unless it is asked \
             for: move what isn't meant elsewhere"
        ));
    }
    if let Some(files) = list(&pickled) {
        warnings
            .push(format!("a second set of weights, {files}, is not read: all loaders take .safetensors files first"));
    }
    Ok(warnings)
}

fn names(folder: &Folder) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder.path());
    let entries = entries.map_err(|e| Error::io("cannot list the checkpoint", folder.path(), e))?;
    // A folder holds no tensors, whatever it is called.
    let files = entries.flatten().filter(|entry| !entry.path().is_dir());
    Ok(files.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// `name` as a path is followed: `./` leads nowhere, and `..` out of the folder before it, if there
/// is one in the name.
fn resolved(name: &str) -> String {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(path.components().next_back(), Some(Component::Normal(_))) =>
            {
                _ = path.pop()
            }
            part => path.push(part),
        }
    }
    path.to_string_lossy().into_owned()
}

/// Whether `name` stays in the folder that it is a name in.
fn is_plain(name: &str) -> bool {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && !name.contains('\0')
}

fn indexed(folder: &Folder, path: &Path) -> Result<Shards> {
    folder.check_file(path).map_err(|e| e.remedy("download the index again"))?;
    let mut index: RawIndex = json::read_python_as(path)?;
    index.weight_map.values_mut().for_each(|file| *file = resolved(file));
    let files: BTreeSet<String> = index.weight_map.values().cloned().collect();
    for file in &files {
        if !is_plain(file) {
            return Err(Error::new(
                Kind::Malformed,
                format!("the index points outside the checkpoint: {file:?}"),
            )
            .file(path)
            .remedy("shards must lie beside the index; don't trust this checkpoint"));
        }
        if !file_exists(&folder.path().join(file))? {
            return Err(Error::new(
                Kind::Missing,
                format!("the index names a shard that is not there: {file}"),
            )
            .file(path)
            .remedy("download the missing shard"));
        }
    }
    if files.is_empty() {
        return Err(Error::new(Kind::Malformed, "the index lists no tensor")
            .file(path)
            .remedy("download the index again"));
    }
    let index_name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Shards { files, index: Some(index), index_name, ..Shards::default() })
}
