//! Forward parity with transformers on every golden, and proof that the goldens bite.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use moe_forward::{Batch, LmHead, LoadedRouter, Silent, Sweep, max_difference, parity};
use moe_math::Compute;
use moe_math::routing::{RoutingRule, route};
use moe_model::{Expert, Ffn, Model, Result, Weight, WeightSource};

use crate::common::golden;

/// Largest absolute error of a logit; their standard deviation is about 1.
const TOLERANCE: f32 = 1e-4;

struct Case {
    name: String,
    model: PathBuf,
    tokens: PathBuf,
    reference: PathBuf,
}

fn cases() -> Vec<Case> {
    let list = |dir: PathBuf| {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir())
    };
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

/// The CPU, or the device that MOE_TEST_DEVICE names.
fn compute() -> Compute {
    let name = std::env::var("MOE_TEST_DEVICE").unwrap_or("cpu".into());
    Compute { device: moe_math::open_device(name.parse().unwrap()).unwrap(), ..Compute::cpu() }
}

fn run(model: &Model, batch: &Batch) -> Tensor {
    let compute = compute();
    let mut sweep = Sweep::new(model, batch, &compute).unwrap();
    sweep.run(&mut Silent).unwrap();
    let logits = LmHead::load(model, &compute)
        .unwrap()
        .logits(&sweep.hidden(0..batch.tokens()).unwrap())
        .unwrap();
    logits.to_device(&candle_core::Device::Cpu).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    max_difference(a, b).unwrap()
}

#[test]
fn logits_and_experts_are_those_of_transformers() {
    let cases = cases();
    assert!(cases.len() > 50, "only {} goldens", cases.len());
    for case in cases {
        let model = Model::open(&case.model).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let found = parity(&model, &case.tokens, &case.reference, &compute());
        let found = found.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(found.logits < TOLERANCE && found.weights < TOLERANCE, "{}: {found:?}", case.name);
        assert_eq!(found.misrouted, 0, "{}: {found:?}", case.name);
    }
}

/// The number of tokens that `rule` sends elsewhere than to the experts `selected`.
fn differing(logits: &Tensor, rule: &RoutingRule, selected: &[Vec<u32>]) -> usize {
    let routing = route(logits, rule).unwrap();
    let ours = routing.selected.chunks(routing.top_k);
    ours.zip(selected)
        .filter(|(ours, theirs)| ours.iter().any(|expert| !theirs.contains(expert)))
        .count()
}

/// A golden that only the bias tells right from wrong: ranking by σ alone, or by softmax, picks
/// other experts.
#[test]
fn a_golden_needs_the_bias_to_choose_its_experts() {
    for name in ["deepseek_v3/base", "glm4_moe/base", "deepseek_v3/mixed"] {
        let reference = golden("families").join(name).join("reference.safetensors");
        let reference = candle_core::safetensors::load(reference, &Device::Cpu).unwrap();
        let (model, _) = opened(name);
        let (mut by_score, mut by_softmax) = (0, 0);
        for (layer, moe) in model.moes() {
            let router = LoadedRouter::load(&moe.router, &compute()).unwrap();
            let rule = router.rule();
            let logits = &reference[&format!("router_logits.{layer}")];
            let selected = reference[&format!("selected.{layer}")].to_dtype(DType::U32).unwrap();
            let selected = selected.to_vec2::<u32>().unwrap();
            assert_eq!(differing(logits, rule, &selected), 0, "{name}");
            let unbiased = RoutingRule { bias: None, ..rule.clone() };
            by_score += differing(logits, &unbiased, &selected);
            by_softmax += differing(logits, &RoutingRule::softmax(rule.top_k, true), &selected);
        }
        assert!(
            by_score > 3 && by_softmax > 3,
            "{name}: {by_score} and {by_softmax} tokens go elsewhere without it"
        );
    }
}

/// A sequence's logits must not depend on what else is in the batch.
#[test]
fn sequences_do_not_see_each_other() {
    let model = Model::open(&golden("models/moe")).unwrap();
    let batch = Batch::from_json(&golden("models/moe.tokens.json")).unwrap();
    let together = run(&model, &batch);
    for span in &batch.spans {
        let alone = run(&model, &Batch::new([&batch.ids[span.clone()]]));
        let part = together.narrow(0, span.start, span.len()).unwrap();
        assert!(difference(&alone, &part) < 1e-5);
    }
}

/// A weight whose elements are shifted by one: as good as dropping it, for any shape.
struct Shifted(Weight);

impl WeightSource for Shifted {
    fn make(&self) -> Result<Vec<u8>> {
        let mut bytes = self.0.read()?;
        bytes.rotate_right(self.0.dtype().bitsize() / 8);
        Ok(bytes)
    }
}

fn shifted(weight: &Weight) -> Weight {
    Weight::made(weight.name(), weight.dtype(), weight.shape(), Shifted(weight.clone()))
}

const MUTATED: [&str; 15] = [
    "llama/bias",
    "qwen2/base",
    "qwen3/base",
    "mistral/base",
    "mixtral/base",
    "qwen2_moe/sparse_step",
    "qwen3_moe/mlp_only",
    "olmoe/base",
    "deepseek_v2/base",
    "deepseek_v2/bias",
    "deepseek_v3/base",
    "deepseek_v3/halves",
    "deepseek_v3/fp8",
    "glm4_moe/base",
    "glm4_moe/bias",
];

/// The model and the tokens of a golden.
fn opened(name: &str) -> (Model, Batch) {
    let case = golden("families").join(name);
    let batch = Batch::from_json(&case.join("tokens.json")).unwrap();
    (Model::open(&case.join("model")).unwrap(), batch)
}

/// Every golden must notice a change in any of its tensors.
#[test]
fn mutations_fail_parity() {
    for name in MUTATED {
        let (model, batch) = opened(name);
        let reference = run(&model, &batch);
        let declared = model.declare().unwrap();
        for index in 0..declared.tensors.len() {
            let mut mutant = declared.clone();
            let (tensor, weight) = &mut mutant.tensors[index];
            let tensor = tensor.clone();
            *weight = shifted(weight);
            let logits = run(&mutant.reread().unwrap(), &batch);
            let moved = difference(&logits, &reference);
            assert!(moved > TOLERANCE, "{name}: shifting {tensor} changes logits by {moved} only");
        }
    }
}

/// Every golden must notice gate and up being swapped.
#[test]
fn swapped_matrices_fail_parity() {
    for name in MUTATED {
        let (model, batch) = opened(name);
        let mut swapped = model.clone();
        let swap = |expert: &mut Expert| std::mem::swap(&mut expert.gate, &mut expert.up);
        for layer in &mut swapped.layers {
            match &mut layer.ffn {
                Ffn::Dense(expert) => swap(expert),
                Ffn::Moe(moe) => moe.experts.iter_mut().for_each(swap),
            }
        }
        let moved = difference(&run(&swapped, &batch), &run(&model, &batch));
        assert!(moved > TOLERANCE, "{name}: gate and up are interchangeable");
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
                // Layers for multi-token prediction need no embedding and head of their own.
                Ok(short) if short.mtp.iter().any(|m| m.embed.is_none() || m.head.is_none()) => {}
                Ok(_) => panic!("{}: nobody missed {tensor}", case.name),
            }
        }
    }
}
