//! Tests that a run and a recipe recognize the work that made a result however it is spelled, and
//! that they take no other work for it.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{Sandbox, assert_none, step};

/// Commands, and further options that ask for the same work.
const SAME: [(&str, &str); 9] = [
    ("upcycle golden/models/dense --experts 4 --top-k 2", "--router-std 0.02 --init copy"),
    ("prune m --keep 0.5 --data ids.jsonl", "--criterion leave-one-out-cosine --divisible-by 1"),
    ("merge m --keep 0.5 --data ids.jsonl", "--algorithm dern --dern-threshold 0.3"),
    ("merge m --keep 0.5 --data ids.jsonl --algorithm ream", "--grouping nearest --group-cap 16"),
    ("merge m --keep 0.5 --data ids.jsonl --algorithm hc-smoe", "--all-experts-every 1"),
    (
        "quantize m --group-size -1 --data ids.jsonl",
        "--bits 4 --per-expert --solver gptq --format compressed-tensors",
    ),
    ("quantize m --scheme fp8", "--format compressed-tensors --solver rtn"),
    ("distill m --data ids.jsonl --width 8 --steps 1 --batch-tokens 32", "--down ridge"),
    (
        "heal m --data ids.jsonl --steps 20 --batch-tokens 32 --sequence-length 32",
        "--warmup 1 --data-tokens 640 --train router",
    ),
];

/// Whether `line` finds its result; otherwise what it said.
fn not_finished(sandbox: &Sandbox, line: &str) -> Option<String> {
    let outcome = sandbox.run(line);
    (!outcome.stdout.contains("finished already")).then(|| outcome.to_string())
}

#[test]
fn defaults_may_be_given_or_not() {
    let sandbox = Sandbox::with_model_and_text();
    let mut problems = Vec::new();
    for (index, (line, further)) in SAME.into_iter().enumerate() {
        let [short, long] = [format!("{line} -o {index}"), format!("{line} {further} -o {index}")];
        let (first, second) = if index % 2 == 0 { (short, long) } else { (long, short) };
        sandbox.run(&first).succeeds();
        problems.extend(not_finished(&sandbox, &format!("{second} --resume")));
    }
    assert_none(&problems);
    let options = |name: &str| sandbox.json(&format!("{name}/moe-convert.json"))["options"].clone();
    assert_eq!((&options("3")["group-cap"], &options("4")["group-cap"]), (&16.into(), &().into()));
    let quantized = options("5");
    assert_eq!((&quantized["scheme"], quantized.get("per-expert")), (&"w4a16".into(), None));
    assert_eq!(quantized["calibrate-on"], "per-expert");
    assert_eq!(options("8")["data-tokens"], 640);
}

/// Two texts, and further places where the same lie.
fn with_places() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    let text = String::from_utf8(sandbox.read("ids.jsonl")).unwrap();
    sandbox.write("copies/ids.jsonl", &text);
    sandbox.write(
        "other.jsonl",
        text.lines().skip(3).map(|line| format!("{line}\n")).collect::<String>(),
    );
    symlink("ids.jsonl", sandbox.path("link.jsonl")).unwrap();
    sandbox
}

const PRUNE: &str = "prune m -o out --keep 0.5 --resume";

#[test]
fn a_text_is_the_same_wherever_it_lies() {
    let sandbox = with_places();
    sandbox.run(&format!("{PRUNE} --data ids.jsonl")).succeeds();
    let absolute = sandbox.path("ids.jsonl").display().to_string();
    let mut problems = Vec::new();
    for data in
        ["./ids.jsonl", &absolute, "ids=link.jsonl", "copies/ids.jsonl", "ids=copies/../link.jsonl"]
    {
        problems.extend(not_finished(&sandbox, &format!("{PRUNE} --data {data}")));
    }
    for (other, complaint) in [
        ("ids=other.jsonl", "other text"),
        ("link.jsonl", "other options (data)"),
        ("ids.jsonl@2", "other options (data)"),
        ("ids.jsonl --data ids.jsonl", "other options (data)"),
        ("ids.jsonl --held-out ids.jsonl", "other options (held-out)"),
    ] {
        problems.extend(sandbox.refuses(&format!("{PRUNE} --data {other}"), 2, &[complaint]));
    }
    assert_none(&problems);
    fs::copy(sandbox.path("other.jsonl"), sandbox.path("ids.jsonl")).unwrap();
    sandbox.must_refuse(&format!("{PRUNE} --data ids.jsonl"), 2, &["text that has changed"]);
    assert_none(&Vec::from_iter(not_finished(
        &sandbox,
        &format!("{PRUNE} --data copies/ids.jsonl"),
    )));
}

#[test]
fn swapped_files_are_other_work() {
    let sandbox = with_places();
    let both = |a: &str, b: &str| format!("{PRUNE} --data {a} --data {b}");
    sandbox.run(&both("a=ids.jsonl", "b=other.jsonl")).succeeds();
    let mut problems = Vec::new();
    problems.extend(not_finished(&sandbox, &both("a=./link.jsonl", "b=./other.jsonl")));
    let swapped = both("a=other.jsonl", "b=ids.jsonl");
    problems.extend(sandbox.refuses(&swapped, 2, &["other text"]));
    let turned = both("b=other.jsonl", "a=ids.jsonl");
    problems.extend(sandbox.refuses(&turned, 2, &["other options (data)"]));
    // Text that decides, and text that is measured on.
    let measured = |data: &str, held_out: &str| {
        format!("{PRUNE} --data a={data} --held-out b={held_out}").replace("-o out", "-o measured")
    };
    sandbox.run(&measured("ids.jsonl", "other.jsonl")).succeeds();
    problems.extend(not_finished(&sandbox, &measured("copies/ids.jsonl", "./other.jsonl")));
    let swapped = measured("other.jsonl", "ids.jsonl");
    problems.extend(sandbox.refuses(&swapped, 2, &["other text"]));
    assert_none(&problems);
}

#[test]
fn statistics_and_plans_are_the_same_wherever_they_lie() {
    let sandbox = with_places();
    sandbox.run("observe m -o stats --data ids.jsonl").succeeds();
    let stats = |path: &str| format!("{PRUNE} --stats {path} --plan-out plan.json");
    sandbox.run(&stats("stats")).succeeds();
    sandbox.shell("cp stats same; cp plan.json copies; cp plan.json edited.json").succeeds();
    let mut problems = Vec::new();
    problems.extend(not_finished(&sandbox, &stats("./same")));
    let given = |path: &str| format!("prune m -o given --resume --plan {path}");
    sandbox.run(&given("plan.json")).succeeds();
    problems.extend(not_finished(&sandbox, &given("copies/plan.json")));
    sandbox.shell("sed -i 's/{/{ /' edited.json").succeeds();
    problems.extend(sandbox.refuses(&given("edited.json"), 2, &["has changed"]));
    let instead = given("plan.json").replace("-o given", "-o out");
    problems.extend(sandbox.refuses(&instead, 2, &["other options (", "plan", "stats"]));
    assert_none(&problems);
}

#[test]
fn finished_steps_of_recipes_are_found_however_they_are_spelled() {
    let sandbox = with_places();
    let recipe = |[data, more, other]: [&str; 3]| {
        let text = format!("output = \"stats\"\ndata = [\"{data}\"]");
        let merge =
            format!("output = \"merged\"\nkeep = 0.5\ndata = [\"{data}\", \"b={other}\"]\n{more}");
        step("observe", "m", &text) + &step("merge", "m", &merge)
    };
    sandbox.write("r.toml", recipe(["ids.jsonl", "", "other.jsonl"]));
    sandbox.run("run r.toml").succeeds();
    let respelled = ["./ids.jsonl", "dern-threshold = 0.3", "./other.jsonl"];
    sandbox.write("r.toml", recipe(respelled));
    let again = sandbox.run("run r.toml").succeeds();
    assert_eq!(again.stdout.matches("finished already").count(), 2, "{again}");
    // The last step is refused before the first one runs.
    sandbox.shell("rm stats").succeeds();
    sandbox.write("r.toml", recipe(["ids=other.jsonl", "", "ids.jsonl"]));
    sandbox.must_refuse("run r.toml", 2, &["step 2", "other text"]);
}

/// A receipt that somebody has edited says what differs, whatever its options have become.
#[test]
fn edited_options_are_other_options() {
    let sandbox = with_places();
    sandbox.run(&format!("{PRUNE} --data ids.jsonl")).succeeds();
    let receipt = sandbox.json("out/moe-convert.json");
    for options in ["5", "null", "[]", "{}", "{\"data\": [5, {\"path\": 1}], \"keep\": 0.5}"] {
        let mut edited = receipt.clone();
        edited["options"] = serde_json::from_str(options).unwrap();
        sandbox.write("out/moe-convert.json", edited.to_string());
        let outcome = sandbox.run(&format!("{PRUNE} --data ids.jsonl"));
        outcome.exits(2).says(&["other options", "data"]);
    }
}
