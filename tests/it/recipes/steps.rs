//! Tests that the steps of a recipe run in order, with its variables, until one fails.

use super::{RECIPE, sandbox};
use crate::common::{Sandbox, root};

#[test]
fn steps_run_in_order() {
    let sandbox = sandbox(RECIPE);
    let outcome = sandbox.run("run recipe.toml").succeeds().says(&[
        "step 1 of 3",
        "step 2 of 3",
        "step 3 of 3",
    ]);
    let positions: Vec<_> = ["result/moe", "sound", "english"]
        .iter()
        .map(|t| outcome.stdout.find(t).unwrap())
        .collect();
    assert!(positions.is_sorted(), "{}", outcome.stdout);
    sandbox.run("verify result/moe").succeeds();
}

#[test]
fn json_of_a_recipe_is_a_value_for_each_step() {
    let sandbox = sandbox(RECIPE);
    let outcome = sandbox.run("run recipe.toml --json").succeeds();
    let values =
        serde_json::Deserializer::from_str(&outcome.stdout).into_iter::<serde_json::Value>();
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

const PASSES: &str = r#"
[defaults.quantize]
scheme = "w8a16"
group-size = 32
output = "unused by passes"
[[step]]
run = "convert"
model = "golden/models/moe"
output = "out"
[[step.pass]]
run = "prune"
keep = 0.5
criterion = "random"
[[step.pass]]
run = "quantize"
solver = "rtn"
"#;

/// Prunes and quantizes in one step, without writing the pruned model to the disk.
#[test]
fn passes_run_in_one_step() {
    let sandbox = sandbox(PASSES);
    let dry = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert!(dry.stdout.contains("prune → quantize"), "{}", dry.stdout);
    let outcome =
        sandbox.run("run recipe.toml").succeeds().says(&["step 1 of 1: prune → quantize"]);
    assert!(outcome.stdout.contains("12 of 24 rows"), "{}", outcome.stdout);
    assert_eq!(sandbox.names("."), ["golden", "out", "recipe.toml"]);
    sandbox.run("verify out").succeeds();
}

#[test]
fn errors_in_passes_name_the_pass() {
    let sandbox = Sandbox::new();
    sandbox.write("wrong.toml", PASSES.replace("keep = 0.5", "keeep = 0.5"));
    sandbox.run("run wrong.toml").exits(2).says(&["line 12, step 1 (convert): pass 1", "keeep"]);
}

#[test]
fn a_step_that_fails_stops_the_recipe() {
    let sandbox = sandbox(&RECIPE.replace(
        "run = \"verify\"\nmodel = \"${out}/moe\"",
        "run = \"verify\"\nmodel = \"golden\"",
    ));
    let outcome = sandbox.run("run recipe.toml").exits(1).says(&["step 2 (verify)", "golden"]);
    assert!(!outcome.stderr.contains("step 3 of"), "{outcome}");
}

#[test]
fn the_recipe_in_the_guide_can_run() {
    let guide = std::fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    let written =
        guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let sandbox = sandbox(written);
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("would write ").count(), 8);
}
