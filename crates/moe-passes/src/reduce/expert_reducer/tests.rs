use moe_forward::{Batch, Storage, Sweep, UNCOUNTED};

use super::*;
use crate::reduce::Reduced;

/// Keeps all experts, and records the inputs and the number of tokens of each layer.
#[derive(Default)]
struct Watch(std::sync::Mutex<Vec<(Vec<Vec<f32>>, f64)>>);

impl Method for Watch {
    fn needs(&self) -> Needs {
        Needs { sums: true, inputs: true, ..Needs::default() }
    }

    fn reduce(&self, layer: &LayerView<'_>) -> Result<Reduced> {
        let inputs = Tensor::cat(layer.inputs, 0).and_then(|x| x.to_vec2()).unwrap();
        self.0.lock().unwrap().push((inputs, layer.pooled().scalar(Quantity::SeenTokens)));
        Ok(Reduced::unmerged(0..layer.count, Vec::new()))
    }
}

/// The records of the first two layers for three sequences of ten tokens, one block each. `counts`
/// says which tokens count.
fn seen(counts: fn(usize) -> bool) -> Vec<(Vec<Vec<f32>>, f64)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe");
    let (model, compute) = (Model::open(&dir).unwrap(), Compute::cpu());
    let options: ReduceOptions =
        serde_json::from_value(serde_json::json!({ "experts": 24 })).unwrap();
    let sources = Sources::new(&model, &compute);
    let watch = Arc::new(Watch::default());
    let mut reducer =
        ExpertReducer::new(watch.clone(), &options, options.size(&sources).unwrap(), &sources);
    let sequences: Vec<Vec<u32>> = (0..3).map(|s| (10 * s..10 * s + 10).collect()).collect();
    let group_of = (0..30).map(|token| if counts(token) { 0 } else { UNCOUNTED }).collect();
    let group = Group { label: "text".to_owned(), half: 0, weight: None, tokens: 30 };
    let batch = Batch::new(sequences.iter().map(Vec::as_slice));
    let calibration = Calibration { batch, groups: vec![group], group_of };
    reducer.begin(&calibration);
    let storage = Storage { block_tokens: Some(10), ..Storage::default() };
    let mut sweep = Sweep::stored(&model, &calibration.batch, &compute, &storage).unwrap();
    for (index, layer) in model.layers.iter().enumerate().take(2) {
        sweep.convert(index, layer, &mut reducer).unwrap();
    }
    std::mem::take(&mut watch.0.lock().unwrap())
}

#[test]
fn inputs_are_those_of_the_tokens_that_count() {
    // No token of the last block counts.
    let counts = |token: usize| !token.is_multiple_of(3) && token < 20;
    let (all, some) = (seen(|_| true), seen(counts));
    assert_eq!((all.len(), some.len()), (2, 2));
    for ((all, _), (some, tokens)) in all.into_iter().zip(some) {
        assert_eq!((all.len(), some.len(), tokens), (30, 13, 13.0));
        let counted: Vec<_> =
            (0..30).filter(|token| counts(*token)).map(|token| all[token].clone()).collect();
        assert_eq!(some, counted);
    }
}
