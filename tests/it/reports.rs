//! Tests recipes that can't run, or whose results exist already: their reports and messages.

use crate::common::{Sandbox, assert_none};

const STEP: &str =
    "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"out\"\ncriterion = \"random\"\n";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("families/qwen3_moe/base/model", "m");
    sandbox
}

/// Asserts that a refused recipe leaves a report with an error that says `words`.
#[track_caller]
fn refused_with_junit(text: &str, words: &str) {
    let sandbox = sandbox();
    sandbox.write("r.toml", text);
    let outcome = sandbox.run("run r.toml --junit report.xml");
    assert!(outcome.code != 0, "{outcome}");
    let junit = String::from_utf8(sandbox.read("report.xml")).unwrap();
    for part in ["tests=\"1\"", "errors=\"1\"", "<error message=", words] {
        assert!(junit.contains(part), "{part}: {junit}");
    }
}

#[test]
fn a_recipe_that_is_refused_leaves_junit() {
    refused_with_junit("nonsense", "TOML parse error");
    let unknown = "[[step]]\nrun = \"fly\"\nmodel = \"m\"\n";
    refused_with_junit(unknown, "no command &quot;fly&quot;");
    refused_with_junit(&format!("{STEP}experts = 0\n"), "leaves no expert");
    let nowhere = STEP.replace("\"m\"", "\"nowhere\"");
    refused_with_junit(&format!("{nowhere}experts = 2\n"), "no earlier step writes");
    refused_with_junit(&format!("{STEP}experts = 400\n"), "400 can");
    let threads = format!("[defaults]\nthreads = 3\n{STEP}experts = 4\n");
    refused_with_junit(&threads, "give --threads 3 to moe-convert run");
}

/// A file that isn't a report stays, whatever is wrong with the recipe.
#[test]
fn no_report_of_a_recipe_that_is_refused_replaces_other_files() {
    let sandbox = sandbox();
    sandbox.write("r.toml", "nonsense");
    sandbox.write("mine.xml", "years of work");
    sandbox.must_refuse("run r.toml --junit mine.xml --overwrite", 2, &["TOML"]);
    sandbox.must_refuse("run r.toml --junit r.toml --overwrite", 2, &["TOML"]);
}

/// The inputs of a recipe aren't known until it is parsed.
#[test]
fn reports_of_a_recipe_that_cannot_be_read_go_to_no_input() {
    let sandbox = sandbox();
    sandbox.run("prune m -o made --experts 4 --criterion random").succeeds();
    sandbox.write("r.md", "nonsense");
    sandbox.shell("ln r.md hard.md; ln -s m link").succeeds();
    let inputs = ["r.md", "./r.md", "hard.md", "m/new.md", "link/new.md"];
    for option in ["--summary", "--junit", "--overwrite --junit"] {
        for path in inputs.into_iter().chain(["made/README.md", "made/new.md"]) {
            sandbox.must_refuse(&format!("run r.md {option} {path}"), 2, &["TOML"]);
        }
    }
    sandbox.write("r.md", format!("{STEP}experts = 4\n"));
    for option in ["--summary", "--junit"] {
        let line = format!("run r.md {option} made/new.md");
        sandbox.must_refuse(&line, 2, &["outside of models and results"]);
    }
    sandbox.run("run r.md --summary s.md --junit j.xml").succeeds();
}

/// A pipe whose reader would be gone when the work is done is opened before it.
#[test]
fn a_pipe_for_a_report_is_opened_before_the_steps() {
    let sandbox = sandbox();
    sandbox.write("r.toml", format!("{STEP}experts = 4\n"));
    sandbox.shell("mkfifo j").succeeds();
    sandbox.must_refuse("run r.toml --junit j", 2, &["nobody reads"]);
    sandbox
        .shell(&format!(
            "for i in $(seq 50); do cat j >j.xml & reader=$!; sleep 0.1; '{}' run r.toml --junit j -q && break; \
             kill $reader; wait; done; wait",
            crate::common::BINARY
        ))
        .succeeds();
    assert!(String::from_utf8_lossy(&sandbox.read("j.xml")).contains("<testsuites"));
}

#[test]
fn reports_name_no_folders_of_the_machine() {
    let sandbox = sandbox();
    let here = sandbox.path("").canonicalize().unwrap();
    let here = here.to_string_lossy();
    let here = here.trim_end_matches('/');
    sandbox.write("r.toml", format!("[[step]]\nrun = \"verify\"\nmodel = \"{here}/m\"\n"));
    let weights = sandbox.path("m/model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(weights).unwrap();
    file.set_len(999).unwrap();
    sandbox.run("run r.toml --junit j.xml --summary s.md").exits(1);
    for report in ["j.xml", "s.md"] {
        let text = String::from_utf8(sandbox.read(report)).unwrap();
        assert!(text.contains("m/model.safetensors") && !text.contains(here), "{text}");
    }
}

/// Where a result that isn't the step's is in the way, the error says how it differs, both before
/// the run and in it.
#[test]
fn a_result_in_the_way_says_how_it_differs() {
    let sandbox = sandbox();
    let step = format!("{STEP}experts = 4\n");
    sandbox.write("r.toml", &step);
    sandbox.run("run r.toml").succeeds();
    for (keys, words) in [
        ("max-shard-size = \"20kB\"\n", "was made with other options (max-shard-size)"),
        ("probe-tokens = 3\n", "was made with other options (probe-tokens)"),
        ("seed = 1\n", "was made with other options (seed)"),
    ] {
        sandbox.write("r.toml", format!("{step}{keys}"));
        let complaints = [words, "out", "overwrite = true"];
        sandbox.must_refuse_all(&["run r.toml", "run r.toml --dry-run"], 2, &complaints);
    }
    sandbox.write("r.toml", &step);
    sandbox.run("run r.toml --dry-run").succeeds();
}

#[test]
fn a_result_that_is_not_the_one_to_resume_says_how_it_differs() {
    let sandbox = sandbox();
    let prune = "prune -o out --criterion random --experts 4";
    sandbox.run(&format!("{prune} m")).succeeds();
    let with_dtype = format!("{prune} m --resume --dtype bf16");
    sandbox.must_refuse(&with_dtype, 2, &["was made with other options (dtype)"]);
    let of_another = format!("{prune} golden/families/qwen3_moe/both_names/model --resume");
    sandbox.must_refuse(&of_another, 2, &["was made of another checkpoint"]);
}

/// A dry run checks the outputs of observe like those of passes.
#[test]
fn a_dry_run_plans_observe() {
    let sandbox = Sandbox::with_model_and_text();
    let step =
        "[[step]]\nrun = \"observe\"\nmodel = \"m\"\noutput = \"stats\"\ndata = [\"ids.jsonl\"]\n";
    sandbox.write("r.toml", step);
    sandbox.run("run r.toml --dry-run").succeeds().says(&["would write stats"]);
    assert!(!sandbox.path("stats").exists());
    sandbox.run("run r.toml").succeeds();
    let there = sandbox.run("run r.toml --dry-run").succeeds();
    assert!(there.stdout.contains("stats"), "{}", there.stdout);
    sandbox.write("r.toml", format!("{step}sequence-length = 16\n"));
    let problems =
        sandbox.refuses("run r.toml --dry-run", 2, &["stats", "exists", "overwrite = true"]);
    assert_none(&Vec::from_iter(problems));
}

/// Sizes without a unit are bytes, and a user rarely means so few.
#[test]
fn a_shard_has_room_for_a_tensor() {
    let sandbox = sandbox();
    let prune = "prune m -o out --criterion random --experts 4 --max-shard-size";
    let problems = ["2", "5", "999"].map(|size| {
        sandbox.refuses(
            &format!("{prune} {size}"),
            2,
            &["a file of its own", &format!("such as {size}GB")],
        )
    });
    assert_none(&problems.into_iter().flatten().collect::<Vec<_>>());
    sandbox.run(&format!("{prune} 1kB --dry-run")).succeeds();
}
