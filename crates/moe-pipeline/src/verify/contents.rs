//! Files beside the weights that are whole, and say what transformers refuses.

use moe_checkpoint::{Kind, SideFiles, json};
use serde_json::{Map, Value};

/// Files that loaders read as JSON, and whether they must hold an object.
const READ: [(&str, bool); 8] = [
    ("tokenizer.json", true),
    (TOKENIZER_CONFIG, true),
    ("special_tokens_map.json", true),
    ("added_tokens.json", true),
    ("vocab.json", true),
    (GENERATION, true),
    ("chat_template.json", false),
    ("tekken.json", false),
];
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";

/// Caches of `generate` that transformers 5.23 has by name, older names included (`ALL_CACHE_IMPLEMENTATIONS`).
const CACHES: [&str; 11] = [
    "static",
    "offloaded_static",
    "sliding_window",
    "hybrid",
    "hybrid_chunked",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
    "dynamic",
    "offloaded",
    "quantized",
    "paged",
];

/// Files that loaders refuse, and why, a sentence each.
pub(crate) fn damaged(files: &SideFiles) -> Vec<(&str, String)> {
    let mut damaged = Vec::new();
    for file in files.carried.iter().filter(|file| !super::loaders::is_pointer(file)) {
        let Some((name, wants_object)) = READ.into_iter().find(|(name, _)| file.name == *name) else { continue };
        match json::is_object(&file.path) {
            Err(error) if error.kind() == Kind::Malformed => {
                damaged.push((name, format!("{name} is not JSON")));
                continue;
            }
            // That it can't be read is another matter.
            Err(_) => continue,
            Ok(is_object) if wants_object && !is_object => {
                damaged.push((name, format!("{name} doesn't hold an object")));
                continue;
            }
            Ok(_) => {}
        }
        let said = || json::read_python(&file.path).unwrap_or_default();
        let why = match name {
            TOKENIZER_CONFIG => of_tokenizer(&said(), files),
            GENERATION => of_generation(&said()),
            _ => Vec::new(),
        };
        damaged.extend(why.into_iter().map(|why| (name, format!("{name} says {why}"))));
    }
    damaged
}

fn of_tokenizer(said: &Map<String, Value>, files: &SideFiles) -> Vec<String> {
    let mut refused = Vec::new();
    let class = said.get("tokenizer_class").filter(|class| !class.is_null());
    if let Some(class) = class.filter(|class| !class.is_string()) {
        refused.push(format!("tokenizer_class {}, which is not the name of a class", json::shown(class)));
    }
    for key in ["padding_side", "truncation_side"] {
        if let Some(side) = said.get(key).filter(|side| *side != "right" && *side != "left") {
            refused.push(format!("{key} {}, which is neither right nor left", json::shown(side)));
        }
    }
    let has = |name: &str| files.carried.iter().any(|file| file.name == name);
    let is_fast = class.is_some_and(|class| class == "PreTrainedTokenizerFast");
    if is_fast && has("vocab.json") && !has("tokenizer.json") && !has("tokenizer.model") {
        refused.push("tokenizer_class PreTrainedTokenizerFast, which reads tokenizer.json alone".to_owned());
    }
    refused
}

/// As `GenerationConfig.validate` of transformers 5.23, which refuses the whole model.
fn of_generation(said: &Map<String, Value>) -> Vec<String> {
    let mut refused = Vec::new();
    let given = |key: &str| said.get(key).filter(|value| !value.is_null());
    if let Some(tokens) = given("max_new_tokens").filter(|tokens| tokens.as_f64().is_none_or(|count| count <= 0.0)) {
        refused.push(format!("max_new_tokens {}, which must be positive", json::shown(tokens)));
    }
    let has_cache = |cache: &&Value| cache.as_str().is_some_and(|cache| CACHES.contains(&cache));
    if let Some(cache) = given("cache_implementation").filter(|cache| !has_cache(cache)) {
        refused.push(format!("cache_implementation {}, which transformers doesn't have", json::shown(cache)));
    }
    if let Some(stop) = given("early_stopping").filter(|stop| !stop.is_boolean() && *stop != "never") {
        refused.push(format!("early_stopping {}, which must be true, false or \"never\"", json::shown(stop)));
    }
    if let Some(compile) = given("compile_config").filter(|compile| !compile.is_object()) {
        refused.push(format!("compile_config {}, which must be an object", json::shown(compile)));
    }
    let count = |key: &str| given(key).and_then(Value::as_f64).unwrap_or(1.0);
    let (sequences, beams) = (count("num_return_sequences"), count("num_beams"));
    let samples = given("do_sample").is_some_and(|sample| *sample != false);
    if sequences > 1.0 && !samples && beams <= 1.0 {
        refused.push(format!("num_return_sequences {sequences} without do_sample or beams"));
    } else if sequences > beams && beams > 1.0 {
        refused.push(format!("num_return_sequences {sequences}, more than num_beams {beams}"));
    }
    refused
}
