//! Tests that no output of a command replaces, contains, or lies in one of its inputs, under
//! whatever names; and that existing files are replaced only on request, by files of their kind,
//! and without losing files of the user.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{Sandbox, assert_none};

/// A small model `m` with a link, hard links, and text without words.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("families/qwen3_moe/base/model", "m");
    let line = |start: usize| {
        format!("{{\"input_ids\":{:?}}}\n", (0..40).map(|i| (start + i) % 100).collect::<Vec<_>>())
    };
    for name in ["ids.jsonl", "held/out.jsonl", "corpus/pool.jsonl"] {
        sandbox.write(name, (0..8).map(|i| line(7 * i)).collect::<String>());
    }
    sandbox.write("ids.json", "[[1,2,3]]");
    symlink("m", sandbox.path("link")).unwrap();
    for (from, to) in
        [("m/model.safetensors", "hard"), ("ids.jsonl", "hard.jsonl"), ("ids.json", "hard.json")]
    {
        fs::hard_link(sandbox.path(from), sandbox.path(to)).unwrap();
    }
    sandbox
}

const TEXT: &str = "--data ids.jsonl --data-tokens 128 --sequence-length 64";
const INSIDE: [&str; 1] = ["inside an input"];

/// Names of the model `m`, of a file in it, or of a file that would lie in it.
const OF_THE_MODEL: [&str; 8] = [
    "m/model.safetensors",
    "m/config.json",
    "link/config.json",
    "hard",
    "m/new.json",
    "link/deep/../new.json",
    "held/../m/config.json",
    "nowhere/../m/new",
];

#[test]
fn no_single_file_replaces_an_input_or_lies_in_one() {
    let sandbox = sandbox();
    let mut lines = Vec::new();
    for output in
        OF_THE_MODEL.iter().chain(&["ids.jsonl", "hard.jsonl", "held/../ids.jsonl", "link", "m"])
    {
        for how in ["", "--overwrite", "--dry-run", "--dry-run --overwrite"] {
            lines.push(format!("prune m -o out --keep 0.5 {TEXT} --plan-out {output} {how}"));
        }
        for how in ["", "--overwrite"] {
            lines.push(format!("observe m -o {output} {TEXT} {how}"));
        }
    }
    for output in OF_THE_MODEL.iter().chain(&["ids.json", "hard.json"]) {
        lines.push(format!("logits m --tokens ids.json -o {output} --overwrite"));
    }
    sandbox.run(&format!("observe m -o stats {TEXT}")).succeeds();
    fs::hard_link(sandbox.path("stats"), sandbox.path("hard.stats")).unwrap();
    for output in ["stats", "hard.stats", "./stats"] {
        lines.push(format!("observe m -o {output} --add stats --overwrite"));
        lines.push(format!(
            "prune m -o out --keep 0.5 --stats stats --plan-out {output} --overwrite"
        ));
    }
    lines.push(format!(
        "prune m -o out --keep 0.5 {TEXT} --held-out held/out.jsonl --plan-out held/out.jsonl"
    ));
    assert_none(
        &lines.iter().filter_map(|line| sandbox.refuses(line, 2, &INSIDE)).collect::<Vec<_>>(),
    );
    // Both outputs have the same place.
    let lines = ["out", "out/plan.json", "./out", ".out.partial-moe-convert/plan.json"];
    let lines = lines.map(|plan| format!("prune m -o out --keep 0.5 {TEXT} --plan-out {plan}"));
    assert_none(
        &lines
            .iter()
            .filter_map(|line| sandbox.refuses(line, 2, &["two outputs"]))
            .collect::<Vec<_>>(),
    );
}

/// A training is saved in OUT.training, and a result lies under hidden names until it is complete.
#[test]
fn no_folder_of_an_output_is_an_input_or_holds_one() {
    let sandbox = sandbox();
    sandbox
        .shell("cp -r m out.training; cp -r m .out.partial-moe-convert; cp -r m .out.replaced-moe-convert")
        .succeeds();
    sandbox.shell("mkdir -p text.training && cp ids.jsonl text.training/ids.jsonl").succeeds();
    symlink("m", sandbox.path("linked.training")).unwrap();
    let short = "--steps 2 --batch-tokens 64 --sequence-length 64";
    let mut lines = Vec::new();
    for how in ["", "--overwrite", "--resume", "--overwrite --dry-run"] {
        lines.extend([
            format!("heal out.training -o out --data ids.jsonl {short} {how}"),
            format!("heal m -o out --original out.training --data ids.jsonl {short} {how}"),
            format!("heal m -o text --data text.training/ids.jsonl {short} {how}"),
            format!("heal m -o text --data ids.jsonl --held-out text.training/ids.jsonl {short} {how}"),
            format!("heal m -o linked --data ids.jsonl {short} {how}"),
            format!("distill out.training -o out --width 32 --steps 2 {TEXT} {how}"),
            format!("distill m -o text --width 32 --steps 2 --data text.training/ids.jsonl {how}"),
            format!("prune .out.partial-moe-convert -o out --keep 0.5 --criterion random {how}"),
            format!("prune .out.replaced-moe-convert -o out --keep 0.5 --criterion random {how}"),
            format!("quantize m -o corpus --scheme w4a16 --group-size 8 {TEXT} --pool corpus/pool.jsonl {how}"),
            format!("prune m -o held --keep 0.5 {TEXT} --held-out held/out.jsonl {how}"),
        ]);
    }
    assert_none(
        &lines.iter().filter_map(|line| sandbox.refuses(line, 2, &INSIDE)).collect::<Vec<_>>(),
    );
}

#[test]
fn what_lies_in_the_folder_of_a_training_is_never_lost() {
    let sandbox = sandbox();
    sandbox.write("thesis.tex", "years");
    let lines = ["", "--overwrite", "--resume"].into_iter().flat_map(|how| {
        [
            format!("heal m -o out --data ids.jsonl --steps 2 --batch-tokens 64 --sequence-length 64 {how}"),
            format!("distill m -o out --width 32 --steps 2 {TEXT} {how}"),
        ]
    });
    let lines: Vec<String> = lines.collect();
    let mut problems = Vec::new();
    for (make, named) in [
        ("mkdir out.training; cp thesis.tex out.training", "thesis.tex"),
        ("mkdir -p out.training/notes", "notes"),
        ("mkdir out.training; ln -s ../thesis.tex out.training/training.jsonl", "training.jsonl"),
        (
            "mkdir out.training; ln -s ../thesis.tex out.training/state.safetensors",
            "state.safetensors",
        ),
        ("mkdir out.training; ln -s ../thesis.tex out.training/of", "of"),
        ("mkdir out.training; cp thesis.tex out.training/trained.0", "trained.0"),
        ("cp thesis.tex out.training", "out.training"),
        ("mkdir other; ln -s other out.training", "out.training"),
        ("ln -s nowhere out.training", "out.training"),
    ] {
        sandbox.shell(make).succeeds();
        problems.extend(lines.iter().filter_map(|line| sandbox.refuses(line, 2, &[named])));
        sandbox.shell("rm -rf out.training other").succeeds();
    }
    assert_none(&problems);
    // An empty folder has nothing to lose.
    sandbox.shell("mkdir out.training").succeeds();
    sandbox.run(&lines[0]).succeeds();
    assert!(!sandbox.path("out.training").exists());
}

#[test]
fn files_replace_their_own_kind_alone() {
    let sandbox = sandbox();
    let writers = [
        ("stats", format!("observe m -o FILE {TEXT}"), "statistics"),
        ("logits", "logits m --tokens ids.json -o FILE".to_owned(), "logits"),
        ("plan", format!("prune m -o out --keep 0.5 {TEXT} --dry-run --plan-out FILE"), "a plan"),
        ("junit", "run recipe.toml --junit FILE".to_owned(), "JUnit XML"),
    ];
    sandbox.write("recipe.toml", "[[step]]\nrun = \"verify\"\nmodel = \"m\"\n");
    let line = |index: usize, file: &str| writers[index].1.replace("FILE", file);
    for (index, (file, ..)) in writers.iter().enumerate() {
        sandbox.run(&line(index, file)).succeeds();
        sandbox.write("empty", "");
        sandbox.run(&line(index, "empty")).succeeds();
        assert!(!sandbox.read("empty").is_empty());
    }
    sandbox.write("thesis.tex", "years");
    sandbox.write("other.json", "{\"layers\": 3, \"keep\": []}");
    symlink("thesis.tex", sandbox.path("to-thesis")).unwrap();
    symlink("nowhere", sandbox.path("dangling")).unwrap();
    let mut problems = Vec::new();
    for (index, (own, _, content)) in writers.iter().enumerate() {
        for how in ["", "--overwrite"] {
            let others = writers.iter().map(|(file, ..)| *file).filter(|file| file != own);
            for other in others.chain(["thesis.tex", "other.json", "hard", "out.bin"]) {
                sandbox.write("out.bin", [0, 159, 146, 150]);
                let line = format!("{} {how}", line(index, other));
                // `hard` is a name of the model, which some of these commands don't read.
                let complaint = if other == "hard" { "remedy" } else { content };
                problems.extend(sandbox.refuses(&line, 2, &[complaint]));
            }
            for link in ["to-thesis", "dangling"] {
                problems.extend(sandbox.refuses(
                    &format!("{} {how}", line(index, link)),
                    2,
                    &["is a link"],
                ));
            }
            problems.extend(sandbox.refuses(
                &format!("{} {how}", line(index, "held")),
                2,
                &["is a directory"],
            ));
            // Text may go to a device: see `replaced.rs`.
            if ["statistics", "logits"].contains(content) {
                problems.extend(sandbox.refuses(
                    &format!("{} {how}", line(index, "/dev/null")),
                    2,
                    &["regular file"],
                ));
            }
        }
        problems.extend(sandbox.refuses(&line(index, own), 2, &["exists", "--overwrite"]));
    }
    assert_none(&problems);
    for (index, (own, ..)) in writers.iter().enumerate() {
        sandbox.run(&format!("{} --overwrite", line(index, own))).succeeds();
    }
}

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

/// A result is replaced only if all files in it were written by a run.
#[test]
fn overwrite_keeps_what_no_run_has_written() {
    let sandbox = sandbox();
    let line = "prune m -o out --keep 0.5 --criterion random";
    sandbox.run(line).succeeds();
    let mut problems = Vec::new();
    let again = format!("{line} --seed 1 --overwrite");
    for foreign in ["out/thesis.tex", "out/notes/thesis.tex", "out/model.gguf", "out/.hidden"] {
        sandbox.write(foreign, "years");
        let named = foreign.split('/').nth(1).unwrap();
        for how in ["", "--dry-run", "--resume"] {
            problems.extend(sandbox.refuses(
                &format!("{again} {how}"),
                2,
                &[named, "--overwrite would remove"],
            ));
        }
        sandbox.shell(&format!("rm -r out/{named}")).succeeds();
    }
    // With an empty or missing list, all files count as foreign.
    let sums = sandbox.read("out/SHA256SUMS");
    fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    problems.extend(sandbox.refuses(&again, 2, &["SHA256SUMS"]));
    for other in ["", "words\n"] {
        sandbox.write("out/SHA256SUMS", other);
        problems.extend(sandbox.refuses(&again, 2, &["remedy"]));
    }
    let more = [sums.as_slice(), format!("{}  zzz\n", "0".repeat(64)).as_bytes()].concat();
    sandbox.write("out/SHA256SUMS", more);
    problems.extend(sandbox.refuses(&again, 2, &["SHA256SUMS", "zzz is listed"]));
    sandbox.write("out/SHA256SUMS", sums);
    // Files that a run has written may have been edited since.
    for (name, text) in
        [("README.md", "my card"), ("config.json", "{}"), ("run.json", "{\"runs\": 1}")]
    {
        let before = sandbox.read(&format!("out/{name}"));
        sandbox.write(&format!("out/{name}"), text);
        problems.extend(sandbox.refuses(&again, 2, &[name, "--overwrite would remove"]));
        sandbox.write(&format!("out/{name}"), before);
    }
    sandbox.write("out/training.jsonl", "{\"step\": 1}\n");
    problems.extend(sandbox.refuses(&again, 2, &["training.jsonl", "--overwrite would remove"]));
    fs::remove_file(sandbox.path("out/training.jsonl")).unwrap();
    // A receipt alone doesn't make a folder a result.
    sandbox
        .shell("mkdir mine; cp out/moe-convert.json mine; echo years > mine/thesis.tex")
        .succeeds();
    problems.extend(sandbox.refuses(
        &again.replace("-o out", "-o mine"),
        2,
        &["mine", "SHA256SUMS"],
    ));
    symlink("out", sandbox.path("to-out")).unwrap();
    problems.extend(sandbox.refuses(
        &again.replace("-o out", "-o to-out"),
        2,
        &["to-out", "is a link"],
    ));
    assert_none(&problems);
    sandbox.run(&again).succeeds();
    sandbox.run(&again.replace("-o out", "-o ./out/.").replace("--seed 1", "--seed 2")).succeeds();
    assert!(!sandbox.path("out-2").exists());
}

/// Links in a model may lead into a folder that is written.
#[test]
fn links_in_a_model_lead_to_what_is_kept() {
    let sandbox = sandbox();
    sandbox.run("prune m -o out --keep 0.5 --criterion random").succeeds();
    sandbox
        .shell("mkdir view; cp m/*.json view; ln -s ../out/model.safetensors view; cp out/config.json view")
        .succeeds();
    let line = "prune view -o out --experts 3 --criterion random --overwrite";
    assert_none(&sandbox.refuses(line, 2, &INSIDE).into_iter().collect::<Vec<_>>());
    sandbox
        .run("prune view -o out2 --experts 3 --criterion random")
        .exits(1)
        .says(&["not followed", "cp -rL"]);
}

#[test]
fn pages_of_the_manual_replace_pages_alone() {
    let sandbox = sandbox();
    sandbox.run("man pages").succeeds();
    let mut problems: Vec<_> =
        sandbox.refuses("man pages", 2, &["moe-convert", "--overwrite"]).into_iter().collect();
    sandbox.run("man pages --overwrite").succeeds();
    sandbox.write("thesis.tex", "years");
    sandbox.write("pages/moe-convert-prune.1", "years");
    problems.extend(sandbox.refuses(
        "man pages --overwrite",
        2,
        &["moe-convert-prune.1", "man page"],
    ));
    fs::remove_file(sandbox.path("pages/moe-convert-prune.1")).unwrap();
    symlink("../thesis.tex", sandbox.path("pages/moe-convert-prune.1")).unwrap();
    problems.extend(sandbox.refuses(
        "man pages --overwrite",
        2,
        &["moe-convert-prune.1", "is a link"],
    ));
    problems.extend(sandbox.refuses("man m", 2, &["config.json", "man pages have no place"]));
    assert_none(&problems);
}

/// Of two runs, the second one doesn't touch the first one's output.
#[test]
fn of_two_runs_at_once_one_has_the_output() {
    let sandbox = sandbox();
    let heal = "heal m -o out --data ids.jsonl --steps 400 --eval-every 1 --batch-tokens 64 --sequence-length 64 --train all -q";
    let outcome = sandbox.shell(&format!(
        "moe-convert {heal} & first=$!\n\
         while [ ! -e out.training/state.safetensors ]; do kill -0 $first || exit 7; sleep 0.01; done\n\
         moe-convert {heal} --overwrite; second=$?\n\
         wait $first && exit $second"
    ));
    outcome.exits(1).says(&["another run is writing this output"]);
    sandbox.run("verify out").succeeds();
    assert!(!sandbox.path("out.training").exists());
}
