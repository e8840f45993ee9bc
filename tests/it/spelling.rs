//! Tests spellings of options and values from other tools and earlier versions.

use crate::common::{Sandbox, assert_none, step};

const MODEL: &str = "golden/models/moe";

fn notes(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.contains("the old name goes with")).collect()
}

/// Asserts that two spellings of a command give the same weights and the same options in their
/// receipts, and that the second is noted as `note`.
#[track_caller]
fn assert_same_conversion(plain: &str, spelled: &str, note: Option<&str>) {
    let sandbox = Sandbox::new();
    let convert = |line: &str, name: &str| {
        let (command, options) = line.split_once(' ').unwrap();
        let outcome = sandbox.run(&format!("{command} {MODEL} -o {name} {options}")).succeeds();
        let weights = sandbox.read(&format!("{name}/model.safetensors"));
        let receipt = sandbox.json(&format!("{name}/moe-convert.json"));
        (weights, receipt["options"].clone(), outcome.stderr)
    };
    let (weights, options, said) = convert(plain, "plain");
    let (same_weights, same_options, noted) = convert(spelled, "spelled");
    assert!(weights == same_weights, "{spelled}");
    assert_eq!(options, same_options, "{spelled}");
    assert!(notes(&said).is_empty(), "{said}");
    let expected = note.map(|note| format!("note: {note}; the old name goes with 0.3"));
    assert_eq!(notes(&noted), Vec::from_iter(expected), "{spelled}");
}

#[test]
fn another_spelling_is_the_same_conversion() {
    assert_same_conversion(
        "prune --experts 12 --criterion random",
        "prune --num_experts=12 --Criterion RANDOM",
        None,
    );
    assert_same_conversion(
        "prune --keep 0.5 --criterion random",
        "prune --keep 50% --method random",
        Some("--method is now --criterion"),
    );
    assert_same_conversion(
        "quantize --scheme w4a16 --solver rtn --group-size 32",
        "quantize --bits 4 --solver RTN --group_size 32",
        None,
    );
}

#[test]
fn a_quiet_run_has_no_notes_on_spellings() {
    let quiet = format!("prune {MODEL} -o quiet --keep 0.5 --method random --quiet");
    assert!(notes(&Sandbox::new().run(&quiet).succeeds().stderr).is_empty());
}

#[test]
fn a_recipe_of_an_earlier_version_runs_with_a_note() {
    let sandbox = Sandbox::new();
    let step = |output: &str| {
        format!(
            "[[step]]\nrun = \"prune\"\nmodel = \"{MODEL}\"\noutput = \"{output}\"\nkeep = 0.5\nmethod = \"random\"\n"
        )
    };
    sandbox.write("r.toml", step("a") + &step("b"));
    let outcome = sandbox.run("run r.toml").succeeds();
    let note = "note: r.toml, line 6, step 1 (prune): `method` is now `criterion`; the old name goes \
                with 0.3 (also in line 12)";
    assert_eq!(notes(&outcome.stderr), [note]);
    let both = step("c") + "criterion = \"random\"\n";
    sandbox.write("both.toml", both);
    let says = &["line 6, step 1 (prune): `method` and `criterion` are one key"];
    assert_none(&sandbox.refuses("run both.toml", 2, says).into_iter().collect::<Vec<_>>());
}

/// No text for users shows an earlier name.
#[test]
fn earlier_names_are_hidden() {
    let sandbox = Sandbox::new();
    for (command, hidden) in [
        ("prune", "method"),
        ("merge", "sample-every"),
        ("quantize", "min-samples"),
        ("heal", "from-weight"),
        ("eval", "max-tokens"),
        ("upcycle", "expert "),
    ] {
        let help = sandbox.run(&format!("{command} --help")).succeeds().stdout;
        assert!(!help.contains(&format!("--{hidden}")), "{command}: {help}");
    }
    for what in ["completions fish", "schema"] {
        let shown = sandbox.run(what).succeeds().stdout;
        for hidden in ["sample-every", "pool-take", "from-weight", "teacher-tokens", "num-experts"]
        {
            assert!(!shown.contains(hidden), "{what}: {hidden}");
        }
    }
}

/// Scripts and recipes of earlier versions still run.
#[test]
fn the_old_name_of_no_baseline_is_known() {
    const TEXT: &str = "golden/text/code.calibration.txt";
    let sandbox = Sandbox::new();
    let random = format!(
        "prune {MODEL} -o out --criterion random --keep 0.5 --held-out {TEXT} --held-out-tokens 64"
    );
    sandbox.run(&format!("{random} --no-control --dry-run")).succeeds();
    let keys = "output = \"out\"\nexperts = 12\ncriterion = \"random\"\nno-control = true";
    let measured = format!("{keys}\nheld-out = [{TEXT:?}]\nheld-out-tokens = 64");
    sandbox.write("r.toml", step("prune", MODEL, &measured));
    sandbox.run("run r.toml --dry-run").succeeds();
}
