//! Tests warnings about requests that work but are hardly intended: they come before the work, and
//! are in the receipt.

use std::collections::BTreeSet;

use moe_checkpoint::sha256_file;

use crate::common::{Sandbox, assert_none};

const DENSE: &str = "golden/models/dense";
const MOE: &str = "golden/models/moe";

const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 4 --top-k 2";
const PRUNE: &str = "prune golden/models/moe -o out --experts 12";
const HEAL: &str = "heal golden/models/moe -o out --steps 1 --data golden/text/english.calibration.txt --data-tokens 512";

/// A dense model and a mixture under second names, and texts that share sequences.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/dense", "copy");
    sandbox.copy("models/moe", "same");
    let english =
        std::fs::read_to_string(sandbox.path("golden/text/english.calibration.txt")).unwrap();
    sandbox.write("part.txt", &english[english.len() / 3..english.len() / 2]);
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": [9, 10, 11]}\n");
    sandbox.write("other.jsonl", "{\"input_ids\": [5, 6, 7, 9]}\n");
    sandbox
}

/// Plans `command` with each of the options, whose warnings hold the words beside them; None where
/// no warning is due.
#[track_caller]
fn assert_warned(command: &str, cases: &[(&str, Option<&str>)]) {
    let sandbox = sandbox();
    let mut problems = Vec::new();
    for (options, wanted) in cases {
        let outcome = sandbox.run(&format!("{command} {options} --dry-run"));
        let warned: Vec<&str> =
            outcome.stdout.lines().filter(|line| line.starts_with("  warning")).collect();
        let is_said = match wanted {
            Some(words) => warned.iter().any(|warning| warning.contains(words)),
            None => warned.iter().all(|warning| {
                warning.contains("text chose") || warning.contains("training routers alone")
            }),
        };
        if outcome.code != 0 || !is_said {
            problems.push(format!("{wanted:?}: {warned:#?}\n{outcome}"));
        }
    }
    assert_none(&problems);
}

#[test]
fn experts_that_are_given_twice_are_warned_of() {
    const TWICE: &str = "--expert-model golden/models/dense --expert-model golden/models/dense";
    assert_warned(
        UPCYCLE,
        &[
            (TWICE, Some("--expert-model golden/models/dense is given twice")),
            (TWICE, Some("all experts of a layer start out as the same network")),
            (
                "--expert-model golden/models/dense --expert-model copy",
                Some("--expert-model golden/models/dense is the same model as copy"),
            ),
            ("--expert-model golden/models/dense --noise-std 0.01", None),
        ],
    );
}

#[test]
fn noise_below_the_precision_of_the_weights_is_warned_of() {
    assert_warned(
        UPCYCLE,
        &[
            ("--noise-std 1e-12", Some("--noise-std 1e-12 is lost in rounding")),
            ("--noise-std 1e-7 --init drop", Some("lost in rounding")),
            ("--noise-std 1e-3", None),
        ],
    );
}

#[test]
fn a_pass_that_drops_no_expert_is_warned_of() {
    const ONE: &str = "prune golden/models/moe -o out --keep 1 --criterion random";
    assert_warned(ONE, &[("", Some("for one expert a layer, give --experts 1"))]);
    const ALL: &str =
        "merge golden/models/moe -o out --experts 24 --data golden/text/english.calibration.txt";
    assert_warned(ALL, &[("", Some("all 24 experts of each layer stay"))]);
    assert_warned(PRUNE, &[("--criterion random", None)]);
}

#[test]
fn a_teacher_that_is_the_model_itself_is_warned_of() {
    assert_warned(
        HEAL,
        &[
            ("--original golden/models/moe", Some("--original is the very model")),
            ("--original same", Some("--original is the very model")),
        ],
    );
}

/// Options of `prune` with text, of which a file, a part of one, or short documents are held out.
const HELD_OUT: [(&str, Option<&str>); 5] = [
    (
        "--data golden/text/english.calibration.txt --held-out golden/text/english.calibration.txt",
        Some("100 % of the held-out text"),
    ),
    (
        "--data golden/text/english.calibration.txt --held-out part.txt",
        Some("% of the held-out text stands in the text"),
    ),
    ("--data ids.jsonl --held-out ids.jsonl", Some("100 % of the held-out text")),
    ("--data ids.jsonl --held-out other.jsonl", None),
    ("--data golden/text/english.calibration.txt --held-out golden/text/english.heldout.txt", None),
];

#[test]
fn text_that_is_both_learned_from_and_measured_on_is_warned_of() {
    assert_warned(PRUNE, &HELD_OUT);
    assert_warned(
        HEAL,
        &[
            ("--held-out part.txt --data part.txt", Some("% of the held-out text")),
            (
                "--held-out golden/text/english.calibration.txt",
                Some("english.calibration.txt is learned from and held out"),
            ),
        ],
    );
    const KMEANS: &str = "--router kmeans --data golden/text/english.calibration.txt --layers all";
    assert_warned(UPCYCLE, &[(KMEANS, None)]);
}

/// A receipt says which text a model was made on: measuring on that text says little.
#[test]
fn a_model_that_was_made_on_the_text_is_noted() {
    let sandbox = Sandbox::new();
    let english = "golden/text/english.calibration.txt";
    let held_out = "golden/text/english.heldout.txt";
    let options = format!(
        "--data {english} --data-tokens 256 --held-out {held_out} --held-out-tokens 64 --no-baseline"
    );
    sandbox.run(&format!("prune {MOE} -o pruned --experts 12 {options}")).succeeds();
    let eval =
        |data: &str| sandbox.run(&format!("eval pruned --data {data} --data-tokens 64")).succeeds();
    std::fs::copy(sandbox.path(english), sandbox.path("renamed.txt")).unwrap();
    eval("renamed.txt").says(&["renamed.txt: pruned was made on this text"]);
    assert!(!eval(held_out).stderr.contains("was made on"));
    for (pass, data) in [
        ("prune pruned -o again --experts 8 --criterion random", ""),
        ("heal pruned -o healed", held_out),
    ] {
        let data = if data.is_empty() { String::new() } else { format!(" --data {data}") };
        let line = format!("{pass}{data} --held-out renamed.txt --held-out-tokens 64 --dry-run");
        let planned = sandbox.run(&line).succeeds().stdout;
        assert!(planned.contains("renamed.txt: pruned was made on this text"), "{line}\n{planned}");
    }
}

const ENGLISH: &str = "golden/text/english.calibration.txt";
const OTHER_ENGLISH: &str = "golden/text/english.heldout.txt";

/// A sandbox with statistics: `first` of one.txt, and `both` of a/one.txt, too. renamed.txt has the
/// text of one.txt.
fn with_statistics() -> Sandbox {
    let sandbox = Sandbox::new();
    let copies = format!(
        "cp {ENGLISH} one.txt; mkdir a; cp {OTHER_ENGLISH} a/one.txt; cp {ENGLISH} renamed.txt"
    );
    sandbox.shell(&copies).succeeds();
    let text = "--data-tokens 256 --sequence-length 64";
    sandbox.run(&format!("observe {MOE} -o first --data one.txt {text}")).succeeds();
    sandbox.run(&format!("observe {MOE} -o both --add first --data a/one.txt {text}")).succeeds();
    sandbox
}

/// Statistics say which text they come from, and receipts of results made from them say so too.
#[test]
fn a_model_that_was_made_of_statistics_of_the_text_is_noted() {
    let sandbox = with_statistics();
    for (pass, stats, files) in [
        ("prune", "first", &["one.txt"][..]),
        ("merge", "first", &["one.txt"]),
        ("prune", "both", &["one.txt", "a/one.txt"]),
    ] {
        let how = format!("--overwrite --experts 12 --stats {stats}");
        sandbox.run(&format!("{pass} {MOE} -o out {how}")).succeeds();
        let observed = sandbox.json("out/moe-convert.json")["observed"].take();
        let hashes = observed.as_object().unwrap().values().filter_map(|v| v.as_str());
        let wanted = files.iter().map(|file| sha256_file(&sandbox.path(file)).unwrap());
        assert_eq!(
            hashes.map(str::to_owned).collect::<BTreeSet<_>>(),
            wanted.collect::<BTreeSet<_>>(),
            "{pass} {stats}"
        );
        for (data, is_learned) in [("renamed.txt", true), (OTHER_ENGLISH, files.len() == 2)] {
            let said = sandbox.run(&format!("eval out --data {data} --data-tokens 64")).succeeds();
            let is_noted = said.stderr.contains("was made on this text");
            assert_eq!(is_noted, is_learned, "{pass} {stats} {data}: {said}");
        }
    }
}

#[test]
fn statistics_of_the_held_out_text_are_noted() {
    let sandbox = with_statistics();
    let how = "--stats first --no-baseline --held-out-tokens 64 --dry-run";
    let prune = format!("prune {MOE} -o new --experts 12 {how} --held-out");
    let planned = sandbox.run(&format!("{prune} renamed.txt")).succeeds().stdout;
    let note = "renamed.txt is held out, and the statistics were gathered on it";
    assert!(planned.contains(note), "{planned}");
    let apart = sandbox.run(&format!("{prune} {OTHER_ENGLISH}")).succeeds().stdout;
    assert!(!apart.contains("gathered on it"), "{apart}");
}

/// Beside shared experts, routers over equal experts decide nothing either, in all layers or every
/// second one; only the gates of shared experts can change.
#[test]
fn routers_over_copies_beside_shared_experts_are_idle() {
    let sandbox = Sandbox::new();
    let target = "--experts 4 --top-k 2 --target qwen2_moe --layers every:2";
    let made = sandbox.run(&format!("upcycle {DENSE} -o half {target}")).succeeds();
    // The warning appears once: as a note before the work, which the summary needn't repeat.
    let made = made.says(&["training routers alone gains nothing"]);
    assert!(!made.stdout.contains("gains nothing"), "{}", made.stdout);
    assert!(
        sandbox.json("half/moe-convert.json")["warnings"].to_string().contains("gains nothing")
    );
    let text = "--data golden/text/english.calibration.txt --data-tokens 256 --sequence-length 64 --batch-tokens 64";
    let planned = sandbox.run(&format!("heal half -o healed --dry-run {text}")).succeeds().stdout;
    assert!(planned.contains("routers decide nothing here"), "{planned}");
    sandbox.run(&format!("heal half -o healed --steps 1 {text}")).succeeds().says(&[
        "routers decide nothing here",
        "how much the shared expert counts for",
        "--train router,experts",
    ]);
}

#[test]
fn statistics_of_too_little_text_say_so_and_count_once() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9, 10, 11]}\n");
    let observe = format!("observe {MOE} -o");
    let few = sandbox.run(&format!("{observe} few --data ids.jsonl")).succeeds();
    assert!(
        few.stdout.contains("no token of the calibration text chose")
            && few.stdout.contains("of 96 experts"),
        "{few}"
    );
    std::fs::copy(sandbox.path("few"), sandbox.path("again")).unwrap();
    let refused = [
        (format!("{observe} sum --add few --add few"), ["few", "added twice"]),
        (format!("{observe} sum --add few --add ./few"), ["few", "would count twice"]),
        (format!("{observe} sum --add few --add again"), ["again", "those of few"]),
        (format!("{observe} sum --add few --data ids.jsonl"), ["few", "the same text as --data"]),
    ];
    let problems = refused.iter().filter_map(|(line, words)| sandbox.refuses(line, 2, words));
    assert_none(&problems.collect::<Vec<_>>());
    sandbox.write("more.jsonl", "{\"input_ids\": [15, 16, 17]}\n");
    sandbox.run(&format!("{observe} sum --add few --data more.jsonl")).succeeds();
}

/// Where the original overflows, the error doesn't blame the model that is compared with it.
#[test]
fn the_model_that_overflows_is_named() {
    let sandbox = Sandbox::new();
    // In bf16 this element is two weights; the second is 1e19, whose square f32 can't hold.
    sandbox.copy("models/moe", "large").set_f32(
        "model.layers.1.post_attention_layernorm.weight",
        2,
        3e38,
    );
    let line = format!(
        "eval {MOE} --original large --data golden/text/english.heldout.txt --data-tokens 64"
    );
    sandbox.run(&line).exits(1).says(&["the original: ", "large/config.json"]);
}

/// Decisions that need only weights are made in a dry run too, which fails where the run would.
#[test]
fn dry_runs_decide_what_weights_alone_decide() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "broken");
    model.set_f32("model.layers.1.mlp.experts.3.down_proj.weight", 2, f32::NAN);
    let aimer = "--experts 12 --criterion aimer --dry-run";
    let complaints = ["element 5 is not finite", "model.layers.1.mlp.experts.3.down_proj.weight"];
    sandbox.must_refuse(&format!("prune broken -o out {aimer}"), 1, &complaints);
    let sound = sandbox.run(&format!("prune {MOE} -o out {aimer}")).succeeds();
    assert!(!sound.stdout.contains("decided when it runs"), "{}", sound.stdout);
}

const SCHEMES: [&str; 9] = [
    "w4a16",
    "w4a16 --group-size -1",
    "w4a16 --asymmetric",
    "w3a16",
    "w8a16 --format gptq",
    "w2a16 --format gptq",
    "fp8",
    "fp8-block",
    "fp8-block --format compressed-tensors",
];

#[test]
fn quantize_warns_of_what_verify_finds_in_its_result() {
    let sandbox = Sandbox::new();
    let mut warned = BTreeSet::new();
    for scheme in SCHEMES {
        let line =
            format!("quantize golden/models/moe -o out --overwrite --solver rtn --scheme {scheme}");
        sandbox.run(&line).succeeds();
        let warnings: Vec<String> =
            serde_json::from_value(sandbox.json("out/moe-convert.json")["warnings"].clone())
                .unwrap();
        let verified = sandbox.run("verify out").succeeds();
        let engines: Vec<_> =
            verified.stdout.lines().filter_map(|l| l.trim().strip_prefix("engine ")).collect();
        assert_eq!(engines.len(), 4, "{verified}");
        let refusing = engines.iter().map(|l| l.trim()).filter(|l| !l.contains(" takes it"));
        assert_eq!(warnings, refusing.collect::<Vec<_>>(), "{scheme}");
        warned.extend(warnings.iter().filter_map(|w| w.split(' ').next().map(str::to_owned)));
    }
    assert_eq!(warned.into_iter().collect::<Vec<_>>(), ["SGLang", "transformers", "vLLM"]);
}
