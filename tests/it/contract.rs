//! Tests the contract of the command line: exit codes, what goes to stdout and stderr, and the
//! content of outputs.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{BINARY, Sandbox, has, root, tensors};
use serde_json::{Value, json};

const LOGITS: &str =
    "logits golden/models/dense --tokens golden/models/dense.tokens.json -o logits.safetensors";
const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 4 --top-k 2";
/// Commands that succeed, to be run in this order.
const COMMANDS: &[&str] = &[
    "inspect golden/models/moe",
    LOGITS,
    "upcycle golden/models/dense -o out --experts 4 --top-k 2 --dry-run",
    UPCYCLE,
    "upcycle golden/models/dense -o out --experts 4 --top-k 2 --resume",
    "verify out",
    "eval out --data golden/text/english.heldout.txt --data-tokens 64 --original golden/models/dense --max-kl 1",
];

#[test]
fn json_is_all_that_goes_to_stdout() {
    let sandbox = Sandbox::new();
    for command in COMMANDS {
        let outcome = sandbox.run(&format!("{command} --json --timings")).succeeds();
        assert!(outcome.json().is_object(), "{outcome}");
    }
}

#[test]
fn json_tells_what_was_found() {
    let sandbox = Sandbox::new();
    let moe = sandbox.run("inspect golden/models/moe --json").succeeds().json();
    assert_eq!(moe["moe"]["experts"], 24);
    assert_eq!(moe["moe"]["top_k"], 4);
    let logits = sandbox.run(&format!("{LOGITS} --json")).succeeds().json();
    assert_eq!(logits["shape"], json!([41, 2048]));
    let receipt = sandbox.run(&format!("{UPCYCLE} --json")).succeeds().json()["receipt"].clone();
    assert_eq!(receipt, sandbox.json("out/moe-convert.json"));
    let verified = sandbox.run("verify out --json").succeeds().json();
    assert_eq!(verified["experts"], 16);
}

#[test]
fn quantize_warns_of_what_verify_finds_in_its_result() {
    let sandbox = Sandbox::new();
    let options = [
        "w4a16",
        "w4a16 --group-size -1",
        "w4a16 --asymmetric",
        "w3a16",
        "w8a16 --format gptq",
        "w2a16 --format gptq",
        "fp8",
        "fp8-block",
        "fp8-block --format compressed-tensors",
    ];
    let mut warned = std::collections::BTreeSet::new();
    for scheme in options {
        let line =
            format!("quantize golden/models/moe -o out --overwrite --solver rtn --scheme {scheme}");
        sandbox.run(&line).succeeds();
        let warnings: Vec<String> =
            serde_json::from_value(sandbox.json("out/moe-convert.json")["warnings"].clone())
                .unwrap();
        let verified = sandbox.run("verify out").succeeds();
        let engines: Vec<_> =
            verified.stdout.lines().filter_map(|l| l.trim().strip_prefix("engine ")).collect();
        assert_eq!(engines.len(), 4, "{verified}");
        let refusing = engines.iter().map(|l| l.trim()).filter(|l| !l.contains(" takes it"));
        assert_eq!(warnings, refusing.collect::<Vec<_>>(), "{scheme}");
        warned.extend(warnings.iter().filter_map(|w| w.split(' ').next().map(str::to_owned)));
    }
    assert_eq!(warned.into_iter().collect::<Vec<_>>(), ["SGLang", "transformers", "vLLM"]);
}

#[test]
fn text_results_hold_no_progress_and_quiet_holds_its_tongue() {
    let (loud, quiet) = (Sandbox::new(), Sandbox::new());
    for command in COMMANDS {
        let with = loud.run(command).succeeds();
        let without = quiet.run(&format!("{command} --quiet")).succeeds();
        assert_eq!(without.stderr, "", "{without}");
        // The time, and the memory already held when the estimate is made, differ from run to run.
        let of_the_run = |line: &&str| {
            ["time ", "memory "].iter().any(|word| line.trim_start().starts_with(word))
        };
        let facts = |text: &str| {
            text.lines().filter(|l| !of_the_run(l)).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(facts(&with.stdout), facts(&without.stdout), "{command}");
        assert!(!with.stdout.contains('\x1b') && !with.stderr.contains('\x1b'), "{with}");
    }
    // Errors are not progress.
    loud.run("inspect nowhere --quiet").exits(1).says(&["nowhere"]);
}

#[test]
fn readers_may_leave() {
    let sandbox = Sandbox::new();
    sandbox.run(UPCYCLE).succeeds();
    for command in [
        "inspect golden/models/moe",
        "inspect out --json",
        "verify out",
        "--help",
        "upcycle --help",
    ] {
        for reader in ["head -0", "true", "head -c 1"] {
            let outcome = sandbox
                .shell(&format!("set -o pipefail; moe-convert {command} | {reader} >/dev/null"));
            assert!(!outcome.stderr.contains("panicked"), "{outcome}");
            outcome.exits(0);
        }
    }
}

#[test]
fn stderr_may_be_gone() {
    let sandbox = Sandbox::new();
    for stderr in ["2>/dev/full", "2>&-", "2> >(true)"] {
        sandbox.shell(&format!("moe-convert verify golden/models/moe {stderr} >verified")).exits(0);
        assert!(sandbox.read("verified").starts_with(b"golden/models/moe: sound"), "{stderr}");
        sandbox.shell(&format!("moe-convert inspect nowhere {stderr}")).exits(1);
    }
}

#[test]
fn version_and_help() {
    let sandbox = Sandbox::new();
    let version = sandbox.run("--version").succeeds().stdout;
    assert_eq!(version.trim(), concat!("moe-convert ", env!("CARGO_PKG_VERSION")));
    let help = sandbox.run("--help").succeeds();
    assert!(
        help.stderr.is_empty()
            && help.stdout.contains("Exit codes: 0 done, 1 failed, 2 bad usage, 3")
    );
}

#[test]
fn logits_are_those_of_transformers() {
    let sandbox = Sandbox::new();
    let mut cases: Vec<_> = ["llama/base", "qwen2_moe/base", "mixtral/sharded", "olmoe/base"]
        .map(|c| {
            (
                format!("families/{c}/model"),
                format!("families/{c}/tokens.json"),
                format!("families/{c}/reference.safetensors"),
            )
        })
        .into();
    for name in ["dense", "moe"] {
        cases.push((
            format!("models/{name}"),
            format!("models/{name}.tokens.json"),
            format!("models/{name}.logits.safetensors"),
        ));
    }
    for (model, tokens, reference) in cases {
        sandbox
            .run(&format!(
                "logits golden/{model} --tokens golden/{tokens} -o l.safetensors --overwrite"
            ))
            .succeeds();
        let written = tensors::read(&sandbox.path("l.safetensors"));
        assert_eq!(written.keys().collect::<Vec<_>>(), ["logits"]);
        let expected = &tensors::read(&root().join("golden").join(reference))["logits"];
        let difference = tensors::max_difference(&written["logits"], expected);
        assert!(difference < 1e-4, "{model}: {difference}");
    }
}

/// golden/routing tests what the routers of each family do in bf16. This test is about the option
/// that asks for it, and about receipts, which record it.
#[test]
fn routers_compute_in_the_models_dtype_on_request() {
    let sandbox = Sandbox::new();
    for (family, rounds) in
        [("mixtral", true), ("qwen3_moe", true), ("deepseek_v3", false), ("glm4_moe", false)]
    {
        let golden = format!("golden/families/{family}/base");
        for dtype in ["f32", "model"] {
            let line =
                format!("logits {golden}/model --tokens {golden}/tokens.json -o {family}.{dtype}");
            sandbox.run(&format!("{line} --router-dtype {dtype}")).succeeds();
        }
        let [wide, rounded] = ["f32", "model"]
            .map(|dtype| tensors::read(&sandbox.path(&format!("{family}.{dtype}"))));
        let apart = tensors::max_difference(&wide["logits"], &rounded["logits"]);
        assert!(
            if rounds { apart > 1e-4 && apart < 0.5 } else { apart == 0.0 },
            "{family}: {apart}"
        );
    }
    let prune = "prune golden/models/moe -o out --experts 12 --criterion reap --data-tokens 512 \
                 --data golden/text/code.calibration.txt";
    sandbox.run(&format!("{prune} --router-dtype model")).succeeds();
    assert_eq!(sandbox.json("out/moe-convert.json")["router_dtype"], "model");
    sandbox.run(prune).exits(2).says(&["out"]);
    let again = sandbox.run(&format!("{prune} --resume --router-dtype model")).succeeds();
    assert!(again.stdout.contains("is finished already"), "{again}");
    sandbox.run(&format!("{prune} --resume")).exits(2).says(&["other options"]);
    sandbox
        .run(&format!("{prune} --router-dtype bf16"))
        .exits(2)
        .says(&["possible values", "model"]);
}

#[test]
fn a_device_that_is_not_there() {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        return;
    }
    let sandbox = Sandbox::new();
    let cuda = sandbox.run(&format!("{LOGITS} --device cuda:0")).exits(1).says(&["CUDA", "remedy"]);
    assert!(cuda.stdout.is_empty());
    sandbox.run(&format!("{LOGITS} --device metal")).exits(1).says(&["Metal", "remedy"]);
    // Commands that read only headers need no device.
    sandbox.run(LOGITS).succeeds();
    sandbox.run(&format!("{LOGITS} --device auto --overwrite")).succeeds();
}

/// Asserts that every file of two outputs is the same, byte for byte, except run.json.
#[track_caller]
fn assert_same_output(sandbox: &Sandbox, a: &str, b: &str) {
    let names = sandbox.names(a);
    assert_eq!(names, sandbox.names(b));
    for name in names.iter().filter(|n| *n != "run.json") {
        assert!(
            sandbox.read(&format!("{a}/{name}")) == sandbox.read(&format!("{b}/{name}")),
            "{name} differs"
        );
    }
}

#[test]
fn threads_change_nothing() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense --experts 4 --top-k 2 --noise-std 0.02 --noise-fraction 0.5 --seed 3";
    for threads in [1, 2, 5] {
        // The name of the output is part of the model card.
        sandbox.run(&format!("{upcycle} -o {threads}/out --threads {threads}")).succeeds();
        let logits = LOGITS.replace("logits.safetensors", &format!("{threads}.safetensors"));
        sandbox.run(&format!("{logits} --threads {threads}")).succeeds();
    }
    for threads in ["2", "5"] {
        assert_same_output(&sandbox, "1/out", &format!("{threads}/out"));
        assert!(sandbox.read("1.safetensors") == sandbox.read(&format!("{threads}.safetensors")));
    }
}

#[test]
fn the_seed_decides() {
    let sandbox = Sandbox::new();
    for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        let upcycle = UPCYCLE.replace("-o out", &format!("-o {name}/out"));
        sandbox.run(&format!("{upcycle} --seed {seed}")).succeeds();
    }
    assert_same_output(&sandbox, "a/out", "b/out");
    let (a, c) = (tensors::read(&sandbox.path("a/out")), tensors::read(&sandbox.path("c/out")));
    let changed: Vec<_> = a.keys().filter(|name| a[*name] != c[*name]).collect();
    let routers: Vec<_> =
        (0..4).map(|l| format!("model.layers.{l}.block_sparse_moe.gate.weight")).collect();
    assert_eq!(changed, routers.iter().collect::<Vec<_>>());
}

#[test]
fn upcycling_copies_what_it_does_not_change() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    model.set("my_training_run", json!({"nested": [1, 2.5, null]}));
    model.write("chat_template.jinja", "{{ messages }}");
    sandbox.run("upcycle model -o out --experts 3 --top-k 2").succeeds();
    let (dense, moe) = (tensors::read(&sandbox.path("model")), tensors::read(&sandbox.path("out")));
    let mut expected = 0;
    for (name, tensor) in &dense {
        let experts = match name.split_once(".mlp.") {
            None => vec![name.clone()],
            Some((layer, projection)) => {
                let renamed = projection
                    .replace("gate_proj", "w1")
                    .replace("up_proj", "w3")
                    .replace("down_proj", "w2");
                (0..3).map(|e| format!("{layer}.block_sparse_moe.experts.{e}.{renamed}")).collect()
            }
        };
        expected += experts.len();
        for expert in experts {
            assert!(moe[&expert] == *tensor, "{expert} is not {name}");
        }
    }
    assert_eq!(moe.len(), expected + 4, "a router for each layer, and nothing else");
    let config = sandbox.json("out/config.json");
    assert_eq!(config["my_training_run"], json!({"nested": [1, 2.5, null]}));
    assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
    for file in
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        assert!(
            sandbox.read(&format!("out/{file}")) == sandbox.read(&format!("model/{file}")),
            "{file}"
        );
    }
}

#[test]
fn sharded_outputs_have_an_index_that_the_weights_obey() {
    let sandbox = Sandbox::new();
    sandbox.run(&format!("{UPCYCLE} --max-shard-size 1MB")).succeeds();
    let index = sandbox.json("out/model.safetensors.index.json");
    let weight_map = index["weight_map"].as_object().unwrap();
    let mut bytes = 0;
    for (name, tensor) in tensors::read(&sandbox.path("out")) {
        let shard = weight_map[&name].as_str().unwrap();
        assert!(tensors::read(&sandbox.path("out").join(shard)).contains_key(&name), "{name}");
        bytes += tensor.bytes.len();
    }
    assert_eq!(index["metadata"]["total_size"], bytes);
    sandbox.run("verify out").succeeds();
}

#[test]
fn what_a_killed_run_left_is_cleared() {
    let sandbox = Sandbox::new();
    sandbox.write(".out.partial-moe-convert/model.safetensors", "half");
    sandbox.run(UPCYCLE).succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out"]);
    sandbox.run("verify out").succeeds();
}

#[test]
fn a_killed_run_leaves_no_result() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense -o out --experts 64 --top-k 2";
    let hidden = sandbox.path(".out.partial-moe-convert");
    // The run is killed when it has begun, and after some of its 66 MB are written.
    for bytes in [0, 1 << 20, 8 << 20] {
        kill_when(&sandbox, upcycle, || {
            let written = hidden.join("model.safetensors").metadata().map_or(0, |file| file.len());
            hidden.is_dir() && written >= bytes
        });
        assert!(hidden.is_dir() && !sandbox.path("out").exists(), "{bytes}");
    }
    sandbox.run(upcycle).succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out"]);
    sandbox.run("verify out").succeeds();
}

/// Kills a run of `line` as soon as `is_reached`, before it ends.
fn kill_when(sandbox: &Sandbox, line: &str, is_reached: impl Fn() -> bool) {
    use std::os::unix::process::ExitStatusExt;
    // Files that an earlier run left would be taken for those of this run.
    sandbox.shell("rm -rf .out.partial-moe-convert").succeeds();
    let mut command = Command::new(BINARY);
    command
        .args(line.split(' '))
        .current_dir(sandbox.path("."))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let (mut child, start) = (command.spawn().unwrap(), Instant::now());
    while !is_reached() {
        assert!(child.try_wait().unwrap().is_none(), "{line} ended before it could be killed");
        assert!(start.elapsed() < Duration::from_secs(60), "{line} never came so far");
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the kill landed");
}

#[test]
fn manifests_are_those_of_sha256sum() {
    let sandbox = Sandbox::new();
    sandbox.run(UPCYCLE).succeeds();
    let listed = String::from_utf8(sandbox.read("out/SHA256SUMS")).unwrap();
    let mut names: Vec<_> = listed.lines().map(|l| l[66..].to_owned()).collect();
    names.extend(["SHA256SUMS".to_owned(), "run.json".to_owned()]);
    names.sort();
    assert_eq!(names, sandbox.names("out"));
    if has(&["sha256sum"], "the manifest was not given to sha256sum") {
        let checked = sandbox.shell("cd out && sha256sum --strict -c SHA256SUMS");
        assert_eq!(checked.code, 0, "{}\n{checked}", checked.stdout);
    }

    for (file, damage) in [
        ("config.json", " "),
        ("tokenizer.json", "x"),
        ("README.md", "x"),
        ("moe-convert.json", " "),
    ] {
        let whole = sandbox.read(&format!("out/{file}"));
        sandbox.write(&format!("out/{file}"), [&whole[..], damage.as_bytes()].concat());
        sandbox.run("verify out").exits(1).says(&[file, "SHA-256", "remedy"]);
        sandbox.write(&format!("out/{file}"), whole);
    }
    std::fs::remove_file(sandbox.path("out/tokenizer_config.json")).unwrap();
    sandbox.run("verify out").exits(1).says(&["tokenizer_config.json", "remedy"]);
}

#[test]
fn the_hub_cache_lays_links() {
    let sandbox = Sandbox::new();
    let blobs = sandbox.copy("families/mixtral/sharded/model", "models--o--n/blobs");
    let snapshot = "models--o--n/snapshots/main";
    std::fs::create_dir_all(sandbox.path(snapshot)).unwrap();
    for name in sandbox.names("models--o--n/blobs") {
        std::os::unix::fs::symlink(blobs.path(&name), sandbox.path(snapshot).join(&name)).unwrap();
    }
    sandbox.run(&format!("verify {snapshot}")).succeeds();
}

#[test]
fn evaluation_agrees_with_transformers() {
    let sandbox = Sandbox::new();
    let reference = sandbox.json("golden/models/reference.json");
    for model in ["dense", "moe"] {
        let data = ["english", "code", "spanish", "arithmetic"]
            .map(|d| format!("--data {d}=golden/text/{d}.heldout.txt"));
        let line =
            format!("eval golden/models/{model} --sequence-length 256 --json {}", data.join(" "));
        let report = sandbox.run(&line).succeeds().json()["report"].clone();
        let expected = &reference["models"][model];
        assert_eq!(report["domains"].as_array().unwrap().len(), data.len());
        for domain in report["domains"].as_array().unwrap() {
            assert_same_domain(domain, &expected["domains"][domain["label"].as_str().unwrap()]);
        }
        assert_same_domain(&report["all"], &expected["total"]);
        if model == "moe" {
            assert_same_load(&report, &expected["expert_counts"]);
        }
    }
}

fn assert_same_domain(found: &Value, expected: &Value) {
    let loss = |v: &Value| v["loss"].as_f64().unwrap();
    assert!((loss(found) - loss(expected)).abs() < 1e-4, "{found} {expected}");
    assert!((found["perplexity"].as_f64().unwrap() - loss(expected).exp()).abs() < 0.01, "{found}");
    assert_eq!(found["tokens"], expected["tokens"]);
    assert_eq!(found["predicted_tokens"], expected["predicted_tokens"]);
}

/// Counts may differ where two experts are tied up to rounding: for at most one token in a
/// thousand.
fn assert_same_load(report: &Value, expected: &Value) {
    for (index, domain) in report["domains"].as_array().unwrap().iter().enumerate() {
        let layers = expected[domain["label"].as_str().unwrap()].as_array().unwrap();
        assert_eq!(report["load"].as_array().unwrap().len(), layers.len());
        for (load, expected) in report["load"].as_array().unwrap().iter().zip(layers) {
            let counts = |v: &Value| serde_json::from_value::<Vec<i64>>(v.clone()).unwrap();
            let (found, expected) = (counts(&load["counts_by_domain"][index]), counts(expected));
            assert_eq!(found.iter().sum::<i64>(), expected.iter().sum::<i64>());
            let moved: i64 = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
            assert!(
                moved * 1000 <= 2 * domain["tokens"].as_i64().unwrap(),
                "{found:?}\n{expected:?}"
            );
        }
    }
}

#[test]
fn the_binary_needs_no_libraries_of_its_own() {
    let sandbox = Sandbox::new();
    if has(&["ldd"], "the libraries of the program were not looked for") {
        let ldd = sandbox.shell(&format!("env -u LD_LIBRARY_PATH ldd '{BINARY}'")).succeeds();
        assert!(
            ldd.stdout.contains("libc.so") && !ldd.stdout.contains("not found"),
            "{}",
            ldd.stdout
        );
    }
}

#[test]
fn selftest_checks_every_family_and_pass() {
    let sandbox = Sandbox::new();
    let found = sandbox.run("selftest --json --device cpu").succeeds();
    let checks = found.json();
    let name = |check: &Value| check["name"].as_str().unwrap().to_owned();
    let names: Vec<_> = checks.as_array().unwrap().iter().map(name).collect();
    // Other checks use the built-in MoE, which is in wheels (.ci/run).
    for (start, least) in [("forward", 76), ("upcycle", 20), ("quantized", 3)] {
        let of_kind =
            checks.as_array().unwrap().iter().filter(|check| name(check).starts_with(start));
        let cases: u64 = of_kind.map(|check| check["cases"].as_u64().unwrap()).sum();
        assert!(cases >= least, "{start}: {cases}");
    }
    for family in std::fs::read_dir(root().join("crates/moe-model/families")).unwrap() {
        let family = family.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(names.contains(&format!("forward {family}")), "{family}: {names:?}");
    }
    for pass in ["upcycle llama", "quantized", "gradients", "distill"] {
        assert!(names.iter().any(|name| name.starts_with(pass)), "{pass}: {names:?}");
    }
    assert!(
        found.stderr.contains("prune, merge and GPTQ are not checked")
            && found.stderr.contains("--features goldens"),
        "{}",
        found.stderr
    );
}
