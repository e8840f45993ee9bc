//! Tests that no output replaces an input, lies in one, or holds one.

use std::fs;
use std::os::unix::fs::symlink;

use super::{INSIDE, OF_THE_MODEL, TEXT, sandbox};
use crate::common::assert_none;

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
    sandbox.must_refuse_all(&lines, 2, &INSIDE);
    // Both outputs have the same place.
    let lines = ["out", "out/plan.json", "./out", ".out.partial-moe-convert/plan.json"];
    let lines = lines.map(|plan| format!("prune m -o out --keep 0.5 {TEXT} --plan-out {plan}"));
    sandbox.must_refuse_all(&lines, 2, &["two outputs"]);
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
    sandbox.must_refuse_all(&lines, 2, &INSIDE);
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

/// Links in a model may lead into a folder that is written.
#[test]
fn links_in_a_model_lead_to_what_is_kept() {
    let sandbox = sandbox();
    sandbox.run("prune m -o out --keep 0.5 --criterion random").succeeds();
    sandbox
        .shell("mkdir view; cp m/*.json view; ln -s ../out/model.safetensors view; cp out/config.json view")
        .succeeds();
    let line = "prune view -o out --experts 3 --criterion random --overwrite";
    sandbox.must_refuse(line, 2, &INSIDE);
    sandbox
        .run("prune view -o out2 --experts 3 --criterion random")
        .exits(1)
        .says(&["not followed", "cp -rL"]);
}
