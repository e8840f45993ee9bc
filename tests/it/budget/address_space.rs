//! Tests that a run in too small an address space ends with an error, and leaves nothing.

use super::models::models;
use crate::common::Sandbox;

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
