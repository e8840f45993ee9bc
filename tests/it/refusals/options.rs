//! Tests that command lines which don't parse and options beyond all bounds are refused.

use super::{CODE, MOE, Remedy, Request, remedies_work, requests_refused};
use crate::common::{Sandbox, assert_none};

/// Command lines that clap refuses get a remedy like others; a program without arguments prints its
/// help.
#[test]
fn command_lines_that_do_not_parse_are_refused_with_a_remedy() {
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
fn options_of_eval_that_cannot_work_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    let requests: &[Request] = &[
        ("--max-kl 0.1", 2, &["gate", "--original"]),
        ("--max-loss-increase 0.1", 2, &["--original"]),
        ("--min-agreement 0.9", 2, &["--original"]),
        ("--sequence-length 1", 2, &["--sequence-length 1", "at least 2"]),
        ("--original golden/families/llama/base/model", 1, &["vocabular", "2048", "101"]),
        ("--original nowhere", 1, &["nowhere"]),
        ("--memory-budget 1KiB", 2, &["--memory-budget"]),
    ];
    requests_refused(&sandbox, "eval golden/models/dense --data ids.jsonl", requests);
}

/// The largest number that can be typed.
const MOST: &str = "18446744073709551615";

/// A dry run of `pass` on the built-in MoE and a little text.
fn dry_run(pass: &str) -> String {
    format!("{pass} {MOE} -o out --data {CODE} --data-tokens 256 --dry-run")
}

/// The largest numbers that can be typed, and words that aren't numbers, are refused before any
/// work.
#[test]
fn numbers_beyond_all_bounds_are_no_panics() {
    let sandbox = Sandbox::new();
    let mut problems = Vec::new();
    for (pass, option, value, remedy) in [
        ("heal", "batch-tokens", MOST, "at most 1048576"),
        ("heal", "batch-tokens", "100000000000000", "at most 1048576"),
        ("heal", "accumulate", MOST, "at most 1048576"),
        ("heal", "steps", MOST, "at most 10000000"),
        ("heal", "sequence-length", MOST, "at most 8388608"),
        ("heal", "learning-rate", "nan", "a positive number, such as 1e-4"),
        ("heal", "learning-rate", "-1", "a positive number, such as 1e-4"),
        ("distill", "student-steps", MOST, "at most 10000000"),
        ("distill", "steps", MOST, "at most 10000000"),
        ("quantize", "shrinkage", "1e300", "from 0 to 1e6"),
        ("quantize", "expert-damping", "1e300", "from 0 to 1e6"),
        ("quantize", "top-up-below", "1e300", "from 0 to 1e6"),
    ] {
        let line = format!("{} --{option}={value}", dry_run(pass));
        problems.extend(sandbox.refuses(&line, 2, &[remedy]));
    }
    assert_none(&problems);
}

#[test]
fn numbers_without_bounds_may_be_the_largest() {
    let sandbox = Sandbox::new();
    let merge = format!("{} --keep 0.5 --algorithm hc-smoe", dry_run("merge"));
    sandbox.run(&format!("{merge} --all-experts-every {MOST}")).succeeds();
    sandbox.run(&format!("{} --memory-budget {MOST}", dry_run("heal"))).succeeds();
}

#[test]
fn numbers_of_experts_have_remedies_that_work() {
    let sandbox = Sandbox::new();
    let cases: &[Remedy] = &[
        ("--experts 25", &["has 24 experts", "keep 4 to 24"], "--experts 24"),
        ("--experts 1", &["goes to 4 experts", "keep 4 experts or more"], "--experts 4"),
        ("--keep 0.001", &["keep 4 experts or more, of 24"], "--experts 4"),
        (
            "--experts 12 --divisible-by 1000",
            &["--divisible-by 1000", "--divisible-by 24 or less"],
            "--experts 12 --divisible-by 24",
        ),
        (
            "--experts 24 --divisible-by 16",
            &["--divisible-by 16", "--experts 16 or fewer"],
            "--experts 16 --divisible-by 16",
        ),
    ];
    remedies_work(&sandbox, "prune {moe} -o out --criterion random --dry-run", cases);
}

#[test]
fn tokens_of_a_batch_have_a_bound() {
    let cases: &[Remedy] = &[(
        "--batch-tokens 999999999999",
        &["--batch-tokens 999999999999", "at most 1048576"],
        "--batch-tokens 512",
    )];
    remedies_work(&Sandbox::new(), "distill {moe} -o out --dry-run --data {code}", cases);
}

#[test]
fn logits_per_token_go_with_logits_of_an_original() {
    let cases: &[Remedy] = &[
        (
            "--original-logits-per-token 5",
            &["--original-logits-per-token is for"],
            "--original {moe} --original-logits top-k --original-logits-per-token 5",
        ),
        (
            "--original {moe} --original-logits-per-token 5",
            &["--original-logits-per-token is for"],
            "--original {moe}",
        ),
    ];
    remedies_work(&Sandbox::new(), "heal {moe} -o out --dry-run --data {code}", cases);
}

#[test]
fn distill_says_what_is_too_fast_and_what_is_too_little_text() {
    let sandbox = Sandbox::new();
    let distill = format!("distill {MOE} -o out --data {CODE}");
    let fast =
        sandbox.run(&format!("{distill} --dry-run --relative-learning-rate 1e30")).succeeds();
    let warning = "--relative-learning-rate 1e30 moves weights by many times their size";
    assert!(fast.stdout.contains(warning), "{}", fast.stdout);
    let words = ["--down ridge fits 512 neurons to 2048 tokens or more", "give --down measured"];
    sandbox.must_refuse(&format!("{distill} --data-tokens 512"), 2, &words);
}
