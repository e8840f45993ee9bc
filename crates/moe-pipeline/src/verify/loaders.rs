//! What stock loaders do with a checkpoint whose files are sound by themselves: refuse it, or trip
//! over something.

use std::fs::File;
use std::path::Path;

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Error, INDEX_FILE, Kind, Result, SINGLE_FILE, SideFile, SideFiles,
    SourceFile, begins_with_mark, json, read_whole,
};
use moe_forward::tokens_beyond_vocabulary;
use moe_model::{Layout, Model, is_computed, loaded_name};
use serde_json::{Map, Value};

use super::contents::{MARKED, damaged, ignored};
use super::generation::{self, RefusedConfig};
use super::older;

/// A pointer of Git LFS is no longer.
const MAX_POINTER_BYTES: u64 = 1024;

/// Refuses what the current transformers can't load, and files beside the weights that are damaged.
///
/// # Errors
/// [`Kind::Mismatch`], with all that is refused; the file and the remedy are the first one's.
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

/// Refuses files that come along from the folder `dir` to a result with a vocabulary of `vocab`,
/// where loaders would refuse the result for them. Of a generation_config.json, passes leave out
/// what is refused.
///
/// # Errors
/// [`Kind::Malformed`], with all that is refused; the file and the remedy are the first one's.
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

/// Something that loaders refuse.
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

/// Python's JSON reader fails at what this program passes over.
fn of_marks(checkpoint: &Checkpoint) -> Vec<Refused> {
    let names = std::iter::once(CONFIG_FILE).chain(checkpoint.index().map(|_| INDEX_FILE));
    let marked = names.filter(|name| begins_with_mark(&checkpoint.dir().join(name)));
    let remedy = "write it as UTF-8 without that mark; any pass of this program does";
    marked.map(|name| Refused::new(format!("{name} {MARKED}"), name, remedy)).collect()
}

/// All that is refused, in one sentence.
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

/// transformers looks at no index where there is a file of the usual name.
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

/// transformers looks for no other file than these; vLLM takes any.
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

/// transformers takes a shard of another ending for a pickle.
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

/// Experts whose names no loader knows.
fn of_unknown_names(checkpoint: &Checkpoint, model: &Model) -> Option<Refused> {
    let name = named_by(checkpoint, model, |layout, _| layout.is_unknown)?;
    let what = format!(
        "{name}: transformers doesn't know this name in a {} model",
        model.family.model_type
    );
    let remedy = "rename the experts' tensors; any pass of this program writes the usual names";
    Some(Refused::new(what + ", and starts such experts at random", CONFIG_FILE, remedy))
}

/// The first tensor that is one of an expert by a layout that is `wanted`, of which the number is
/// given, too.
fn named_by<'c>(
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
    let remedy = match written.is_ok_and(|model| model.refused_config().is_empty()) {
        true => "correct config.json; any pass of this program writes it as loaders want it",
        false => "correct this in config.json",
    };
    refused.into_iter().map(|what| Refused::new(what, CONFIG_FILE, remedy)).collect()
}

/// A tokenizer that is JSON, but not one. What this program can't follow of a sound one is a note.
fn of_tokenizer(dir: &Path, vocab: usize) -> Option<Refused> {
    let error = tokens_beyond_vocabulary(dir, vocab).err()?;
    let what = format!("the tokenizer can't be read: {}", error.briefly());
    (error.kind() == Kind::Malformed).then(|| {
        Refused::new(what, "tokenizer.json", "this file is damaged: download or copy it again")
    })
}

fn of_side_files(files: &SideFiles) -> Vec<Refused> {
    let first =
        files.carried.iter().find(|file| is_pointer(file)).map_or("", |file| file.name.as_str());
    let pointers = pointers(files).into_iter();
    let mut refused: Vec<_> = pointers
        .map(|what| Refused::new(what, first, "fetch what they stand for: git lfs pull"))
        .collect();
    for file in &files.carried {
        if let Err(error) = File::open(&file.path) {
            let what = format!("{} can't be read: {error}", file.name);
            refused.push(Refused::new(
                what,
                &file.name,
                "check the permissions of this file, and the disk",
            ));
        }
    }
    for (name, what) in damaged(files) {
        refused.push(Refused::new(
            what,
            name,
            "this file is damaged: correct it, or download or copy it again",
        ));
    }
    refused
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

/// Files that are pointers of Git LFS, in a sentence; none where there are none.
fn pointers(files: &SideFiles) -> Vec<String> {
    let pointers: Vec<&str> = files
        .carried
        .iter()
        .filter(|file| is_pointer(file))
        .map(|file| file.name.as_str())
        .collect();
    if pointers.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "pointers of Git LFS in the place of what they stand for: {}",
        pointers.join(", ")
    )]
}

pub(super) fn is_pointer(file: &SideFile) -> bool {
    file.bytes <= MAX_POINTER_BYTES
        && read_whole(&file.path, MAX_POINTER_BYTES)
            .is_ok_and(|text| text.starts_with(json::LFS_POINTER))
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

/// Notes on `checkpoint`, one sentence each.
pub(crate) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let config = checkpoint.config();
    let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if !has("architectures") {
        notes.push("config.json has no \"architectures\": vLLM and SGLang refuse it".to_owned());
    }
    notes.extend(of_architectures(config, model));
    if config.get("quantization_config").is_some_and(Value::is_null) {
        notes.push(
            "config.json says quantization_config null, at which transformers before 5 fails: remove it".to_owned(),
        );
    }
    if has("rope_parameters") && !has("rope_theta") {
        let what = "config.json has rope_parameters only: transformers before 5 and older vLLM ignore them and use their \
                    default rope_theta; add rope_theta (and rope_scaling)";
        notes.push(what.to_owned());
    }
    if has("dtype") && !has("torch_dtype") {
        notes.push(
            "config.json has dtype only: transformers before 5 loads the weights in float32; add torch_dtype"
                .to_owned(),
        );
    }
    if let Some(rule) = &model.family.moe {
        // transformers maps num_local_experts to the key that is the family's own.
        let is_mapped =
            |key: &str| key == "num_local_experts" && rule.experts.len() > 1 && has("num_experts");
        for key in rule.experts.iter().filter(|key| !has(key) && !is_mapped(key)) {
            notes
                .push(format!("config.json has no {key}: loaders that read it assume their default number of experts"));
        }
        let fused = |name: &String| {
            rule.layouts.iter().flat_map(|l| &l.fused).any(|f| name.ends_with(&f.gate_up))
        };
        if checkpoint.tensors().keys().any(fused) {
            notes.push(
                "experts are stored as fused 3-D tensors: transformers before 5 initialises them at random".to_owned(),
            );
        }
    }
    if let Some(name) = named_by(checkpoint, model, |layout, at| at > 0 && !layout.is_unknown) {
        notes.push(format!(
            "transformers before 5 doesn't know {name} in this family, and starts such experts at random; any pass of this \
             program writes the usual names"
        ));
    }
    notes.extend(of_router(checkpoint, model));
    notes.extend(older::notes(checkpoint, model));
    notes.extend(model.caveats().map(str::to_owned));
    let tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool) == Some(true);
    if tied && checkpoint.tensors().contains_key("lm_head.weight") {
        let what = match checkpoint.tensors().contains_key("model.embed_tokens.weight") {
            true => {
                "embeddings are tied, yet there is an lm_head.weight: transformers 5 uses it if it differs, older \
                 versions and vLLM ignore it"
            }
            false => {
                "embeddings are tied, and stored as lm_head.weight alone: transformers before 5 doesn't load them; any \
                 pass of this program writes model.embed_tokens.weight"
            }
        };
        notes.push(what.to_owned());
    }
    notes.extend(ignored(checkpoint.side_files()));
    notes.extend(of_tensors(checkpoint, model));
    notes.extend(of_two_keys(config));
    notes.extend(of_tokens(checkpoint, model));
    notes.extend(checkpoint.warnings().iter().cloned());
    if !has_tokenizer(checkpoint.side_files()) {
        notes.push(
            "there is no tokenizer: AutoTokenizer, vLLM and SGLang need one beside the weights"
                .to_owned(),
        );
    }
    notes
}

/// Routers that have another name than older loaders know.
fn of_router(checkpoint: &Checkpoint, model: &Model) -> Option<String> {
    let layouts = &model.family.moe.as_ref()?.layouts;
    let usual = &layouts[0].router;
    let others: Vec<String> = layouts
        .iter()
        .filter(|layout| layout.router != *usual)
        .map(|layout| format!(".{}", layout.router))
        .collect();
    let mut names = checkpoint.tensors().keys();
    let name = names.find(|name| others.iter().any(|end| name.ends_with(end.as_str())))?;
    Some(format!(
        "transformers before 5 doesn't know {name} in this family, and starts such routers at random; any pass of this \
         program writes the usual names"
    ))
}

/// Tensors that loaders skip or refuse, and what an index says of tensors that aren't there.
fn of_tensors(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let names: Vec<&str> = checkpoint.tensors().keys().map(String::as_str).collect();
    let other = names.iter().filter_map(|name| Some((*name, loaded_name(name, checkpoint)?)));
    let (lacking, longer): (Vec<_>, Vec<_>) =
        other.partition(|(name, loaded)| loaded.len() > name.len());
    if let Some((name, loaded)) = longer.first() {
        notes.push(format!(
            "transformers 5 loads {name} as {loaded}; older versions start it at random, vLLM and SGLang refuse it; any pass of \
             this program writes the usual names"
        ));
    }
    if !lacking.is_empty() {
        let has_others =
            names.iter().any(|name| *name == "lm_head.weight" || name.starts_with("model."));
        let older = match has_others {
            true => "transformers 5 adds it, older versions, vLLM and SGLang refuse them",
            false => "transformers adds it, vLLM and SGLang refuse them",
        };
        notes.push(format!("names of tensors lack \"model.\": {older}"));
    }
    // vLLM looks each name up among its parameters (load_weights of its models) and skips few.
    let skipped = |name: &str| {
        let rotary = [
            "rotary_emb.inv_freq",
            "rotary_pos_emb.inv_freq",
            "rotary_emb.cos_cached",
            "rotary_emb.sin_cached",
        ];
        let biases: &[&str] =
            if model.family.moe.is_some() { &[".bias", "_bias"] } else { &[".bias"] };
        rotary.iter().any(|part| name.contains(part))
            || biases.iter().any(|end| name.ends_with(end))
    };
    let extra = model.extra.keys().map(String::as_str);
    let unknown: Vec<&str> =
        extra.chain(names.into_iter().filter(|name| is_computed(name))).collect();
    let (skipped, refused): (Vec<&str>, Vec<&str>) =
        unknown.into_iter().partition(|name| skipped(name));
    if !skipped.is_empty() {
        notes.push(format!("loaders ignore these tensors: {}", some(&skipped)));
    }
    if !refused.is_empty() {
        notes.push(format!(
            "transformers ignores these tensors, vLLM refuses a model with them: {}",
            some(&refused)
        ));
    }
    if let Some(index) = checkpoint.index() {
        let listed = |names: &[String]| some(&names.iter().map(String::as_str).collect::<Vec<_>>());
        if !index.unheld.is_empty() {
            notes.push(format!(
                "the index lists tensors that no shard holds: {}",
                listed(&index.unheld)
            ));
        }
        if !index.unlisted.is_empty() {
            notes.push(format!(
                "the index leaves out tensors that its shards hold, which transformers before 5 starts at random: {}; any \
                 pass of this program writes a whole index",
                listed(&index.unlisted)
            ));
        }
        if !index.misplaced.is_empty() {
            notes.push(format!(
                "the index says of tensors that another shard holds them: {}",
                listed(&index.misplaced)
            ));
        }
    }
    notes
}

/// The first few of `names`.
fn some(names: &[&str]) -> String {
    const MAX: usize = 8;
    let shown = names.iter().take(MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Keys that say the same to different loaders, where they don't.
fn of_two_keys(config: &Map<String, Value>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(dtype), Some(older)) = (config.get("dtype"), config.get("torch_dtype"))
        && dtype != older
    {
        notes.push(format!(
            "config.json says dtype {dtype}, which transformers 5 reads, and torch_dtype {older}, which others read"
        ));
    }
    notes.extend(of_rope_scaling(config));
    let theta = config
        .get("rope_parameters")
        .and_then(|rope| rope.get("rope_theta"))
        .and_then(Value::as_f64);
    if let (Some(theta), Some(older)) = (theta, config.get("rope_theta").and_then(Value::as_f64))
        && theta != older
    {
        notes.push(format!(
            "config.json says rope_theta {older}, and {theta} in rope_parameters, which transformers 5 reads: other \
             loaders compute another function"
        ));
    }
    notes
}

/// What transformers 5 and older loaders read differently of `rope_scaling`, or what the older ones
/// refuse.
fn of_rope_scaling(config: &Map<String, Value>) -> Vec<String> {
    let Some(said) = config.get("rope_scaling").filter(|said| !said.is_null()) else {
        return Vec::new();
    };
    let Some(scaling) = said.as_object() else {
        return vec![format!(
            "config.json says rope_scaling {}, which transformers before 5 refuses: remove it",
            json::shown(said)
        )];
    };
    let kinds = (scaling.get("rope_type"), scaling.get("type"));
    let mut notes = Vec::new();
    match kinds {
        (None | Some(Value::Null), None | Some(Value::Null)) => notes.push(
            "config.json has a rope_scaling without rope_type, which transformers before 5 refuses: remove it, or say \
             which type it is"
                .to_owned(),
        ),
        (Some(newer), Some(older)) if newer != older => notes.push(format!(
            "config.json says rope_type {newer} in rope_scaling, which transformers 5 reads, and type {older}, which \
             versions before it read: they compute another function"
        )),
        _ => {}
    }
    if scaling.get("factor").is_some_and(Value::is_null) {
        notes.push(
            "config.json says rope_scaling.factor null, which transformers before 5 refuses"
                .to_owned(),
        );
    }
    let keys = [("rope_theta", true), ("original_max_position_embeddings", false)];
    for (key, inner_is_newer) in keys {
        let (Some(inner), Some(outer)) = (scaling.get(key), config.get(key)) else { continue };
        if inner.as_f64() == outer.as_f64() || outer.is_null() || inner.is_null() {
            continue;
        }
        let (newer, older) = if inner_is_newer { (inner, outer) } else { (outer, inner) };
        notes.push(format!(
            "config.json says {key} {outer}, and {inner} in rope_scaling: transformers 5 reads {newer}, versions before \
             it {older}: they compute another function"
        ));
    }
    notes
}

/// What is wrong with the class that loaders are to take.
fn of_architectures(config: &Map<String, Value>, model: &Model) -> Option<String> {
    let said = config.get("architectures").filter(|said| !said.is_null())?;
    let wanted = &model.family.architecture;
    let is_right =
        said.as_array().is_some_and(|named| named.iter().any(|name| name == wanted.as_str()));
    (!is_right).then(|| {
        format!(
            "config.json says architectures {}, where a {} model has [{wanted:?}]: vLLM and SGLang load what it names; \
             any pass of this program writes it",
            json::shown(said),
            model.family.model_type
        )
    })
}

/// Tokens that the model has no embedding for.
fn of_tokens(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let vocab = model.vocab as u64;
    let mut notes = Vec::new();
    match tokens_beyond_vocabulary(checkpoint.dir(), model.vocab) {
        Ok(beyond) => notes.extend(beyond.last().map(|(id, token)| {
            format!(
                "the tokenizer has tokens beyond the vocabulary of {vocab}, such as {token:?} ({id}): loaders fail where text has them"
            )
        })),
        Err(error) => notes.push(format!("text can't be tokenized here: {}", error.briefly())),
    }
    let generation =
        json::read_python(&checkpoint.dir().join("generation_config.json")).unwrap_or_default();
    for (file, config) in
        [(CONFIG_FILE, checkpoint.config()), ("generation_config.json", &generation)]
    {
        for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
            let value = config.get(key);
            let ids = value
                .and_then(Value::as_array)
                .map_or(value.map(std::slice::from_ref), |ids| Some(ids.as_slice()));
            let beyond =
                ids.into_iter().flatten().filter_map(Value::as_u64).find(|id| *id >= vocab);
            if let Some(id) = beyond {
                notes.push(format!("{file} says {key} {id}, beyond the vocabulary of {vocab}"));
            }
        }
    }
    notes
}
