//! Tests that the steps and reports of a recipe replace nothing that it reads or makes.

use std::os::unix::fs::symlink;

use super::{INSIDE, OF_THE_MODEL, sandbox};
use crate::common::assert_none;

#[test]
fn reports_of_a_recipe_replace_nothing_that_it_reads_or_makes() {
    let sandbox = sandbox();
    let recipe = format!(
        "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"made/pruned\"\nkeep = 0.5\nplan-out = \"plan.json\"\n\
         data = [\"ids.jsonl\"]\n{}\n[[step]]\nrun = \"heal\"\nmodel = \"made/pruned\"\noutput = \"made/healed\"\n\
         data = [\"ids.jsonl\"]\nsteps = 2\nbatch-tokens = 64\nsequence-length = 64\n",
        "data-tokens = 64\nsequence-length = 64"
    );
    sandbox.write("recipe.toml", recipe);
    symlink("recipe.toml", sandbox.path("to-recipe")).unwrap();
    let inputs =
        OF_THE_MODEL.iter().chain(&["recipe.toml", "to-recipe", "ids.jsonl", "hard.jsonl"]);
    let made = [
        "made/pruned",
        "made/pruned/report.xml",
        "made/healed.training",
        "made/healed.training/x",
        "plan.json",
        "made",
    ];
    let mut problems = Vec::new();
    for option in ["--junit", "--summary", "--overwrite --junit", "--dry-run --junit"] {
        for path in inputs.clone() {
            problems.extend(sandbox.refuses(
                &format!("run recipe.toml {option} {path}"),
                2,
                &INSIDE,
            ));
        }
        for path in made {
            problems.extend(sandbox.refuses(
                &format!("run recipe.toml {option} {path}"),
                2,
                &["two outputs"],
            ));
        }
    }
    problems.extend(sandbox.refuses(
        "run recipe.toml --junit report --summary ./report",
        2,
        &["two outputs"],
    ));
    // A recipe that can't be parsed names no inputs, so the files around a report decide.
    sandbox.write("broken.toml", "x = [");
    sandbox.shell("mkdir -p m/sub/deep; ln -s m/sub by-link").succeeds();
    for path in ["m/x", "m/sub/x", "m/sub/deep/x", "by-link/x", "broken.toml"] {
        for option in ["--junit", "--summary"] {
            let line = format!(
                "run broken.toml {option} {path}{}",
                if path.ends_with('x') { ".md" } else { "" }
            );
            problems.extend(sandbox.refuses(&line, 2, &["TOML"]));
        }
    }
    // A summary is appended to Markdown only.
    sandbox.write("thesis.tex", "years");
    sandbox.write("notes.json", "{}");
    for (file, complaint) in [
        ("thesis.tex", "Markdown"),
        ("notes.json", "Markdown"),
        ("hard", "inside"),
        ("held", "directory"),
    ] {
        problems.extend(sandbox.refuses(
            &format!("run recipe.toml --summary {file}"),
            2,
            &[complaint],
        ));
    }
    symlink("thesis.tex", sandbox.path("to-thesis.md")).unwrap();
    problems.extend(sandbox.refuses("run recipe.toml --summary to-thesis.md", 2, &["is a link"]));
    assert_none(&problems);
    sandbox.write("notes.md", "# Notes\n");
    sandbox.run("run recipe.toml --junit report.xml --summary notes.md").succeeds();
    assert!(sandbox.read("notes.md").starts_with(b"# Notes\n## recipe"));
}

/// No step overwrites an input of another step that no step makes.
#[test]
fn steps_keep_what_other_steps_read() {
    let sandbox = sandbox();
    let prune = |model: &str, output: &str| {
        format!(
            "[[step]]\nrun = \"prune\"\nmodel = \"{model}\"\noutput = \"{output}\"\noverwrite = true\nkeep = 0.5\n\
             criterion = \"random\"\n"
        )
    };
    let heal = |model: &str, output: &str| {
        format!(
            "[[step]]\nrun = \"heal\"\nmodel = \"{model}\"\noutput = \"{output}\"\noverwrite = true\ndata = [\"held/out.jsonl\"]\n\
             steps = 2\nbatch-tokens = 64\nsequence-length = 64\n"
        )
    };
    sandbox
        .shell("cp -r m result; cp -r m a.training; cp moe-convert.json result 2>/dev/null; true")
        .succeeds();
    let cases = [
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
    ];
    let mut problems = Vec::new();
    for (recipe, complaint) in cases {
        sandbox.write("recipe.toml", &recipe);
        for how in ["", "--dry-run", "--fresh"] {
            let refused = sandbox.refuses(&format!("run recipe.toml {how}"), 2, &[complaint]);
            problems.extend(refused.map(|problem| format!("{recipe}\n{problem}")));
        }
    }
    assert_none(&problems);
}
