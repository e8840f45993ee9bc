//! Tests failures under `--json`: stdout gets an object that says the same as stderr.

use serde_json::{Deserializer, Value};

use crate::common::{Sandbox, step};

/// The JSON documents in `stdout`, one after the other.
fn documents(stdout: &str) -> Vec<Value> {
    Deserializer::from_str(stdout).into_iter().collect::<Result<_, _>>().unwrap()
}

/// Commands that fail, their exit codes, and the kinds of their errors.
const FAILURES: [(&str, i32, &str); 8] = [
    ("inspect nowhere", 1, "missing"),
    ("verify model", 1, "malformed"),
    ("upcycle model -o out", 2, "usage"),
    ("verify model --no-such-option", 2, "usage"),
    ("verify model --threads 5000", 2, "usage"),
    ("prune golden/models/moe -o out --keep 2 --data golden/text/code.calibration.txt", 2, "usage"),
    ("run recipe.toml", 1, "malformed"),
    ("run nowhere.toml", 1, "io"),
];

#[test]
fn failures_are_objects_where_results_are() {
    let sandbox = Sandbox::new();
    sandbox.copy("models/moe", "model");
    let steps = ["inspect", "verify"].map(|command| step(command, "model", "")).concat();
    sandbox.write("recipe.toml", steps);
    sandbox.write("model/model.safetensors", "");
    for (line, code, kind) in FAILURES {
        let failed = sandbox.run(&format!("{line} --json")).exits(code);
        let printed = documents(&failed.stdout);
        assert_eq!(printed.len(), 1, "{line}: {}", failed.stdout);
        let error = &printed[0]["error"];
        assert_eq!(error["kind"], kind, "{line}: {error}");
        for part in ["what", "remedy"] {
            let said = error[part].as_str().unwrap_or_default();
            let first = said.lines().next().unwrap_or_default();
            assert!(
                !first.is_empty() && failed.stderr.contains(first),
                "{line}: {part} {said:?}\n{failed}"
            );
        }
        assert!(sandbox.run(line).exits(code).stdout.is_empty(), "{line}");
    }
}

#[test]
fn a_measurement_that_misses_a_gate_comes_before_the_failure() {
    let line = "eval golden/models/moe --data golden/text/english.heldout.txt --data-tokens 128 \
                --max-loss-increase -100 --original golden/models/dense --json";
    let failed = Sandbox::new().run(line).exits(3);
    let printed = documents(&failed.stdout);
    assert_eq!(printed.len(), 2, "{}", failed.stdout);
    assert_eq!(printed[0]["gates_failed"].as_array().unwrap().len(), 1, "{}", failed.stdout);
    assert_eq!(printed[1]["error"]["kind"], "gate", "{}", failed.stdout);
}

/// Each part is in a key of its own, whatever found the error.
#[test]
fn the_parts_of_an_error_are_apart() {
    let sandbox = Sandbox::new();
    let gate = "[[step]]\nrun = \"eval\"\nmodel = \"golden/models/moe\"\n\
                data = [\"golden/text/english.heldout.txt\"]\ndata-tokens = 64\n\
                original = \"golden/models/dense\"\ngates = { max-kl = 1e-9 }\n";
    sandbox.write("r.toml", gate);
    for (line, code, kind, what, remedy) in [
        ("inspect golden/models/moe --device cuda:9", 1, "", "cuda", "--device cpu"),
        ("inspect golden/models/moe --device gpu", 2, "usage", "unknown device", "give auto, cpu"),
        ("upcycle golden/models/dense -o out", 2, "usage", "not provided", "--help"),
        ("inspect golden/models/moe --json=true", 2, "usage", "takes no value", "leave =true out"),
        ("run r.toml", 3, "gate", "step 1 (eval) of r.toml failed: quality", "heal it"),
    ] {
        let failed = sandbox.run(&format!("{line} --json")).exits(code);
        let error = documents(&failed.stdout).pop().unwrap()["error"].take();
        let said = error["what"].as_str().unwrap();
        assert!(said.to_lowercase().contains(what) && !said.contains("\n  "), "{line}: {error}");
        assert!(error["remedy"].as_str().unwrap().contains(remedy), "{line}: {error}");
        assert!(kind.is_empty() || error["kind"] == kind, "{line}: {error}");
        assert_eq!(failed.stderr.matches("remedy:").count(), 1, "{}", failed.stderr);
    }
}
