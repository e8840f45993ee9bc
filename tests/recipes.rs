//! `run`: recipes with variables, blocks for combinations, resume, dry runs and gates.

mod common;

use common::{Sandbox, root};

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

#[test]
fn dry_runs_say_which_steps_wait_for_another() {
    let prune = "\n[[step]]\nrun = \"prune\"\nmodel = \"${out}/moe\"\noutput = \"${out}/pruned\"\nexperts = 2\nmethod = \"random\"\n";
    let sandbox = sandbox(&format!("{RECIPE}{prune}"));
    sandbox
        .run("run recipe.toml --dry-run")
        .succeeds()
        .says(&["step 4 of 4: prune", "step 1 is yet to make result/moe"]);
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
fn gates_limit_labels_sizes_and_regressions() {
    let sandbox = Sandbox::new();
    let eval = "eval golden/models/moe --data english=golden/text/english.heldout.txt --max-tokens 64 --json";
    let against = format!("{eval} --against golden/models/dense");
    sandbox.run(&format!("{against} --domain english:max-kl=100 --max-bytes 1GB")).succeeds();
    let found = sandbox.run(&format!("{against} --domain english:max-kl=0.001")).exits(3).says(&["max-kl of english"]);
    assert!(found.stderr.contains("beyond it") && found.stderr.contains("remedy"), "{}", found.stderr);
    sandbox.run(&format!("{against} --domain code:max-kl=1")).exits(2).says(&["\"code\"", "english"]);
    sandbox.run(&format!("{eval} --max-bytes 1MB")).exits(3).says(&["max-bytes is 1.00 MB", "golden/models/moe"]);
    // What was measured before is the golden; another model's measurement misses it.
    sandbox.write("moe.json", sandbox.run(eval).succeeds().stdout);
    sandbox.run(&format!("{eval} --golden moe.json")).succeeds();
    let dense = eval.replace("models/moe", "models/dense");
    sandbox.run(&format!("{dense} --golden moe.json")).exits(3).says(&["golden-tolerance of the loss of english"]);
    sandbox.run(&format!("{dense} --golden moe.json --golden-tolerance 9")).succeeds();
    sandbox.run(&format!("{} --golden moe.json", eval.replace("64", "32"))).exits(2).says(&["moe.json", "tokens"]);
}

/// Both files are written where a gate isn't met, and say of every step what became of it.
#[test]
fn what_became_of_steps_is_written_for_ci() {
    let sandbox = sandbox(&format!(
        "{}\n[[step]]\nrun = \"verify\"\nmodel = \"${{out}}/moe\"\n",
        RECIPE.replace("max-kl = 1e-6", "max-kl = -1")
    ));
    sandbox.run("run recipe.toml --junit junit.xml --summary page.md").exits(3);
    let read = |name: &str| String::from_utf8(sandbox.read(name)).unwrap();
    let (xml, page) = (read("junit.xml"), read("page.md"));
    assert!(xml.contains("tests=\"4\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{xml}");
    assert!(
        xml.contains("name=\"1. upcycle: result/moe\"") && xml.contains("<failure message=\"quality gate"),
        "{xml}"
    );
    for row in
        ["| 1. upcycle: result/moe |", "| 2. verify: result/moe |", "**gate not met**", "| not run |", "max-kl is -1"]
    {
        assert!(page.contains(row), "{row}: {page}");
    }
    // Another job's page goes behind it.
    sandbox.run("run recipe.toml --set out=again --summary page.md").exits(3);
    assert!(read("page.md").starts_with(&page) && read("page.md").len() > page.len());
}

#[test]
fn a_step_that_fails_stops_the_recipe() {
    let sandbox =
        sandbox(&RECIPE.replace("run = \"verify\"\nmodel = \"${out}/moe\"", "run = \"verify\"\nmodel = \"golden\""));
    let outcome = sandbox.run("run recipe.toml").exits(1).says(&["step 2 (verify)", "golden"]);
    assert!(!outcome.stderr.contains("step 3 of"), "{outcome}");
}

/// Three seeds of two noises, in outputs of their own.
const MATRIX: &str = r#"
[vars]
out = "result"
seeds = [0, 1, 2]

[[step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/plain"
experts = 4
top-k = 2

[[step]]
each.noise = [{ noise = "little", std = 0.01 }, { noise = "much", std = 0.03 }]
each.seed = "${seeds}"

[[step.step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/${noise}-${seed}"
experts = 4
top-k = 2
noise-std = "${std}"
seed = "${seed}"

[[step.step]]
run = "eval"
label = "${noise} noise"
model = "${out}/${noise}-${seed}"
against = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt", "code=golden/text/code.heldout.txt"]
max-tokens = 64
"#;

#[test]
fn runs_of_a_label_are_averaged() {
    let sandbox = sandbox(MATRIX);
    let outcome = sandbox
        .run("run recipe.toml --json")
        .succeeds()
        .says(&["recipe, step 1 of 13: upcycle", "recipe, step 13 of 13: eval; noise much, seed 2"]);
    assert_eq!(sandbox.names("result").len(), 7);
    let values = serde_json::Deserializer::from_str(&outcome.stdout).into_iter::<serde_json::Value>();
    let values: Vec<_> = values.collect::<Result<_, _>>().unwrap();
    let seeds: Vec<_> = (1..7).map(|i| values[2 * i - 1]["receipt"]["options"]["seed"].clone()).collect();
    assert_eq!(seeds, [0, 1, 2, 0, 1, 2]);
    let last = values.last().unwrap();
    let kl_of_evals: Vec<_> = (1..7).map(|i| values[2 * i]["report"]["all"]["against"]["kl"].clone()).collect();
    let kl_of_rows: Vec<_> = last["summary"].as_array().unwrap().iter().map(|row| row["kl"].clone()).collect();
    assert_eq!(kl_of_rows, kl_of_evals, "every single row is kept");
    let kls: Vec<_> = kl_of_rows.iter().map(|kl| kl.as_f64().unwrap()).collect();
    let averages = last["averages"].as_array().unwrap();
    assert_eq!((averages.len(), &averages[1]["label"], &averages[1]["runs"]), (2, &"much noise".into(), &3.into()));
    for (average, kls) in averages.iter().zip(kls.chunks(3)) {
        let mean = (kls[0] + kls[1] + kls[2]) / 3.0;
        let deviation = (kls.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        let close = |found: &serde_json::Value, expected: f64| (found.as_f64().unwrap() / expected - 1.0).abs() < 1e-9;
        assert!(
            deviation > 0.0 && close(&average["kl"]["mean"], mean) && close(&average["kl"]["deviation"], deviation)
        );
        assert!(average["domains"][1]["kl"]["deviation"].is_number() && average["load"]["gini"]["mean"].is_number());
    }
    // What is finished stays, and the table for people says how many runs there were.
    let again = sandbox.run("run recipe.toml --resume --set seeds=[0,1]").succeeds();
    assert_eq!(again.stdout.matches("finished already").count(), 1 + 2 * 2);
    let table: Vec<_> = again.stdout.lines().filter(|line| line.starts_with("| little noise |")).collect();
    assert!(table[0].starts_with("| little noise | 2 | ") && table[0].matches(" ± ").count() == 3, "{table:?}");
    assert!(again.stdout.contains("|  | runs | loss |") && again.stdout.contains("mean ± standard deviation"));
}

#[test]
fn dry_runs_check_every_combination() {
    let sandbox = sandbox(MATRIX);
    let before = sandbox.contents();
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("would write result/").count(), 7);
    assert!(before == sandbox.contents());
    let negative = MATRIX.replace("std = 0.03", "std = -1.0");
    sandbox.write("recipe.toml", negative);
    sandbox.run("run recipe.toml --dry-run").exits(2).says(&["step 8 (upcycle; noise much, seed 0)", "noise-std"]);
}

#[test]
fn mistakes_in_blocks_come_before_any_step() {
    for (from, to, complaint) in [
        ("${noise}-${seed}\"\nexperts", "${noise}\"\nexperts", "writes to result/little, as step 2 does"),
        ("noise-std = \"${std}\"\n", "", "each.noise: no step of the block uses ${std}"),
        ("${std}", "${sdt}", "step 2.1 (upcycle; noise little, seed 0): there is no variable \"sdt\" here"),
        ("max-tokens = 64", "max-tokens = \"6${seed}\"", "step 2.2 (eval; noise little, seed 0): "),
    ] {
        assert!(MATRIX.contains(from), "{from}");
        let sandbox = sandbox(&MATRIX.replace(from, to));
        sandbox.run("run recipe.toml").exits(2).says(&[complaint, "recipe.toml", "remedy"]);
        assert_eq!(sandbox.names("."), ["golden", "recipe.toml"]);
    }
}

#[test]
fn the_recipe_in_the_guide_can_run() {
    let guide = std::fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    let written = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let sandbox = sandbox(written);
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("would write ").count(), 8);
}
