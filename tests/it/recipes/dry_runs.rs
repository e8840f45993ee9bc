//! Tests that dry runs write nothing and find what would stop the run.

use super::{RECIPE, SHARED, sandbox};
use crate::common::{Sandbox, step};

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

/// What is wrong for the model is found before any step runs, and said in keys of the step.
#[test]
fn advice_about_a_model_names_keys() {
    let sandbox = Sandbox::new();
    let (dense, moe) = ("golden/models/dense", "golden/models/moe");
    let text = "data = [\"golden/text/english.heldout.txt\"]\noutput = \"out\"\n";
    for (run, model, keys, said) in [
        ("upcycle", dense, "experts = 2\ntop-k = 1\ntarget = \"foo\"", "give `target` mixtral"),
        ("upcycle", dense, "experts = 2\ntop-k = 1\nlayers = \"99\"", "`layers` names layer 99"),
        ("prune", moe, "experts = 5\ncriterion = \"exhaustive\"", "another `criterion`"),
        ("prune", moe, "keep-mass = 0.1", "give `stats` STATS"),
        ("quantize", moe, "group-size = 5", "give `group-size` 128"),
        ("quantize", moe, "target-bits = 1", "`profile` free"),
        ("distill", moe, "width = 100000", "`width` 100000"),
        ("heal", moe, "train = [\"shared\"]", "out of `train`"),
    ] {
        let text = if run == "upcycle" { "output = \"out\"\n" } else { text };
        sandbox.write("r.toml", step(run, model, &format!("{text}{keys}")));
        let outcome = sandbox.run("run r.toml --dry-run").exits(2).says(&["step 1", said]);
        assert!(!outcome.stderr.contains("--"), "{outcome}");
    }
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
