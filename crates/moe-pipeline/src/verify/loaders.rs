//! Finds what stock loaders refuse in a checkpoint whose files are sound by themselves.

use std::fs::File;
use std::path::Path;

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Error, INDEX_FILE, Kind, Result, SINGLE_FILE, SideFile, SideFiles,
    SourceFile, begins_with_mark,
};
use moe_forward::{TOKENIZER_FILE, tokens_beyond_vocabulary};
use moe_model::{Layout, Model};

use super::contents::{MARKED, damaged};
use super::generation::{self, RefusedConfig};
use super::pointer::is_pointer;

/// Refuses a checkpoint that the current transformers can't load, and damaged side files.
///
/// # Errors
/// [`Kind::Mismatch`] with all problems; the file and the remedy are those of the first.
pub(super) fn check(checkpoint: &Checkpoint, model: &Model) -> Result<()> {
    let mut refused = of_marks(checkpoint);
    refused.extend(of_index(checkpoint));
    refused.extend(of_single_file(checkpoint));
    refused.extend(of_name(checkpoint));
    refused.extend(of_endings(checkpoint));
    refused.extend(of_config(model));
    refused.extend(of_plain(model));
    refused.extend(of_unknown_names(checkpoint, model));
    refused.extend(of_side_files(checkpoint.side_files()));
    refused.extend(of_generation(checkpoint.side_files()));
    if refused.is_empty() {
        refused.extend(of_tokenizer(checkpoint.dir(), model.vocab));
    }
    let Some(first) = refused.first() else { return Ok(()) };
    Err(Error::new(Kind::Mismatch, all(&refused))
        .file(checkpoint.dir().join(&first.file))
        .remedy(first.remedy))
}

/// Refuses side files of the folder `dir` for which loaders would refuse a result with a vocabulary
/// of `vocab`. Faulty keys of a generation_config.json don't count, since passes remove them.
///
/// # Errors
/// [`Kind::Malformed`] with all problems; the file and the remedy are those of the first.
pub(crate) fn check_carried(files: &SideFiles, dir: &Path, vocab: usize) -> Result<()> {
    let mut refused = of_side_files(files);
    if refused.is_empty() {
        refused.extend(of_tokenizer(dir, vocab));
    }
    let Some(first) = refused.first() else { return Ok(()) };
    let what =
        format!("loaders would refuse the result for a file that comes along: {}", all(&refused));
    let remedy = format!("{}; or move it elsewhere, and the result goes without it", first.remedy);
    Err(Error::new(Kind::Malformed, what).file(dir.join(&first.file)).remedy(remedy))
}

/// A problem for which loaders refuse a checkpoint.
struct Refused {
    what: String,
    file: String,
    remedy: &'static str,
}

impl Refused {
    fn new(what: impl Into<String>, file: &str, remedy: &'static str) -> Self {
        Self { what: what.into(), file: file.to_owned(), remedy }
    }
}

/// Python's JSON reader fails at byte order marks, which this program skips.
fn of_marks(checkpoint: &Checkpoint) -> Vec<Refused> {
    let names = std::iter::once(CONFIG_FILE).chain(checkpoint.index().map(|_| INDEX_FILE));
    let marked = names.filter(|name| begins_with_mark(&checkpoint.dir().join(name)));
    let remedy = "write it as UTF-8 without that mark; any pass of this program does";
    marked.map(|name| Refused::new(format!("{name} {MARKED}"), name, remedy)).collect()
}

/// All problems in one sentence.
fn all(refused: &[Refused]) -> String {
    refused.iter().map(|refused| refused.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// transformers writes into the index's metadata while it loads (`get_checkpoint_shard_files`).
fn of_index(checkpoint: &Checkpoint) -> Option<Refused> {
    let without = checkpoint.index().is_some_and(|index| !index.has_metadata);
    without.then(|| {
        let what =
            "the index has no object \"metadata\", without which transformers doesn't load it";
        Refused::new(
            what,
            INDEX_FILE,
            "add \"metadata\": {} to it; any pass of this program writes a whole index",
        )
    })
}

/// transformers ignores the index if there is a file of the usual name.
fn of_single_file(checkpoint: &Checkpoint) -> Option<Refused> {
    let named = checkpoint.config().contains_key(moe_checkpoint::EXPLICIT_KEY);
    let is_single =
        |file: &SourceFile| file.path().file_name().is_some_and(|name| name == SINGLE_FILE);
    let files = checkpoint.files();
    (!named && files.len() > 1 && files.iter().any(|file| is_single(file))).then(|| {
        let what = format!("the index names {SINGLE_FILE} and more, of which transformers reads {SINGLE_FILE} alone");
        Refused::new(what, SINGLE_FILE, "rename it to what shards are called, in the index too; any pass does that")
    })
}

/// transformers looks for these file names only; vLLM accepts any.
fn of_name(checkpoint: &Checkpoint) -> Option<Refused> {
    let named = checkpoint.config().contains_key(moe_checkpoint::EXPLICIT_KEY);
    let [file] = checkpoint.files() else { return None };
    let name = file.path().file_name()?.to_str()?;
    let found = checkpoint.index().is_some() || named || name == SINGLE_FILE;
    (!found).then(|| {
        let what = format!(
            "transformers doesn't find the weights: it looks for {SINGLE_FILE} or {INDEX_FILE}"
        );
        Refused::new(what, name, "rename the file to model.safetensors")
    })
}

/// transformers takes a shard with another extension for a pickle.
fn of_endings(checkpoint: &Checkpoint) -> Option<Refused> {
    let names = checkpoint.files().iter().filter_map(|file| file.path().file_name()?.to_str());
    let other = names.into_iter().find(|name| !name.ends_with(".safetensors"))?;
    let what = format!("the index names {other}, which loaders take for a pickle");
    Some(Refused::new(
        what,
        other,
        "end its name in .safetensors, in the index too; any pass writes such names",
    ))
}

fn of_plain(model: &Model) -> Option<Refused> {
    let plain = model.plain_unlisted().ok().filter(|plain| !plain.is_empty())?;
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    let what = format!(
        "quantization_config calls for quantized matrices where these are plain, which transformers starts at random: {}",
        some(&plain)
    );
    Some(Refused::new(
        what,
        CONFIG_FILE,
        "list them under ignore in quantization_config; any pass of this program does",
    ))
}

/// Experts with names that no loader knows.
fn of_unknown_names(checkpoint: &Checkpoint, model: &Model) -> Option<Refused> {
    let name = named_by(checkpoint, model, |layout, _| layout.is_unknown)?;
    let what = format!(
        "{name}: transformers doesn't know this name in a {} model",
        model.family.model_type
    );
    let remedy = "rename the experts' tensors; any pass of this program writes the usual names";
    Some(Refused::new(what + ", and starts such experts at random", CONFIG_FILE, remedy))
}

/// The first tensor of an expert in a layout that is `wanted`, and the number of such tensors.
pub(super) fn named_by<'c>(
    checkpoint: &'c Checkpoint,
    model: &Model,
    wanted: fn(&Layout, usize) -> bool,
) -> Option<&'c str> {
    let layouts = model.family.moe.iter().flat_map(|rule| rule.layouts.iter().enumerate());
    let wanted = layouts
        .filter(|(at, layout)| wanted(layout, *at))
        .filter_map(|(_, layout)| layout.expert.as_ref());
    let ends: Vec<String> =
        wanted.map(|names| format!(".{}", names.gate.replace("{expert}", "0"))).collect();
    let names = checkpoint.tensors().keys().map(String::as_str);
    names.into_iter().find(|name| ends.iter().any(|end| name.ends_with(end.as_str())))
}

fn of_config(model: &Model) -> Vec<Refused> {
    let refused = model.refused_config();
    if refused.is_empty() {
        return Vec::new();
    }
    let written = model.declare().and_then(|declaration| declaration.reread());
    let remedy = if written.is_ok_and(|model| model.refused_config().is_empty()) {
        "correct config.json; any pass of this program writes it as loaders want it"
    } else {
        "correct this in config.json"
    };
    refused.into_iter().map(|what| Refused::new(what, CONFIG_FILE, remedy)).collect()
}

/// A file that is JSON, but not a tokenizer. A sound tokenizer that this program can't follow gives
/// a note instead.
fn of_tokenizer(dir: &Path, vocab: usize) -> Option<Refused> {
    let error = tokens_beyond_vocabulary(dir, vocab).err()?;
    let what = format!("the tokenizer can't be read: {}", error.briefly());
    let file = error.named_file().and_then(|file| file.strip_prefix(dir).ok());
    let file = file.unwrap_or(Path::new(TOKENIZER_FILE)).display().to_string();
    (error.kind() == Kind::Malformed)
        .then(|| Refused::new(what, &file, "this file is damaged: download or copy it again"))
}

fn of_side_files(files: &SideFiles) -> Vec<Refused> {
    let mut refused: Vec<Refused> = of_pointers(files).into_iter().collect();
    refused.extend(files.carried.iter().filter_map(of_permissions));
    let remedy = "this file is damaged: correct it, or download or copy it again";
    let damaged = damaged(files).into_iter();
    refused.extend(damaged.map(|(name, what)| Refused::new(what, name, remedy)));
    refused
}

/// Git LFS pointers, all in one sentence.
fn of_pointers(files: &SideFiles) -> Option<Refused> {
    let pointers = files.carried.iter().filter(|file| is_pointer(file));
    let names: Vec<&str> = pointers.map(|file| file.name.as_str()).collect();
    let first = names.first()?;
    let what =
        format!("pointers of Git LFS in the place of what they stand for: {}", names.join(", "));
    Some(Refused::new(what, first, "fetch what they stand for: git lfs pull"))
}

/// A file that can't be opened.
fn of_permissions(file: &SideFile) -> Option<Refused> {
    let error = File::open(&file.path).err()?;
    let what = format!("{} can't be read: {error}", file.name);
    Some(Refused::new(what, &file.name, "check the permissions of this file, and the disk"))
}

fn of_generation(files: &SideFiles) -> Vec<Refused> {
    let what = match generation::refused_config(files) {
        None => return Vec::new(),
        Some(RefusedConfig::Whole) => {
            vec![format!("{} doesn't hold an object", generation::CONFIG)]
        }
        Some(RefusedConfig::Keys(keys)) => {
            keys.into_iter().map(|key| format!("{} says {}", generation::CONFIG, key.why)).collect()
        }
    };
    let remedy =
        "correct it, or remove it; any pass of this program leaves out what is refused of it";
    what.into_iter().map(|what| Refused::new(what, generation::CONFIG, remedy)).collect()
}

/// Whether these files hold a tokenizer that some loader reads.
pub(crate) fn has_tokenizer(files: &SideFiles) -> bool {
    const NAMES: [&str; 6] = [
        "tokenizer.json",
        "tokenizer.model",
        "tiktoken.model",
        "tekken.json",
        "vocab.json",
        "vocab.txt",
    ];
    files
        .carried
        .iter()
        .any(|file| NAMES.contains(&file.name.as_str()) || file.name.ends_with(".tiktoken"))
}

/// The first few of `names`.
pub(super) fn some(names: &[&str]) -> String {
    const MAX: usize = 8;
    let shown = names.iter().take(MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
