//! Tests that tensors which don't fit their config, and values that aren't finite, are refused.

use serde_json::json;

use super::config_values::set;
use super::headers::entry;
use super::{CONFIG, Case, DOWN, EVERY_COMMAND, LLAMA, Q, all_refused, case};
use crate::common::checkpoint::SHARD;

/// A checkpoint without `tensor`.
fn without(tensor: &'static str, words: &'static [&'static str]) -> Case {
    case(&format!("no {tensor}"), move |c| c.remove_tensor(tensor), words)
}

#[test]
fn missing_and_unknown_tensors_are_refused() {
    const EXTRA: &str = "model.layers.0.mlp.extra.weight";
    let cases = [
        without(Q, &[Q, CONFIG, "missing", "incomplete"]),
        without("lm_head.weight", &["lm_head.weight", "tie_word_embeddings"]),
        without("model.norm.weight", &["model.norm.weight", "missing"]),
        case("unknown in a layer", |c| c.add_empty_tensor(EXTRA), &[EXTRA, SHARD]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn configs_of_other_tensors_are_refused() {
    let cases = [
        set("num_hidden_layers", json!(3), &["model.layers.2.", "missing"]),
        set("num_hidden_layers", json!(1), &["model.layers.1.", SHARD]),
        set("intermediate_size", json!(64), &["mlp.gate_proj", SHARD, "[64, 40]", "[56, 40]"]),
        set("hidden_size", json!(44), &["model.embed_tokens.weight", "[101, 44]"]),
        set("vocab_size", json!(102), &["model.embed_tokens.weight", "[102, 40]"]),
        set("mlp_bias", json!(true), &["mlp.gate_proj.bias", "missing"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn tensors_of_other_shapes_and_dtypes_are_refused() {
    let cases = [
        entry(DOWN, "shape", json!([56, 40]), &[DOWN, SHARD, "[56, 40]", "[40, 56]"]),
        entry(DOWN, "shape", json!([2240]), &[DOWN, SHARD, "[2240]"]),
        entry(DOWN, "dtype", json!("I32"), &[DOWN, SHARD, "I32", "BF16"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

/// Commands that read values. `inspect` and `--dry-run` read only headers.
const READ_VALUES: &[&str] = &[
    "logits model --tokens ids.json -o logits.safetensors",
    "eval model --data ids.jsonl",
    "upcycle model -o out --experts 4 --top-k 2",
    "upcycle model -o out --experts 4 --top-k 2 --noise-std 0.01",
    "verify model",
];

/// A checkpoint with `value` at `index` of `tensor`.
fn value(tensor: &'static str, index: usize, value: f32, words: &'static [&'static str]) -> Case {
    case(&format!("{value} in {tensor}"), move |c| c.set_f32(tensor, index, value), words)
}

#[test]
fn values_that_are_not_finite_are_refused() {
    const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
    let cases = [
        value(Q, 41, f32::NAN, &[Q, SHARD]),
        value(Q, 41, f32::INFINITY, &[Q, SHARD]),
        value(GATE, 5, f32::NEG_INFINITY, &[GATE, SHARD]),
        value("model.norm.weight", 0, f32::NAN, &["model.norm.weight", SHARD]),
        value("lm_head.weight", 4039, f32::NAN, &["lm_head.weight", SHARD]),
        // Row 2 of the embedding; ids.json and ids.jsonl hold token 2.
        value("model.embed_tokens.weight", 81, f32::NAN, &["model.embed_tokens.weight"]),
    ];
    // Only a check of all values finds the one in the embedding: the probe's tokens may miss its
    // row.
    all_refused(LLAMA, READ_VALUES, &cases);
    let element = [value(Q, 41, f32::NAN, &[Q, SHARD, "element 41"])];
    all_refused(LLAMA, &["verify model"], &element);
}
