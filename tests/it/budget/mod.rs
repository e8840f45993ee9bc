//! Tests that promises of memory are honest, and that a budget is kept, or refused before work
//! starts.

#![cfg(target_os = "linux")]

mod address_space;
mod ceilings;
mod models;
mod promises;

use crate::common::passes::assert_has_every_pass;
use crate::common::{Outcome, Sandbox};

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

/// Commands that say how much memory they need only where a budget is too small.
const OTHERS: [&str; 6] = [
    "observe moe -o stats.safetensors --data text.jsonl",
    "eval moe --data held.jsonl",
    "eval moe --original dense --data held.jsonl",
    "eval dense --original moe --data held.jsonl",
    "logits moe --tokens held.jsonl.ids -o logits.safetensors",
    "selftest",
];

#[test]
fn every_pass_promises_memory() {
    assert_has_every_pass("tests/it/budget/mod.rs", CONVERSIONS.map(|(pass, _)| pass));
}

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
