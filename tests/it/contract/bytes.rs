//! Tests that inputs, options and the seed decide the bytes of an output, and that its index and
//! manifest describe them.

use serde_json::json;

use super::{LOGITS, UPCYCLE};
use crate::common::{Sandbox, has, tensors};

/// Asserts that every file of two outputs is the same, byte for byte, except run.json.
#[track_caller]
fn assert_same_output(sandbox: &Sandbox, a: &str, b: &str) {
    let names = sandbox.names(a);
    assert_eq!(names, sandbox.names(b));
    for name in names.iter().filter(|n| *n != "run.json") {
        assert!(
            sandbox.read(&format!("{a}/{name}")) == sandbox.read(&format!("{b}/{name}")),
            "{name} differs"
        );
    }
}

#[test]
fn threads_change_nothing() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense --experts 4 --top-k 2 --noise-std 0.02 --noise-fraction 0.5 --seed 3";
    for threads in [1, 2, 5] {
        // The name of the output is part of the model card.
        sandbox.run(&format!("{upcycle} -o {threads}/out --threads {threads}")).succeeds();
        let logits = LOGITS.replace("logits.safetensors", &format!("{threads}.safetensors"));
        sandbox.run(&format!("{logits} --threads {threads}")).succeeds();
    }
    for threads in ["2", "5"] {
        assert_same_output(&sandbox, "1/out", &format!("{threads}/out"));
        assert!(sandbox.read("1.safetensors") == sandbox.read(&format!("{threads}.safetensors")));
    }
}

#[test]
fn the_seed_decides() {
    let sandbox = Sandbox::new();
    for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        let upcycle = UPCYCLE.replace("-o out", &format!("-o {name}/out"));
        sandbox.run(&format!("{upcycle} --seed {seed}")).succeeds();
    }
    assert_same_output(&sandbox, "a/out", "b/out");
    let (a, c) = (tensors::read(&sandbox.path("a/out")), tensors::read(&sandbox.path("c/out")));
    let changed: Vec<_> = a.keys().filter(|name| a[*name] != c[*name]).collect();
    let routers: Vec<_> =
        (0..4).map(|l| format!("model.layers.{l}.block_sparse_moe.gate.weight")).collect();
    assert_eq!(changed, routers.iter().collect::<Vec<_>>());
}

#[test]
fn upcycling_copies_weights_byte_for_byte() {
    let sandbox = Sandbox::new();
    sandbox.run("upcycle golden/models/dense -o out --experts 3 --top-k 2").succeeds();
    let dense = tensors::read(&sandbox.path("golden/models/dense"));
    let moe = tensors::read(&sandbox.path("out"));
    let mut expected = 0;
    for (name, tensor) in &dense {
        let copies = names_in_mixtral(name);
        expected += copies.len();
        for copy in copies {
            assert!(moe[&copy] == *tensor, "{copy} is not {name}");
        }
    }
    assert_eq!(moe.len(), expected + 4, "a router for each layer, and nothing else");
}

/// The names under which three experts hold the tensor `name` of a dense model.
fn names_in_mixtral(name: &str) -> Vec<String> {
    let Some((layer, projection)) = name.split_once(".mlp.") else {
        return vec![name.to_owned()];
    };
    let renamed =
        projection.replace("gate_proj", "w1").replace("up_proj", "w3").replace("down_proj", "w2");
    (0..3).map(|e| format!("{layer}.block_sparse_moe.experts.{e}.{renamed}")).collect()
}

#[test]
fn upcycling_copies_side_files_and_keys_of_the_config() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    model.set("my_training_run", json!({"nested": [1, 2.5, null]}));
    model.write("chat_template.jinja", "{{ messages }}");
    sandbox.run("upcycle model -o out --experts 3 --top-k 2").succeeds();
    let config = sandbox.json("out/config.json");
    assert_eq!(config["my_training_run"], json!({"nested": [1, 2.5, null]}));
    assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
    for file in
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        let [written, source] = ["out", "model"].map(|dir| sandbox.read(&format!("{dir}/{file}")));
        assert!(written == source, "{file}");
    }
}

#[test]
fn sharded_outputs_have_an_index_that_the_weights_obey() {
    let sandbox = Sandbox::new();
    sandbox.run(&format!("{UPCYCLE} --max-shard-size 1MB")).succeeds();
    let index = sandbox.json("out/model.safetensors.index.json");
    let weight_map = index["weight_map"].as_object().unwrap();
    let mut bytes = 0;
    for (name, tensor) in tensors::read(&sandbox.path("out")) {
        let shard = weight_map[&name].as_str().unwrap();
        assert!(tensors::read(&sandbox.path("out").join(shard)).contains_key(&name), "{name}");
        bytes += tensor.bytes.len();
    }
    assert_eq!(index["metadata"]["total_size"], bytes);
    sandbox.run("verify out").succeeds();
}

#[test]
fn manifests_are_those_of_sha256sum() {
    let sandbox = Sandbox::new();
    sandbox.run(UPCYCLE).succeeds();
    let listed = String::from_utf8(sandbox.read("out/SHA256SUMS")).unwrap();
    let mut names: Vec<_> = listed.lines().map(|l| l[66..].to_owned()).collect();
    names.extend(["SHA256SUMS".to_owned(), "run.json".to_owned()]);
    names.sort();
    assert_eq!(names, sandbox.names("out"));
    if has(&["sha256sum"], "the manifest was not given to sha256sum") {
        let checked = sandbox.shell("cd out && sha256sum --strict -c SHA256SUMS");
        assert_eq!(checked.code, 0, "{}\n{checked}", checked.stdout);
    }
}

#[test]
fn damage_to_any_file_of_a_result_is_found() {
    let sandbox = Sandbox::new();
    sandbox.run(UPCYCLE).succeeds();
    for (file, damage) in [
        ("config.json", " "),
        ("tokenizer.json", "x"),
        ("README.md", "x"),
        ("moe-convert.json", " "),
    ] {
        let whole = sandbox.read(&format!("out/{file}"));
        sandbox.write(&format!("out/{file}"), [&whole[..], damage.as_bytes()].concat());
        sandbox.run("verify out").exits(1).says(&[file, "SHA-256", "remedy"]);
        sandbox.write(&format!("out/{file}"), whole);
    }
    std::fs::remove_file(sandbox.path("out/tokenizer_config.json")).unwrap();
    sandbox.run("verify out").exits(1).says(&["tokenizer_config.json", "remedy"]);
}
