//! Tests that `verify` finds what was changed, added or removed since a result was written.

use std::fs;

use serde_json::json;

use super::LLAMA;
use crate::common::{Sandbox, assert_none};

const SUMS: &str = "out/SHA256SUMS";

fn result() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.run("upcycle golden/families/llama/base/model -o out --experts 2 --top-k 1").succeeds();
    sandbox
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// Ways to change the list `sums`, their results, and what `verify` says of each.
fn changes(sums: &str) -> [(&'static str, String, &'static str); 10] {
    let without = |name: &str| lines(sums.lines().filter(|line| !line.ends_with(name)));
    let of_config = &sums.lines().find(|line| line.ends_with("  config.json")).unwrap()[..64];
    let zeros = "0".repeat(64);
    [
        ("emptied", String::new(), "isn't listed"),
        ("without weights", without("model.safetensors"), "model.safetensors isn't listed"),
        ("without the config", without("config.json"), "config.json isn't listed"),
        ("without the receipt", without("moe-convert.json"), "moe-convert.json isn't listed"),
        ("without the card", without("README.md"), "README.md isn't listed"),
        ("reversed", lines(sums.lines().rev()), "lines"),
        ("another hash", sums.replace(of_config, &zeros), "SHA-256"),
        ("a line more", format!("{sums}{zeros}  notes.txt\n"), "notes.txt is listed"),
        ("a file twice", format!("{sums}{sums}"), "again"),
        ("no list", "words\n".to_owned(), "line 1"),
    ]
}

#[test]
fn a_list_of_hashes_that_was_changed_is_found() {
    let sandbox = result();
    let sums = String::from_utf8(sandbox.read(SUMS)).unwrap();
    let mut problems = Vec::new();
    for (change, text, complaint) in changes(&sums) {
        sandbox.write(SUMS, text);
        let refused = sandbox.refuses("verify out", 1, &["SHA256SUMS", complaint]);
        problems.extend(refused.map(|problem| format!("{change}: {problem}")));
    }
    fs::remove_file(sandbox.path(SUMS)).unwrap();
    problems.extend(sandbox.refuses("verify out", 1, &["SHA256SUMS", "receipt"]));
    assert_none(&problems);
}

/// The list reveals a changed byte, and a changed receipt too.
#[test]
fn a_changed_receipt_is_found_and_resume_keeps_only_complete_results() {
    let sandbox = result();
    let sums = String::from_utf8(sandbox.read(SUMS)).unwrap();
    sandbox.run("verify out").succeeds();
    let receipt = String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap();
    const AGAIN: &str =
        "upcycle golden/families/llama/base/model -o out --experts 2 --top-k 1 --resume";
    sandbox.run(AGAIN).succeeds();
    sandbox.write(SUMS, "");
    sandbox.run(AGAIN).exits(2);
    sandbox.write(SUMS, &sums);
    sandbox.write("out/moe-convert.json", receipt.replace("\"seed\": 0", "\"seed\": 1") + " ");
    sandbox.run("verify out").exits(1).says(&["moe-convert.json", "SHA-256"]);
}

/// Files that loaders take if they find them.
const TAKEN_BY_LOADERS: [&str; 19] = [
    "pytorch_model.bin",
    "extra.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "modeling_x.py",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "hf_quant_config.json",
    "params.json",
    "modules.json",
    "1_Pooling/config.json",
];

#[test]
fn added_files_that_loaders_take_are_refused() {
    let sandbox = result();
    let mut problems = Vec::new();
    for name in TAKEN_BY_LOADERS {
        sandbox.write(&format!("out/{name}"), "{}");
        problems.extend(sandbox.refuses("verify out", 1, &[name]));
        fs::remove_file(sandbox.path(&format!("out/{name}"))).unwrap();
    }
    assert_none(&problems);
}

/// Asserts that `verify` takes `model`, and names the file `name` as one that isn't listed.
#[track_caller]
fn is_unlisted(sandbox: &Sandbox, model: &str, name: &str) {
    let outcome = sandbox.run(&format!("verify {model} --json")).succeeds();
    let json = outcome.json();
    assert!(json["unlisted"].as_array().unwrap().contains(&json!(name)), "{name}: {outcome}");
}

#[test]
fn other_added_files_are_named() {
    let sandbox = result();
    for (name, shown) in [
        (".git/config", ".git/"),
        (".gitattributes", ".gitattributes"),
        (".cache/huggingface/x", ".cache/"),
        ("notes.txt", "notes.txt"),
        ("figures/plot.png", "figures/plot.png"),
    ] {
        sandbox.write(&format!("out/{name}"), "words");
        is_unlisted(&sandbox, "out", shown);
    }
    // A run writes files, and no links.
    sandbox.shell("mv out/run.json elsewhere; ln -s ../elsewhere out/run.json").succeeds();
    is_unlisted(&sandbox, "out", "run.json");
}

/// Whatever its list says.
#[test]
fn a_folder_without_its_receipt_is_no_result() {
    let sandbox = result();
    fs::remove_file(sandbox.path("out/moe-convert.json")).unwrap();
    let missing = ["moe-convert.json", "receipt"];
    sandbox.must_refuse("verify out", 1, &missing);
    sandbox.write(SUMS, "");
    sandbox.must_refuse("verify out", 1, &missing);
    fs::remove_file(sandbox.path(SUMS)).unwrap();
    sandbox.must_refuse("verify out", 1, &missing);
    // Without any trace of a receipt, the list is a user's own.
    sandbox.copy(LLAMA, "model");
    sandbox.shell("cd model && sha256sum model.safetensors > SHA256SUMS").succeeds();
    is_unlisted(&sandbox, "model", "config.json");
}

/// Files that differ from run to run aren't in a manifest; verify names one that was changed.
#[test]
fn an_edited_run_record_is_named() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run("prune m -o out --experts 4 --criterion random -q").succeeds();
    let unlisted = || sandbox.run("verify out --json").succeeds().json()["unlisted"].clone();
    assert_eq!(unlisted(), json!([]));
    sandbox
        .shell("sed -i 's/\"host\": \".*\"/\"host\": \"mine\"/' out/run.json; echo {} >out/training.jsonl")
        .succeeds();
    assert_eq!(unlisted(), json!(["run.json", "training.jsonl"]));
}
