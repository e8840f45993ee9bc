//! Tests that tensors which don't fit their config, and values that aren't finite, are refused.

use serde_json::json;

use super::{CONFIG, DOWN, EVERY_COMMAND, LLAMA, Q, all_refused, case};
use crate::common::checkpoint::SHARD;

#[test]
fn tensors_that_do_not_fit_the_config_are_refused() {
    const EXTRA: &str = "model.layers.0.mlp.extra.weight";
    let cases = [
        case("missing", |c| c.remove_tensor(Q), &[Q, CONFIG, "missing", "incomplete"]),
        case(
            "no head",
            |c| c.remove_tensor("lm_head.weight"),
            &["lm_head.weight", "tie_word_embeddings"],
        ),
        case(
            "no norm",
            |c| c.remove_tensor("model.norm.weight"),
            &["model.norm.weight", "missing"],
        ),
        case(
            "one layer more",
            |c| c.set("num_hidden_layers", json!(3)),
            &["model.layers.2.", "missing"],
        ),
        case(
            "one layer fewer",
            |c| c.set("num_hidden_layers", json!(1)),
            &["model.layers.1.", SHARD],
        ),
        case(
            "another width",
            |c| c.set("intermediate_size", json!(64)),
            &["mlp.gate_proj", SHARD, "[64, 40]", "[56, 40]"],
        ),
        case(
            "another hidden size",
            |c| c.set("hidden_size", json!(44)),
            &["model.embed_tokens.weight", "[101, 44]"],
        ),
        case(
            "another vocabulary",
            |c| c.set("vocab_size", json!(102)),
            &["model.embed_tokens.weight", "[102, 40]"],
        ),
        case(
            "a transposed matrix",
            |c| c.set_entry(DOWN, "shape", json!([56, 40])),
            &[DOWN, SHARD, "[56, 40]", "[40, 56]"],
        ),
        case(
            "a flat matrix",
            |c| c.set_entry(DOWN, "shape", json!([2240])),
            &[DOWN, SHARD, "[2240]"],
        ),
        case(
            "a bias nobody asked for",
            |c| c.set("mlp_bias", json!(true)),
            &["mlp.gate_proj.bias", "missing"],
        ),
        case(
            "integers",
            |c| c.set_entry(DOWN, "dtype", json!("I32")),
            &[DOWN, SHARD, "I32", "BF16"],
        ),
        case("unknown in a layer", |c| c.add_empty_tensor(EXTRA), &[EXTRA, SHARD]),
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

#[test]
fn values_that_are_not_finite_are_refused() {
    const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
    let cases = [
        case("NaN", |c| c.set_f32(Q, 41, f32::NAN), &[Q, SHARD]),
        case("infinity", |c| c.set_f32(Q, 41, f32::INFINITY), &[Q, SHARD]),
        case("-infinity in the network", |c| c.set_f32(GATE, 5, f32::NEG_INFINITY), &[GATE, SHARD]),
        case(
            "NaN in a norm",
            |c| c.set_f32("model.norm.weight", 0, f32::NAN),
            &["model.norm.weight", SHARD],
        ),
        case(
            "NaN in the head",
            |c| c.set_f32("lm_head.weight", 4039, f32::NAN),
            &["lm_head.weight", SHARD],
        ),
        // Row 2 of the embedding; ids.json and ids.jsonl hold token 2.
        case(
            "NaN in the embedding",
            |c| c.set_f32("model.embed_tokens.weight", 81, f32::NAN),
            &["model.embed_tokens.weight"],
        ),
    ];
    // Only a check of all values finds the one in the embedding: the probe's tokens may miss its
    // row.
    all_refused(LLAMA, READ_VALUES, &cases);
    let element = [case("NaN", |c| c.set_f32(Q, 41, f32::NAN), &[Q, SHARD, "element 41"])];
    all_refused(LLAMA, &["verify model"], &element);
}
