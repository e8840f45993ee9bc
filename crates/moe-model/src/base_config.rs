//! Config keys that transformers reads for every family (`PreTrainedConfig` of 5.23), and whose
//! wrong values stop it from loading a model.
//!
//! `golden/loaders/verdicts.py` tried each of these.

use moe_checkpoint::EXPLICIT_KEY;
use moe_checkpoint::json::{is_container, is_false, is_int, is_text_or_null, is_true, number};
use serde_json::{Map, Value};

/// The config key of a map that renames config keys. Each config class of transformers has such a
/// map, and a config's own one replaces it.
pub(crate) const ATTRIBUTE_MAP_KEY: &str = "attribute_map";

/// The config key by which transformers finds a model's own code: an object of files and classes,
/// by the class that loads them.
pub const AUTO_MAP_KEY: &str = "auto_map";

/// Whether `class` of an [`AUTO_MAP_KEY`] loads a config or a model, rather than a tokenizer or
/// another processor.
pub fn is_of_model(class: &str) -> bool {
    class == "AutoConfig" || class.starts_with("AutoModel")
}

/// The rule for the values of some keys.
struct ConfigRule {
    keys: &'static [&'static str],
    /// A description of the values that transformers takes, for messages.
    wanted: &'static str,
    takes: fn(&Value) -> bool,
}

const RULES: [ConfigRule; 16] = [
    ConfigRule {
        keys: &[AUTO_MAP_KEY, ATTRIBUTE_MAP_KEY],
        wanted: "an object",
        takes: is_container,
    },
    ConfigRule {
        keys: &["id2label"],
        wanted: "an object of texts by whole numbers, or null",
        takes: is_by_number,
    },
    ConfigRule { keys: &["num_labels"], wanted: "a whole number", takes: is_whole },
    ConfigRule { keys: &[EXPLICIT_KEY], wanted: "a text", takes: is_text_or_null },
    ConfigRule { keys: &["return_dict"], wanted: "true", takes: is_true },
    ConfigRule { keys: &["output_hidden_states"], wanted: "true or false", takes: is_switch },
    ConfigRule { keys: &NAMES_OF_METHODS, wanted: "no such key", takes: is_never },
    // Parts of a model that has several.
    ConfigRule {
        keys: &["text_config", "decoder", "generator"],
        wanted: "no such key in a language model",
        takes: Value::is_null,
    },
    ConfigRule {
        keys: &["_validate_default_rope_parameters"],
        wanted: "no such key",
        takes: Value::is_null,
    },
    ConfigRule {
        keys: &[
            "base_model_tp_plan",
            "base_model_pp_plan",
            "base_model_ep_plan",
            "base_model_fsdp_plan",
        ],
        wanted: "an object, or null",
        takes: is_plan,
    },
    ConfigRule { keys: &["fusion_config"], wanted: "null in a language model", takes: is_false },
    ConfigRule {
        keys: &["ignore_keys_at_rope_validation"],
        wanted: "a list, or null",
        takes: is_container_or_null,
    },
    ConfigRule {
        keys: &["per_layer_config"],
        wanted: "an object of keys by layers, or null",
        takes: is_of_layers,
    },
    // Caches also read it in families without windows.
    ConfigRule {
        keys: &["attention_chunk_size"],
        wanted: "a positive whole number, or null",
        takes: is_window,
    },
    ConfigRule {
        keys: &["_attn_implementation"],
        wanted: "eager, sdpa or another kind of attention",
        takes: is_attention,
    },
    ConfigRule {
        keys: &["_experts_implementation"],
        wanted: "eager, grouped_mm or batched_mm",
        takes: is_experts,
    },
];

/// Methods and properties of the config class. Loading replaces them by the value, or fails at
/// that.
const NAMES_OF_METHODS: [&str; 17] = [
    "use_return_dict",
    "sub_configs",
    "get_text_config",
    "to_dict",
    "to_diff_dict",
    "to_json_string",
    "dict_dtype_to_str",
    "default_config_fields",
    "is_heterogeneous",
    "per_layer_attributes",
    "nested_rope_parameter_keys",
    "_check_received_keys",
    "_encode_special_floats",
    "_getattr_without_heterogeneous_validation",
    "_iter_config_keys_with_heterogeneous_adjustment",
    "_remove_keys_not_serialized",
    "_update_heterogeneous_to_dict_output",
];

/// Returns the keys of `config` whose values transformers doesn't take, with a description of what
/// it takes instead.
pub(crate) fn refused(config: &Map<String, Value>) -> Vec<(&'static str, &'static str)> {
    let mut refused = Vec::new();
    for rule in &RULES {
        let wrong = rule
            .keys
            .iter()
            .filter(|key| config.get(**key).is_some_and(|value| !(rule.takes)(value)));
        refused.extend(wrong.map(|key| (*key, rule.wanted)));
    }
    refused
}

/// Removes keys that transformers doesn't take. None of them changes what the model computes.
pub(crate) fn mend(config: &mut Map<String, Value>) {
    refused(config).into_iter().for_each(|(key, _)| _ = config.remove(key));
    // The config class has the right map.
    config.remove(ATTRIBUTE_MAP_KEY);
}

/// Whether some layer has keys of its own, which would change what it computes.
pub(crate) fn has_layers_of_their_own(config: &Map<String, Value>) -> bool {
    let layers = config.get("per_layer_config").and_then(Value::as_object);
    layers.is_some_and(|layers| {
        layers.values().any(|keys| keys.as_object().is_some_and(|keys| !keys.is_empty()))
    })
}

/// Whether `value` is a whole number in Python, where true is 1.
pub(crate) fn is_whole(value: &Value) -> bool {
    is_int(value) || value.is_boolean()
}

/// Whether `value` is valid as the length of a cache of keys and values: a positive whole number,
/// or null.
pub(crate) fn is_window(value: &Value) -> bool {
    value.is_null()
        || *value == true
        || (is_int(value) && number(value).is_some_and(|tokens| tokens > 0.0))
}

fn is_never(_: &Value) -> bool {
    false
}

fn is_switch(value: &Value) -> bool {
    is_whole(value) || is_false(value)
}

fn is_container_or_null(value: &Value) -> bool {
    value.is_null() || is_container(value)
}

fn is_plan(value: &Value) -> bool {
    value.is_object() || is_false(value)
}

fn is_by_number(value: &Value) -> bool {
    value.is_null()
        || value
            .as_object()
            .is_some_and(|keys| keys.keys().all(|key| key.trim().parse::<i64>().is_ok()))
}

fn is_of_layers(value: &Value) -> bool {
    is_by_number(value)
        && value.as_object().is_none_or(|layers| layers.values().all(Value::is_object))
}

fn is_attention(value: &Value) -> bool {
    const KINDS: [&str; 7] = [
        "eager",
        "sdpa",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
        "flex_attention",
        "paged|eager",
    ];
    // A name with a slash is a kernel on the hub.
    is_kind(value, |kind| {
        KINDS.contains(&kind.trim_start_matches("paged|"))
            || KINDS.contains(&kind)
            || kind.contains('/')
    })
}

fn is_experts(value: &Value) -> bool {
    const KINDS: [&str; 6] =
        ["eager", "batched_mm", "grouped_mm", "deepgemm", "deepgemm_megamoe", "sonicmoe"];
    is_kind(value, |kind| KINDS.contains(&kind))
}

/// Whether `value` is null or a known kind. An object has a kind for each part of a model, and
/// isn't checked.
fn is_kind(value: &Value, is_known: impl Fn(&str) -> bool) -> bool {
    value.is_null() || value.is_object() || value.as_str().is_some_and(is_known)
}
