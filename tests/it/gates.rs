//! Tests that gates that can't be met or have no meaning are refused before any work, on the
//! command line and in recipes.

use crate::common::{Sandbox, step};

/// A gate, a limit that no model can meet, and words of the remedy.
const BAD: [(&str, &str, &str); 11] = [
    ("min-agreement", "90", "0.9 for 90 %"),
    ("min-agreement", "0", "above 0, at most 1"),
    ("min-agreement", "-0.1", "above 0, at most 1"),
    ("min-agreement", "nan", "above 0, at most 1"),
    ("min-agreement", "inf", "above 0, at most 1"),
    ("max-kl", "-1", "from 0 on"),
    ("max-kl", "nan", "from 0 on"),
    ("max-kl", "inf", "from 0 on"),
    ("max-loss-increase", "nan", "nats"),
    ("max-loss-increase", "inf", "nats"),
    ("golden-tolerance", "-1", "from 0 on"),
];

const EVAL: &str = "eval golden/models/dense --original golden/models/dense --data t=golden/text/english.heldout.txt";

#[test]
fn limits_that_nothing_keeps_are_refused_at_once() {
    let sandbox = Sandbox::new();
    for (gate, limit, range) in BAD {
        let mut lines = vec![format!("{EVAL} --{gate}={limit}")];
        if gate == "golden-tolerance" {
            lines[0] += " --golden golden/models/dense.eval.json";
        } else {
            lines.push(format!("{EVAL} --domain t:{gate}={limit}"));
        }
        sandbox.must_refuse_all(&lines, 2, &[gate, range]);
    }
}

#[test]
fn gates_of_labels_that_are_not_measured_are_refused() {
    let sandbox = Sandbox::new();
    let golden = format!("{EVAL} --golden golden/models/dense.eval.json");
    sandbox.must_refuse(&golden, 2, &["a label \"english\""]);
    sandbox.must_refuse(&format!("{EVAL} --domain u:max-kl=1"), 2, &["labels are t"]);
}

/// Asserts that a recipe with these gates, and keys of its evaluation, is refused. Where a later
/// gate can't be met, the first step, which would write, doesn't run.
#[track_caller]
fn recipe_refused(gates: &str, keys: &str, complaints: &[&str]) {
    let upcycle =
        step("upcycle", "golden/models/dense", "output = \"out\"\nexperts = 2\ntop-k = 1");
    let data = "data = [\"t=golden/text/english.heldout.txt\"]";
    let eval = step("eval", "out", &format!("{keys}{data}\ngates = {{ {gates} }}"));
    let sandbox = Sandbox::new();
    sandbox.write("r.toml", upcycle + &eval);
    sandbox.must_refuse("run r.toml", 2, &[&["step 2 (eval)"], complaints].concat());
}

const ORIGINAL: &str = "original = \"golden/models/dense\"\n";

#[test]
fn recipes_with_limits_that_nothing_keeps_are_refused_before_their_first_step() {
    for (gate, limit, range) in BAD.into_iter().filter(|(gate, ..)| *gate != "golden-tolerance") {
        recipe_refused(&format!("{gate} = {limit}"), ORIGINAL, &["line 12", gate, range]);
        recipe_refused(&format!("domain = [\"t:{gate}={limit}\"]"), ORIGINAL, &[gate, range]);
    }
}

#[test]
fn recipes_with_gates_that_lack_something_are_refused_before_their_first_step() {
    recipe_refused("max-kl = 1", "", &["`original`"]);
    recipe_refused("domain = [\"u:max-kl=1\"]", ORIGINAL, &["labels are t"]);
    let golden = "golden = \"golden/models/dense.eval.json\"";
    recipe_refused(golden, ORIGINAL, &["a label \"english\""]);
    recipe_refused("golden-tolerance = 0.1", ORIGINAL, &["golden = FILE"]);
}

/// A gate may demand an improvement.
#[test]
fn a_loss_can_be_made_to_fall() {
    let sandbox = Sandbox::new();
    let line = format!("{EVAL} --data-tokens 64 --max-loss-increase");
    sandbox.run(&format!("{line} 0")).succeeds();
    sandbox
        .run(&format!("{line} -0.5"))
        .exits(3)
        .says(&["max-loss-increase is -0.5", "measured 0.000000"]);
}

const MEASURE: &str = "eval golden/models/moe --data-tokens 64 --json \
                       --data english=golden/text/english.heldout.txt";

#[test]
fn gates_limit_labels_and_sizes() {
    let sandbox = Sandbox::new();
    let against = format!("{MEASURE} --original golden/models/dense");
    sandbox.run(&format!("{against} --domain english:max-kl=100 --max-bytes 1GB")).succeeds();
    let found = sandbox.run(&format!("{against} --domain english:max-kl=0.001")).exits(3);
    found.says(&["max-kl of english", "beyond it", "remedy"]);
    let unknown = sandbox.run(&format!("{against} --domain code:max-kl=1")).exits(2);
    unknown.says(&["\"code\"", "english"]);
    let large = sandbox.run(&format!("{MEASURE} --max-bytes 1MB")).exits(3);
    large.says(&["max-bytes is 1.00 MB", "golden/models/moe"]);
}

/// The earlier measurement is the golden, and another model's measurement doesn't match it.
#[test]
fn gates_limit_regressions() {
    let sandbox = Sandbox::new();
    sandbox.write("moe.json", sandbox.run(MEASURE).succeeds().stdout);
    sandbox.run(&format!("{MEASURE} --golden moe.json")).succeeds();
    let dense = MEASURE.replace("models/moe", "models/dense");
    let worse = sandbox.run(&format!("{dense} --golden moe.json")).exits(3);
    worse.says(&["golden-tolerance of the loss of english"]);
    sandbox.run(&format!("{dense} --golden moe.json --golden-tolerance 9")).succeeds();
    let fewer = MEASURE.replace("64", "32");
    sandbox.run(&format!("{fewer} --golden moe.json")).exits(2).says(&["moe.json", "tokens"]);
}
