//! Tests that promises of memory are honest, and that a budget is kept, or refused before work
//! starts.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;

use crate::common::{Outcome, Sandbox};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const HIDDEN: usize = 256;
const WIDTH: usize = 512;
const VOCAB: usize = 12_000;
const LAYERS: usize = 3;

/// Writes a dense checkpoint of 12 MB, half of it a vocabulary of realistic size, and one of 8
/// experts made from it.
fn models(sandbox: &Sandbox) {
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]);
    shapes.insert("model.norm.weight".into(), vec![HIDDEN]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape.into())
        };
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        for projection in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{projection}_proj"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[WIDTH, HIDDEN]);
        add("mlp.up_proj", &[WIDTH, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, WIDTH]);
    }
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "vocab_size": VOCAB, "tie_word_embeddings": true,
    });
    write(sandbox, "dense", &shapes, &config);
    let mut state = 1u32;
    sandbox.run("upcycle dense -o moe --experts 8 --top-k 2 --noise-std 1e-2").succeeds();
    for (name, sequences) in [("text.jsonl", 18), ("held.jsonl", 3)] {
        let mut ids = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % VOCAB
        };
        let sequences: Vec<Vec<usize>> =
            (0..sequences).map(|_| (0..512).map(|_| ids()).collect()).collect();
        let lines: String =
            sequences.iter().map(|ids| format!("{{\"input_ids\": {ids:?}}}\n")).collect();
        sandbox.write(name, lines);
        sandbox.write(&format!("{name}.ids"), format!("{sequences:?}"));
    }
}

/// Writes a checkpoint of tensors of `shapes`.
fn write(
    sandbox: &Sandbox,
    name: &str,
    shapes: &BTreeMap<String, Vec<usize>>,
    config: &serde_json::Value,
) {
    // Numbers of bf16 between 2⁻⁷ and 2⁻⁵, of either sign: no two rows are alike.
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (0x3c00 + ((state >> 16) & 0x80ff)) as u16
    };
    let data: BTreeMap<String, Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            (name.clone(), (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect())
        })
        .collect();
    let views = shapes
        .iter()
        .map(|(n, shape)| (n, TensorView::new(Dtype::BF16, shape.clone(), &data[n]).unwrap()));
    let dir = sandbox.path(name);
    std::fs::create_dir(&dir).unwrap();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// All commands that promise memory.
const CONVERSIONS: [(&str, &str); 27] = [
    ("upcycle", "dense --experts 8 --top-k 2"),
    ("upcycle", "dense --experts 8 --top-k 2 --noise-std 1e-2"),
    ("prune", "moe --experts 4 --data text.jsonl"),
    ("prune", "moe --experts 4 --stats stats.safetensors --held-out held.jsonl"),
    ("merge", "moe --experts 4 --data text.jsonl"),
    ("quantize", "moe --scheme w4a16 --data text.jsonl --top-up-below 0.1"),
    ("quantize", "moe --scheme w4a16 --include attention --data text.jsonl --top-up-below 0.1"),
    ("quantize", "moe --scheme w4a16 --solver rtn --include attention"),
    (
        "quantize",
        "moe --scheme w4a16 --data held.jsonl --pool text.jsonl --pool-tokens 8192 --pool-added-tokens 4096 --top-up-below 0.1",
    ),
    ("distill", "moe --width 256 --steps 4 --data text.jsonl"),
    ("heal", "moe --train router --steps 1 --data text.jsonl --batch-tokens 1024"),
    (
        "heal",
        "moe --train experts --steps 1 --data text.jsonl --batch-tokens 1024 --held-out held.jsonl",
    ),
    (
        "heal",
        "moe --train all --steps 2 --data text.jsonl --batch-tokens 1024 --original moe --original-logits top-k",
    ),
    (
        "heal",
        "moe --train experts --steps 2 --data text.jsonl --batch-tokens 512 --accumulate 2 --held-out held.jsonl \
         --held-out-tokens 512",
    ),
    ("upcycle", "dense --experts 8 --top-k 2 --probe-tokens 4096"),
    ("quantize", "moe --scheme fp8 --held-out held.jsonl"),
    ("upcycle", "dense --experts 8 --top-k 2 --router kmeans --data text.jsonl"),
    (
        "upcycle",
        "dense --experts 8 --top-k 2 --init partition --partition-by activations --router activations --data text.jsonl",
    ),
    ("prune", "moe --experts 4 --criterion ranked-choice --data text.jsonl"),
    ("prune", "moe --experts 6 --criterion exhaustive --data text.jsonl"),
    ("prune", "moe --experts 4 --criterion leave-one-out --data text.jsonl"),
    ("merge", "moe --experts 4 --algorithm mergemoe --data text.jsonl"),
    ("merge", "moe --experts 4 --algorithm hc-smoe --data text.jsonl"),
    ("quantize", "moe --scheme w4a16 --calibrate-on all-experts --data text.jsonl"),
    ("quantize", "moe --target-bits 5 --data text.jsonl --top-up-below 0.1"),
    (
        "distill",
        "moe --width 256 --steps 1 --student-steps 2 --batch-tokens 8192 --data text.jsonl",
    ),
    (
        "distill",
        "moe --width 512 --init mean --steps 1 --data text.jsonl --held-out held.jsonl --held-out-tokens 1024",
    ),
];

/// Runs with small buffers or buffers of many sizes, where the allocator keeps a large share of the
/// memory. `{E}` stands for a text. The last run is on a model with many experts.
const SMALL_BUFFERS: [(&str, &str); 6] = [
    ("merge", "golden/models/moe --experts 8 --data {E}"),
    ("prune", "golden/models/moe --experts 12 --criterion ranked-choice --data {E}"),
    ("quantize", "golden/models/moe --target-bits 5.5 --data {E}"),
    (
        "upcycle",
        "golden/models/dense --experts 64 --top-k 8 --init partition --partition-by activations \
         --router activations --data {E}",
    ),
    (
        "heal",
        "golden/models/moe --train experts --steps 4 --precision bf16 --accumulate 4 --batch-tokens 512 --data {E}",
    ),
    ("prune", "many --experts 64 --criterion reap --data text.jsonl"),
];

/// Writes a model with 128 small experts in its only layer.
fn model_of_many_experts(sandbox: &Sandbox) {
    const EXPERTS: usize = 128;
    const NEURONS: usize = 128;
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]);
    shapes.insert("model.norm.weight".into(), vec![HIDDEN]);
    shapes.extend(
        ["input_layernorm", "post_attention_layernorm"].map(|name| (layer(name), vec![HIDDEN])),
    );
    shapes.extend(
        ["q", "k", "v", "o"]
            .map(|name| (layer(&format!("self_attn.{name}_proj")), vec![HIDDEN, HIDDEN])),
    );
    shapes.extend(
        ["q_norm", "k_norm"].map(|name| (layer(&format!("self_attn.{name}")), vec![HIDDEN / 4])),
    );
    shapes.insert(layer("mlp.gate"), vec![EXPERTS, HIDDEN]);
    for expert in 0..EXPERTS {
        let of = |name: &str| layer(&format!("mlp.experts.{expert}.{name}_proj"));
        shapes.extend(["gate", "up"].map(|name| (of(name), vec![NEURONS, HIDDEN])));
        shapes.insert(of("down"), vec![HIDDEN, NEURONS]);
    }
    let config = serde_json::json!({
        "model_type": "qwen3_moe", "hidden_size": HIDDEN, "intermediate_size": NEURONS, "moe_intermediate_size": NEURONS,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": HIDDEN / 4,
        "vocab_size": VOCAB, "num_experts": EXPERTS, "num_experts_per_tok": 8, "norm_topk_prob": true,
        "tie_word_embeddings": true,
    });
    write(sandbox, "many", &shapes, &config);
}

/// Commands that say how much memory they need only where a budget is too small.
const OTHERS: [&str; 6] = [
    "observe moe -o stats.safetensors --data text.jsonl",
    "eval moe --data held.jsonl",
    "eval moe --original dense --data held.jsonl",
    "eval dense --original moe --data held.jsonl",
    "logits moe --tokens held.jsonl.ids -o logits.safetensors",
    "selftest",
];

/// The size after `before` in `text`, in bytes.
fn size(text: &str, before: &str) -> Option<f64> {
    let mut words = text.split_once(before)?.1.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let unit = words.next()?.trim_end_matches(',');
    [("kB", 1e3), ("MB", 1e6), ("GB", 1e9)]
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, unit)| number * unit)
}

fn peak(sandbox: &Sandbox, line: &str) -> f64 {
    let outcome = sandbox.run(&format!("{line} --quiet --timings --threads 2"));
    assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
    size(&outcome.stderr, "  peak memory ").unwrap()
}

/// Whether a promise is within a quarter of the memory that was held. It may be higher by the
/// writer's buffers, which small results leave unused.
fn is_honest(promised: f64, held: f64) -> bool {
    const UNUSED: f64 = 16e6;
    0.75 * held < promised && promised < 1.25 * held + UNUSED
}

/// The refusal of a run with too small a budget.
fn refused(sandbox: &Sandbox, line: &str, budget: &str) -> Outcome {
    let outcome = sandbox.run(&format!("{line} --quiet --memory-budget {budget}"));
    assert_eq!(outcome.code, 2, "{line}: {}", outcome.stderr);
    outcome
}

#[test]
fn what_is_promised_is_what_is_held() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    let mut problems = Vec::new();
    let mut compare = |line: &str, promised: f64, held: f64| {
        println!("{line}: promised {:.0} MB, held {:.0} MB", promised / 1e6, held / 1e6);
        if !is_honest(promised, held) {
            problems.push(format!(
                "{line}: promised {:.0} MB, held {:.0} MB",
                promised / 1e6,
                held / 1e6
            ));
        }
    };
    for line in OTHERS {
        let text = refused(&sandbox, line, "30MB").stderr;
        let promised = size(&text, "at least about ").unwrap_or_else(|| panic!("{text}"));
        let held = peak(&sandbox, &format!("{line} --memory-budget {}", (promised * 1.01) as u64));
        compare(line, promised, held);
        assert!(held < 1.01 * promised, "{line}: {promised} became {held}");
    }
    model_of_many_experts(&sandbox);
    for (index, (command, options)) in CONVERSIONS.iter().chain(&SMALL_BUFFERS).enumerate() {
        let options = options.replace("{E}", "golden/text/english.calibration.txt");
        let line = format!("{command} {options} -o out-{index}");
        let plan = sandbox.run(&format!("{line} --dry-run --quiet"));
        let promised = size(&plan.stdout, "memory      about ")
            .unwrap_or_else(|| panic!("{line}: {}", plan.stderr));
        compare(&line, promised, peak(&sandbox, &line));
    }
    crate::common::assert_none(&problems);
}

/// The budget that a refusal names, in megabytes.
fn named(refusal: &str) -> u64 {
    let named = refusal.split_once("--memory-budget ").and_then(|(_, rest)| rest.split_once("MB"));
    named.and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("{refusal}"))
}

/// A user who follows the error gets a run that succeeds within the budget that it names.
#[test]
fn a_budget_is_a_ceiling_or_an_error_before_work_starts() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    sandbox.run(&format!("{} --quiet", OTHERS[0])).succeeds();
    let mut problems = Vec::new();
    for (index, (command, options)) in CONVERSIONS.iter().enumerate() {
        let start = std::time::Instant::now();
        let line = format!("{command} {options} -o out-{index}");
        let least = named(&refused(&sandbox, &line, "45MB").stderr);
        assert!(!sandbox.path(&format!("out-{index}")).exists(), "{line}");
        let outcome =
            sandbox.run(&format!("{line} --quiet --timings --threads 2 --memory-budget {least}MB"));
        if outcome.code != 0 {
            problems.push(format!("{line}: {least} MB: {}", outcome.stderr));
            continue;
        }
        let held = size(&outcome.stderr, "  peak memory ").unwrap() / 1e6;
        println!(
            "{line}: at least {least} MB, held {held:.0} MB ({:.1} s)",
            start.elapsed().as_secs_f64()
        );
        if held > least as f64 || outcome.stderr.contains("warning") {
            problems.push(format!(
                "{line}: at least {least} MB, held {held:.0} MB: {}",
                outcome.stderr
            ));
        }
    }
    crate::common::assert_none(&problems);
}

/// Where experts are far wider than states, comparing neurons takes most of the memory.
#[test]
fn wide_experts_are_merged_within_a_budget() {
    const STATES: usize = 256;
    const NEURONS: usize = 1536;
    let sandbox = Sandbox::new();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![512, STATES]);
    shapes.insert("model.norm.weight".into(), vec![STATES]);
    shapes.extend(
        ["input_layernorm", "post_attention_layernorm"].map(|name| (layer(name), vec![STATES])),
    );
    shapes.extend(
        ["q", "k", "v", "o"]
            .map(|name| (layer(&format!("self_attn.{name}_proj")), vec![STATES, STATES])),
    );
    shapes.extend(
        ["gate", "up"].map(|name| (layer(&format!("mlp.{name}_proj")), vec![NEURONS, STATES])),
    );
    shapes.insert(layer("mlp.down_proj"), vec![STATES, NEURONS]);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": STATES, "intermediate_size": NEURONS, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 512, "tie_word_embeddings": true,
    });
    write(&sandbox, "wide", &shapes, &config);
    sandbox
        .run("upcycle wide -o experts --experts 4 --top-k 2 --noise-std 1e-2 --quiet")
        .succeeds();
    let line = |first: usize| {
        format!(
            "{{\"input_ids\": {:?}}}\n",
            (0..64).map(|i| (first + i * 7) % 512).collect::<Vec<_>>()
        )
    };
    sandbox.write("text.jsonl", (0..8).map(line).collect::<String>());
    let mut problems = Vec::new();
    let merged = |method| {
        format!("merge experts -o {method} --algorithm {method} --experts 2 --data text.jsonl")
    };
    let mut lines = ["dern", "ream", "m-smoe", "hc-smoe", "average"].map(merged).to_vec();
    lines.push(
        "distill experts -o mean --init mean --down measured --width 1536 --data text.jsonl"
            .to_owned(),
    );
    for line in lines {
        let least = named(&refused(&sandbox, &line, "30MB").stderr);
        let held = peak(&sandbox, &format!("{line} --memory-budget {least}MB")) / 1e6;
        println!("{line}: at least {least} MB, held {held:.0} MB");
        if held > least as f64 {
            problems.push(format!("{line}: at least {least} MB, held {held:.0} MB"));
        }
    }
    crate::common::assert_none(&problems);
}

/// A user who lowers what a refusal names, instead of raising the budget, gets a run.
#[test]
fn what_a_refusal_says_to_lower_is_enough() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    let heal = "heal moe -o healed --train all --steps 1 --data text.jsonl --memory-budget 500MB --batch-tokens";
    let refusal = sandbox.run(&format!("{heal} 8192 --quiet"));
    assert_eq!(refusal.code, 2, "{}", refusal.stderr);
    let ways =
        refusal.stderr.split_once("or more, or ").unwrap_or_else(|| panic!("{}", refusal.stderr)).1;
    assert!(ways.contains("lower --batch-tokens"), "{ways}");
    sandbox.run(&format!("{heal} 64 --quiet")).succeeds();
    assert!(!ways.contains("--sequence-length"), "{ways}");
    let eval = "eval moe --data text.jsonl --memory-budget 66MB --quiet";
    let refusal = sandbox.run(eval);
    assert_eq!(refusal.code, 2, "{}", refusal.stderr);
    let said =
        refusal.stderr.split_once("(--data-tokens ").and_then(|(_, rest)| rest.split_once(')'));
    let tokens = said.unwrap_or_else(|| panic!("{}", refusal.stderr)).0;
    sandbox.run(&format!("{eval} --data-tokens {tokens}")).succeeds();
    let verify = sandbox.run("verify moe --threads 1 --memory-budget 20MB");
    assert!(verify.code == 2 && !verify.stderr.contains("--threads"), "{}", verify.stderr);
}

#[test]
fn an_address_space_that_is_too_small_is_an_error() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    for (kib, line, remedy) in [
        (
            400_000,
            "heal moe --train all --steps 2 --data text.jsonl --batch-tokens 1024 -o healed",
            "remedy: lower --batch-tokens",
        ),
        (400_000, "eval moe --data held.jsonl", "remedy: lower --data-tokens"),
    ] {
        let outcome =
            sandbox.shell(&format!("ulimit -v {kib}; moe-convert {line} --threads 2 --quiet"));
        assert_eq!(outcome.code, 1, "{line}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("out of memory") && outcome.stderr.contains(remedy),
            "{}",
            outcome.stderr
        );
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        let left: Vec<_> =
            sandbox.names("").into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Under any limit, a run succeeds or says why it can't, and leaves no partial files.
#[test]
fn any_address_space_gives_a_result_or_an_error() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    let lines = [
        "observe moe -o seen.safetensors --data text.jsonl --overwrite",
        "prune moe --experts 4 --data text.jsonl -o out --overwrite",
        "quantize moe --scheme w4a16 --data text.jsonl --top-up-below 0.1 -o out --overwrite",
        "heal moe --train router --steps 1 --data text.jsonl --batch-tokens 1024 -o out --overwrite",
        "distill moe --width 256 --steps 2 --data text.jsonl -o out --overwrite",
        "upcycle dense --experts 8 --top-k 2 --router kmeans --data text.jsonl -o out --overwrite",
        "eval moe --data held.jsonl",
    ];
    let mut problems = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        // Each run gets other limits, from less than threads need to more than the runs need.
        for step in 0..4 {
            let kib = 70_000 + 71_003 * step + 7_001 * index;
            let outcome =
                sandbox.shell(&format!("ulimit -v {kib}; moe-convert {line} --threads 2 --quiet"));
            let said = outcome.code == 0
                || (outcome.code == 1
                    && ["error: ", "  remedy: "].iter().all(|part| outcome.stderr.contains(part)));
            let left = sandbox.names("").into_iter().any(|name| name.starts_with('.'));
            if !said || left || outcome.stderr.contains("panicked") {
                problems
                    .push(format!("ulimit -v {kib}; {line}: {}: {}", outcome.code, outcome.stderr));
            }
        }
    }
    crate::common::assert_none(&problems);
}

/// In long sequences scores take most of the memory, particularly in a model with many heads and
/// narrow states.
#[test]
fn long_sequences_hold_what_is_promised() {
    const HEADS: usize = 32;
    let sandbox = Sandbox::new();
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![512, 64]);
    shapes.insert("model.norm.weight".into(), vec![64]);
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    shapes.extend(
        ["input_layernorm", "post_attention_layernorm"].map(|name| (layer(name), vec![64])),
    );
    shapes.extend(
        ["q", "k", "v"]
            .map(|name| (layer(&format!("self_attn.{name}_proj")), vec![64 * HEADS, 64])),
    );
    shapes.insert(layer("self_attn.o_proj"), vec![64, 64 * HEADS]);
    shapes.extend(["gate", "up"].map(|name| (layer(&format!("mlp.{name}_proj")), vec![128, 64])));
    shapes.insert(layer("mlp.down_proj"), vec![64, 128]);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 64,
        "num_attention_heads": HEADS, "vocab_size": 512, "tie_word_embeddings": true, "max_position_embeddings": 4096,
    });
    write(&sandbox, "heads", &shapes, &config);
    let line = |length: usize| {
        format!("{{\"input_ids\": {:?}}}\n", (0..length).map(|i| i * 7 % 512).collect::<Vec<_>>())
    };
    sandbox.write("2048.jsonl", line(2048));
    sandbox.write("1024.jsonl", line(1024));
    let eval = "eval heads --data 2048.jsonl --sequence-length 2048";
    let promised = size(&refused(&sandbox, eval, "20MB").stderr, "at least about ").unwrap();
    let held = peak(&sandbox, eval);
    assert!(is_honest(promised, held), "eval: promised {promised}, held {held}");
    let heal = "heal heads -o healed --train attention --steps 1 --data 1024.jsonl --sequence-length 1024 --batch-tokens 1024";
    let promised =
        size(&sandbox.run(&format!("{heal} --dry-run")).succeeds().stdout, "memory      about ")
            .unwrap();
    let held = peak(&sandbox, heal);
    assert!(is_honest(promised, held), "heal: promised {promised}, held {held}");
}

/// The budget also bounds the output of chat templates.
#[test]
fn templates_stay_within_a_budget() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    sandbox.write(
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi there all\"}]}\n",
    );
    for template in [
        "{% set x = 'a' * 450000000 %}hello",
        "{{ 'a' * 300000000 }}",
        "{{ ('a' * 100000000) | list | length }}",
    ] {
        model.write("chat_template.jinja", template);
        let outcome = sandbox.run("eval model --data chat.jsonl --memory-budget 150MB --timings");
        let held = size(&outcome.stderr, "  peak memory ");
        outcome.exits(1).says(&["takes more than", "chat_template.jinja", "remedy"]);
        assert!(held.is_none_or(|held| held < 150e6), "{template}: {held:?}");
    }
}
