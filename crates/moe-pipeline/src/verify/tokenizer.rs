//! Finds values of a tokenizer_config.json that transformers 5.23 refuses, when it loads or when it
//! tokenizes.

use moe_checkpoint::SideFiles;
use moe_checkpoint::json::{is_container, is_false, is_text_or_null, number, shown};
use serde_json::{Map, Value};

pub(super) const CONFIG: &str = "tokenizer_config.json";

/// A key, the values that transformers accepts, in words, and whether it accepts a value.
struct TokenizerCheck {
    key: &'static str,
    wanted: &'static str,
    takes: fn(&Value) -> bool,
}

const RULES: [TokenizerCheck; 14] = [
    // Loading accepts any value; it is compared with the length of the first text.
    TokenizerCheck { key: "model_max_length", wanted: "a number", takes: is_number_or_null },
    TokenizerCheck {
        key: "tokenizer_class",
        wanted: "the name of a class",
        takes: is_text_or_null,
    },
    TokenizerCheck { key: "padding_side", wanted: "right or left", takes: is_side },
    TokenizerCheck { key: "truncation_side", wanted: "right or left", takes: is_side },
    TokenizerCheck { key: "auto_map", wanted: "an object", takes: is_map },
    TokenizerCheck {
        key: "chat_template",
        wanted: "a text, or a list of objects with name and template",
        takes: is_template,
    },
    TokenizerCheck { key: "model_input_names", wanted: "a list of texts", takes: is_container },
    TokenizerCheck { key: "init_inputs", wanted: "a list", takes: is_container },
    TokenizerCheck { key: "fast_tokenizer_files", wanted: "a list of texts", takes: is_files },
    TokenizerCheck {
        key: "split_special_tokens",
        wanted: "true or false",
        takes: Value::is_boolean,
    },
    TokenizerCheck { key: "tokenizer_object", wanted: "no such key", takes: Value::is_null },
    TokenizerCheck {
        key: "model_specific_special_tokens",
        wanted: "an object, or null",
        takes: is_object_or_null,
    },
    TokenizerCheck { key: "post_processor", wanted: "no such key", takes: is_false },
    TokenizerCheck {
        key: "chat_control_tokens",
        wanted: "a list of texts, or null",
        takes: is_list_or_null,
    },
];

/// Methods and properties of tokenizers, whose names no key may have.
const METHODS: [&str; 54] = [
    "all_special_ids",
    "_add_tokens",
    "_convert_encoding",
    "_convert_from_sentencepiece",
    "_convert_from_tiktoken",
    "_convert_token_to_id_with_added_voc",
    "_decode",
    "_encode_plus",
    "_encode_without_added_tokens",
    "_eventual_warn_about_too_long_sequence",
    "_from_pretrained",
    "_get_control_tokens",
    "_get_files_timestamps",
    "_get_padding_truncation_strategies",
    "_mark_chat_inputs",
    "_pad",
    "_patch_mistral_regex",
    "_post_init",
    "_save_pretrained",
    "_set_model_specific_special_tokens",
    "_set_processor_class",
    "_tokenizer_json_has_byte_level",
    "_upload_modified_files",
    "add_special_tokens",
    "add_tokens",
    "apply_chat_template",
    "batch_decode",
    "clean_up_tokenization",
    "convert_added_tokens",
    "convert_ids_to_tokens",
    "convert_to_native_format",
    "convert_tokens_to_ids",
    "convert_tokens_to_string",
    "decode",
    "encode",
    "encode_message_with_chat_template",
    "from_pretrained",
    "get_added_vocab",
    "get_chat_template",
    "get_response_parser",
    "get_special_tokens_mask",
    "get_vocab",
    "num_special_tokens_to_add",
    "pad",
    "parse_response",
    "push_to_hub",
    "register_for_auto_class",
    "save_chat_templates",
    "save_pretrained",
    "save_vocabulary",
    "set_truncation_and_padding",
    "tokenize",
    "train_new_from_iterator",
    "update_post_processor",
];

/// The refused keys of a tokenizer's config, one sentence each; `files` are the files next to it.
pub(super) fn refused(said: &Map<String, Value>, files: &SideFiles) -> Vec<String> {
    let mut refused = Vec::new();
    for rule in &RULES {
        if let Some(value) = said.get(rule.key).filter(|value| !(rule.takes)(value)) {
            refused.push(format!(
                "{} {}, where transformers wants {}",
                rule.key,
                shown(value),
                rule.wanted
            ));
        }
    }
    if let Some(method) = METHODS.into_iter().find(|method| said.contains_key(*method)) {
        refused.push(format!("{method}, which is the name of a method of tokenizers"));
    }
    let has = |name: &str| files.carried.iter().any(|file| file.name == name);
    let is_fast =
        said.get("tokenizer_class").is_some_and(|class| class == "PreTrainedTokenizerFast");
    if is_fast && has("vocab.json") && !has("tokenizer.json") && !has("tokenizer.model") {
        refused.push(
            "tokenizer_class PreTrainedTokenizerFast, which reads tokenizer.json alone".to_owned(),
        );
    }
    refused
}

fn is_number_or_null(value: &Value) -> bool {
    value.is_null() || value.is_boolean() || number(value).is_some()
}

fn is_object_or_null(value: &Value) -> bool {
    value.is_null() || value.is_object()
}

fn is_list_or_null(value: &Value) -> bool {
    value.is_null() || value.is_array()
}

fn is_side(value: &Value) -> bool {
    value == "right" || value == "left"
}

/// Old files have a list of two classes, slow and fast.
fn is_map(value: &Value) -> bool {
    let is_class = |class: &Value| match class {
        Value::Array(classes) => classes.iter().any(|class| !class.is_null()),
        Value::Object(_) => false,
        _ => true,
    };
    match value {
        Value::Object(classes) => classes.get("AutoTokenizer").is_none_or(is_class),
        value => value.as_array().is_some_and(|classes| classes.len() > 1) && is_class(value),
    }
}

fn is_template(value: &Value) -> bool {
    let is_named =
        |template: &Value| ["name", "template"].iter().all(|key| template.get(key).is_some());
    value.as_array().is_none_or(|templates| templates.iter().all(is_named))
}

fn is_files(value: &Value) -> bool {
    is_container(value) && value.as_array().is_none_or(|names| names.iter().all(Value::is_string))
}
