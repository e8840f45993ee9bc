//! Finds out what a folder without a checkpoint contains: weights of other formats, or folders with
//! checkpoints.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind};

/// The file that describes a model's architecture.
pub const CONFIG_FILE: &str = "config.json";

/// Maximum number of files and folders to look at, since the folder may be anyone's.
const MAX_ENTRIES: usize = 256;
/// Depth of a hub cache: the model's folder, snapshots, a commit.
const MAX_DEPTH: usize = 3;

/// The end of a file's name, the weights that such files have, and how to get readable ones.
type OtherFormat = (&'static str, &'static str, &'static str);

const FORMATS: [OtherFormat; 8] = [
    (
        ".gguf",
        "GGUF weights only, which are not read",
        "give the safetensors checkpoint that they were made of",
    ),
    (
        ".distcp",
        "shards of a distributed PyTorch checkpoint only",
        "make one file of them: accelerate merge-weights CHECKPOINT OUT writes safetensors",
    ),
    (".npz", "NumPy or MLX weights only", "give the safetensors checkpoint that they were made of"),
    (
        ".h5",
        "TensorFlow weights only",
        "save it as safetensors: AutoModelForCausalLM.from_pretrained(dir, from_tf=True) of transformers 4",
    ),
    (
        ".msgpack",
        "Flax weights only",
        "save it as safetensors: AutoModelForCausalLM.from_pretrained(dir, from_flax=True) of transformers 4",
    ),
    (".onnx", "ONNX weights only", "give the safetensors checkpoint that they were made of"),
    (".nemo", "NeMo weights only", "export it to Hugging Face's format with NeMo first"),
    (
        ".safetensors.incomplete",
        "a download that isn't finished",
        "download it again (hf download NAME --local-dir DIR)",
    ),
];

/// The error for a folder with files called `names`, none of them safetensors weights; None if no
/// format has such names.
pub(crate) fn other_format(names: &BTreeSet<String>) -> Option<Error> {
    let (what, remedy) = told_by(names)?;
    let what = format!("this checkpoint has {what}");
    Some(Error::new(Kind::Unsupported, what).remedy(remedy))
}

/// The format of weights that has files with these `names`, and how to get readable ones.
fn told_by(names: &BTreeSet<String>) -> Option<(&'static str, &'static str)> {
    if names.iter().any(|name| name.starts_with("consolidated.") && name.ends_with(".pth")) {
        return Some((
            "pickled weights in Meta's or Mistral's own format only (consolidated.*.pth)",
            "get the checkpoint in Hugging Face's format, or convert it by transformers' convert_…_weights_to_hf.py of its family",
        ));
    }
    if let Some((_, what, remedy)) = FORMATS.into_iter().find(|(end, ..)| has_end(names, end)) {
        return Some((what, remedy));
    }
    if names.contains("zero_to_fp32.py") {
        return Some((
            "weights of a DeepSpeed training only",
            "run python zero_to_fp32.py . OUT --safe_serialization in it",
        ));
    }
    [".bin", ".pth", ".pt"].into_iter().any(|end| has_end(names, end)).then_some((
        "pickled PyTorch weights only",
        "save it as safetensors: model.save_pretrained(dir, safe_serialization=True)",
    ))
}

/// Whether one of `names` ends in `end`, ignoring case.
fn has_end(names: &BTreeSet<String>, end: &str) -> bool {
    names.iter().any(|name| name.to_ascii_lowercase().ends_with(end))
}

/// The checkpoints below `dir`, which isn't one itself: a hub cache has them three folders down.
pub(crate) fn checkpoints_below(dir: &Path) -> Vec<PathBuf> {
    let (mut entries, mut found) = (MAX_ENTRIES, Vec::new());
    search(dir, MAX_DEPTH, &mut entries, &mut found);
    found
}

fn search(dir: &Path, depth: usize, entries: &mut usize, found: &mut Vec<PathBuf>) {
    let Ok(children) = fs::read_dir(dir) else { return };
    let mut folders: Vec<PathBuf> =
        children.filter_map(|entry| Some(entry.ok()?.path())).take(*entries).collect();
    *entries -= folders.len();
    folders.retain(|path| path.is_dir() && !path.is_symlink());
    folders.sort();
    for folder in folders {
        if folder.join(CONFIG_FILE).is_file() {
            found.push(folder);
        } else if depth > 0 {
            search(&folder, depth - 1, entries, found);
        }
    }
}
