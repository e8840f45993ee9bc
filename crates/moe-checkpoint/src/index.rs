//! Finds the files that hold a checkpoint's tensors.

mod unread;

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
use crate::stored::{SourceFile, Stored};

/// The index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The one file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The config key that names the weights file or index for transformers.
pub const EXPLICIT_KEY: &str = "transformers_weights";

/// The name of shard `number` (from 0) of `count`; the single-file name if `count` is 1.
pub fn shard_file_name(number: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// Facts about an index, and about how it fits the files that it names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexFacts {
    /// Whether it has an object `metadata`; transformers refuses an index without one.
    pub has_metadata: bool,
    /// Tensors that the index lists and no shard holds. Loaders ignore them.
    pub unheld: Vec<String>,
    /// Tensors that are in another shard than the index says. Loaders ignore that too.
    pub misplaced: Vec<String>,
    /// Tensors in shards that the index doesn't list: transformers before 5 initializes them
    /// randomly.
    pub unlisted: Vec<String>,
}

impl IndexFacts {
    /// Compares `index` with the `tensors` that the files of the checkpoint in `dir` hold.
    pub(crate) fn of(index: RawIndex, dir: &Path, tensors: &BTreeMap<String, Stored>) -> Self {
        let mut facts = Self { has_metadata: index.has_metadata, ..Self::default() };
        let unlisted = tensors.keys().filter(|name| !index.weight_map.contains_key(*name));
        facts.unlisted = unlisted.cloned().collect();
        for (tensor, shard) in index.weight_map {
            match tensors.get(&tensor) {
                None => facts.unheld.push(tensor),
                Some(held) if held.path() != dir.join(shard) => facts.misplaced.push(tensor),
                Some(_) => {}
            }
        }
        facts
    }
}

/// The files that hold a checkpoint's tensors.
#[derive(Default)]
pub(crate) struct Shards {
    pub files: BTreeSet<String>,
    /// The index that names the files; None without one.
    pub index: Option<RawIndex>,
    index_name: Option<String>,
    /// Sentences about other weights in the same folder.
    pub warnings: Vec<String>,
    /// Files that the warnings already cover.
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

    /// The last of two equal keys counts, as in Python; other keys are dropped.
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
/// transformers takes: the one that the config names, then [`SINGLE_FILE`], then the files in
/// [`INDEX_FILE`].
pub(crate) fn find_shards(folder: &Folder, config: &Map<String, Value>) -> Result<Shards> {
    let (single, index) = (folder.path().join(SINGLE_FILE), folder.path().join(INDEX_FILE));
    let mut found = match config.get(EXPLICIT_KEY).and_then(Value::as_str) {
        Some(named) => explicit(folder, named)?,
        None => match (is_there(&single), is_there(&index)) {
            (true, true) => single_beside_index(folder, &index)?,
            (true, false) => Shards::of_file(SINGLE_FILE),
            (false, true) => indexed(folder, &index)?,
            (false, false) => unnamed(folder)?,
        },
    };
    let names = names(folder)?;
    let unread: Vec<_> =
        names.iter().map(String::as_str).filter(|name| !found.knows(name)).collect();
    found.warnings.extend(unread::warnings(&unread, found.index.is_some()));
    Ok(found)
}

impl Shards {
    fn of_file(name: &str) -> Self {
        Self { files: [name.to_owned()].into(), ..Self::default() }
    }

    /// Whether the file `name` is read, hidden, or covered by a warning.
    fn knows(&self, name: &str) -> bool {
        self.files.contains(name)
            || self.index_name.as_deref() == Some(name)
            || self.spoken_of.contains(name)
            || name.starts_with('.')
    }
}

/// The file or index that the config names.
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

/// Chooses between one file and an index next to it that may name other files.
fn single_beside_index(folder: &Folder, index: &Path) -> Result<Shards> {
    // transformers ignores the index here, so a broken one isn't an error.
    let Ok(other) = indexed(folder, index) else { return Ok(single_beside_unsound_index()) };
    if other.files.contains(SINGLE_FILE) {
        return single_in_index(folder, other);
    }
    Ok(single_beside_shards(&other))
}

fn single_beside_unsound_index() -> Shards {
    let mut found = Shards::of_file(SINGLE_FILE);
    found.spoken_of.insert(INDEX_FILE.to_owned());
    found.warnings.push(format!(
        "{INDEX_FILE} next to {SINGLE_FILE} can't be read: transformers and this program read {SINGLE_FILE} \
         alone, vLLM and SGLang look at the index: remove it"
    ));
    found
}

/// Chooses the single file alone if it holds everything that the index of `found` lists; otherwise
/// `found`. The index names that file.
fn single_in_index(folder: &Folder, mut found: Shards) -> Result<Shards> {
    let more = found.files.len() - 1;
    if more == 0 {
        return Ok(found);
    }
    if holds_all(folder, &found)? {
        let mut single = Shards::of_file(SINGLE_FILE);
        single.warnings.push(format!(
            "{INDEX_FILE} names {SINGLE_FILE}, which holds all tensors, and {}: transformers and this \
             program read {SINGLE_FILE} alone, vLLM and SGLang read all that the index names: remove the index",
            counted(more as u64, "other file")
        ));
        return Ok(single);
    }
    found.warnings.push(format!(
        "{INDEX_FILE} names {SINGLE_FILE} and more: transformers reads {SINGLE_FILE} alone; vLLM, SGLang \
         and this program read all that the index names"
    ));
    Ok(found)
}

/// Chooses the single file, if the index next to it names only `other` files.
fn single_beside_shards(other: &Shards) -> Shards {
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
    found
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

/// Whether `path` exists. A folder of such a name doesn't count as weights, as in transformers.
fn is_there(path: &Path) -> bool {
    path.exists() && !path.is_dir()
}

/// Chooses the file, or explains what is missing, if no file has one of the usual names.
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
        _ => Err(other_format(&names).unwrap_or_else(no_weights).file(folder.path())),
    }
}

fn no_weights() -> Error {
    Error::new(Kind::Missing, "no safetensors weights here")
        .remedy(format!("a checkpoint directory holds {SINGLE_FILE}, or shards with {INDEX_FILE}"))
}

fn names(folder: &Folder) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder.path());
    let entries = entries.map_err(|e| Error::io("cannot list the checkpoint", folder.path(), e))?;
    // A folder can't hold tensors, whatever its name.
    let files = entries.flatten().filter(|entry| !entry.path().is_dir());
    Ok(files.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// `name` without `.` parts, and without `..` parts that follow a folder in the name.
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

/// Whether `name` stays within the folder.
fn is_plain(name: &str) -> bool {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && !name.contains('\0')
}

/// Reads the index `path`, and returns the files that it names.
fn indexed(folder: &Folder, path: &Path) -> Result<Shards> {
    folder.check_file(path)?;
    let mut index: RawIndex = json::read_python_as(path)?;
    index.weight_map.values_mut().for_each(|file| *file = resolved(file));
    let files: BTreeSet<String> = index.weight_map.values().cloned().collect();
    for file in &files {
        check_named(folder, path, file)?;
    }
    if files.is_empty() {
        return Err(Error::new(Kind::Malformed, "the index lists no tensor")
            .file(path)
            .remedy("download the index again"));
    }
    let index_name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Shards { files, index: Some(index), index_name, ..Shards::default() })
}

/// Refuses a shard `file` that the `index` names and that isn't in `folder`.
fn check_named(folder: &Folder, index: &Path, file: &str) -> Result<()> {
    if !is_plain(file) {
        let what = format!("the index points outside the checkpoint: {file:?}");
        return Err(Error::new(Kind::Malformed, what)
            .file(index)
            .remedy("shards must be in the folder of the index; don't trust this checkpoint"));
    }
    if !file_exists(&folder.path().join(file))? {
        let what = format!("the index names a shard that is not there: {file}");
        return Err(Error::new(Kind::Missing, what)
            .file(index)
            .remedy("download the missing shard"));
    }
    Ok(())
}
