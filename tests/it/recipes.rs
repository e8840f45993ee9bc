//! Tests `run`: recipes with variables, blocks for combinations, resume, dry runs and gates.

use crate::common::{Sandbox, assert_none, root};

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
original = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt"]
data-tokens = 128
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
    let copy = |name: &str| {
        std::fs::create_dir_all(sandbox.path(name)).unwrap();
        for entry in std::fs::read_dir(root().join("golden/models/dense")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, sandbox.path(name).join(path.file_name().unwrap())).unwrap();
        }
    };
    copy("dense");
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

const SHARED: &str = r#"
[vars]
out = "result"
[[step]]
each.bits = [4, 8]
[[step.step]]
run = "prune"
model = "golden/models/moe"
output = "${out}/pruned"
keep = 0.5
criterion = "random"
[[step.step]]
run = "prune"
model = "golden/models/moe"
output = "${out}/pruned-${bits}"
keep = 0.75
criterion = "random"
[[step.step]]
run = "quantize"
model = "${out}/pruned-${bits}"
output = "${out}/w${bits}"
scheme = "w${bits}a16"
solver = "rtn"
group-size = 32
"#;

/// Steps that are the same for several choices run once, and equal results are copied.
#[test]
fn nothing_is_computed_twice() {
    let sandbox = sandbox(SHARED);
    let steps =
        ["step 1 of 5: prune\n", "step 2 of 5: prune; bits 4", "step 5 of 5: quantize; bits 8"];
    let outcome = sandbox.run("run recipe.toml").succeeds().says(&steps);
    assert!(
        outcome.stdout.contains("result/pruned-8 is a copy of result/pruned-4"),
        "{}",
        outcome.stdout
    );
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

/// If its input changes in between, the same step runs again.
#[test]
fn steps_whose_input_changes_in_between_all_run() {
    let sandbox = sandbox(
        r#"
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
"#,
    );
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
    let sandbox = sandbox(
        r#"
[[step]]
run = "prune"
model = "golden/models/moe"
output = "pruned"
overwrite = true
keep = 0.5
criterion = "random"
plan-out = "plan.json"
"#,
    );
    sandbox.run("run recipe.toml").succeeds();
    let plan = sandbox.read("plan.json");
    assert!(sandbox.run("run recipe.toml").succeeds().stdout.contains("finished already"));
    sandbox.write("plan.json", "{}");
    assert!(!sandbox.run("run recipe.toml").succeeds().stdout.contains("finished already"));
    assert!(sandbox.read("plan.json") == plan);
    let line = "prune golden/models/moe -o again --plan plan.json --plan-out plan.json";
    sandbox.run(line).exits(2).says(&["plan.json", "a name of its own"]);
    assert!(sandbox.read("plan.json") == plan);
    // A dry run doesn't train to find a plan.
    let heal = "[[step.pass]]\nrun = \"heal\"\nsteps = 2\ndata = [\"golden/text/english.calibration.txt\"]\n";
    let prune = "[[step.pass]]\nrun = \"prune\"\nkeep = 0.5\ncriterion = \"random\"\nplan-out = \"other.json\"\n";
    let step = "[[step]]\nrun = \"convert\"\nmodel = \"golden/models/moe\"\noutput = \"both\"\n";
    sandbox.write("both.toml", format!("{step}{heal}{prune}"));
    let before = sandbox.names(".");
    sandbox.run("run both.toml --dry-run").succeeds();
    assert_eq!(sandbox.names("."), before);
}

/// A dry run doesn't use old results in place of those that earlier steps would make.
#[test]
fn dry_runs_know_what_would_be_made_anew() {
    let sandbox = sandbox(SHARED);
    sandbox.run("run recipe.toml").succeeds();
    sandbox.write(
        "other.toml",
        SHARED
            .replace("keep = 0.75", "keep = 0.25\noverwrite = true")
            .replace("w${bits}\"\n", "w${bits}\"\noverwrite = true\n"),
    );
    let outcome = sandbox.run("run other.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("finished already").count(), 1, "{}", outcome.stdout);
    assert_eq!(outcome.stdout.matches("6 of 24 rows").count(), 4, "{}", outcome.stdout);
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

/// Prunes and quantizes in one step, without writing the pruned model to the disk.
#[test]
fn passes_run_in_one_step() {
    let sandbox = sandbox(
        r#"
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
"#,
    );
    let dry = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert!(dry.stdout.contains("prune → quantize"), "{}", dry.stdout);
    let outcome =
        sandbox.run("run recipe.toml").succeeds().says(&["step 1 of 1: prune → quantize"]);
    assert!(outcome.stdout.contains("12 of 24 rows"), "{}", outcome.stdout);
    assert_eq!(sandbox.names("."), ["golden", "out", "recipe.toml"]);
    sandbox.run("verify out").succeeds();
    let wrong = String::from_utf8(sandbox.read("recipe.toml"))
        .unwrap()
        .replace("keep = 0.5", "keeep = 0.5");
    sandbox.write("wrong.toml", wrong);
    sandbox.run("run wrong.toml").exits(2).says(&["line 12, step 1 (convert): pass 1", "keeep"]);
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
fn dry_runs_plan_steps_that_wait_for_others() {
    let prune = "\n[[step]]\nrun = \"prune\"\nmodel = \"${out}/moe\"\noutput = \"${out}/pruned\"\nexperts = 2\ncriterion = \"random\"\n";
    let sandbox = sandbox(&format!("{RECIPE}{prune}"));
    let before = sandbox.contents();
    let notes = [
        "step 4 of 4: prune",
        "step 1 is yet to make result/moe: planned together",
        "not planned: step 1",
    ];
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds().says(&notes);
    assert!(outcome.stdout.contains("would write result/pruned"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("upcycle → prune"), "{}", outcome.stdout);
    assert!(before == sandbox.contents());
    // Steps that can't work are found before anything runs.
    let wrong = format!("{RECIPE}{}", prune.replace("experts = 2", "experts = 9"));
    sandbox.write("wrong.toml", wrong);
    sandbox.run("run wrong.toml --dry-run").exits(2).says(&["step 4 (prune)", "9"]);
}

/// A dry run finds what would stop the run later: a step whose input no earlier step makes.
#[test]
fn dry_runs_check_what_exists() {
    let sandbox =
        sandbox(&RECIPE.replace("golden/models/dense\"\noutput", "golden/models/none\"\noutput"));
    sandbox
        .run("run recipe.toml --dry-run")
        .exits(1)
        .says(&["golden/models/none", "step 1 (upcycle)"]);
}

/// An input that only the last step needs is missed before the first step runs, and so are places
/// for reports.
#[test]
fn what_is_missing_is_said_before_any_step() {
    for (from, to, what) in [
        ("heldout.txt", "nowhere.txt", "english.nowhere.txt"),
        (
            "original = \"golden/models/dense\"",
            "original = \"golden/models/none\"",
            "golden/models/none",
        ),
        (
            "run = \"verify\"\nmodel = \"${out}/moe\"",
            "run = \"verify\"\nmodel = \"${out}/more\"",
            "result/more",
        ),
    ] {
        assert!(RECIPE.contains(from), "{from}");
        let sandbox = sandbox(&RECIPE.replace(from, to));
        for line in ["run recipe.toml", "run recipe.toml --dry-run"] {
            sandbox.run(line).exits(1).says(&[what, "no earlier step writes", "step "]);
        }
        assert!(!sandbox.path("result").exists());
    }
    // All files that passes name must exist.
    let step = |run: &str| {
        format!(
            "\n[[step]]\nrun = \"{run}\"\nmodel = \"${{out}}/moe\"\noutput = \"${{out}}/{run}\"\n"
        )
    };
    for (run, key) in [
        ("upcycle", "experts = 4\ntop-k = 2\nrouter = \"prompts\"\nprompts = \"none.txt\""),
        ("prune", "keep = 0.5\ndata = [\"none.txt\"]"),
        (
            "merge",
            "keep = 0.5\ndata = [\"golden/text/english.calibration.txt\"]\nheld-out = [\"x=none.txt\"]",
        ),
        ("quantize", "data = [\"golden/text/english.calibration.txt\"]\npool = [\"none.txt\"]"),
        ("distill", "data = [\"none.txt\"]"),
        ("heal", "data = [\"none.txt\"]"),
    ] {
        let sandbox = sandbox(&format!("{RECIPE}{}{key}\n", step(run)));
        sandbox.run("run recipe.toml").exits(1).says(&[
            "none.txt",
            "no earlier step writes",
            &format!("({run})"),
        ]);
        assert!(!sandbox.path("result").exists());
    }
    let sandbox = sandbox(RECIPE);
    for option in ["--junit", "--summary"] {
        sandbox
            .run(&format!("run recipe.toml {option} nowhere/x"))
            .exits(2)
            .says(&["nowhere/x", option]);
    }
    assert!(!sandbox.path("result").exists());
}

#[test]
fn a_gate_that_is_not_met_exits_with_3() {
    let noisy = RECIPE.replace("experts = 4\n", "experts = 4\nnoise-std = 0.05\n");
    let sandbox = sandbox(&noisy);
    let outcome = sandbox.run("run recipe.toml").exits(3).says(&[
        "quality gate",
        "max-kl",
        "step 3 (eval)",
        "recipe.toml",
    ]);
    assert!(
        outcome.stdout.contains("english"),
        "the measurements are the result: {}",
        outcome.stdout
    );
    let eval = "eval result/moe --original golden/models/dense --data golden/text/code.heldout.txt --data-tokens 64";
    sandbox.run(&format!("{eval} --max-kl 1e-6")).exits(3).says(&["max-kl", "result/moe"]);
    sandbox.run(&format!("{eval} --min-agreement 1")).exits(3).says(&["min-agreement"]);
    sandbox.run(&format!("{eval} --max-loss-increase=-9")).exits(3).says(&["max-loss-increase"]);
    let failed = sandbox.run(&format!("{eval} --max-kl 1e-6 --json")).exits(3).json();
    assert_eq!(failed["gates_failed"][0]["gate"], "max-kl");
    let met = sandbox.run(&format!("{eval} --max-kl 100")).succeeds();
    assert!(met.stdout.contains("gates met: max-kl is 100.000000, measured 0."), "{}", met.stdout);
}

#[test]
fn gates_limit_labels_sizes_and_regressions() {
    let sandbox = Sandbox::new();
    let eval = "eval golden/models/moe --data english=golden/text/english.heldout.txt --data-tokens 64 --json";
    let against = format!("{eval} --original golden/models/dense");
    sandbox.run(&format!("{against} --domain english:max-kl=100 --max-bytes 1GB")).succeeds();
    let found = sandbox
        .run(&format!("{against} --domain english:max-kl=0.001"))
        .exits(3)
        .says(&["max-kl of english"]);
    assert!(
        found.stderr.contains("beyond it") && found.stderr.contains("remedy"),
        "{}",
        found.stderr
    );
    sandbox
        .run(&format!("{against} --domain code:max-kl=1"))
        .exits(2)
        .says(&["\"code\"", "english"]);
    sandbox
        .run(&format!("{eval} --max-bytes 1MB"))
        .exits(3)
        .says(&["max-bytes is 1.00 MB", "golden/models/moe"]);
    // The earlier measurement is the golden, and another model's measurement doesn't match it.
    sandbox.write("moe.json", sandbox.run(eval).succeeds().stdout);
    sandbox.run(&format!("{eval} --golden moe.json")).succeeds();
    let dense = eval.replace("models/moe", "models/dense");
    sandbox
        .run(&format!("{dense} --golden moe.json"))
        .exits(3)
        .says(&["golden-tolerance of the loss of english"]);
    sandbox.run(&format!("{dense} --golden moe.json --golden-tolerance 9")).succeeds();
    sandbox
        .run(&format!("{} --golden moe.json", eval.replace("64", "32")))
        .exits(2)
        .says(&["moe.json", "tokens"]);
}

/// Both files are written where a gate isn't met, and report the outcome of every step.
#[test]
fn what_became_of_steps_is_written_for_ci() {
    let sandbox = sandbox(&format!(
        "{}\n[[step]]\nrun = \"verify\"\nmodel = \"${{out}}/moe\"\n",
        RECIPE.replace("max-kl = 1e-6", "max-loss-increase = -1")
    ));
    sandbox.run("run recipe.toml --junit junit.xml --summary page.md").exits(3);
    let read = |name: &str| String::from_utf8(sandbox.read(name)).unwrap();
    let (xml, page) = (read("junit.xml"), read("page.md"));
    assert!(xml.contains("tests=\"4\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{xml}");
    assert!(
        xml.contains("name=\"1. upcycle: result/moe\"")
            && xml.contains("<failure message=\"quality gate"),
        "{xml}"
    );
    for row in [
        "| 1. upcycle: result/moe |",
        "| 2. verify: result/moe |",
        "**gate not met**",
        "| not run |",
        "max-loss-increase is -1",
    ] {
        assert!(page.contains(row), "{row}: {page}");
    }
    // The page of another job is appended to it.
    sandbox.run("run recipe.toml --set out=again --summary page.md").exits(3);
    assert!(read("page.md").starts_with(&page) && read("page.md").len() > page.len());
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

/// Three seeds of two noises, each with an output of its own.
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
original = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt", "code=golden/text/code.heldout.txt"]
data-tokens = 64
"#;

#[test]
fn runs_of_a_label_are_averaged() {
    let sandbox = sandbox(MATRIX);
    let outcome = sandbox.run("run recipe.toml --json").succeeds().says(&[
        "recipe, step 1 of 13: upcycle",
        "recipe, step 13 of 13: eval; noise much, seed 2",
    ]);
    assert_eq!(sandbox.names("result").len(), 7);
    let values =
        serde_json::Deserializer::from_str(&outcome.stdout).into_iter::<serde_json::Value>();
    let values: Vec<_> = values.collect::<Result<_, _>>().unwrap();
    let seeds: Vec<_> =
        (1..7).map(|i| values[2 * i - 1]["receipt"]["options"]["seed"].clone()).collect();
    assert_eq!(seeds, [0, 1, 2, 0, 1, 2]);
    let last = values.last().unwrap();
    let kl_of_evals: Vec<_> =
        (1..7).map(|i| values[2 * i]["report"]["all"]["against"]["kl"].clone()).collect();
    let kl_of_rows: Vec<_> =
        last["summary"].as_array().unwrap().iter().map(|row| row["kl"].clone()).collect();
    assert_eq!(kl_of_rows, kl_of_evals, "every single row is kept");
    let kls: Vec<_> = kl_of_rows.iter().map(|kl| kl.as_f64().unwrap()).collect();
    let averages = last["averages"].as_array().unwrap();
    assert_eq!(
        (averages.len(), &averages[1]["label"], &averages[1]["runs"]),
        (2, &"much noise".into(), &3.into())
    );
    for (average, kls) in averages.iter().zip(kls.chunks(3)) {
        let mean = (kls[0] + kls[1] + kls[2]) / 3.0;
        let deviation = (kls.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        let close = |found: &serde_json::Value, expected: f64| {
            (found.as_f64().unwrap() / expected - 1.0).abs() < 1e-9
        };
        assert!(
            deviation > 0.0
                && close(&average["kl"]["mean"], mean)
                && close(&average["kl"]["deviation"], deviation)
        );
        assert!(
            average["domains"][1]["kl"]["deviation"].is_number()
                && average["load"]["gini"]["mean"].is_number()
        );
    }
    // Finished results stay, and the table says how many runs there were.
    let again = sandbox.run("run recipe.toml --resume --set seeds=[0,1]").succeeds();
    assert_eq!(again.stdout.matches("finished already").count(), 1 + 2 * 2);
    let table: Vec<_> =
        again.stdout.lines().filter(|line| line.starts_with("| little noise |")).collect();
    assert!(
        table[0].starts_with("| little noise | 2 | ") && table[0].matches(" ± ").count() == 3,
        "{table:?}"
    );
    assert!(
        again.stdout.contains("|  | runs | loss |")
            && again.stdout.contains("mean ± standard deviation")
    );
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
    sandbox
        .run("run recipe.toml --dry-run")
        .exits(2)
        .says(&["step 2.1 (upcycle; noise much, seed 0)", "noise-std"]);
}

#[test]
fn mistakes_in_blocks_come_before_any_step() {
    for (from, to, complaint) in [
        (
            "${noise}-${seed}\"\nexperts",
            "${noise}\"\nexperts",
            "writes to result/little, as step 2 does",
        ),
        ("noise-std = \"${std}\"\n", "", "each.noise: no step of the block uses ${std}"),
        (
            "${std}",
            "${sdt}",
            "step 2.1 (upcycle; noise little, seed 0): there is no variable \"sdt\" here",
        ),
        (
            "data-tokens = 64",
            "data-tokens = \"6${seed}\"",
            "step 2.2 (eval; noise little, seed 0): ",
        ),
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
    let written =
        guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let sandbox = sandbox(written);
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("would write ").count(), 8);
}

/// The options of every step are checked against its model before the first step runs, also where
/// earlier steps make that model.
#[test]
fn options_that_do_not_fit_a_model_come_before_any_step() {
    let upcycle = "[[step]]\nrun = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"made\"\nexperts = 4\ntop-k = 2\n";
    let data = "data = [\"golden/text/english.calibration.txt\"]\n";
    let moe = "model = \"golden/models/moe\"\noutput = \"x\"\n";
    for (step, complaints) in [
        (
            format!("run = \"prune\"\n{moe}experts = 99\n{data}"),
            vec!["step 2 (prune)", "a layer has 24 experts, so that 99 can't be kept"],
        ),
        (
            format!("run = \"prune\"\nmodel = \"made\"\noutput = \"x\"\nexperts = 1\n{data}"),
            vec!["step 2 (prune)", "goes to 2 experts"],
        ),
        (
            format!("run = \"merge\"\nmodel = \"golden/models/dense\"\noutput = \"x\"\nkeep = 0.5\n{data}"),
            vec!["step 2 (merge)", "no mixture"],
        ),
        (format!("run = \"heal\"\n{moe}train = [\"shared\"]\n{data}"), vec!["step 2 (heal)", "no shared experts"]),
        (format!("run = \"distill\"\n{moe}width = 99999\n{data}"), vec!["step 2 (distill)", "99999"]),
        (format!("run = \"upcycle\"\n{moe}experts = 4\ntop-k = 2\n"), vec!["step 2 (upcycle)", "golden/models/moe"]),
        (
            "run = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"x\"\nexperts = 4\ntop-k = 2\nlayers = \"9\"\n".to_string(),
            vec!["step 2 (upcycle)", "layer"],
        ),
        (
            format!("run = \"observe\"\nmodel = \"golden/models/dense\"\noutput = \"x\"\n{data}"),
            vec!["step 2 (observe)", "no mixture"],
        ),
        (
            format!(
                "run = \"eval\"\nmodel = \"golden/models/moe\"\noriginal = \"golden/families/llama/base/model\"\n{data}"
            ),
            vec!["step 2 (eval)", "vocabularies of 2048 and 101"],
        ),
    ] {
        let sandbox = sandbox(&format!("{upcycle}[[step]]\n{step}"));
        let outcome = sandbox.run("run recipe.toml");
        assert!(outcome.code == 1 || outcome.code == 2, "{step}: {outcome}");
        outcome.says(&complaints).says(&["remedy: "]);
        assert_eq!(sandbox.names("."), ["golden", "recipe.toml"], "{step}");
    }
}

/// An error of a step names the keys of the step, and not options of a command line.
#[test]
fn remedies_of_steps_are_for_recipes() {
    let sandbox = sandbox(
        "[[step]]\nrun = \"prune\"\nmodel = \"golden/models/moe\"\noutput = \"taken\"\ncriterion = \"random\"\nexperts = 4\n",
    );
    sandbox.write("taken/thesis.txt", "mine");
    sandbox
        .run("run recipe.toml")
        .exits(2)
        .says(&["the output exists", "put `overwrite = true` into the step"]);
}

/// An output that a step can't replace is found before the first step runs. Finished results, and
/// outputs of earlier steps, are not errors.
#[test]
fn what_is_in_the_way_of_a_later_step_is_refused_at_once() {
    let sandbox = Sandbox::with_model_and_text();
    let step = |model: &str, experts: u8, output: &str, more: &str| {
        format!(
            "[[step]]\nrun = \"prune\"\nmodel = \"{model}\"\nexperts = {experts}\ncriterion = \"random\"\n\
             output = \"{output}\"\n{more}\n"
        )
    };
    let both = |first: u8, more: &str| step("m", first, "a", more) + &step("a", 4, "b", more);
    let overwrite = "overwrite = true";
    sandbox.write("r.toml", both(6, ""));
    sandbox.write("over.toml", both(6, overwrite));
    sandbox.write("other.toml", both(5, overwrite));
    sandbox.write("last.toml", step("m", 6, "a", "") + &step("a", 3, "b", ""));
    let observe =
        "[[step]]\nrun = \"observe\"\nmodel = \"a\"\noutput = \"stats\"\ndata = [\"ids.jsonl\"]\n";
    sandbox.write("observe.toml", step("m", 6, "a", "") + observe);
    let mut problems = Vec::new();
    for (before, recipe, complaint, after) in [
        ("mkdir b; echo x >b/thesis", "r", "step 2", "true"),
        ("true", "over", "no run has written|was not written", "rm -r b"),
        ("echo x >stats", "observe", "step 2", "rm stats"),
        ("moe-convert run r.toml -q; rm -r a", "last", "other options", "true"),
        ("moe-convert run r.toml -q; echo x >b/notes", "other", "b/notes", "rm b/notes; rm -r a b"),
    ] {
        sandbox.shell(before).exits(0);
        for how in ["", "--dry-run"] {
            let complaint = complaint.split('|').next_back().unwrap();
            problems.extend(sandbox.refuses(
                &format!("run {recipe}.toml {how}"),
                2,
                &[complaint, "step 2"],
            ));
        }
        sandbox.shell(after).exits(0);
    }
    assert_none(&problems);
    // An input that was removed to save space is made again, and results made from it are kept.
    sandbox.run("run r.toml -q").succeeds();
    sandbox.shell("rm -r a").succeeds();
    let again = sandbox.run("run r.toml").succeeds();
    assert!(again.stdout.contains("b is finished already"), "{again}");
    sandbox.run("run other.toml -q").succeeds();
}
