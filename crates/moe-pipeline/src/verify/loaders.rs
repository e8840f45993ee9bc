//! What stock loaders do with a checkpoint whose files are sound by themselves: refuse it, or trip over something.

use std::fs::File;

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Error, INDEX_FILE, Kind, Result, SINGLE_FILE, SideFile, SideFiles, SourceFile, json,
    read_whole,
};
use moe_forward::tokens_beyond_vocabulary;
use moe_model::{Model, is_computed, is_headless};
use serde_json::{Map, Value};

/// A pointer of Git LFS is no longer.
const MAX_POINTER_BYTES: u64 = 1024;

/// Refuses what the current transformers can't load, and files beside the weights that are damaged.
///
/// # Errors
/// [`Kind::Mismatch`], with all that is refused; the file and the remedy are the first one's.
pub(super) fn check(checkpoint: &Checkpoint, model: &Model) -> Result<()> {
    let mut refused = Vec::new();
    refused.extend(of_index(checkpoint));
    refused.extend(of_single_file(checkpoint));
    refused.extend(of_name(checkpoint));
    refused.extend(of_config(checkpoint.config(), model));
    refused.extend(of_side_files(checkpoint.side_files()));
    let Some(first) = refused.first() else { return Ok(()) };
    let what: Vec<&str> = refused.iter().map(|refused| refused.what.as_str()).collect();
    Err(Error::new(Kind::Mismatch, what.join("; ")).file(checkpoint.dir().join(&first.file)).remedy(first.remedy))
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

/// transformers writes into the index's metadata while it loads (`get_checkpoint_shard_files`).
fn of_index(checkpoint: &Checkpoint) -> Option<Refused> {
    let without = checkpoint.index().is_some_and(|index| !index.has_metadata);
    without.then(|| {
        let what = "the index has no object \"metadata\", without which transformers doesn't load it";
        Refused::new(what, INDEX_FILE, "add \"metadata\": {} to it; any pass of this program writes a whole index")
    })
}

/// transformers looks at no index where there is a file of the usual name.
fn of_single_file(checkpoint: &Checkpoint) -> Option<Refused> {
    let named = checkpoint.config().contains_key(moe_checkpoint::EXPLICIT_KEY);
    let is_single = |file: &SourceFile| file.path().file_name().is_some_and(|name| name == SINGLE_FILE);
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
        let what = format!("transformers doesn't find the weights: it looks for {SINGLE_FILE} or {INDEX_FILE}");
        Refused::new(what, name, "rename the file to model.safetensors")
    })
}

fn of_config(config: &Map<String, Value>, model: &Model) -> Vec<Refused> {
    const BELONGING: &str = "correct config.json; any pass of this program writes it as loaders want it";
    let strict = model.family.strict.refused(config).into_iter();
    let mut refused: Vec<_> = strict.map(|what| Refused::new(what, CONFIG_FILE, BELONGING)).collect();
    if let Some(rule) = &model.family.moe {
        let given: Vec<_> = rule
            .experts
            .iter()
            .chain(&rule.experts_also)
            .filter_map(|key| Some((key, config.get(key).filter(|count| !count.is_null())?)))
            .collect();
        if given.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            let said: Vec<_> = given.iter().map(|(key, count)| format!("{key} {count}")).collect();
            let what = format!(
                "config.json counts experts in two ways, {}: loaders read one or the other",
                said.join(" and ")
            );
            refused.push(Refused::new(what, CONFIG_FILE, BELONGING));
        }
    }
    let vocab = model.vocab as i64;
    if let Some(id) = config.get("pad_token_id").and_then(Value::as_i64).filter(|id| !(-vocab..vocab).contains(id)) {
        let what = format!("pad_token_id {id} has no place in a vocabulary of {vocab}: transformers refuses it");
        refused.push(Refused::new(what, CONFIG_FILE, "set pad_token_id to null, or to a token of the vocabulary"));
    }
    refused
}

fn of_side_files(files: &SideFiles) -> Vec<Refused> {
    let first = files.carried.iter().find(|file| is_pointer(file)).map_or("", |file| file.name.as_str());
    let pointers = pointers(files).into_iter();
    let mut refused: Vec<_> =
        pointers.map(|what| Refused::new(what, first, "fetch what they stand for: git lfs pull")).collect();
    for file in &files.carried {
        if let Err(error) = File::open(&file.path) {
            let what = format!("{} can't be read: {error}", file.name);
            refused.push(Refused::new(what, &file.name, "check the permissions of this file, and the disk"));
        }
    }
    for name in not_json(files) {
        let what = format!("{name} is not JSON");
        refused.push(Refused::new(what, name, "this file is damaged: download or copy it again"));
    }
    refused
}

/// Files that loaders read as JSON, and Python can't.
pub(crate) fn not_json(files: &SideFiles) -> Vec<&str> {
    const JSON: [&str; 8] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "generation_config.json",
        "chat_template.json",
        "tekken.json",
    ];
    let read = files.carried.iter().filter(|file| JSON.contains(&file.name.as_str()));
    let damaged = read.filter(|file| {
        let read = json::check_python(&file.path);
        read.is_err_and(|error| error.kind() == Kind::Malformed) && !is_pointer(file)
    });
    damaged.map(|file| file.name.as_str()).collect()
}

/// Files that are pointers of Git LFS, in a sentence; none where there are none.
pub(crate) fn pointers(files: &SideFiles) -> Vec<String> {
    let pointers: Vec<&str> =
        files.carried.iter().filter(|file| is_pointer(file)).map(|file| file.name.as_str()).collect();
    if pointers.is_empty() {
        return Vec::new();
    }
    vec![format!("pointers of Git LFS in the place of what they stand for: {}", pointers.join(", "))]
}

fn is_pointer(file: &SideFile) -> bool {
    file.bytes <= MAX_POINTER_BYTES
        && read_whole(&file.path, MAX_POINTER_BYTES).is_ok_and(|text| text.starts_with(json::LFS_POINTER))
}

/// Notes on `checkpoint`, one sentence each.
pub(crate) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let config = checkpoint.config();
    let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if !has("architectures") {
        notes.push("config.json has no \"architectures\": vLLM and SGLang refuse it".to_owned());
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
        for key in rule.experts.iter().filter(|key| !has(key)) {
            notes
                .push(format!("config.json has no {key}: loaders that read it assume their default number of experts"));
        }
        let fused = |name: &String| rule.layouts.iter().flat_map(|l| &l.fused).any(|f| name.ends_with(&f.gate_up));
        if checkpoint.tensors().keys().any(fused) {
            notes.push(
                "experts are stored as fused 3-D tensors: transformers before 5 initialises them at random".to_owned(),
            );
        }
    }
    notes.extend(model.caveats().map(str::to_owned));
    let tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool) == Some(true);
    if tied && checkpoint.tensors().contains_key("lm_head.weight") {
        let what = "embeddings are tied, yet there is an lm_head.weight: transformers 5 uses it if it differs, older \
                    versions and vLLM ignore it";
        notes.push(what.to_owned());
    }
    notes.extend(of_tensors(checkpoint, model));
    notes.extend(of_two_keys(config));
    notes.extend(of_tokens(checkpoint, model));
    notes.extend(checkpoint.warnings().iter().cloned());
    const TOKENIZERS: [&str; 6] =
        ["tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt"];
    let has_one = |name: &str| TOKENIZERS.contains(&name) || name.ends_with(".tiktoken");
    if !checkpoint.side_files().carried.iter().any(|file| has_one(&file.name)) {
        notes.push("there is no tokenizer: AutoTokenizer, vLLM and SGLang need one beside the weights".to_owned());
    }
    notes
}

/// Tensors that loaders skip or refuse, and what an index says of tensors that aren't there.
fn of_tensors(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let names: Vec<&str> = checkpoint.tensors().keys().map(String::as_str).collect();
    if is_headless(&names) {
        notes.push("names of tensors lack \"model.\": transformers adds it, vLLM and SGLang refuse them".to_owned());
    }
    // vLLM looks each name up among its parameters (load_weights of its models) and skips few.
    let skipped = |name: &str| {
        let rotary =
            ["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];
        let biases: &[&str] = if model.family.moe.is_some() { &[".bias", "_bias"] } else { &[".bias"] };
        rotary.iter().any(|part| name.contains(part)) || biases.iter().any(|end| name.ends_with(end))
    };
    let extra = model.extra.keys().map(String::as_str);
    let unknown: Vec<&str> = extra.chain(names.into_iter().filter(|name| is_computed(name))).collect();
    let (skipped, refused): (Vec<&str>, Vec<&str>) = unknown.into_iter().partition(|name| skipped(name));
    if !skipped.is_empty() {
        notes.push(format!("loaders ignore these tensors: {}", some(&skipped)));
    }
    if !refused.is_empty() {
        notes.push(format!("transformers ignores these tensors, vLLM refuses a model with them: {}", some(&refused)));
    }
    if let Some(index) = checkpoint.index() {
        let listed = |names: &[String]| some(&names.iter().map(String::as_str).collect::<Vec<_>>());
        if !index.unheld.is_empty() {
            notes.push(format!("the index lists tensors that no shard holds: {}", listed(&index.unheld)));
        }
        if !index.misplaced.is_empty() {
            notes
                .push(format!("the index says of tensors that another shard holds them: {}", listed(&index.misplaced)));
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
    let theta = config.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
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
    let generation = json::read_python(&checkpoint.dir().join("generation_config.json")).unwrap_or_default();
    for (file, config) in [(CONFIG_FILE, checkpoint.config()), ("generation_config.json", &generation)] {
        for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
            let value = config.get(key);
            let ids =
                value.and_then(Value::as_array).map_or(value.map(std::slice::from_ref), |ids| Some(ids.as_slice()));
            let beyond = ids.into_iter().flatten().filter_map(Value::as_u64).find(|id| *id >= vocab);
            if let Some(id) = beyond {
                notes.push(format!("{file} says {key} {id}, beyond the vocabulary of {vocab}"));
            }
        }
    }
    notes
}
