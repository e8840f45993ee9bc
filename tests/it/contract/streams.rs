//! Tests that stdout has the result, stderr the messages, and that either may be closed.

use serde_json::json;

use super::{LOGITS, UPCYCLE};
use crate::common::Sandbox;

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
