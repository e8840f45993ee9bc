//! Tests that a recipe fails where a gate isn't met, and that CI is told so.

use super::{RECIPE, sandbox};

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
    let failed = sandbox.run(&format!("{eval} --max-kl 1e-6 --json")).exits(3);
    assert!(failed.stdout.contains("\"gate\": \"max-kl\""), "{failed}");
    let met = sandbox.run(&format!("{eval} --max-kl 100")).succeeds();
    assert!(met.stdout.contains("gates met: max-kl is 100.000000, measured 0."), "{}", met.stdout);
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
    for part in ["name=\"1. upcycle: result/moe\"", "<failure message=\"quality gate"] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let rows = ["| 1. upcycle: result/moe |", "| 2. verify: result/moe |", "| not run |"];
    for row in rows.into_iter().chain(["**gate not met**", "max-loss-increase is -1"]) {
        assert!(page.contains(row), "{row}: {page}");
    }
    // The page of another job is appended to it.
    sandbox.run("run recipe.toml --set out=again --summary page.md").exits(3);
    assert!(read("page.md").starts_with(&page) && read("page.md").len() > page.len());
}
