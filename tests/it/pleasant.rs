//! Tests output for people: summaries, progress, a model at a glance.

use std::path::PathBuf;

use moe_passes::PASSES;
use serde_json::Value;

use crate::common::passes::sample;
use crate::common::{BINARY, Sandbox, assert_none, has, root};

const ENGLISH: &str = "english=golden/text/english.calibration.txt";
const PRUNE: &str = "prune golden/models/moe -o out --keep 0.75 --data-tokens 1024 \
                     --data english=golden/text/english.calibration.txt";

/// The commands at the end of the summary `stdout`.
fn next(stdout: &str) -> Vec<String> {
    let lines = stdout
        .lines()
        .skip_while(|line| !line.starts_with("  next "))
        .take_while(|line| !line.is_empty());
    lines.map(|line| line.trim_start_matches("  next").trim().to_owned()).collect()
}

#[test]
fn what_is_proposed_next_runs() {
    let upcycle = "upcycle golden/models/dense -o out --experts 4 --top-k 2";
    for (line, words) in [
        (upcycle, ["1.25 M → 3.61 M in total", "2.49 MB → 7.22 MB"]),
        (PRUNE, ["5.19 M → 4.01 M", "0.77 ×"]),
    ] {
        let sandbox = Sandbox::new();
        let summary = sandbox.run(line).succeeds().stdout;
        assert!(words.iter().all(|word| summary.contains(word)), "{summary}");
        let steps = next(&summary);
        let commands: Vec<_> = steps.iter().filter_map(|step| step.split(' ').nth(1)).collect();
        assert_eq!(commands, ["verify", "eval", "heal", "serve"], "{summary}");
        for step in steps.iter().filter(|step| !step.starts_with("vllm ")) {
            let short = match step.contains(" heal ") {
                true => " --steps 1 --data-tokens 512 --batch-tokens 256",
                false if step.contains(" eval ") => " --data-tokens 256",
                false => "",
            };
            sandbox.shell(&(step.replace("TEXT", ENGLISH) + short)).succeeds();
        }
    }
}

#[test]
fn serving_is_proposed_where_vllm_is_known_to_take_the_result() {
    for (scheme, proposed) in [("w4a16", true), ("w3a16", false)] {
        let sandbox = Sandbox::new();
        let line = format!("quantize golden/models/moe -o out --scheme {scheme} --solver rtn");
        let steps = next(&sandbox.run(&line).succeeds().stdout);
        assert_eq!(
            steps.iter().any(|step| step.starts_with("vllm serve out ")),
            proposed,
            "{scheme}: {steps:?}"
        );
        let engines = sandbox.run("verify out --json").succeeds().json()["engines"].clone();
        let vllm = engines
            .as_array()
            .unwrap()
            .iter()
            .find(|e| e["engine"].as_str().unwrap().starts_with("vLLM"))
            .cloned();
        assert_eq!(vllm.unwrap()["answer"] == "takes", proposed, "{scheme}");
    }
}

/// All models of the goldens.
fn models() -> Vec<PathBuf> {
    let dirs = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let cases = dirs(root().join("golden/families")).filter(|path| path.is_dir()).flat_map(dirs);
    let quantized = dirs(root().join("golden/quantize/checkpoints"));
    cases
        .map(|case| case.join("model"))
        .chain(quantized)
        .filter(|dir| dir.join("config.json").is_file())
        .collect()
}

#[test]
fn inspect_says_of_each_pass_what_the_pass_says() {
    let models = models();
    assert!(models.len() > 40, "{models:?}");
    let sandbox = Sandbox::new();
    // Most goldens have no tokenizer; all have a vocabulary of at least 17 tokens.
    let ids: Vec<usize> = (0..256).map(|i| i * 7 % 16).collect();
    sandbox.write("ids.jsonl", format!("{}\n", serde_json::json!({ "input_ids": ids })).repeat(64));
    let mut problems = Vec::new();
    for model in &models {
        let model = model.display();
        let inspection = sandbox.run(&format!("inspect {model} --json")).succeeds().json();
        let passes = inspection["passes"].as_array().unwrap();
        assert_eq!(passes.len(), PASSES.len(), "{model}");
        for answer in passes {
            let pass = answer["pass"].as_str().unwrap();
            let options = sample(pass).for_any_model;
            let planned = sandbox.run(&format!("{pass} {model} -o out {options} --dry-run --json"));
            let agree = match answer["refuses"].as_str() {
                None => {
                    planned.code == 0
                        && planned.json()["receipt"]["result"]["model_type"] == answer["gives"][0]
                }
                Some(why) => planned.code > 0 && why.starts_with(first_line(&planned.stderr)),
            };
            if !agree {
                problems.push(format!("{answer}\n{planned}"));
            }
        }
    }
    assert_none(&problems);
}

/// The first line of an error: what went wrong, without its cause after a colon, and without where
/// and remedy.
fn first_line(stderr: &str) -> &str {
    let line = stderr.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or("no error");
    line.split(": ").next().unwrap()
}

#[test]
fn a_model_at_a_glance_adds_up() {
    let sandbox = Sandbox::new();
    let moe = sandbox.run("inspect golden/models/moe --json").succeeds().json();
    let parts = moe["parameters"].as_object().unwrap();
    let sum = |skip: &str| {
        parts.iter().filter(|(k, _)| *k != skip).map(|(_, v)| v.as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(moe["total_parameters"], sum("experts_active"));
    assert_eq!(moe["active_parameters"], sum("experts"));
    let bytes: u64 = moe["dtypes"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(2 * sum("experts_active"), bytes, "all of it is bfloat16");
    let text = sandbox.run("inspect golden/models/moe").succeeds().stdout;
    for row in [
        "experts        4.72 M   90.9 %",
        "24 of width 128 in 4 layers",
        "upcycle   no: ",
        "distill   yes, gives qwen3",
    ] {
        assert!(text.contains(row), "no {row:?} in\n{text}");
    }
}

#[test]
fn piped_progress_is_plain_lines() {
    let outcome = Sandbox::new().run(PRUNE).succeeds();
    assert!(!outcome.stderr.contains(['\r', '\x1b']), "{outcome}");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(
        (3..=8).contains(&lines.len()) && lines.contains(&"decide on 1024 tokens: 4 layers"),
        "{outcome}"
    );
}

#[test]
fn a_terminal_gets_one_bar_that_fits() {
    let sandbox = Sandbox::new();
    if !has(&["script", "stty"], "there was no terminal to draw a bar on") {
        return;
    }
    let terminal = |environment: &str, columns: usize| {
        let command =
            format!("stty rows 24 cols {columns}; '{BINARY}' {PRUNE} --overwrite 2>&1 >/dev/null");
        sandbox
            .shell(&format!("{environment} script -qec \"{command}\" /dev/null"))
            .succeeds()
            .stdout
    };
    for columns in [80, 40] {
        let drawn = terminal("TERM=xterm", columns);
        let frames: Vec<_> =
            drawn.split(['\r', '\n']).map(|frame| frame.replace("\x1b[2K", "")).collect();
        // The layers that are shown depend on the speed of the machine.
        let counts =
            |frame: &&String| (1..=4).any(|layer| frame.contains(&format!("layer {layer}/4")));
        assert!(
            frames.iter().filter(counts).any(|frame| frame.contains("decide on 1024 tokens")),
            "{drawn:?}"
        );
        let widest = frames.iter().map(|frame| frame.chars().count()).max().unwrap();
        assert!(widest <= columns, "{widest} columns of {columns}: {drawn:?}");
        // The last frame is erased.
        assert!(drawn.ends_with("\x1b[2K"), "{drawn:?}");
    }
    let plain = terminal("TERM=dumb", 80);
    assert!(
        !plain.contains('\x1b') && plain.contains("decide on 1024 tokens: 4 layers\r\n"),
        "{plain:?}"
    );
    let coloured = |environment: &str| {
        sandbox
            .shell(&format!("{environment} script -qec \"'{BINARY}' --help\" /dev/null"))
            .succeeds()
            .stdout
            .contains("\x1b[1m")
    };
    assert!(coloured("TERM=xterm") && !coloured("TERM=xterm NO_COLOR=1"));
}
