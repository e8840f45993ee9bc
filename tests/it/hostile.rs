//! Tests input that was made to do harm: files that ask for more memory, time or depth than there
//! is, paths that aren't files, and names that lead elsewhere. Every command refuses it in a
//! bounded address space, and writes nothing outside of its output.
//!
//! Damaged rather than hostile input is in `bad_input.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::checkpoint::{INDEX, SHARD};
use crate::common::{BINARY, Outcome, Sandbox, assert_none};
use serde_json::json;

/// The address space that a command gets. Commands need far less, including their threads' stacks.
const MAX_KIBIBYTES: u32 = 2 << 20;
/// A time limit for errors. They take less than a second of one core, but the machine may be busy.
const MAX_TIME: Duration = Duration::from_secs(10);

const LLAMA: &str = "families/llama/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";
const LATENT: &str = "families/deepseek_v3/base/model";
const MOE: &str = "families/qwen3_moe/base/model";
const PACKED: &str = "quantize/checkpoints/qwen3_moe.w4";
const CONFIG: &str = "config.json";

/// Commands that read a whole checkpoint before anything else.
const READERS: &[&str] =
    &["inspect model", "verify model", "upcycle model -o out --experts 4 --top-k 2 --dry-run"];

/// Runs `line` in a bounded address space for a bounded time.
fn bounded(sandbox: &Sandbox, line: &str) -> Outcome {
    let seconds = MAX_TIME.as_secs();
    sandbox
        .shell(&format!("ulimit -v {MAX_KIBIBYTES}; timeout -s KILL {seconds} '{BINARY}' {line}"))
}

/// The reason why `line` isn't refused properly, with a message that holds `words`; None if it is.
fn accepted(sandbox: &Sandbox, line: &str, words: &[&str]) -> Option<String> {
    let before = sandbox.contents();
    let outcome = bounded(sandbox, line);
    let mut problems = Vec::new();
    if ![1, 2].contains(&outcome.code) {
        problems.push("exit code".to_owned());
    }
    problems.extend(
        words
            .iter()
            .chain(&["remedy"])
            .filter(|word| !outcome.stderr.contains(**word))
            .map(|word| format!("no {word:?}")),
    );
    problems.extend(
        ["panicked", "\x1b"]
            .iter()
            .filter(|no| outcome.stderr.contains(**no))
            .map(|no| format!("{no:?}")),
    );
    if outcome.stderr.len() > 20_000 {
        problems.push(format!("a message of {} bytes", outcome.stderr.len()));
    }
    if before != sandbox.contents() {
        problems.push("it left a trace".to_owned());
    }
    println!(
        "{:>6} ms  {line}: {}",
        outcome.took.as_millis(),
        outcome.stderr.lines().next().unwrap_or_default()
    );
    let shown: String = outcome.to_string().chars().take(2000).collect();
    (!problems.is_empty()).then(|| format!("{}\n{shown}", problems.join("; ")))
}

struct Case {
    name: &'static str,
    golden: &'static str,
    damage: fn(&crate::common::checkpoint::Checkpoint),
    words: &'static [&'static str],
}

fn case(
    name: &'static str,
    golden: &'static str,
    damage: fn(&crate::common::checkpoint::Checkpoint),
    words: &'static [&'static str],
) -> Case {
    Case { name, golden, damage, words }
}

/// Damages a copy of each golden and runs `commands` on it.
#[track_caller]
fn all_refused(commands: &[&str], cases: &[Case]) {
    let mut problems = Vec::new();
    for Case { name, golden, damage, words } in cases {
        let sandbox = Sandbox::new();
        damage(&sandbox.copy(golden, "model"));
        problems.extend(
            commands
                .iter()
                .filter_map(|line| accepted(&sandbox, line, words))
                .map(|p| format!("{name}: {p}"))
                .next(),
        );
    }
    assert_none(&problems);
}

fn shard(header: &str, data_bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data_bytes]].concat()
}

/// A header of a million empty tensors.
fn million_tensors() -> Vec<u8> {
    let mut header = String::from("{");
    for index in 0..1_000_000 {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(
            header,
            r#"{comma}"t{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        );
    }
    shard(&(header + "}"), 0)
}

/// A header of 90 MB with one tensor of the shape `[1, 1, …]`.
fn endless_shape() -> Vec<u8> {
    let ones = "1,".repeat(45_000_000);
    shard(&format!(r#"{{"t":{{"dtype":"U8","shape":[{ones}1],"data_offsets":[0,1]}}}}"#), 1)
}

#[test]
fn header_bombs() {
    let cases = [
        case(
            "90 MB of nonsense",
            LLAMA,
            |c| c.write(SHARD, shard(&"{\"a\"".repeat(22_500_000), 0)),
            &[SHARD, "header"],
        ),
        case(
            "90 MB of blanks",
            LLAMA,
            |c| c.write(SHARD, shard(&" ".repeat(90_000_000), 0)),
            &[SHARD, "header"],
        ),
        case(
            "a million tensors",
            LLAMA,
            |c| c.write(SHARD, million_tensors()),
            &[SHARD, "262144 tensors"],
        ),
        case(
            "45 million dimensions",
            LLAMA,
            |c| c.write(SHARD, endless_shape()),
            &[SHARD, "64 dimensions"],
        ),
        case(
            "a name of 90 MB",
            LLAMA,
            |c| {
                let name = "n".repeat(90_000_000);
                c.write(
                    SHARD,
                    shard(
                        &format!(
                            r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#
                        ),
                        1,
                    ),
                );
            },
            &[SHARD, "more than 1024 bytes"],
        ),
        case(
            "a dtype of 90 MB",
            LLAMA,
            |c| {
                let dtype = "F".repeat(90_000_000);
                c.write(
                    SHARD,
                    shard(
                        &format!(
                            r#"{{"t":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,1]}}}}"#
                        ),
                        1,
                    ),
                );
            },
            &[SHARD, "FFF"],
        ),
        case(
            "a name that clears the terminal",
            LLAMA,
            |c| c.rename_tensor("lm_head.weight", "a\x1b[2J\nremedy: run rm -rf"),
            &[SHARD, "control characters", "\\u{1b}[2J\\nremedy"],
        ),
        case(
            "a dtype that clears the terminal",
            LLAMA,
            |c| c.edit_header(SHARD, |header| header["lm_head.weight"]["dtype"] = json!("\x1b[2J")),
            &[SHARD, "\\u{1b}[2J"],
        ),
        case(
            "a shape whose product wraps to the right size",
            LLAMA,
            |c| {
                c.edit_header(SHARD, |header| {
                    header["lm_head.weight"]["shape"] = json!([1u64 << 63, 2, 101, 40])
                })
            },
            &[SHARD, "lm_head.weight", "size"],
        ),
        case(
            "a shape of 2^64",
            LLAMA,
            |c| {
                c.edit_header(SHARD, |header| {
                    header["lm_head.weight"]["shape"] = json!([1.8446744073709552e19, 1])
                })
            },
            &[SHARD, "lm_head.weight"],
        ),
    ];
    all_refused(READERS, &cases);
}

/// Ten million unknown keys, and one at the end.
fn crowd(open: &str) -> String {
    let mut text = String::from(open);
    (0..10_000_000).for_each(|index| _ = write!(text, "\"{index}\":[],"));
    text + "\"end\":0}"
}

#[test]
fn indexes_and_configs_of_any_size_and_depth() {
    let cases = [
        case("a deep index", SHARDED, |c| c.write(INDEX, "[".repeat(1_000_000)), &[INDEX, "JSON"]),
        case(
            "a deep key",
            SHARDED,
            |c| c.write(INDEX, format!("{{\"x\":{}", "[".repeat(1_000_000))),
            &[INDEX, "JSON"],
        ),
        case("a crowded index", SHARDED, |c| c.write(INDEX, crowd("{")), &[INDEX, "weight_map"]),
        case(
            "two weight_maps",
            SHARDED,
            |c| c.write(INDEX, r#"{"weight_map":{},"weight_map":{}}"#),
            &[INDEX, "no tensor"],
        ),
        case("NUL", SHARDED, |c| c.write(INDEX, b"{\"weight_map\": {}}\0"), &[INDEX, "JSON"]),
        case(
            "a byte-order mark",
            SHARDED,
            |c| c.write(INDEX, "\u{feff}{\"weight_map\": {}}"),
            &[INDEX, "no tensor"],
        ),
        case(
            "not UTF-8",
            SHARDED,
            |c| c.write(INDEX, b"{\"weight_map\": {\"\xff\": \"a\"}}"),
            &[INDEX, "JSON"],
        ),
        case("a link to itself", SHARDED, |c| link_to(c, INDEX, INDEX), &["model"]),
        case("a device", SHARDED, |c| link_to(c, INDEX, "/dev/zero"), &[INDEX, "regular file"]),
        case("a crowded config", LLAMA, |c| c.write(CONFIG, crowd("{")), &[CONFIG, "8388608"]),
        case(
            "a config of lists",
            LLAMA,
            |c| c.write(CONFIG, format!("{{\"a\":[{}0]}}", "[],".repeat(2_700_000))),
            &[CONFIG, "model_type"],
        ),
        case(
            "a config of blanks",
            LLAMA,
            |c| c.write(CONFIG, " ".repeat(200_000_000)),
            &[CONFIG, "8388608"],
        ),
        case(
            "a config that is a device",
            LLAMA,
            |c| link_to(c, CONFIG, "/dev/zero"),
            &["config.json"],
        ),
        case(
            "a config with two marks",
            LLAMA,
            |c| c.edit_bytes(CONFIG, |b| _ = b.splice(0..0, *b"\xef\xbb\xbf\xef\xbb\xbf")),
            &[CONFIG],
        ),
        case("a config in UTF-16", LLAMA, |c| c.edit_bytes(CONFIG, |b| *b = utf16(b)), &[CONFIG]),
        case("NUL behind it", LLAMA, |c| c.edit_bytes(CONFIG, |b| b.push(0)), &[CONFIG, "JSON"]),
    ];
    all_refused(READERS, &cases);
}

fn utf16(text: &[u8]) -> Vec<u8> {
    [0xff, 0xfe].into_iter().chain(text.iter().flat_map(|byte| [*byte, 0])).collect()
}

fn link_to(c: &crate::common::checkpoint::Checkpoint, name: &str, target: &str) {
    c.remove(name);
    symlink(target, c.path(name)).unwrap();
}

#[test]
fn configs_with_absurd_values() {
    const MOST: i32 = i32::MAX;
    let cases = [
        case(
            "10^9 layers",
            LLAMA,
            |c| c.set("num_hidden_layers", json!(1e9 as u64)),
            &[CONFIG, "num_hidden_layers"],
        ),
        case(
            "layers a fraction",
            LLAMA,
            |c| c.set("num_hidden_layers", json!(2.5)),
            &[CONFIG, "num_hidden_layers", "2.5"],
        ),
        case(
            "layers 1e308",
            LLAMA,
            |c| c.set("num_hidden_layers", json!(1e308)),
            &[CONFIG, "num_hidden_layers"],
        ),
        case(
            "layers NaN",
            LLAMA,
            |c| c.set("num_hidden_layers", json!("NaN")),
            &[CONFIG, "num_hidden_layers", "NaN"],
        ),
        case(
            "heads a list",
            LLAMA,
            |c| c.set("num_attention_heads", json!([4])),
            &[CONFIG, "num_attention_heads"],
        ),
        case(
            "heads 2^31",
            LLAMA,
            |c| c.set("num_attention_heads", json!(1u64 << 31)),
            &[CONFIG, "not a sensible count"],
        ),
        case("eps NaN", LLAMA, |c| c.set("rms_norm_eps", json!("NaN")), &[CONFIG, "rms_norm_eps"]),
        case(
            "an infinite eps",
            LLAMA,
            |c| write_eps(c, "1e999"),
            &[CONFIG, "rms_norm_eps", "is 1e999"],
        ),
        case("a bare NaN", LLAMA, |c| write_eps(c, "NaN"), &[CONFIG, "rms_norm_eps", "NaN"]),
        case(
            "10^9 experts",
            MOE,
            |c| c.set("num_local_experts", json!(1e9 as u64)),
            &["gate.weight"],
        ),
        case(
            "-1 experts",
            MOE,
            |c| c.set("num_local_experts", json!(-1)),
            &[CONFIG, "num_local_experts"],
        ),
        case(
            "half an expert",
            MOE,
            |c| c.set("num_local_experts", json!(0.5)),
            &[CONFIG, "num_local_experts"],
        ),
        case(
            "10^9 experts a token",
            MOE,
            |c| c.set("num_experts_per_tok", json!(1e9 as u64)),
            &[CONFIG, "num_experts_per_tok"],
        ),
        case(
            "dense layers a table",
            MOE,
            |c| c.set("mlp_only_layers", json!({"0": 0})),
            &[CONFIG, "mlp_only_layers"],
        ),
        case("10^9 groups", LATENT, |c| c.set("n_group", json!(1e9 as u64)), &[CONFIG, "n_group"]),
        case(
            "heads that overflow",
            LATENT,
            |c| {
                for key in
                    ["num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "v_head_dim"]
                {
                    c.set(key, json!(MOST));
                }
            },
            &["self_attn.", "shape"],
        ),
        case(
            "10^9 further layers",
            LATENT,
            |c| c.set("num_nextn_predict_layers", json!(MOST)),
            &[],
        ),
        case(
            "bits that wrap to 4",
            PACKED,
            |c| set_weights(c, "num_bits", json!((1u64 << 32) + 4)),
            &[CONFIG, "0 bits"],
        ),
        case("groups of 2^62", PACKED, |c| set_weights(c, "group_size", json!(1u64 << 62)), &[]),
        case(
            "a huge pattern",
            PACKED,
            |c| set_targets(c, json!([format!("re:{}", r"\w{900}".repeat(9))])),
            &[CONFIG, "target"],
        ),
        case(
            "many patterns",
            PACKED,
            |c| set_targets(c, json!(vec!["re:.*"; 100_000])),
            &[CONFIG, "256 patterns"],
        ),
        case(
            "a family elsewhere",
            LLAMA,
            |c| c.set("model_type", json!("../../../etc/passwd")),
            &[CONFIG, "etc/passwd"],
        ),
    ];
    let (harmless, cases): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| case.words.is_empty());
    all_refused(READERS, &cases);
    // Configs count such layers where there are none, and a group may be longer than its row.
    for Case { golden, damage, .. } in harmless {
        let sandbox = Sandbox::new();
        damage(&sandbox.copy(golden, "model"));
        bounded(&sandbox, "inspect model").succeeds();
    }
}

/// JSON has no such number, so this edits the text.
fn write_eps(c: &crate::common::checkpoint::Checkpoint, number: &str) {
    c.set("rms_norm_eps", json!("EPS"));
    c.edit_bytes(CONFIG, |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("\"EPS\"", number).into_bytes()
    });
}

fn set_weights(c: &crate::common::checkpoint::Checkpoint, key: &str, value: serde_json::Value) {
    c.edit_json(CONFIG, |config| {
        let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
        groups.values_mut().for_each(|group| group["weights"][key] = value.clone());
    });
}

fn set_targets(c: &crate::common::checkpoint::Checkpoint, targets: serde_json::Value) {
    c.edit_json(CONFIG, |config| {
        let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
        groups.values_mut().for_each(|group| group["targets"] = targets.clone());
    });
}

/// A model with a tokenizer and a template, and text for it.
fn with_text() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/dense", "model");
    sandbox.write("text.txt", "some words");
    sandbox.write("chat.jsonl", r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
    sandbox
}

#[test]
fn text_tokenizers_and_templates() {
    let deep = "[".repeat(1_000_000);
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let doubling = "{% set s = 'ha' %}".to_owned() + &"{% set s = s ~ s %}".repeat(60) + "{{ s }}";
    let (unclosed, deep_messages) = ("{{ ".repeat(99_999), format!("{{\"messages\":{deep}"));
    let cases: &[(&str, &[u8], &str, &[&str])] = &[
        (
            "model/tokenizer.json",
            deep.as_bytes(),
            "eval model --data text.txt",
            &["tokenizer.json"],
        ),
        ("model/tokenizer.json", b"{}", "eval model --data text.txt", &["tokenizer.json"]),
        // The library that reads this file panics on it.
        (
            "model/tokenizer.json",
            b"{\"decoder\":",
            "eval model --data text.txt",
            &["tokenizer.json"],
        ),
        ("model/tokenizer.json", b"\xff\xfe", "eval model --data text.txt", &["tokenizer.json"]),
        (
            "model/tokenizer_config.json",
            deep.as_bytes(),
            "eval model --data chat.jsonl",
            &["tokenizer_config.json"],
        ),
        (
            "model/chat_template.jinja",
            endless.as_bytes(),
            "eval model --data chat.jsonl",
            &["fuel"],
        ),
        (
            "model/chat_template.jinja",
            doubling.as_bytes(),
            "eval model --data chat.jsonl",
            &["chat_template.jinja", "512 MiB"],
        ),
        (
            "model/chat_template.jinja",
            b"\xff",
            "eval model --data chat.jsonl",
            &["chat_template.jinja", "UTF-8"],
        ),
        (
            "model/chat_template.jinja",
            unclosed.as_bytes(),
            "eval model --data chat.jsonl",
            &["template"],
        ),
        (
            "lines.jsonl",
            deep.as_bytes(),
            "eval model --data lines.jsonl",
            &["lines.jsonl", "line 1"],
        ),
        (
            "lines.jsonl",
            deep_messages.as_bytes(),
            "eval model --data lines.jsonl",
            &["lines.jsonl", "line 1"],
        ),
        (
            "lines.jsonl",
            b"{\"text\": \"\xff\"}",
            "eval model --data lines.jsonl",
            &["lines.jsonl", "UTF-8"],
        ),
        (
            "lines.jsonl",
            b"\xef\xbb\xbf{\"text\": \"a\"}",
            "eval model --data lines.jsonl",
            &["lines.jsonl", "nothing to predict"],
        ),
        (
            "lines.jsonl",
            b"{\"input_ids\": [1, 4294967296]}",
            "eval model --data lines.jsonl",
            &["lines.jsonl", "line 1"],
        ),
        (
            "lines.jsonl",
            b"{\"input_ids\": [1, 4294967295]}",
            "eval model --data lines.jsonl",
            &["lines.jsonl", "4294967295"],
        ),
        (
            "lines.jsonl",
            b"{\"input_ids\": [1, -1]}",
            "eval model --data lines.jsonl",
            &["lines.jsonl", "line 1"],
        ),
        ("lines.txt", b"abc\0\xffdef", "eval model --data lines.txt", &["lines.txt", "UTF-8"]),
        ("ids.json", deep.as_bytes(), "logits model --tokens ids.json -o logits", &["ids.json"]),
        ("ids.json", b"[[1, 1e99]]", "logits model --tokens ids.json -o logits", &["ids.json"]),
        (
            "prompts.json",
            deep.as_bytes(),
            "upcycle model -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json",
            &["prompts.json"],
        ),
    ];
    all_files_refused(cases);
}

/// Writes each file with its content, and runs the command that reads it, which must complain with
/// the given words.
fn all_files_refused(cases: &[(&str, impl AsRef<[u8]>, &str, &[&str])]) {
    let mut problems = Vec::new();
    for (file, content, line, words) in cases {
        let sandbox = with_text();
        sandbox.write(file, content);
        problems.extend(accepted(&sandbox, line, words).map(|p| format!("{file}: {p}")));
    }
    assert_none(&problems);
}

#[test]
fn receipts_manifests_plans_and_statistics() {
    let deep = "[".repeat(1_000_000);
    let (zeros, moe) = ("0".repeat(64), "golden/families/qwen3_moe/base/model");
    let resume = "upcycle model -o out --experts 2 --top-k 1 --resume";
    let prune = format!("prune {moe} -o out --plan plan.json");
    let keep = |keep: &str| format!(r#"{{"layers": {{"0": {{"experts": 4, "keep": {keep}}}}}}}"#);
    let cases: &[(&str, String, &str, &[&str])] = &[
        ("out/moe-convert.json", deep.clone(), resume, &["moe-convert.json"]),
        ("out/moe-convert.json", "\0".into(), resume, &["moe-convert.json"]),
        (
            "model/SHA256SUMS",
            format!("{zeros}  ../outside\n"),
            "verify model",
            &["SHA256SUMS", "line 1"],
        ),
        (
            "model/SHA256SUMS",
            format!("{zeros}  /etc/passwd\n"),
            "verify model",
            &["SHA256SUMS", "line 1"],
        ),
        (
            "model/SHA256SUMS",
            format!("{zeros}  a\n{zeros}  a\n"),
            "verify model",
            &["SHA256SUMS", "line 2"],
        ),
        ("model/SHA256SUMS", "\0".repeat(20_000_000), "verify model", &["SHA256SUMS", "more than"]),
        ("plan.json", deep.clone(), &prune, &["plan.json"]),
        ("plan.json", keep("[0, 18446744073709551615]"), &prune, &["plan.json"]),
        ("plan.json", keep("[0, -1]"), &prune, &["plan.json"]),
        ("plan.json", "[]".into(), &prune, &["plan.json"]),
    ];
    all_files_refused(cases);
}

/// Tests statistics with this model's fingerprint but other shapes.
#[test]
fn forged_statistics() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", r#"{"input_ids": [5, 6, 7, 8]}"#);
    let moe = "golden/families/qwen3_moe/base/model";
    sandbox.run(&format!("observe {moe} -o stats --data ids.jsonl")).succeeds();
    let stats = sandbox.read("stats");
    let header_bytes = u64::from_le_bytes(stats[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&stats[8..8 + header_bytes]).unwrap();
    let about_bytes = header["about"]["shape"][0].as_u64().unwrap() as usize;
    let about: serde_json::Value =
        serde_json::from_slice(&stats[8 + header_bytes..8 + header_bytes + about_bytes]).unwrap();
    // Statistics of no tokens and no experts need no bytes, since every tensor is empty.
    let forge = |edit: &dyn Fn(&mut serde_json::Value), size: &dyn Fn(usize) -> usize| {
        let mut about = about.clone();
        edit(&mut about);
        let text = about.to_string();
        let mut forged = BTreeMap::new();
        forged.insert(
            "about".to_owned(),
            json!({"dtype": "U8", "shape": [text.len()], "data_offsets": [0, text.len()]}),
        );
        let mut end = text.len();
        let tensors =
            header.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("layers."));
        for (name, entry) in tensors {
            let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
            let shape: Vec<usize> = shape
                .into_iter()
                .enumerate()
                .map(|(i, n)| if i == 0 { size(n) } else { n })
                .collect();
            let start = end;
            end += shape.iter().product::<usize>() * 8;
            forged.insert(
                name.clone(),
                json!({"dtype": "F64", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let header = serde_json::to_string(&forged).unwrap();
        let mut file = shard(&header, end);
        file[8 + header.len()..8 + header.len() + text.len()].copy_from_slice(text.as_bytes());
        file
    };
    let cases: [(&str, Vec<u8>, &[&str]); 3] = [
        ("no group", forge(&|about| about["groups"] = json!([]), &|_| 0), &["stats", "no group"]),
        (
            "tokens past 2^53",
            forge(&|about| about["groups"][0]["tokens"] = json!(u64::MAX), &|n| n),
            &["stats", "2^53"],
        ),
        (
            "a negative weight",
            forge(&|about| about["groups"][0]["weight"] = json!(-1), &|n| n),
            &["stats", "weight"],
        ),
    ];
    let mut problems = Vec::new();
    for (name, file, words) in cases {
        sandbox.write("stats", file);
        for line in [
            format!("prune {moe} -o out --experts 4 --stats stats"),
            format!("observe {moe} -o sum --add stats"),
        ] {
            problems.extend(accepted(&sandbox, &line, words).map(|p| format!("{name}: {p}")));
        }
    }
    // A sum that is never negative is made negative.
    let place =
        header["layers.0.tokens"]["data_offsets"][0].as_u64().unwrap() as usize + 8 + header_bytes;
    let mut file = stats.clone();
    file[place..place + 8].copy_from_slice(&(-1e30f64).to_le_bytes());
    sandbox.write("stats", file);
    let words = ["stats", "layers.0.tokens", "is negative"];
    problems.extend(accepted(
        &sandbox,
        &format!("prune {moe} -o out --experts 4 --stats stats"),
        &words,
    ));
    assert_none(&problems);
}

#[test]
fn recipes() {
    let step = "[[step]]\nrun = \"verify\"\nmodel = \"${v0}\"\n";
    let mut doubling = String::from("[vars]\nv63 = \"0123456789\"\n");
    (0..63).rev().for_each(|n| _ = writeln!(doubling, "v{n} = \"${{v{m}}}${{v{m}}}\"", m = n + 1));
    let mut nested = String::from("[vars]\nv5000 = []\n");
    (0..5000).rev().for_each(|n| _ = writeln!(nested, "v{n} = [\"${{v{}}}\"]", n + 1));
    let mut blocks = String::from("[[step]]\n");
    (0..20).for_each(|n| _ = writeln!(blocks, "each.e{n} = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"));
    blocks += "[[step.step]]\nrun = \"verify\"\nmodel = \"x";
    (0..20).for_each(|n| _ = write!(blocks, "${{e{n}}}"));
    let cases = [
        ("deep lists", format!("a = {}", "[".repeat(500_000)), ""),
        ("deep tables", format!("a = {}", "{a = ".repeat(200_000)), ""),
        ("deep keys", format!("{}a = 1", "a.".repeat(400_000)), ""),
        ("variables that double", doubling + step, "make more than"),
        ("variables in variables", nested + step, "make more than"),
        ("10^20 steps", blocks + "\"\n", "more than 10000 steps"),
        ("NUL", "a = \"\0\"".into(), "line 1"),
        ("2 MB", "#".repeat(2_000_000), "1048576"),
    ];
    let mut problems = Vec::new();
    for (name, text, word) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("recipe.toml", text);
        problems.extend(
            accepted(&sandbox, "run recipe.toml", &["recipe.toml", word])
                .map(|p| format!("{name}: {p}")),
        );
    }
    assert_none(&problems);
}

/// Opening a pipe under a file's name would block; a directory can't be read.
#[test]
fn pipes_and_directories_in_place_of_files() {
    let moe = "golden/families/qwen3_moe/base/model";
    let prune = format!("prune {moe} -o out --experts 4");
    let cases = [
        ("model/SHA256SUMS", "verify model"),
        ("model/tokenizer.json", "eval model --data text.txt"),
        ("model/chat_template.jinja", "eval model --data chat.jsonl"),
        ("model/config.json", "inspect model"),
        ("text.txt", "eval model --data text.txt"),
        ("chat.jsonl", "eval model --data chat.jsonl"),
        ("ids.json", "logits model --tokens ids.json -o logits"),
        ("recipe.toml", "run recipe.toml"),
        ("stats", &format!("{prune} --stats stats")),
        ("plan.json", &format!("prune {moe} -o out --plan plan.json")),
        (
            "prompts.json",
            "upcycle model -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json",
        ),
    ];
    let mut problems = Vec::new();
    for make in ["mkfifo", "mkdir", "ln -s /dev/zero"] {
        for (file, line) in cases {
            let sandbox = with_text();
            sandbox.shell(&format!("rm -f {file}; {make} {file}")).succeeds();
            let name = file.trim_start_matches("model/");
            problems
                .extend(accepted(&sandbox, line, &[name]).map(|p| format!("{make} {file}: {p}")));
        }
    }
    assert_none(&problems);
}

/// `huggingface_hub` keeps downloads as links to blobs whose names are hashes.
#[test]
fn links_of_a_hub_cache_are_followed() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(SHARDED, "hub/models--o--n/snapshots/main");
    fs::create_dir(sandbox.path("hub/models--o--n/blobs")).unwrap();
    for name in sandbox.names("hub/models--o--n/snapshots/main") {
        fs::rename(model.path(&name), sandbox.path(&format!("hub/models--o--n/blobs/of-{name}")))
            .unwrap();
        symlink(format!("../../blobs/of-{name}"), model.path(&name)).unwrap();
    }
    sandbox.run("verify hub/models--o--n/snapshots/main").succeeds();
    let before = sandbox.contents();
    sandbox
        .run("prune hub/models--o--n/snapshots/main -o out --experts 4 --criterion random")
        .succeeds();
    assert!(outside(&sandbox, "out") == before);
    for name in sandbox.names("out") {
        assert!(
            sandbox.path("out").join(&name).symlink_metadata().unwrap().is_file(),
            "{name} is no file"
        );
    }
    sandbox.run("verify out").succeeds();
}

/// All files outside of the output.
fn outside(sandbox: &Sandbox, output: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    sandbox.contents().into_iter().filter(|(path, _)| !path.starts_with(output)).collect()
}

#[test]
fn names_in_a_source_lead_nowhere() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy(LLAMA, "model");
    let absolute = sandbox.path("absolute").to_string_lossy().into_owned();
    // Empty tensors with such names are added. Tensors that the family doesn't know keep their
    // names.
    model.edit_header(SHARD, |header| {
        for name in [
            "../upwards",
            "../../upwards.safetensors",
            absolute.as_str(),
            "..",
            "a/b",
            "config.json",
        ] {
            header.insert(
                name.to_owned(),
                json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
            );
        }
    });
    let sum = "0".repeat(64);
    let names: [&[u8]; 4] = [
        b"tokenizer\n",
        &[b"tokenizer\n", sum.as_bytes(), b"  config.json"].concat(),
        b"tokenizer\xff",
        b"tokenizer\\..\\config.json",
    ];
    for name in names {
        fs::write(sandbox.path("model").join(std::ffi::OsStr::from_bytes(name)), "side").unwrap();
    }
    let before = sandbox.contents();
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    assert!(outside(&sandbox, "out") == before);
    // `sha256sum` finds exactly the files that exist.
    sandbox
        .shell(
            "cd out && sha256sum --quiet --strict -c SHA256SUMS && test $(wc -l < SHA256SUMS) = $(($(ls | wc -l) - 2))",
        )
        .succeeds();
    sandbox.run("verify out").succeeds();
}

/// An archive may have brought such links along, beside the place of the output.
#[test]
fn links_under_hidden_names_lead_nowhere() {
    for hidden in [".out.partial-moe-convert", ".logits.partial-moe-convert"] {
        let sandbox = with_text();
        sandbox.write("ids.json", "[[1]]");
        sandbox.write("precious/thesis.tex", "words");
        let target = if hidden.contains("logits") { "precious/thesis.tex" } else { "precious" };
        symlink(target, sandbox.path(hidden)).unwrap();
        let line = match hidden.contains("logits") {
            true => "logits model --tokens ids.json -o logits",
            false => "upcycle model -o out --experts 2 --top-k 1",
        };
        let outcome = bounded(&sandbox, line).exits(1);
        assert_eq!(sandbox.read("precious/thesis.tex"), b"words", "{outcome}");
    }
}
