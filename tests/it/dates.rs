//! Tests chat templates that write the date: they make another text of a conversation each day, so
//! results of one day don't count as those of another.

use serde_json::json;

use crate::common::{Outcome, Sandbox};

/// Noon on 1 December 2026.
const NOON: i64 = 1_796_126_400;
const LATER: i64 = NOON + 3_600;
const NEXT_DAY: i64 = NOON + 86_400;

const RECIPE: &str = r#"
[[step]]
run = "observe"
model = "model"
output = "moe.stats"
data = ["chat.jsonl"]
data-tokens = 256

[[step]]
run = "prune"
model = "model"
output = "pruned"
keep = 0.5
data = ["chat.jsonl"]
data-tokens = 256
"#;

/// A sandbox with a model whose chat template is `template`, and conversations for it.
fn sandbox(template: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/moe", "model");
    sandbox.write("model/chat_template.jinja", template);
    let row = |index: usize| {
        json!({"messages": [{"role": "user", "content": format!("What comes after {index}?")}]})
            .to_string()
            + "\n"
    };
    sandbox.write("chat.jsonl", (0..40).map(row).collect::<String>());
    sandbox.write("recipe.toml", RECIPE);
    sandbox.write("again.toml", RECIPE.replace("data-tokens", "overwrite = true\ndata-tokens"));
    sandbox
}

const DATED: &str =
    "{{ strftime_now('%d %b %Y') }}: {% for m in messages %}{{ m.content }}\n{% endfor %}";
const TIMELESS: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}";

fn at(sandbox: &Sandbox, time: i64, line: &str) -> Outcome {
    sandbox.shell(&format!("export SOURCE_DATE_EPOCH={time}; moe-convert {line}"))
}

fn kept(outcome: &Outcome) -> usize {
    outcome.stdout.matches("finished already").count()
}

#[test]
fn what_was_made_of_one_days_text_is_made_anew_on_another() {
    let sandbox = sandbox(DATED);
    let note = "chat.jsonl: the chat template writes the date (\"01 Dec 2026\" for \"%d %b %Y\")";
    at(&sandbox, NOON, "run recipe.toml").succeeds().says(&[note]);
    let receipt = sandbox.json("pruned/moe-convert.json");
    assert!(receipt["texts"]["chat.jsonl"].as_str().unwrap().starts_with("dated:"), "{receipt}");
    assert!(receipt["warnings"][0].as_str().unwrap().contains(note), "{receipt}");
    sandbox.run("verify pruned").succeeds();
    let before = sandbox.contents();
    assert_eq!(kept(&at(&sandbox, LATER, "run recipe.toml").succeeds()), 2);
    at(&sandbox, NEXT_DAY, "run recipe.toml --dry-run")
        .exits(2)
        .says(&["the output exists", "moe.stats"]);
    at(&sandbox, NEXT_DAY, "run recipe.toml").exits(2).says(&["exists", "moe.stats"]);
    assert_eq!(kept(&at(&sandbox, NEXT_DAY, "run again.toml --dry-run").succeeds()), 0);
    assert!(before == sandbox.contents());
    let again = at(&sandbox, NEXT_DAY, "run again.toml").succeeds().says(&["02 Dec 2026"]);
    assert_eq!(kept(&again), 0);
    assert_ne!(sandbox.json("pruned/moe-convert.json")["texts"], receipt["texts"]);
    sandbox.run("verify pruned").succeeds();
    assert_eq!(kept(&at(&sandbox, NEXT_DAY, "run recipe.toml").succeeds()), 2);
}

#[test]
fn without_a_date_nothing_depends_on_the_day() {
    let sandbox = sandbox(TIMELESS);
    let first = at(&sandbox, NOON, "run recipe.toml").succeeds();
    assert!(!first.stderr.contains("writes the date"), "{first}");
    let texts = &sandbox.json("pruned/moe-convert.json")["texts"];
    assert_eq!(texts["chat.jsonl"].as_str().unwrap().len(), 64, "{texts}");
    assert_eq!(kept(&at(&sandbox, NEXT_DAY, "run recipe.toml").succeeds()), 2);
}

/// A training goes on with the text that it began with.
#[test]
fn a_training_does_not_go_on_with_another_days_text() {
    let sandbox = sandbox(DATED);
    let line = "heal model --data chat.jsonl --steps 2 --eval-every 1 --batch-tokens 64 --sequence-length 64 -o healed";
    let stopped = format!(
        "ulimit -f 4000; trap '' XFSZ; export SOURCE_DATE_EPOCH={NOON}; moe-convert {line}"
    );
    sandbox.shell(&stopped).exits(1).says(&["ulimit"]);
    let resume = format!("{line} --resume");
    at(&sandbox, NEXT_DAY, &resume).exits(1).says(&["healed.training/of", "date", "remedy"]);
    at(&sandbox, LATER, &resume).succeeds().says(&["goes on after step 2"]);
    assert_eq!(kept(&at(&sandbox, LATER, &resume).succeeds()), 1);
    at(&sandbox, NEXT_DAY, &resume).exits(2).says(&["healed", "remedy"]);
}
