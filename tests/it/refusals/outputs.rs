//! Tests that outputs which may not be written are refused, and that nothing is lost there.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::{DENSE, LLAMA, Request, bounded, requests_refused, with_text};
use crate::common::Sandbox;

#[test]
fn logits_files_that_may_not_be_written_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "model");
    sandbox.write("ids.json", "[[1, 2]]");
    sandbox.write("folder/file", "");
    sandbox.write("mine.safetensors", "not to be lost");
    let requests: &[Request] = &[
        ("nowhere.json -o x.safetensors", 1, &["nowhere.json"]),
        ("folder -o x.safetensors", 1, &["folder"]),
        ("ids.json -o nowhere/x.safetensors", 1, &["nowhere"]),
        ("ids.json -o folder", 2, &["folder"]),
        ("ids.json -o folder/file/x", 1, &["folder/file"]),
        ("ids.json -o mine.safetensors", 2, &["mine.safetensors", "exists"]),
        ("ids.json -o ids.json", 2, &["ids.json"]),
        ("ids.json -o model/model.safetensors", 2, &["model/model.safetensors"]),
        ("ids.json -o model/logits.safetensors", 2, &["model/logits.safetensors", "inside"]),
    ];
    requests_refused(&sandbox, "logits model --tokens", requests);
}

/// Requests to upcycle `nest/model` that are refused, planned, begun or resumed.
#[track_caller]
fn upcycling_refused(sandbox: &Sandbox, requests: &[Request]) {
    for how in ["", "--dry-run", "--resume"] {
        let upcycle = format!("upcycle nest/model --experts 4 --top-k 2 {how}");
        requests_refused(sandbox, &upcycle, requests);
    }
}

#[test]
fn outputs_over_files_of_users_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "nest/model");
    sandbox.write("thesis/thesis.tex", "years of work");
    sandbox.write("folder/file", "");
    fs::create_dir(sandbox.path("empty")).unwrap();
    symlink("nowhere", sandbox.path("dangling")).unwrap();
    let requests: &[Request] = &[
        ("-o thesis", 2, &["thesis", "exists", "--overwrite"]),
        ("-o thesis --overwrite", 2, &["thesis", "not written by moe-convert"]),
        ("-o folder/file", 2, &["folder/file", "exists"]),
        ("-o folder/file --overwrite", 2, &["folder/file", "not a directory"]),
        ("-o folder/file/out", 2, &["folder/file", "not a directory"]),
        ("-o empty", 2, &["empty", "exists"]),
        ("-o dangling", 2, &["dangling", "exists"]),
    ];
    upcycling_refused(&sandbox, requests);
}

#[test]
fn outputs_inside_and_around_inputs_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "nest/model");
    symlink("nest/model", sandbox.path("link")).unwrap();
    let requests: &[Request] = &[
        ("-o nest/model", 2, &["nest/model", "inside"]),
        ("-o nest/model --overwrite", 2, &["nest/model", "inside"]),
        ("-o nest/model/out", 2, &["nest/model/out", "inside"]),
        ("-o nest/model/deep/er/out", 2, &["nest/model/deep/er/out", "inside"]),
        ("-o link/out", 2, &["link/out", "inside"]),
        ("-o nest/model/../model/out", 2, &["inside"]),
        ("-o nest", 2, &["nest", "around"]),
        ("-o nest --overwrite", 2, &["nest", "around"]),
        ("-o .", 2, &["."]),
        ("-o ..", 2, &[".."]),
        ("-o /", 2, &["/"]),
    ];
    upcycling_refused(&sandbox, requests);
}

#[test]
fn overwrite_keeps_what_a_failed_run_found() {
    let sandbox = Sandbox::new();
    let upcycle =
        format!("upcycle {DENSE} -o out --experts 2 --top-k 1 --overwrite --probe-tokens 0");
    sandbox.run(&upcycle).succeeds();
    let model = sandbox.copy("models/dense", "broken");
    model.set("num_hidden_layers", json!(5));
    let line = "upcycle broken -o out --experts 2 --top-k 1 --overwrite";
    sandbox.must_refuse(line, 1, &["model.layers.4."]);
    sandbox.run("verify out").succeeds();
}

/// An archive may have brought such links along, beside the place of the output.
#[test]
fn links_under_hidden_names_lead_nowhere() {
    for (hidden, target, line) in [
        (".out.partial-moe-convert", "precious", "upcycle model -o out --experts 2 --top-k 1"),
        (
            ".logits.partial-moe-convert",
            "precious/thesis.tex",
            "logits model --tokens ids.json -o logits",
        ),
    ] {
        let sandbox = with_text();
        sandbox.write("ids.json", "[[1]]");
        sandbox.write("precious/thesis.tex", "words");
        symlink(target, sandbox.path(hidden)).unwrap();
        let outcome = bounded(&sandbox, line).exits(1);
        assert_eq!(sandbox.read("precious/thesis.tex"), b"words", "{outcome}");
    }
}

#[test]
fn paths_of_the_wrong_kind_say_what_to_give() {
    let sandbox = Sandbox::new();
    sandbox.write("recipes/r.toml", "");
    sandbox.write("file", "");
    let requests: &[Request] = &[
        (
            "prune golden/models/moe -o file --experts 12 --criterion random",
            2,
            &["not a directory", "choose another name"],
        ),
        (
            "prune golden/models/moe -o p --experts 12 --criterion random --held-out x.txt",
            1,
            &["x.txt", "--held-out"],
        ),
        (
            "eval golden/models/moe --data golden/text",
            1,
            &["this is a directory", "one of the files in it"],
        ),
        ("run recipes", 1, &["recipes", "one of the files in it"]),
        ("run recipes/r", 1, &["recipes/r", "give recipes/r.toml"]),
    ];
    requests_refused(&sandbox, "", requests);
}

#[test]
fn a_folder_in_place_of_a_partial_file_is_to_be_removed() {
    const PARTIAL: &str = ".l.partial-moe-convert";
    let sandbox = Sandbox::new();
    sandbox.write("ids.json", "[[1, 2]]");
    fs::create_dir(sandbox.path(PARTIAL)).unwrap();
    let logits = "logits golden/models/moe --tokens ids.json -o l";
    sandbox.must_refuse(logits, 1, &[PARTIAL, "remove this"]);
    fs::remove_dir(sandbox.path(PARTIAL)).unwrap();
    sandbox.run(logits).succeeds();
}

#[test]
fn benchmarks_and_budgets_that_cannot_work_are_refused() {
    let requests: &[Request] = &[
        (
            "eval golden/models/moe --data golden/text/code.calibration.txt --memory-budget 1",
            2,
            &["raise --memory-budget"],
        ),
        (
            "bench --data-tokens 1024 --passes prune,distill --scratch .",
            2,
            &["the benchmark of distill", "raise --data-tokens"],
        ),
        (
            "bench --like qwen3",
            2,
            &["no built-in model is called \"qwen3\"", "one of qwen3-30b-a3b"],
        ),
    ];
    requests_refused(&Sandbox::new(), "", requests);
}
