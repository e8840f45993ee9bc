//! Tests that a checkpoint which loaders take is sound, and that `verify` says what other loaders
//! trip over.

use std::fs;

use serde_json::json;

use super::{Case, LLAMA, MIXTRAL, QWEN3_MOE, SHARDED, case, changed, prefixed, rename_all, set};
use crate::common::assert_none;
use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};

const TRAINED: &str = "models/moe";

/// `verify` takes each of these, and its result says the given words. transformers 5.23 was seen to
/// load them without a missing weight; the words warn of other loaders.
#[track_caller]
fn all_said(cases: &[Case]) {
    let mut problems = Vec::new();
    for case in cases {
        let sandbox = changed(case);
        let Case { name, says, .. } = case;
        let outcome = sandbox.run("verify model");
        let missing: Vec<_> = says.iter().filter(|text| !outcome.stdout.contains(**text)).collect();
        if outcome.code != 0 || !missing.is_empty() {
            problems.push(format!("{name}: lacks {missing:?}\n{}\n{outcome}", outcome.stdout));
        }
    }
    assert_none(&problems);
}

const LAYER: &str = "model.layers.0.self_attn";

#[test]
fn buffers_that_loaders_ignore_are_named() {
    all_said(&[
        case(
            "cos and sin",
            LLAMA,
            |c| c.add_empty_tensor(&format!("{LAYER}.rotary_emb.cos_cached")),
            &["ignore", "cos_cached"],
        ),
        case(
            "frequencies",
            LLAMA,
            |c| c.add_empty_tensor(&format!("{LAYER}.rotary_emb.inv_freq")),
            &["ignore", "inv_freq"],
        ),
        case(
            "a mask",
            QWEN3_MOE,
            |c| c.add_empty_tensor(&format!("{LAYER}.masked_bias")),
            &["ignore", "masked_bias"],
        ),
    ]);
}

#[test]
fn tensors_and_prefixes_that_vllm_refuses_are_named() {
    all_said(&[
        case(
            "a mask, dense",
            LLAMA,
            |c| c.add_empty_tensor(&format!("{LAYER}.masked_bias")),
            &["vLLM refuses", "masked_bias"],
        ),
        case(
            "a value head",
            LLAMA,
            |c| c.add_empty_tensor("v_head.summary.weight"),
            &["vLLM refuses", "v_head.summary"],
        ),
        case(
            "no model.",
            LLAMA,
            |c| rename_all(c, |n| n.replacen("model.", "", 1)),
            &["model.", "vLLM", "refuse them"],
        ),
    ]);
}

#[test]
fn names_that_some_versions_of_transformers_start_at_random_are_named() {
    all_said(&[
        case(
            "a head of the model",
            LLAMA,
            |c| rename_all(c, |n| n.replace("lm_head", "model.lm_head")),
            &["as lm_head"],
        ),
        case(
            "model. twice",
            LLAMA,
            |c| rename_all(c, |n| n.replace("model.", "model.model.")),
            &["as model.", "at random"],
        ),
        case(
            "model. before all",
            LLAMA,
            |c| prefixed(c, "model."),
            &["older versions start it at random"],
        ),
    ]);
}

#[test]
fn routers_under_other_names_than_their_experts_are_named() {
    all_said(&[
        case(
            "names of two ages",
            MIXTRAL,
            |c| rename_all(c, |n| n.replace("block_sparse_moe", "mlp")),
            &[],
        ),
        case(
            "routers elsewhere",
            MIXTRAL,
            |c| rename_all(c, |n| n.replace("block_sparse_moe.gate", "mlp.gate")),
            &["such routers"],
        ),
    ]);
}

#[test]
fn configs_that_loaders_take_are_read_and_what_they_trip_over_is_said() {
    all_said(&[
        set(LLAMA, "rope_scaling", json!(false), &["rope_scaling false", "before 5"]),
        case("Infinity", LLAMA, add_infinity, &[]),
        set(LLAMA, "eos_token_id", json!([1, 4097]), &["eos_token_id 4097", "beyond"]),
        set(LLAMA, "architectures", json!(["X"]), &["architectures [\"X\"]"]),
        set(LLAMA, "architectures", json!("X"), &["architectures \"X\""]),
        set(LLAMA, "architectures", json!([]), &["architectures []", "LlamaForCausalLM"]),
        set(LLAMA, "quantization_config", json!(null), &["quantization_config null"]),
        set(LLAMA, "rope_scaling", json!({}), &["rope_scaling without rope_type"]),
        set(
            LLAMA,
            "rope_scaling",
            json!({ "rope_type": "default", "type": "linear", "factor": 2.0 }),
            &["rope_type \"default\"", "type \"linear\"", "another function"],
        ),
    ]);
}

fn add_infinity(c: &Checkpoint) {
    c.edit_bytes("config.json", |b| _ = b.splice(1..1, *b"\"limit\": [-Infinity, NaN],"));
}

#[test]
fn values_that_versions_of_transformers_read_from_two_places_are_said() {
    const BASES: &str = "transformers 5 reads 70.0, versions before it 50.0";
    const LENGTHS: &str = "transformers 5 reads 8, versions before it 16";
    all_said(&[
        case("two bases", LLAMA, set_two_bases, &[BASES]),
        case("two lengths", LLAMA, set_two_lengths, &[LENGTHS]),
    ]);
}

fn set_two_bases(c: &Checkpoint) {
    c.set("rope_theta", json!(50.0));
    let linear = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 70.0 });
    c.set("rope_scaling", linear);
}

fn set_two_lengths(c: &Checkpoint) {
    c.set("original_max_position_embeddings", json!(8));
    let yarn =
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 });
    c.set("rope_scaling", yarn);
}

#[test]
fn values_that_only_some_machines_can_run_are_said() {
    all_said(&[
        set(
            LLAMA,
            "_attn_implementation",
            json!("flash_attention_2"),
            &["_attn_implementation \"flash_attention_2\"", "flash-attn"],
        ),
        case(
            "half a pair",
            LLAMA,
            |c| c.edit_bytes("config.json", |b| _ = b.splice(1..1, *b"\"a\": \"\\ud800\",")),
            &[],
        ),
        set(LLAMA, "torch_dtype", json!("float64"), &["torch_dtype \"float64\""]),
    ]);
}

#[test]
fn side_files_and_metadata_that_loaders_do_without_are_said() {
    all_said(&[
        case(
            "half a generation config",
            TRAINED,
            |c| c.write("generation_config.json", "{"),
            &["without it"],
        ),
        case(
            "null metadata",
            LLAMA,
            |c| c.edit_header(SHARD, |h| h["__metadata__"] = json!(null)),
            &[],
        ),
    ]);
}

#[test]
fn indexes_that_name_other_shards_are_said() {
    all_said(&[
        case(
            "a ghost",
            SHARDED,
            |c| c.set_index("model.ghost", "model-00002-of-00003.safetensors"),
            &["model.ghost", "no shard"],
        ),
        case(
            "another shard",
            SHARDED,
            |c| c.set_index("model.norm.weight", "model-00001-of-00003.safetensors"),
            &["another shard"],
        ),
    ]);
}

#[test]
fn tokens_that_loaders_place_elsewhere_are_said() {
    all_said(&[case(
        "beyond",
        TRAINED,
        |c| c.write("added_tokens.json", "{\"<|im_end|>\": 4096}"),
        // This is the number that transformers gives it.
        &["beyond the vocabulary of 2048", "<|im_end|>", "(2048)"],
    )]);
}

#[test]
fn tensors_that_loaders_place_elsewhere_are_said() {
    all_said(&[
        case(
            "unlisted",
            SHARDED,
            |c| {
                c.edit_json(INDEX, |i| {
                    _ = i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")
                })
            },
            &["leaves out", "model.norm.weight", "at random"],
        ),
        case(
            "a tensor in two shards",
            SHARDED,
            copy_third_shard,
            &[
                "two shards hold model.layers.1.",
                "model-00003-of-00003.safetensors and more.safetensors",
                "the last by name",
            ],
        ),
    ]);
}

fn copy_third_shard(c: &Checkpoint) {
    fs::copy(c.path("model-00003-of-00003.safetensors"), c.path("more.safetensors")).unwrap();
    c.set_index("model.norm.weight", "more.safetensors");
}
