//! Tests checkpoints with unusual layouts that transformers 5.23 loads: they are read as
//! transformers reads them.

use serde_json::{Value, json};

use crate::common::{Sandbox, assert_none};

const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const SHARDED: &str = "families/mixtral/sharded/model";

/// The logits of the model `name` on a few tokens.
fn logits(sandbox: &Sandbox, name: &str) -> Result<Vec<u8>, String> {
    let outcome =
        sandbox.run(&format!("logits {name} --tokens tokens.json -o {name}.logits --overwrite"));
    if outcome.code == 0 {
        Ok(sandbox.read(&format!("{name}.logits")))
    } else {
        Err(outcome.to_string())
    }
}

/// `weights` with `name` in the header in place of `whole`, which is at least as long.
fn renamed(weights: &[u8], whole: &str, name: &str) -> Vec<u8> {
    let (whole, name) = (format!("\"{whole}\""), format!("\"{name}\""));
    let place = weights.windows(whole.len()).position(|part| part == whole.as_bytes()).unwrap();
    let mut weights = weights.to_vec();
    // JSON ignores space after a key.
    weights[place..place + whole.len()]
        .copy_from_slice(format!("{name:<0$}", whole.len()).as_bytes());
    weights
}

/// The file that each tensor of a golden is in, after `lead`.
fn moved(index: &Value, lead: &str) -> Value {
    let files = index["weight_map"].as_object().unwrap().iter();
    files.map(|(name, file)| (name, format!("{lead}{}", file.as_str().unwrap()))).collect()
}

#[test]
fn indexes_are_read_as_python_reads_them() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    sandbox.copy(SHARDED, "whole");
    let expected = logits(&sandbox, "whole").unwrap();
    let index: Value = sandbox.json(&format!("whole/{INDEX}"));
    let map = &index["weight_map"];
    let mut problems = Vec::new();
    let twice =
        format!(r#""metadata": 1, "weight_map": {{}}, "metadata": {{}}, "weight_map": {map}"#);
    for (case, text) in [
        ("NaN", format!(r#"{{"metadata": {{"total_size": NaN}}, "weight_map": {map}}}"#)),
        ("twice", format!("{{{twice}}}")),
        ("dot", json!({"metadata": {}, "weight_map": moved(&index, "./")}).to_string()),
        ("detour", json!({"metadata": {}, "weight_map": moved(&index, "sub/.././")}).to_string()),
    ] {
        sandbox.copy(SHARDED, case).write(INDEX, text);
        match logits(&sandbox, case) {
            Ok(found) if found == expected => {}
            Ok(_) => problems.push(format!("{case}: other logits")),
            Err(outcome) => problems.push(format!("{case}: {outcome}")),
        }
    }
    assert_none(&problems);
}

#[test]
fn indexes_that_lead_out_of_the_folder_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    sandbox.copy(SHARDED, "whole");
    let index: Value = sandbox.json(&format!("whole/{INDEX}"));
    let map = moved(&index, "sub/../../whole/");
    let out = sandbox.copy(SHARDED, "out");
    out.write(INDEX, json!({"metadata": {}, "weight_map": map}).to_string());
    let complaints = ["outside the checkpoint", INDEX];
    sandbox.must_refuse("logits out --tokens tokens.json -o l", 1, &complaints);
}

#[test]
fn one_file_that_holds_everything_is_read_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    let model = sandbox.copy("families/llama/base/model", "model");
    let expected = logits(&sandbox, "model").unwrap();
    let weights = sandbox.read("model/model.safetensors");
    model.write("stale.safetensors", &weights);
    let map = json!({"lm_head.weight": WEIGHTS, "model.norm.weight": "stale.safetensors"});
    model.write(INDEX, json!({"metadata": {}, "weight_map": map}).to_string());
    let outcome = sandbox.run("logits model --tokens tokens.json -o again").succeeds();
    outcome.says(&["which holds all tensors", "vLLM and SGLang read all"]);
    assert!(sandbox.read("again") == expected);
    // The config may spell the name in another way.
    model.remove(INDEX);
    model.set("transformers_weights", json!("./model.safetensors"));
    assert!(logits(&sandbox, "model").unwrap() == expected);
}

/// If some names lack `model.`, transformers 5 adds it to each of them.
#[test]
fn names_get_the_prefix_that_they_lack_one_by_one() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    let model = sandbox.copy("families/llama/base/model", "model");
    let expected = logits(&sandbox, "model").unwrap();
    let weights = sandbox.read("model/model.safetensors");
    for name in ["embed_tokens.weight", "norm.weight", "layers.0.mlp.up_proj.weight"] {
        model.write(WEIGHTS, renamed(&weights, &format!("model.{name}"), name));
        assert!(logits(&sandbox, "model").unwrap() == expected, "{name}");
        let verified = sandbox.run("verify model").succeeds();
        assert!(
            verified.stdout.contains("names of tensors lack \"model.\""),
            "{}",
            verified.stdout
        );
    }
}

/// Where both names exist, transformers 5 takes another one than older versions.
#[test]
fn names_with_and_without_the_prefix_are_refused() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("families/llama/base/model", "model");
    let weights = sandbox.read("model/model.safetensors");
    model.write(WEIGHTS, renamed(&weights, "lm_head.weight", "norm.weight"));
    let problem =
        sandbox.refuses("inspect model", 1, &["norm.weight", "model.norm.weight, too", WEIGHTS]);
    assert_none(&problem.into_iter().collect::<Vec<_>>());
    // Neither tensor has the usual name, and both would be loaded under it.
    let weights = renamed(&weights, "lm_head.weight", "norm.weight");
    let rows =
        renamed(&weights, "model.layers.0.input_layernorm.weight", "model.model.norm.weight");
    model.write(WEIGHTS, renamed(&rows, "model.norm.weight", "other.weight"));
    let problem =
        sandbox.refuses("inspect model", 1, &["loaded as model.norm.weight, too", WEIGHTS]);
    assert_none(&problem.into_iter().collect::<Vec<_>>());
}

/// `weights` with `mlp` for the mixtures of mixtral, and `matrices` for w1, w2 and w3.
fn with_experts(weights: &[u8], [gate, down, up]: [&str; 3]) -> Vec<u8> {
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    let names = header.as_object().unwrap().keys();
    names.filter(|name| name.contains("block_sparse_moe")).fold(
        weights.to_vec(),
        |weights, name| {
            let other = name.replace("block_sparse_moe", "mlp");
            let other = other.replace("w1", gate).replace("w2", down).replace("w3", up);
            renamed(&weights, name, &other)
        },
    )
}

/// transformers 5 knows some names of experts that no mixtral on the hub has
/// (`golden/loaders/README.md`).
#[test]
fn experts_of_other_names_are_read_and_judged() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    let model = sandbox.copy("families/mixtral/base/model", "model");
    let expected = logits(&sandbox, "model").unwrap();
    let weights = sandbox.read("model/model.safetensors");
    model.write(WEIGHTS, with_experts(&weights, ["w1", "w2", "w3"]));
    assert!(logits(&sandbox, "model").unwrap() == expected);
    let noted = sandbox.run("verify model").succeeds().stdout;
    let note = "before 5 doesn't know model.layers.0.mlp.experts.0.w1.weight";
    assert!(noted.contains(note), "{noted}");
    model.write(WEIGHTS, with_experts(&weights, ["gate_proj", "down_proj", "up_proj"]));
    assert!(logits(&sandbox, "model").unwrap() == expected);
    let refused = sandbox.run("verify model").exits(1);
    refused.says(&["mlp.experts.0.gate_proj.weight", "at random", "any pass"]);
    sandbox.run("prune model -o pruned --keep 0.5 --criterion random").succeeds();
    sandbox.run("verify pruned").succeeds();
}
