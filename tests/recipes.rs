//! `run`: recipes with variables, resume, dry runs and gates.

mod common;

use common::Sandbox;

const RECIPE: &str = r#"
[vars]
out = "result"

[[step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/moe"
experts = 4
top-k = 2

[[step]]
run = "verify"
model = "${out}/moe"

[[step]]
run = "eval"
model = "${out}/moe"
against = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt"]
max-tokens = 128
gates = { max-kl = 1e-6, min-agreement = 0.99 }
"#;

fn sandbox(recipe: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", recipe);
    sandbox
}

#[test]
fn steps_run_in_order() {
    let sandbox = sandbox(RECIPE);
    let outcome = sandbox.run("run recipe.toml").succeeds().says(&["step 1 of 3", "step 2 of 3", "step 3 of 3"]);
    let positions: Vec<_> =
        ["result/moe", "sound", "english"].iter().map(|t| outcome.stdout.find(t).unwrap()).collect();
    assert!(positions.is_sorted(), "{}", outcome.stdout);
    sandbox.run("verify result/moe").succeeds();
}

#[test]
fn json_of_a_recipe_is_a_value_for_each_step() {
    let sandbox = sandbox(RECIPE);
    let outcome = sandbox.run("run recipe.toml --json").succeeds();
    let values = serde_json::Deserializer::from_str(&outcome.stdout).into_iter::<serde_json::Value>();
    let values: Vec<_> = values.collect::<Result<_, _>>().unwrap();
    assert_eq!(values.len(), 3);
    assert_eq!(values[0]["receipt"]["pass"], "upcycle");
    let quiet = sandbox.run("run recipe.toml --set out=again --quiet").succeeds();
    assert_eq!(quiet.stderr, "");
}

#[test]
fn variables_are_set() {
    let sandbox = sandbox(RECIPE);
    sandbox.run("run recipe.toml --set out=elsewhere").succeeds();
    assert_eq!(sandbox.names("."), ["elsewhere", "golden", "recipe.toml"]);
    sandbox.run("run recipe.toml --set out").exits(2);
    sandbox.run("run recipe.toml --set outt=x").exits(2).says(&["outt"]);
}

#[test]
fn finished_steps_are_kept_on_resume() {
    let sandbox = sandbox(RECIPE);
    sandbox.run("run recipe.toml --resume").succeeds();
    let first = sandbox.contents();
    let second = sandbox.run("run recipe.toml --resume").succeeds();
    assert!(second.stdout.contains("finished already"), "{}", second.stdout);
    assert!(first == sandbox.contents(), "a finished result was written again");
    // Without --resume, and with other options, a result that exists is in the way.
    sandbox.run("run recipe.toml").exits(2).says(&["result/moe", "exists", "step 1 (upcycle)", "recipe.toml"]);
    let other = String::from_utf8(sandbox.read("recipe.toml")).unwrap().replace("experts = 4", "experts = 5");
    sandbox.write("other.toml", other);
    sandbox.run("run other.toml --resume").exits(2).says(&["result/moe", "exists"]);
}

/// A result that was damaged since is not finished.
#[test]
fn damaged_results_are_not_taken_for_finished() {
    let sandbox = sandbox(RECIPE);
    sandbox.run("run recipe.toml").succeeds();
    let mut weights = sandbox.read("result/moe/model.safetensors");
    weights.truncate(1_000_000);
    sandbox.write("result/moe/model.safetensors", weights);
    let outcome = sandbox.run("run recipe.toml --resume");
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(!outcome.stdout.contains("finished already"), "{}", outcome.stdout);
}

#[test]
fn dry_runs_write_nothing() {
    let sandbox = sandbox(RECIPE);
    let before = sandbox.contents();
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert!(outcome.stdout.contains("would write result/moe"), "{}", outcome.stdout);
    assert!(before == sandbox.contents());
}

/// A dry run finds what would stop the run later: a step that no earlier step feeds.
#[test]
fn dry_runs_check_what_exists() {
    let sandbox = sandbox(&RECIPE.replace("golden/models/dense\"\noutput", "golden/models/none\"\noutput"));
    sandbox.run("run recipe.toml --dry-run").exits(1).says(&["golden/models/none", "step 1"]);
}

#[test]
fn a_gate_that_is_not_met_exits_with_3() {
    let noisy = RECIPE.replace("experts = 4\n", "experts = 4\nnoise-std = 0.05\n");
    let sandbox = sandbox(&noisy);
    let outcome =
        sandbox.run("run recipe.toml").exits(3).says(&["quality gate", "max-kl", "step 3 (eval)", "recipe.toml"]);
    assert!(outcome.stdout.contains("english"), "the measurements are the result: {}", outcome.stdout);
    let eval = "eval result/moe --against golden/models/dense --data golden/text/code.heldout.txt --max-tokens 64";
    sandbox.run(&format!("{eval} --max-kl 1e-6")).exits(3).says(&["max-kl", "result/moe"]);
    sandbox.run(&format!("{eval} --min-agreement 1.01")).exits(3).says(&["min-agreement"]);
    sandbox.run(&format!("{eval} --max-loss-increase=-9")).exits(3).says(&["max-loss-increase"]);
    let failed = sandbox.run(&format!("{eval} --max-kl 1e-6 --json")).exits(3).json();
    assert_eq!(failed["gates_failed"][0]["gate"], "max-kl");
    sandbox.run(&format!("{eval} --max-kl 100")).succeeds();
}

#[test]
fn a_step_that_fails_stops_the_recipe() {
    let sandbox =
        sandbox(&RECIPE.replace("run = \"verify\"\nmodel = \"${out}/moe\"", "run = \"verify\"\nmodel = \"golden\""));
    let outcome = sandbox.run("run recipe.toml").exits(1).says(&["step 2 (verify)", "golden"]);
    assert!(!outcome.stderr.contains("step 3 of"), "{outcome}");
}
