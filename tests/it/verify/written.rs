//! Tests that what is read as loaders read it is written as they want it.

use serde_json::json;

use super::{LLAMA, rename_all};
use crate::common::{Sandbox, tensors};

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
    model.add_empty_tensor("layers.0.self_attn.rotary_emb.sin_cached");
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
    sandbox.must_refuse(
        "verify model",
        1,
        &["calls for quantized matrices", "layers.0.self_attn.q_proj"],
    );
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
