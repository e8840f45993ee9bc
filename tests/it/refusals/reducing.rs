//! Tests that requests to observe, prune, merge or distill which can't work are refused.

use super::{Request, requests_refused};
use crate::common::Sandbox;

/// A sandbox with a few tokens, their statistics, and a file that is nothing of the kind.
fn observed() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9, 10, 11, 12]}\n");
    sandbox.write("note.txt", "not statistics");
    sandbox.run("observe golden/models/moe -o stats --data ids.jsonl --no-left-out").succeeds();
    sandbox
}

#[test]
fn text_that_cannot_be_observed_is_refused() {
    let sandbox = observed();
    let ids = "{\"input_ids\": [5, 6, 7], \"attention_mask\": ";
    sandbox.write("masked.jsonl", format!("{ids}[0, 0, 0]}}\n"));
    sandbox.write("mask.jsonl", format!("{ids}[1]}}\n"));
    let special = "{\"input_ids\": [0, 0, 0], \"attention_mask\": [1, 1, 1]}\n";
    sandbox.write("special.jsonl", special);
    sandbox.write("empty.txt", "");
    let requests: &[Request] = &[
        ("", 2, &["--data", "--add"]),
        ("--data empty.txt", 2, &["empty.txt", "nothing to predict"]),
        ("--data masked.jsonl", 2, &["masked.jsonl", "padding"]),
        ("--data mask.jsonl", 1, &["mask.jsonl", "line 1", "attention_mask"]),
        ("--data special.jsonl --mask-special", 2, &["special", "--mask-special"]),
        ("--add note.txt", 1, &["note.txt", "statistics"]),
        ("--data ids.jsonl --memory-budget 1KiB", 2, &["--memory-budget"]),
    ];
    requests_refused(&sandbox, "observe golden/models/moe -o s", requests);
}

#[test]
fn models_and_files_that_statistics_do_not_fit_are_refused() {
    let requests: &[Request] = &[
        ("golden/models/dense -o s --data ids.jsonl", 2, &["no mixture of experts"]),
        ("golden/models/moe -o note.txt --data ids.jsonl", 2, &["note.txt", "--overwrite"]),
        ("golden/models/moe -o nowhere/s --data ids.jsonl", 1, &["nowhere"]),
        ("golden/families/mixtral/base/model -o s --add stats", 1, &["another model"]),
    ];
    requests_refused(&observed(), "observe", requests);
}

#[test]
fn what_cannot_be_pruned_is_refused() {
    let requests: &[Request] = &[
        ("--stats stats", 2, &["--experts", "--keep"]),
        ("--experts 12", 2, &["--data", "--stats"]),
        ("--experts 12 --data ids.jsonl --stats stats", 2, &["one of the two"]),
        ("--experts 3 --stats stats", 2, &["goes to 4 experts"]),
        ("--experts 25 --stats stats", 2, &["25", "24"]),
        ("--keep 1.5 --stats stats", 2, &["--keep"]),
        ("--experts 12 --stats nowhere", 1, &["nowhere"]),
    ];
    requests_refused(&observed(), "prune golden/models/moe -o p", requests);
}

#[test]
fn criteria_without_their_data_are_refused() {
    let requests: &[Request] = &[
        ("--experts 12 --criterion random --stats stats", 2, &["doesn't look at data"]),
        ("--experts 12 --criterion exhaustive --data ids.jsonl", 2, &["16 experts"]),
        ("--experts 12 --criterion ranked-choice --stats stats", 2, &["--data"]),
        ("--experts 12 --criterion leave-one-out --stats stats", 2, &["--no-left-out"]),
        (
            "--experts 12 --equal-mass --criterion reap --stats stats",
            1,
            &["never selected", "--keep-mass"],
        ),
        ("--keep-mass 0.9 --criterion reap --data ids.jsonl", 2, &["--stats"]),
    ];
    requests_refused(&observed(), "prune golden/models/moe -o p", requests);
}

#[test]
fn models_that_cannot_be_pruned_are_refused() {
    let requests: &[Request] = &[
        ("golden/models/dense --experts 4 --criterion random", 2, &["no mixture of experts"]),
        (
            "golden/families/deepseek_v3/base/model --experts 5 --criterion random",
            2,
            &["groups", "--experts"],
        ),
    ];
    requests_refused(&Sandbox::new(), "prune -o p", requests);
}

#[test]
fn plans_that_do_not_fit_the_model_are_refused() {
    let sandbox = Sandbox::new();
    let write = |name: &str, keep: &str, layers: usize| {
        let layer = |index| format!("\"{index}\": {{\"experts\": 24, \"keep\": [{keep}]}}");
        let layers = (0..layers).map(layer).collect::<Vec<_>>().join(",");
        sandbox.write(name, format!("{{\"layers\": {{{layers}}}}}"));
    };
    write("twice.json", "1,1,2,3,4", 4);
    write("few.json", "1,2,3", 4);
    write("beyond.json", "1,2,3,24", 4);
    write("short.json", "1,2,3,4", 3);
    write("long.json", "1,2,3,4", 5);
    sandbox.write("note.txt", "no plan");
    let requests: &[Request] = &[
        ("--plan twice.json", 2, &["twice", "layer 0"]),
        ("--plan few.json", 2, &["3 experts", "4"]),
        ("--plan beyond.json", 2, &["expert 24"]),
        ("--plan short.json", 2, &["layer 3"]),
        ("--plan long.json", 2, &["layer 4"]),
        ("--plan note.txt", 1, &["note.txt"]),
    ];
    requests_refused(&sandbox, "prune golden/models/moe -o p", requests);
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let requests: &[Request] = &[
        ("", 2, &["--data", "--stats"]),
        ("--algorithm mergemoe --stats stats", 2, &["--data"]),
        ("--algorithm hc-smoe --stats stats", 2, &["--all-experts-every"]),
    ];
    requests_refused(&observed(), "merge golden/models/moe -o p --experts 12", requests);
}

/// A sandbox with text of 256 tokens.
fn with_tokens() -> Sandbox {
    let sandbox = Sandbox::new();
    let ids: Vec<usize> = (5..21).collect();
    sandbox.write("some.jsonl", format!("{{\"input_ids\": {ids:?}}}\n").repeat(16));
    sandbox
}

#[test]
fn what_cannot_be_distilled_is_refused() {
    let sandbox = with_tokens();
    let requests: &[Request] = &[
        ("--width 3073", 2, &["3073", "3072"]),
        ("--width 0", 2, &["--width 0", "at least 1"]),
        ("--init mean --width 127", 2, &["127", "128"]),
        ("--init mean --criterion cp", 2, &["--criterion", "--init"]),
        ("--criterion cp", 2, &["--criterion", "--select experts"]),
        ("--target llama", 2, &["llama", "--target qwen3"]),
        ("", 2, &["here are 224", "2048", "--data-tokens", "--down measured"]),
        ("--width 2 --sequence-length 512 --data-tokens 16", 2, &["held out"]),
        ("--held-out nowhere.txt --down measured", 1, &["nowhere.txt"]),
    ];
    requests_refused(&sandbox, "distill golden/models/moe -o d --data some.jsonl", requests);
    let without_text: &[Request] =
        &[("", 2, &["--data"]), ("--data nowhere.txt", 1, &["nowhere.txt"])];
    requests_refused(&sandbox, "distill golden/models/moe -o d", without_text);
}

#[test]
fn models_that_cannot_be_distilled_are_refused() {
    let requests: &[Request] = &[
        ("golden/models/dense", 2, &["no mixture of experts", "upcycle"]),
        ("golden/families/olmoe/base/model", 1, &["queries and keys", "olmo2"]),
        ("golden/families/deepseek_v3/fp8/model", 1, &["quantized", "unquantized"]),
        ("golden/families/deepseek_v3/base/model --width 1", 2, &["dense already"]),
    ];
    requests_refused(&with_tokens(), "distill -o d --data some.jsonl", requests);
}
