//! Tests that the memory that is promised is the memory that is held.

use super::models::{line, model_of_many_experts, models};
use super::{CONVERSIONS, OTHERS, is_honest, peak, refused, size};
use crate::common::Sandbox;
use crate::common::made::{Llama, varied};

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

/// In long sequences scores take most of the memory, particularly in a model with many heads and
/// narrow states.
#[test]
fn long_sequences_hold_what_is_promised() {
    let sandbox = Sandbox::new();
    let heads = Llama { layers: 1, hidden: 64, width: 128, vocab: 512, heads: 32, head_dim: 64 };
    heads.write(&sandbox.path("heads"), varied());
    let text = |length: usize| line(&(0..length).map(|i| i * 7 % 512).collect::<Vec<_>>());
    sandbox.write("2048.jsonl", text(2048));
    sandbox.write("1024.jsonl", text(1024));
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
