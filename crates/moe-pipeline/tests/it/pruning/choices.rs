//! Tests that pruning keeps the experts that independent computations keep.

use moe_model::Model;
use serde_json::Value;

use super::{Text, indices, kept, moe, read_json};
use crate::common::golden;

/// `selftest` checks other criteria: this one looks at tokens, which statistics don't have. In
/// sequential calibration only the first layer is decided on the original's states.
#[test]
fn ranked_choice_keeps_what_an_independent_computation_keeps() {
    let text = Text::of_golden();
    let saliencies = read_json("pruning/saliencies.json");
    for (count, wanted) in saliencies["kept"]["ranked-choice"].as_object().unwrap() {
        let toml = format!(
            "criterion = \"ranked-choice\"\nexperts = {count}\nno-super-expert-guard = true"
        );
        let found = kept(&text.with_data(&toml), &moe(), &text.path("out"));
        assert_eq!(found[0], indices(wanted)[0], "{count}");
    }
}

#[test]
fn reap_in_sequence_keeps_what_llm_compressor_keeps() {
    let text = Text::of_golden();
    let wanted = read_json("pruning/sequential.json");
    let peer = read_json("pruning/llm-compressor.json");
    for (count, sparsity) in [("18", 0.25), ("12", 0.5)] {
        let options = text.with_data(&format!(
            "criterion = \"reap\"\nexperts = {count}\nno-super-expert-guard = true"
        ));
        let found = kept(&options, &moe(), &text.path("out"));
        assert_eq!(found, indices(&wanted["kept"][count]), "{count}");
        let same = |run: &&Value| {
            run["attention"] == "causal" && run["dtype"] == "float32" && run["sparsity"] == sparsity
        };
        let theirs = peer["runs"].as_array().unwrap().iter().find(same).unwrap();
        assert_eq!(found, indices(&theirs["kept"]), "{count}");
    }
}

/// `selftest` checks that they compute what transformers computes with experts masked.
#[test]
fn experts_that_stay_are_copied_byte_for_byte() {
    let text = Text::of_golden();
    let source = Model::open(&moe()).unwrap();
    let count = 12;
    let toml = format!("criterion = \"reap\"\nexperts = {count}\nno-super-expert-guard = true");
    let output = text.path("pruned");
    let kept = kept(&text.with_data(&toml), &moe(), &output);
    let model = Model::open(&output).unwrap();
    assert_eq!(model.config["num_experts"], count);
    assert_eq!(model.config["num_local_experts"], count);
    for ((layer, moe), (kept, (_, before))) in model.moes().zip(kept.iter().zip(source.moes())) {
        let rows = |weight: &moe_model::Weight| weight.read().unwrap();
        let (ours, theirs) = (rows(&moe.router.weight), rows(&before.router.weight));
        let row = ours.len() / count;
        for (place, expert) in kept.iter().enumerate() {
            assert_eq!(ours[place * row..][..row], theirs[expert * row..][..row], "router {layer}");
            let pairs =
                moe.experts[place].linears().into_iter().zip(before.experts[*expert].linears());
            pairs.for_each(|(a, b)| {
                assert_eq!(rows(&a.weight), rows(&b.weight), "{layer} {expert}")
            });
        }
    }
}

#[test]
fn the_best_subset_is_found() {
    let wanted = read_json("pruning/exhaustive.json");
    let text = Text::new(&[("random", &wanted["tokens"])]);
    let model = golden("families")
        .join(wanted["model"].as_str().unwrap().strip_prefix("families/").unwrap())
        .join("model");
    for (count, first) in wanted["layers"][0].as_object().unwrap() {
        let count: usize = count.parse().unwrap();
        let toml =
            format!("criterion = \"exhaustive\"\nexperts = {count}\nno-super-expert-guard = true");
        let found = kept(&text.with_data(&toml), &model, &text.path("out"));
        let best: Vec<usize> = serde_json::from_value(first["best"].clone()).unwrap();
        assert_eq!(found[0], best, "{count}");
    }
}
