//! Tests values that are not finite, trainings that can't change anything, and whether remedies can
//! be followed.

use std::time::Duration;

use serde_json::json;

use crate::common::{Outcome, Sandbox, assert_none, has, step};

const TEXT: &str =
    "--data golden/text/english.calibration.txt --data-tokens 512 --sequence-length 64";

const SHORT: &str = "--data ids.jsonl --sequence-length 8 --batch-tokens 8 --steps 1";

/// A model `damaged` with NaN at `index` of `tensor`, and short text. Weights are bf16 here, so
/// this element is two of them; the second is NaN.
fn with_nan(tensor: &str, index: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("families/qwen3_moe/base/model", "damaged").set_f32(tensor, index, f32::NAN);
    sandbox.write("ids.jsonl", json!({ "input_ids": [1, 2, 3, 4, 5, 6, 7, 8] }).to_string());
    sandbox
}

/// The error names the tensor and its file, whichever pass meets it first; another rate or more
/// text wouldn't help.
#[test]
fn an_embedding_that_is_not_finite_is_named() {
    let sandbox = with_nan("model.embed_tokens.weight", 22);
    let intact = "golden/families/qwen3_moe/base/model";
    for line in [
        format!("heal damaged -o out {SHORT} --overwrite"),
        format!("heal damaged -o out {SHORT} --train all --overwrite"),
        format!("heal {intact} -o out --original damaged {SHORT} --overwrite"),
        "eval damaged --data ids.jsonl".to_owned(),
    ] {
        let outcome = sandbox.run(&line).exits(1).says(&[
            "element 45 is not finite",
            "model.embed_tokens.weight",
            "damaged/model.safetensors",
            "sound checkpoint",
        ]);
        assert!(!outcome.stderr.contains("learning-rate"), "{outcome}");
    }
}

/// No token uses this row, and yet it would be written.
#[test]
fn an_unused_row_that_is_not_finite_is_named() {
    let sandbox = with_nan("model.embed_tokens.weight", 2010);
    let outcome = sandbox.run(&format!("heal damaged -o out {SHORT} --train all")).exits(1);
    outcome.says(&["element 4021 is not finite", "damaged/model.safetensors"]);
}

#[test]
fn an_expert_that_is_not_finite_is_named_before_a_plan_is_written() {
    let sandbox = with_nan("model.layers.0.mlp.experts.1.up_proj.weight", 3);
    let prune = "prune damaged -o out --experts 4 --criterion aimer --dry-run --plan-out plan.json";
    let weight = "experts.1.up_proj.weight";
    let said = ["element 7 is not finite", weight, "damaged/model.safetensors"];
    sandbox.run(prune).exits(1).says(&said);
    assert!(!sandbox.path("plan.json").exists());
}

/// Every pass on text: what follows the name of its model, `MOE` or `DENSE`.
const PASSES: [&str; 8] = [
    "distill MOE --width 128 --down measured --steps 2",
    "distill MOE --width 256 --down measured --init mean --steps 0",
    "quantize MOE --scheme w4a16 --top-up-below 0.1",
    "quantize MOE --scheme w4a16 --include attention --top-up-below 0.1",
    "prune MOE --experts 8 --no-super-expert-guard",
    "merge MOE --experts 8 --algorithm mergemoe --no-super-expert-guard",
    "upcycle DENSE --experts 4 --top-k 2 --router kmeans",
    "upcycle DENSE --experts 4 --top-k 2 --init partition --partition-by activations --router activations",
];

/// Runs each pass of `passes` with a model whose layer 1 has NaN in `weight`. Wherever activations
/// are checked first, the error names that weight, and not a weight that only saw the activations.
#[track_caller]
fn assert_named(weight: &str, models: &[&str], passes: &[&str]) {
    let sandbox = Sandbox::new();
    let name = format!("model.layers.1.{weight}.weight");
    for model in models {
        // Weights are bf16 here, so this element is two of them; the second is NaN.
        sandbox.copy(&format!("models/{model}"), model).set_f32(&name, 2, f32::NAN);
    }
    let complaints = ["element 5 is not finite", &name, "model.safetensors", "sound checkpoint"];
    for pass in passes {
        let pass = pass.replace("MOE", "moe").replace("DENSE", "dense");
        sandbox.must_refuse(&format!("{pass} -o out {TEXT}"), 1, &complaints);
    }
}

#[test]
fn the_weight_of_any_layer_that_makes_activations_not_finite_is_named() {
    for weight in
        ["self_attn.v_proj", "self_attn.q_proj", "input_layernorm", "post_attention_layernorm"]
    {
        assert_named(weight, &["moe", "dense"], &PASSES);
    }
}

#[test]
fn the_weight_of_a_mixture_that_makes_activations_not_finite_is_named() {
    let of_mixtures = PASSES.into_iter().filter(|pass| pass.contains("MOE")).collect::<Vec<_>>();
    for weight in ["mlp.experts.3.down_proj", "mlp.gate"] {
        assert_named(weight, &["moe"], &of_mixtures);
    }
}

/// The built-in models as `moe` and `dense` with a weight in layer 1 that is finite but far too
/// large: in bf16 this element is two weights, the second of which is 1e19.
fn with_large_weight() -> Sandbox {
    let sandbox = Sandbox::new();
    for model in ["moe", "dense"] {
        let name = "model.layers.1.post_attention_layernorm.weight";
        sandbox.copy(&format!("models/{model}"), model).set_f32(name, 2, 1e19);
    }
    sandbox
}

/// More text wouldn't help.
#[test]
fn what_is_too_large_is_not_blamed_on_the_text() {
    let sandbox = with_large_weight();
    let partition = "--init partition --partition-by activations --router activations";
    for (options, remedy) in [
        ("quantize moe --scheme w4a16 --top-up-below 0.1", "--solver rtn"),
        ("upcycle dense --experts 4 --top-k 2 --router kmeans", "--router normal"),
        (&format!("upcycle dense --experts 4 --top-k 2 {partition}"), "--router normal"),
    ] {
        let line = format!("{options} -o out {TEXT}");
        sandbox.must_refuse(&line, 1, &["layer 1", "too large", remedy]);
    }
}

/// The weight's squares overflow f32, and yet all reported errors are numbers.
#[test]
fn errors_of_what_is_too_large_are_numbers() {
    let distill = format!("distill moe -o out --width 128 --down measured --steps 2 {TEXT}");
    let distilled = with_large_weight().run(&distill).succeeds();
    assert!(!distilled.stdout.contains("NaN") && !distilled.stdout.contains("inf"), "{distilled}");
}

/// The words that an error proposes: those in the last brackets of its remedy.
fn proposed(refusal: &Outcome) -> String {
    let remedy = refusal.stderr.split_once("remedy: ").unwrap_or_else(|| panic!("{refusal}")).1;
    let words = remedy.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    words.unwrap_or_else(|| panic!("{refusal}")).0.to_owned()
}

/// Commands whose text needs more memory than the budget beside them.
const TOO_MUCH_TEXT: [(&str, &str); 7] = [
    ("eval golden/models/moe --data long.jsonl", "54MB"),
    ("eval golden/models/moe --data long.jsonl --data-tokens 9000", "54MB"),
    ("eval golden/models/moe --data long.jsonl --data other.jsonl", "54MB"),
    ("eval golden/models/moe --data short.jsonl --sequence-length 64", "44MB"),
    ("eval golden/models/dense --data long.jsonl", "54MB"),
    // The text is larger than the budget while it is read.
    ("eval golden/models/moe --data huge.jsonl", "54MB"),
    (
        "observe golden/models/moe -o s --overwrite --no-left-out --data long.jsonl --data other.jsonl --data-tokens 9000",
        "54MB",
    ),
];

/// A user who asks for as many tokens as the error says gets a run that succeeds within the budget.
/// If the user gave a number, the error says how many fewer are possible.
#[test]
fn a_budget_for_fewer_tokens_names_how_many_it_holds() {
    let sandbox = Sandbox::new();
    for (name, length, lines) in [("long", 512, 20), ("other", 512, 20), ("short", 3, 6000)] {
        sandbox.write(&format!("{name}.jsonl"), sequence(length).repeat(lines));
    }
    sandbox.write("huge.jsonl", sequence(512).repeat(1500));
    let mut problems = Vec::new();
    for (line, budget) in TOO_MUCH_TEXT {
        let refused = sandbox.run(&format!("{line} --memory-budget {budget}")).exits(2);
        let fewer = proposed(&refused);
        let says_instead =
            line.contains("-tokens ") == refused.stderr.contains("or fewer instead of ");
        let option = fewer.split(' ').next().unwrap_or_default();
        let without = line.split(&format!(" {option} ")).next().unwrap_or_default();
        let followed = sandbox.run(&format!("{without} {fewer} --memory-budget {budget}"));
        let is_within = followed.code == 0 && !followed.stderr.contains("warning: this run held");
        if !is_within || !says_instead {
            problems.push(format!("{refused}{followed}"));
        }
    }
    assert_none(&problems);
}

/// A line of text of `length` tokens.
fn sequence(length: usize) -> String {
    format!("{}\n", json!({ "input_ids": (0..length).map(|id| id % 250).collect::<Vec<_>>() }))
}

/// Commands, budgets that are too small for them, what the remedy says beside `--memory-budget`,
/// and what it doesn't say, since it wouldn't help.
const TOO_LITTLE_MEMORY: [(&str, &str, &str, &str); 10] = [
    ("prune golden/models/moe -o o --experts 12 --criterion random", "30MB", "", "lower"),
    ("upcycle golden/models/dense -o o --experts 4 --top-k 2", "30MB", "", "lower"),
    (
        "prune golden/models/moe -o o --experts 12 --data golden/text/code.calibration.txt",
        "100MB",
        "lower --data-tokens",
        "--held-out-tokens",
    ),
    (
        "quantize golden/models/moe -o o --scheme fp8 --held-out golden/text/english.heldout.txt",
        "63MB",
        "lower --held-out-tokens",
        "--data-tokens",
    ),
    (
        "upcycle golden/models/dense -o o --experts 4 --top-k 2 --probe-tokens 4000",
        "100MB",
        "lower --probe-tokens",
        "--held-out-tokens",
    ),
    (
        "upcycle golden/models/dense -o o --experts 4 --top-k 2 --router kmeans --data golden/text/code.calibration.txt",
        "57MB",
        "lower --data-tokens",
        "--held-out-tokens",
    ),
    (
        "heal golden/models/moe -o o --data golden/text/code.calibration.txt",
        "100MB",
        "lower --batch-tokens",
        "--held-out-tokens",
    ),
    ("verify golden/models/moe --threads 2", "20MB", "--memory-budget", "report"),
    ("inspect golden/models/moe", "10MB", "--memory-budget", "report"),
    ("selftest", "30MB", "--memory-budget", "report"),
];

/// Remedies name only options that the command has, and that bring it below the budget.
#[test]
fn a_budget_that_is_too_small_names_what_helps() {
    let sandbox = Sandbox::new();
    let mut problems = Vec::new();
    for (line, budget, helps, does_not) in TOO_LITTLE_MEMORY {
        let line = format!("{line} --memory-budget {budget}");
        problems.extend(sandbox.refuses(&line, 2, &["give --memory-budget ", helps]));
        let refused = sandbox.run(&line);
        let remedy = refused.stderr.split("remedy:").nth(1).unwrap_or_default();
        if remedy.contains(does_not) {
            problems.push(format!("{does_not:?} in {refused}"));
        }
    }
    assert_none(&problems);
}

/// The number of steps limits the text of a training: no more text is read, and the estimate counts
/// what is read.
#[test]
fn a_training_reads_what_its_steps_see() {
    let sandbox = Sandbox::new();
    let text =
        std::fs::read_to_string(crate::common::root().join("golden/text/english.calibration.txt"))
            .unwrap();
    sandbox.write("large.txt", text.repeat(300));
    let heal = "heal golden/models/moe -o healed --steps 1 --batch-tokens 64 --sequence-length 64 --data large.txt";
    let planned = sandbox.run(&format!("{heal} --dry-run")).succeeds();
    assert!(planned.stdout.contains("places, which the seed drew"), "{planned}");
    assert!(planned.took < Duration::from_secs(3), "{planned}");
    sandbox.run(heal).succeeds();
}

/// With held-out text, a plan says that the result will be measured.
#[test]
fn a_dry_run_says_what_will_be_measured() {
    let sandbox = Sandbox::new();
    let held_out = "--held-out golden/text/english.heldout.txt --held-out-tokens 512 --dry-run";
    for line in [
        format!("prune golden/models/moe -o o --experts 12 --criterion random {held_out}"),
        format!("quantize golden/models/moe -o o --scheme fp8 {held_out}"),
        format!("heal golden/models/moe -o o --steps 1 {TEXT} {held_out}"),
    ] {
        let planned = sandbox.run(&line).succeeds();
        assert!(
            planned.stdout.contains("measured when it runs, on 512 held-out tokens"),
            "{planned}"
        );
        assert!(
            !planned.stdout.contains("not measured on text")
                && !planned.stdout.contains("--held-out TEXT"),
            "{planned}"
        );
    }
    let without = sandbox
        .run("prune golden/models/moe -o o --experts 12 --criterion random --dry-run")
        .succeeds();
    assert!(without.stdout.contains("not measured on text"), "{without}");
}

/// Without a tokenizer, the result can't be given text, so the next commands take ids.
#[test]
fn what_is_next_for_a_result_without_a_tokenizer_can_be_typed() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    ["tokenizer.json", "tokenizer_config.json"].iter().for_each(|name| model.remove(name));
    sandbox.write("IDS.jsonl", "{\"input_ids\": [1, 2, 3, 4]}\n");
    let pruned = sandbox.run("prune model -o out --experts 12 --criterion random").succeeds();
    assert!(pruned.stdout.contains("vllm serve out --skip-tokenizer-init"), "{pruned}");
    let next = pruned.stdout.split_once("next").unwrap().1.lines();
    let ours: Vec<&str> =
        next.filter_map(|line| line.trim().strip_prefix("moe-convert ")).collect();
    assert_eq!(ours.len(), 3, "{pruned}");
    for line in ours {
        let steps = if line.starts_with("heal") { " --steps 1 --batch-tokens 4" } else { "" };
        sandbox
            .shell(&format!("moe-convert {}{steps}", line.split("   #").next().unwrap()))
            .succeeds();
    }
}

/// The peak of each step of a recipe is measured separately.
#[test]
fn a_light_step_does_not_have_the_memory_of_a_heavy_one() {
    let sandbox = Sandbox::new();
    let step = |name: &str, options: &str| {
        format!(
            "[[step]]\nrun = {name:?}\nmodel = \"golden/models/moe\"\noutput = \"{name}-out\"\n{options}\n"
        )
    };
    let heal = "steps = 1\ndata = [\"golden/text/english.calibration.txt\"]\n";
    sandbox.write(
        "r.toml",
        step("heal", heal) + &step("prune", "experts = 12\ncriterion = \"random\"\n"),
    );
    sandbox.run("run r.toml").succeeds();
    let peak = |name: &str| {
        sandbox.json(&format!("{name}-out/run.json"))["peak_memory_bytes"].as_f64().unwrap() / 1e6
    };
    assert!(peak("heal") > 120.0 && peak("prune") < 100.0, "{} {}", peak("heal"), peak("prune"));
}

/// Users edit model cards, and the remedy makes such a result sound again.
#[test]
fn an_edited_card_can_be_listed() {
    let sandbox = Sandbox::new();
    sandbox.run("prune golden/models/moe -o out --experts 12 --criterion random").succeeds();
    let card = String::from_utf8(sandbox.read("out/README.md")).unwrap();
    sandbox.write("out/README.md", card + "\nMore words.\n");
    sandbox.run("verify out").exits(1).says(&["README.md", "sha256sum README.md", "SHA256SUMS"]);
    if has(&["sha256sum"], "an edited card was not listed") {
        let listing = "cd out && sed -i \"s/^.*  README.md$/$(sha256sum README.md)/\" SHA256SUMS";
        sandbox.shell(listing).succeeds();
        sandbox.run("verify out").succeeds();
    }
}

const UPCYCLE: &str = "upcycle golden/models/dense --experts 4 --top-k 2";

fn heal(sandbox: &Sandbox, model: &str, train: &str) -> Outcome {
    let how = format!("--train {train} --steps 1 --batch-tokens 64 {TEXT}");
    sandbox.run(&format!("heal {model} -o {model}-{train} {how}")).succeeds()
}

/// Routers over equal experts decide nothing.
#[test]
fn a_training_that_can_change_nothing_is_warned_of() {
    let sandbox = Sandbox::new();
    let copies = sandbox.run(&format!("{UPCYCLE} -o copies")).succeeds();
    let copies = copies.says(&["same network", "--noise-std"]);
    assert!(copies.stdout.contains("--train router,experts --data TEXT"), "{}", copies.stdout);
    let warning = "routers alone can change nothing";
    let idle = heal(&sandbox, "copies", "router").says(&[warning, "--train router,experts"]);
    assert!(!idle.stdout.contains(warning), "once is enough: {}", idle.stdout);
    let outcome = heal(&sandbox, "copies", "router,experts");
    assert!(!outcome.stderr.contains("can change nothing"), "{outcome}");
}

#[test]
fn a_training_of_routers_over_noisy_experts_is_not_warned_of() {
    let sandbox = Sandbox::new();
    let noisy = sandbox.run(&format!("{UPCYCLE} -o noisy --noise-std 0.01")).succeeds();
    let warned = [&noisy.stderr, &noisy.stdout].iter().any(|said| said.contains("same network"));
    assert!(!warned, "{noisy}");
    let outcome = heal(&sandbox, "noisy", "router");
    assert!(!outcome.stderr.contains("can change nothing"), "{outcome}");
}

#[test]
fn options_that_make_no_sense_get_ones_that_do() {
    let sandbox = Sandbox::new();
    let heal = format!("heal golden/models/moe --memory-budget 150MB {TEXT}");
    let prune = format!("prune golden/models/moe --keep 75 {TEXT}");
    let quantize = "quantize golden/models/moe --scheme";
    for (line, complaints) in [
        (format!("{heal} --train all"), ["lower --batch-tokens", "--memory-budget"]),
        (format!("{quantize} w8a8"), ["no scheme \"w8a8\"", "fp8 is what engines run"]),
        (format!("{quantize} w4a8"), ["no scheme", "give w4a16"]),
        (prune, ["--keep 75 is not a share", "0.75 for 75 %"]),
    ] {
        sandbox.must_refuse(&format!("{line} -o out"), 2, &complaints);
    }
    let quantize = step("quantize", "golden/models/moe", "output = \"out\"\nscheme = \"w8a8\"");
    sandbox.write("r.toml", quantize);
    let complaints = ["line 5, step 1 (quantize)", "fp8 is what engines run"];
    sandbox.must_refuse("run r.toml", 2, &complaints);
}

/// At 2 bits, --clip-search costs quality.
#[test]
fn a_search_for_ranges_at_two_bits_is_warned_of() {
    let sandbox = Sandbox::new();
    let quantize = |options: &str| {
        let line =
            format!("quantize golden/models/moe -o out --group-size 32 --dry-run {TEXT} {options}");
        sandbox.run(&line).succeeds().stdout
    };
    let warning = "--clip-search costs at 2 bits";
    assert!(quantize("--scheme w2a16 --clip-search --calibrate-on routed").contains(warning));
    assert!(
        quantize("--target-bits 4.5 --profile free --clip-search --calibrate-on routed")
            .contains(warning)
    );
    for options in
        ["--scheme w2a16", "--scheme w3a16 --clip-search", "--target-bits 5.5 --clip-search"]
    {
        assert!(
            !quantize(&format!("{options} --calibrate-on routed")).contains(warning),
            "{options}"
        );
    }
}
