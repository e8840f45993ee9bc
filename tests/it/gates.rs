//! Tests that gates that can't be met or have no meaning are refused before any work, on the
//! command line and in recipes.

use crate::common::{Sandbox, assert_none};

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
    let mut problems = Vec::new();
    for (gate, limit, range) in BAD {
        let golden =
            if gate == "golden-tolerance" { " --golden golden/models/dense.eval.json" } else { "" };
        problems.extend(sandbox.refuses(
            &format!("{EVAL}{golden} --{gate}={limit}"),
            2,
            &[gate, range],
        ));
        if golden.is_empty() {
            problems.extend(sandbox.refuses(
                &format!("{EVAL} --domain t:{gate}={limit}"),
                2,
                &[gate, range],
            ));
        }
    }
    problems.extend(sandbox.refuses(
        &format!("{EVAL} --golden golden/models/dense.eval.json"),
        2,
        &["a label \"english\""],
    ));
    problems.extend(sandbox.refuses(&format!("{EVAL} --domain u:max-kl=1"), 2, &["labels are t"]));
    assert_none(&problems);
}

/// Where a later gate can't be met, the first step, which would write, doesn't run.
#[test]
fn recipes_are_refused_before_their_first_step() {
    let sandbox = Sandbox::new();
    let recipe = |gates: &str, against: &str| {
        format!(
            "[[step]]\nrun = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"out\"\nexperts = 2\ntop-k = 1\n[[step]]\nrun = \"eval\"\n\
             model = \"out\"\n{against}data = [\"t=golden/text/english.heldout.txt\"]\ngates = {{ {gates} }}\n"
        )
    };
    let original = "original = \"golden/models/dense\"\n";
    let mut problems = Vec::new();
    let mut refused = |text: String, complaints: &[&str]| {
        sandbox.write("r.toml", &text);
        problems.extend(
            sandbox
                .refuses("run r.toml", 2, complaints)
                .map(|problem| format!("{text}\n{problem}")),
        );
    };
    for (gate, limit, range) in BAD.into_iter().filter(|(gate, ..)| *gate != "golden-tolerance") {
        refused(
            recipe(&format!("{gate} = {limit}"), original),
            &["line 12", "step 2 (eval)", gate, range],
        );
        refused(
            recipe(&format!("domain = [\"t:{gate}={limit}\"]"), original),
            &["step 2 (eval)", gate, range],
        );
    }
    refused(recipe("max-kl = 1", ""), &["step 2 (eval)", "`original`"]);
    refused(recipe("domain = [\"u:max-kl=1\"]", original), &["step 2 (eval)", "labels are t"]);
    let golden = "golden = \"golden/models/dense.eval.json\"";
    refused(recipe(golden, original), &["step 2 (eval)", "a label \"english\""]);
    refused(recipe("golden-tolerance = 0.1", original), &["step 2 (eval)", "golden = FILE"]);
    assert_none(&problems);
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

#[test]
fn gates_limit_labels_sizes_and_regressions() {
    let sandbox = Sandbox::new();
    let eval = "eval golden/models/moe --data english=golden/text/english.heldout.txt --data-tokens 64 --json";
    let against = format!("{eval} --original golden/models/dense");
    sandbox.run(&format!("{against} --domain english:max-kl=100 --max-bytes 1GB")).succeeds();
    let found = sandbox
        .run(&format!("{against} --domain english:max-kl=0.001"))
        .exits(3)
        .says(&["max-kl of english"]);
    assert!(
        found.stderr.contains("beyond it") && found.stderr.contains("remedy"),
        "{}",
        found.stderr
    );
    sandbox
        .run(&format!("{against} --domain code:max-kl=1"))
        .exits(2)
        .says(&["\"code\"", "english"]);
    sandbox
        .run(&format!("{eval} --max-bytes 1MB"))
        .exits(3)
        .says(&["max-bytes is 1.00 MB", "golden/models/moe"]);
    // The earlier measurement is the golden, and another model's measurement doesn't match it.
    sandbox.write("moe.json", sandbox.run(eval).succeeds().stdout);
    sandbox.run(&format!("{eval} --golden moe.json")).succeeds();
    let dense = eval.replace("models/moe", "models/dense");
    sandbox
        .run(&format!("{dense} --golden moe.json"))
        .exits(3)
        .says(&["golden-tolerance of the loss of english"]);
    sandbox.run(&format!("{dense} --golden moe.json --golden-tolerance 9")).succeeds();
    sandbox
        .run(&format!("{} --golden moe.json", eval.replace("64", "32")))
        .exits(2)
        .says(&["moe.json", "tokens"]);
}
