//! Tests that what is read as loaders read it is written as they want it.

use std::collections::BTreeSet;

use serde_json::json;

use super::{LLAMA, rename_all};
use crate::common::checkpoint::Checkpoint;
use crate::common::{Sandbox, tensors};

/// Upcycles a copy of the golden that `change` was made to. The result is sound.
fn upcycled(change: impl FnOnce(&Checkpoint)) -> Sandbox {
    let sandbox = Sandbox::new();
    change(&sandbox.copy(LLAMA, "model"));
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    sandbox.run("verify out").succeeds();
    sandbox
}

#[test]
fn numbers_and_flags_are_written_in_the_type_that_loaders_want() {
    let sandbox = upcycled(|model| {
        model.set("vocab_size", json!(101.0));
        model.set("tie_word_embeddings", json!(0));
        model.set("num_hidden_layers", json!(2.0));
        model.set("rms_norm_eps", json!("1e-6"));
        model.set("initializer_range", json!(1));
        let limit = *b"\"limit\": [0.0, Infinity],";
        model.edit_bytes("config.json", |bytes| _ = bytes.splice(1..1, limit));
    });
    let config = String::from_utf8(sandbox.read("out/config.json")).unwrap();
    for line in [
        "\"vocab_size\": 101",
        "\"tie_word_embeddings\": false",
        "\"rms_norm_eps\": 1e-6",
        "\"initializer_range\": 1.0",
        "Infinity\n",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
}

#[test]
fn keys_that_would_replace_methods_of_loaders_are_left_out() {
    let keys = [
        ("return_dict", json!(false)),
        ("to_dict", json!(1)),
        ("attribute_map", json!({})),
        ("decoder", json!({})),
    ];
    let sandbox =
        upcycled(|model| keys.iter().for_each(|(key, value)| model.set(key, value.clone())));
    let config = String::from_utf8(sandbox.read("out/config.json")).unwrap();
    assert!(!keys.iter().any(|(key, _)| config.contains(&format!("{key:?}"))), "{config}");
}

#[test]
fn names_without_prefixes_are_written_with_them_and_buffers_are_left_out() {
    let sandbox = upcycled(|model| {
        rename_all(model, |name| name.replacen("model.", "", 1));
        model.add_empty_tensor("layers.0.self_attn.rotary_emb.sin_cached");
    });
    let written = tensors::read(&sandbox.path("out/model.safetensors"));
    assert!(
        written.contains_key("model.embed_tokens.weight")
            && !written.keys().any(|name| name.contains("sin_cached"))
    );
}

/// A sandbox with a quantized model, and that model without the references of its golden.
fn quantized() -> (Sandbox, Checkpoint) {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("quantize/checkpoints/qwen3_moe.w4", "model");
    model.remove("reference.safetensors");
    (sandbox, model)
}

/// Passes write the name of each plain module once, and no name of a module that is gone, whatever
/// the source's list holds.
#[test]
fn lists_of_plain_experts_follow_them() {
    let (sandbox, model) = quantized();
    model.edit_json("config.json", |config| {
        let ignore = config["quantization_config"]["ignore"].as_array_mut().unwrap();
        ignore.extend(ignore.clone());
        ignore.push(json!("model.layers.0.mlp.experts.99.up_proj"));
    });
    sandbox.run("prune model -o out --criterion random --keep 0.5").succeeds();
    let config = sandbox.json("out/config.json");
    let ignore = config["quantization_config"]["ignore"].as_array().unwrap();
    let ignore: Vec<_> = ignore.iter().map(ToString::to_string).collect();
    let once: BTreeSet<_> = ignore.iter().collect();
    assert!(
        once.len() == ignore.len() && !ignore.iter().any(|name| name.contains("experts")),
        "{ignore:?}"
    );
    sandbox.run("verify out").succeeds();
}

#[test]
fn a_missing_list_of_plain_modules_is_written_again() {
    let (sandbox, model) = quantized();
    model.edit_json("config.json", |config| {
        config["quantization_config"].as_object_mut().unwrap().remove("ignore");
    });
    let complaints = ["calls for quantized matrices", "layers.0.self_attn.q_proj"];
    sandbox.must_refuse("verify model", 1, &complaints);
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
