//! Tests that no option is silently ignored: it is used, or refused with a message that says what
//! it needs.

use crate::common::{Sandbox, assert_none, step};

const PRUNE: &str = "prune golden/models/moe -o out";

/// Options that decide what a given plan has decided, and their values.
const DECIDING: [(&str, &str); 13] = [
    ("criterion", "frequency"),
    ("blend", "max-min"),
    ("experts", "12"),
    ("keep", "0.5"),
    ("keep-mass", "0.5"),
    ("equal-mass", ""),
    ("divisible-by", "8"),
    ("stats", "stats"),
    ("no-super-expert-guard", ""),
    ("data-tokens", "64"),
    ("pack", ""),
    ("mask-special", ""),
    ("data", "golden/text/code.heldout.txt"),
];

/// A sandbox with a plan, and a file of the name `stats`.
fn with_plan() -> Sandbox {
    let sandbox = Sandbox::new();
    let plan = format!("{PRUNE} --experts 12 --criterion random --dry-run --plan-out plan.json");
    sandbox.run(&plan).succeeds();
    sandbox.write("stats", "");
    sandbox
}

/// The decisions of a given plan can't be made again by options.
#[test]
fn options_beside_a_given_plan_are_refused() {
    let sandbox = with_plan();
    // A recipe can't say which values were given, and a default doesn't contradict the plan, so
    // the default criterion is refused only here.
    for (option, value) in DECIDING.into_iter().chain([("criterion", "reap")]) {
        let line = format!("{PRUNE} --plan plan.json --{option} {value}");
        let said = [format!("--{option}"), format!("leave --plan or --{option} out")];
        sandbox.must_refuse(line.trim(), 2, &[&said[0], &said[1]]);
    }
}

#[test]
fn keys_beside_a_given_plan_are_refused() {
    let sandbox = with_plan();
    for (option, value) in DECIDING {
        let value = match value {
            "" => "true".to_owned(),
            value if value.parse::<f64>().is_ok() => value.to_owned(),
            value if option == "data" => format!("[{value:?}]"),
            value => format!("{value:?}"),
        };
        let keys = format!("output = \"out\"\nplan = \"plan.json\"\n{option} = {value}\n");
        sandbox.write("r.toml", step("prune", "golden/models/moe", &keys));
        let named = format!("`plan` has decided already, so `{option}` would have no effect");
        sandbox.must_refuse("run r.toml", 2, &["line 6, step 1 (prune)", &named, "leave"]);
    }
}

#[test]
fn a_given_plan_can_be_measured() {
    let held_out = "--held-out golden/text/code.heldout.txt --held-out-tokens 64";
    with_plan().run(&format!("{PRUNE} --plan plan.json {held_out}")).succeeds();
}

/// Layers for multi-token prediction are ranked by weights, also beside a given plan.
#[test]
fn a_given_plan_leaves_layers_for_multi_token_prediction_to_their_weights() {
    let sandbox = Sandbox::new();
    let prune = "prune golden/families/glm4_moe/mtp/model";
    let inspected = sandbox.run("inspect golden/families/glm4_moe/mtp/model").succeeds();
    assert!(inspected.stdout.contains("multi-token"), "{inspected}");
    sandbox
        .run(&format!("{prune} -o decided --keep 0.5 --criterion aimer --plan-out plan.json"))
        .succeeds();
    sandbox.run(&format!("{prune} -o given --plan plan.json")).succeeds();
    assert!(sandbox.read("decided/model.safetensors") == sandbox.read("given/model.safetensors"));
    let receipt = String::from_utf8(sandbox.read("given/moe-convert.json")).unwrap();
    assert!(!receipt.contains("decided when it runs"));
}

/// Options that depend on another option are refused without it.
#[test]
fn options_without_their_companion_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("stats", "");
    sandbox
        .run(&format!("{PRUNE} --experts 12 --criterion random --dry-run --plan-out plan.json"))
        .succeeds();
    let lines = [
        format!("{PRUNE} --experts 12 --criterion random --held-out-tokens 64"),
        "observe golden/models/moe -o s --add stats --no-left-out".to_owned(),
        "observe golden/models/moe -o s --add stats --seed 1".to_owned(),
        "upcycle golden/models/dense -o out --experts 4 --top-k 2 --data-tokens 64".to_owned(),
        "heal golden/models/moe -o out --data golden/text/code.heldout.txt --held-out-tokens 64".to_owned(),
        format!("{PRUNE} --plan plan.json --seed 3"),
        format!("{PRUNE} --plan plan.json --sequence-length 64"),
        format!("{PRUNE} --plan plan.json --no-baseline"),
        "distill golden/models/moe -o out --data golden/text/code.heldout.txt --no-baseline".to_owned(),
        "distill golden/models/moe -o out --data golden/text/code.heldout.txt --steps 0 --relative-learning-rate 1".to_owned(),
        "distill golden/models/moe -o out --data golden/text/code.heldout.txt --steps 0 --batch-tokens 64".to_owned(),
        "run r.toml --overwrite".to_owned(),
        "verify golden/models/moe --dtype bf16".to_owned(),
    ];
    let problems = lines.iter().filter_map(|line| sandbox.refuses(line, 2, &["--", "leave"]));
    assert_none(&problems.collect::<Vec<_>>());
}
