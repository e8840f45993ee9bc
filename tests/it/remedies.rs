//! Values that are not finite, trainings that can change nothing, and remedies that can be followed.

use serde_json::json;

use crate::common::{Sandbox, assert_none};

const TEXT: &str = "--data golden/text/english.calibration.txt --data-tokens 512 --sequence-length 64";

/// The tensor is named, and its file, whichever pass meets it first; a rate or more text would not mend it.
#[test]
fn what_is_not_finite_is_named() {
    let sandbox = Sandbox::new();
    let family = "families/qwen3_moe/base/model";
    let embedding = sandbox.copy(family, "embedding");
    // Weights are bf16 here: this is two of them, and the second is no number.
    embedding.set_f32("model.embed_tokens.weight", 22, f32::NAN);
    let unused = sandbox.copy(family, "unused");
    unused.set_f32("model.embed_tokens.weight", 2010, f32::NAN);
    let expert = sandbox.copy(family, "expert");
    expert.set_f32("model.layers.0.mlp.experts.1.up_proj.weight", 3, f32::NAN);
    sandbox.write("ids.jsonl", json!({ "input_ids": [1, 2, 3, 4, 5, 6, 7, 8] }).to_string());
    let data = "--data ids.jsonl --sequence-length 8 --batch-tokens 8 --steps 1";
    let embed =
        ["element 45 is not finite", "model.embed_tokens.weight", "embedding/model.safetensors", "sound checkpoint"];
    for line in [
        format!("heal embedding -o out {data} --overwrite"),
        format!("heal embedding -o out {data} --train all --overwrite"),
        format!("heal golden/{family} -o out --from embedding {data} --overwrite"),
        "eval embedding --data ids.jsonl".to_owned(),
    ] {
        let outcome = sandbox.run(&line).exits(1).says(&embed);
        assert!(!outcome.stderr.contains("learning-rate"), "{outcome}");
    }
    // No token has this row, and yet it would be written.
    let line = format!("heal unused -o out {data} --train all --overwrite");
    sandbox.run(&line).exits(1).says(&["element 4021 is not finite", "unused/model.safetensors"]);
    sandbox.run("prune expert -o reduced --experts 4 --method aimer --dry-run --plan-out plan.json").exits(1).says(&[
        "element 7 is not finite",
        "experts.1.up_proj.weight",
        "expert/model.safetensors",
    ]);
    assert!(!sandbox.path("plan.json").exists());
}

/// Routers over experts that are alike decide nothing.
#[test]
fn a_training_that_can_change_nothing_is_warned_of() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense --experts 4 --top-k 2";
    let copies = sandbox.run(&format!("{upcycle} -o copies")).succeeds();
    for part in ["same network", "--noise-std", "--train router,experts --data TEXT"] {
        assert!(copies.stdout.contains(part), "{part}: {}", copies.stdout);
    }
    let noisy = sandbox.run(&format!("{upcycle} -o noisy --noise-std 0.01")).succeeds();
    assert!(!noisy.stdout.contains("same network"), "{}", noisy.stdout);
    let heal = |model: &str, train: &str| {
        let line = format!("heal {model} -o {model}-{train} --train {train} --steps 1 --batch-tokens 64 {TEXT}");
        sandbox.run(&line).succeeds()
    };
    let idle = heal("copies", "router").says(&["routers alone can change nothing", "--train router,experts"]);
    assert!(idle.stdout.contains("routers alone can change nothing"), "{}", idle.stdout);
    for (model, train) in [("copies", "router,experts"), ("noisy", "router")] {
        let outcome = heal(model, train);
        assert!(!outcome.stderr.contains("can change nothing"), "{outcome}");
    }
}

#[test]
fn remedies_can_be_followed() {
    let sandbox = Sandbox::new();
    let heal = format!("heal golden/models/moe -o out --memory-budget 150MB {TEXT}");
    let quantize = "quantize golden/models/moe -o out";
    let mut problems = Vec::new();
    for (line, complaints) in [
        (
            format!("{heal} --train all"),
            ["train fewer parts of the model (--train router takes least)", "--memory-budget"],
        ),
        (format!("{quantize} --scheme w8a8"), ["no scheme \"w8a8\"", "fp8 is what engines run"]),
        (format!("{quantize} --scheme w4a8"), ["no scheme", "give w4a16"]),
        (format!("prune golden/models/moe -o out --keep 75% {TEXT}"), ["'75%'", "write 75 % as 0.75"]),
        (format!("prune golden/models/moe -o out --keep 75 {TEXT}"), ["--keep 75 is not a share", "0.75 for 75 %"]),
    ] {
        problems.extend(sandbox.refuses(&line, 2, &complaints));
    }
    let recipe = "[[step]]\nrun = \"quantize\"\nmodel = \"golden/models/moe\"\noutput = \"out\"\nscheme = \"w8a8\"\n";
    sandbox.write("r.toml", recipe);
    problems.extend(sandbox.refuses("run r.toml", 2, &["line 5, step 1 (quantize)", "fp8 is what engines run"]));
    assert_none(&problems);
}

/// At 2 bits a search for ranges costs.
#[test]
fn a_search_for_ranges_at_two_bits_is_warned_of() {
    let sandbox = Sandbox::new();
    let quantize = |options: &str| {
        let line = format!("quantize golden/models/moe -o out --group-size 32 --dry-run {TEXT} {options}");
        sandbox.run(&line).succeeds().stdout
    };
    let warning = "--clip-search costs at 2 bits";
    assert!(quantize("--scheme w2a16 --clip-search --samples routed").contains(warning));
    assert!(quantize("--target-bits 4.5 --profile free --clip-search --samples routed").contains(warning));
    for options in ["--scheme w2a16", "--scheme w3a16 --clip-search", "--target-bits 5.5 --clip-search"] {
        assert!(!quantize(&format!("{options} --samples routed")).contains(warning), "{options}");
    }
}
