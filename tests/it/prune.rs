//! Tests `prune` under each criterion.

use serde_json::Value;

use crate::common::Sandbox;

#[test]
fn an_expert_that_no_token_reaches_goes_first_under_each_criterion() {
    let sandbox = Sandbox::new();
    // Three tokens reach at most 12 of the 24 experts of a layer.
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    sandbox.run("observe golden/models/moe -o stats --data ids.jsonl").succeeds();
    // These criteria need no tokens, or more than sums.
    let others = ["aimer", "exhaustive", "ranked-choice", "random"];
    let criteria = sandbox.words("prune", "criterion");
    assert!(criteria.len() >= 12 && others.iter().all(|other| criteria.iter().any(|c| c == other)));
    for method in criteria.iter().filter(|method| !others.contains(&method.as_str())) {
        let line = format!(
            "prune golden/models/moe -o {method} --experts 12 --criterion {method} --stats stats --json"
        );
        let value = sandbox.run(&line).succeeds().json();
        for layer in value["receipt"]["layers"].as_array().unwrap() {
            assert_reached_experts_are_kept(method, layer);
        }
        sandbox.run(&format!("verify {method}")).succeeds();
    }
}

fn assert_reached_experts_are_kept(method: &str, layer: &Value) {
    let trust = &layer["details"];
    let counts: Vec<u64> = serde_json::from_value(trust["load"]["counts"].clone()).unwrap();
    let clusters: Vec<Vec<usize>> = serde_json::from_value(trust["clusters"].clone()).unwrap();
    let reached = counts.iter().filter(|n| **n > 0).count();
    let kept = clusters.iter().filter(|cluster| counts[cluster[0]] > 0).count();
    assert_eq!(kept, reached.min(12), "{method}: {layer}");
    assert_eq!(trust["lost_choices"], 0.0, "{method}: {layer}");
}
