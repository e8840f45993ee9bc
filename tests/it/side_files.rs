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

/// A checkpoint with code of its own for model and tokenizer, as in uploads to the hub.
fn with_code(sandbox: &Sandbox, golden: &str) -> Checkpoint {
    let model = sandbox.copy(golden, "model");
    let map = json!({
        "AutoConfig": "configuration_x.XConfig",
        "AutoModelForCausalLM": "modeling_x.XForCausalLM",
        "AutoTokenizer": ["tokenization_x.XTokenizer", null],
    });
    model.set("auto_map", map);
    let files = [
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
    files.iter().for_each(|(name, text)| sandbox.write(&format!("model/{name}"), text));
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

#[test]
fn all_but_weights_comes_along_and_is_answered_for() {
    let sandbox = Sandbox::new();
    with_code(&sandbox, "families/qwen3_moe/base/model");
    sandbox.run(PRUNE).succeeds();
    let carried = [
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
    for name in carried {
        assert_eq!(
            sandbox.read(&format!("out/{name}")),
            sandbox.read(&format!("model/{name}")),
            "{name}"
        );
    }
    let receipt = sandbox.json("out/moe-convert.json");
    let left_out: Vec<&String> = receipt["left_out"].as_object().unwrap().keys().collect();
    let named = [
        ".git/",
        ".gitattributes",
        "README.md",
        "model.Q4_K_M.gguf",
        "onnx/",
        "optimizer.pt",
        "original/",
    ];
    assert_eq!(left_out, named);
    let names = sandbox.names("out");
    assert!(named.iter().all(
        |name| *name == "README.md" || !names.contains(&name.trim_end_matches('/').to_owned())
    ));
    assert_eq!(
        sandbox.json("out/config.json")["auto_map"],
        sandbox.json("model/config.json")["auto_map"]
    );
    // Files in folders are listed too, and `sha256sum` finds them.
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

#[test]
fn links_out_of_the_model_are_not_followed() {
    let mut problems = Vec::new();
    for (name, target) in [
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
    ] {
        let sandbox = Sandbox::new();
        let model = sandbox.copy(LLAMA, "model");
        sandbox.write("secret", r#"{"words": "that are nobody's business"}"#);
        sandbox.write("folder/secret", "words that are nobody's business");
        symlink("secret", sandbox.path("chain")).unwrap();
        let _ = fs::remove_file(model.path(name));
        symlink(target, model.path(name)).unwrap();
        problems.extend(
            sandbox.refuses(UPCYCLE, 1, &[name]).map(|p| format!("{name} → {target}: {p}")),
        );
    }
    for made in ["mkfifo model/NOTICE", "mkdir model/t && mkfifo model/t/x.jinja"] {
        let sandbox = Sandbox::new();
        sandbox.copy(LLAMA, "model");
        sandbox.shell(made).succeeds();
        problems.extend(
            sandbox.refuses(UPCYCLE, 1, &["not a regular file"]).map(|p| format!("{made}: {p}")),
        );
    }
    assert_none(&problems);
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

#[test]
fn side_files_are_looked_at_before_the_work() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    let sized =
        |name: &str, bytes| fs::File::create(model.path(name)).unwrap().set_len(bytes).unwrap();
    // A user may keep data beside a model.
    sized("corpus.txt", 300 << 20);
    sandbox.run(UPCYCLE).succeeds();
    assert!(
        sandbox.json("out/moe-convert.json")["left_out"]["corpus.txt"]
            .as_str()
            .unwrap()
            .contains("large")
    );
    // Files that loaders know are never so large, and are refused before anything is read.
    for name in
        ["tokenizer.model", "generation_config.json", "chat_template.jinja", "tokenization_x.py"]
    {
        sized(name, 2 << 30);
        sandbox.run(&UPCYCLE.replace("out", "again")).exits(1).says(&[
            name,
            "no file of this name",
            "remedy",
        ]);
        model.remove(name);
    }
    model.write("generation_config.json", "{");
    sandbox
        .run(&UPCYCLE.replace("out", "said"))
        .succeeds()
        .says(&["generation_config.json is not JSON"]);
    assert!(!sandbox.names(".").iter().any(|name| name.contains("again")));
}

#[test]
fn of_two_sets_of_weights_transformers_is_read_and_both_are_named() {
    let sandbox = Sandbox::new();
    // A sharded model, beside a whole file of other values.
    for (name, options) in [("model", "--max-shard-size 30KB"), ("base", "")] {
        sandbox
            .run(&format!("upcycle golden/{LLAMA} -o {name} --experts 4 --top-k 1 {options}"))
            .succeeds();
        ["moe-convert.json", "SHA256SUMS", "run.json"]
            .iter()
            .for_each(|file| fs::remove_file(sandbox.path(name).join(file)).unwrap());
    }
    let (model, base) =
        (Checkpoint::new(sandbox.path("model")), Checkpoint::new(sandbox.path("base")));
    base.edit_bytes(SHARD, |bytes| bytes.iter_mut().rev().take(400).for_each(|byte| *byte = 0));
    sandbox.write("ids.json", "[[1, 2, 3], [4, 5]]");
    let logits = |name: &str, output: &str| {
        sandbox.run(&format!("logits {name} --tokens ids.json -o {output}")).succeeds()
    };
    logits("model", "of-shards");
    logits("base", "of-file");
    fs::copy(base.path(SHARD), model.path(SHARD)).unwrap();
    let whole = "two sets of weights";
    for line in ["verify model", "inspect model"] {
        let outcome = sandbox.run(line).succeeds();
        assert!(
            outcome.stdout.contains(whole)
                && outcome.stdout.contains("shards of model.safetensors.index.json")
        );
    }
    logits("model", "of-both").says(&[whole]);
    assert!(
        sandbox.read("of-both") == sandbox.read("of-file")
            && sandbox.read("of-both") != sandbox.read("of-shards")
    );
    let outcome =
        sandbox.run("prune model -o out --experts 2 --criterion random --json").succeeds();
    assert!(outcome.json()["receipt"]["warnings"].to_string().contains(whole), "{outcome}");
    // An index of the same file is not a second set. Pickled weights and Mistral's own are.
    model.edit_json(INDEX, |index| {
        index["weight_map"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .for_each(|shard| *shard = json!(SHARD));
    });
    assert!(!sandbox.run("verify model").succeeds().stdout.contains(whole));
    for (name, who) in [
        ("pytorch_model.bin", "is not read"),
        ("consolidated.safetensors", "vLLM reads that instead"),
    ] {
        model.write(name, "x");
        let said = sandbox.run("verify model").succeeds().stdout;
        assert!(said.contains(name) && said.contains(who), "{said}");
        model.remove(name);
    }
    // Files that no index names, and indexes of a variant, count as well.
    sandbox.shell("rm model/model-*.safetensors").succeeds();
    fs::remove_file(model.path(SHARD)).unwrap();
    fs::copy(base.path(SHARD), model.path("whole.safetensors")).unwrap();
    model.edit_json(INDEX, |index| {
        index["weight_map"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .for_each(|shard| *shard = json!("./whole.safetensors"));
    });
    model.make_directory(SHARD);
    for name in
        ["model-00009-of-00009.safetensors", "MODEL.safetensors", "other.safetensors.index.json"]
    {
        model.write(name, "x");
        let said = sandbox.run("verify model").succeeds().stdout;
        assert!(said.contains(name), "{said}");
        model.remove(name);
    }
    assert!(!sandbox.run("verify model").succeeds().stdout.contains("move what isn't meant"));
    fs::remove_dir(model.path(SHARD)).unwrap();
    fs::copy(base.path(SHARD), model.path(SHARD)).unwrap();
    model.edit_json(INDEX, |index| {
        let files = ["whole.safetensors", SHARD].into_iter().cycle();
        index["weight_map"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .zip(files)
            .for_each(|(shard, file)| *shard = json!(file));
    });
    // transformers reads only the file of the usual name, which holds all tensors.
    let said = sandbox.run("verify model").succeeds().stdout;
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
