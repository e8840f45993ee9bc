//! Tests text from files, names and recipes: terminals, pages and reports show it and never obey
//! it.

use std::fs;

use serde_json::json;

use crate::common::{Outcome, Sandbox, assert_none};

/// Sets a window's title, clears the screen (in seven and in eight bits), reverses text, hides a
/// mark, begins a line.
const EVIL: &str = "x\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{feff}\u{7f}";

/// A character in `text` that a terminal would obey, other than line breaks and tabs.
fn obeyed(text: &str) -> Option<char> {
    let marks = ['\u{202e}', '\u{2066}', '\u{feff}'];
    text.chars().find(|c| (c.is_control() && !['\n', '\t'].contains(c)) || marks.contains(c))
}

/// The problem with the output of a run; None if there is none.
fn problem(outcome: &Outcome, code: i32) -> Option<String> {
    let found = obeyed(&outcome.stdout).or_else(|| obeyed(&outcome.stderr));
    let lines = outcome.stdout.lines().chain(outcome.stderr.lines());
    let forged = lines.filter(|line| line.trim_start().starts_with("forged")).count();
    let wrong = outcome.code != code
        || found.is_some()
        || forged > 0
        || outcome.stderr.contains("panicked");
    wrong.then(|| {
        format!("{found:?}, {forged} forged lines, not {code}: {outcome}\n{}", outcome.stdout)
    })
}

/// A recipe whose name, labels, paths and variables no terminal should obey.
fn evil_recipe(evil: &str, file: &str) -> String {
    let output = format!("out{EVIL}\nforged");
    let eval = |model: &str, label: &str| {
        json!({ "run": "eval", "model": model, "label": label, "max-tokens": 64,
                "data": [format!("{EVIL}\nforged={file}")] })
    };
    let recipe = json!({ "name": evil, "step": [
        { "run": "upcycle", "model": "golden/models/dense", "output": output, "experts": 2, "top-k": 1 },
        { "each": { "what": [evil] }, "step": [
            eval(&output, "${what} 1"),
            eval("golden/models/dense", "${what} 2"),
        ] },
        { "run": "verify", "model": output },
    ] });
    serde_json::from_value::<toml::Table>(recipe).unwrap().to_string()
}

#[test]
fn names_of_recipes_labels_and_paths_are_shown() {
    let sandbox = Sandbox::new();
    let file = format!("{EVIL}|`<img src=y>");
    fs::copy(sandbox.path("golden/text/english.heldout.txt"), sandbox.path(&file)).unwrap();
    sandbox.write("r.toml", evil_recipe(&format!("{EVIL}\nforged: <b>|`**"), &file));
    let mut problems: Vec<String> = Vec::new();
    problems.extend(problem(&sandbox.run("run r.toml --dry-run"), 0));
    problems.extend(problem(&sandbox.run("run r.toml --junit r.xml --summary r.md"), 0));
    let json = sandbox.run("run r.toml --json");
    problems.extend(problem(&json, 0));
    assert_none(&problems);
    let escaped = ["\\u001b]0;owned", "\\u202e"];
    assert!(escaped.iter().all(|text| json.stdout.contains(text)), "{}", json.stdout);
    for name in ["r.xml", "r.md", &format!("out{EVIL}\nforged/README.md")] {
        let text = fs::read_to_string(sandbox.path(name)).unwrap();
        assert_eq!(obeyed(&text), None, "{name}: {text}");
        assert!(!text.contains("<b>") && !text.contains("<img"), "{name}: {text}");
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{name}: {text}");
    }
    let page = fs::read_to_string(sandbox.path("r.md")).unwrap();
    assert!(page.contains("forged: &lt;b>\\|\\`\\*\\*"), "{page}");
}

#[test]
fn what_a_checkpoint_says_is_shown() {
    let sandbox = Sandbox::new();
    let tensor = sandbox.copy("families/llama/base/model", "tensor");
    tensor.rename_tensor("model.norm.weight", &format!("{EVIL}\nforged"));
    let family = sandbox.copy("families/llama/base/model", "family");
    family.set("model_type", json!(format!("{EVIL}\nforged")));
    let scaling = sandbox.copy("families/llama/base/model", "scaling");
    scaling.set("rope_scaling", json!({ "rope_type": format!("{EVIL}\nforged"), "factor": 2.0 }));
    let mut problems = Vec::new();
    for (args, code) in [
        (&["inspect", "tensor"][..], 1),
        (&["verify", "family"], 1),
        (&["upcycle", "scaling", "-o", "out", "--experts", "2", "--top-k", "1"], 1),
    ] {
        problems.extend(problem(&sandbox.run_args(args), code));
    }
    assert_none(&problems);
}

/// No line of an error is one of a file. Those of a recipe begin with their number.
#[test]
fn line_breaks_of_files_begin_no_line() {
    let sandbox = Sandbox::with_model_and_text();
    let evil = json!(format!("{EVIL}\nforged")).to_string();
    let model = sandbox.copy("families/llama/base/model", "index");
    fs::remove_file(sandbox.path("index/model.safetensors")).unwrap();
    let index = format!("{{\"weight_map\": {{\"lm_head.weight\": {evil}}}}}");
    model.write("model.safetensors.index.json", index);
    sandbox.write("keys.jsonl", format!("{{{evil}: \"words\"}}"));
    let step = "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"out\"\nexperts = 4\n";
    let mut problems = Vec::new();
    for (line, code) in [("inspect index", 1), ("eval m --data keys.jsonl", 1)] {
        problems.extend(problem(&sandbox.run(line), code));
    }
    for recipe in [
        format!("{evil} = 1\n"),
        format!("[[step]]\nrun = {evil}\n"),
        format!("{step}{evil} = 1\n"),
        format!("{step}criterion = {evil}\n"),
        format!("{step}label = \"${{{}}}\"\n", evil.trim_matches('"')),
        format!("[vars]\na = {evil}\n{step}criterion = \"${{a}}\"\n"),
    ] {
        sandbox.write("r.toml", recipe);
        problems.extend(problem(&sandbox.run("run r.toml --dry-run"), 2));
    }
    assert_none(&problems);
}

#[test]
fn what_a_path_or_an_option_says_is_shown() {
    let sandbox = Sandbox::new();
    sandbox.write("t.json", json!([[1, 2, 3]]).to_string());
    let evil = |name: &str| format!("{name}{EVIL}\nforged");
    let path = &*evil("path");
    sandbox.copy("families/llama/base/model", path);
    let sizes = ["--experts", "2", "--top-k", "1"];
    let mut problems = Vec::new();
    for (args, code) in [
        (&["inspect", path][..], 0),
        (&["verify", path], 0),
        (&["verify", &evil("nowhere")], 1),
        (&["logits", path, "--tokens", "t.json", "-o", &evil("logits")], 0),
        (&[&["upcycle", path, "-o", &evil("up")], &sizes[..]].concat(), 0),
        (&["upcycle", path, "-o", "out", "--experts", &evil(""), "--top-k", "1"], 2),
        (&["prune", path, "-o", "out", "--criterion", &evil("")], 2),
        (&["prune", path, &evil("--")], 2),
        (&["eval", path, "--data", &format!("{EVIL}\nforged=nowhere")], 1),
        (&["run", &evil("nowhere")], 1),
        (&[&evil("")], 2),
    ] {
        problems.extend(problem(&sandbox.run_args(args), code));
    }
    assert_none(&problems);
}

/// The source's card may hold markup of its publisher; the result's card takes only values from it.
#[test]
fn a_card_carries_values_and_no_markup() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    let front = "license: mit\r---\r# Owned <script>alert(1)</script>\nlicense_name: |\n  <b>\nlanguage:\n- en\n- '![x](https://e.vil/?c)'\n- \"es\\u001b[2J\"";
    model.write("README.md", format!("---\n{front}\n---\n# A model\n"));
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    let card = String::from_utf8(sandbox.read("out/README.md")).unwrap();
    assert_eq!(obeyed(&card), None, "{card}");
    assert!(!card.contains("<script") && !card.contains("<b>") && !card.contains("![x]"), "{card}");
    let (front, page) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    assert!(
        front.starts_with("license: \"mit\\u000d---")
            && front.contains("\nlanguage:\n- en\n- \"\\u0021"),
        "{front}"
    );
    assert!(front.contains("\nlibrary_name: transformers\n"), "{front}");
    assert!(page.contains("`license_name` that is not a line of text"), "{page}");
}
