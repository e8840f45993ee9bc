//! Opening a checkpoint directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::index::{INDEX_FILE, find_shards};
use crate::json;
use crate::snapshot::Snapshot;
use crate::stored::{SourceFile, Stored};

/// The file that describes a model's architecture.
pub const CONFIG_FILE: &str = "config.json";

/// A checkpoint directory: its config, and lazy references to its tensors. Opening reads headers only.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Map<String, Value>,
    tensors: BTreeMap<String, Stored>,
    files: Vec<Arc<SourceFile>>,
    side_files: Vec<PathBuf>,
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
        if !config_path.is_file() {
            return Err(no_config(dir, &config_path));
        }
        let side_files = side_files(dir)?;
        let mut snapshot = Snapshot::default();
        snapshot.extend(side_files.iter().chain([&config_path, &dir.join(INDEX_FILE)]));
        let config: Map<String, Value> = json::read_tree(&config_path)?;
        let index = find_shards(dir)?;
        snapshot.extend(index.files.iter().map(|name| dir.join(name)));
        let mut tensors = BTreeMap::<String, Stored>::new();
        let mut files = Vec::with_capacity(index.files.len());
        for name in &index.files {
            let (file, entries) = SourceFile::open(&dir.join(name))?;
            for entry in entries {
                let stored = Stored::of_file(&file, entry);
                if let Some(first) = tensors.get(stored.name()) {
                    return Err(Error::new(
                        Kind::Malformed,
                        format!("two shards hold this tensor; the other is {}", first.path().display()),
                    )
                    .tensor(stored.name())
                    .file(stored.path())
                    .remedy("remove the stale shard, or download the checkpoint again"));
                }
                tensors.insert(stored.name().to_owned(), stored);
            }
            files.push(file);
        }
        for (tensor, shard) in &index.weight_map {
            if tensors.get(tensor).is_none_or(|t| !t.path().ends_with(shard)) {
                return Err(Error::new(
                    Kind::Missing,
                    format!("the index says {shard} holds this tensor; it does not"),
                )
                .tensor(tensor)
                .file(dir.join(INDEX_FILE))
                .remedy("download the shard and the index again"));
            }
        }
        Ok(Self { dir: dir.to_owned(), config, tensors, files, side_files, snapshot })
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

    /// The files beside config and weights that a conversion carries along: tokenizer, templates,
    /// generation config. Sorted; weights in other formats, receipts and hidden files are left out.
    pub fn side_files(&self) -> &[PathBuf] {
        &self.side_files
    }

    /// Refuses a checkpoint of which a file has changed since it was opened.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.snapshot.check()
    }
}

fn side_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io("cannot list the checkpoint", dir, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        if path.is_file() && name.is_some_and(is_side_file) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An allow-list: what stock loaders read. Anything else in the folder (training logs, other weight
/// formats, the source's own model card) says nothing true about the converted model.
fn is_side_file(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "generation_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.json",
        "LICENSE",
        "LICENSE.txt",
        "LICENSE.md",
        "NOTICE",
        "USE_POLICY.md",
    ];
    let known = NAMES.contains(&name)
        || name.starts_with("tokenizer")
        || name.ends_with(".jinja")
        || name.ends_with(".tiktoken");
    // A line break would forge a line of SHA256SUMS.
    known && !name.contains(char::is_control)
}

const WHAT_TO_GIVE: &str = "give the directory that holds config.json and the safetensors files";

/// What is there instead, where that can be seen.
fn no_config(dir: &Path, config: &Path) -> Error {
    let found = match std::fs::read_dir(dir) {
        Ok(found) => found.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect::<Vec<_>>(),
        Err(error) => return Error::io("cannot read this directory", dir, error),
    };
    if let Some(error) = config.metadata().err().filter(|error| error.kind() != std::io::ErrorKind::NotFound) {
        return Error::io("cannot read this file", config, error);
    }
    let missing = |what: &str| Error::new(Kind::Missing, format!("no config.json here{what}")).file(dir);
    if found.iter().any(|name| name == "adapter_config.json") {
        return missing(": this is an adapter").remedy("merge it into its base model first (PEFT's merge_and_unload)");
    }
    if found.iter().any(|name| name.ends_with(".gguf")) {
        return missing(": GGUF is not read").remedy("give the safetensors checkpoint that it was made of");
    }
    missing("").remedy(WHAT_TO_GIVE)
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
