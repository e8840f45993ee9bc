//! Tests that a checkpoint which loaders refuse isn't sound.

use serde_json::json;

use super::{Case, LLAMA, MIXTRAL, QWEN3_MOE, SHARDED, case, changed, prefixed, set};
use crate::common::assert_none;
use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";

/// `verify` refuses each of these with the given words. transformers 5.23 was seen to refuse them
/// (AutoModelForCausalLM or AutoConfig, AutoTokenizer), unless a row says otherwise.
#[track_caller]
fn all_refused(cases: &[Case]) {
    let mut problems = Vec::new();
    for case in cases {
        let sandbox = changed(case);
        let Case { name, says, .. } = case;
        problems.extend(sandbox.refuses("verify model", 1, says).map(|p| format!("{name}: {p}")));
    }
    assert_none(&problems);
}

#[test]
fn configs_that_loaders_refuse_are_not_sound() {
    all_refused(&[
        set(MIXTRAL, "num_experts", json!(4), &["num_experts 4", "7"]),
        set("families/deepseek_v2/base/model", "num_experts", json!(4), &["8"]),
        set(LLAMA, "initializer_range", json!(1), &["initializer_range 1", "decimal point"]),
        set(QWEN3_MOE, "router_aux_loss_coef", json!(0), &["router_aux_loss_coef 0"]),
        set(QWEN3_MOE, "use_cache", json!(null), &["use_cache null", "true or false"]),
        set(LLAMA, "max_position_embeddings", json!(64.0), &["max_position_embeddings 64.0"]),
        set(LLAMA, "pad_token_id", json!(5000), &["pad_token_id 5000"]),
        // transformers reads this, too.
        set(
            "families/deepseek_v3/base/model",
            "scoring_func",
            json!("softmax"),
            &["scoring_func \"softmax\"", "transformers ignores this key", "\"sigmoid\""],
        ),
        set(QWEN3_MOE, "mlp_only_layers", json!(["0"]), &["mlp_only_layers", "[\"0\"]"]),
        set(LLAMA, "tie_word_embeddings", json!(null), &["tie_word_embeddings null"]),
    ]);
}

#[test]
fn indexes_that_loaders_refuse_are_not_sound() {
    all_refused(&[
        case(
            "no metadata",
            SHARDED,
            |c| c.edit_json(INDEX, |index| _ = index.remove("metadata")),
            &[INDEX, "metadata"],
        ),
        case(
            "null metadata",
            SHARDED,
            |c| c.edit_json(INDEX, |i| i["metadata"] = json!(null)),
            &[INDEX, "metadata"],
        ),
        case(
            "a list for it",
            SHARDED,
            |c| c.edit_json(INDEX, |i| i["metadata"] = json!([1])),
            &[INDEX, "metadata"],
        ),
    ]);
}

#[test]
fn weights_under_another_name_are_not_sound() {
    all_refused(&[case(
        "another name",
        LLAMA,
        |c| c.rename(SHARD, "weights.safetensors"),
        &["weights.safetensors", "rename"],
    )]);
}

/// A checkpoint with the file `name` that holds `text`.
fn written(name: &'static str, text: &'static str, says: &'static [&'static str]) -> Case {
    case(name, LLAMA, move |c| c.write(name, text), says)
}

#[test]
fn tokenizers_that_loaders_refuse_are_not_sound() {
    all_refused(&[
        written("tokenizer.json", POINTER, &["tokenizer.json", "Git LFS", "git lfs pull"]),
        written("tokenizer.model", POINTER, &["tokenizer.model", "Git LFS"]),
        written("tokenizer.json", "{\"model\": ", &["tokenizer.json", "JSON"]),
    ]);
}

#[test]
fn adapters_and_pickles_are_not_sound() {
    all_refused(&[
        case(
            "an adapter beside",
            LLAMA,
            |c| c.write("adapter_config.json", "{}"),
            &["adapter", "merge_and_unload"],
        ),
        case(
            "an adapter alone",
            LLAMA,
            |c| c.rename(SHARD, "adapter_model.safetensors"),
            &["adapter", "merge_and_unload"],
        ),
        case(
            "a pickle",
            SHARDED,
            |c| rename_shard(c, "model-00002-of-00003.safetensors", "a.weights"),
            &["a.weights", "pickle"],
        ),
    ]);
}

/// A checkpoint with `prefix` before all names.
fn with_prefix(prefix: &'static str, says: &'static [&'static str]) -> Case {
    case(prefix, LLAMA, move |c| prefixed(c, prefix), says)
}

#[test]
fn prefixes_of_wrappers_are_not_sound() {
    all_refused(&[
        // DataParallel, torch.compile, both, and PEFT.
        with_prefix("module.", &["module.model.embed_tokens.weight", "removeprefix"]),
        with_prefix("_orig_mod.", &["\"_orig_mod.\"", "removeprefix"]),
        with_prefix("_orig_mod.module.", &["\"_orig_mod.module.\"", "removeprefix"]),
        with_prefix("base_model.model.", &["\"base_model.model.\"", "merge_and_unload"]),
    ]);
}

/// transformers reads F64, and this program says that it doesn't.
#[test]
fn tensors_in_f64_are_not_sound() {
    let says = &["model.norm.weight", "F64", "though transformers loads them", "save_pretrained"];
    all_refused(&[case("F64", LLAMA, widen_norm, says)]);
}

/// Renames the shard `name` to `new`, also in the index.
fn rename_shard(checkpoint: &Checkpoint, name: &str, new: &str) {
    checkpoint.rename(name, new);
    checkpoint.edit_json(INDEX, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.values_mut().filter(|shard| *shard == name).for_each(|shard| *shard = json!(new));
    });
}

/// Stores the final norm in F64 after all other tensors. Its old bytes stay unused.
fn widen_norm(checkpoint: &Checkpoint) {
    const NORM: &str = "model.norm.weight";
    let mut added = 0;
    checkpoint.edit_header(SHARD, |header| {
        let end =
            header.values().filter_map(|entry| entry["data_offsets"][1].as_u64()).max().unwrap();
        let old = header[NORM].clone();
        let elements = old["shape"][0].as_u64().unwrap();
        added = 8 * elements as usize;
        header[NORM] =
            json!({"dtype": "F64", "shape": [elements], "data_offsets": [end, end + 8 * elements]});
        let (from, to) =
            (old["data_offsets"][0].as_u64().unwrap(), old["data_offsets"][1].as_u64().unwrap());
        header.insert(
            "other".to_owned(),
            json!({"dtype": "U8", "shape": [to - from], "data_offsets": [from, to]}),
        );
    });
    checkpoint.edit_bytes(SHARD, |bytes| bytes.extend(std::iter::repeat_n(0, added)));
}
