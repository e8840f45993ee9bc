//! Decides which files other than config and weights a conversion carries along.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::folder::Folder;
use crate::formats::CONFIG_FILE;
use crate::manifest::MANIFEST_FILE;
use crate::result::{CARD_FILE, LOG_FILE, RECEIPT_FILE, RUN_FILE};

/// A file that a conversion carries along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// The name in the model's folder, with `/` between folders.
    pub name: String,
    /// Path of the file.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
}

/// The files of a model other than its config and weights.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    /// Tokenizer, templates, code, licenses and everything else that isn't known to be something
    /// else; sorted by name.
    pub carried: Vec<SideFile>,
    /// Files that are left out, by name, with the reason. Names of folders, which are left out as a
    /// whole, end in `/`.
    pub left_out: BTreeMap<String, &'static str>,
}

/// Maximum number of files, since the folder may be anyone's.
const MAX_FILES: usize = 1 << 16;
/// Maximum depth of folders.
const MAX_DEPTH: usize = 8;
/// Larger files that loaders don't know are data rather than part of the model.
const MAX_UNKNOWN_BYTES: u64 = 256 << 20;
/// Maximum size of a tokenizer. Those of a million tokens take a tenth of it.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;
/// Maximum size of configs, templates and code, which take some kilobytes.
const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Some file name endings are shared by weights and by tables such as tokenizers. Larger files are
/// weights.
const MAX_TABLE_BYTES: u64 = 64 << 20;

const WEIGHTS: &str = "weights, not read";
const WRITTEN: &str = "the result has its own";
const HIDDEN: &str = "hidden";
const PYTHON: &str = "made by Python";
const FORMAT: &str = "the model in another format";
const TRAINING: &str = "left by a training";
const ENCODING: &str = "describes the source's encoding, as config.json does";

impl SideFiles {
    /// Walks the `folder` of a model.
    ///
    /// # Errors
    /// What [`Folder::check_file`] refuses about files to carry; [`Kind::Io`] if a folder can't be
    /// listed.
    pub fn of(folder: &Folder) -> Result<Self> {
        let mut walk = Walk { folder, seen: BTreeSet::new(), files: 0, found: Self::default() };
        walk.directory(folder.path(), "", 0)?;
        let mut found = walk.found;
        if found.left_out.keys().any(|name| name.starts_with("consolidated")) {
            // This file is the config of these weights.
            found.leave_out(ENCODING, |name| name == "params.json");
        }
        found.carried.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Leaves out files for which `does_not_apply` returns true, with the reason `why`.
    pub fn leave_out(&mut self, why: &'static str, does_not_apply: impl Fn(&str) -> bool) {
        for file in self.carried.extract_if(.., |file| does_not_apply(&file.name)) {
            self.left_out.insert(file.name, why);
        }
    }

    /// Total size in bytes of the carried files.
    pub fn bytes(&self) -> u64 {
        self.carried.iter().map(|file| file.bytes).sum()
    }

    /// Refuses files that can't be read, or can't be what their names say, before there is work to
    /// lose.
    ///
    /// # Errors
    /// [`Kind::Io`] and [`Kind::Malformed`], naming the file.
    pub fn check_readable(&self) -> Result<()> {
        self.carried.iter().try_for_each(|file| {
            File::open(&file.path)
                .map_err(|e| Error::io("cannot read this file", &file.path, e))?;
            match max_bytes(file.name.rsplit('/').next().unwrap_or_default()) {
                Some(most) if file.bytes > most => {
                    let what = format!(
                        "this takes {} bytes, and no file of this name takes more than {most}",
                        file.bytes
                    );
                    Err(Error::new(Kind::Malformed, what)
                        .file(&file.path)
                        .remedy("it is damaged: download or copy it again, or move it elsewhere"))
                }
                _ => Ok(()),
            }
        })
    }

    /// Files that are left out and may be missed, with the reason. Weights, hidden files, and files
    /// that the result has its own version of aren't included.
    pub fn missed(&self) -> impl Iterator<Item = (&str, &'static str)> {
        // A run of this program also leaves a receipt there.
        let is_of_run = self.left_out.contains_key(RECEIPT_FILE);
        let left_out = self.left_out.iter().map(|(name, why)| (name.as_str(), *why));
        left_out.filter(move |(name, why)| match *why {
            HIDDEN | PYTHON | FORMAT => false,
            WRITTEN => !is_of_run && [RUN_FILE, LOG_FILE].contains(name),
            WEIGHTS => is_anything(name),
            _ => true,
        })
    }
}

struct Walk<'f> {
    folder: &'f Folder,
    /// Directories that were walked, with links resolved.
    seen: BTreeSet<PathBuf>,
    files: usize,
    found: SideFiles,
}

impl Walk<'_> {
    /// Walks `dir`; `prefix` is its name in the model's folder, with a `/` at the end.
    fn directory(&mut self, dir: &Path, prefix: &str, depth: usize) -> Result<()> {
        if !self.seen.insert(self.folder.resolve(dir)?) {
            return Ok(());
        }
        for entry in fs::read_dir(dir).map_err(|e| cannot_list(dir, e))? {
            let path = entry.map_err(|e| cannot_list(dir, e))?.path();
            self.files += 1;
            if self.files > MAX_FILES {
                let what =
                    format!("there are more than {MAX_FILES} files here, which no model has");
                return Err(Error::new(Kind::Unsupported, what)
                    .file(self.folder.path())
                    .remedy("give a directory that holds the model alone"));
            }
            self.entry(&path, prefix, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, prefix: &str, depth: usize) -> Result<()> {
        let Some(name) = listable_name(path) else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = prefix.to_owned() + &name.escape_debug().to_string();
            self.found.left_out.insert(name, "its name can't be written to a list");
            return Ok(());
        };
        let entry = WalkEntry { path, name, prefix, is_dir: path.is_dir() };
        if entry.is_one_of(&[CONFIG_FILE, MANIFEST_FILE]) {
            return Ok(());
        }
        if entry.is_one_of(&[CARD_FILE]) {
            // Its license and language are carried over.
            self.folder.check_file(path)?;
        }
        if let Some(why) = entry.why_left_out(depth) {
            self.found.left_out.insert(entry.listed_name(), why);
            return Ok(());
        }
        if entry.is_dir {
            return self.directory(path, &entry.listed_name(), depth + 1);
        }
        self.file(&entry)
    }

    fn file(&mut self, entry: &WalkEntry<'_>) -> Result<()> {
        let path = entry.path;
        self.folder.check_file(path)?;
        let bytes =
            path.metadata().map_err(|e| Error::io("cannot look at this file", path, e))?.len();
        let name = entry.listed_name();
        if bytes > MAX_UNKNOWN_BYTES && max_bytes(entry.name).is_none() {
            self.found.left_out.insert(name, "too large for anything but weights or data");
            return Ok(());
        }
        self.found.carried.push(SideFile { name, path: path.to_owned(), bytes });
        Ok(())
    }
}

fn cannot_list(dir: &Path, source: io::Error) -> Error {
    Error::io("cannot list the checkpoint", dir, source)
}

/// The name of `path`; None if it can't be in a list, since a line break would forge a line of
/// SHA256SUMS.
fn listable_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str).filter(|name| !name.contains(char::is_control))
}

/// A file or folder that a walk found.
struct WalkEntry<'a> {
    path: &'a Path,
    name: &'a str,
    /// The name of its folder, with a `/` at the end; "" for the model's folder.
    prefix: &'a str,
    is_dir: bool,
}

impl WalkEntry<'_> {
    /// Whether it is in the model's folder itself, with one of `names`.
    fn is_one_of(&self, names: &[&str]) -> bool {
        self.prefix.is_empty() && names.contains(&self.name)
    }

    /// The name in the model's folder, with a `/` at the end for a folder.
    fn listed_name(&self) -> String {
        let end = if self.is_dir { "/" } else { "" };
        format!("{}{}{end}", self.prefix, self.name)
    }

    /// The reason for leaving it out because of its name or its `depth`; None if it is carried.
    fn why_left_out(&self, depth: usize) -> Option<&'static str> {
        if self.name.starts_with('.') {
            return Some(HIDDEN);
        }
        if self.prefix.is_empty() && is_own(self.name) {
            return Some(WRITTEN);
        }
        if !self.is_dir {
            return why_left_out(self.path, self.name);
        }
        why_folder_left_out(self.path, self.name)
            .or_else(|| (depth == MAX_DEPTH).then_some("too deep"))
    }
}

/// The maximum size in bytes of a file with this name; None if loaders don't know the name.
fn max_bytes(name: &str) -> Option<u64> {
    const TOKENIZERS: [&str; 4] = [".model", ".tiktoken", "vocab.txt", "merges.txt"];
    let is_tokenizer =
        name.starts_with("tokenizer") || name.starts_with("vocab") || name == "tekken.json";
    if is_tokenizer || TOKENIZERS.iter().any(|end| name.ends_with(end)) {
        return Some(MAX_TOKENIZER_BYTES);
    }
    [".json", ".jinja", ".py"].iter().any(|end| name.ends_with(end)).then_some(MAX_CONFIG_BYTES)
}

/// Whether a result has its own file with this name in the model's folder. A model card of the
/// source, in any language, would be wrong for the result.
fn is_own(name: &str) -> bool {
    const OWN: [&str; 4] = [RECEIPT_FILE, RUN_FILE, "report.html", LOG_FILE];
    let is_page = name.starts_with("report-") && name.ends_with(".html");
    let lower = name.to_ascii_lowercase();
    let is_card = lower == "readme" || lower.starts_with("readme.") || lower.starts_with("readme_");
    let is_code = lower.ends_with(".py");
    OWN.contains(&name) || is_page || is_card && !is_code
}

/// The reason for leaving out the file `path`, which isn't hidden; None if it is carried.
fn why_left_out(path: &Path, name: &str) -> Option<&'static str> {
    if holds_weights(path, name) {
        return Some(WEIGHTS);
    }
    const TRAINED: [&str; 5] = [
        "trainer_state.json",
        "trainer_log.jsonl",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
    ];
    if TRAINED.contains(&name) || name.starts_with("events.out.tfevents") || name.ends_with(".log")
    {
        return Some(TRAINING);
    }
    // vLLM reads some of these if config.json doesn't mention quantization.
    const ENCODINGS: [&str; 3] =
        ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];
    ENCODINGS.contains(&name).then_some(ENCODING)
}

/// The reason for leaving out the folder `path`, which isn't hidden; None if it is walked.
fn why_folder_left_out(path: &Path, name: &str) -> Option<&'static str> {
    if name == "__pycache__" {
        return Some(PYTHON);
    }
    // A shard of the result may have this name.
    if is_weights(name) {
        return Some(WEIGHTS);
    }
    const OTHERS: [&str; 7] = ["original", "onnx", "openvino", "coreml", "gguf", "metal", "flax"];
    const LEFT: [&str; 3] = ["runs", "wandb", "logs"];
    let why = if OTHERS.contains(&name) {
        FORMAT
    } else if LEFT.contains(&name)
        || name.starts_with("checkpoint-")
        || name.starts_with("global_step")
    {
        TRAINING
    } else {
        return None;
    };
    // Code may be in a folder of any name, and import the model's.
    (!has_code(path)).then_some(why)
}

/// Whether there is a Python file in the folder `path` or in a folder below it. Links aren't
/// followed.
fn has_code(path: &Path) -> bool {
    let mut folders = vec![path.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MAX_FILES {
                return false;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if entry.file_name().to_str().is_some_and(|name| name.ends_with(".py")) {
                return true;
            }
        }
    }
    false
}

/// Beginnings of names of files with weights or with states of a training.
const NAMES_OF_WEIGHTS: [&str; 17] = [
    "model",
    "pytorch_model",
    "adapter_model",
    "consolidated",
    "optimizer",
    "scheduler",
    "training_args",
    "rng_state",
    "random_states",
    "diffusion_pytorch_model",
    "flax_model",
    "tf_model",
    "weights",
    "checkpoint",
    "ggml",
    "lora",
    "mp_rank",
];

/// Whether this is the name of a file that torch saved, which can hold anything.
fn is_anything(name: &str) -> bool {
    let lower = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let is_saved = [".pt", ".pth", ".ckpt"].iter().any(|end| lower.ends_with(end));
    is_saved && !NAMES_OF_WEIGHTS.iter().any(|start| lower.starts_with(start))
}

/// Whether the file `path` holds weights rather than tables of a tokenizer, which have the same
/// endings.
fn holds_weights(path: &Path, name: &str) -> bool {
    const SHARED: [&str; 7] = [".bin", ".npz", ".pkl", ".pickle", ".zip", ".tar", ".tar.gz"];
    let lower = name.to_ascii_lowercase();
    if !is_weights(name) || !SHARED.iter().any(|end| lower.ends_with(end)) {
        return is_weights(name);
    }
    let is_large = path.metadata().map_or(true, |file| file.len() > MAX_TABLE_BYTES);
    is_large || NAMES_OF_WEIGHTS.iter().any(|start| lower.starts_with(start))
}

/// Endings of names of files with weights, after the last dot.
const ENDINGS_OF_WEIGHTS: [&str; 25] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "pt2",
    "ckpt",
    "msgpack",
    "h5",
    "hdf5",
    "ot",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "tflite",
    "mlmodel",
    "llamafile",
    "npz",
    "pkl",
    "pickle",
    "pdparams",
    "nemo",
    "distcp",
    "zip",
    "tar",
];

/// Whether a file with this name holds or lists weights, of a model or an optimizer.
pub fn is_weights(name: &str) -> bool {
    let listed = name.strip_suffix(".index.json").unwrap_or(name);
    let end = listed.rsplit_once('.').map_or("", |(_, end)| end).to_ascii_lowercase();
    let is_adapter = name.starts_with("adapter_") && name.ends_with(".json");
    ENDINGS_OF_WEIGHTS.contains(&end.as_str())
        || is_adapter
        || name.ends_with(".tar.gz")
        || name.ends_with(".index.json")
}

#[cfg(test)]
mod tests;
