//! Tests Ctrl-C in the middle of a pass, and the command that it prints.

use crate::common::held::Held;
use crate::common::{Outcome, Sandbox};

/// This run is long enough to be stopped, even on a fast machine.
const QUANTIZE: &str = "quantize golden/models/moe -o out --per-expert --scheme w4a16 --group-size 32 --data golden/text/english.calibration.txt \
                        --data-tokens 16384 --sequence-length 256";

/// The same run between two short steps.
const RECIPE: &str = r#"
[[step]]
run = "verify"
model = "golden/models/moe"
[[step]]
run = "quantize"
model = "golden/models/moe"
output = "out"
scheme = "w4a16"
group-size = 32
data = ["golden/text/english.calibration.txt"]
data-tokens = 16384
sequence-length = 256
[[step]]
run = "inspect"
model = "golden/models/moe"
"#;

/// Stops `command` with `signal` once it writes its result. Its stderr goes to the file `said`.
fn stopped(sandbox: &Sandbox, command: &str, signal: &str) -> Outcome {
    sandbox.held(&Held {
        before: "",
        line: &format!("{command} 2>said"),
        once: "-d .out.partial-moe-convert",
        then: &format!("kill -{signal} $pid"),
    })
}

#[test]
fn a_stopped_run_leaves_nothing_and_goes_on_as_it_says() {
    let sandbox = Sandbox::new();
    stopped(&sandbox, QUANTIZE, "INT").exits(130);
    let said = String::from_utf8(sandbox.read("said")).unwrap();
    assert!(said.contains("stopped by Ctrl-C") && !said.contains("error"), "{said}");
    assert_eq!(sandbox.names("."), ["golden", "said"], "nothing is left behind");
    let command = said.lines().last().unwrap().trim();
    assert!(command.ends_with("--resume"), "{said}");
    sandbox.shell(command).succeeds();
    sandbox.run(&QUANTIZE.replace("-o out", "-o unbroken/out")).succeeds();
    let hashes = |dir: &str| String::from_utf8(sandbox.read(&format!("{dir}/SHA256SUMS"))).unwrap();
    assert_eq!(hashes("out"), hashes("unbroken/out"));
}

#[test]
fn a_scheduler_is_told_the_same() {
    let sandbox = Sandbox::new();
    stopped(&sandbox, QUANTIZE, "TERM").exits(143);
    assert!(String::from_utf8(sandbox.read("said")).unwrap().contains("stopped by SIGTERM"));
    assert_eq!(sandbox.names("."), ["golden", "said"]);
}

/// After a CI job is canceled, its report names the step that ran.
#[test]
fn a_stopped_recipe_leaves_a_report() {
    let sandbox = Sandbox::new();
    sandbox.write("r.toml", RECIPE);
    stopped(&sandbox, "run r.toml --junit r.xml --json", "INT").exits(130);
    let xml = String::from_utf8(sandbox.read("r.xml")).unwrap();
    for part in [
        "tests=\"3\" failures=\"0\" errors=\"1\" skipped=\"1\"",
        "name=\"1. verify: golden/models/moe\"",
        "<error message=\"stopped before its end\">",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let said = String::from_utf8(sandbox.read("said")).unwrap();
    sandbox.shell(said.lines().last().unwrap().trim()).succeeds();
}

#[test]
fn a_stop_is_an_object_for_machines() {
    let sandbox = Sandbox::new();
    let outcome = stopped(&sandbox, &format!("{QUANTIZE} --json"), "INT").exits(130);
    let error = outcome.json()["error"].take();
    assert_eq!((&error["kind"], &error["what"]), (&"stopped".into(), &"stopped by Ctrl-C".into()));
    let remedy = error["remedy"].as_str().unwrap();
    assert!(remedy.starts_with("to run it again: ") && remedy.ends_with("--resume"), "{error}");
}
