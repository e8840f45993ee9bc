//! Tests damaged checkpoints: every command refuses each of them in under a second, with a message
//! that names the file or tensor and the remedy, and leaves no trace. A case is a name, one kind of
//! damage, and words of the message.

use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};
use crate::common::{Sandbox, assert_none};
use serde_json::{Value, json};

/// All commands that read a checkpoint.
const EVERY_COMMAND: &[&str] = &[
    "inspect model",
    "verify model",
    "logits model --tokens ids.json -o logits.safetensors",
    "eval model --data ids.jsonl",
    "upcycle model -o out --experts 4 --top-k 2",
    "upcycle model -o out --experts 4 --top-k 2 --dry-run",
];
const LLAMA: &str = "families/llama/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";
const SECOND_SHARD: &str = "model-00002-of-00003.safetensors";
const Q: &str = "model.layers.1.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

struct Case {
    name: &'static str,
    damage: fn(&Checkpoint),
    complaints: &'static [&'static str],
}

fn case(name: &'static str, damage: fn(&Checkpoint), complaints: &'static [&'static str]) -> Case {
    Case { name, damage, complaints }
}

/// Damages a copy of `golden` in each way and runs `commands` on it. For each case the first
/// problem is shown.
#[track_caller]
fn all_refused(golden: &str, commands: &[&str], cases: &[Case]) {
    let mut problems = Vec::new();
    for case in cases {
        let sandbox = Sandbox::new();
        sandbox.write("ids.json", "[[1, 2, 3], [4, 5]]");
        sandbox.write("ids.jsonl", r#"{"input_ids": [1, 2, 3]}"#);
        (case.damage)(&sandbox.copy(golden, "model"));
        let first =
            commands.iter().find_map(|command| sandbox.refuses(command, 1, case.complaints));
        problems.extend(first.map(|p| format!("{}: {p}", case.name)));
    }
    assert_none(&problems);
}

#[test]
fn shards_cut_short() {
    let cases = [
        case("a byte short", |c| c.truncate(SHARD, -1), &[SHARD, "truncated", "download"]),
        case("half", |c| c.truncate(SHARD, 70_000), &[SHARD, "truncated", "model.layers."]),
        case("in the header", |c| c.truncate(SHARD, 500), &[SHARD, "the header claims"]),
        case("in the length", |c| c.truncate(SHARD, 5), &[SHARD, "too few"]),
        case("empty", |c| c.truncate(SHARD, 0), &[SHARD, "too few"]),
        case(
            "bytes too many",
            |c| c.edit_bytes(SHARD, |b| b.push(0)),
            &[SHARD, "after the last tensor"],
        ),
        case("zeros", |c| c.edit_bytes(SHARD, |b| b.fill(0)), &[SHARD, "header"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn set_length(c: &Checkpoint, length: u64) {
    c.edit_bytes(SHARD, |bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()));
}

#[test]
fn headers_that_are_no_headers() {
    let cases = [
        case("length 2^63", |c| set_length(c, 1 << 63), &[SHARD, "9223372036854775808"]),
        case("length 2^64 - 1", |c| set_length(c, u64::MAX), &[SHARD, "the header claims"]),
        case("length 99 MB", |c| set_length(c, 99_000_000), &[SHARD, "the header claims"]),
        case("length 0", |c| set_length(c, 0), &[SHARD, "header"]),
        case("broken JSON", |c| c.set_header(r#"{"a":{"dtype":"#), &[SHARD, "not a JSON object"]),
        case("not UTF-8", |c| c.set_header(b"{\"\xff\xfe\":{}}"), &[SHARD, "not a JSON object"]),
        case(
            "nested deeply",
            |c| c.set_header(format!("{{\"a\":{}", "[".repeat(100_000))),
            &[SHARD, "header"],
        ),
        case("a list", |c| c.set_header("[]"), &[SHARD, "not a JSON object"]),
        case("an entry that is no object", |c| c.set_header(r#"{"a":1}"#), &[SHARD, "tensor"]),
        case("text after it", |c| c.set_header("{} x"), &[SHARD, "not a JSON object"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn set_entry(c: &Checkpoint, key: &str, value: Value) {
    c.edit_header(SHARD, |header| header[DOWN][key] = value);
}

#[test]
fn headers_that_lie() {
    let cases = [
        case(
            "a range too short",
            |c| c.move_range(DOWN, |s, e| (s, e - 4)),
            &[SHARD, DOWN, "takes"],
        ),
        case("a range backwards", |c| c.move_range(DOWN, |s, e| (e, s)), &[SHARD, DOWN, "takes"]),
        case(
            "ranges overlap",
            |c| c.move_range(DOWN, |s, e| (s - 4, e - 4)),
            &[SHARD, "overlap", "model.layers.0."],
        ),
        case(
            "the same range twice",
            |c| c.move_range(Q, |s, e| (s - 7680, e - 7680)),
            &[SHARD, "overlap"],
        ),
        case(
            "a gap",
            |c| c.move_range(DOWN, |s, e| (s + 4, e + 4)),
            &[SHARD, "belong to no tensor"],
        ),
        case(
            "far outside",
            |c| c.move_range(DOWN, |s, e| (s + (1 << 50), e + (1 << 50))),
            &[SHARD, "model.layers.0."],
        ),
        case(
            "at the end of u64",
            |c| c.move_range(DOWN, |s, e| (u64::MAX - (e - s), u64::MAX)),
            &[SHARD],
        ),
        case(
            "a negative offset",
            |c| set_entry(c, "data_offsets", json!([-4, 8956])),
            &[SHARD, DOWN, "-4"],
        ),
        case(
            "another shape",
            |c| set_entry(c, "shape", json!([40, 57])),
            &[SHARD, DOWN, "[40, 57]"],
        ),
        case(
            "a shape past 2^64",
            |c| set_entry(c, "shape", json!([1u64 << 40, 1u64 << 40])),
            &[SHARD, DOWN, "size"],
        ),
        case(
            "a negative shape",
            |c| set_entry(c, "shape", json!([-40, 56])),
            &[SHARD, DOWN, "-40"],
        ),
        case(
            "a dtype nobody knows",
            |c| set_entry(c, "dtype", json!("F99")),
            &[SHARD, DOWN, "F99"],
        ),
        case("an entry without dtype", drop_dtype, &[SHARD, DOWN, "dtype"]),
        case("a name twice", name_twice, &[SHARD, "twice", "model.norm.weight"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn drop_dtype(c: &Checkpoint) {
    c.edit_header(SHARD, |header| {
        header[DOWN].as_object_mut().unwrap().remove("dtype");
    });
}

/// JSON maps can't hold a key twice, so this works on the text.
fn name_twice(c: &Checkpoint) {
    c.rename_tensor("model.norm.weight", "model.norM.weight");
    c.edit_bytes(SHARD, |bytes| {
        let at = bytes.windows(17).position(|w| w == b"model.norM.weight").unwrap();
        bytes[at..at + 17].copy_from_slice(b"model.norm.weight");
        let at = bytes.windows(14).position(|w| w == b"lm_head.weight").unwrap();
        // Seventeen bytes replace fourteen; the padding before the data has room for them.
        bytes.splice(at..at + 14, *b"model.norm.weight");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        bytes[..8].copy_from_slice(&(length + 3).to_le_bytes());
    });
}

#[test]
fn indexes() {
    let cases = [
        case(
            "a missing shard",
            |c| c.remove(SECOND_SHARD),
            &[INDEX, SECOND_SHARD, "download the missing shard"],
        ),
        case(
            "a path upwards",
            |c| c.set_index(Q, "../evil.safetensors"),
            &[INDEX, "../evil", "outside"],
        ),
        case(
            "an absolute path",
            |c| c.set_index(Q, "/etc/passwd"),
            &[INDEX, "/etc/passwd", "outside"],
        ),
        case(
            "a path downwards and up",
            |c| c.set_index(Q, "a/../../b"),
            &[INDEX, "../b", "outside"],
        ),
        case("a folder", |c| c.set_index(Q, ".."), &[INDEX, "outside"]),
        case("no name", |c| c.set_index(Q, ""), &[INDEX, "outside"]),
        case("NUL in a name", |c| c.set_index(Q, "a\0b"), &[INDEX, "outside"]),
        case(
            "a shard that is not there",
            |c| c.set_index(Q, "model-9.safetensors"),
            &[INDEX, "model-9.safetensors"],
        ),
        case("broken JSON", |c| c.truncate(INDEX, -20), &[INDEX, "JSON"]),
        case("empty", |c| c.truncate(INDEX, 0), &[INDEX, "JSON"]),
        case("a list", |c| c.write(INDEX, "[]"), &[INDEX, "JSON"]),
        case("no weight_map", |c| c.write(INDEX, "{}"), &[INDEX, "weight_map"]),
        case("no tensor", |c| c.write(INDEX, r#"{"weight_map": {}}"#), &[INDEX, "no tensor"]),
        case(
            "a number for a shard",
            |c| c.write(INDEX, r#"{"weight_map": {"a": 1}}"#),
            &[INDEX, "JSON"],
        ),
        case("an index that is a folder", |c| c.make_directory_of(INDEX), &[INDEX]),
        case("no index", |c| c.remove(INDEX), &[INDEX, "several shards", "download"]),
        case("a shard cut short", |c| c.truncate(SECOND_SHARD, -2), &[SECOND_SHARD, "truncated"]),
        case("an empty shard", |c| c.truncate(SECOND_SHARD, 0), &[SECOND_SHARD, "too few"]),
        case("a shard that is a folder", |c| c.make_directory_of(SECOND_SHARD), &[SECOND_SHARD]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

fn drop_key(c: &Checkpoint, key: &str) {
    c.edit_json("config.json", |config| {
        config.remove(key);
    });
}

const CONFIG: &str = "config.json";

/// Replaces the config by a file of another tool.
fn swap(checkpoint: &Checkpoint, name: &str) {
    checkpoint.remove(CONFIG);
    checkpoint.write(name, "{}");
}

#[test]
fn configs_that_are_no_configs() {
    let cases = [
        case("missing", |c| c.remove(CONFIG), &["model", "no config.json"]),
        case(
            "an adapter",
            |c| swap(c, "adapter_config.json"),
            &["model", "adapter", "merge_and_unload"],
        ),
        case("GGUF", |c| swap(c, "model-Q4_K_M.gguf"), &["model", "GGUF", "safetensors"]),
        case("a folder", |c| c.make_directory_of(CONFIG), &[CONFIG]),
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
        case("no model_type", |c| drop_key(c, "model_type"), &[CONFIG, "model_type"]),
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
fn configs_with_absurd_numbers() {
    let cases = [
        case(
            "10^9 layers",
            |c| c.set("num_hidden_layers", json!(1_000_000_000)),
            &[CONFIG, "num_hidden_layers"],
        ),
        case("0 layers", |c| c.set("num_hidden_layers", json!(0)), &[CONFIG, "num_hidden_layers"]),
        case(
            "hidden_size 2^62",
            |c| c.set("hidden_size", json!(1u64 << 62)),
            &[CONFIG, "hidden_size"],
        ),
        case("hidden_size 10^30", |c| c.set("hidden_size", json!(1e30)), &[CONFIG, "hidden_size"]),
        case("hidden_size text", |c| c.set("hidden_size", json!("40")), &[CONFIG, "hidden_size"]),
        case("hidden_size missing", |c| drop_key(c, "hidden_size"), &[CONFIG, "hidden_size"]),
        case(
            "negative heads",
            |c| c.set("num_attention_heads", json!(-4)),
            &[CONFIG, "num_attention_heads"],
        ),
        case(
            "0 heads",
            |c| c.set("num_attention_heads", json!(0)),
            &[CONFIG, "num_attention_heads"],
        ),
        case("2^32 - 1 heads", |c| c.set("num_attention_heads", json!(u32::MAX)), &[CONFIG]),
        case(
            "3 kv heads of 4",
            |c| c.set("num_key_value_heads", json!(3)),
            &[CONFIG, "num_key_value_heads"],
        ),
        case(
            "0 kv heads",
            |c| c.set("num_key_value_heads", json!(0)),
            &[CONFIG, "num_key_value_heads"],
        ),
        case("an odd head_dim", |c| c.set("head_dim", json!(13)), &[CONFIG, "head_dim"]),
        case(
            "a width of 2^31 - 1",
            |c| c.set("intermediate_size", json!(i32::MAX)),
            &["mlp.", "2147483647"],
        ),
        case("no vocabulary", |c| c.set("vocab_size", json!(0)), &[CONFIG, "vocab_size"]),
        case("eps text", |c| c.set("rms_norm_eps", json!("small")), &[CONFIG, "rms_norm_eps"]),
        case("eps negative", |c| c.set("rms_norm_eps", json!(-1.0)), &[CONFIG, "rms_norm_eps"]),
        case(
            "theta 0",
            |c| c.set("rope_parameters", json!({"rope_theta": 0.0, "rope_type": "default"})),
            &["rope_theta"],
        ),
        case(
            "theta text",
            |c| c.set("rope_parameters", json!({"rope_theta": "x"})),
            &[CONFIG, "rope_theta"],
        ),
        case(
            "tied: maybe",
            |c| c.set("tie_word_embeddings", json!("maybe")),
            &[CONFIG, "tie_word_embeddings"],
        ),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
    let cases = [
        case(
            "10^9 experts",
            |c| c.set("num_local_experts", json!(1_000_000_000)),
            &["gate.weight"],
        ),
        case(
            "negative experts",
            |c| c.set("num_local_experts", json!(-5)),
            &[CONFIG, "num_local_experts"],
        ),
        case("0 experts", |c| c.set("num_local_experts", json!(0)), &[CONFIG, "num_local_experts"]),
        case(
            "an expert short",
            |c| c.set("num_local_experts", json!(4)),
            &["block_sparse_moe", "model-0000"],
        ),
        case(
            "top-k over all",
            |c| c.set("num_experts_per_tok", json!(6)),
            &[CONFIG, "num_experts_per_tok", "6"],
        ),
        case(
            "top-k 0",
            |c| c.set("num_experts_per_tok", json!(0)),
            &[CONFIG, "num_experts_per_tok"],
        ),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

#[test]
fn configs_that_ask_for_what_is_not_supported() {
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
        case(
            "dynamic rope",
            |c| {
                c.set(
                    "rope_parameters",
                    json!({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
                )
            },
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
fn tensors_that_do_not_fit_the_config() {
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
            |c| set_entry(c, "shape", json!([56, 40])),
            &[DOWN, SHARD, "[56, 40]", "[40, 56]"],
        ),
        case("a flat matrix", |c| set_entry(c, "shape", json!([2240])), &[DOWN, SHARD, "[2240]"]),
        case(
            "a bias nobody asked for",
            |c| c.set("mlp_bias", json!(true)),
            &["mlp.gate_proj.bias", "missing"],
        ),
        case("integers", |c| set_entry(c, "dtype", json!("I32")), &[DOWN, SHARD, "I32", "BF16"]),
        case("unknown in a layer", unknown_in_a_layer, &["model.layers.0.mlp.extra.weight", SHARD]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn unknown_in_a_layer(c: &Checkpoint) {
    c.edit_header(SHARD, |header| {
        let entry = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
        header.insert("model.layers.0.mlp.extra.weight".to_owned(), entry);
    });
}

#[test]
fn directories_that_are_no_checkpoints() {
    let clear = |c: &Checkpoint| {
        ["config.json", "generation_config.json", SHARD].iter().for_each(|f| c.remove(f))
    };
    let cases = [
        case("empty", clear, &["model", "no config.json"]),
        case("no weights", |c| c.remove(SHARD), &["model", "no safetensors weights"]),
        case("weights a folder", |c| c.make_directory_of(SHARD), &[SHARD]),
        case(
            "pickled",
            |c| c.rename(SHARD, "pytorch_model.bin"),
            &["pickled", "safe_serialization"],
        ),
        case(
            "old pickled",
            |c| c.rename(SHARD, "consolidated.00.pth"),
            &["pickled", "consolidated", "Hugging Face's format"],
        ),
        case(
            "GGUF beside a config",
            |c| c.rename(SHARD, "m-Q4_K_M.gguf"),
            &["GGUF weights only", "safetensors checkpoint"],
        ),
        case(
            "distributed",
            |c| c.rename(SHARD, "__0_0.distcp"),
            &["distributed", "accelerate merge-weights"],
        ),
        case("MLX", |c| c.rename(SHARD, "weights.npz"), &["MLX", "safetensors checkpoint"]),
        case("ONNX", |c| c.rename(SHARD, "model.onnx"), &["ONNX weights only"]),
        case(
            "TensorFlow",
            |c| c.rename(SHARD, "tf_model.h5"),
            &["TensorFlow weights only", "from_tf"],
        ),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);

    // A folder around checkpoints, such as a hub's cache, says where they lie.
    let hub = Sandbox::new();
    hub.copy("families/llama/base/model", "hub/models--a--b/snapshots/0123abcd");
    hub.write("hub/models--a--b/refs/main", "0123abcd");
    hub.copy("families/llama/base/model", "two/first");
    hub.copy("families/llama/base/model", "two/second");
    let found = ["hub", "hub/models--a--b", "hub/models--a--b/snapshots"].map(|dir| {
        hub.refuses(&format!("inspect {dir}"), 1, &["give hub/models--a--b/snapshots/0123abcd"])
    });
    let two = hub.refuses("verify two", 1, &["one of the 2 checkpoints", "two/first"]);
    assert_none(&found.into_iter().chain([two]).flatten().collect::<Vec<_>>());

    let sandbox = Sandbox::new();
    sandbox.write("file", "");
    sandbox.write("ids.json", "[[1]]");
    let mut problems = Vec::new();
    for command in EVERY_COMMAND {
        problems.extend(sandbox.refuses(&command.replace(" model", " nowhere"), 1, &["nowhere"]));
        problems.extend(sandbox.refuses(
            &command.replace(" model", " file"),
            2,
            &["file", "directory"],
        ));
    }
    assert_none(&problems);
}

/// Opening a pipe under a file's name would block, so the program must check before.
#[test]
fn pipes_do_not_hang() {
    for (golden, file) in
        [(LLAMA, SHARD), (LLAMA, CONFIG), (SHARDED, INDEX), (SHARDED, SECOND_SHARD)]
    {
        let sandbox = Sandbox::new();
        sandbox.copy(golden, "model").remove(file);
        let outcome = sandbox.shell(&format!(
            "mkfifo model/{file}; timeout 5 '{}' inspect model",
            crate::common::BINARY
        ));
        outcome.exits(1).says(&["model", "remedy"]);
    }
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
fn values_that_are_not_finite() {
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
