//! Tests `heal`: what it trains, what it leaves unchanged, and that a killed run leads to the same
//! bytes.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::{Outcome, Sandbox, assert_none};

/// Options for a short training on text of two labels.
const LITTLE: &str = "--batch-tokens 512 --sequence-length 128 --data-tokens 2048 \
                      --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt";
const MEASURED: &str = "--held-out golden/text/english.heldout.txt --held-out-tokens 512";

fn bytes_by_name(file: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
}

fn weights(sandbox: &Sandbox, dir: &str) -> BTreeMap<String, Vec<u8>> {
    bytes_by_name(&sandbox.read(&format!("{dir}/model.safetensors")))
}

/// The built-in MoE, healed for six steps without text held out.
fn healed() -> (Sandbox, Outcome) {
    let sandbox = Sandbox::new();
    let how = format!("--steps 6 --eval-every 3 --learning-rate 1e-3 {LITTLE}");
    let outcome = sandbox.run(&format!("heal golden/models/moe -o healed {how}")).succeeds();
    (sandbox, outcome)
}

#[test]
fn routers_alone_are_trained_unless_told_otherwise() {
    let (sandbox, _) = healed();
    sandbox.run("verify healed").succeeds();
    let (before, after) = (weights(&sandbox, "golden/models/moe"), weights(&sandbox, "healed"));
    assert!(before.keys().eq(after.keys()));
    let changed: Vec<_> = after.keys().filter(|name| before[*name] != after[*name]).collect();
    assert!(
        !changed.is_empty() && changed.iter().all(|name| name.ends_with("mlp.gate.weight")),
        "{changed:?}"
    );
    let result = &sandbox.json("healed/moe-convert.json")["result"];
    let copied = result["tensors"].as_u64().unwrap() - changed.len() as u64;
    assert_eq!(result["tensors_copied"], copied);
}

#[test]
fn a_training_is_shown_and_recorded() {
    let (sandbox, outcome) = healed();
    let outcome = outcome.says(&["step 3 of 6: loss", "entropy"]);
    assert!(outcome.stdout.contains("dead at first"), "{}", outcome.stdout);
    let training = &sandbox.json("healed/moe-convert.json")["training"];
    assert_eq!(training["curve"].as_array().unwrap().len(), 6);
    assert_eq!([&training["steps"], &training["written"]], [6, 6]);
    assert_eq!(training["measurements"], json!([]));
    let log = String::from_utf8(sandbox.read("healed/training.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["loss"].is_number()).count(), 6);
    assert!(lines[0]["settings"]["learning_rate"].is_number());
    assert!(lines[1]["load"][0]["counts"].is_array() && lines[1]["tokens_per_second"].is_number());
    let page = String::from_utf8(sandbox.read("healed/report.html")).unwrap();
    for text in ["Nothing was held out", "Load-balancing loss", "<svg", "Expert load"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!sandbox.path("healed.training").exists());
}

/// The weights with the best measurement are written. Here these are the ones before training,
/// since this rate spoils the model.
#[test]
fn the_best_weights_are_written_and_it_stops_by_itself() {
    let sandbox = Sandbox::new();
    let rate = "--learning-rate 0.5 --warmup 0 --patience 2 --train all";
    let line = format!(
        "heal golden/models/moe -o out --steps 40 --eval-every 1 {rate} {LITTLE} {MEASURED}"
    );
    let outcome = sandbox.run(&line).succeeds().says(&["held-out"]);
    for text in
        ["loss before", "training changed nothing", "function    the same as the source's, exactly"]
    {
        assert!(outcome.stdout.contains(text), "{text}: {}", outcome.stdout);
    }
    let training = &sandbox.json("out/moe-convert.json")["training"];
    assert_eq!(
        (&training["stopped_early"], &training["written"], &training["steps"]),
        (&true.into(), &0.into(), &2.into())
    );
    assert_eq!(weights(&sandbox, "golden/models/moe"), weights(&sandbox, "out"));
}

#[test]
fn no_step_changes_nothing() {
    let sandbox = Sandbox::new();
    sandbox
        .run(&format!("heal golden/models/moe -o same --train all --steps 0 {LITTLE}"))
        .succeeds();
    assert_eq!(weights(&sandbox, "golden/models/moe"), weights(&sandbox, "same"));
}

/// The hashes of all files of `dir`, but for the model card, which has its name.
fn hashes(sandbox: &Sandbox, dir: &str) -> Vec<String> {
    let sums = String::from_utf8(sandbox.read(&format!("{dir}/SHA256SUMS"))).unwrap();
    sums.lines().filter(|line| !line.ends_with("README.md")).map(str::to_owned).collect()
}

/// All parts are trained, with gradients of several batches and a teacher whose tokens are kept in
/// a file. The run is killed as soon as something was saved.
#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let sandbox = Sandbox::new();
    let how = format!(
        "--train all --steps 8 --eval-every 2 --accumulate 2 --z-loss 0.001 --capacity-factor 1.5 \
         --original golden/models/dense --original-weight 0.5 --original-logits top-k --original-logits-per-token 16 {LITTLE} {MEASURED}"
    );
    sandbox.run(&format!("heal golden/models/moe -o whole {how}")).succeeds();
    let broken = format!("heal golden/models/moe -o broken {how}");
    sandbox.killed_at(&broken, "broken.training/state.safetensors");
    assert!(!sandbox.path("broken").exists());
    sandbox.run(&broken).exits(2).says(&["broken.training", "--resume", "--overwrite"]);
    let resume = format!("{broken} --resume");
    let other = resume.replace("--z-loss 0.001", "--z-loss 0.002");
    sandbox.run(&other).exits(1).says(&["other options"]);
    sandbox.run(&resume).succeeds().says(&["goes on after step"]);
    assert!(sandbox.read("whole/model.safetensors") == sandbox.read("broken/model.safetensors"));
    let receipts = ["whole", "broken"].map(|dir| sandbox.json(&format!("{dir}/moe-convert.json")));
    assert_eq!(receipts[0], receipts[1]);
    // The weights aren't the source's: the last measurement was the best.
    assert_eq!(receipts[0]["training"]["written"], 8);
    assert_eq!(hashes(&sandbox, "whole"), hashes(&sandbox, "broken"));
    let finished = sandbox.run(&resume).succeeds();
    assert!(finished.stdout.contains("finished already"), "{}", finished.stdout);
}

/// The number of threads doesn't change the result.
#[test]
fn threads_do_not_matter() {
    let sandbox = Sandbox::new();
    for threads in [1, 3] {
        let line = format!(
            "heal golden/models/moe -o t{threads} --threads {threads} --train all --steps 3 {LITTLE}"
        );
        sandbox.run(&line).succeeds();
    }
    assert!(sandbox.read("t1/model.safetensors") == sandbox.read("t3/model.safetensors"));
}

#[test]
fn a_loss_that_is_no_number_stops_and_keeps_the_last_good_state() {
    let sandbox = Sandbox::new();
    let rate = "--learning-rate 1e30 --warmup 0 --clip 0 --train all";
    let outcome =
        sandbox.run(&format!("heal golden/models/moe -o out --steps 9 {rate} {LITTLE}")).exits(1);
    for text in
        ["training stopped after step", "not finite", "state.safetensors", "--learning-rate"]
    {
        assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
    }
    assert!(
        !sandbox.path("out").exists() && sandbox.path("out.training/state.safetensors").exists()
    );
}

#[test]
fn bf16_rounds_what_is_used_and_no_master() {
    let sandbox = Sandbox::new();
    for precision in ["f32", "bf16"] {
        let line = format!(
            "heal golden/models/moe -o {precision} --precision {precision} --train experts --steps 4 {LITTLE}"
        );
        sandbox.run(&line).succeeds();
    }
    let losses = ["f32", "bf16"].map(|dir| {
        let curve = sandbox.json(&format!("{dir}/moe-convert.json"))["training"]["curve"].clone();
        curve
            .as_array()
            .unwrap()
            .iter()
            .map(|step| step["loss"].as_f64().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(losses[0][0], losses[1][0], "the source is in bf16");
    assert!(losses[0] != losses[1]);
    assert!(losses[0].iter().zip(&losses[1]).all(|(a, b)| (a - b).abs() < 0.02), "{losses:?}");
}

/// Options for the text and the model that every row of these lines has.
const HEAL: &str = "heal golden/models/moe -o x --data golden/text/english.calibration.txt";

/// Options of [`HEAL`], and a word of what is said against them.
const BAD_OPTIONS: [(&str, &str); 10] = [
    ("--learning-rate=-1", "--learning-rate"),
    ("--learning-rate nan", "--learning-rate"),
    ("--batch-tokens 0", "--batch-tokens"),
    ("--steps 3 --warmup 4", "--warmup"),
    ("--patience 2", "--held-out"),
    ("--balance=-0.1", "--balance"),
    ("--capacity-factor 0", "--capacity-factor"),
    ("--original-weight 0.5", "--original ORIGINAL"),
    ("--original golden/models/moe --original-weight 2", "--original-weight"),
    (
        "--original golden/models/moe --original-logits top-k --original-logits-per-token 0",
        "at least 1",
    ),
];

#[test]
fn options_that_cannot_work_are_refused() {
    let sandbox = Sandbox::new();
    let problems = BAD_OPTIONS.iter().filter_map(|(options, complaint)| {
        sandbox.refuses(&format!("{HEAL} {options}"), 2, &[complaint])
    });
    assert_none(&problems.collect::<Vec<_>>());
}

#[test]
fn models_and_texts_that_cannot_work_are_refused() {
    let sandbox = Sandbox::new();
    let text = "--data golden/text/english.calibration.txt";
    let (moe, quantized) = ("golden/models/moe", "golden/families/deepseek_v3/fp8/model");
    let cases: Vec<(String, i32, &[&str])> = vec![
        (
            format!("{HEAL} --original golden/families/qwen3_moe/base/model"),
            1,
            &["tokens", "tokenizer"],
        ),
        (format!("heal {moe} -o x {text}@0.5").replace("--data ", "--data a="), 2, &["@WEIGHT"]),
        (format!("heal {moe} -o x --data nowhere.txt"), 1, &["nowhere.txt"]),
        (format!("{HEAL} --held-out nowhere.txt"), 1, &["nowhere.txt"]),
        (format!("heal golden/models/dense -o x {text}"), 2, &["--train all"]),
        (format!("heal {quantized} -o x {text}"), 1, &["quantized", "unquantized checkpoint"]),
        (format!("{HEAL} --memory-budget 1MB"), 2, &["budget", "--memory-budget"]),
    ];
    let problems = cases
        .iter()
        .filter_map(|(line, code, complaints)| sandbox.refuses(line, *code, complaints));
    assert_none(&problems.collect::<Vec<_>>());
}
