//! Forward parity with transformers on every golden, and proof that the goldens bite.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use moe_forward::{Batch, Head, Observer, Sweep};
use moe_math::Compute;
use moe_math::routing::Routing;
use moe_model::{Expert, Ffn, Make, Model, Result, Weight};

/// Largest absolute error of a logit; their standard deviation is about 1.
const TOLERANCE: f32 = 1e-4;
/// Selections must agree where the reference's decision is clearer than this.
const MARGIN: f32 = 1e-5;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

struct Case {
    name: String,
    model: PathBuf,
    tokens: PathBuf,
    reference: PathBuf,
}

fn cases() -> Vec<Case> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let family_case = |dir: PathBuf| Case {
        name: dir.strip_prefix(golden("families")).unwrap().display().to_string(),
        model: dir.join("model"),
        tokens: dir.join("tokens.json"),
        reference: dir.join("reference.safetensors"),
    };
    let trained = |name: &str| Case {
        name: name.to_owned(),
        model: golden("models").join(name),
        tokens: golden("models").join(format!("{name}.tokens.json")),
        reference: golden("models").join(format!("{name}.logits.safetensors")),
    };
    let mut cases: Vec<_> = list(golden("families")).flat_map(list).map(family_case).collect();
    cases.extend([trained("dense"), trained("moe")]);
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

#[derive(Default)]
struct Recorder(BTreeMap<usize, Routing>);

impl Observer for Recorder {
    fn routed(&mut self, layer: usize, _: &Tensor, routing: &Routing) {
        assert!(self.0.insert(layer, routing.clone()).is_none(), "goldens are small enough for one part");
    }
}

fn run(model: &Model, batch: &Batch) -> Result<(Tensor, Recorder)> {
    let compute = Compute::cpu();
    let mut recorder = Recorder::default();
    let mut sweep = Sweep::new(model, batch, &compute)?;
    sweep.run(&mut recorder)?;
    Ok((Head::load(model, &compute)?.logits(sweep.hidden())?, recorder))
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // f32::max would skip a NaN.
    difference.into_iter().fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

fn check_routing(name: &str, layer: usize, routing: &Routing, reference: &BTreeMap<String, Tensor>) {
    let logits = reference[&format!("router_logits.{layer}")].to_dtype(DType::F32).unwrap();
    let p = candle_nn::ops::softmax_last_dim(&logits.contiguous().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let selected = reference[&format!("selected.{layer}")].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    assert_eq!(routing.tokens(), selected.len(), "{name}: tokens in layer {layer}");
    for (token, (theirs, p)) in selected.iter().zip(&p).enumerate() {
        let ours = &routing.selected[token * routing.top_k..][..routing.top_k];
        let mut sorted = p.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        if theirs.len() == p.len() || sorted[theirs.len() - 1] - sorted[theirs.len()] > MARGIN {
            let set = |ids: &[u32]| ids.iter().copied().collect::<std::collections::BTreeSet<_>>();
            assert_eq!(set(ours), set(theirs), "{name}: experts of token {token} in layer {layer}");
        }
    }
    if let Some(weights) = reference.get(&format!("weights.{layer}")) {
        let ours = Tensor::from_slice(&routing.weights, weights.dims(), weights.device()).unwrap();
        let difference = max_difference(&ours, weights);
        assert!(difference < TOLERANCE, "{name}: routing weights in layer {layer} are off by {difference}");
    }
}

#[test]
fn logits_and_experts_are_those_of_transformers() {
    let cases = cases();
    assert!(cases.len() > 50, "only {} goldens", cases.len());
    for case in cases {
        let reference = candle_core::safetensors::load(&case.reference, &candle_core::Device::Cpu).unwrap();
        let reference: BTreeMap<_, _> = reference.into_iter().collect();
        let model = Model::open(&case.model).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let batch = Batch::from_json(&case.tokens).unwrap();
        let (logits, recorder) = run(&model, &batch).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let difference = max_difference(&logits, &reference["logits"]);
        assert!(difference < TOLERANCE, "{}: logits are off by {difference}", case.name);
        assert_eq!(recorder.0.len(), model.moes().count(), "{}", case.name);
        for (layer, routing) in &recorder.0 {
            check_routing(&case.name, *layer, routing, &reference);
        }
    }
}

/// A sequence's logits must not depend on what else is in the batch.
#[test]
fn sequences_do_not_see_each_other() {
    let model = Model::open(&golden("models/moe")).unwrap();
    let batch = Batch::from_json(&golden("models/moe.tokens.json")).unwrap();
    let (together, _) = run(&model, &batch).unwrap();
    for span in &batch.spans {
        let (alone, _) = run(&model, &Batch::new([&batch.ids[span.clone()]])).unwrap();
        let part = together.narrow(0, span.start, span.len()).unwrap();
        assert!(max_difference(&alone, &part) < 1e-5);
    }
}

/// A weight whose elements are shifted by one: as good as dropping it, for any shape.
struct Shifted(Weight);

impl Make for Shifted {
    fn make(&self) -> Result<Vec<u8>> {
        let mut bytes = self.0.read()?;
        bytes.rotate_right(self.0.dtype().bitsize() / 8);
        Ok(bytes)
    }
}

fn shifted(weight: &Weight) -> Weight {
    Weight::made(weight.name(), weight.dtype(), weight.shape(), Shifted(weight.clone()))
}

/// Every golden must notice a change in any of its tensors, and gate and up being swapped.
#[test]
fn mutations_fail_parity() {
    for name in [
        "llama/bias",
        "qwen2/base",
        "qwen3/base",
        "mistral/base",
        "mixtral/base",
        "qwen2_moe/sparse_step",
        "qwen3_moe/mlp_only",
        "olmoe/base",
    ] {
        let case = golden("families").join(name);
        let model = Model::open(&case.join("model")).unwrap();
        let batch = Batch::from_json(&case.join("tokens.json")).unwrap();
        let (reference, _) = run(&model, &batch).unwrap();
        let declared = model.declare().unwrap();
        for index in 0..declared.tensors.len() {
            let mut mutant = declared.clone();
            let (tensor, weight) = &mut mutant.tensors[index];
            let tensor = tensor.clone();
            *weight = shifted(weight);
            let (logits, _) = run(&mutant.reread().unwrap(), &batch).unwrap();
            let difference = max_difference(&logits, &reference);
            assert!(difference > TOLERANCE, "{name}: shifting {tensor} changes logits by {difference} only");
        }
        let mut swapped = model.clone();
        let swap = |expert: &mut Expert| std::mem::swap(&mut expert.gate, &mut expert.up);
        for layer in &mut swapped.layers {
            match &mut layer.ffn {
                Ffn::Dense(expert) => swap(expert),
                Ffn::Moe(moe) => moe.experts.iter_mut().for_each(swap),
            }
        }
        let (logits, _) = run(&swapped, &batch).unwrap();
        assert!(max_difference(&logits, &reference) > TOLERANCE, "{name}: gate and up are interchangeable");
    }
}

/// Dropping a tensor is noticed when the model is opened.
#[test]
fn a_dropped_tensor_is_missed_by_name() {
    for case in cases() {
        let model = Model::open(&case.model).unwrap();
        let declared = model.declare().unwrap();
        for index in 0..declared.tensors.len() {
            let mut short = declared.clone();
            let (tensor, _) = short.tensors.remove(index);
            match short.reread() {
                Err(error) => assert!(error.to_string().contains("remedy"), "{error}"),
                Ok(_) => panic!("{}: nobody missed {tensor}", case.name),
            }
        }
    }
}
