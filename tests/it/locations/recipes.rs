//! Tests that the steps and reports of a recipe replace nothing that it reads or makes.

use std::os::unix::fs::symlink;

use super::{INSIDE, OF_THE_MODEL, sandbox};
use crate::common::{Sandbox, assert_none, step};

/// A sandbox with a recipe that prunes and heals.
fn with_recipe() -> Sandbox {
    let sandbox = sandbox();
    let text = "data = [\"ids.jsonl\"]\nsequence-length = 64\n";
    let pruned =
        "output = \"made/pruned\"\nkeep = 0.5\nplan-out = \"plan.json\"\ndata-tokens = 64\n";
    let healed = "output = \"made/healed\"\nsteps = 2\nbatch-tokens = 64\n";
    let prune = step("prune", "m", &format!("{pruned}{text}"));
    let heal = step("heal", "made/pruned", &format!("{healed}{text}"));
    sandbox.write("recipe.toml", prune + &heal);
    sandbox
}

#[test]
fn reports_of_a_recipe_replace_nothing_that_it_reads_or_makes() {
    let sandbox = with_recipe();
    symlink("recipe.toml", sandbox.path("to-recipe")).unwrap();
    let inputs = [&OF_THE_MODEL[..], &["recipe.toml", "to-recipe", "ids.jsonl", "hard.jsonl"]];
    let made = [
        "made/pruned",
        "made/pruned/report.xml",
        "made/healed.training",
        "made/healed.training/x",
        "plan.json",
        "made",
    ];
    for option in ["--junit", "--summary", "--overwrite --junit", "--dry-run --junit"] {
        let line = |path: &&str| format!("run recipe.toml {option} {path}");
        let over_inputs: Vec<_> = inputs.concat().iter().map(line).collect();
        sandbox.must_refuse_all(&over_inputs, 2, &INSIDE);
        sandbox.must_refuse_all(&made.each_ref().map(line), 2, &["two outputs"]);
    }
    sandbox.must_refuse("run recipe.toml --junit report --summary ./report", 2, &["two outputs"]);
}

/// A recipe that can't be parsed names no inputs, so the files around a report decide.
#[test]
fn reports_of_a_recipe_that_cannot_be_parsed_replace_nothing_around_them() {
    let sandbox = sandbox();
    sandbox.write("broken.toml", "x = [");
    sandbox.shell("mkdir -p m/sub/deep; ln -s m/sub by-link").succeeds();
    for path in ["m/x.md", "m/sub/x.md", "m/sub/deep/x.md", "by-link/x.md", "broken.toml"] {
        let lines = ["--junit", "--summary"].map(|how| format!("run broken.toml {how} {path}"));
        sandbox.must_refuse_all(&lines, 2, &["TOML"]);
    }
}

#[test]
fn summaries_are_appended_to_markdown_alone() {
    let sandbox = with_recipe();
    sandbox.write("thesis.tex", "years");
    sandbox.write("notes.json", "{}");
    symlink("thesis.tex", sandbox.path("to-thesis.md")).unwrap();
    for (file, complaint) in [
        ("thesis.tex", "Markdown"),
        ("notes.json", "Markdown"),
        ("hard", "inside"),
        ("held", "directory"),
        ("to-thesis.md", "is a link"),
    ] {
        sandbox.must_refuse(&format!("run recipe.toml --summary {file}"), 2, &[complaint]);
    }
    sandbox.write("notes.md", "# Notes\n");
    sandbox.run("run recipe.toml --junit report.xml --summary notes.md").succeeds();
    assert!(sandbox.read("notes.md").starts_with(b"# Notes\n## recipe"));
}

fn prune(model: &str, output: &str) -> String {
    let keys = "overwrite = true\nkeep = 0.5\ncriterion = \"random\"";
    step("prune", model, &format!("output = {output:?}\n{keys}"))
}

fn heal(model: &str, output: &str) -> String {
    let keys = "overwrite = true\ndata = [\"held/out.jsonl\"]\nsteps = 2\nbatch-tokens = 64\n\
                sequence-length = 64";
    step("heal", model, &format!("output = {output:?}\n{keys}"))
}

/// No step overwrites an input of another step that no step makes.
#[test]
fn steps_keep_what_other_steps_read() {
    let sandbox = sandbox();
    sandbox.shell("cp -r m result; cp -r m a.training").succeeds();
    let mut problems = Vec::new();
    for (recipe, complaint) in [
        // The path is a source of an earlier or a later step.
        (prune("m", "b") + &prune("b", "m"), "inside an input"),
        (prune("m", "result") + &prune("result", "c") + &prune("m", "m/b"), "inside an input"),
        (prune("m", "held") + &heal("m", "b"), "inside an input"),
        (heal("m", "a") + &prune("a.training", "b"), "inside an input"),
        (prune("m", "link/x") + &prune("m", "c"), "inside an input"),
        // The results contain each other, or have the same path.
        (prune("m", "b") + &prune("m", "b/c"), "two outputs"),
        (heal("m", "a2") + &prune("m", "a2.training"), "two outputs"),
        (prune("m", "b") + &prune("m", "./b"), "two outputs"),
    ] {
        sandbox.write("recipe.toml", &recipe);
        for how in ["", "--dry-run", "--fresh"] {
            let refused = sandbox.refuses(&format!("run recipe.toml {how}"), 2, &[complaint]);
            problems.extend(refused.map(|problem| format!("{recipe}\n{problem}")));
        }
    }
    assert_none(&problems);
}
