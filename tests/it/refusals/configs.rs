//! Tests that files which are no configs, and configs of what isn't supported, are refused.

use serde_json::json;

use super::{CONFIG, EVERY_COMMAND, LLAMA, all_refused, all_refused_in_bounds, case, crowd};
use crate::common::checkpoint::Checkpoint;

/// Replaces the config by a file of another tool.
fn swap(checkpoint: &Checkpoint, name: &str) {
    checkpoint.remove(CONFIG);
    checkpoint.write(name, "{}");
}

#[test]
fn folders_without_a_config_are_refused() {
    let cases = [
        case("missing", |c| c.remove(CONFIG), &["model", "no config.json"]),
        case(
            "an adapter",
            |c| swap(c, "adapter_config.json"),
            &["model", "adapter", "merge_and_unload"],
        ),
        case("GGUF", |c| swap(c, "model-Q4_K_M.gguf"), &["model", "GGUF", "safetensors"]),
        case("a folder", |c| c.make_directory_of(CONFIG), &[CONFIG]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn configs_that_are_not_json_objects_are_refused() {
    let cases = [
        case("truncated", |c| c.truncate(CONFIG, 300), &[CONFIG, "JSON"]),
        case("empty", |c| c.truncate(CONFIG, 0), &[CONFIG, "JSON"]),
        case("a list", |c| c.write(CONFIG, "[]"), &[CONFIG, "JSON"]),
        case("null", |c| c.write(CONFIG, "null"), &[CONFIG, "JSON"]),
        case("not UTF-8", |c| c.write(CONFIG, b"{\"model_type\": \"\xff\"}"), &[CONFIG, "JSON"]),
        case("nested deeply", |c| c.write(CONFIG, "[".repeat(100_000)), &[CONFIG, "JSON"]),
        case(
            "a deep value",
            |c| c.write(CONFIG, format!("{{\"a\":{}", "[".repeat(100_000))),
            &[CONFIG, "recursion"],
        ),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn configs_without_a_known_model_type_are_refused() {
    let cases = [
        case("no model_type", |c| c.unset("model_type"), &[CONFIG, "model_type"]),
        case("an empty object", |c| c.write(CONFIG, "{}"), &[CONFIG, "model_type"]),
        case(
            "unknown architecture",
            |c| c.set("model_type", json!("gpt_neox")),
            &[CONFIG, "gpt_neox", "llama"],
        ),
        case("model_type a number", |c| c.set("model_type", json!(7)), &[CONFIG, "model_type"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn quantizations_and_activations_that_are_not_supported_are_refused() {
    let cases = [
        case(
            "quantized",
            |c| c.set("quantization_config", json!({"quant_method": "awq"})),
            &[CONFIG, "quantized"],
        ),
        case(
            "gelu",
            |c| c.set("hidden_act", json!("gelu")),
            &[CONFIG, "hidden_act", "gelu", "silu"],
        ),
        case("no activation", |c| c.set("hidden_act", json!(null)), &[CONFIG, "hidden_act"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn rotary_embeddings_that_are_not_supported_are_refused() {
    let dynamic = json!({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0});
    let cases = [
        case(
            "dynamic rope",
            move |c| c.set("rope_parameters", dynamic.clone()),
            &[CONFIG, "dynamic"],
        ),
        case(
            "old rope",
            |c| c.set("rope_scaling", json!({"type": "longrope", "factor": 2.0})),
            &[CONFIG, "longrope"],
        ),
        case("rope a number", |c| c.set("rope_parameters", json!(3)), &[CONFIG, "rope_parameters"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn configs_of_any_size_and_depth_are_refused_in_bounds() {
    let cases = [
        case("a crowded config", |c| c.write(CONFIG, crowd()), &[CONFIG, "8388608"]),
        case(
            "a config of lists",
            |c| c.write(CONFIG, format!("{{\"a\":[{}0]}}", "[],".repeat(2_700_000))),
            &[CONFIG, "model_type"],
        ),
        case(
            "a config of blanks",
            |c| c.write(CONFIG, " ".repeat(200_000_000)),
            &[CONFIG, "8388608"],
        ),
        case(
            "a config that is a device",
            |c| c.make_link_of(CONFIG, "/dev/zero"),
            &["config.json"],
        ),
    ];
    all_refused_in_bounds(LLAMA, &cases);
}

#[test]
fn configs_in_other_encodings_are_refused_in_bounds() {
    let cases = [
        case(
            "a config with two marks",
            |c| c.edit_bytes(CONFIG, |b| _ = b.splice(0..0, *b"\xef\xbb\xbf\xef\xbb\xbf")),
            &[CONFIG],
        ),
        case("a config in UTF-16", |c| c.edit_bytes(CONFIG, |b| *b = utf16(b)), &[CONFIG]),
        case("NUL behind it", |c| c.edit_bytes(CONFIG, |b| b.push(0)), &[CONFIG, "JSON"]),
    ];
    all_refused_in_bounds(LLAMA, &cases);
}

fn utf16(text: &[u8]) -> Vec<u8> {
    [0xff, 0xfe].into_iter().chain(text.iter().flat_map(|byte| [*byte, 0])).collect()
}
