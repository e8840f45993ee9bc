//! Tests `verify`: whether a result is unchanged since it was written, and how loaders read a
//! checkpoint.

use std::fs;

use serde_json::json;

use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};
use crate::common::{Sandbox, assert_none, tensors};

const LLAMA: &str = "families/llama/base/model";
const QWEN3_MOE: &str = "families/qwen3_moe/base/model";
const TRAINED: &str = "models/moe";
const MIXTRAL: &str = "families/mixtral/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";
const SUMS: &str = "out/SHA256SUMS";

fn result() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.run("upcycle golden/families/llama/base/model -o out --experts 2 --top-k 1").succeeds();
    sandbox
}

#[test]
fn a_list_of_hashes_that_was_changed_is_found() {
    let sandbox = result();
    let sums = String::from_utf8(sandbox.read(SUMS)).unwrap();
    let without = |name: &str| {
        sums.lines().filter(|line| !line.ends_with(name)).fold(String::new(), |a, l| a + l + "\n")
    };
    let reversed = sums.lines().rev().fold(String::new(), |text, line| text + line + "\n");
    let zeros = "0".repeat(64);
    let of_config =
        sums.lines().find(|line| line.ends_with("  config.json")).unwrap()[..64].to_owned();
    let mut problems = Vec::new();
    for (change, text, complaint) in [
        ("emptied", String::new(), "isn't listed"),
        ("without weights", without("model.safetensors"), "model.safetensors isn't listed"),
        ("without the config", without("config.json"), "config.json isn't listed"),
        ("without the receipt", without("moe-convert.json"), "moe-convert.json isn't listed"),
        ("without the card", without("README.md"), "README.md isn't listed"),
        ("reversed", reversed, "lines"),
        ("another hash", sums.replace(&of_config, &zeros), "SHA-256"),
        ("a line more", format!("{sums}{zeros}  notes.txt\n"), "notes.txt is listed"),
        ("a file twice", format!("{sums}{sums}"), "again"),
        ("no list", "words\n".to_owned(), "line 1"),
    ] {
        sandbox.write(SUMS, text);
        problems.extend(
            sandbox
                .refuses("verify out", 1, &["SHA256SUMS", complaint])
                .map(|p| format!("{change}: {p}")),
        );
    }
    fs::remove_file(sandbox.path(SUMS)).unwrap();
    problems.extend(sandbox.refuses("verify out", 1, &["SHA256SUMS", "receipt"]));
    assert_none(&problems);
    // The list reveals a changed byte, and a changed receipt too.
    sandbox.write(SUMS, &sums);
    sandbox.run("verify out").succeeds();
    let receipt = String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap();
    // --resume keeps only complete results.
    const AGAIN: &str =
        "upcycle golden/families/llama/base/model -o out --experts 2 --top-k 1 --resume";
    sandbox.run(AGAIN).succeeds();
    sandbox.write(SUMS, "");
    sandbox.run(AGAIN).exits(2);
    sandbox.write(SUMS, &sums);
    sandbox.write("out/moe-convert.json", receipt.replace("\"seed\": 0", "\"seed\": 1") + " ");
    sandbox.run("verify out").exits(1).says(&["moe-convert.json", "SHA-256"]);
}

#[test]
fn added_files_are_named_and_refused_where_loaders_take_them() {
    let sandbox = result();
    let mut problems = Vec::new();
    for name in [
        "pytorch_model.bin",
        "extra.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "modeling_x.py",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "hf_quant_config.json",
        "params.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        sandbox.write(&format!("out/{name}"), "{}");
        problems.extend(sandbox.refuses("verify out", 1, &[name]));
        fs::remove_file(sandbox.path(&format!("out/{name}"))).unwrap();
    }
    assert_none(&problems);
    for (name, shown) in [
        (".git/config", ".git/"),
        (".gitattributes", ".gitattributes"),
        (".cache/huggingface/x", ".cache/"),
        ("notes.txt", "notes.txt"),
        ("figures/plot.png", "figures/plot.png"),
    ] {
        sandbox.write(&format!("out/{name}"), "words");
        let outcome = sandbox.run("verify out --json").succeeds();
        assert!(
            outcome.json()["unlisted"].as_array().unwrap().contains(&json!(shown)),
            "{name}: {outcome}"
        );
    }
    // A run writes files, and no links.
    sandbox.shell("mv out/run.json elsewhere; ln -s ../elsewhere out/run.json").succeeds();
    let outcome = sandbox.run("verify out --json").succeeds();
    assert!(
        outcome.json()["unlisted"].as_array().unwrap().contains(&json!("run.json")),
        "{outcome}"
    );
    // Without its receipt, a folder isn't a result, whatever its list says.
    sandbox.shell("mv elsewhere out/run.json; rm out/moe-convert.json").succeeds();
    let sums = sandbox.read(SUMS);
    for list in [Some(&sums[..]), Some(b""), None] {
        match list {
            Some(list) => sandbox.write(SUMS, list),
            None => fs::remove_file(sandbox.path(SUMS)).unwrap(),
        }
        problems.extend(sandbox.refuses("verify out", 1, &["moe-convert.json", "receipt"]));
    }
    assert_none(&problems);
    // Without any trace of a receipt, the list is a user's own.
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "model");
    sandbox.shell("cd model && sha256sum model.safetensors > SHA256SUMS").succeeds();
    let outcome = sandbox.run("verify model --json").succeeds();
    assert!(
        outcome.json()["unlisted"].as_array().unwrap().contains(&json!("config.json")),
        "{outcome}"
    );
}

struct Case {
    name: &'static str,
    golden: &'static str,
    damage: fn(&Checkpoint),
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    golden: &'static str,
    damage: fn(&Checkpoint),
    says: &'static [&'static str],
) -> Case {
    Case { name, golden, damage, says }
}

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";

/// transformers 5.23 was seen to refuse each of them (AutoModelForCausalLM or AutoConfig,
/// AutoTokenizer).
#[test]
fn what_loaders_refuse_is_not_sound() {
    let cases = [
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
        case("two counts", MIXTRAL, |c| c.set("num_experts", json!(4)), &["num_experts 4", "7"]),
        case(
            "two counts, DeepSeek",
            "families/deepseek_v2/base/model",
            |c| c.set("num_experts", json!(4)),
            &["8"],
        ),
        case(
            "an integer",
            LLAMA,
            |c| c.set("initializer_range", json!(1)),
            &["initializer_range 1", "decimal point"],
        ),
        case(
            "an integer, MoE",
            QWEN3_MOE,
            |c| c.set("router_aux_loss_coef", json!(0)),
            &["router_aux_loss_coef 0"],
        ),
        case(
            "a null",
            QWEN3_MOE,
            |c| c.set("use_cache", json!(null)),
            &["use_cache null", "true or false"],
        ),
        case(
            "a float",
            LLAMA,
            |c| c.set("max_position_embeddings", json!(64.0)),
            &["max_position_embeddings 64.0"],
        ),
        case(
            "no place for padding",
            LLAMA,
            |c| c.set("pad_token_id", json!(5000)),
            &["pad_token_id 5000"],
        ),
        case(
            "another name",
            LLAMA,
            |c| c.rename(SHARD, "weights.safetensors"),
            &["weights.safetensors", "rename"],
        ),
        case(
            "a pointer",
            LLAMA,
            |c| c.write("tokenizer.json", POINTER),
            &["tokenizer.json", "Git LFS", "git lfs pull"],
        ),
        case(
            "another pointer",
            LLAMA,
            |c| c.write("tokenizer.model", POINTER),
            &["tokenizer.model", "Git LFS"],
        ),
        case(
            "half a tokenizer",
            LLAMA,
            |c| c.write("tokenizer.json", "{\"model\": "),
            &["tokenizer.json", "JSON"],
        ),
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
        case(
            "DataParallel",
            LLAMA,
            |c| prefixed(c, "module."),
            &["module.model.embed_tokens.weight", "removeprefix"],
        ),
        case(
            "torch.compile",
            LLAMA,
            |c| prefixed(c, "_orig_mod."),
            &["\"_orig_mod.\"", "removeprefix"],
        ),
        case(
            "PEFT",
            LLAMA,
            |c| prefixed(c, "base_model.model."),
            &["\"base_model.model.\"", "merge_and_unload"],
        ),
        // transformers reads these, and this program says that it doesn't.
        case(
            "F64",
            LLAMA,
            widen_norm,
            &["model.norm.weight", "F64", "though transformers loads them", "save_pretrained"],
        ),
        case(
            "another scoring",
            "families/deepseek_v3/base/model",
            |c| c.set("scoring_func", json!("softmax")),
            &["scoring_func \"softmax\"", "transformers ignores this key", "\"sigmoid\""],
        ),
        case(
            "a text for a layer",
            QWEN3_MOE,
            |c| c.set("mlp_only_layers", json!(["0"])),
            &["mlp_only_layers", "[\"0\"]"],
        ),
        case(
            "null for a switch",
            LLAMA,
            |c| c.set("tie_word_embeddings", json!(null)),
            &["tie_word_embeddings null"],
        ),
        case(
            "several",
            LLAMA,
            |c| prefixed(c, "_orig_mod.module."),
            &["\"_orig_mod.module.\"", "removeprefix"],
        ),
    ];
    let mut problems = Vec::new();
    for Case { name, golden, damage, says } in cases {
        let sandbox = Sandbox::new();
        damage(&sandbox.copy(golden, "model"));
        problems.extend(sandbox.refuses("verify model", 1, says).map(|p| format!("{name}: {p}")));
    }
    assert_none(&problems);
}

/// Renames the shard `name` to `new`, also in the index.
fn rename_shard(checkpoint: &Checkpoint, name: &str, new: &str) {
    checkpoint.rename(name, new);
    checkpoint.edit_json(INDEX, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.values_mut().filter(|shard| *shard == name).for_each(|shard| *shard = json!(new));
    });
}

fn prefixed(checkpoint: &Checkpoint, prefix: &str) {
    rename_all(checkpoint, |name| format!("{prefix}{name}"));
}

fn rename_all(checkpoint: &Checkpoint, rename: impl Fn(&str) -> String) {
    checkpoint.edit_header(SHARD, |header| {
        let entries = std::mem::take(header);
        header.extend(entries.into_iter().map(|(name, entry)| match name.as_str() {
            "__metadata__" => (name, entry),
            tensor => (rename(tensor), entry),
        }));
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

fn copy_third_shard(c: &Checkpoint) {
    fs::copy(c.path("model-00003-of-00003.safetensors"), c.path("more.safetensors")).unwrap();
    c.set_index("model.norm.weight", "more.safetensors");
}

fn insert(checkpoint: &Checkpoint, name: &str) {
    checkpoint.edit_header(SHARD, |header| {
        header
            .insert(name.to_owned(), json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}));
    });
}

/// transformers 5.23 was seen to load each of them without a missing weight. Beside each is the
/// warning of `verify` about other loaders.
#[test]
fn what_loaders_take_is_read_and_what_they_trip_over_is_said() {
    const LAYER: &str = "model.layers.0.self_attn";
    let cases = [
        case(
            "cos and sin",
            LLAMA,
            |c| insert(c, &format!("{LAYER}.rotary_emb.cos_cached")),
            &["ignore", "cos_cached"],
        ),
        case(
            "frequencies",
            LLAMA,
            |c| insert(c, &format!("{LAYER}.rotary_emb.inv_freq")),
            &["ignore", "inv_freq"],
        ),
        case(
            "a mask",
            QWEN3_MOE,
            |c| insert(c, &format!("{LAYER}.masked_bias")),
            &["ignore", "masked_bias"],
        ),
        case(
            "a mask, dense",
            LLAMA,
            |c| insert(c, &format!("{LAYER}.masked_bias")),
            &["vLLM refuses", "masked_bias"],
        ),
        case(
            "a value head",
            LLAMA,
            |c| insert(c, "v_head.summary.weight"),
            &["vLLM refuses", "v_head.summary"],
        ),
        case(
            "no model.",
            LLAMA,
            |c| rename_all(c, |n| n.replacen("model.", "", 1)),
            &["model.", "vLLM", "refuse them"],
        ),
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
        case(
            "names of two ages",
            MIXTRAL,
            |c| rename_all(c, |n| n.replace("block_sparse_moe", "mlp")),
            &[],
        ),
        case(
            "half a generation config",
            TRAINED,
            |c| c.write("generation_config.json", "{"),
            &["without it"],
        ),
        case(
            "no rope_scaling",
            LLAMA,
            |c| c.set("rope_scaling", json!(false)),
            &["rope_scaling false", "before 5"],
        ),
        case(
            "Infinity",
            LLAMA,
            |c| {
                c.edit_bytes("config.json", |b| {
                    _ = b.splice(1..1, *b"\"limit\": [-Infinity, NaN],")
                })
            },
            &[],
        ),
        case(
            "null metadata",
            LLAMA,
            |c| c.edit_header(SHARD, |h| h["__metadata__"] = json!(null)),
            &[],
        ),
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
        case(
            "beyond",
            TRAINED,
            |c| c.write("added_tokens.json", "{\"<|im_end|>\": 4096}"),
            // This is the number that transformers gives it.
            &["beyond the vocabulary of 2048", "<|im_end|>", "(2048)"],
        ),
        case(
            "eos beyond",
            LLAMA,
            |c| c.set("eos_token_id", json!([1, 4097])),
            &["eos_token_id 4097", "beyond"],
        ),
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
            "another class",
            LLAMA,
            |c| c.set("architectures", json!(["X"])),
            &["architectures [\"X\"]"],
        ),
        case(
            "a class as a text",
            LLAMA,
            |c| c.set("architectures", json!("X")),
            &["architectures \"X\""],
        ),
        case(
            "no class",
            LLAMA,
            |c| c.set("architectures", json!([])),
            &["architectures []", "LlamaForCausalLM"],
        ),
        case(
            "null",
            LLAMA,
            |c| c.set("quantization_config", json!(null)),
            &["quantization_config null"],
        ),
        case(
            "no type",
            LLAMA,
            |c| c.set("rope_scaling", json!({})),
            &["rope_scaling without rope_type"],
        ),
        case(
            "two types",
            LLAMA,
            |c| {
                c.set(
                    "rope_scaling",
                    json!({ "rope_type": "default", "type": "linear", "factor": 2.0 }),
                )
            },
            &["rope_type \"default\"", "type \"linear\"", "another function"],
        ),
        case(
            "two bases",
            LLAMA,
            |c| {
                c.set("rope_theta", json!(50.0));
                c.set(
                    "rope_scaling",
                    json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 70.0 }),
                );
            },
            &["transformers 5 reads 70.0, versions before it 50.0"],
        ),
        case(
            "two lengths",
            LLAMA,
            |c| {
                let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 });
                c.set("original_max_position_embeddings", json!(8));
                c.set("rope_scaling", yarn);
            },
            &["transformers 5 reads 8, versions before it 16"],
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
        case(
            "kernels",
            LLAMA,
            |c| c.set("_attn_implementation", json!("flash_attention_2")),
            &["_attn_implementation \"flash_attention_2\"", "flash-attn"],
        ),
        case(
            "half a pair",
            LLAMA,
            |c| c.edit_bytes("config.json", |b| _ = b.splice(1..1, *b"\"a\": \"\\ud800\",")),
            &[],
        ),
        case(
            "routers elsewhere",
            MIXTRAL,
            |c| rename_all(c, |n| n.replace("block_sparse_moe.gate", "mlp.gate")),
            &["such routers"],
        ),
        case(
            "two dtypes",
            LLAMA,
            |c| c.set("torch_dtype", json!("float64")),
            &["torch_dtype \"float64\""],
        ),
    ];
    let mut problems = Vec::new();
    for Case { name, golden, damage, says } in cases {
        let sandbox = Sandbox::new();
        damage(&sandbox.copy(golden, "model"));
        let outcome = sandbox.run("verify model");
        let missing: Vec<_> = says.iter().filter(|text| !outcome.stdout.contains(**text)).collect();
        if outcome.code != 0 || !missing.is_empty() {
            problems.push(format!("{name}: lacks {missing:?}\n{}\n{outcome}", outcome.stdout));
        }
    }
    assert_none(&problems);
}

#[test]
fn what_is_read_as_loaders_read_it_is_written_as_they_want_it() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    rename_all(&model, |name| name.replacen("model.", "", 1));
    let types = [
        ("vocab_size", json!(101.0)),
        ("tie_word_embeddings", json!(0)),
        ("num_hidden_layers", json!(2.0)),
        ("rms_norm_eps", json!("1e-6")),
    ];
    types.into_iter().for_each(|(key, value)| model.set(key, value));
    let keys = [
        ("return_dict", json!(false)),
        ("to_dict", json!(1)),
        ("attribute_map", json!({})),
        ("decoder", json!({})),
    ];
    keys.iter().for_each(|(key, value)| model.set(key, value.clone()));
    model.set("initializer_range", json!(1));
    model
        .edit_bytes("config.json", |bytes| _ = bytes.splice(1..1, *b"\"limit\": [0.0, Infinity],"));
    insert(&model, "layers.0.self_attn.rotary_emb.sin_cached");
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    let config = String::from_utf8(sandbox.read("out/config.json")).unwrap();
    assert!(
        config.contains("Infinity\n") && config.contains("\"initializer_range\": 1.0"),
        "{config}"
    );
    let lines = ["\"vocab_size\": 101", "\"tie_word_embeddings\": false", "\"rms_norm_eps\": 1e-6"];
    assert!(lines.iter().all(|line| config.contains(line)), "{config}");
    assert!(!keys.iter().any(|(key, _)| config.contains(&format!("{key:?}"))), "{config}");
    let written = tensors::read(&sandbox.path("out/model.safetensors"));
    assert!(
        written.contains_key("model.embed_tokens.weight")
            && !written.keys().any(|name| name.contains("sin_cached"))
    );
    sandbox.run("verify out").succeeds();
}

/// Passes write the name of each plain module once, and no name of a module that is gone, whatever
/// the source's list holds. The golden's lists are doubled, or removed.
#[test]
fn lists_of_plain_experts_follow_them() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("quantize/checkpoints/qwen3_moe.w4", "model");
    model.remove("reference.safetensors");
    let twice = |config: &mut serde_json::Map<String, serde_json::Value>| {
        let ignore = config["quantization_config"]["ignore"].as_array_mut().unwrap();
        ignore.extend(ignore.clone());
        ignore.push(json!("model.layers.0.mlp.experts.99.up_proj"));
    };
    model.edit_json("config.json", twice);
    sandbox.run("prune model -o out --criterion random --keep 0.5").succeeds();
    let config = sandbox.json("out/config.json");
    let ignore: Vec<_> = config["quantization_config"]["ignore"]
        .as_array()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    let once: std::collections::BTreeSet<_> = ignore.iter().collect();
    assert!(
        once.len() == ignore.len() && !ignore.iter().any(|name| name.contains("experts")),
        "{ignore:?}"
    );
    sandbox.run("verify out").succeeds();
    // Without the list, the source isn't sound; a pass writes it again.
    model.edit_json("config.json", |config| {
        config["quantization_config"].as_object_mut().unwrap().remove("ignore");
    });
    assert_none(&Vec::from_iter(sandbox.refuses(
        "verify model",
        1,
        &["calls for quantized matrices", "layers.0.self_attn.q_proj"],
    )));
    sandbox.run("prune model -o again --criterion random --keep 0.5").succeeds();
    sandbox.run("verify again").succeeds();
}

#[test]
fn code_at_any_depth_of_a_folder_comes_along() {
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "model");
    for name in ["gguf/a/b.py", "original/x/y.py"] {
        sandbox.write(&format!("model/{name}"), "x = 1\n");
    }
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    assert!(
        sandbox.path("out/gguf/a/b.py").is_file() && sandbox.path("out/original/x/y.py").is_file()
    );
}

/// Files that differ from run to run aren't in a manifest; verify names one that was changed.
#[test]
fn an_edited_run_record_is_named() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run("prune m -o out --experts 4 --criterion random -q").succeeds();
    let unlisted = || sandbox.run("verify out --json").succeeds().json()["unlisted"].clone();
    assert_eq!(unlisted(), json!([]));
    sandbox
        .shell("sed -i 's/\"host\": \".*\"/\"host\": \"mine\"/' out/run.json; echo {} >out/training.jsonl")
        .succeeds();
    assert_eq!(unlisted(), json!(["run.json", "training.jsonl"]));
}
