//! Values in a generation_config.json for which transformers 5.23 refuses the whole model
//! (`GenerationConfig.validate`).

use moe_checkpoint::SideFiles;
use moe_checkpoint::json::{self, is_container, is_true, shown};
use serde_json::{Map, Value};

use super::pointer::is_pointer;

pub(crate) const CONFIG: &str = "generation_config.json";

/// Names of caches of `generate`, including older ones (`ALL_CACHE_IMPLEMENTATIONS`).
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

/// Names that can't be keys: arguments of `generate` alone, and methods.
const NO_KEYS: [&str; 10] = [
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "validate",
    "to_dict",
];

/// A key, the values that transformers accepts, in words, and whether it accepts a value.
type GenerationRule = (&'static str, &'static str, fn(&Value) -> bool);

/// A key that is refused.
pub(crate) struct RefusedKey {
    pub key: &'static str,
    /// The key, its value and the reason.
    pub why: String,
}

/// The part of a JSON file that transformers refuses.
pub(crate) enum RefusedConfig {
    /// The whole file, since it doesn't hold an object.
    Whole,
    /// Some of its keys; at least one.
    Keys(Vec<RefusedKey>),
}

/// The part of the file among `files` that is refused; None without the file. A file that isn't
/// JSON is ignored.
pub(crate) fn refused_config(files: &SideFiles) -> Option<RefusedConfig> {
    let file = files.carried.iter().find(|file| file.name == CONFIG && !is_pointer(file))?;
    if !json::is_object(&file.path).ok()? {
        return Some(RefusedConfig::Whole);
    }
    let keys = refused(&json::read_python(&file.path).unwrap_or_default());
    (!keys.is_empty()).then_some(RefusedConfig::Keys(keys))
}

/// The keys that are refused.
fn refused(said: &Map<String, Value>) -> Vec<RefusedKey> {
    let no_keys = NO_KEYS.into_iter().filter(|key| said.contains_key(*key));
    let mut refused: Vec<RefusedKey> = no_keys
        .map(|key| RefusedKey { key, why: format!("{key}, which can't be a key of it") })
        .collect();
    let rules: [GenerationRule; 8] = [
        ("max_new_tokens", "must be positive", is_positive),
        ("cache_implementation", "transformers doesn't have", is_cache),
        ("early_stopping", "must be true, false or \"never\"", is_stop),
        ("compile_config", "can't be given in a file", Value::is_null),
        ("assistant_ensemble_weight", "must be between 0 and 1", is_share),
        ("pad_token_id", "must be a number", is_number),
        ("suppress_tokens", "must be a list of tokens", is_tokens),
        ("watermarking_config", "must be an object of its five keys", is_watermark),
    ];
    for (key, wanted, takes) in rules {
        if let Some(value) = given(said, key).filter(|value| !takes(value)) {
            refused
                .push(RefusedKey { key, why: format!("{key} {}, which {wanted}", shown(value)) });
        }
    }
    refused.extend(of_sequences(said).map(|why| RefusedKey { key: "num_return_sequences", why }));
    refused.extend(of_forced(said));
    refused
}

fn given<'a>(said: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    said.get(key).filter(|value| !value.is_null())
}

/// The problem with `num_return_sequences`, given `num_beams` and `do_sample`; None where there is
/// none.
fn of_sequences(said: &Map<String, Value>) -> Option<String> {
    let sequences = given(said, "num_return_sequences")?;
    let Some(count) = number(sequences) else {
        return Some(format!("num_return_sequences {}, which must be a number", shown(sequences)));
    };
    if count <= 1.0 {
        return None;
    }
    let beams = given(said, "num_beams").unwrap_or(&Value::Bool(true));
    if number(beams) == Some(1.0) {
        let samples = said.get("do_sample").is_some_and(is_true);
        return (!samples).then(|| {
            format!("num_return_sequences {} without do_sample or beams", shown(sequences))
        });
    }
    let has_as_many = number(beams).is_some_and(|beams| count <= beams);
    (!has_as_many).then(|| {
        format!("num_return_sequences {}, more than num_beams {}", shown(sequences), shown(beams))
    })
}

/// The refused keys about forced and suppressed tokens.
fn of_forced(said: &Map<String, Value>) -> Vec<RefusedKey> {
    let Some(suppressed) = given(said, "suppress_tokens").and_then(Value::as_array) else {
        return Vec::new();
    };
    let keys = ["forced_bos_token_id", "forced_eos_token_id"].into_iter();
    let refused = keys.filter_map(|key| {
        let why = why_not_forced(given(said, key)?, suppressed)?;
        Some(RefusedKey { key, why: format!("{key} {why}") })
    });
    refused.collect()
}

/// The value `forced` of a key and the reason why it is refused; None where it isn't.
fn why_not_forced(forced: &Value, suppressed: &[Value]) -> Option<String> {
    let is_suppressed = match forced {
        Value::Array(tokens) => {
            !tokens.is_empty() && tokens.iter().all(|token| suppressed.contains(token))
        }
        Value::Number(token) if token.is_f64() => {
            return Some(format!("{token}, which is not a token"));
        }
        token => suppressed.contains(token),
    };
    is_suppressed.then(|| format!("{}, which suppress_tokens has, too", shown(forced)))
}

/// The number that `value` is to Python, in which true is 1.
fn number(value: &Value) -> Option<f64> {
    json::number(value).or(value.as_bool().map(|value| f64::from(u8::from(value))))
}

fn is_number(value: &Value) -> bool {
    number(value).is_some()
}

fn is_positive(value: &Value) -> bool {
    number(value).is_some_and(|number| number > 0.0 || number.is_nan())
}

fn is_cache(value: &Value) -> bool {
    value.as_str().is_some_and(|cache| CACHES.contains(&cache))
}

fn is_stop(value: &Value) -> bool {
    value == "never" || number(value).is_some_and(|number| number == 0.0 || number == 1.0)
}

fn is_share(value: &Value) -> bool {
    number(value).is_some_and(|share| share > 0.0 && share < 1.0)
}

fn is_tokens(value: &Value) -> bool {
    let can_be_counted = |token: &Value| !token.is_array() && !token.is_object();
    is_container(value) && value.as_array().is_none_or(|tokens| tokens.iter().all(can_be_counted))
}

/// Checks as `WatermarkingConfig.validate` does.
fn is_watermark(value: &Value) -> bool {
    let is_right = |(key, value): (&String, &Value)| match key.as_str() {
        "greenlist_ratio" => number(value).is_some_and(|ratio| (0.0..=1.0).contains(&ratio)),
        "context_width" => number(value).is_some_and(|width| width >= 1.0),
        "seeding_scheme" => value == "selfhash" || value == "lefthash",
        "bias" | "hashing_key" => true,
        _ => false,
    };
    value.as_object().is_some_and(|keys| keys.iter().all(is_right))
}
