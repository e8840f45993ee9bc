//! Tests that no output of a command replaces, contains, or lies in one of its inputs, under
//! whatever names; and that existing files are replaced only on request, by files of their kind,
//! and without losing files of the user.

mod existing;
mod inputs;
mod recipes;

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::Sandbox;

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
