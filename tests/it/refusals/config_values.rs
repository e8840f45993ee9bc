//! Tests that configs with absurd values are refused.

use serde_json::{Value, json};

use super::{
    CONFIG, Case, EVERY_COMMAND, LLAMA, QWEN3_MOE, SHARDED, all_refused, all_refused_in_bounds,
    bounded, case,
};
use crate::common::checkpoint::Checkpoint;

const LATENT: &str = "families/deepseek_v3/base/model";
const PACKED: &str = "quantize/checkpoints/qwen3_moe.w4";

/// A config in which `key` has `value`, and words of the message that it gets.
pub(super) fn set(key: &'static str, value: Value, words: &'static [&'static str]) -> Case {
    case(&format!("{key} {value}"), move |c| c.set(key, value.clone()), words)
}

#[test]
fn configs_with_absurd_numbers_are_refused() {
    let cases = [
        set("num_hidden_layers", json!(1_000_000_000), &[CONFIG, "num_hidden_layers"]),
        set("num_hidden_layers", json!(0), &[CONFIG, "num_hidden_layers"]),
        set("hidden_size", json!(1u64 << 62), &[CONFIG, "hidden_size"]),
        set("hidden_size", json!(1e30), &[CONFIG, "hidden_size"]),
        set("hidden_size", json!("40"), &[CONFIG, "hidden_size"]),
        case("hidden_size missing", |c| c.unset("hidden_size"), &[CONFIG, "hidden_size"]),
        set("num_attention_heads", json!(-4), &[CONFIG, "num_attention_heads"]),
        set("num_attention_heads", json!(0), &[CONFIG, "num_attention_heads"]),
        set("num_attention_heads", json!(u32::MAX), &[CONFIG]),
        set("num_key_value_heads", json!(3), &[CONFIG, "num_key_value_heads"]),
        set("num_key_value_heads", json!(0), &[CONFIG, "num_key_value_heads"]),
        set("head_dim", json!(13), &[CONFIG, "head_dim"]),
        set("intermediate_size", json!(i32::MAX), &["mlp.", "2147483647"]),
        set("vocab_size", json!(0), &[CONFIG, "vocab_size"]),
        set("rms_norm_eps", json!("small"), &[CONFIG, "rms_norm_eps"]),
        set("rms_norm_eps", json!(-1.0), &[CONFIG, "rms_norm_eps"]),
        set("rope_parameters", json!({"rope_theta": 0.0, "rope_type": "default"}), &["rope_theta"]),
        set("rope_parameters", json!({"rope_theta": "x"}), &[CONFIG, "rope_theta"]),
        set("tie_word_embeddings", json!("maybe"), &[CONFIG, "tie_word_embeddings"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

#[test]
fn configs_with_absurd_numbers_of_experts_are_refused() {
    let cases = [
        set("num_local_experts", json!(1_000_000_000), &["gate.weight"]),
        set("num_local_experts", json!(-5), &[CONFIG, "num_local_experts"]),
        set("num_local_experts", json!(0), &[CONFIG, "num_local_experts"]),
        set("num_local_experts", json!(4), &["block_sparse_moe", "model-0000"]),
        set("num_experts_per_tok", json!(6), &[CONFIG, "num_experts_per_tok", "6"]),
        set("num_experts_per_tok", json!(0), &[CONFIG, "num_experts_per_tok"]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

#[test]
fn configs_with_absurd_values_are_refused_in_bounds() {
    all_refused_in_bounds(
        LLAMA,
        &[
            set("num_hidden_layers", json!(1e9 as u64), &[CONFIG, "num_hidden_layers"]),
            set("num_hidden_layers", json!(2.5), &[CONFIG, "num_hidden_layers", "2.5"]),
            set("num_hidden_layers", json!(1e308), &[CONFIG, "num_hidden_layers"]),
            set("num_hidden_layers", json!("NaN"), &[CONFIG, "num_hidden_layers", "NaN"]),
            set("num_attention_heads", json!([4]), &[CONFIG, "num_attention_heads"]),
            set("num_attention_heads", json!(1u64 << 31), &[CONFIG, "not a sensible count"]),
            set("rms_norm_eps", json!("NaN"), &[CONFIG, "rms_norm_eps"]),
            case(
                "an infinite eps",
                |c| write_eps(c, "1e999"),
                &[CONFIG, "rms_norm_eps", "is 1e999"],
            ),
            case("a bare NaN", |c| write_eps(c, "NaN"), &[CONFIG, "rms_norm_eps", "NaN"]),
            set("model_type", json!("../../../etc/passwd"), &[CONFIG, "etc/passwd"]),
        ],
    );
}

#[test]
fn configs_with_absurd_experts_are_refused_in_bounds() {
    all_refused_in_bounds(
        QWEN3_MOE,
        &[
            set("num_local_experts", json!(1e9 as u64), &["gate.weight"]),
            set("num_local_experts", json!(-1), &[CONFIG, "num_local_experts"]),
            set("num_local_experts", json!(0.5), &[CONFIG, "num_local_experts"]),
            set("num_experts_per_tok", json!(1e9 as u64), &[CONFIG, "num_experts_per_tok"]),
            set("mlp_only_layers", json!({"0": 0}), &[CONFIG, "mlp_only_layers"]),
        ],
    );
}

#[test]
fn configs_with_absurd_groups_and_heads_are_refused_in_bounds() {
    all_refused_in_bounds(
        LATENT,
        &[
            set("n_group", json!(1e9 as u64), &[CONFIG, "n_group"]),
            case("heads that overflow", set_heads_that_overflow, &["self_attn.", "shape"]),
        ],
    );
}

fn set_heads_that_overflow(c: &Checkpoint) {
    for key in ["num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "v_head_dim"] {
        c.set(key, json!(i32::MAX));
    }
}

#[test]
fn quantizations_with_absurd_values_are_refused_in_bounds() {
    all_refused_in_bounds(
        PACKED,
        &[
            case(
                "bits that wrap to 4",
                |c| set_weights(c, "num_bits", json!((1u64 << 32) + 4)),
                &[CONFIG, "0 bits"],
            ),
            case(
                "a huge pattern",
                |c| set_targets(c, json!([format!("re:{}", r"\w{900}".repeat(9))])),
                &[CONFIG, "target"],
            ),
            case(
                "many patterns",
                |c| set_targets(c, json!(vec!["re:.*"; 100_000])),
                &[CONFIG, "256 patterns"],
            ),
        ],
    );
}

/// Configs count further layers where there are none, and a group may be longer than its row.
#[test]
fn large_values_without_an_effect_are_taken() {
    let further = set("num_nextn_predict_layers", json!(i32::MAX), &[]);
    let groups = case("groups of 2^62", |c| set_weights(c, "group_size", json!(1u64 << 62)), &[]);
    for (golden, case) in [(LATENT, further), (PACKED, groups)] {
        bounded(&case.sandbox(golden), "inspect model").succeeds();
    }
}

/// JSON has no such number, so this edits the text.
fn write_eps(c: &Checkpoint, number: &str) {
    c.set("rms_norm_eps", json!("EPS"));
    c.edit_bytes(CONFIG, |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("\"EPS\"", number).into_bytes()
    });
}

fn set_weights(c: &Checkpoint, key: &str, value: Value) {
    c.edit_json(CONFIG, |config| {
        let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
        groups.values_mut().for_each(|group| group["weights"][key] = value.clone());
    });
}

fn set_targets(c: &Checkpoint, targets: Value) {
    c.edit_json(CONFIG, |config| {
        let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
        groups.values_mut().for_each(|group| group["targets"] = targets.clone());
    });
}
