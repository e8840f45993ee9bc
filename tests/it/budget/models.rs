//! Makes the models and texts on which memory is measured.

use serde_json::json;

use crate::common::Sandbox;
use crate::common::made::{self, Llama, random, varied};

/// A model of 12 MB, half of it a vocabulary of realistic size.
const DENSE: Llama =
    Llama { layers: 3, hidden: 256, width: 512, vocab: 12_000, heads: 4, head_dim: 64 };

/// Writes a dense checkpoint, one of 8 experts made from it, and texts.
pub(super) fn models(sandbox: &Sandbox) {
    DENSE.write(&sandbox.path("dense"), varied());
    sandbox.run("upcycle dense -o moe --experts 8 --top-k 2 --noise-std 1e-2").succeeds();
    let mut random = random();
    let mut id = || (random() >> 8) as usize % DENSE.vocab;
    for (name, sequences) in [("text.jsonl", 18), ("held.jsonl", 3)] {
        let sequences: Vec<Vec<usize>> =
            (0..sequences).map(|_| (0..512).map(|_| id()).collect()).collect();
        let lines: String = sequences.iter().map(|ids| line(ids)).collect();
        sandbox.write(name, lines);
        sandbox.write(&format!("{name}.ids"), format!("{sequences:?}"));
    }
}

/// A line of text as token ids.
pub(super) fn line(ids: &[usize]) -> String {
    format!("{{\"input_ids\": {ids:?}}}\n")
}

/// Writes a model with 128 small experts in its only layer.
pub(super) fn model_of_many_experts(sandbox: &Sandbox) {
    const EXPERTS: usize = 128;
    const NEURONS: usize = 128;
    let dense = Llama { layers: 1, width: NEURONS, ..DENSE };
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = dense.shapes();
    shapes.retain(|name, _| !name.contains(".mlp."));
    for norm in ["q_norm", "k_norm"] {
        shapes.insert(layer(&format!("self_attn.{norm}")), vec![dense.head_dim]);
    }
    shapes.insert(layer("mlp.gate"), vec![EXPERTS, dense.hidden]);
    for expert in 0..EXPERTS {
        let of = |name: &str| layer(&format!("mlp.experts.{expert}.{name}_proj"));
        shapes.extend(["gate", "up"].map(|name| (of(name), vec![NEURONS, dense.hidden])));
        shapes.insert(of("down"), vec![dense.hidden, NEURONS]);
    }
    let mut config = dense.config();
    for (key, value) in [
        ("model_type", json!("qwen3_moe")),
        ("moe_intermediate_size", json!(NEURONS)),
        ("num_key_value_heads", json!(dense.heads)),
        ("num_experts", json!(EXPERTS)),
        ("num_experts_per_tok", json!(8)),
        ("norm_topk_prob", json!(true)),
    ] {
        config[key] = value;
    }
    made::write(&sandbox.path("many"), &shapes, &config, varied());
}
