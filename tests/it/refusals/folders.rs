//! Tests that folders which are no checkpoints are refused, and pipes and devices in place of files.

use super::{
    CONFIG, Case, EVERY_COMMAND, LLAMA, Request, SECOND_SHARD, SHARDED, accepted, all_refused,
    case, requests_refused, with_text,
};
use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};
use crate::common::{BINARY, Sandbox, assert_none};

fn clear(c: &Checkpoint) {
    [CONFIG, "generation_config.json", SHARD].iter().for_each(|file| c.remove(file));
}

#[test]
fn directories_that_are_no_checkpoints_are_refused() {
    let cases = [
        case("empty", clear, &["model", "no config.json"]),
        case("no weights", |c| c.remove(SHARD), &["model", "no safetensors weights"]),
        case("weights a folder", |c| c.make_directory_of(SHARD), &[SHARD]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

/// A checkpoint whose only weights have the name `file`, by which another tool's format is known.
fn weights_named(file: &'static str, words: &'static [&'static str]) -> Case {
    case(file, move |c| c.rename(SHARD, file), words)
}

#[test]
fn weights_in_formats_of_other_tools_are_refused() {
    let cases = [
        weights_named("pytorch_model.bin", &["pickled", "safe_serialization"]),
        weights_named("consolidated.00.pth", &["pickled", "consolidated", "Hugging Face's format"]),
        weights_named("m-Q4_K_M.gguf", &["GGUF weights only", "safetensors checkpoint"]),
        weights_named("__0_0.distcp", &["distributed", "accelerate merge-weights"]),
        weights_named("weights.npz", &["MLX", "safetensors checkpoint"]),
        weights_named("model.onnx", &["ONNX weights only"]),
        weights_named("tf_model.h5", &["TensorFlow weights only", "from_tf"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

/// A folder around checkpoints, such as a hub's cache, says where they lie.
#[test]
fn folders_around_checkpoints_say_where_they_lie() {
    let sandbox = Sandbox::new();
    let snapshot = "hub/models--a--b/snapshots/0123abcd";
    for copy in [snapshot, "two/first", "two/second"] {
        sandbox.copy(LLAMA, copy);
    }
    sandbox.write("hub/models--a--b/refs/main", "0123abcd");
    let remedy = &["give hub/models--a--b/snapshots/0123abcd"];
    let requests: &[Request] = &[
        ("inspect hub", 1, remedy),
        ("inspect hub/models--a--b", 1, remedy),
        ("inspect hub/models--a--b/snapshots", 1, remedy),
        ("verify two", 1, &["one of the 2 checkpoints", "two/first"]),
    ];
    requests_refused(&sandbox, "", requests);
}

#[test]
fn paths_that_are_no_folders_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "");
    sandbox.write("ids.json", "[[1]]");
    let mut problems = Vec::new();
    for command in EVERY_COMMAND {
        let of = |path: &str| command.replace(" model", path);
        problems.extend(sandbox.refuses(&of(" nowhere"), 1, &["nowhere"]));
        problems.extend(sandbox.refuses(&of(" file"), 2, &["file", "directory"]));
    }
    assert_none(&problems);
}

/// Opening a pipe under a file's name would block, so the program must check before.
#[test]
fn pipes_do_not_hang() {
    for (golden, file) in
        [(LLAMA, SHARD), (LLAMA, CONFIG), (SHARDED, INDEX), (SHARDED, SECOND_SHARD)]
    {
        let sandbox = Sandbox::new();
        sandbox.copy(golden, "model").remove(file);
        let script = format!("mkfifo model/{file}; timeout 5 '{BINARY}' inspect model");
        let outcome = sandbox.shell(&script);
        outcome.exits(1).says(&["model", "remedy"]);
    }
}

/// Files, and commands that read them.
const READ_FILES: [(&str, &str); 11] = [
    ("model/SHA256SUMS", "verify model"),
    ("model/tokenizer.json", "eval model --data text.txt"),
    ("model/chat_template.jinja", "eval model --data chat.jsonl"),
    ("model/config.json", "inspect model"),
    ("text.txt", "eval model --data text.txt"),
    ("chat.jsonl", "eval model --data chat.jsonl"),
    ("ids.json", "logits model --tokens ids.json -o logits"),
    ("recipe.toml", "run recipe.toml"),
    ("stats", "prune golden/families/qwen3_moe/base/model -o out --experts 4 --stats stats"),
    ("plan.json", "prune golden/families/qwen3_moe/base/model -o out --plan plan.json"),
    (
        "prompts.json",
        "upcycle model -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json",
    ),
];

/// Opening a pipe under a file's name would block; a directory can't be read.
#[test]
fn pipes_and_directories_in_place_of_files_are_refused() {
    let mut problems = Vec::new();
    for make in ["mkfifo", "mkdir", "ln -s /dev/zero"] {
        for (file, line) in READ_FILES {
            let sandbox = with_text();
            sandbox.shell(&format!("rm -f {file}; {make} {file}")).succeeds();
            let name = file.trim_start_matches("model/");
            problems
                .extend(accepted(&sandbox, line, &[name]).map(|p| format!("{make} {file}: {p}")));
        }
    }
    assert_none(&problems);
}
