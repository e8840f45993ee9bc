//! Tests that input which can't work is refused, with a message that names what is wrong and a
//! remedy, and without a trace.
//!
//! Each file has one kind of input, from the headers of weights to the options of a command. Most
//! tests are tables: a row that fails is named with all that the program said.

mod config_values;
mod configs;
mod folders;
mod headers;
mod indexes;
mod options;
mod options_without_effect;
mod outputs;
mod receipts;
mod recipes;
mod reducing;
mod tensors;
mod text;
mod upcycling;

use std::fmt::Write as _;
use std::time::Duration;

use crate::common::checkpoint::Checkpoint;
use crate::common::{BINARY, Outcome, Sandbox, assert_none};

/// Dense and sparse checkpoints below `golden`, to be damaged.
const LLAMA: &str = "families/llama/base/model";
const QWEN3_MOE: &str = "families/qwen3_moe/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";
const CONFIG: &str = "config.json";
/// A shard of `SHARDED`, and two tensors of `LLAMA`.
const SECOND_SHARD: &str = "model-00002-of-00003.safetensors";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// The built-in models, which have a tokenizer, and a text.
const DENSE: &str = "golden/models/dense";
const MOE: &str = "golden/models/moe";
const CODE: &str = "golden/text/code.calibration.txt";

/// All commands that read the checkpoint `model`.
const EVERY_COMMAND: &[&str] = &[
    "inspect model",
    "verify model",
    "logits model --tokens ids.json -o logits.safetensors",
    "eval model --data ids.jsonl",
    "upcycle model -o out --experts 4 --top-k 2",
    "upcycle model -o out --experts 4 --top-k 2 --dry-run",
];
/// Commands that read all of the checkpoint `model` but its values before anything else.
const READERS: &[&str] =
    &["inspect model", "verify model", "upcycle model -o out --experts 4 --top-k 2 --dry-run"];

/// A way to damage a checkpoint, and words of the message that it gets.
struct Case {
    name: String,
    damage: Box<dyn Fn(&Checkpoint)>,
    words: &'static [&'static str],
}

fn case(
    name: &str,
    damage: impl Fn(&Checkpoint) + 'static,
    words: &'static [&'static str],
) -> Case {
    Case { name: name.to_owned(), damage: Box::new(damage), words }
}

impl Case {
    /// A sandbox with a damaged copy of `golden`, and token ids.
    fn sandbox(&self, golden: &str) -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.write("ids.json", "[[1, 2, 3], [4, 5]]");
        sandbox.write("ids.jsonl", r#"{"input_ids": [1, 2, 3]}"#);
        (self.damage)(&sandbox.copy(golden, "model"));
        sandbox
    }
}

/// Damages a copy of `golden` in each way and runs `commands` on it, which must refuse it. For each
/// case the first problem is shown.
#[track_caller]
fn all_refused(golden: &str, commands: &[&str], cases: &[Case]) {
    let mut problems = Vec::new();
    for case in cases {
        let sandbox = case.sandbox(golden);
        let first = commands.iter().find_map(|line| sandbox.refuses(line, 1, case.words));
        problems.extend(first.map(|problem| format!("{}: {problem}", case.name)));
    }
    assert_none(&problems);
}

/// The same for [`READERS`] in a bounded address space and time: files may ask for more memory,
/// time or depth than there is.
#[track_caller]
fn all_refused_in_bounds(golden: &str, cases: &[Case]) {
    let mut problems = Vec::new();
    for case in cases {
        let sandbox = case.sandbox(golden);
        let first = READERS.iter().find_map(|line| accepted(&sandbox, line, case.words));
        problems.extend(first.map(|problem| format!("{}: {problem}", case.name)));
    }
    assert_none(&problems);
}

/// The address space that a command gets. Commands need far less, including their threads' stacks.
const MAX_KIBIBYTES: u32 = 2 << 20;
/// A time limit for errors. They take less than a second of one core, but the machine may be busy.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Runs `line` in a bounded address space for a bounded time.
fn bounded(sandbox: &Sandbox, line: &str) -> Outcome {
    let seconds = MAX_TIME.as_secs();
    sandbox
        .shell(&format!("ulimit -v {MAX_KIBIBYTES}; timeout -s KILL {seconds} '{BINARY}' {line}"))
}

/// The reason why `line`, in bounds, isn't refused properly, with a message that holds `words`; None
/// if it is.
fn accepted(sandbox: &Sandbox, line: &str, words: &[&str]) -> Option<String> {
    let before = sandbox.contents();
    let outcome = bounded(sandbox, line);
    let mut problems = wrong_refusal(&outcome, words);
    if before != sandbox.contents() {
        problems.push("it left a trace".to_owned());
    }
    println!(
        "{:>6} ms  {line}: {}",
        outcome.took.as_millis(),
        outcome.stderr.lines().next().unwrap_or_default()
    );
    let shown: String = outcome.to_string().chars().take(2000).collect();
    (!problems.is_empty()).then(|| format!("{}\n{shown}", problems.join("; ")))
}

/// What is wrong with the exit code and the message of a refusal, which should hold `words`.
fn wrong_refusal(outcome: &Outcome, words: &[&str]) -> Vec<String> {
    let said = &outcome.stderr;
    let mut problems = Vec::new();
    if ![1, 2].contains(&outcome.code) {
        problems.push("exit code".to_owned());
    }
    let lacking = words.iter().chain(&["remedy"]).filter(|word| !said.contains(**word));
    problems.extend(lacking.map(|word| format!("no {word:?}")));
    let wrong = ["panicked", "\x1b"].into_iter().filter(|word| said.contains(*word));
    problems.extend(wrong.map(|word| format!("{word:?}")));
    if said.len() > 20_000 {
        problems.push(format!("a message of {} bytes", said.len()));
    }
    problems
}

/// A model with a tokenizer and a template, and text for it.
fn with_text() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/dense", "model");
    sandbox.write("text.txt", "some words");
    sandbox.write("chat.jsonl", r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
    sandbox
}

/// Writes each content to the file `file` beside a model with text, and runs `line`, which reads it,
/// in bounds. It must name the file and say the given words.
#[track_caller]
fn contents_refused(file: &str, line: &str, cases: &[(&[u8], &[&str])]) {
    let name = file.trim_start_matches("model/").trim_start_matches("out/");
    let mut problems = Vec::new();
    for (content, words) in cases {
        let sandbox = with_text();
        sandbox.write(file, content);
        let start = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
        let words = [&[name], *words].concat();
        problems.extend(accepted(&sandbox, line, &words).map(|p| format!("{start:?}: {p}")));
    }
    assert_none(&problems);
}

/// A JSON object of ten million unknown keys, and one at the end.
fn crowd() -> String {
    let mut text = String::from("{");
    (0..10_000_000).for_each(|index| _ = write!(text, "\"{index}\":[],"));
    text + "\"end\":0}"
}

/// Options of a command, its exit code, and words of its message.
type Request = (&'static str, i32, &'static [&'static str]);

/// Gives the options of each request to `command`, which must refuse them.
#[track_caller]
fn requests_refused(sandbox: &Sandbox, command: &str, requests: &[Request]) {
    let found = requests.iter().filter_map(|(options, code, words)| {
        sandbox.refuses(&format!("{command} {options}"), *code, words)
    });
    assert_none(&found.collect::<Vec<_>>());
}

/// Options of a command, words of the message, and options that follow its remedy.
type Remedy = (&'static str, &'static [&'static str], &'static str);

/// Gives the options of each case to `command`, which must refuse them; following the remedy must
/// succeed. `{moe}` and `{code}` stand for a model and a text.
#[track_caller]
fn remedies_work(sandbox: &Sandbox, command: &str, cases: &[Remedy]) {
    let line = |options: &str| {
        format!("{command} {options}").replace("{moe}", MOE).replace("{code}", CODE)
    };
    let mut problems = Vec::new();
    for (options, words, followed) in cases {
        problems.extend(sandbox.refuses(&line(options), 2, words));
        let outcome = sandbox.run(&line(followed));
        let failed = (outcome.code != 0).then(|| format!("{options}: its remedy fails: {outcome}"));
        problems.extend(failed);
    }
    assert_none(&problems);
}
