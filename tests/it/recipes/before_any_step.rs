//! Tests that what would stop a later step is said before the first step runs.

use super::{RECIPE, sandbox};
use crate::common::{Sandbox, step};

/// An input that only the last step needs is missed before the first step runs.
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
}

/// All files that passes name must exist.
#[test]
fn missing_text_is_said_before_any_step() {
    const TEXT: &str = "data = [\"golden/text/english.calibration.txt\"]";
    for (run, keys) in [
        ("upcycle", "experts = 4\ntop-k = 2\nrouter = \"prompts\"\nprompts = \"none.txt\""),
        ("prune", "keep = 0.5\ndata = [\"none.txt\"]"),
        ("merge", &format!("keep = 0.5\n{TEXT}\nheld-out = [\"x=none.txt\"]")),
        ("quantize", &format!("{TEXT}\npool = [\"none.txt\"]")),
        ("distill", "data = [\"none.txt\"]"),
        ("heal", "data = [\"none.txt\"]"),
    ] {
        let step = step(run, "${out}/moe", &format!("output = \"${{out}}/{run}\"\n{keys}"));
        let sandbox = sandbox(&format!("{RECIPE}\n{step}"));
        let named = format!("({run})");
        let words = ["none.txt", "no earlier step writes", &named];
        sandbox.run("run recipe.toml").exits(1).says(&words);
        assert!(!sandbox.path("result").exists());
    }
}

#[test]
fn reports_without_a_place_are_said_before_any_step() {
    let sandbox = sandbox(RECIPE);
    for option in ["--junit", "--summary"] {
        let line = format!("run recipe.toml {option} nowhere/x");
        sandbox.run(&line).exits(2).says(&["nowhere/x", option]);
    }
    assert!(!sandbox.path("result").exists());
}

/// The options of every step are checked against its model before the first step runs, also where
/// earlier steps make that model.
#[test]
fn options_that_do_not_fit_a_model_come_before_any_step() {
    let data = "data = [\"golden/text/english.calibration.txt\"]";
    let (dense, moe) = ("golden/models/dense", "golden/models/moe");
    let made = step("upcycle", dense, "output = \"made\"\nexperts = 4\ntop-k = 2");
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("prune", moe, "experts = 99", &["a layer has 24 experts, so that 99 can't be kept"]),
        ("prune", "made", "experts = 1", &["goes to 2 experts"]),
        ("merge", dense, "keep = 0.5", &["no mixture"]),
        ("heal", moe, "train = [\"shared\"]", &["no shared experts"]),
        ("distill", moe, "width = 99999", &["99999"]),
        ("observe", dense, "", &["no mixture"]),
    ];
    for (run, model, keys, words) in cases {
        let keys = format!("output = \"x\"\n{keys}\n{data}");
        stopped_at_step_2(&made, &step(run, model, &keys), run, words);
    }
    let eval = format!("original = \"golden/families/llama/base/model\"\n{data}");
    stopped_at_step_2(&made, &step("eval", moe, &eval), "eval", &["vocabularies of 2048 and 101"]);
    let upcycle = "output = \"x\"\nexperts = 4\ntop-k = 2\n";
    stopped_at_step_2(&made, &step("upcycle", moe, upcycle), "upcycle", &[moe]);
    let layers = format!("{upcycle}layers = \"9\"");
    stopped_at_step_2(&made, &step("upcycle", dense, &layers), "upcycle", &["layer"]);
}

/// Asserts that the step `second`, which is `run`, is refused before the step `first` begins.
#[track_caller]
fn stopped_at_step_2(first: &str, second: &str, run: &str, words: &[&str]) {
    let sandbox = sandbox(&format!("{first}{second}"));
    let outcome = sandbox.run("run recipe.toml");
    assert!(outcome.code == 1 || outcome.code == 2, "{second}: {outcome}");
    outcome.says(words).says(&["remedy: ", &format!("step 2 ({run})")]);
    assert_eq!(sandbox.names("."), ["golden", "recipe.toml"], "{second}");
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

fn prune(model: &str, experts: u8, output: &str, more: &str) -> String {
    let keys = format!("experts = {experts}\ncriterion = \"random\"\noutput = {output:?}\n{more}");
    step("prune", model, &keys)
}

/// A sandbox with recipes that prune twice, or prune and observe.
fn with_recipes() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    let both = |first: u8, more: &str| prune("m", first, "a", more) + &prune("a", 4, "b", more);
    sandbox.write("r.toml", both(6, ""));
    sandbox.write("over.toml", both(6, "overwrite = true"));
    sandbox.write("other.toml", both(5, "overwrite = true"));
    sandbox.write("last.toml", prune("m", 6, "a", "") + &prune("a", 3, "b", ""));
    let observe = step("observe", "a", "output = \"stats\"\ndata = [\"ids.jsonl\"]");
    sandbox.write("observe.toml", prune("m", 6, "a", "") + &observe);
    sandbox
}

/// An output that a step can't replace is found before the first step runs.
#[test]
fn what_is_in_the_way_of_a_later_step_is_refused_at_once() {
    let sandbox = with_recipes();
    for (before, recipe, complaint, after) in [
        ("mkdir b; echo x >b/thesis", "r", "step 2", "true"),
        ("true", "over", "was not written", "rm -r b"),
        ("echo x >stats", "observe", "step 2", "rm stats"),
        ("moe-convert run r.toml -q; rm -r a", "last", "other options", "true"),
        ("moe-convert run r.toml -q; echo x >b/notes", "other", "b/notes", "rm b/notes; rm -r a b"),
    ] {
        sandbox.shell(before).exits(0);
        for how in ["", "--dry-run"] {
            let line = format!("run {recipe}.toml {how}");
            sandbox.must_refuse(&line, 2, &[complaint, "step 2"]);
        }
        sandbox.shell(after).exits(0);
    }
}

/// An input that was removed to save space is made again, and results made from it are kept.
#[test]
fn finished_results_and_outputs_of_earlier_steps_are_not_in_the_way() {
    let sandbox = with_recipes();
    sandbox.run("run r.toml -q").succeeds();
    sandbox.shell("rm -r a").succeeds();
    let again = sandbox.run("run r.toml").succeeds();
    assert!(again.stdout.contains("b is finished already"), "{again}");
    sandbox.run("run other.toml -q").succeeds();
}
