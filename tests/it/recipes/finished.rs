//! Tests that finished steps are kept, as long as their inputs, options and results are the same.

use super::{RECIPE, SHARED, sandbox};
use crate::common::{Sandbox, step};

/// The shell that waits for a run counts what the run reads of files, too.
#[test]
#[cfg(target_os = "linux")]
fn finished_steps_are_hashed_once() {
    let sandbox = Sandbox::new();
    let step = "run = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"o\"\nexperts = 4\ntop-k = 2\n";
    sandbox.write("r.toml", format!("[[step]]\n{step}"));
    sandbox.run("run r.toml").succeeds();
    let size = |path: &str| sandbox.path(path).metadata().unwrap().len();
    let weights = size("golden/models/dense/model.safetensors") + size("o/model.safetensors");
    let outcome = sandbox.shell("moe-convert run r.toml --quiet; cat /proc/$$/io");
    let (said, counted) =
        outcome.stdout.split_once("rchar: ").unwrap_or_else(|| panic!("{outcome}"));
    let read: u64 = counted.split_whitespace().next().unwrap().parse().unwrap();
    assert!(
        said.contains("finished already") && (weights..weights * 3 / 2).contains(&read),
        "{read} of {weights}"
    );
}

#[test]
fn finished_steps_are_kept() {
    let sandbox = sandbox(RECIPE);
    sandbox.run("run recipe.toml").succeeds();
    let first = sandbox.contents();
    let second = sandbox.run("run recipe.toml --summary summary.md").succeeds();
    assert!(second.stdout.contains("finished already"), "{}", second.stdout);
    let summary = String::from_utf8(sandbox.read("summary.md")).unwrap();
    assert!(summary.contains("| there already |") && summary.contains("| done |"), "{summary}");
    std::fs::remove_file(sandbox.path("summary.md")).unwrap();
    assert!(first == sandbox.contents(), "a finished result was written again");
    // If all steps must run, or options differ, an existing result is in the way.
    let fresh = "run recipe.toml --fresh";
    sandbox.run(fresh).exits(2).says(&["result/moe", "exists", "step 1 (upcycle)", "recipe.toml"]);
    let other = String::from_utf8(sandbox.read("recipe.toml"))
        .unwrap()
        .replace("experts = 4", "experts = 5");
    sandbox.write("other.toml", other);
    sandbox.run("run other.toml").exits(2).says(&["result/moe", "exists"]);
    sandbox.write("fresh.toml", RECIPE.replace("top-k = 2", "top-k = 2\noverwrite = true"));
    let again = sandbox.run("run fresh.toml --fresh").succeeds();
    assert!(!again.stdout.contains("finished already"), "{}", again.stdout);
}

/// A result that was damaged after it was written isn't finished.
#[test]
fn damaged_results_are_not_taken_for_finished() {
    let sandbox = sandbox(RECIPE);
    sandbox.run("run recipe.toml").succeeds();
    let mut weights = sandbox.read("result/moe/model.safetensors");
    weights.truncate(1_000_000);
    sandbox.write("result/moe/model.safetensors", weights);
    let outcome = sandbox.run("run recipe.toml");
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(!outcome.stdout.contains("finished already"), "{}", outcome.stdout);
    sandbox.write("again.toml", RECIPE.replace("top-k = 2", "top-k = 2\noverwrite = true"));
    sandbox.write("result/moe/moe-convert.json", "{");
    sandbox.run("run again.toml").succeeds();
    sandbox.run("verify result/moe").succeeds();
}

/// The contents of a source decide, and not its path.
#[test]
fn a_changed_source_is_converted_again() {
    let sandbox = sandbox(&RECIPE.replace("golden/models/dense\"\noutput", "dense\"\noutput"));
    sandbox.copy("models/dense", "dense");
    sandbox.run("run recipe.toml").succeeds();
    std::fs::rename(sandbox.path("dense"), sandbox.path("moved")).unwrap();
    let text = String::from_utf8(sandbox.read("recipe.toml")).unwrap();
    sandbox.write("moved.toml", text.replace("\"dense\"", "\"moved\""));
    let moved = sandbox.run("run moved.toml").succeeds();
    assert!(moved.stdout.contains("finished already"), "{}", moved.stdout);
    // Side files are part of the source.
    let tokenizer = sandbox.read("moved/tokenizer.json");
    sandbox.write("moved/tokenizer.json", [tokenizer.as_slice(), b"\n"].concat());
    sandbox.run("run moved.toml").exits(2).says(&["result/moe", "exists"]);
    sandbox.write("moved/tokenizer.json", tokenizer);
    assert!(sandbox.run("run moved.toml").succeeds().stdout.contains("finished already"));
    let mut weights = sandbox.read("moved/model.safetensors");
    let last = weights.len() - 2;
    weights[last] ^= 1;
    sandbox.write("moved/model.safetensors", weights);
    sandbox.run("run moved.toml").exits(2).says(&["result/moe", "exists"]);
}

/// Steps that are the same for several choices run once, and equal results are copied.
#[test]
fn nothing_is_computed_twice() {
    let sandbox = sandbox(SHARED);
    let steps =
        ["step 1 of 5: prune\n", "step 2 of 5: prune; bits 4", "step 5 of 5: quantize; bits 8"];
    let outcome = sandbox.run("run recipe.toml").succeeds().says(&steps);
    let copied = "result/pruned-8 is a copy of result/pruned-4";
    assert!(outcome.stdout.contains(copied), "{}", outcome.stdout);
    for file in ["model.safetensors", "config.json", "moe-convert.json"] {
        let of = |dir: &str| sandbox.read(&format!("result/{dir}/{file}"));
        assert!(of("pruned-4") == of("pruned-8"), "{file}");
    }
    let card = String::from_utf8(sandbox.read("result/pruned-8/README.md")).unwrap();
    assert!(card.contains("\n# pruned-8\n") && !card.contains("pruned-4"), "{card}");
    sandbox.run("verify result/pruned-8").succeeds();
    let again = sandbox.run("run recipe.toml").succeeds();
    assert_eq!(again.stdout.matches("finished already").count(), 5, "{}", again.stdout);
    let dry = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(dry.stdout.matches("finished already").count(), 5, "{}", dry.stdout);
    sandbox.run("run recipe.toml --fresh --set out=fresh").succeeds();
    assert!(
        sandbox.read("fresh/w8/model.safetensors") == sandbox.read("result/w8/model.safetensors")
    );
}

const TWICE: &str = r#"
[[step]]
each.keep = [0.5, 0.25]
[[step.step]]
run = "prune"
model = "golden/models/moe"
output = "pruned"
overwrite = true
keep = "${keep}"
criterion = "random"
[[step.step]]
run = "quantize"
model = "pruned"
output = "quantized"
overwrite = true
scheme = "w4a16"
solver = "rtn"
group-size = 32
"#;

/// If its input changes in between, the same step runs again.
#[test]
fn steps_whose_input_changes_in_between_all_run() {
    let sandbox = sandbox(TWICE);
    let outcome =
        sandbox.run("run recipe.toml").succeeds().says(&["step 4 of 4: quantize; keep 0.25"]);
    assert!(outcome.stdout.contains("6 of 24 rows"), "{}", outcome.stdout);
    let config: serde_json::Value =
        serde_json::from_slice(&sandbox.read("quantized/config.json")).unwrap();
    assert_eq!(config["num_experts"], 6);
}

/// A plan is part of its result. It belongs to no other run, and isn't an input.
#[test]
fn plans_belong_to_their_steps() {
    let keys = "output = \"pruned\"\noverwrite = true\nkeep = 0.5\ncriterion = \"random\"\n\
                plan-out = \"plan.json\"";
    let sandbox = sandbox(&step("prune", "golden/models/moe", keys));
    sandbox.run("run recipe.toml").succeeds();
    let plan = sandbox.read("plan.json");
    assert!(sandbox.run("run recipe.toml").succeeds().stdout.contains("finished already"));
    sandbox.write("plan.json", "{}");
    assert!(!sandbox.run("run recipe.toml").succeeds().stdout.contains("finished already"));
    assert!(sandbox.read("plan.json") == plan);
    let line = "prune golden/models/moe -o again --plan plan.json --plan-out plan.json";
    sandbox.run(line).exits(2).says(&["plan.json", "a name of its own"]);
    assert!(sandbox.read("plan.json") == plan);
}

#[test]
fn a_dry_run_does_not_train_to_find_a_plan() {
    let sandbox = Sandbox::new();
    let heal = "[[step.pass]]\nrun = \"heal\"\nsteps = 2\ndata = [\"golden/text/english.calibration.txt\"]\n";
    let prune = "[[step.pass]]\nrun = \"prune\"\nkeep = 0.5\ncriterion = \"random\"\nplan-out = \"other.json\"\n";
    let step = "[[step]]\nrun = \"convert\"\nmodel = \"golden/models/moe\"\noutput = \"both\"\n";
    sandbox.write("both.toml", format!("{step}{heal}{prune}"));
    let before = sandbox.names(".");
    sandbox.run("run both.toml --dry-run").succeeds();
    assert_eq!(sandbox.names("."), before);
}

#[test]
fn statistics_that_are_there_are_kept() {
    let observe = r#"
[[step]]
run = "observe"
model = "golden/models/moe"
output = "moe.stats"
data = ["golden/text/english.calibration.txt"]
data-tokens = TOKENS
"#;
    let sandbox = sandbox(&observe.replace("TOKENS", "256"));
    sandbox.run("run recipe.toml").succeeds();
    let again = sandbox.run("run recipe.toml").succeeds();
    assert!(again.stdout.contains("moe.stats is finished already"), "{}", again.stdout);
    sandbox.write("more.toml", observe.replace("TOKENS", "512"));
    sandbox.run("run more.toml").exits(2).says(&["moe.stats", "exists", "`overwrite = true`"]);
    sandbox.write("more.toml", format!("{}overwrite = true\n", observe.replace("TOKENS", "512")));
    let more = sandbox.run("run more.toml").succeeds();
    assert!(!more.stdout.contains("finished already"), "{}", more.stdout);
}
