//! Tests writes that fail midway: exit code 1, a message that names the file and the remedy, and no
//! files left.
//!
//! A limit on file sizes stands for a full disk, since it needs no rights; `root/full-disk.sh`
//! fills a real disk.

use crate::common::{Outcome, Sandbox};

/// Runs `line` with files limited to `kibibytes`; a longer write fails with EFBIG.
fn limited(sandbox: &Sandbox, kibibytes: u32, line: &str) -> Outcome {
    sandbox.shell(&format!("ulimit -f {kibibytes}; trap '' XFSZ; moe-convert {line}"))
}

const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 8 --top-k 2";

/// Tests limits at which the tokenizer, the header, or the first or last bytes of the weights fail.
#[test]
fn a_conversion_that_cannot_be_written_leaves_nothing() {
    for kibibytes in [0, 1, 40, 1000, 13_000] {
        let sandbox = Sandbox::new();
        let outcome = limited(&sandbox, kibibytes, UPCYCLE).exits(1).says(&[
            "model.safetensors",
            "remedy",
            "ulimit",
        ]);
        assert!(!outcome.stderr.contains("panicked") && outcome.stdout.is_empty(), "{outcome}");
        assert_eq!(sandbox.names("."), ["golden"], "{outcome}");
    }
}

#[test]
fn side_files_that_cannot_be_written_leave_nothing() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("families/llama/base/model", "model");
    // The file is larger than any shard.
    model.write("NOTICE", vec![b' '; 400_000]);
    let line = "upcycle model -o out --experts 2 --top-k 1";
    let outcome = limited(&sandbox, 300, line).exits(1).says(&["NOTICE", "remedy"]);
    assert_eq!(sandbox.names("."), ["golden", "model"], "{outcome}");
}

#[test]
fn an_earlier_result_survives_a_failed_replacement() {
    let sandbox = Sandbox::new();
    sandbox.run(&format!("{UPCYCLE} --seed 1")).succeeds();
    let before = sandbox.contents();
    limited(&sandbox, 1000, &format!("{UPCYCLE} --seed 2 --overwrite")).exits(1);
    assert!(before == sandbox.contents());
    sandbox.run("verify out").succeeds();
}

#[test]
fn logits_that_cannot_be_written_leave_nothing() {
    let sandbox = Sandbox::new();
    let line =
        "logits golden/models/dense --tokens golden/models/dense.tokens.json -o logits.safetensors";
    limited(&sandbox, 100, line).exits(1).says(&["logits.safetensors", "remedy"]);
    assert_eq!(sandbox.names("."), ["golden"]);
}

/// A full device behind stdout is a failure; a closed pipe is not (see contract/streams.rs).
#[test]
fn results_that_cannot_be_printed() {
    let sandbox = Sandbox::new();
    for command in ["inspect golden/models/dense", "inspect golden/models/dense --json"] {
        let outcome =
            sandbox.shell(&format!("moe-convert {command} > /dev/full")).exits(1).says(&["stdout"]);
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
}
