//! Tests blocks, which run their steps for every combination of choices.

use super::sandbox;

/// Three seeds of two noises, each with an output of its own.
const MATRIX: &str = r#"
[vars]
out = "result"
seeds = [0, 1, 2]

[[step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/plain"
experts = 4
top-k = 2

[[step]]
each.noise = [{ noise = "little", std = 0.01 }, { noise = "much", std = 0.03 }]
each.seed = "${seeds}"

[[step.step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/${noise}-${seed}"
experts = 4
top-k = 2
noise-std = "${std}"
seed = "${seed}"

[[step.step]]
run = "eval"
label = "${noise} noise"
model = "${out}/${noise}-${seed}"
original = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt", "code=golden/text/code.heldout.txt"]
data-tokens = 64
"#;

#[test]
fn runs_of_a_label_are_averaged() {
    let sandbox = sandbox(MATRIX);
    let outcome = sandbox.run("run recipe.toml --json").succeeds();
    let last = "recipe, step 13 of 13: eval; noise much, seed 2";
    let outcome = outcome.says(&["recipe, step 1 of 13: upcycle", last]);
    assert_eq!(sandbox.names("result").len(), 7);
    let values = values(&outcome.stdout);
    let seeds: Vec<_> =
        (1..7).map(|i| values[2 * i - 1]["receipt"]["options"]["seed"].clone()).collect();
    assert_eq!(seeds, [0, 1, 2, 0, 1, 2]);
    let last = values.last().unwrap();
    let kl_of_evals: Vec<_> =
        (1..7).map(|i| values[2 * i]["report"]["all"]["against"]["kl"].clone()).collect();
    let kl_of_rows: Vec<_> =
        last["summary"].as_array().unwrap().iter().map(|row| row["kl"].clone()).collect();
    assert_eq!(kl_of_rows, kl_of_evals, "every single row is kept");
    let averages = last["averages"].as_array().unwrap();
    assert_eq!(averages.len(), 2);
    assert_eq!(averages[1]["label"], "much noise");
    assert_eq!(averages[1]["runs"], 3);
    for (average, kls) in averages.iter().zip(kl_of_rows.chunks(3)) {
        assert_average_of(average, kls);
    }
}

fn values(stdout: &str) -> Vec<serde_json::Value> {
    let values = serde_json::Deserializer::from_str(stdout).into_iter();
    values.collect::<Result<_, _>>().unwrap()
}

/// Asserts that `average` has mean and deviation of these three.
fn assert_average_of(average: &serde_json::Value, kls: &[serde_json::Value]) {
    let kls: Vec<_> = kls.iter().map(|kl| kl.as_f64().unwrap()).collect();
    let mean = (kls[0] + kls[1] + kls[2]) / 3.0;
    let deviation = (kls.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    let close = |found: &serde_json::Value, expected: f64| {
        (found.as_f64().unwrap() / expected - 1.0).abs() < 1e-9
    };
    assert!(
        deviation > 0.0
            && close(&average["kl"]["mean"], mean)
            && close(&average["kl"]["deviation"], deviation)
    );
    assert!(
        average["domains"][1]["kl"]["deviation"].is_number()
            && average["load"]["gini"]["mean"].is_number()
    );
}

/// Finished results stay, and the table says how many runs there were.
#[test]
fn a_run_for_fewer_seeds_averages_what_is_finished() {
    let sandbox = sandbox(MATRIX);
    sandbox.run("run recipe.toml").succeeds();
    let again = sandbox.run("run recipe.toml --resume --set seeds=[0,1]").succeeds();
    assert_eq!(again.stdout.matches("finished already").count(), 1 + 2 * 2);
    let table: Vec<_> =
        again.stdout.lines().filter(|line| line.starts_with("| little noise |")).collect();
    assert!(
        table[0].starts_with("| little noise | 2 | ") && table[0].matches(" ± ").count() == 3,
        "{table:?}"
    );
    assert!(
        again.stdout.contains("|  | runs | loss |")
            && again.stdout.contains("mean ± standard deviation")
    );
}

#[test]
fn dry_runs_check_every_combination() {
    let sandbox = sandbox(MATRIX);
    let before = sandbox.contents();
    let outcome = sandbox.run("run recipe.toml --dry-run").succeeds();
    assert_eq!(outcome.stdout.matches("would write result/").count(), 7);
    assert!(before == sandbox.contents());
    let negative = MATRIX.replace("std = 0.03", "std = -1.0");
    sandbox.write("recipe.toml", negative);
    sandbox
        .run("run recipe.toml --dry-run")
        .exits(2)
        .says(&["step 2.1 (upcycle; noise much, seed 0)", "noise-std"]);
}

#[test]
fn mistakes_in_blocks_come_before_any_step() {
    let unknown = "step 2.1 (upcycle; noise little, seed 0): there is no variable \"sdt\" here";
    let not_a_number = "step 2.2 (eval; noise little, seed 0): ";
    let same_output = "writes to result/little, as step 2 does";
    for (from, to, complaint) in [
        ("${noise}-${seed}\"\nexperts", "${noise}\"\nexperts", same_output),
        ("noise-std = \"${std}\"\n", "", "each.noise: no step of the block uses ${std}"),
        ("${std}", "${sdt}", unknown),
        ("data-tokens = 64", "data-tokens = \"6${seed}\"", not_a_number),
    ] {
        assert!(MATRIX.contains(from), "{from}");
        let sandbox = sandbox(&MATRIX.replace(from, to));
        sandbox.run("run recipe.toml").exits(2).says(&[complaint, "recipe.toml", "remedy"]);
        assert_eq!(sandbox.names("."), ["golden", "recipe.toml"]);
    }
}
