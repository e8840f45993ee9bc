//! Tests files beside weights: which are copied, where links may lead, and which of several sets of
//! weights is read.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::common::checkpoint::{Checkpoint, INDEX, SHARD};
use crate::common::{Outcome, Sandbox, assert_none};

const LLAMA: &str = "families/llama/base/model";
const UPCYCLE: &str = "upcycle model -o out --experts 2 --top-k 1";
const PRUNE: &str = "prune model -o out --experts 4 --criterion random";

/// Names and texts of files beside the weights, as in uploads to the hub.
const SIDE_FILES: [(&str, &str); 17] = [
    ("configuration_x.py", "from transformers import LlamaConfig as XConfig\n"),
    ("modeling_x.py", "from .layers_x import norm\n"),
    ("layers_x.py", "norm = None\n"),
    ("tokenization_x.py", "from .words_x import words\n"),
    ("words_x.py", "words = None\n"),
    ("tiktoken.model", "IQ== 0\n"),
    ("tekken.json", "{}"),
    ("preprocessor_config.json", "{}"),
    ("additional_chat_templates/tool_use.jinja", "{{ messages }}"),
    ("README.md", "---\nlicense: mit\n---\n# The source\n"),
    ("LICENSE", "words"),
    (".gitattributes", "* lfs"),
    (".git/config", "[core]"),
    ("original/params.json", "{}"),
    ("onnx/model.onnx", "x"),
    ("optimizer.pt", "x"),
    ("model.Q4_K_M.gguf", "x"),
];

/// A checkpoint with `SIDE_FILES`, among them code of its own for model and tokenizer.
fn with_code(sandbox: &Sandbox, golden: &str) -> Checkpoint {
    let model = sandbox.copy(golden, "model");
    let map = json!({
        "AutoConfig": "configuration_x.XConfig",
        "AutoModelForCausalLM": "modeling_x.XForCausalLM",
        "AutoTokenizer": ["tokenization_x.XTokenizer", null],
    });
    model.set("auto_map", map);
    SIDE_FILES.iter().for_each(|(name, text)| sandbox.write(&format!("model/{name}"), text));
    model
}

#[test]
fn what_somebody_may_miss_is_named() {
    let sandbox = Sandbox::new();
    sandbox.copy("families/qwen3_moe/base/model", "model");
    let missed = ["my.pt", "run.json", "training.jsonl"];
    missed.iter().for_each(|name| sandbox.write(&format!("model/{name}"), "{}"));
    sandbox.write("model/optimizer.pt", "x");
    let warned = |outcome: &Outcome| outcome.json()["receipt"]["warnings"].to_string();
    let first = warned(&sandbox.run(&format!("{PRUNE} --json")).succeeds());
    assert!(
        missed.iter().all(|name| first.contains(name)) && !first.contains("optimizer.pt"),
        "{first}"
    );
    // Files that a run wrote into its result aren't missed by the next pass.
    let second =
        warned(&sandbox.run("prune out -o again --experts 3 --criterion random --json").succeeds());
    assert!(!second.contains("run.json"), "{second}");
}

/// Files and folders of [`with_code`] that are left out.
const LEFT_OUT: [&str; 7] = [
    ".git/",
    ".gitattributes",
    "README.md",
    "model.Q4_K_M.gguf",
    "onnx/",
    "optimizer.pt",
    "original/",
];

/// Files of [`with_code`] that come along.
const CARRIED: [&str; 10] = [
    "LICENSE",
    "additional_chat_templates/tool_use.jinja",
    "configuration_x.py",
    "layers_x.py",
    "modeling_x.py",
    "preprocessor_config.json",
    "tekken.json",
    "tiktoken.model",
    "tokenization_x.py",
    "words_x.py",
];

#[test]
fn all_but_weights_comes_along() {
    let sandbox = Sandbox::new();
    with_code(&sandbox, "families/qwen3_moe/base/model");
    sandbox.run(PRUNE).succeeds();
    for name in CARRIED {
        assert_eq!(
            sandbox.read(&format!("out/{name}")),
            sandbox.read(&format!("model/{name}")),
            "{name}"
        );
    }
    let receipt = sandbox.json("out/moe-convert.json");
    let left_out: Vec<&String> = receipt["left_out"].as_object().unwrap().keys().collect();
    assert_eq!(left_out, LEFT_OUT);
    let names = sandbox.names("out");
    assert!(LEFT_OUT.iter().all(
        |name| *name == "README.md" || !names.contains(&name.trim_end_matches('/').to_owned())
    ));
    assert_eq!(
        sandbox.json("out/config.json")["auto_map"],
        sandbox.json("model/config.json")["auto_map"]
    );
}

/// Files in folders are listed too, and `sha256sum` finds them.
#[test]
fn what_comes_along_is_answered_for() {
    let sandbox = Sandbox::new();
    with_code(&sandbox, "families/qwen3_moe/base/model");
    sandbox.run(PRUNE).succeeds();
    sandbox
        .shell("cd out && sha256sum --quiet --strict -c SHA256SUMS && grep -q tool_use SHA256SUMS")
        .succeeds();
    sandbox.run("verify out").succeeds();
    sandbox.write("out/additional_chat_templates/tool_use.jinja", "{{ other }}");
    sandbox.run("verify out").exits(1).says(&["tool_use.jinja", "SHA-256"]);
}

#[test]
fn code_of_another_family_stays_behind_and_is_named() {
    let sandbox = Sandbox::new();
    with_code(&sandbox, LLAMA);
    let outcome = sandbox.run(&format!("{UPCYCLE} --json")).succeeds();
    let warned = outcome.json()["receipt"]["warnings"].to_string();
    for name in ["configuration_x.py", "layers_x.py", "modeling_x.py"] {
        assert!(
            !sandbox.path(&format!("out/{name}")).exists() && warned.contains(name),
            "{name}: {warned}"
        );
    }
    for name in [
        "tokenization_x.py",
        "words_x.py",
        "tiktoken.model",
        "additional_chat_templates/tool_use.jinja",
    ] {
        assert!(sandbox.path(&format!("out/{name}")).is_file(), "{name}");
    }
    let map = json!({ "AutoTokenizer": ["tokenization_x.XTokenizer", null] });
    assert_eq!(sandbox.json("out/config.json")["auto_map"], map);
    sandbox.run("verify out").succeeds();
}

/// Names of links in a model, and what they lead to.
const LINKS: [(&str, &str); 11] = [
    ("LICENSE", "../secret"),
    ("tokenizer_config.json", "../secret"),
    ("chat_template.jinja", "../chain"),
    ("code.py", "/etc/passwd"),
    ("tokenizer.model", "/dev/zero"),
    ("templates", "../folder"),
    ("LICENSE", "nowhere"),
    ("vocab.json", "vocab.json"),
    ("config.json", "../secret"),
    (SHARD, "../secret"),
    ("README.md", "../secret"),
];

#[test]
fn links_out_of_the_model_are_not_followed() {
    let mut problems = Vec::new();
    for (name, target) in LINKS {
        let sandbox = Sandbox::new();
        let model = sandbox.copy(LLAMA, "model");
        sandbox.write("secret", r#"{"words": "that are nobody's business"}"#);
        sandbox.write("folder/secret", "words that are nobody's business");
        symlink("secret", sandbox.path("chain")).unwrap();
        let _ = fs::remove_file(model.path(name));
        symlink(target, model.path(name)).unwrap();
        let problem = sandbox.refuses(UPCYCLE, 1, &[name]);
        problems.extend(problem.map(|problem| format!("{name} → {target}: {problem}")));
    }
    assert_none(&problems);
}

#[test]
fn pipes_in_a_model_are_refused() {
    for made in ["mkfifo model/NOTICE", "mkdir model/t && mkfifo model/t/x.jinja"] {
        let sandbox = Sandbox::new();
        sandbox.copy(LLAMA, "model");
        sandbox.shell(made).succeeds();
        sandbox.must_refuse(UPCYCLE, 1, &["not a regular file"]);
    }
}

#[test]
fn links_within_the_model_are_files_like_others() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    sandbox.write("model/texts/LICENSE", "words");
    symlink("texts/LICENSE", model.path("link")).unwrap();
    symlink("link", model.path("LICENSE")).unwrap();
    // A folder with a link to its parent is walked once.
    symlink("..", model.path("texts/back")).unwrap();
    sandbox.run(UPCYCLE).succeeds();
    for name in ["LICENSE", "texts/LICENSE"] {
        assert_eq!(sandbox.read(&format!("out/{name}")), b"words", "{name}");
        assert!(sandbox.path(&format!("out/{name}")).symlink_metadata().unwrap().is_file());
    }
    sandbox.run("verify out").succeeds();
}

/// Writes a file of `bytes` zeros into `model`.
fn write_zeros(model: &Checkpoint, name: &str, bytes: u64) {
    fs::File::create(model.path(name)).unwrap().set_len(bytes).unwrap();
}

/// A user may keep data beside a model.
#[test]
fn large_files_that_loaders_do_not_know_are_left_out() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    write_zeros(&model, "corpus.txt", 300 << 20);
    sandbox.run(UPCYCLE).succeeds();
    let left_out = sandbox.json("out/moe-convert.json")["left_out"].take();
    assert!(left_out["corpus.txt"].as_str().unwrap().contains("large"), "{left_out}");
}

/// Files that loaders know are never so large, and are refused before anything is read.
#[test]
fn side_files_are_looked_at_before_the_work() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    for name in
        ["tokenizer.model", "generation_config.json", "chat_template.jinja", "tokenization_x.py"]
    {
        write_zeros(&model, name, 2 << 30);
        sandbox.run(UPCYCLE).exits(1).says(&[name, "no file of this name", "remedy"]);
        model.remove(name);
    }
    assert!(!sandbox.names(".").iter().any(|name| name.contains("out")));
}

#[test]
fn a_generation_config_that_is_not_json_is_noted() {
    let sandbox = Sandbox::new();
    sandbox.copy(LLAMA, "model").write("generation_config.json", "{");
    sandbox.run(UPCYCLE).succeeds().says(&["generation_config.json is not JSON"]);
}

/// Words of the warning.
const TWO_SETS: &str = "two sets of weights";

/// A sharded model `model`, and `base`, a model in one file of other values.
struct TwoSets {
    sandbox: Sandbox,
    model: Checkpoint,
    base: Checkpoint,
}

impl TwoSets {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        for (name, options) in [("model", "--max-shard-size 30KB"), ("base", "")] {
            let line = format!("upcycle golden/{LLAMA} -o {name} --experts 4 --top-k 1 {options}");
            sandbox.run(&line).succeeds();
            for file in ["moe-convert.json", "SHA256SUMS", "run.json"] {
                fs::remove_file(sandbox.path(name).join(file)).unwrap();
            }
        }
        let [model, base] = ["model", "base"].map(|name| Checkpoint::new(sandbox.path(name)));
        base.edit_bytes(SHARD, |bytes| bytes.iter_mut().rev().take(400).for_each(|byte| *byte = 0));
        Self { sandbox, model, base }
    }

    /// Copies the file of `base` into `model` as `name`.
    fn add_file(&self, name: &str) {
        fs::copy(self.base.path(SHARD), self.model.path(name)).unwrap();
    }

    /// Makes the index of `model` name `files` in turn.
    fn index(&self, files: &[&str]) {
        self.model.edit_json(INDEX, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            map.values_mut()
                .zip(files.iter().cycle())
                .for_each(|(shard, file)| *shard = json!(file));
        });
    }

    fn verified(&self) -> String {
        self.sandbox.run("verify model").succeeds().stdout
    }

    /// The files that are named when they lie beside the weights, each with words on who reads it.
    #[track_caller]
    fn are_named(&self, files: &[(&str, &str)]) {
        for (name, words) in files {
            self.model.write(name, "x");
            let said = self.verified();
            assert!(said.contains(name) && said.contains(words), "{said}");
            self.model.remove(name);
        }
    }
}

#[test]
fn of_two_sets_of_weights_transformers_is_read_and_both_are_named() {
    let sets = TwoSets::new();
    let sandbox = &sets.sandbox;
    sandbox.write("ids.json", "[[1, 2, 3], [4, 5]]");
    let logits = |name: &str, output: &str| {
        sandbox.run(&format!("logits {name} --tokens ids.json -o {output}")).succeeds()
    };
    logits("model", "of-shards");
    logits("base", "of-file");
    sets.add_file(SHARD);
    for line in ["verify model", "inspect model"] {
        let said = sandbox.run(line).succeeds().stdout;
        for words in [TWO_SETS, "shards of model.safetensors.index.json"] {
            assert!(said.contains(words), "{line}: {said}");
        }
    }
    logits("model", "of-both").says(&[TWO_SETS]);
    assert!(sandbox.read("of-both") == sandbox.read("of-file"));
    assert!(sandbox.read("of-both") != sandbox.read("of-shards"));
    let prune = "prune model -o out --experts 2 --criterion random --json";
    let outcome = sandbox.run(prune).succeeds();
    assert!(outcome.json()["receipt"]["warnings"].to_string().contains(TWO_SETS), "{outcome}");
}

#[test]
fn an_index_of_the_same_file_is_no_second_set_but_other_formats_are() {
    let sets = TwoSets::new();
    sets.add_file(SHARD);
    sets.index(&[SHARD]);
    assert!(!sets.verified().contains(TWO_SETS));
    sets.are_named(&[
        ("pytorch_model.bin", "is not read"),
        ("consolidated.safetensors", "vLLM reads that instead"),
    ]);
}

#[test]
fn files_that_no_index_names_and_indexes_of_a_variant_are_named() {
    let sets = TwoSets::new();
    sets.sandbox.shell("rm model/model-*.safetensors").succeeds();
    sets.add_file("whole.safetensors");
    sets.index(&["./whole.safetensors"]);
    sets.model.make_directory(SHARD);
    sets.are_named(&[
        ("model-00009-of-00009.safetensors", ""),
        ("MODEL.safetensors", ""),
        ("other.safetensors.index.json", ""),
    ]);
    assert!(!sets.verified().contains("move unused files"));
}

/// transformers reads only that file.
#[test]
fn a_file_of_the_usual_name_that_holds_all_tensors_is_named() {
    let sets = TwoSets::new();
    sets.sandbox.shell("rm model/model-*.safetensors").succeeds();
    sets.add_file("whole.safetensors");
    sets.add_file(SHARD);
    sets.index(&["whole.safetensors", SHARD]);
    let said = sets.verified();
    assert!(said.contains("model.safetensors, which holds all tensors"), "{said}");
}

#[test]
fn a_file_that_the_config_names_is_found_as_transformers_finds_it() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    model.rename(SHARD, "weights.safetensors");
    model.set("transformers_weights", json!("weights.safetensors"));
    let said = sandbox.run("verify model").succeeds().stdout;
    assert!(said.contains("weights.safetensors (transformers_weights)"), "{said}");
    sandbox.run(UPCYCLE).succeeds();
    assert!(sandbox.json("out/config.json").get("transformers_weights").is_none());
    model.set("transformers_weights", json!("../weights.safetensors"));
    let refused = sandbox.refuses("verify model", 1, &["config.json", "../weights.safetensors"]);
    assert_none(&refused.into_iter().collect::<Vec<_>>());
}
