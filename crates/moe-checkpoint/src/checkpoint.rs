//! Opening a checkpoint directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::folder::Folder;
use crate::formats::{CONFIG_FILE, checkpoints_below, other_format};
use crate::index::{INDEX_FILE, IndexFacts, find_shards};
use crate::json;
use crate::regular::file_exists;
use crate::side_files::SideFiles;
use crate::snapshot::Snapshot;
use crate::stored::{SourceFile, Stored};

/// A checkpoint directory: its config, and lazy references to its tensors. Opening reads headers
/// only.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Map<String, Value>,
    tensors: BTreeMap<String, Stored>,
    files: Vec<Arc<SourceFile>>,
    side_files: SideFiles,
    index: Option<IndexFacts>,
    warnings: Vec<String>,
    snapshot: Snapshot,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is no checkpoint, a shard or a tensor is not there;
    /// [`Kind::Malformed`] where a file lies about its content; all name the file.
    pub fn open(dir: &Path) -> Result<Self> {
        check_directory(dir)?;
        let config_path = dir.join(CONFIG_FILE);
        if !file_exists(&config_path)? {
            return Err(no_config(dir, &config_path));
        }
        let folder = Folder::of(dir)?;
        folder.check_file(&config_path)?;
        check_no_adapter(dir)?;
        let mut side_files = SideFiles::of(&folder)?;
        let mut snapshot = Snapshot::default();
        snapshot.extend(
            side_files
                .carried
                .iter()
                .map(|file| &file.path)
                .chain([&config_path, &dir.join(INDEX_FILE)]),
        );
        let config: Map<String, Value> = json::read_python(&config_path)?;
        let shards = find_shards(&folder, &config)?;
        // What is read of the weights isn't left out.
        side_files.left_out.retain(|name, _| !shards.files.contains(name) && name != INDEX_FILE);
        snapshot.extend(shards.files.iter().map(|name| dir.join(name)));
        let mut tensors = BTreeMap::<String, Stored>::new();
        let mut twice = Vec::new();
        let mut files = Vec::with_capacity(shards.files.len());
        for name in &shards.files {
            let path = dir.join(name);
            folder.check_file(&path)?;
            let (file, entries) = SourceFile::open(&path)?;
            for entry in entries {
                let stored = Stored::of_file(&file, entry);
                let name = stored.name().to_owned();
                // transformers goes through shards by name, too, and keeps the last, whichever the
                // index says.
                if let Some(first) = tensors.insert(name.clone(), stored) {
                    twice.push((name, first));
                }
            }
            files.push(file);
        }
        let index = shards.index.map(|index| {
            let mut facts =
                IndexFacts { has_metadata: index.has_metadata, ..IndexFacts::default() };
            facts.unlisted = tensors
                .keys()
                .filter(|name| !index.weight_map.contains_key(*name))
                .cloned()
                .collect();
            for (tensor, shard) in index.weight_map {
                match tensors.get(&tensor) {
                    None => facts.unheld.push(tensor),
                    Some(held) if held.path() != dir.join(shard) => facts.misplaced.push(tensor),
                    Some(_) => {}
                }
            }
            facts
        });
        let mut warnings = shards.warnings;
        warnings.extend(of_twice(&twice, &tensors));
        Ok(Self {
            dir: dir.to_owned(),
            config,
            tensors,
            files,
            side_files,
            index,
            warnings,
            snapshot,
        })
    }

    /// Where the checkpoint is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The content of `config.json`, keys in file order.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// The safetensors files.
    pub fn files(&self) -> &[Arc<SourceFile>] {
        &self.files
    }

    /// The files beside config and weights: what a conversion carries along, and what it leaves.
    pub fn side_files(&self) -> &SideFiles {
        &self.side_files
    }

    /// What the index says, where one was followed.
    pub fn index(&self) -> Option<&IndexFacts> {
        self.index.as_ref()
    }

    /// What is to be said of other weights in the same folder, a sentence each: which are read, and
    /// by whom.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses a checkpoint of which a file has changed since it was opened.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.snapshot.check()
    }
}

/// What is said of tensors that several shards hold: each with the first that does, and the last in
/// `tensors`.
fn of_twice(twice: &[(String, Stored)], tensors: &BTreeMap<String, Stored>) -> Option<String> {
    let (name, first) = twice.first()?;
    let file = |stored: &Stored| {
        stored.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let more = match twice.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more likewise"),
    };
    Some(format!(
        "two shards hold {name}, {} and {}: transformers and this program read the last by name{more}; remove a stale shard, \
         or download the checkpoint again",
        file(first),
        file(&tensors[name])
    ))
}

/// Refuses an adapter beside a config. With PEFT installed, transformers applies it to the model;
/// no other loader looks at it.
fn check_no_adapter(dir: &Path) -> Result<()> {
    const ADAPTER: [&str; 3] =
        ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
    let Some(found) =
        ADAPTER.iter().map(|name| dir.join(name)).find(|path| path.symlink_metadata().is_ok())
    else {
        return Ok(());
    };
    let what = "an adapter lies in the model's folder: transformers applies it where PEFT is installed, other loaders don't";
    Err(Error::new(Kind::Unsupported, what).file(found).remedy(
        "merge it into the model (PEFT's merge_and_unload, then save_pretrained), or move its adapter_ files elsewhere",
    ))
}

const WHAT_TO_GIVE: &str = "give the directory that holds config.json and the safetensors files";

/// What is there instead, where that can be seen.
fn no_config(dir: &Path, config: &Path) -> Error {
    let found = match std::fs::read_dir(dir) {
        Ok(found) => found
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect::<BTreeSet<_>>(),
        Err(error) => return Error::io("cannot read this directory", dir, error),
    };
    if let Some(error) =
        config.metadata().err().filter(|error| error.kind() != std::io::ErrorKind::NotFound)
    {
        return Error::io("cannot read this file", config, error);
    }
    let missing =
        |what: &str| Error::new(Kind::Missing, format!("no config.json here{what}")).file(dir);
    if found.iter().any(|name| name == "adapter_config.json") {
        return missing(": this is an adapter")
            .remedy("merge it into its base model first (PEFT's merge_and_unload)");
    }
    if let Some(error) = other_format(&found) {
        return error.within("no config.json here").file(dir);
    }
    match checkpoints_below(dir).as_slice() {
        [] => missing("").remedy(WHAT_TO_GIVE),
        [one] => missing(", but below").remedy(format!("give {}", one.display())),
        [first, others @ ..] => missing(", but below").remedy(format!(
            "give one of the {} checkpoints in it, such as {}",
            1 + others.len(),
            first.display()
        )),
    }
}

fn check_directory(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if dir.exists() {
        return Err(Error::new(Kind::Usage, "a checkpoint is a directory; this is a file")
            .file(dir)
            .remedy(WHAT_TO_GIVE));
    }
    Err(Error::new(Kind::Missing, "no such checkpoint directory").file(dir).remedy(
        "check the path; hub names are not downloaded: fetch the model first (hf download NAME --local-dir DIR)",
    ))
}
