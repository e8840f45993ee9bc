//! Tests that requests to upcycle which can't work are refused.

use super::{Request, requests_refused};
use crate::common::Sandbox;

/// The dense model that most of these requests are about.
const UPCYCLE: &str = "upcycle golden/models/dense -o out";

/// A dense model `base`.
fn with_base() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("mergekit/inputs/a", "base");
    sandbox
}

#[test]
fn models_that_cannot_be_experts_are_refused() {
    let sandbox = with_base();
    sandbox.write("file", "text");
    let requests: &[Request] = &[
        ("nowhere", 1, &["nowhere"]),
        ("file", 2, &["file"]),
        ("golden/models/dense", 2, &["golden/models/dense", "[2048, 128]", "tensor: "]),
        ("golden/models/moe", 2, &["golden/models/moe", "qwen3_moe"]),
        ("golden/mergekit/inputs/qwen2", 2, &["inputs/qwen2", "qwen2 model"]),
    ];
    let upcycle = "upcycle base -o out --top-k 1 --expert-model base --experts 2 --expert-model";
    requests_refused(&sandbox, upcycle, requests);
}

#[test]
fn models_with_other_tokens_or_in_other_numbers_are_refused() {
    let sandbox = with_base();
    sandbox.copy("mergekit/inputs/b", "tokens");
    let tokenizer = String::from_utf8(sandbox.read("tokens/tokenizer.json")).unwrap();
    sandbox.write("tokens/tokenizer.json", tokenizer.replacen("Ġthe", "Ġteh", 1));
    let requests: &[Request] = &[
        ("--experts 2 --expert-model tokens", 2, &["tokens/tokenizer.json", "base"]),
        ("--experts 3 --expert-model tokens", 2, &["3 experts", "2 models"]),
    ];
    requests_refused(&sandbox, "upcycle base -o out --top-k 1 --expert-model base", requests);
    let words = ["--rest average", "--expert-model"];
    let average = "upcycle base -o out --experts 2 --top-k 1 --rest average";
    sandbox.must_refuse(average, 2, &words);
}

#[test]
fn no_output_lies_in_a_model_of_experts() {
    let requests: &[Request] =
        &[("base", 2, &["inside"]), ("golden/mergekit/inputs/b", 2, &["inside"])];
    let upcycle = "upcycle -o base/out --experts 1 --top-k 1 --expert-model base";
    requests_refused(&with_base(), upcycle, requests);
}

/// Prompts for the routers of two experts.
const PROMPTS: &str = r#"[{"positive": ["one two three"]}, {"positive": ["def f(x): return x"]}]"#;

#[test]
fn text_that_makes_no_clusters_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("short.txt", "one two");
    sandbox.write("good.json", PROMPTS);
    let requests: &[Request] = &[
        ("--router kmeans", 2, &["--data"]),
        ("--data good.json", 2, &["--data", "--router kmeans"]),
        ("--router kmeans --data nowhere.txt", 1, &["nowhere.txt"]),
        ("--router kmeans --data empty.txt", 2, &["empty.txt"]),
        ("--router kmeans --data short.txt", 2, &["layer 0", "8 clusters", "--data"]),
        ("--router kmeans --data short.txt@0.5", 2, &["weight", "short.txt"]),
    ];
    requests_refused(&sandbox, &format!("{UPCYCLE} --experts 8 --top-k 2"), requests);
    let without_tokenizer = "upcycle golden/families/llama/base/model -o out --experts 8 --top-k 2 \
                             --router kmeans --data short.txt";
    sandbox.must_refuse(without_tokenizer, 1, &["tokenizer.json"]);
}

#[test]
fn prompts_that_make_no_routers_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("object.json", r#"{"positive": ["x"]}"#);
    sandbox
        .write("three.json", r#"[{"positive": ["x"]}, {"positive": ["y"]}, {"positive": ["z"]}]"#);
    sandbox.write("none.json", r#"[{"positive": ["x"]}, {"positive": []}]"#);
    sandbox.write("blank.json", r#"[{"positive": ["x"]}, {"positive": [""]}]"#);
    sandbox.write("equal.json", r#"[{"positive": ["one two"]}, {"positive": ["one two"]}]"#);
    sandbox.write("good.json", PROMPTS);
    let requests: &[Request] = &[
        ("--router prompts", 2, &["--prompts"]),
        ("--prompts good.json", 2, &["--router prompts"]),
        ("--router prompts --prompts nowhere.json", 1, &["nowhere.json"]),
        ("--router prompts --prompts object.json", 1, &["object.json", "positive"]),
        ("--router prompts --prompts three.json", 2, &["3 sets", "2 router rows", "three.json"]),
        ("--router prompts --prompts none.json", 2, &["entry 1", "none.json"]),
        ("--router prompts --prompts blank.json", 2, &["no token", "blank.json"]),
        ("--router cheap-embed --prompts equal.json", 2, &["layer 0", "entropy"]),
        ("--router cheap-embed --prompts good.json --router-entropy 1", 2, &["--router-entropy"]),
    ];
    requests_refused(&sandbox, &format!("{UPCYCLE} --experts 2 --top-k 1"), requests);
}

#[test]
fn shapes_that_experts_cannot_have_are_refused() {
    let requests: &[Request] = &[
        ("--experts 6 --top-k 3 --granularity 3", 2, &["--granularity 3", "512", "1, 2, 4, 8"]),
        ("--experts 8 --top-k 3 --granularity 2", 2, &["--granularity 2", "--top-k 4"]),
        ("--experts 8 --top-k 2 --granularity 0", 2, &["--granularity 0"]),
        ("--experts 3 --top-k 2 --init partition", 2, &["512 neurons", "2, 4"]),
        ("--experts 600 --top-k 2 --init partition", 2, &["512 neurons"]),
        ("--experts 8 --top-k 2 --layers every:2", 2, &["mixtral", "--target qwen2_moe"]),
        ("--experts 8 --top-k 2 --layers 4", 2, &["layer 4", "0 to 3"]),
        ("--experts 8 --top-k 2 --layers x", 2, &["--layers", "every:2"]),
        ("--experts 8 --top-k 2 --shared-experts 0", 2, &["--shared-experts 0"]),
        ("--experts 8 --top-k 2 --drop-fraction 1.5", 2, &["--drop-fraction"]),
    ];
    requests_refused(&Sandbox::new(), UPCYCLE, requests);
}

#[test]
fn numbers_of_experts_that_cannot_be_are_refused() {
    let requests: &[Request] = &[
        ("--experts 4 --top-k 5", 2, &["top-k 5", "4 experts"]),
        ("--experts 0 --top-k 1", 2, &["at least one expert"]),
        ("--experts 4 --top-k 0", 2, &["top-k"]),
        ("--experts 1000000000 --top-k 1", 2, &["1000000000", "65536"]),
    ];
    requests_refused(&Sandbox::new(), UPCYCLE, requests);
}

#[test]
fn options_of_upcycle_out_of_range_are_refused() {
    let sandbox = Sandbox::new();
    let requests: &[Request] = &[
        ("--target gpt9", 2, &["gpt9", "mixtral"]),
        ("--target llama", 2, &["llama", "mixtral"]),
        ("--target qwen3_moe", 2, &["qwen3_moe", "--target"]),
        ("--noise-std=-1", 2, &["--noise-std"]),
        ("--noise-std nan", 2, &["--noise-std"]),
        ("--noise-fraction 2", 2, &["--noise-fraction"]),
        ("--router-std inf", 2, &["--router-std"]),
        ("--norm-topk-prob false", 2, &["norm_topk_prob"]),
        ("--memory-budget 1MiB", 2, &["--memory-budget"]),
        ("--probe-tokens 99999999999", 2, &["--probe-tokens"]),
        ("--threads 0", 2, &["--threads"]),
    ];
    requests_refused(&sandbox, &format!("{UPCYCLE} --experts 4 --top-k 2"), requests);
    let other_models: &[Request] = &[
        ("golden/models/moe", 2, &["golden/models/moe", "qwen3_moe", "already"]),
        ("golden/families/llama/bias/model", 1, &["model.layers.0.mlp.", ".bias", "mlp_bias"]),
    ];
    requests_refused(&sandbox, "upcycle -o out --experts 4 --top-k 2", other_models);
}
