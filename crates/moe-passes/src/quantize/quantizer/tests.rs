use moe_forward::{Batch, Group, Silent, Storage, Sweep};

use super::*;

/// Runs text through a model while it is quantized, and then through the result: some tokens don't
/// count, hot experts see fewer tokens than are routed to them, cold ones more, and tokens come in
/// several blocks.
fn states_in_the_sweep_are_those_of_the_result(folder: &str, least: f64) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(folder);
    let (model, compute) = (Model::open(&dir).unwrap(), Compute::cpu());
    let ids: Vec<Vec<u32>> =
        (0..4).map(|s| (0..24).map(|t| (57 * s + 91 * t) % model.vocab as u32).collect()).collect();
    let group_of =
        (0..96).map(|token: usize| if token.is_multiple_of(5) { UNCOUNTED } else { 0 }).collect();
    let group = Group { label: "text".to_owned(), half: 0, weight: None, tokens: 96 };
    let text = Calibration {
        batch: Batch::new(ids.iter().map(Vec::as_slice)),
        groups: vec![group],
        group_of,
    };
    let options = serde_json::json!({ "scheme": "w4a16", "group-size": -1, "hot-cap": 1.0, "top-up-below": least, "include": ["shared"] });
    let options: QuantizeOptions = serde_json::from_value(options).unwrap();
    let scratch = Arc::new(ScratchStore::new(&std::env::temp_dir()));
    let sources = Sources { scratch: Some(&scratch), ..Sources::new(&model, &compute) };
    let mut quantizer = Quantizer::new(&options, &sources);
    quantizer.begin(&text);
    let storage = Storage { block_tokens: Some(48), ..Storage::default() };
    let mut sweep = Sweep::stored(&model, &text.batch, &compute, &storage).unwrap();
    for (index, layer) in model.layers.iter().enumerate() {
        sweep.convert(index, layer, &mut quantizer).unwrap();
    }
    let found = sweep.hidden(0..96).unwrap().to_vec2::<f32>().unwrap();

    let decisions = quantizer.finish().unwrap();
    let details = decisions.layers.values().map(|layer| layer.record.details().unwrap());
    let records = details.flat_map(|QuantizedLayer { experts, .. }| experts);
    let counts: Vec<_> = records.map(|record| record.counts).collect();
    assert!(counts.iter().any(|counts| counts.used < counts.routed), "{counts:?}");
    assert!(counts.iter().any(|counts| counts.topped_up > 0), "{counts:?}");
    let mut quantized = model.clone();
    for (index, layer) in decisions.layers {
        quantized.layers[index].ffn = layer.ffn;
    }
    let mut sweep = Sweep::new(&quantized, &text.batch, &compute).unwrap();
    sweep.run(&mut Silent).unwrap();
    let expected = sweep.hidden(0..96).unwrap().to_vec2::<f32>().unwrap();
    let worst = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    let size = worst(&expected, &vec![vec![0.0; model.hidden]; 96]);
    assert!(worst(&found, &expected) < 1e-5 * size, "{} of {size}", worst(&found, &expected));
}

#[test]
fn states_in_the_sweep_are_those_of_the_result_with_routed_experts() {
    states_in_the_sweep_are_those_of_the_result("models/moe", 0.1);
}

#[test]
fn states_in_the_sweep_are_those_of_the_result_with_a_shared_expert() {
    states_in_the_sweep_are_those_of_the_result("families/qwen2_moe/base/model", 0.85);
}
