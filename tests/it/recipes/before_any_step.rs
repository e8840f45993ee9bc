//! Tests that what would stop a later step is said before the first step runs.

use super::{RECIPE, sandbox};
use crate::common::{Sandbox, assert_none};

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
