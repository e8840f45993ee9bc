//! Tests that no output replaces an input, lies in one, or holds one.

use std::fs;
use std::os::unix::fs::symlink;

use super::{INSIDE, OF_THE_MODEL, TEXT, sandbox};

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
    let held_out = "--held-out held/out.jsonl --plan-out held/out.jsonl";
    lines.push(format!("prune m -o out --keep 0.5 {TEXT} {held_out}"));
    sandbox.must_refuse_all(&lines, 2, &INSIDE);
}

#[test]
fn statistics_that_are_read_are_not_replaced() {
    let sandbox = sandbox();
    sandbox.run(&format!("observe m -o stats {TEXT}")).succeeds();
    fs::hard_link(sandbox.path("stats"), sandbox.path("hard.stats")).unwrap();
    for output in ["stats", "hard.stats", "./stats"] {
        let lines = [
            format!("observe m -o {output} --add stats --overwrite"),
            format!("prune m -o out --keep 0.5 --stats stats --plan-out {output} --overwrite"),
        ];
        sandbox.must_refuse_all(&lines, 2, &INSIDE);
    }
}

#[test]
fn two_outputs_do_not_have_the_same_place() {
    let sandbox = sandbox();
    let lines = ["out", "out/plan.json", "./out", ".out.partial-moe-convert/plan.json"];
    let lines = lines.map(|plan| format!("prune m -o out --keep 0.5 {TEXT} --plan-out {plan}"));
    sandbox.must_refuse_all(&lines, 2, &["two outputs"]);
}

/// Commands one of whose outputs has a folder that is, or holds, one of their inputs.
fn outputs_around_inputs(how: &str) -> [String; 11] {
    let heal = format!("heal --steps 2 --batch-tokens 64 --sequence-length 64 {how}");
    let distill = format!("distill --width 32 --steps 2 {how}");
    let prune = format!("prune --keep 0.5 {how}");
    let quantize = format!("quantize --scheme w4a16 --group-size 8 {how}");
    [
        format!("{heal} out.training -o out --data ids.jsonl"),
        format!("{heal} m -o out --original out.training --data ids.jsonl"),
        format!("{heal} m -o text --data text.training/ids.jsonl"),
        format!("{heal} m -o text --data ids.jsonl --held-out text.training/ids.jsonl"),
        format!("{heal} m -o linked --data ids.jsonl"),
        format!("{distill} out.training -o out {TEXT}"),
        format!("{distill} m -o text --data text.training/ids.jsonl"),
        format!("{prune} .out.partial-moe-convert -o out --criterion random"),
        format!("{prune} .out.replaced-moe-convert -o out --criterion random"),
        format!("{quantize} m -o corpus {TEXT} --pool corpus/pool.jsonl"),
        format!("{prune} m -o held {TEXT} --held-out held/out.jsonl"),
    ]
}

/// A training is saved in OUT.training, and a result lies under hidden names until it is complete.
#[test]
fn no_folder_of_an_output_is_an_input_or_holds_one() {
    let sandbox = sandbox();
    for copy in ["out.training", ".out.partial-moe-convert", ".out.replaced-moe-convert"] {
        sandbox.shell(&format!("cp -r m {copy}")).succeeds();
    }
    sandbox.shell("mkdir -p text.training && cp ids.jsonl text.training/ids.jsonl").succeeds();
    symlink("m", sandbox.path("linked.training")).unwrap();
    for how in ["", "--overwrite", "--resume", "--overwrite --dry-run"] {
        sandbox.must_refuse_all(&outputs_around_inputs(how), 2, &INSIDE);
    }
}

/// Commands that save a training in `out.training`.
fn trainings(how: &str) -> [String; 2] {
    let short = "--steps 2 --batch-tokens 64 --sequence-length 64";
    [
        format!("heal m -o out --data ids.jsonl {short} {how}"),
        format!("distill m -o out --width 32 --steps 2 {TEXT} {how}"),
    ]
}

/// Ways to make a folder `out.training` that isn't a saved training, and the name that errors say.
const NOT_SAVED: [(&str, &str); 9] = [
    ("mkdir out.training; cp thesis.tex out.training", "thesis.tex"),
    ("mkdir -p out.training/notes", "notes"),
    ("mkdir out.training; ln -s ../thesis.tex out.training/training.jsonl", "training.jsonl"),
    ("mkdir out.training; ln -s ../thesis.tex out.training/state.safetensors", "state.safetensors"),
    ("mkdir out.training; ln -s ../thesis.tex out.training/of", "of"),
    ("mkdir out.training; cp thesis.tex out.training/trained.0", "trained.0"),
    ("cp thesis.tex out.training", "out.training"),
    ("mkdir other; ln -s other out.training", "out.training"),
    ("ln -s nowhere out.training", "out.training"),
];

#[test]
fn what_lies_in_the_folder_of_a_training_is_never_lost() {
    let sandbox = sandbox();
    sandbox.write("thesis.tex", "years");
    for (make, named) in NOT_SAVED {
        sandbox.shell(make).succeeds();
        let lines = ["", "--overwrite", "--resume"].map(trainings).concat();
        sandbox.must_refuse_all(&lines, 2, &[named]);
        sandbox.shell("rm -rf out.training other").succeeds();
    }
}

#[test]
fn an_empty_folder_of_a_training_has_nothing_to_lose() {
    let sandbox = sandbox();
    sandbox.shell("mkdir out.training").succeeds();
    sandbox.run(&trainings("")[0]).succeeds();
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
