//! Quantized checkpoints that other libraries wrote (golden/quantize/checkpoints) beside
//! transformers' logits from them.

use std::path::Path;

use moe_checkpoint::SourceFile;
use moe_forward::{Batch, LmHead, Silent, Sweep};
use moe_math::Compute;
use moe_model::{Encoding, Model};

use crate::common::golden;

fn floats(file: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let (_, entries) = SourceFile::open(file).unwrap();
    let data = bytes.len() - entries.iter().map(|e| e.end).max().unwrap() as usize;
    let entry = entries.iter().find(|entry| entry.name == name).unwrap();
    let values = &bytes[data + entry.start as usize..data + entry.end as usize];
    values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn logits_are_those_of_transformers() {
    for (name, tokens) in [
        ("qwen3_moe.w4", "families/qwen3_moe/both_names/tokens.json"),
        ("mixtral.w8", "families/mixtral/sliding/tokens.json"),
        ("qwen3_moe.fp8", "quantize/checkpoints/qwen3_moe.fp8/tokens.json"),
    ] {
        let folder = golden("quantize/checkpoints").join(name);
        let model = Model::open(&folder).unwrap();
        let quantized: Vec<_> = model
            .moes()
            .flat_map(|(_, moe)| &moe.experts)
            .flat_map(|expert| expert.linears())
            .collect();
        assert!(!quantized.is_empty(), "{name}");
        assert!(
            quantized.iter().all(|linear| !matches!(linear.weight.encoding(), Encoding::Plain)),
            "{name}"
        );
        let batch = Batch::from_json(&golden(tokens)).unwrap();
        let compute = Compute::cpu();
        let mut sweep = Sweep::new(&model, &batch, &compute).unwrap();
        sweep.run(&mut Silent).unwrap();
        let hidden = sweep.hidden(0..batch.tokens()).unwrap();
        let logits = LmHead::load(&model, &compute).unwrap().logits(&hidden).unwrap();
        let found = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let wanted = floats(&folder.join("reference.safetensors"), "logits_exact");
        assert_eq!(found.len(), wanted.len(), "{name}");
        let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
        let far = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far <= 1e-5 * largest.max(1.0), "{name}: {far} of {largest}");
    }
}
