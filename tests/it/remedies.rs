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

/// What every pass on text does with a model whose layer 1 has NaN in a weight: whatever looks at activations first, that weight is named,
/// not one that only saw them.
#[test]
fn the_weight_that_makes_activations_not_finite_is_named() {
    let sandbox = Sandbox::new();
    let passes = [
        "distill MOE --width 128 --down measured --steps 2",
        "distill MOE --width 256 --down measured --init mean --steps 0",
        "quantize MOE --scheme w4a16 --min-samples 0.1",
        "quantize MOE --scheme w4a16 --include attention --min-samples 0.1",
        "prune MOE --experts 8 --no-super-expert-guard",
        "merge MOE --experts 8 --method mergemoe --no-super-expert-guard",
        "upcycle DENSE --experts 4 --top-k 2 --router kmeans",
        "upcycle DENSE --experts 4 --top-k 2 --init partition --partition-by activations --router activations",
    ];
    let shared = ["self_attn.v_proj", "self_attn.q_proj", "input_layernorm", "post_attention_layernorm"];
    let mut problems = Vec::new();
    for (index, weight) in shared.into_iter().chain(["mlp.experts.3.down_proj", "mlp.gate"]).enumerate() {
        let name = format!("model.layers.1.{weight}.weight");
        // Weights are bf16 here: this is two of them, and the second is no number.
        let [moe, dense] = ["moe", "dense"].map(|model| format!("{model}-{index}"));
        sandbox.copy("models/moe", &moe).set_f32(&name, 2, f32::NAN);
        if shared.contains(&weight) {
            sandbox.copy("models/dense", &dense).set_f32(&name, 2, f32::NAN);
        }
        for pass in passes.iter().filter(|pass| shared.contains(&weight) || pass.contains("MOE")) {
            let line = format!("{} -o out {TEXT}", pass.replace("MOE", &moe).replace("DENSE", &dense));
            let complaints = ["element 5 is not finite", name.as_str(), "model.safetensors", "sound checkpoint"];
            problems.extend(sandbox.refuses(&line, 1, &complaints));
        }
    }
    assert_none(&problems);
}

/// Weights that are finite but far too large are not blamed on the text, where more of it would not help.
#[test]
fn what_is_too_large_is_not_blamed_on_the_text() {
    let sandbox = Sandbox::new();
    let name = "model.layers.1.post_attention_layernorm.weight";
    // In bf16: two of them, the second 1e19.
    sandbox.copy("models/moe", "moe").set_f32(name, 2, 1e19);
    sandbox.copy("models/dense", "dense").set_f32(name, 2, 1e19);
    let upcycle = "upcycle dense -o out --experts 4 --top-k 2";
    let problems = [
        (format!("quantize moe -o out --scheme w4a16 --min-samples 0.1 {TEXT}"), "--method rtn"),
        (format!("{upcycle} --router kmeans {TEXT}"), "--router normal"),
        (
            format!("{upcycle} --init partition --partition-by activations --router activations {TEXT}"),
            "--router normal",
        ),
    ]
    .map(|(line, remedy)| sandbox.refuses(&line, 1, &["layer 1", "too large", remedy]));
    assert_none(&problems.into_iter().flatten().collect::<Vec<_>>());
    // Its squares overflow f32, and yet all errors that are reported are numbers.
    let distilled =
        sandbox.run(&format!("distill moe -o distilled --width 128 --down measured --steps 2 {TEXT}")).succeeds();
    assert!(!distilled.stdout.contains("NaN") && !distilled.stdout.contains("inf"), "{distilled}");
}

/// Who has said how many tokens are wanted is not told to say so.
#[test]
fn a_budget_for_fewer_tokens_names_how_many_it_holds() {
    let sandbox = Sandbox::new();
    let ids: Vec<usize> = (0..512).map(|id| id % 250).collect();
    sandbox.write("ids.jsonl", format!("{}\n", json!({ "input_ids": ids })).repeat(1500));
    let eval = "eval golden/models/moe --data ids.jsonl --memory-budget 1MB";
    sandbox.run(eval).exits(2).says(&["tokens or fewer (", "--max-tokens"]);
    let asked = sandbox.run(&format!("{eval} --max-tokens 700000")).exits(2);
    let most =
        asked.stderr.split_once("ask for ").and_then(|(_, rest)| rest.split_once(" tokens or fewer instead of 700000"));
    let most = most.unwrap_or_else(|| panic!("{asked}")).0.to_owned();
    // With as many, that error is gone.
    let fewer = sandbox.run(&format!("{eval} --max-tokens {most}"));
    assert!(!fewer.stderr.contains("tokens or fewer"), "{fewer}");
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
