//! Tests that logits and losses are those of transformers.

use serde_json::Value;

use crate::common::{Sandbox, root, tensors};

/// Compares the logits of a golden model with those in the file `reference`.
fn assert_logits(model: &str, tokens: &str, reference: &str) {
    let sandbox = Sandbox::new();
    let line = format!("logits golden/{model} --tokens golden/{tokens} -o l.safetensors");
    sandbox.run(&line).succeeds();
    let written = tensors::read(&sandbox.path("l.safetensors"));
    assert_eq!(written.keys().collect::<Vec<_>>(), ["logits"]);
    let expected = &tensors::read(&root().join("golden").join(reference))["logits"];
    let difference = tensors::max_difference(&written["logits"], expected);
    assert!(difference < 1e-4, "{model}: {difference}");
}

#[test]
fn logits_are_those_of_transformers() {
    for family in ["llama/base", "qwen2_moe/base", "mixtral/sharded", "olmoe/base"] {
        let of = |file: &str| format!("families/{family}/{file}");
        assert_logits(&of("model"), &of("tokens.json"), &of("reference.safetensors"));
    }
    for model in ["models/dense", "models/moe"] {
        let of = |suffix: &str| format!("{model}.{suffix}");
        assert_logits(model, &of("tokens.json"), &of("logits.safetensors"));
    }
}

/// golden/routing tests what the routers of each family do in bf16. This test is about the option
/// that asks for it.
#[test]
fn routers_compute_in_the_models_dtype_on_request() {
    let sandbox = Sandbox::new();
    for (family, rounds) in
        [("mixtral", true), ("qwen3_moe", true), ("deepseek_v3", false), ("glm4_moe", false)]
    {
        let golden = format!("golden/families/{family}/base");
        let [wide, rounded] = ["f32", "model"].map(|dtype| {
            let output = format!("{family}.{dtype}");
            let line = format!("logits {golden}/model --tokens {golden}/tokens.json -o {output}");
            sandbox.run(&format!("{line} --router-dtype {dtype}")).succeeds();
            tensors::read(&sandbox.path(&output))
        });
        let apart = tensors::max_difference(&wide["logits"], &rounded["logits"]);
        assert!(
            if rounds { apart > 1e-4 && apart < 0.5 } else { apart == 0.0 },
            "{family}: {apart}"
        );
    }
}

#[test]
fn receipts_record_the_dtype_of_routers() {
    let sandbox = Sandbox::new();
    let prune = "prune golden/models/moe -o out --experts 12 --criterion reap --data-tokens 512 \
                 --data golden/text/code.calibration.txt";
    sandbox.run(&format!("{prune} --router-dtype model")).succeeds();
    assert_eq!(sandbox.json("out/moe-convert.json")["router_dtype"], "model");
    sandbox.run(prune).exits(2).says(&["out"]);
    let again = sandbox.run(&format!("{prune} --resume --router-dtype model")).succeeds();
    assert!(again.stdout.contains("is finished already"), "{again}");
    sandbox.run(&format!("{prune} --resume")).exits(2).says(&["other options"]);
    let unknown = sandbox.run(&format!("{prune} --router-dtype bf16"));
    unknown.exits(2).says(&["possible values", "model"]);
}

#[test]
fn evaluation_agrees_with_transformers() {
    let sandbox = Sandbox::new();
    let reference = sandbox.json("golden/models/reference.json");
    for model in ["dense", "moe"] {
        let data = ["english", "code", "spanish", "arithmetic"]
            .map(|d| format!("--data {d}=golden/text/{d}.heldout.txt"));
        let line =
            format!("eval golden/models/{model} --sequence-length 256 --json {}", data.join(" "));
        let report = sandbox.run(&line).succeeds().json()["report"].clone();
        let expected = &reference["models"][model];
        assert_eq!(report["domains"].as_array().unwrap().len(), data.len());
        for domain in report["domains"].as_array().unwrap() {
            assert_same_domain(domain, &expected["domains"][domain["label"].as_str().unwrap()]);
        }
        assert_same_domain(&report["all"], &expected["total"]);
        if model == "moe" {
            assert_same_load(&report, &expected["expert_counts"]);
        }
    }
}

fn assert_same_domain(found: &Value, expected: &Value) {
    let loss = |v: &Value| v["loss"].as_f64().unwrap();
    assert!((loss(found) - loss(expected)).abs() < 1e-4, "{found} {expected}");
    assert!((found["perplexity"].as_f64().unwrap() - loss(expected).exp()).abs() < 0.01, "{found}");
    assert_eq!(found["tokens"], expected["tokens"]);
    assert_eq!(found["predicted_tokens"], expected["predicted_tokens"]);
}

/// Counts may differ where two experts are tied up to rounding: for at most one token in a
/// thousand.
fn assert_same_load(report: &Value, expected: &Value) {
    for (index, domain) in report["domains"].as_array().unwrap().iter().enumerate() {
        let layers = expected[domain["label"].as_str().unwrap()].as_array().unwrap();
        assert_eq!(report["load"].as_array().unwrap().len(), layers.len());
        for (load, expected) in report["load"].as_array().unwrap().iter().zip(layers) {
            let counts = |v: &Value| serde_json::from_value::<Vec<i64>>(v.clone()).unwrap();
            let (found, expected) = (counts(&load["counts_by_domain"][index]), counts(expected));
            assert_eq!(found.iter().sum::<i64>(), expected.iter().sum::<i64>());
            let moved: i64 = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
            assert!(
                moved * 1000 <= 2 * domain["tokens"].as_i64().unwrap(),
                "{found:?}\n{expected:?}"
            );
        }
    }
}
