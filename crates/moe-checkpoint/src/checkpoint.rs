//! Opening a checkpoint directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
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

/// A checkpoint directory: its config, and lazy references to its tensors. Opening reads only
/// headers.
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
    /// [`Kind::Missing`] if there is no checkpoint, or a shard or tensor doesn't exist;
    /// [`Kind::Malformed`] if a file contradicts its format. All name the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = check_folder(dir)?;
        let mut side_files = SideFiles::of(&folder)?;
        let mut snapshot = Snapshot::default();
        snapshot.extend(side_files.carried.iter().map(|file| &file.path));
        snapshot.extend([CONFIG_FILE, INDEX_FILE].map(|name| dir.join(name)));
        let config = json::read_python(&dir.join(CONFIG_FILE))?;
        let shards = find_shards(&folder, &config)?;
        // Files that weights are read from don't count as left out.
        side_files.left_out.retain(|name, _| !shards.files.contains(name) && name != INDEX_FILE);
        snapshot.extend(shards.files.iter().map(|name| dir.join(name)));
        let held = HeldTensors::read(&folder, &shards.files)?;
        let mut warnings = shards.warnings;
        warnings.extend(held.warning());
        Ok(Self {
            dir: dir.to_owned(),
            config,
            index: shards.index.map(|index| IndexFacts::of(index, dir, &held.tensors)),
            tensors: held.tensors,
            files: held.files,
            side_files,
            warnings,
            snapshot,
        })
    }

    /// The directory of the checkpoint.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The content of `config.json`, keys in file order.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// The safetensors files.
    pub fn files(&self) -> &[Arc<SourceFile>] {
        &self.files
    }

    /// The files other than config and weights: those that a conversion carries along, and those
    /// that it leaves out.
    pub fn side_files(&self) -> &SideFiles {
        &self.side_files
    }

    /// Returns facts about the index; None if no index was followed.
    pub fn index(&self) -> Option<&IndexFacts> {
        self.index.as_ref()
    }

    /// Sentences about other weights in the same folder: which are read, and by which loaders.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses a checkpoint if one of its files has changed since it was opened.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.snapshot.check()
    }
}

/// The tensors in a checkpoint's shards.
#[derive(Default)]
struct HeldTensors {
    tensors: BTreeMap<String, Stored>,
    files: Vec<Arc<SourceFile>>,
    /// Tensors that also exist in a later shard, which counts.
    earlier: Vec<Stored>,
}

impl HeldTensors {
    /// Reads the headers of the shards `names` of `folder`.
    fn read(folder: &Folder, names: &BTreeSet<String>) -> Result<Self> {
        let mut held = Self { files: Vec::with_capacity(names.len()), ..Self::default() };
        for name in names {
            let path = folder.path().join(name);
            folder.check_file(&path)?;
            let (file, entries) = SourceFile::open(&path)?;
            for entry in entries {
                held.add(Stored::of_file(&file, entry));
            }
            held.files.push(file);
        }
        Ok(held)
    }

    /// transformers also loads shards in order of name and keeps the last tensor, whatever the
    /// index says.
    fn add(&mut self, stored: Stored) {
        self.earlier.extend(self.tensors.insert(stored.name().to_owned(), stored));
    }

    /// A sentence about tensors that are in several shards; None if there are none.
    fn warning(&self) -> Option<String> {
        let first = self.earlier.first()?;
        let name = first.name();
        let more = match self.earlier.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more likewise"),
        };
        Some(format!(
            "two shards hold {name}, {} and {}: transformers and this program read the last by name{more}; remove a stale shard, \
             or download the checkpoint again",
            file_name(first),
            file_name(&self.tensors[name])
        ))
    }
}

fn file_name(stored: &Stored) -> String {
    stored.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Checks that `dir` is the folder of a model: it has a config, and isn't an adapter's.
fn check_folder(dir: &Path) -> Result<Folder> {
    check_directory(dir)?;
    let config = dir.join(CONFIG_FILE);
    if !file_exists(&config)? {
        return Err(no_config(dir, &config));
    }
    let folder = Folder::of(dir)?;
    folder.check_file(&config)?;
    check_no_adapter(dir)?;
    Ok(folder)
}

/// Refuses an adapter next to a config. With PEFT installed, transformers applies it to the model;
/// no other loader reads it.
fn check_no_adapter(dir: &Path) -> Result<()> {
    const ADAPTER: [&str; 3] =
        ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
    let Some(found) =
        ADAPTER.iter().map(|name| dir.join(name)).find(|path| path.symlink_metadata().is_ok())
    else {
        return Ok(());
    };
    let what = "there is an adapter in the model's folder: transformers applies it where PEFT is installed, other loaders don't";
    Err(Error::new(Kind::Unsupported, what).file(found).remedy(
        "merge it into the model (PEFT's merge_and_unload, then save_pretrained), or move its adapter_ files elsewhere",
    ))
}

const WHAT_TO_GIVE: &str = "give the directory that holds config.json and the safetensors files";

/// The error for a folder without a config; it says what the folder has instead, if that is known.
fn no_config(dir: &Path, config: &Path) -> Error {
    let found = match names_in(dir) {
        Ok(found) => found,
        Err(error) => return Error::io("cannot read this directory", dir, error),
    };
    if let Some(error) = config.metadata().err().filter(|e| e.kind() != io::ErrorKind::NotFound) {
        return Error::io("cannot read this file", config, error);
    }
    if found.contains("adapter_config.json") {
        return missing_config(dir, ": this is an adapter")
            .remedy("merge it into its base model first (PEFT's merge_and_unload)");
    }
    match other_format(&found) {
        Some(error) => error.within("no config.json here").file(dir),
        None => config_below(dir),
    }
}

fn names_in(dir: &Path) -> io::Result<BTreeSet<String>> {
    Ok(fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn missing_config(dir: &Path, what: &str) -> Error {
    Error::new(Kind::Missing, format!("no config.json here{what}")).file(dir)
}

/// The error for `dir` without a config; it names checkpoints in folders of `dir`.
fn config_below(dir: &Path) -> Error {
    match checkpoints_below(dir).as_slice() {
        [] => missing_config(dir, "").remedy(WHAT_TO_GIVE),
        [one] => missing_config(dir, ", but below").remedy(format!("give {}", one.display())),
        [first, others @ ..] => missing_config(dir, ", but below").remedy(format!(
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
