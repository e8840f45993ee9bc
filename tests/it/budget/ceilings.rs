//! Tests that a budget is a ceiling, and that following a refusal gives a run within it.

use super::models::{line, models};
use super::{CONVERSIONS, OTHERS, peak, refused, size};
use crate::common::Sandbox;
use crate::common::made::{Llama, varied};

/// The budget that a refusal names, in megabytes.
fn named(refusal: &str) -> u64 {
    let named = refusal.split_once("--memory-budget ").and_then(|(_, rest)| rest.split_once("MB"));
    named.and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("{refusal}"))
}

/// A user who follows the error gets a run that succeeds within the budget that it names.
#[test]
fn a_budget_is_a_ceiling_or_an_error_before_work_starts() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    sandbox.run(&format!("{} --quiet", OTHERS[0])).succeeds();
    let mut problems = Vec::new();
    for (index, (command, options)) in CONVERSIONS.iter().enumerate() {
        let start = std::time::Instant::now();
        let line = format!("{command} {options} -o out-{index}");
        let least = named(&refused(&sandbox, &line, "45MB").stderr);
        assert!(!sandbox.path(&format!("out-{index}")).exists(), "{line}");
        let outcome =
            sandbox.run(&format!("{line} --quiet --timings --threads 2 --memory-budget {least}MB"));
        if outcome.code != 0 {
            problems.push(format!("{line}: {least} MB: {}", outcome.stderr));
            continue;
        }
        let held = size(&outcome.stderr, "  peak memory ").unwrap() / 1e6;
        println!(
            "{line}: at least {least} MB, held {held:.0} MB ({:.1} s)",
            start.elapsed().as_secs_f64()
        );
        if held > least as f64 || outcome.stderr.contains("warning") {
            problems.push(format!(
                "{line}: at least {least} MB, held {held:.0} MB: {}",
                outcome.stderr
            ));
        }
    }
    crate::common::assert_none(&problems);
}

/// Where experts are far wider than states, comparing neurons takes most of the memory.
#[test]
fn wide_experts_are_merged_within_a_budget() {
    let sandbox = Sandbox::new();
    let wide = Llama { layers: 1, hidden: 256, width: 1536, vocab: 512, heads: 4, head_dim: 64 };
    wide.write(&sandbox.path("wide"), varied());
    sandbox
        .run("upcycle wide -o experts --experts 4 --top-k 2 --noise-std 1e-2 --quiet")
        .succeeds();
    let ids = |first: usize| (0..64).map(|i| (first + i * 7) % 512).collect::<Vec<_>>();
    sandbox.write("text.jsonl", (0..8).map(|first| line(&ids(first))).collect::<String>());
    let mut problems = Vec::new();
    let algorithms = sandbox.words("merge", "algorithm");
    let merged = |name: &String| {
        format!("merge experts -o {name} --algorithm {name} --experts 2 --data text.jsonl")
    };
    let mut lines: Vec<String> = algorithms.iter().map(merged).collect();
    lines.push(
        "distill experts -o mean --init mean --down measured --width 1536 --data text.jsonl"
            .to_owned(),
    );
    for line in lines {
        let least = named(&refused(&sandbox, &line, "30MB").stderr);
        let held = peak(&sandbox, &format!("{line} --memory-budget {least}MB")) / 1e6;
        println!("{line}: at least {least} MB, held {held:.0} MB");
        if held > least as f64 {
            problems.push(format!("{line}: at least {least} MB, held {held:.0} MB"));
        }
    }
    crate::common::assert_none(&problems);
}

/// A user who lowers what a refusal names, instead of raising the budget, gets a run.
#[test]
fn what_a_refusal_says_to_lower_is_enough() {
    let sandbox = Sandbox::new();
    models(&sandbox);
    let heal = "heal moe -o healed --train all --steps 1 --data text.jsonl --memory-budget 500MB --batch-tokens";
    let refusal = sandbox.run(&format!("{heal} 8192 --quiet"));
    assert_eq!(refusal.code, 2, "{}", refusal.stderr);
    let ways =
        refusal.stderr.split_once("or more, or ").unwrap_or_else(|| panic!("{}", refusal.stderr)).1;
    assert!(ways.contains("lower --batch-tokens"), "{ways}");
    sandbox.run(&format!("{heal} 64 --quiet")).succeeds();
    assert!(!ways.contains("--sequence-length"), "{ways}");
    let eval = "eval moe --data text.jsonl --memory-budget 66MB --quiet";
    let refusal = sandbox.run(eval);
    assert_eq!(refusal.code, 2, "{}", refusal.stderr);
    let said =
        refusal.stderr.split_once("(--data-tokens ").and_then(|(_, rest)| rest.split_once(')'));
    let tokens = said.unwrap_or_else(|| panic!("{}", refusal.stderr)).0;
    sandbox.run(&format!("{eval} --data-tokens {tokens}")).succeeds();
    let verify = sandbox.run("verify moe --threads 1 --memory-budget 20MB");
    assert!(verify.code == 2 && !verify.stderr.contains("--threads"), "{}", verify.stderr);
}

/// The budget also bounds the output of chat templates.
#[test]
fn templates_stay_within_a_budget() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    sandbox.write(
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi there all\"}]}\n",
    );
    for template in [
        "{% set x = 'a' * 450000000 %}hello",
        "{{ 'a' * 300000000 }}",
        "{{ ('a' * 100000000) | list | length }}",
    ] {
        model.write("chat_template.jinja", template);
        let outcome = sandbox.run("eval model --data chat.jsonl --memory-budget 150MB --timings");
        let held = size(&outcome.stderr, "  peak memory ");
        outcome.exits(1).says(&["takes more than", "chat_template.jinja", "remedy"]);
        assert!(held.is_none_or(|held| held < 150e6), "{template}: {held:?}");
    }
}
