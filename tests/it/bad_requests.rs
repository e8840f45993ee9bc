//! Tests requests on sound checkpoints that can't work: token files, data, options and outputs.
//! Each is refused in under a second, with a message that names the file or option and the remedy,
//! and leaves no trace.

use crate::common::{Sandbox, assert_none};
use serde_json::{Value, json};

const LLAMA: &str = "golden/families/llama/base/model";
const DENSE: &str = "golden/models/dense";
const ENGLISH: &str = "golden/text/english.heldout.txt";

/// A command line, its exit code, and words of its message.
type Request = (&'static str, i32, &'static [&'static str]);

#[track_caller]
fn all_refused(sandbox: &Sandbox, requests: &[Request]) {
    let found = requests
        .iter()
        .filter_map(|(line, code, complaints)| sandbox.refuses(line, *code, complaints));
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn token_files() {
    let cases: &[(&str, i32, &[&str])] = &[
        ("", 1, &["JSON", "[[1, 2, 3], [4, 5]]"]),
        ("one two", 1, &["JSON", "[[1, 2, 3], [4, 5]]"]),
        ("[[1, 2", 1, &["JSON"]),
        ("[1, 2]", 1, &["JSON"]),
        (r#"{"ids": [[1]]}"#, 1, &["JSON"]),
        ("[[-1]]", 1, &["-1"]),
        ("[[1.5]]", 1, &["1.5"]),
        ("[[4294967296]]", 1, &["4294967296"]),
        (r#"[["1"]]"#, 1, &["JSON"]),
        ("[]", 1, &["without tokens"]),
        ("[[1, 2], []]", 1, &["without tokens"]),
        ("[[1, 2], [100, 101]]", 2, &["101", "vocabulary"]),
    ];
    let mut problems = Vec::new();
    for (content, code, complaints) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("ids.json", content);
        let complaints = [*complaints, &["ids.json"]].concat();
        let line = format!("logits {LLAMA} --tokens ids.json -o logits.safetensors");
        problems
            .extend(sandbox.refuses(&line, *code, &complaints).map(|p| format!("{content}: {p}")));
    }
    assert_none(&problems);
}

#[test]
fn logits_files() {
    let sandbox = Sandbox::new();
    sandbox.copy("families/llama/base/model", "model");
    sandbox.write("ids.json", "[[1, 2]]");
    sandbox.write("folder/file", "");
    sandbox.write("mine.safetensors", "not to be lost");
    let requests: &[Request] = &[
        ("logits model --tokens nowhere.json -o x.safetensors", 1, &["nowhere.json"]),
        ("logits model --tokens folder -o x.safetensors", 1, &["folder"]),
        ("logits model --tokens ids.json -o nowhere/x.safetensors", 1, &["nowhere"]),
        ("logits model --tokens ids.json -o folder", 2, &["folder"]),
        ("logits model --tokens ids.json -o folder/file/x", 1, &["folder/file"]),
        ("logits model --tokens ids.json -o mine.safetensors", 2, &["mine.safetensors", "exists"]),
        ("logits model --tokens ids.json -o ids.json", 2, &["ids.json"]),
        (
            "logits model --tokens ids.json -o model/model.safetensors",
            2,
            &["model/model.safetensors"],
        ),
        (
            "logits model --tokens ids.json -o model/logits.safetensors",
            2,
            &["model/logits.safetensors", "inside"],
        ),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn data_for_eval() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("empty.jsonl", "\n\n");
    sandbox.write("one.jsonl", "{\"input_ids\": [5]}\n");
    sandbox.write("broken.jsonl", "{\"text\": \"good\"}\n\n{\"text\": \"bad\n");
    sandbox.write("keys.jsonl", "{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n");
    sandbox.write("large.jsonl", "{\"input_ids\": [1, 2, 2048]}\n");
    sandbox.write("latin1.txt", b"caf\xe9 au lait");
    sandbox.write("folder/x.txt", "text");
    let requests: &[Request] = &[
        ("eval golden/models/dense --data nowhere.txt", 1, &["nowhere.txt", "--data"]),
        ("eval golden/models/dense --data folder", 1, &["folder"]),
        ("eval golden/models/dense --data empty.txt", 2, &["empty.txt", "nothing to predict"]),
        ("eval golden/models/dense --data empty.jsonl", 2, &["empty.jsonl", "nothing to predict"]),
        ("eval golden/models/dense --data one.jsonl", 2, &["one.jsonl", "nothing to predict"]),
        ("eval golden/models/dense --data broken.jsonl", 1, &["broken.jsonl", "line 3"]),
        ("eval golden/models/dense --data keys.jsonl", 1, &["keys.jsonl", "line 2", "input_ids"]),
        ("eval golden/models/dense --data large.jsonl", 2, &["2048", "vocabulary", "large.jsonl"]),
        ("eval golden/models/dense --data latin1.txt", 1, &["latin1.txt", "UTF-8"]),
        (
            "eval golden/families/llama/base/model --data golden/text/english.heldout.txt",
            1,
            &["tokenizer.json"],
        ),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn options_of_eval() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    let requests: &[Request] = &[
        ("eval golden/models/dense --data ids.jsonl --max-kl 0.1", 2, &["gate", "--original"]),
        ("eval golden/models/dense --data ids.jsonl --max-loss-increase 0.1", 2, &["--original"]),
        ("eval golden/models/dense --data ids.jsonl --min-agreement 0.9", 2, &["--original"]),
        (
            "eval golden/models/dense --data ids.jsonl --sequence-length 1",
            2,
            &["--sequence-length 1", "at least 2"],
        ),
        (
            "eval golden/models/dense --data ids.jsonl --original golden/families/llama/base/model",
            1,
            &["vocabular", "2048", "101"],
        ),
        ("eval golden/models/dense --data ids.jsonl --original nowhere", 1, &["nowhere"]),
        ("eval golden/models/dense --data ids.jsonl --memory-budget 1KiB", 2, &["--memory-budget"]),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn broken_tokenizer() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    model.truncate("tokenizer.json", 1000);
    let line = format!("eval model --data {ENGLISH}");
    assert_none(&Vec::from_iter(sandbox.refuses(&line, 1, &["model/tokenizer.json"])));
}

#[test]
fn models_given_as_experts() {
    let sandbox = Sandbox::new();
    sandbox.copy("mergekit/inputs/a", "base");
    sandbox.copy("mergekit/inputs/b", "tokens");
    let tokenizer = sandbox.read("tokens/tokenizer.json");
    sandbox.write(
        "tokens/tokenizer.json",
        String::from_utf8(tokenizer).unwrap().replacen("Ġthe", "Ġteh", 1),
    );
    sandbox.write("file", "text");
    let requests: &[Request] = &[
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model nowhere",
            1,
            &["nowhere"],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model file",
            2,
            &["file"],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model golden/models/dense",
            2,
            &["golden/models/dense", "[2048, 128]", "tensor: "],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model golden/models/moe",
            2,
            &["golden/models/moe", "qwen3_moe"],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model golden/mergekit/inputs/qwen2",
            2,
            &["inputs/qwen2", "qwen2 model"],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --expert-model base --expert-model tokens",
            2,
            &["tokens/tokenizer.json", "base"],
        ),
        (
            "upcycle base -o out --experts 3 --top-k 1 --expert-model base --expert-model tokens",
            2,
            &["3 experts", "2 models"],
        ),
        ("upcycle base -o base/out --experts 1 --top-k 1 --expert-model base", 2, &["inside"]),
        (
            "upcycle golden/mergekit/inputs/b -o base/out --experts 1 --top-k 1 --expert-model base",
            2,
            &["inside"],
        ),
        (
            "upcycle base -o out --experts 2 --top-k 1 --rest average",
            2,
            &["--rest average", "--expert-model"],
        ),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn text_for_routers() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("short.txt", "one two");
    sandbox.write("object.json", r#"{"positive": ["x"]}"#);
    sandbox
        .write("three.json", r#"[{"positive": ["x"]}, {"positive": ["y"]}, {"positive": ["z"]}]"#);
    sandbox.write("none.json", r#"[{"positive": ["x"]}, {"positive": []}]"#);
    sandbox.write("blank.json", r#"[{"positive": ["x"]}, {"positive": [""]}]"#);
    sandbox.write("equal.json", r#"[{"positive": ["one two"]}, {"positive": ["one two"]}]"#);
    sandbox.write(
        "good.json",
        r#"[{"positive": ["one two three"]}, {"positive": ["def f(x): return x"]}]"#,
    );
    let requests: &[Request] = &[
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --router kmeans",
            2,
            &["--data"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --data good.json",
            2,
            &["--data", "--router kmeans"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --router kmeans --data nowhere.txt",
            1,
            &["nowhere.txt"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --router kmeans --data empty.txt",
            2,
            &["empty.txt"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --router kmeans --data short.txt",
            2,
            &["layer 0", "8 clusters", "--data"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --router kmeans --data short.txt@0.5",
            2,
            &["weight", "short.txt"],
        ),
        (
            "upcycle golden/families/llama/base/model -o out --experts 8 --top-k 2 --router kmeans --data short.txt",
            1,
            &["tokenizer.json"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts",
            2,
            &["--prompts"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --prompts good.json",
            2,
            &["--router prompts"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts nowhere.json",
            1,
            &["nowhere.json"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts object.json",
            1,
            &["object.json", "positive"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts three.json",
            2,
            &["3 sets", "2 router rows", "three.json"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts none.json",
            2,
            &["entry 1", "none.json"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts blank.json",
            2,
            &["no token", "blank.json"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router cheap-embed --prompts equal.json",
            2,
            &["layer 0", "entropy"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router cheap-embed --prompts good.json --router-entropy 1",
            2,
            &["--router-entropy"],
        ),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn shapes_of_experts() {
    let sandbox = Sandbox::new();
    let requests: &[Request] = &[
        (
            "upcycle golden/models/dense -o out --experts 6 --top-k 3 --granularity 3",
            2,
            &["--granularity 3", "512", "1, 2, 4, 8"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 3 --granularity 2",
            2,
            &["--granularity 2", "--top-k 4"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --granularity 0",
            2,
            &["--granularity 0"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 3 --top-k 2 --init partition",
            2,
            &["512 neurons", "2, 4"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 600 --top-k 2 --init partition",
            2,
            &["512 neurons"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --layers every:2",
            2,
            &["mixtral", "--target qwen2_moe"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --layers 4",
            2,
            &["layer 4", "0 to 3"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --layers x",
            2,
            &["--layers", "every:2"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --shared-experts 0",
            2,
            &["--shared-experts 0"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 8 --top-k 2 --drop-fraction 1.5",
            2,
            &["--drop-fraction"],
        ),
    ];
    all_refused(&sandbox, requests);
}

#[test]
fn options_of_upcycle() {
    let sandbox = Sandbox::new();
    let requests: &[Request] = &[
        ("upcycle golden/models/dense -o out --experts 4 --top-k 5", 2, &["top-k 5", "4 experts"]),
        ("upcycle golden/models/dense -o out --experts 0 --top-k 1", 2, &["at least one expert"]),
        ("upcycle golden/models/dense -o out --experts 4 --top-k 0", 2, &["top-k"]),
        (
            "upcycle golden/models/dense -o out --experts 1000000000 --top-k 1",
            2,
            &["1000000000", "65536"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --target gpt9",
            2,
            &["gpt9", "mixtral"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --target llama",
            2,
            &["llama", "mixtral"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --target qwen3_moe",
            2,
            &["qwen3_moe", "--target"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --noise-std=-1",
            2,
            &["--noise-std"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --noise-std nan",
            2,
            &["--noise-std"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --noise-fraction 2",
            2,
            &["--noise-fraction"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --router-std inf",
            2,
            &["--router-std"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --norm-topk-prob false",
            2,
            &["norm_topk_prob"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --memory-budget 1MiB",
            2,
            &["--memory-budget"],
        ),
        (
            "upcycle golden/models/dense -o out --experts 4 --top-k 2 --probe-tokens 99999999999",
            2,
            &["--probe-tokens"],
        ),
        ("upcycle golden/models/dense -o out --experts 4 --top-k 2 --threads 0", 2, &["--threads"]),
        (
            "upcycle golden/models/moe -o out --experts 4 --top-k 2",
            2,
            &["golden/models/moe", "qwen3_moe", "already"],
        ),
        (
            "upcycle golden/families/llama/bias/model -o out --experts 4 --top-k 2",
            1,
            &["model.layers.0.mlp.", ".bias", "mlp_bias"],
        ),
    ];
    all_refused(&sandbox, requests);
}

/// Command lines that clap refuses get a remedy like others; a program without arguments prints its
/// help.
#[test]
fn command_lines_that_do_not_parse() {
    let sandbox = Sandbox::new();
    for line in [
        "",
        "upcicle golden/models/dense",
        "upcycle golden/models/dense -o out --experts 4",
        "upcycle golden/models/dense --experts 4 --top-k 2",
        "upcycle golden/models/dense -o out --experts four --top-k 2",
        "upcycle golden/models/dense -o out --experts -4 --top-k 2",
        "upcycle golden/models/dense -o out --experts 4 --top-k 2 --init magic",
        "inspect golden/models/dense --device tpu",
        "inspect golden/models/dense --memory-budget much",
        "inspect golden/models/dense --nonsense",
        "eval golden/models/dense",
        "eval golden/models/dense --data x@-1",
        "run",
    ] {
        let outcome = sandbox.run(line).exits(2);
        assert!(outcome.stdout.is_empty(), "{outcome}");
        let teaches = if line.is_empty() { "Usage" } else { "remedy: " };
        assert!(outcome.stderr.contains(teaches), "{outcome}");
    }
    assert_eq!(sandbox.names("."), ["golden"]);
}

#[test]
fn outputs_that_may_not_be_written() {
    let sandbox = Sandbox::new();
    sandbox.copy("families/llama/base/model", "nest/model");
    sandbox.write("thesis/thesis.tex", "years of work");
    sandbox.write("folder/file", "");
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    std::os::unix::fs::symlink("nest/model", sandbox.path("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", sandbox.path("dangling")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("-o thesis", &["thesis", "exists", "--overwrite"]),
        ("-o thesis --overwrite", &["thesis", "not written by moe-convert"]),
        ("-o folder/file", &["folder/file", "exists"]),
        ("-o folder/file --overwrite", &["folder/file", "not a directory"]),
        ("-o empty", &["empty", "exists"]),
        ("-o dangling", &["dangling", "exists"]),
        ("-o nest/model", &["nest/model", "inside"]),
        ("-o nest/model --overwrite", &["nest/model", "inside"]),
        ("-o nest/model/out", &["nest/model/out", "inside"]),
        ("-o nest/model/deep/er/out", &["nest/model/deep/er/out", "inside"]),
        ("-o link/out", &["link/out", "inside"]),
        ("-o nest/model/../model/out", &["inside"]),
        ("-o nest", &["nest", "around"]),
        ("-o nest --overwrite", &["nest", "around"]),
        ("-o .", &["."]),
        ("-o ..", &[".."]),
        ("-o /", &["/"]),
        ("-o folder/file/out", &["folder/file", "not a directory"]),
    ];
    let mut problems = Vec::new();
    for (output, complaints) in cases {
        for dry_run in ["--dry-run", "", "--resume"] {
            let line = format!("upcycle nest/model {output} --experts 4 --top-k 2 {dry_run}");
            problems.extend(sandbox.refuses(&line, 2, complaints));
        }
    }
    assert_none(&problems);
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
    assert_none(&Vec::from_iter(sandbox.refuses(line, 1, &["model.layers.4."])));
    sandbox.run("verify out").succeeds();
}

#[test]
fn recipes() {
    const STEP: &str =
        "[[step]]\nrun = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"out\"\n";
    let cases: &[(&str, &[&str])] = &[
        ("", &["step"]),
        ("step = []", &["no step"]),
        ("nonsense", &["line 1"]),
        ("stepp = 1\n", &["stepp"]),
        ("[[step]]\n", &["step 1", "run"]),
        ("[[step]]\nrun = \"fly\"\nmodel = \"x\"\n", &["step 1", "fly", "upcycle"]),
        ("[[step]]\nrun = \"verify\"\n", &["step 1 (verify)", "model"]),
        (
            "[[step]]\nrun = \"verify\"\nmodel = \"x\"\ncolour = 1\n",
            &["line 4, step 1 (verify)", "colour"],
        ),
        ("${STEP}experts = 4\n", &["step 1 (upcycle)", "top-k"]),
        ("${STEP}experts = 4\ntop-k = 2\ntop_k = 2\n", &["step 1 (upcycle)", "top_k"]),
        ("${STEP}experts = \"4\"\ntop-k = 2\n", &["line 5, step 1 (upcycle)", "experts"]),
        ("${STEP}experts = -4\ntop-k = 2\n", &["step 1 (upcycle)"]),
        (
            "${STEP}experts = 4\ntop-k = 2\n\n[[step]]\nrun = \"verify\"\nmodel = \"${gone}\"\n",
            &["step 2", "gone"],
        ),
        ("${STEP}experts = 4\ntop-k = 5\n", &["step 1", "top-k 5"]),
        (
            "${STEP}experts = 4\ntop-k = 2\n\n[[step]]\nrun = \"eval\"\nmodel = \"out\"\ndata = [\"x\"]\ngates = { max-kll = 1 }\n",
            &["line 12, step 2 (eval)", "max-kll"],
        ),
    ];
    let mut problems = Vec::new();
    for (text, complaints) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("recipe.toml", text.replace("${STEP}", STEP));
        let complaints = [*complaints, &["recipe.toml"]].concat();
        problems.extend(
            sandbox.refuses("run recipe.toml", 2, &complaints).map(|p| format!("{text}: {p}")),
        );
    }
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", format!("[vars]\nout = \"x\"\n{STEP}experts = 4\ntop-k = 2\n"));
    problems.extend(sandbox.refuses("run nowhere.toml", 1, &["nowhere.toml"]));
    problems.extend(sandbox.refuses("run golden", 1, &["golden"]));
    problems.extend(sandbox.refuses("run recipe.toml --set oout=y", 2, &["oout", "out"]));
    assert_none(&problems);
}

#[test]
fn observing_pruning_and_merging() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9, 10, 11, 12]}\n");
    sandbox.write("masked.jsonl", "{\"input_ids\": [5, 6, 7], \"attention_mask\": [0, 0, 0]}\n");
    sandbox.write("mask.jsonl", "{\"input_ids\": [5, 6, 7], \"attention_mask\": [1]}\n");
    sandbox.write("special.jsonl", "{\"input_ids\": [0, 0, 0], \"attention_mask\": [1, 1, 1]}\n");
    sandbox.write("empty.txt", "");
    sandbox.write("note.txt", "not statistics");
    sandbox.run("observe golden/models/moe -o stats --data ids.jsonl --no-left-out").succeeds();
    let plan = |keep: &str, layers: usize| {
        let layer = |index| format!("\"{index}\": {{\"experts\": 24, \"keep\": [{keep}]}}");
        format!("{{\"layers\": {{{}}}}}", (0..layers).map(layer).collect::<Vec<_>>().join(","))
    };
    sandbox.write("twice.json", plan("1,1,2,3,4", 4));
    sandbox.write("few.json", plan("1,2,3", 4));
    sandbox.write("beyond.json", plan("1,2,3,24", 4));
    sandbox.write("short.json", plan("1,2,3,4", 3));
    sandbox.write("long.json", plan("1,2,3,4", 5));
    let moe = "golden/models/moe";
    let refused = [
        ("observe golden/models/dense -o s --data ids.jsonl", 2, vec!["no mixture of experts"]),
        ("observe {} -o s", 2, vec!["--data", "--add"]),
        ("observe {} -o s --data empty.txt", 2, vec!["empty.txt", "nothing to predict"]),
        ("observe {} -o s --data masked.jsonl", 2, vec!["masked.jsonl", "padding"]),
        ("observe {} -o s --data mask.jsonl", 1, vec!["mask.jsonl", "line 1", "attention_mask"]),
        (
            "observe {} -o s --data special.jsonl --mask-special",
            2,
            vec!["special", "--mask-special"],
        ),
        ("observe {} -o note.txt --data ids.jsonl", 2, vec!["note.txt", "--overwrite"]),
        ("observe {} -o nowhere/s --data ids.jsonl", 1, vec!["nowhere"]),
        ("observe {} -o s --add note.txt", 1, vec!["note.txt", "statistics"]),
        ("observe golden/families/mixtral/base/model -o s --add stats", 1, vec!["another model"]),
        ("observe {} -o s --data ids.jsonl --memory-budget 1KiB", 2, vec!["--memory-budget"]),
        (
            "prune golden/models/dense -o p --experts 4 --criterion random",
            2,
            vec!["no mixture of experts"],
        ),
        ("prune {} -o p --stats stats", 2, vec!["--experts", "--keep"]),
        ("prune {} -o p --experts 12", 2, vec!["--data", "--stats"]),
        ("prune {} -o p --experts 12 --data ids.jsonl --stats stats", 2, vec!["one of the two"]),
        ("prune {} -o p --experts 3 --stats stats", 2, vec!["goes to 4 experts"]),
        ("prune {} -o p --experts 25 --stats stats", 2, vec!["25", "24"]),
        ("prune {} -o p --keep 1.5 --stats stats", 2, vec!["--keep"]),
        (
            "prune {} -o p --experts 12 --criterion random --stats stats",
            2,
            vec!["doesn't look at data"],
        ),
        (
            "prune {} -o p --experts 12 --criterion exhaustive --data ids.jsonl",
            2,
            vec!["16 experts"],
        ),
        ("prune {} -o p --experts 12 --criterion ranked-choice --stats stats", 2, vec!["--data"]),
        (
            "prune {} -o p --experts 12 --criterion leave-one-out --stats stats",
            2,
            vec!["--no-left-out"],
        ),
        (
            "prune {} -o p --experts 12 --equal-mass --criterion reap --stats stats",
            1,
            vec!["never selected", "--keep-mass"],
        ),
        ("prune {} -o p --keep-mass 0.9 --criterion reap --data ids.jsonl", 2, vec!["--stats"]),
        ("prune {} -o p --experts 12 --stats nowhere", 1, vec!["nowhere"]),
        ("prune {} -o p --plan twice.json", 2, vec!["twice", "layer 0"]),
        ("prune {} -o p --plan few.json", 2, vec!["3 experts", "4"]),
        ("prune {} -o p --plan beyond.json", 2, vec!["expert 24"]),
        ("prune {} -o p --plan short.json", 2, vec!["layer 3"]),
        ("prune {} -o p --plan long.json", 2, vec!["layer 4"]),
        ("prune {} -o p --plan note.txt", 1, vec!["note.txt"]),
        (
            "prune golden/families/deepseek_v3/base/model -o p --experts 5 --criterion random",
            2,
            vec!["groups", "--experts"],
        ),
        ("merge {} -o p --experts 12", 2, vec!["--data", "--stats"]),
        ("merge {} -o p --experts 12 --algorithm mergemoe --stats stats", 2, vec!["--data"]),
        (
            "merge {} -o p --experts 12 --algorithm hc-smoe --stats stats",
            2,
            vec!["--all-experts-every"],
        ),
    ];
    let found = refused.iter().filter_map(|(line, code, words)| {
        let complaint = sandbox.refuses(&line.replace("{}", moe), *code, words);
        let left = sandbox.path("p").exists() || sandbox.path("s").exists();
        complaint.or_else(|| left.then(|| format!("{line} left something")))
    });
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn distilling() {
    let sandbox = Sandbox::new();
    let ids: Vec<usize> = (5..21).collect();
    let lines = |count| format!("{{\"input_ids\": {ids:?}}}\n").repeat(count);
    sandbox.write("one.jsonl", lines(1));
    sandbox.write("some.jsonl", lines(16));
    let moe = "golden/models/moe";
    let refused = [
        ("distill {} -o d", 2, vec!["--data"]),
        (
            "distill golden/models/dense -o d --data some.jsonl",
            2,
            vec!["no mixture of experts", "upcycle"],
        ),
        ("distill {} -o d --data some.jsonl --width 3073", 2, vec!["3073", "3072"]),
        ("distill {} -o d --data some.jsonl --width 0", 2, vec!["--width 0", "at least 1"]),
        ("distill {} -o d --data some.jsonl --init mean --width 127", 2, vec!["127", "128"]),
        (
            "distill {} -o d --data some.jsonl --init mean --criterion cp",
            2,
            vec!["--criterion", "--init"],
        ),
        (
            "distill {} -o d --data some.jsonl --criterion cp",
            2,
            vec!["--criterion", "--select experts"],
        ),
        ("distill {} -o d --data some.jsonl --target llama", 2, vec!["llama", "--target qwen3"]),
        (
            "distill {} -o d --data some.jsonl",
            2,
            vec!["here are 224", "2048", "--data-tokens", "--down measured"],
        ),
        (
            "distill {} -o d --data some.jsonl --width 2 --sequence-length 512 --data-tokens 16",
            2,
            vec!["held out"],
        ),
        ("distill {} -o d --data nowhere.txt", 1, vec!["nowhere.txt"]),
        (
            "distill golden/families/olmoe/base/model -o d --data some.jsonl",
            1,
            vec!["queries and keys", "olmo2"],
        ),
        (
            "distill golden/families/deepseek_v3/fp8/model -o d --data some.jsonl",
            1,
            vec!["quantized", "unquantized"],
        ),
        (
            "distill golden/families/deepseek_v3/base/model -o d --data some.jsonl --width 1",
            2,
            vec!["dense already"],
        ),
        (
            "distill {} -o d --data some.jsonl --held-out nowhere.txt --down measured",
            1,
            vec!["nowhere.txt"],
        ),
    ];
    let found = refused.iter().filter_map(|(line, code, words)| {
        let complaint = sandbox.refuses(&line.replace("{}", moe), *code, words);
        complaint.or_else(|| sandbox.path("d").exists().then(|| format!("{line} left something")))
    });
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn an_expert_that_no_token_reaches_goes_first_under_each_criterion() {
    let sandbox = Sandbox::new();
    // Three tokens reach at most 12 of the 24 experts of a layer.
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    sandbox.run("observe golden/models/moe -o stats --data ids.jsonl").succeeds();
    let schema = sandbox.run("schema").succeeds().json();
    // These criteria need no tokens, or more than sums.
    let others = ["aimer", "exhaustive", "ranked-choice", "random"];
    // Variables may stand for words, which is the other kind of value.
    let criteria = &schema["$defs"]["prune"]["properties"]["criterion"]["anyOf"][0]["enum"];
    let criteria: Vec<&str> = criteria.as_array().unwrap().iter().flat_map(Value::as_str).collect();
    assert!(criteria.len() >= 12 && others.iter().all(|other| criteria.contains(other)));
    for method in criteria.iter().filter(|method| !others.contains(method)) {
        let line = format!(
            "prune golden/models/moe -o {method} --experts 12 --criterion {method} --stats stats --json"
        );
        let value = sandbox.run(&line).succeeds().json();
        for layer in value["receipt"]["layers"].as_array().unwrap() {
            let trust = &layer["details"];
            let counts: Vec<u64> = serde_json::from_value(trust["load"]["counts"].clone()).unwrap();
            let clusters: Vec<Vec<usize>> =
                serde_json::from_value(trust["clusters"].clone()).unwrap();
            let reached = counts.iter().filter(|n| **n > 0).count();
            let kept = clusters.iter().filter(|cluster| counts[cluster[0]] > 0).count();
            assert_eq!(kept, reached.min(12), "{method}: {layer}");
            assert_eq!(trust["lost_choices"], 0.0, "{method}: {layer}");
        }
        sandbox.run(&format!("verify {method}")).succeeds();
    }
}
